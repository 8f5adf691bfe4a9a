//! What the alias of a pod's link says, whoever wrote it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_agent::fuzzing::alias_is_stable;
use moat_fuzz::within_bounds;

fuzz_target!(|input: &[u8]| within_bounds(input, 1 << 20, |body| {
    let Ok(body) = str::from_utf8(body) else { return };
    // An alias is about one link: the one of the container and interface that it names.
    let mut words = body.split(' ');
    let (container, ifname) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    assert!(alias_is_stable(container, ifname, body));
}));
