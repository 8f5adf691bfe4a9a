//! An address that a pod released is nobody's before every node that is connected follows that it is.

use rustix::process::Signal;

use crate::cluster::{Cluster, TRY_AGAIN, only};
use crate::netns::{Namespace, in_world};
use crate::world::Pod;

/// Two addresses for the pods `here`, both of them taken, and one pod that comes later.
fn full() -> (Cluster, Pod, Pod) {
    let pods = [("web1", "here"), ("web2", "here"), ("web3", "here"), ("api", "there")];
    let mut cluster = Cluster::with("10.1.0.0/30", &pods);
    cluster.write("policy.yaml", &only("web"));
    cluster.start(1);
    cluster.there.add("api");
    let (one, two) = (cluster.here.add("web1"), cluster.here.add("web2"));
    (cluster, one, two)
}

/// Asks for an address for the third pod. One that is given must not be given while the other node is connected and stands still.
#[track_caller]
fn is_refused(cluster: &Cluster, while_it_stands_still: bool) -> bool {
    let ns = Namespace::new();
    let answer = cluster.here.plugin().run("ADD", "web3", &ns.path);
    if answer.success {
        // The controller gives up on who does not answer for twenty seconds: on a machine that stood still as well, that is now.
        assert!(!while_it_stands_still || !cluster.is_followed(0, "there"), "{}", answer.stdout);
        cluster.here.plugin().run("DEL", "web3", &ns.path).ok();
        return false;
    }
    let why = answer.fails_with(TRY_AGAIN)["details"].to_string();
    assert!(why.contains("1 addresses wait for the controller's answer"), "{why}");
    true
}

#[test]
fn an_address_waits_for_every_agent_that_is_connected() {
    in_world(|| {
        let (cluster, one, _two) = full();
        cluster.there.signal(Signal::STOP);
        // It is not waited for that anybody answers.
        cluster.here.plugin().run("DEL", "web1", &one.ns.path).ok();
        if is_refused(&cluster, true) {
            assert_eq!(cluster.here.unanswered(), Some(1));
        }
        cluster.there.signal(Signal::CONT);
        cluster.until("the other node's agent follows", || !is_refused(&cluster, false));
        assert_eq!(cluster.here.add("web3").address, one.address);
    });
}

#[test]
fn an_agent_that_has_gone_is_not_waited_for() {
    in_world(|| {
        let (mut cluster, one, _two) = full();
        cluster.there.signal(Signal::STOP);
        cluster.here.plugin().run("DEL", "web1", &one.ns.path).ok();
        is_refused(&cluster, true);
        cluster.there.kill();
        cluster.until("the controller knows that it has gone", || !is_refused(&cluster, false));
    });
}

#[test]
fn an_agent_that_starts_anew_still_waits() {
    in_world(|| {
        let (mut cluster, one, _two) = full();
        cluster.there.signal(Signal::STOP);
        cluster.here.plugin().run("DEL", "web1", &one.ns.path).ok();
        cluster.here.kill();
        cluster.here.start();
        cluster.here.until_ready();
        is_refused(&cluster, true);
        cluster.there.signal(Signal::CONT);
        cluster.until("the other node's agent follows", || !is_refused(&cluster, false));
    });
}

#[test]
fn without_a_controller_nobody_answers() {
    in_world(|| {
        let (mut cluster, one, _two) = full();
        cluster.kill_controller();
        cluster.here.until("the agent is alone", |status, _| status == 503);
        cluster.here.plugin().run("DEL", "web1", &one.ns.path).ok();
        assert!(is_refused(&cluster, false));
        // Nor would it be known after a start without one.
        cluster.here.kill();
        cluster.here.start();
        cluster.here.until("the agent serves what it was told", |_, body| body.contains("applied"));
        assert!(is_refused(&cluster, false));
        cluster.start_controller();
        cluster.until("the controller answers", || !is_refused(&cluster, false));
    });
}
