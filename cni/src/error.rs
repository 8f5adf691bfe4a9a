//! What goes wrong, as the specification wants it said.

use serde::{Deserialize, Serialize};

/// The specification's error codes, and from 100 on our own.
pub mod code {
    /// The configuration asks for a CNI version that the plugin does not speak.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The configuration has a field that the plugin does not support.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// No such container; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// What was read is not what it should be.
    pub const DECODING_FAILURE: u32 = 6;
    /// The network configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// A passing condition: the runtime should try again.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD, and pods that exist may be cut off as well.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Plugin and agent speak different versions of their protocol.
    pub const PROTOCOL_MISMATCH: u32 = 100;
    /// The kernel refused something that the pod network needs.
    pub const KERNEL_REFUSED: u32 = 101;
    /// The pod already has an interface of that name.
    pub const INTERFACE_EXISTS: u32 = 102;
    /// CHECK found that the pod's network is not what ADD made.
    pub const DRIFTED: u32 = 103;
    /// Anything else that went wrong in the agent.
    pub const INTERNAL: u32 = 199;
}

/// An error as the CNI specification carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{} (CNI error {code})", self.words())]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// What went wrong, in a few words.
    pub msg: String,
    /// More about it, and what to do; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error of the code `code`.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// Message and details, for people: the number is for runtimes.
    pub fn words(&self) -> String {
        let between = if self.details.is_empty() { "" } else { ": " };
        format!("{}{between}{}", self.msg, self.details)
    }
}
