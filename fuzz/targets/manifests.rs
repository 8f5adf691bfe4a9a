//! Manifests, as YAML and as JSON; and what the engine makes of those that are accepted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_fuzz::within_bounds;
use moat_manifests::{Manifests, decode, decode_pod_status};
use moat_policies::Cluster;

/// What reading a file may take of memory, in bytes.
const MEMORY: usize = 64 << 20;

fuzz_target!(|text: &[u8]| {
    for file in ["input.yaml", "input.json"] {
        // What is bounded is one reading.
        within_bounds(text, MEMORY, |text| drop(decode([(file, text)])));
        within_bounds(text, MEMORY, |text| drop(decode_pod_status([(file, text)])));
        let decoded = decode([(file, text)]);
        assert_eq!(decode([(file, text)]), decoded, "the same text, the same objects");
        match decoded {
            Ok(manifests) => {
                for warning in &manifests.warnings {
                    assert!(warning.to_string().starts_with(file), "{warning} names no file");
                }
                within_bounds(text, MEMORY, |_| compile(&manifests));
            }
            Err(errors) => {
                assert!(errors.iter().len() > 0, "nothing is wrong, and yet it was refused");
                for error in errors.iter() {
                    assert!(error.to_string().starts_with(file), "{error} names no file");
                }
            }
        }
        if let Err(errors) = decode_pod_status([(file, text)]) {
            assert!(errors.iter().all(|error| error.to_string().starts_with(file)));
        }
    }
});

/// What was accepted can be put in force, and taken out of force again.
fn compile(manifests: &Manifests) {
    let mut cluster = Cluster::new();
    cluster.reset(manifests.objects.iter().cloned());
    for node in cluster.commit().into_keys() {
        let _ = cluster.state(&node);
    }
    for object in &manifests.objects {
        cluster.delete(&object.key());
    }
    for node in cluster.commit().into_keys() {
        assert!(cluster.state(&node).is_empty(), "{node} keeps what nobody needs");
    }
}
