//! Would the lab notice? One element, jump or verdict in the kernel is changed behind the agent's back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use std::process::Command;

use common::{UpLab, eventually, exists};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The `nft` command in a node.
struct Nft {
    target: String,
}

impl Nft {
    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.target]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--net", "nft"]);
        command
    }

    fn run(&self, rules: &str) {
        let output = self.command().arg(rules).output().expect("nsenter and nft are needed");
        assert!(output.status.success(), "nft {rules}: {}", common::stderr(&output));
    }

    /// What our table holds, object by object.
    fn list(&self) -> Vec<Value> {
        let output = self.command().args(["-j", "list", "table", "inet", "moat"]).output().unwrap();
        let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
        all["nftables"].as_array_mut().unwrap().drain(..).collect()
    }

    fn set(&self, name: &str) -> Vec<Value> {
        self.sets().into_iter().find(|(n, _)| n == name).map(|(_, elements)| elements).unwrap_or_default()
    }

    fn sets(&self) -> Vec<(String, Vec<Value>)> {
        let sets = self.list().into_iter().filter_map(|mut o| {
            let set = if o["set"].is_object() { o["set"].take() } else { o["map"].take() };
            let name = set["name"].as_str()?.to_owned();
            Some((name, set["elem"].as_array().cloned().unwrap_or_default()))
        });
        sets.collect()
    }

    /// The handle of the rule of a chain that is nothing but this verdict.
    fn verdict_rule(&self, chain: &str, verdict: &str) -> u64 {
        let found = self.list().into_iter().find_map(|mut o| {
            let rule = o["rule"].take();
            let bare = rule["expr"].as_array()?.len() == 1 && rule["expr"][0].get(verdict).is_some();
            (rule["chain"] == chain && bare).then(|| rule["handle"].as_u64())?
        });
        found.unwrap_or_else(|| panic!("no rule `{verdict}` in {chain}"))
    }
}

/// Probes: exactly these cells must be among those that differ, and the exit status tells of it.
fn must_differ(lab: &UpLab, cell: &str) {
    let (status, report) = lab.probe(&[]);
    let named = common::differences(&report.unwrap());
    assert_eq!(status, 1, "{cell}");
    assert!(named.iter().any(|n| n.starts_with(cell)), "`{cell}` is not among:\n{}", named.join("\n"));
}

fn must_agree(lab: &UpLab) {
    let (status, report) = lab.probe(&[]);
    assert_eq!((status, common::differences(&report.unwrap())), (0, vec![]));
}

#[test]
fn a_change_behind_the_agents_back_is_found_and_named() {
    let lab = UpLab::up(&common::examples_dir().join("three-tier-web"), &["--no-restart", "--no-owner"]);
    let pod = |name: &str| lab.info.pods.iter().find(|p| p.name == name).unwrap();
    let (db, api) = (pod("shop/db-0"), pod("shop/api-0"));
    let node = lab.info.nodes.iter().find(|n| n.name == db.node).unwrap();
    let nft = Nft { target: node.target.to_string() };
    must_agree(&lab);

    // While the agent lives, the table is its own. Without it, the node enforces what it last wrote.
    kill_process(Pid::from_raw(node.agent).unwrap(), Signal::KILL).unwrap();
    eventually("the agent's end", || !exists(node.agent));
    let (status, report) = lab.probe(&[]);
    let notes = report.unwrap().notes.join("\n");
    assert_eq!(status, 0);
    assert!(notes.contains(&format!("the agent of {} has ended", node.name)), "{notes}");

    // An element of an allow set: the api pods, who may ask the database.
    let addresses: Vec<String> = ["shop/api-0", "shop/api-1"].map(|p| pod(p).addresses[0].clone()).into();
    let (set, _) = nft
        .sets()
        .into_iter()
        .find(|(_, e)| e.len() == 2 && addresses.iter().all(|a| e.contains(&Value::from(a.as_str()))))
        .expect("a set of the api pods");
    let element = format!("element inet moat {set} {{ {} }}", api.addresses[0]);
    nft.run(&format!("delete {element}"));
    must_differ(&lab, "shop/api-0 -> shop/db-0 5432/TCP IPv4: predicted allowed, observed denied");
    nft.run(&format!("add {element}"));
    must_agree(&lab);

    // A jump: to the database without its program.
    let own = nft.set("self4").into_iter().map(|e| e["concat"].clone()).find(|e| e[1] == *db.addresses[0]);
    let link = own.expect("the database's veth")[0].as_str().unwrap().to_owned();
    let entry = nft.set("to_pod").into_iter().find(|e| e[0] == *link).expect("the database's entry");
    let program = entry[1]["goto"]["target"].as_str().unwrap().to_owned();
    let replace = |verdict: &str| {
        nft.run(&format!(
            "delete element inet moat to_pod {{ \"{link}\" }}; \
             add element inet moat to_pod {{ \"{link}\" : {verdict} }}"
        ));
    };
    replace("accept");
    must_differ(&lab, "default/visitor -> shop/db-0 5432/TCP IPv4: predicted denied, observed allowed");
    replace(&format!("goto {program}"));
    must_agree(&lab);

    // A verdict: what no rule allows.
    let handle = nft.verdict_rule("policy-ingress", "drop");
    nft.run(&format!("replace rule inet moat policy-ingress handle {handle} accept"));
    must_differ(&lab, "default/visitor -> shop/db-0 60001/UDP IPv4: predicted denied, observed allowed");
    let handle = nft.verdict_rule("policy-ingress", "accept");
    nft.run(&format!("replace rule inet moat policy-ingress handle {handle} drop"));
    must_agree(&lab);
}
