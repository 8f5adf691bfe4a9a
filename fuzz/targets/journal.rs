//! The pod network's state file, as a crash, a full disk or somebody's editor may have left it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_agent::fuzzing::state_file;
use moat_fuzz::within_bounds;

fuzz_target!(|input: &[u8]| within_bounds(input, 8 << 20, |text| {
    if let Some(written) = state_file(text) {
        assert_eq!(
            state_file(&written).as_deref(),
            Some(&written[..]),
            "what was written anew says the same"
        );
    }
}));
