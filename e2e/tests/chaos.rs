//! A lab that misbehaves: nothing denied gets through, nothing allowed breaks; and a node that does break its promise
//! is found out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use moat_lab::ChaosReport;
use rustix::process::{Pid, Signal, kill_process};

/// One run at a time: each is paced, and judged by the clock.
static ALONE: Mutex<()> = Mutex::new(());

fn chaos(example: &str, flags: &[&str]) -> Command {
    let mut command = common::moat();
    command.args(["lab", "chaos", "--json", "-f"]).arg(common::examples_dir().join(example)).args(flags);
    command
}

fn report(output: &Output) -> ChaosReport {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", common::stderr(output)))
}

/// Runs, and every verdict is right.
fn all_right(example: &str, flags: &[&str]) -> ChaosReport {
    let _alone = ALONE.lock();
    let output = chaos(example, flags).output().unwrap();
    let report = report(&output);
    assert_eq!((output.status.code(), report.failures()), (Some(0), vec![]), "{}", report.text());
    report
}

#[test]
fn a_hundred_killed_agents_while_policies_change() {
    let flags = ["--seed", "5", "--faults", "kills,policies", "--kills", "100", "--for", "2m"];
    let report = all_right("three-tier-web", &flags);
    assert!(report.faults["kills"] >= 100 && report.faults["writes of policies"] >= 40, "{}", report.text());
    assert!(report.restarts.count >= 80, "{}", report.text());
}

#[test]
fn everything_at_once() {
    let report = all_right("three-tier-web", &["--seed", "3", "--for", "20s"]);
    for kind in ["kills", "writes of policies", "moves of pods"] {
        assert!(report.faults.contains_key(kind), "no {kind} in {:?}", report.faults);
    }
}

#[test]
fn both_families_and_hosts_outside() {
    all_right("dual-stack-families", &["--seed", "11", "--for", "15s", "--faults", "kills,policies,pods"]);
}

#[test]
fn unguarded_tables_are_right_again_within_a_second() {
    let flags = ["--seed", "4", "--for", "30s", "--no-owner", "--faults", "tables,policies"];
    let report = all_right("three-tier-web", &flags);
    assert!(report.restoring > 0, "{}", report.text());
}

/// The children of a process, whichever of its threads started them.
fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Whether a process has a thread of this name.
fn has_thread(pid: i32, name: &str) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
    names.into_iter().any(|n| n.trim() == name)
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Waits until the run of a command is under way: its keeper judges. Returns the agents, as we see them.
fn under_way(front: u32) -> Vec<i32> {
    let keeper = || children(i32::try_from(front).unwrap()).into_iter().find(|pid| has_thread(*pid, "judge"));
    common::eventually("a judge", || keeper().is_some());
    let all = children(keeper().unwrap());
    let agents: Vec<i32> = all.into_iter().filter(|pid| has_thread(*pid, "moat-agent")).collect();
    assert!(agents.len() >= 2, "{agents:?}");
    agents
}

#[test]
fn a_rule_that_somebody_opened_is_found_out() {
    let _alone = ALONE.lock();
    // An agent that stands still restores nothing: the table is as wide open as if it had a hole.
    let mut run = chaos("three-tier-web", &["--for", "8s", "--no-owner", "--faults", "none"]);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let agents = under_way(run.id());
    for agent in &agents {
        send(*agent, Signal::STOP);
        let mut nft = Command::new("nsenter");
        nft.args(["--target", &agent.to_string()]);
        if !rustix::process::geteuid().is_root() {
            nft.args(["--user", "--preserve-credentials"]);
        }
        nft.args(["--net", "nft", "insert rule inet moat forward accept"]);
        assert!(nft.status().unwrap().success(), "nsenter and nft are needed");
    }
    let output = run.wait_with_output().unwrap();
    let report = report(&output);
    assert_eq!(output.status.code(), Some(1), "{}", report.text());
    assert!(report.wrong_denied > 0 && report.wrong_allowed == 0, "{}", report.text());
    let first = &report.wrong[0];
    assert!(first.what.contains("denied, but it arrived") && first.at > 0.0, "{first:?}");
}

/// How many packets the node of an agent has forwarded.
fn forwarded(agent: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{agent}/net/snmp")).unwrap();
    let lines: Vec<Vec<&str>> =
        text.lines().filter(|l| l.starts_with("Ip:")).map(|l| l.split_whitespace().collect()).collect();
    let column = lines[0].iter().position(|name| *name == "ForwDatagrams").unwrap();
    lines[1][column].parse().unwrap()
}

#[test]
fn ctrl_c_ends_it_with_a_report_of_the_time_until_then() {
    let _alone = ALONE.lock();
    let mut run = chaos("three-tier-web", &["--seed", "9", "--for", "10m", "--faults", "policies"]);
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let agents = under_way(run.id());
    let before = forwarded(agents[0]);
    common::eventually("packets", || forwarded(agents[0]) > before + 300);
    send(i32::try_from(run.id()).unwrap(), Signal::INT);
    let mut text = Vec::new();
    run.stdout.take().unwrap().read_to_end(&mut text).unwrap();
    let report: ChaosReport = serde_json::from_slice(&text).unwrap();
    assert!(report.interrupted && report.judged() > 0 && report.seconds < 60.0, "{}", report.text());
    assert_eq!(run.wait().unwrap().code(), Some(130), "{}", report.text());
    common::eventually("the end of its agents", || agents.iter().all(|pid| !common::exists(*pid)));
}
