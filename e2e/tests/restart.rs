//! An agent that dies is started again, and says what it found.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use common::{UpLab, eventually, exists};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_killed_agent_is_started_again_and_the_next_probe_says_so() {
    let lab = UpLab::up(&common::examples_dir().join("three-tier-web"), &[]);
    let node = &lab.info.nodes[0];
    kill_process(Pid::from_raw(node.agent).unwrap(), Signal::KILL).unwrap();
    eventually("the agent's end", || !exists(node.agent));

    let (status, report) = lab.probe(&[]);
    let report = report.unwrap();
    assert_eq!((status, common::differences(&report)), (0, vec![]));
    let expected = format!("the agent of {} ended (signal: 9 (SIGKILL)) and was started again", node.name);
    assert!(report.notes.contains(&expected), "{:?}", report.notes);

    // It is told once, and the new one does what agents do: it answers, and it applies.
    let (status, report) = lab.probe(&[]);
    assert_eq!((status, report.unwrap().notes), (0, vec![]));
}
