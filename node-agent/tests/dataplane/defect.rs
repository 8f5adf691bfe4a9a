//! A defect that ends the thread that writes is told, and leaves in force what is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use moat_agent::dataplane::{DropReason, Update};
use moat_policies::Direction::Ingress;

use crate::probe::Fate::{Dropped, Passed};
use crate::probe::From;
use crate::space::privileged;
use crate::verdicts::policy;
use crate::world::{World, name};

#[test]
fn a_thread_that_panics_says_so_and_the_tables_stay() {
    privileged(|| {
        let mut w =
            World::new(&["a", "b", "c"], &[], &policy("nobody", "{podSelector: {matchLabels: {app: b}}}"));
        let denied = Dropped(DropReason::Policy.on(Ingress));
        assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), denied);
        let ended = w.dataplane().ended();
        // Whoever listens is called by that thread.
        drop(w.dataplane().listen(|commit| panic!("a defect at commit {}", commit.number)));
        assert!(!ended.is_cancelled());
        let gone = Update { pods: BTreeMap::from([(name("c"), None)]), ..Update::default() };
        // Whether it is still told that the kernel took it, is nobody's promise.
        let _ = w.dataplane().submit(gone).wait();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ended.is_cancelled() {
            assert!(Instant::now() < deadline, "nobody is told");
            std::thread::yield_now();
        }
        assert!(w.dataplane().submit(Update::default()).wait().is_err(), "no change is carried out any more");
        assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), denied);
        assert_eq!(w.udp(From::Pod("b"), w.v4("a"), 80), Passed);
        w.restart();
        assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), denied, "the next one goes on");
        assert!(!w.dataplane().ended().is_cancelled());
    });
}
