//! The guard: what it keeps, whom it gives it to, when it ends.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;

use moat_agent::dataplane::{Config, Dataplane, Error, Update};
use moat_agent::guard::{self, GuardError, Keeper, Launch};
use moat_nfnetlink::nft::Socket;

use crate::node::{AGENT, Node, guards, until};
use crate::space::{Space, privileged};

fn launch(run_dir: &Path) -> Launch {
    Launch { run_dir: run_dir.to_owned(), program: Some(AGENT.into()) }
}

#[test]
fn what_one_agent_hands_over_the_next_one_gets() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let first = launch(&run_dir).take().unwrap();
    assert!(first.descriptor.is_none() && first.started.is_some());
    let mode = std::fs::metadata(run_dir.join(guard::SOCKET)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let socket = Socket::open().unwrap();
    first.lease.hold(socket.as_fd()).unwrap();

    let refused = launch(&run_dir).take().unwrap_err();
    assert!(matches!(refused, GuardError::Busy { pid } if pid == std::process::id() as i32), "{refused}");
    let port = socket.port_id();
    drop((first.lease, socket));
    let second = launch(&run_dir).take().unwrap();
    assert!(second.started.is_none());
    assert_eq!(Socket::take_over(second.descriptor.unwrap()).unwrap().port_id(), port);

    // The lease is nothing that a person who ends the guard needs.
    assert!(guard::stop(&run_dir).unwrap());
    assert!(!guard::stop(&run_dir).unwrap());
    assert!(first.started.unwrap().wait().unwrap().success());
}

#[test]
fn a_folder_has_one_guard() {
    let dir = tempfile::tempdir().unwrap();
    let first = launch(dir.path()).take().unwrap();
    let second = Command::new(AGENT).args(["guard", "--run-dir"]).arg(dir.path()).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("another guard keeps"), "{said}");
    assert_eq!(guards(dir.path()).len(), 1);
    guard::stop(dir.path()).unwrap();
    first.started.unwrap().wait().unwrap();
}

/// It would keep every later agent from its tables.
#[test]
fn a_guard_that_nobody_can_reach_ends() {
    for gone in ["the socket", "the folder"] {
        let dir = tempfile::tempdir().unwrap();
        let mut taken = launch(dir.path()).take().unwrap();
        if gone == "the socket" {
            std::fs::remove_file(dir.path().join(guard::SOCKET)).unwrap();
        } else {
            dir.close().unwrap();
        }
        until(gone, || taken.started.as_mut().unwrap().try_wait().unwrap().is_some());
    }
}

#[test]
fn a_guard_that_dies_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = Socket::open().unwrap();
    let (tell, told) = channel();
    let kept = socket.as_fd().try_clone_to_owned().unwrap();
    let keeper = Keeper::start(launch(dir.path()), launch(dir.path()).take(), kept, move |kept| {
        let _ = tell.send(kept);
    });
    let keeper = keeper.unwrap();
    assert!(told.recv().unwrap());
    for _ in 0..3 {
        let [pid] = guards(dir.path())[..] else { panic!("one guard") };
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(killed.success());
        assert!(!told.recv().unwrap());
        assert!(told.recv().unwrap(), "another keeps it");
    }
    drop(keeper);
    let taken = launch(dir.path()).take().unwrap();
    assert_eq!(Socket::take_over(taken.descriptor.unwrap()).unwrap().port_id(), socket.port_id());
    guard::stop(dir.path()).unwrap();
}

#[test]
fn an_agent_does_without_a_guard_that_cannot_be_started() {
    privileged(|| {
        let (space, dir) = (Space::new("node"), tempfile::tempdir().unwrap());
        let guard = Launch { run_dir: dir.path().to_owned(), program: Some("/nowhere/moat-agent".into()) };
        let config = Config { guard: Some(guard), ..Config::default() };
        let dataplane = space.run(move || Dataplane::start(config, &Update::default())).unwrap();
        assert_eq!((dataplane.stats().owner(), dataplane.stats().guard()), (1, 0));
    });
}

#[test]
fn the_guard_of_another_namespace_is_refused() {
    privileged(|| {
        let dir = tempfile::tempdir().unwrap();
        let start = |space: &Space| {
            let config = Config { guard: Some(launch(dir.path())), ..Config::default() };
            space.run(move || Dataplane::start(config, &Update::default()))
        };
        let (here, elsewhere) = (Space::new("here"), Space::new("elsewhere"));
        let first = start(&here).unwrap();
        assert_eq!(first.stats().guard(), 1);
        let error = start(&here).unwrap_err();
        assert!(matches!(error, Error::Guard(ref e) if e.is_busy()), "two at once: {error}");
        drop(first);
        let error = start(&elsewhere).unwrap_err();
        assert!(matches!(error, Error::GuardElsewhere { .. }), "{error}");
        drop(start(&here).unwrap());
        guard::stop(dir.path()).unwrap();
    });
}

/// From SIGTERM to the next start, too, and until the guard is told to end.
#[test]
fn tables_of_an_agent_that_was_stopped_stay_guarded() {
    privileged(|| {
        let mut node = Node::new(&["a"], "", &[]);
        node.stop();
        assert!(!node.space.try_command("nft delete table inet moat").0);
        node.start();
        assert_eq!(node.guards().len(), 1, "the same one");
        node.stop();
        let dir = node.run_dir().display().to_string();
        node.space.command(&format!("{AGENT} guard --stop --run-dir {dir}"));
        assert!(node.guards().is_empty());
        node.space.command("nft delete table inet moat");
        node.start();
        assert_eq!(node.guards().len(), 1);
    });
}
