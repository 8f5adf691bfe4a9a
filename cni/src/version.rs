//! The versions of the CNI specification that the plugin speaks.

use std::fmt;

/// A version of the CNI specification. Ordered from old to new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpecVersion {
    /// 0.3.1: the first with today's result; ADD, DEL, VERSION.
    V0_3_1,
    /// 0.4.0: adds CHECK.
    V0_4_0,
    /// 1.0.0: addresses no longer say their family.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, and the MTU in results.
    V1_1_0,
}

impl SpecVersion {
    /// All of them, from old to new.
    pub const ALL: [SpecVersion; 4] =
        [SpecVersion::V0_3_1, SpecVersion::V0_4_0, SpecVersion::V1_0_0, SpecVersion::V1_1_0];

    /// The newest.
    pub const NEWEST: SpecVersion = SpecVersion::V1_1_0;

    /// The version as the specification writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            SpecVersion::V0_3_1 => "0.3.1",
            SpecVersion::V0_4_0 => "0.4.0",
            SpecVersion::V1_0_0 => "1.0.0",
            SpecVersion::V1_1_0 => "1.1.0",
        }
    }

    /// The version that `text` names, if the plugin speaks it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
