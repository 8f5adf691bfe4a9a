//! The lines that plugin, command line and agent say to each other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_cni::protocol::{Response, VERSION, decode_request, decode_response, encode};
use moat_cni::stream::Event;
use moat_fuzz::within_bounds;

fuzz_target!(|input: &[u8]| within_bounds(input, 8 << 20, |line| {
    if let Ok(request) = decode_request(line) {
        assert_eq!(decode_request(&encode(&request)), Ok(request));
    }
    // A line of a stream, once the agent has agreed to one.
    if let Ok(event) = serde_json::from_slice::<Event>(line) {
        let again = serde_json::from_slice(&encode(&event)).ok();
        assert_eq!(again, Some(event));
    }
    if let Ok(outcome) = decode_response(line) {
        let response = Response { version: VERSION, outcome: outcome.clone() };
        assert_eq!(decode_response(&encode(&response)), Ok(outcome));
    }
}));
