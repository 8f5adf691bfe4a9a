//! Reads `nft -j list ruleset`, object by object. Shares no code with the crate that wrote what is read.
//!
//! Tables, chains, rules and sets come as the `nftables` crate's types. Maps are ours: that crate knows no
//! verdict maps, and refuses the whole output when there is one.

use nftables::schema::{Chain, NfListObject, Rule, Set};
use serde::Deserialize;
use serde_json::Value;

/// Everything in the namespace.
#[derive(Debug, Default)]
pub(crate) struct Ruleset {
    pub(crate) tables: Vec<Value>,
    pub(crate) chains: Vec<Chain<'static>>,
    pub(crate) rules: Vec<Rule<'static>>,
    pub(crate) sets: Vec<Set<'static>>,
    pub(crate) maps: Vec<Map>,
}

/// A map; `type` is one name or a list of them, and so is `map`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Map {
    pub(crate) family: String,
    pub(crate) table: String,
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) key: Value,
    #[serde(rename = "map")]
    pub(crate) data: Value,
    #[serde(default)]
    pub(crate) flags: Vec<String>,
    #[serde(default)]
    pub(crate) elem: Vec<(Value, Value)>,
}

impl Ruleset {
    /// Reads the ruleset of the calling thread's network namespace.
    pub(crate) fn read() -> Ruleset {
        let text = crate::support::run("nft", &["-j", "list", "ruleset"]);
        let document: Value = serde_json::from_str(&text).expect("JSON");
        let mut ruleset = Ruleset::default();
        for object in document["nftables"].as_array().expect("a list") {
            if object.get("metainfo").is_some() {
                continue;
            }
            // Taken apart by hand: nft 1.0.6 prints the flags of an owned table as no schema allows.
            if let Some(table) = object.get("table") {
                ruleset.tables.push(table.clone());
            } else if let Some(map) = object.get("map") {
                ruleset.maps.push(serde_json::from_value(map.clone()).expect("a map"));
            } else {
                match serde_json::from_value(object.clone()).expect("an object nft knows") {
                    NfListObject::Chain(chain) => ruleset.chains.push(chain),
                    NfListObject::Rule(rule) => ruleset.rules.push(rule),
                    NfListObject::Set(set) => ruleset.sets.push(*set),
                    NfListObject::Counter(_) => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
        ruleset
    }

    /// The one map of that name.
    pub(crate) fn map(&self, name: &str) -> &Map {
        self.maps.iter().find(|map| map.name == name).expect(name)
    }

    /// The one set of that name, as JSON again, without what it leaves out.
    pub(crate) fn set_json(&self, name: &str) -> Value {
        let set = self.sets.iter().find(|set| set.name == name).expect(name);
        without_nulls(serde_json::to_value(set).expect("JSON"))
    }

    /// A rule's expressions as JSON, which is how nft documents them.
    pub(crate) fn expressions(&self, chain: &str) -> Vec<Value> {
        let of = self.rules.iter().filter(|rule| rule.chain == chain);
        of.map(|rule| without_nulls(serde_json::to_value(&rule.expr).expect("JSON"))).collect()
    }
}

/// The nftables crate writes fields that are not there as null; a lone one is a statement of nft's.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let lone = fields.len() == 1;
            let kept = fields.into_iter().filter(|(_, value)| lone || !value.is_null());
            kept.map(|(name, value)| (name, without_nulls(value))).collect()
        }
        Value::Array(values) => values.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
