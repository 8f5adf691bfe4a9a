//! What the fuzz targets reach of the agent's own decoders. Not for use in programs.

use moat_nfnetlink::nflog::Packet;

/// What the drop log reads of a packet; `None` where our rules did not log it.
pub fn dropped(packet: &Packet<'_>) -> Option<String> {
    crate::droplog::in_words(packet)
}

/// A state file of the pod network as the next start writes it anew; `None` where it cannot be read.
pub fn state_file(text: &[u8]) -> Option<Vec<u8>> {
    crate::podnet::journal::rewritten(text)
}

/// Whether what an alias with this body says of the link of `container`'s `ifname` is written, and then read, as the same.
pub fn alias_is_stable(container: &str, ifname: &str, body: &str) -> bool {
    let link = crate::podnet::AttachmentKey::new(container, ifname).host_ifname();
    crate::podnet::identity::is_stable(&link, body)
}

/// A file of what a controller told, of whatever node, as the next start writes it anew; `None` where it cannot be read.
pub fn told_file(bytes: &[u8]) -> Option<Vec<u8>> {
    crate::source::told_file(bytes)
}
