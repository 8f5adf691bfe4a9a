//! A short name for what an input holds: two processes that read the same files can tell each other so.

use crate::source::Source;

/// 32 hex digits that stand for the files' names and bytes, in their order.
pub fn fingerprint<'s>(sources: impl IntoIterator<Item = &'s Source>) -> String {
    let mut hasher = blake3::Hasher::new();
    for source in sources {
        for part in [source.file.as_bytes(), &source.bytes] {
            // With its length, so that no bytes can move from one part to the next.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_bytes_and_order_count() {
        let source = |file: &str, bytes: &str| Source { file: file.into(), bytes: bytes.into() };
        let (a, b) = (source("a.yaml", "1"), source("b.yaml", "2"));
        let all = [
            fingerprint([]),
            fingerprint([&a]),
            fingerprint([&a, &b]),
            fingerprint([&b, &a]),
            fingerprint([&source("a.yam", "l1")]),
            fingerprint([&source("a.yaml", "2")]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 32);
            assert!(!all[..at].contains(one));
        }
        assert_eq!(fingerprint([&a, &b]), fingerprint(&[a.clone(), b.clone()]));
    }
}
