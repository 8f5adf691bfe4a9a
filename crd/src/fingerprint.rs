//! A name for what people have applied.

use std::fmt;

/// A sum over the versions of objects, in no order: it can be kept up to date object by object, and two that have seen the same
/// objects in the same versions agree.
///
/// Of a version only its `metadata.resourceVersion` counts, and of that only whether it is the same. What is summed over: all
/// NetworkPolicies, Namespaces and the NetworkConfig. Not pods: they come and go without anybody applying anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// The object is there in this version. `namespace` is empty for what is in none.
    pub fn add(&mut self, kind: &str, namespace: &str, name: &str, version: &str) {
        self.0 = self.0.wrapping_add(part(kind, namespace, name, version));
    }

    /// The object is not there in this version any more.
    pub fn remove(&mut self, kind: &str, namespace: &str, name: &str, version: &str) {
        self.0 = self.0.wrapping_sub(part(kind, namespace, name, version));
    }
}

fn part(kind: &str, namespace: &str, name: &str, version: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for text in [kind, namespace, name, version] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().as_bytes().first_chunk().map_or(0, |octets| u64::from_le_bytes(*octets))
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_objects_have_the_same_name_however_they_came() {
        let (mut one, mut other) = (Fingerprint::default(), Fingerprint::default());
        one.add("NetworkPolicy", "shop", "web", "7");
        one.add("Namespace", "", "shop", "3");
        other.add("Namespace", "", "shop", "2");
        other.add("NetworkPolicy", "shop", "web", "7");
        assert_ne!(one, other);
        other.remove("Namespace", "", "shop", "2");
        other.add("Namespace", "", "shop", "3");
        assert_eq!(one.to_string(), other.to_string());
        assert_eq!(one.to_string().len(), 16);
    }

    #[test]
    fn where_one_text_ends_and_the_next_begins_counts() {
        let of = |namespace, name| {
            let mut sum = Fingerprint::default();
            sum.add("NetworkPolicy", namespace, name, "1");
            sum
        };
        assert_ne!(of("ab", "c"), of("a", "bc"));
    }
}
