//! `moat drops` and `moat flows` in a lab: what real agents say of real packets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use common::{UpLab, eventually, moat};
use serde_json::Value;

/// The lines of `moat COMMAND --lab … --json`.
fn lines(lab: &UpLab, words: &[&str]) -> Vec<Value> {
    let output = moat().args(words).args(["--lab", &lab.name, "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", common::stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The drops of these ends and port.
fn of<'a>(events: &'a [Value], source: &str, destination: &str, port: u16) -> Vec<&'a Value> {
    let is = |drop: &&Value| {
        drop["source"]["pod"] == source && drop["destination"]["pod"] == destination && drop["port"] == port
    };
    events.iter().map(|event| &event["drop"]).filter(is).collect()
}

#[test]
fn the_lab_tells_what_it_drops_and_which_connections_there_are() {
    let folder = common::copy_of("three-tier-web");
    let lab = UpLab::up(folder.path(), &[]);
    assert_eq!(lab.probe(&[]).0, 0);

    let mut events = Vec::new();
    eventually("drops of both nodes are told", || {
        events = lines(&lab, &["drops"]);
        let nodes = |node: &str| events.iter().any(|e| e["drop"]["node"] == node);
        nodes("node-1") && nodes("node-2") && !of(&events, "default/visitor", "shop/db-0", 5432).is_empty()
    });
    let times: Vec<&str> = events.iter().filter_map(|e| e["drop"]["time"].as_str()).collect();
    assert!(times.is_sorted(), "all nodes' by time");
    let visitor = of(&events, "default/visitor", "shop/db-0", 5432)[0];
    assert_eq!(
        (visitor["reason"].as_str(), visitor["direction"].as_str()),
        (Some("policy"), Some("ingress"))
    );
    assert_eq!(
        visitor["explanation"],
        "shop/db-0 is isolated for ingress by shop/db, shop/default-deny-ingress; nearest: shop/db ingress[0] allows it \
         from pods tier=api in namespace shop, not from default/visitor"
    );
    assert!(of(&events, "shop/api-0", "shop/db-0", 5432).is_empty(), "what is allowed is not dropped");
    // Every one is explained, and for one pod there are only its own.
    assert!(events.iter().all(|e| e["drop"]["explanation"].as_str().is_none_or(|text| !text.is_empty())));
    let own = lines(&lab, &["drops", "--pod", "shop/db-0"]);
    assert!(!own.is_empty() && own.len() < events.len());

    // Connections that policy has let in, and one that it denies when it changes.
    let find = |flows: &[Value]| {
        let is = |f: &&Value| {
            f["source"]["pod"] == "shop/api-0"
                && f["destination"]["pod"] == "shop/db-0"
                && f["destination_port"] == 5432
        };
        flows.iter().find(is).cloned()
    };
    let flow = find(&lines(&lab, &["flows"])).expect("the probe's connection");
    assert_eq!((&flow["allowed"], &flow["revoked"]), (&Value::Bool(true), &Value::Bool(false)));
    let policies = folder.path().join("policies.yaml");
    let open = fs::read_to_string(&policies).unwrap();
    fs::write(&policies, open.replace("tier: api", "tier: none")).unwrap();
    eventually("the connection is cut", || {
        find(&lines(&lab, &["flows", "--revoked"])).is_some_and(|flow| {
            flow["allowed"] == false
                && flow["explanation"].as_str().is_some_and(|why| why.contains("shop/db"))
        })
    });
}

#[test]
fn who_follows_is_told_at_once_and_may_go_at_any_time() {
    let folder = common::copy_of("three-tier-web");
    let lab = UpLab::up(folder.path(), &[]);
    let mut follower = moat()
        .args(["drops", "--follow", "--json", "--lab", &lab.name])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lab.probe(&[]).0, 0);
    let first: Value = serde_json::from_str(&told.next().unwrap().unwrap()).unwrap();
    assert!(first["drop"]["time"].is_string(), "{first}");
    // Nobody reads on: it ends with the next line that it has, and makes no words about it.
    drop(told);
    let mut ended = None;
    eventually("it ends", || {
        let _ = lab.probe(&[]);
        ended = follower.try_wait().unwrap();
        ended.is_some()
    });
    assert!(ended.unwrap().success());
    let mut words = String::new();
    std::io::Read::read_to_string(&mut follower.stderr.take().unwrap(), &mut words).unwrap();
    assert_eq!(words, "");

    let nobody = moat().args(["drops", "--socket", "/nowhere/agent.sock"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(2));
    assert!(common::stderr(&nobody).contains("is moat-agent running on this node?"));
    let no_lab = moat().args(["flows", "--lab", "no-such-lab"]).output().unwrap();
    assert_eq!(no_lab.status.code(), Some(2));
    assert!(common::stderr(&no_lab).contains("moat lab up -f DIR"));
}
