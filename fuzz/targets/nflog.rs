//! Packets that a log statement copied: the kernel's attributes, and in them whatever was on the wire.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_agent::fuzzing::dropped;
use moat_fuzz::within_bounds;
use moat_nfnetlink::nflog::Packets;

fuzz_target!(|input: &[u8]| within_bounds(input, 1 << 20, |datagram| {
    for packet in Packets::new(datagram) {
        assert!(packet.payload.len() <= datagram.len());
        assert!(dropped(&packet).is_none() || packet.prefix.starts_with("moat "));
    }
}));
