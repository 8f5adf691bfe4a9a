//! What the fuzz targets reach of the agent's own decoders. Not for use in programs.

/// A state file of the pod network as the next start writes it anew; `None` where it cannot be read.
pub fn state_file(text: &[u8]) -> Option<Vec<u8>> {
    crate::podnet::journal::rewritten(text)
}
