//! What the kernel says of tracked connections.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_fuzz::within_bounds;
use moat_nfnetlink::conntrack::Entry;
use moat_nfnetlink::fuzzing;

fuzz_target!(|input: &[u8]| within_bounds(input, 1 << 20, |datagram| {
    for entry in Entry::read(datagram) {
        assert_eq!(entry.original.source.is_ipv4(), entry.original.destination.is_ipv4());
        assert_eq!(entry.reply.source.is_ipv4(), entry.reply.destination.is_ipv4());
        assert_eq!(Entry::read(&fuzzing::entry(&entry)).collect::<Vec<_>>(), [entry]);
        let _ = (entry.original.to_string(), entry.reply.to_string());
    }
}));
