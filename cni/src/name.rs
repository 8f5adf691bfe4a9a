//! The name of a pod's link in the node's namespace: it follows from the attachment's key, so that whoever knows the key
//! finds the link, with no record to look into.

/// What every host end's name begins with; eleven hex digits follow.
pub const IFNAME_PREFIX: &str = "moat";

/// The name of the host end of `ifname` in the container `container_id`. Always the same for the same two, so that a second
/// try finds what a first one left.
pub fn host_ifname(container_id: &str, ifname: &str) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(container_id.as_bytes());
    // Neither name can hold a NUL, so no two keys hash the same bytes.
    hash.update(&[0]);
    hash.update(ifname.as_bytes());
    let digest = hash.finalize().to_hex();
    format!("{IFNAME_PREFIX}{}", &digest.as_str()[..11])
}

/// Whether a link of this name can be the host end of one of our pods.
pub fn is_host_ifname(name: &str) -> bool {
    name.strip_prefix(IFNAME_PREFIX)
        .is_some_and(|hex| hex.len() == 11 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_end_has_a_name_of_its_own_that_never_changes() {
        let name = host_ifname("c0ffee", "eth0");
        assert_eq!(name, host_ifname("c0ffee", "eth0"));
        assert_ne!(name, host_ifname("c0ffee", "eth1"));
        assert_ne!(name, host_ifname("c0ffe", "eeth0"));
        assert_eq!(name.len(), 15, "the kernel's limit");
        assert!(is_host_ifname(&name));
        assert!(!is_host_ifname("moat-vxlan"));
        assert!(!is_host_ifname("eth0"));
    }
}
