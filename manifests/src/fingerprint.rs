//! A short name for what an input holds: two processes that read the same files can tell each other so.

use std::fmt;

use crate::source::Source;

/// 32 hex digits that stand for the files' names and bytes. They do not depend on the order of the files, so that one
/// file more or less costs no more than that file.
pub fn fingerprint<'s>(sources: impl IntoIterator<Item = &'s Source>) -> String {
    let mut all = Fingerprint::default();
    sources.into_iter().for_each(|source| all.add(digest(&source.file, &source.bytes)));
    all.to_string()
}

/// Stands for one file.
pub(crate) fn digest(file: &str, bytes: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    for part in [file.as_bytes(), bytes] {
        // With its length, so that no bytes can move from one part to the next.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// Stands for all files: the sum of what stands for each. It tells states apart for those who wait for one; it is no
/// proof against somebody who looks for two with the same name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint(u128);

impl Fingerprint {
    pub(crate) fn add(&mut self, digest: u128) {
        self.0 = self.0.wrapping_add(digest);
    }

    pub(crate) fn remove(&mut self, digest: u128) {
        self.0 = self.0.wrapping_sub(digest);
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_bytes_and_how_often_count_and_the_order_does_not() {
        let source = |file: &str, bytes: &str| Source { file: file.into(), bytes: bytes.into() };
        let (a, b) = (source("a.yaml", "1"), source("b.yaml", "2"));
        let all = [
            fingerprint([]),
            fingerprint([&a]),
            fingerprint([&a, &a]),
            fingerprint([&a, &b]),
            fingerprint([&source("a.yam", "l1")]),
            fingerprint([&source("a.yaml", "2")]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 32);
            assert!(!all[..at].contains(one));
        }
        assert_eq!(fingerprint([&a, &b]), fingerprint([&b, &a]));
    }

    #[test]
    fn what_comes_and_goes_leaves_no_trace() {
        let mut all = Fingerprint::default();
        all.add(digest("a.yaml", b"1"));
        let before = all;
        all.add(digest("b.yaml", b"2"));
        all.remove(digest("b.yaml", b"2"));
        assert_eq!(all, before);
    }
}
