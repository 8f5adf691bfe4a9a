//! What is checked in is what the types say.

use std::fs;
use std::path::Path;

#[test]
fn the_yaml_that_is_checked_in_is_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    for (name, text) in moat_crd::yaml().unwrap() {
        let there = fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert_eq!(there, text, "crd/yaml/{name} has drifted: run `cargo xtask crds`");
    }
}

#[test]
fn every_field_says_what_it_is() {
    fn look(schema: &serde_json::Value, path: &str) {
        let properties = schema["properties"].as_object().into_iter().flatten();
        for (name, property) in properties {
            let path = format!("{path}.{name}");
            // Kubernetes' own.
            if path != ".metadata" {
                assert!(property["description"].is_string(), "{path} has no description");
                look(property, &path);
            }
        }
    }
    for definition in moat_crd::definitions() {
        let schema = &definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema;
        let schema = serde_json::to_value(schema).unwrap();
        for part in ["spec", "status"] {
            look(&schema["properties"][part], part);
        }
    }
}
