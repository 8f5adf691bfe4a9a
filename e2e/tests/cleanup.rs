//! Nothing stays behind: not after Ctrl-C, not after kill -9 of whatever one likes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{UpLab, eventually, exists};
use rustix::process::{Pid, Signal, kill_process};

/// Where this user's labs have their folders.
fn base() -> PathBuf {
    let uid = rustix::process::geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if uid.is_root() => "/run/moat-lab".into(),
        Some(own) => PathBuf::from(own).join("moat-lab"),
        None => std::env::temp_dir().join(format!("moat-lab-{}", uid.as_raw())),
    }
}

/// The number of a lab's keeper, once it has one.
fn keeper(lab: &str) -> Option<i32> {
    let text = fs::read(base().join(lab).join("keeper.json")).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
    i32::try_from(value["pid"].as_i64()?).ok()
}

/// All processes of a process namespace, as we see them.
fn processes_with(keeper: i32) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(keeper);
    let all = fs::read_dir("/proc").unwrap().flatten();
    let numbers = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter(|pid| wanted.is_some() && namespace(*pid) == wanted).collect()
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// A `moat lab run` in the middle of its work: its keeper, and all that it has started.
fn running() -> (Child, String, i32, Vec<i32>) {
    let folder = common::examples_dir().join("multi-tenant");
    let mut command: Command = common::moat();
    command.args(["lab", "run", "-f"]).arg(folder).stdout(Stdio::null()).stderr(Stdio::null());
    let front = command.spawn().unwrap();
    let lab = format!("run-{}", front.id());
    eventually("a keeper", || keeper(&lab).is_some());
    let keeper = keeper(&lab).unwrap();
    // Both agents run.
    eventually("agents", || processes_with(keeper).len() >= 3);
    (front, lab, keeper, processes_with(keeper))
}

#[test]
fn ctrl_c_removes_everything_before_the_command_ends() {
    for signal in [Signal::INT, Signal::TERM] {
        let (mut front, lab, _, processes) = running();
        send(i32::try_from(front.id()).unwrap(), signal);
        assert_eq!(front.wait().unwrap().code(), Some(130));
        assert!(!base().join(lab).exists());
        assert!(processes.iter().all(|pid| !exists(*pid)), "{processes:?}");
    }
}

#[test]
fn a_killed_front_takes_its_lab_with_it_and_its_folder_is_swept() {
    let (mut front, lab, _, processes) = running();
    front.kill().unwrap();
    front.wait().unwrap();
    eventually("the end of its processes", || processes.iter().all(|pid| !exists(*pid)));
    let folder = base().join(&lab);
    let _next = UpLab::up(&common::examples_dir().join("three-tier-web"), &[]);
    assert!(!folder.exists());
}

#[test]
fn a_killed_keeper_takes_its_lab_with_it_and_up_starts_afresh() {
    let folder = common::examples_dir().join("three-tier-web");
    let first = UpLab::up(&folder, &[]);
    let keeper = keeper(&first.name).unwrap();
    let processes = processes_with(keeper);
    assert!(processes.contains(&first.info.nodes[0].agent), "the agents are among {processes:?}");
    let again = common::up(&first.name, &folder, &[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(common::stderr(&again).contains("is up already"), "{}", common::stderr(&again));

    send(keeper, Signal::KILL);
    eventually("the end of its processes", || processes.iter().all(|pid| !exists(*pid)));
    let (status, told) = first.probe(&[]);
    assert_eq!(status, 2);
    assert!(told.unwrap_err().contains("no lab"));
    let again = common::up(&first.name, &folder, &[]);
    assert!(again.status.success(), "{}", common::stderr(&again));
    assert_eq!(first.probe(&[]).0, 0);
}

#[test]
fn down_may_be_said_twice_and_the_hosts_network_is_not_ours() {
    let lab = UpLab::up(&common::examples_dir().join("three-tier-web"), &[]);
    let links = fs::read_to_string("/proc/self/net/dev").unwrap();
    assert!(!links.contains("fabric") && !links.contains("moat"), "{links}");
    let processes = processes_with(keeper(&lab.name).unwrap());
    for _ in 0..2 {
        assert!(common::moat().args(["lab", "down", "--name", &lab.name]).status().unwrap().success());
        assert!(!base().join(&lab.name).exists());
        assert!(processes.iter().all(|pid| !exists(*pid)), "{processes:?}");
    }
}

#[test]
fn a_lab_that_cannot_be_built_leaves_nothing_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("a.yaml"),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: x",
    )
    .unwrap();
    let name = common::unique_name();
    let output = common::up(&name, folder.path(), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(common::stderr(&output).contains("a.yaml"), "{}", common::stderr(&output));
    assert!(!base().join(&name).exists());
}
