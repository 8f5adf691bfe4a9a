//! What a container runtime hands to the plugin: variables and a network configuration; and what the plugin then
//! prints, whatever the agent answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_cni::plugin::{Output, run_asking};
use moat_cni::protocol::decode_response;
use moat_fuzz::within_bounds;
use serde_json::Value;

/// Lines of `NAME=value` up to an empty one, then the agent's answer on one line, then what is on stdin.
fn split(input: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let variables = input.windows(2).position(|pair| pair == b"\n\n")?;
    let rest = &input[variables + 2..];
    let answer = rest.iter().position(|&byte| byte == b'\n')?;
    Some((str::from_utf8(&input[..variables]).ok()?, &rest[..answer], &rest[answer + 1..]))
}

fuzz_target!(|input: &[u8]| within_bounds(input, 8 << 20, |input| {
    let Some((variables, answer, stdin)) = split(input) else { return };
    let get = |name: &str| {
        let lines = variables.lines().filter_map(|line| line.split_once('='));
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value.to_owned()).next()
    };
    let command = get("CNI_COMMAND").unwrap_or_default();
    let Output { stdout, success } = run_asking(&command, get, stdin, |socket, _| {
        assert!(socket.is_absolute());
        decode_response(answer)
    });
    // The specification: one JSON document or nothing; after a failure always one, with the error in it.
    let said = stdout.map(|text| serde_json::from_str::<Value>(&text).expect("what is printed is JSON"));
    match (success, said) {
        (true, None) => {}
        (true, Some(result)) => assert!(result["cniVersion"].is_string()),
        (false, error) => {
            let error = error.expect("a failure is told");
            assert!(error["cniVersion"].is_string() && error["code"].is_u64() && error["msg"].is_string());
        }
    }
}));
