//! Two replicas of the controller, and an agent that follows each: what a node says of its pods is known, and answered for, by both.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::{Cluster, TRY_AGAIN, only};
use crate::netns::{Namespace, in_world};
use crate::packets::Server;

/// `here` has two addresses and follows the first replica, `there` the second.
fn started(pods: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::with("10.1.0.0/30", pods);
    cluster.here.follows = vec![0, 1];
    cluster.there.follows = vec![1, 0];
    cluster.write("policy.yaml", &only("web"));
    cluster.start(2);
    assert!(cluster.is_followed(0, "here") && !cluster.is_followed(0, "there"));
    assert!(cluster.is_followed(1, "there") && !cluster.is_followed(1, "here"));
    cluster
}

#[test]
fn a_new_pod_is_known_to_those_who_follow_another_replica() {
    in_world(|| {
        let cluster = started(&[("web1", "here"), ("web2", "here"), ("api", "there")]);
        let api = cluster.there.add("api");
        let server = Server::start(&api);
        for name in ["web1", "web2", "web1", "web2"] {
            let pod = cluster.here.add(name);
            assert!(server.answers(&pod), "the first packet of {name} passes");
            cluster.here.plugin().run("DEL", name, &pod.ns.path).ok();
            cluster.until("its address is free", || cluster.here.unanswered() == Some(0));
        }
    });
}

#[test]
fn an_address_waits_for_those_who_follow_another_replica() {
    in_world(|| {
        let cluster = started(&[("web1", "here"), ("web2", "here"), ("web3", "here"), ("api", "there")]);
        cluster.there.add("api");
        let (one, _two) = (cluster.here.add("web1"), cluster.here.add("web2"));
        cluster.there.signal(Signal::STOP);
        cluster.here.plugin().run("DEL", "web1", &one.ns.path).ok();
        let three = Namespace::new();
        let answer = cluster.here.plugin().run("ADD", "web3", &three.path);
        // A controller gives up on who does not answer for twenty seconds.
        assert!(!answer.success || !cluster.is_followed(1, "there"), "{}", answer.stdout);
        cluster.there.signal(Signal::CONT);
        cluster.until("its address is free", || cluster.here.unanswered() == Some(0));
        if !answer.success {
            answer.fails_with(TRY_AGAIN);
            assert_eq!(cluster.here.add("web3").address, one.address);
        }
    });
}

#[test]
fn a_replica_that_ends_holds_up_nobody_who_starts() {
    in_world(|| {
        let mut cluster = started(&[("web1", "here"), ("web2", "here"), ("web3", "here"), ("api", "there")]);
        let api = cluster.there.add("api");
        let server = Server::start(&api);
        let (one, _two) = (cluster.here.add("web1"), cluster.here.add("web2"));
        cluster.here.plugin().run("DEL", "web1", &one.ns.path).ok();
        cluster.until("its address is free", || cluster.here.unanswered() == Some(0));

        cluster.kill_controller_nth(1);
        cluster.until("its agent goes to the other one", || cluster.is_followed(0, "there"));
        cluster.there.until_ready();
        let began = Instant::now();
        let three = cluster.here.add("web3");
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "as long as ADD may wait for replicas that are there, here"
        );
        assert!(server.answers(&three));

        // It is still said to be one: it may be back, with agents that we do not reach.
        cluster.here.plugin().run("DEL", "web3", &three.ns.path).ok();
        let again = Namespace::new();
        cluster.here.plugin().run("ADD", "web3", &again.path).fails_with(TRY_AGAIN);
        cluster.start_controller_nth(1);
        cluster.until("its address is free", || cluster.here.unanswered() == Some(0));
        cluster.here.add("web3");

        // And the other way round: who follows the one that ends, follows the other, and announces to nobody twice.
        cluster.kill_controller_nth(0);
        cluster.until("both follow the other one", || {
            cluster.is_followed(1, "here") && cluster.is_followed(1, "there")
        });
        cluster.start_controller_nth(0);
        cluster.until("and nothing waits", || cluster.here.unanswered() == Some(0));
    });
}
