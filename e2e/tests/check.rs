//! `moat-agent check`, run in a node as a person would run it, with the running agent's own flags.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::UpLab;
use moat_lab::NodeInfo;

/// `moat-agent check` for a node, with what its agent was started with.
fn check_args(node: &NodeInfo) -> Vec<String> {
    let line = fs::read_to_string(format!("/proc/{}/cmdline", node.agent)).unwrap();
    let given: Vec<&str> = line.split_terminator('\0').collect();
    let asked = ["--node", "--manifests", "--pod-status", "--state-dir"];
    let pairs = given.windows(2).filter(|pair| asked.contains(&pair[0]));
    ["check"].into_iter().chain(pairs.flatten().copied()).map(str::to_owned).collect()
}

fn in_node(node: &NodeInfo, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &node.target.to_string()]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--preserve-credentials"]);
    }
    command.args(["--net", program]);
    command
}

fn outcome(output: &Output) -> (i32, String) {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), common::stderr(output));
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn check_finds_no_difference_in_what_an_agent_wrote_and_the_one_in_an_edited_dump() {
    let agent = common::bin_dir().join("moat-agent");
    let agent = agent.to_str().unwrap();
    for recipe in ["database-named-port", "egress-external-cidr", "port-range"] {
        let lab = UpLab::up(&common::examples_dir().join(recipe), &[]);
        for node in &lab.info.nodes {
            let (status, text) = outcome(&in_node(node, agent).args(check_args(node)).output().unwrap());
            assert_eq!(status, 0, "{recipe}, {}: {text}", node.name);
            assert!(text.contains(" 0 differences"), "{text}");
        }
    }

    let lab = UpLab::up(&common::examples_dir().join("three-tier-web"), &[]);
    let pod = |name: &str| lab.info.pods.iter().find(|p| p.name == name).unwrap();
    let (db, api) = (pod("shop/db-0"), pod("shop/api-0"));
    let node = lab.info.nodes.iter().find(|n| n.name == db.node).unwrap();
    let listing = in_node(node, "nft").args(["-j", "list", "table", "inet", "moat"]).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let judge = |dump: &str| {
        let file = folder.path().join("dump.json");
        fs::write(&file, dump).unwrap();
        outcome(&Command::new(agent).args(check_args(node)).arg("--dump").arg(&file).output().unwrap())
    };
    assert_eq!(judge(&listing).0, 0);

    // Somebody else's address in the set of those who may ask the database.
    let own = format!("\"{}\"", api.addresses[0]);
    assert!(listing.contains(&own), "the api's address is in some set");
    let (status, text) = judge(&listing.replace(&own, "\"203.0.113.77\""));
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("shop/api-0") && text.contains("shop/db-0"), "{text}");

    assert_eq!(judge("no listing").0, 2);
    let without_nft = Command::new(agent).args(check_args(node)).env("PATH", "/nowhere").output().unwrap();
    let (status, text) = outcome(&without_nft);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("nftables"), "{text}");
}
