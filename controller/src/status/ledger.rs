//! What is to be written of which node, and when. Pure.
//!
//! Written is what a person reads, and seldom: a node's change of revision at once, if the last was a while ago; that it lags only
//! when it has for a while; how many pods it has hardly ever for its own sake; and in all only so many a second, whatever happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moat_crd::{NodeEnforcementStatus, NodeState};

use crate::index::Enforcement;

/// How long a node may take before it is said that it lags.
const LAGS: Duration = Duration::from_secs(5);
/// How long an agent may be away before it is said that it is.
const AWAY: Duration = Duration::from_secs(10);
/// How long after a node was written it is not written again.
const APART: Duration = Duration::from_secs(2);
/// The same, where only numbers of pods are different.
const PODS_APART: Duration = Duration::from_secs(60);
/// Writes in a second, of all nodes together, and at once after a while without.
const RATE: f64 = 20.0;
const BURST: f64 = 50.0;

/// What is known of all nodes, and what was written of them.
#[derive(Debug)]
pub(crate) struct Ledger {
    controller: String,
    nodes: BTreeMap<Arc<str>, Entry>,
    /// How many may be written now, as of when.
    room: (f64, Instant),
}

#[derive(Debug, Default)]
struct Entry {
    /// What is to be read; `None`: there is nothing to say yet.
    wanted: Option<NodeEnforcementStatus>,
    /// What is, as far as is known.
    written: Option<NodeEnforcementStatus>,
    written_at: Option<Instant>,
    /// Since when it has not been at the newest.
    lags: Option<Instant>,
    /// Since when it has not been connected.
    away: Option<Instant>,
}

impl Ledger {
    /// Of the controller with this name. `read`: what is written already.
    pub(crate) fn new(
        controller: String,
        read: impl IntoIterator<Item = (Arc<str>, NodeEnforcementStatus)>,
        now: Instant,
    ) -> Self {
        let entry = |status| Entry { written: Some(status), ..Entry::default() };
        let nodes = read.into_iter().map(|(node, status)| (node, entry(status))).collect();
        Self { controller, nodes, room: (BURST, now) }
    }

    /// It is like this: what people call the newest, the cluster's nodes, and what is said of those that are connected.
    pub(crate) fn look<'n>(
        &mut self,
        newest: &str,
        nodes: impl IntoIterator<Item = &'n Arc<str>>,
        said: Vec<Enforcement>,
        now: Instant,
    ) {
        let mut said: BTreeMap<Arc<str>, Enforcement> =
            said.into_iter().map(|e| (e.node.clone(), e)).collect();
        // Of a node that is gone nothing is written: its object goes with it.
        let mut before = std::mem::take(&mut self.nodes);
        for node in nodes {
            let mut entry = before.remove(node).unwrap_or_default();
            entry.look(newest, said.remove(node), now);
            if let Some(wanted) = &mut entry.wanted {
                wanted.controller.clone_from(&self.controller);
            }
            self.nodes.insert(node.clone(), entry);
        }
    }

    /// What is to be written now, whoever has waited longest first. It counts as written: [`failed`](Self::failed) says where it
    /// was not.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(Arc<str>, NodeEnforcementStatus)> {
        let passed = now.saturating_duration_since(self.room.1).as_secs_f64();
        self.room = ((self.room.0 + passed * RATE).min(BURST), now);
        let mut due: Vec<(Option<Instant>, Arc<str>)> = Vec::new();
        for (node, entry) in &self.nodes {
            if entry.due_at(now).is_some_and(|at| at <= now) {
                due.push((entry.written_at, node.clone()));
            }
        }
        due.sort_unstable();
        let mut writes = Vec::new();
        for (_, node) in due {
            if self.room.0 < 1.0 {
                break;
            }
            let Some(entry) = self.nodes.get_mut(&node) else { continue };
            self.room.0 -= 1.0;
            entry.written_at = Some(now);
            entry.written.clone_from(&entry.wanted);
            writes.extend(entry.wanted.clone().map(|wanted| (node, wanted)));
        }
        writes
    }

    /// It was not written: nobody knows what is there.
    pub(crate) fn failed(&mut self, node: &str) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.written = None;
        }
    }

    /// When to look again, if nothing happens before: something will be due, or lag.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let full = self.room.1 + Duration::from_secs_f64(((1.0 - self.room.0) / RATE).max(0.0));
        let entries = self.nodes.values();
        let next = entries.flat_map(|entry| {
            let due = entry.due_at(now).map(|at| at.max(full));
            let turns = [entry.lags.map(|since| since + LAGS), entry.away.map(|since| since + AWAY)];
            due.into_iter().chain(turns.into_iter().flatten().filter(|at| *at > now))
        });
        next.min()
    }
}

impl Entry {
    fn look(&mut self, newest: &str, said: Option<Enforcement>, now: Instant) {
        let before = self.wanted.clone().or_else(|| self.written.clone());
        let Some(said) = said else {
            self.lags = None;
            let away = *self.away.get_or_insert(now);
            if now.saturating_duration_since(away) >= AWAY {
                self.wanted = Some(NodeEnforcementStatus {
                    state: NodeState::Disconnected,
                    last_error: "no agent of this node is connected to the controllers".to_owned(),
                    ..before.unwrap_or_default()
                });
            }
            return;
        };
        self.away = None;
        let mut status = NodeEnforcementStatus {
            revision: said.fingerprint,
            state: NodeState::Current,
            pods: said.pods.saturating_sub(said.closed),
            closed: said.closed,
            last_error: said.error,
            agent_version: said.version,
            controller: String::new(),
            changed_at: None,
        };
        if status.revision == newest && status.last_error.is_empty() {
            self.lags = None;
            self.wanted = Some(status);
            return;
        }
        let lags = *self.lags.get_or_insert(now);
        if now.saturating_duration_since(lags) >= LAGS {
            status.state = NodeState::Behind;
            if status.last_error.is_empty() {
                status.last_error = "has not said yet that the newest is in force".to_owned();
            }
            self.wanted = Some(status);
        }
    }

    /// When what is to be read may be written, if it is not.
    fn due_at(&self, now: Instant) -> Option<Instant> {
        let wanted = self.wanted.as_ref()?;
        let apart = match &self.written {
            Some(written) if same(written, wanted) && written.pods == wanted.pods => return None,
            Some(written) if same(written, wanted) => PODS_APART,
            _ => APART,
        };
        Some(self.written_at.map_or(now, |at| at + apart))
    }
}

/// Whether a person reads the same in both, but for how many pods there are. Who wrote it, and when, is taken along.
fn same(one: &NodeEnforcementStatus, other: &NodeEnforcementStatus) -> bool {
    let of = |status: &NodeEnforcementStatus| NodeEnforcementStatus {
        pods: 0,
        controller: String::new(),
        changed_at: None,
        ..status.clone()
    };
    of(one) == of(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn said(node: &str, fingerprint: &str, pods: u32) -> Enforcement {
        Enforcement {
            node: node.into(),
            version: "0.1.0".to_owned(),
            fingerprint: fingerprint.to_owned(),
            pods,
            ..Enforcement::default()
        }
    }

    /// One node, looked at every tenth of a second; returns what was written, and after how long.
    struct World {
        ledger: Ledger,
        start: Instant,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            Self { ledger: Ledger::new("me".to_owned(), [], now), start: now, now }
        }

        fn run(
            &mut self,
            newest: &str,
            said: Option<Enforcement>,
            time: Duration,
        ) -> Vec<(f64, NodeState, String)> {
            let node: Arc<str> = "n".into();
            let mut written = Vec::new();
            let until = self.now + time;
            while self.now < until {
                self.ledger.look(newest, [&node], Vec::from_iter(said.clone()), self.now);
                for (_, status) in self.ledger.due(self.now) {
                    let after = self.now.duration_since(self.start).as_secs_f64();
                    written.push((after, status.state, status.revision));
                }
                self.now += SECOND / 10;
            }
            written
        }
    }

    #[test]
    fn what_becomes_current_is_written_at_once_and_then_no_more() {
        let mut world = World::new();
        let written = world.run("a", Some(said("n", "a", 1)), 30 * SECOND);
        assert_eq!(written, [(0.0, NodeState::Current, "a".to_owned())]);
    }

    #[test]
    fn a_node_that_takes_a_moment_does_not_lag() {
        let mut world = World::new();
        world.run("a", Some(said("n", "a", 1)), 10 * SECOND);
        assert_eq!(world.run("b", Some(said("n", "a", 1)), 4 * SECOND), []);
        let written = world.run("b", Some(said("n", "b", 1)), SECOND);
        assert_eq!(written.len(), 1);
        assert_eq!(written[0].2, "b");
    }

    #[test]
    fn a_node_that_lags_is_told_once_with_what_is_in_force() {
        let mut world = World::new();
        world.run("a", Some(said("n", "a", 1)), 10 * SECOND);
        let written = world.run("b", Some(said("n", "a", 1)), 60 * SECOND);
        assert_eq!(written.len(), 1);
        assert!((written[0].0 - 15.0).abs() < 0.2, "{written:?}");
        assert_eq!((written[0].1, &*written[0].2), (NodeState::Behind, "a"));
    }

    #[test]
    fn an_agent_that_is_away_is_told_with_what_was_in_force_last() {
        let mut world = World::new();
        world.run("a", Some(said("n", "a", 1)), 10 * SECOND);
        let written = world.run("a", None, 60 * SECOND);
        assert_eq!(written.len(), 1);
        assert!((written[0].0 - 20.0).abs() < 0.2, "{written:?}");
        assert_eq!((written[0].1, &*written[0].2), (NodeState::Disconnected, "a"));
    }

    #[test]
    fn pods_that_come_and_go_cost_a_write_a_minute() {
        let mut world = World::new();
        let mut written = 0;
        for pods in 0..600 {
            written += world.run("a", Some(said("n", "a", pods)), SECOND).len();
        }
        assert!(written <= 11, "{written}");
    }

    #[test]
    fn a_thousand_nodes_are_written_no_faster_than_the_api_server_is_to_bear() {
        let start = Instant::now();
        let nodes: Vec<Arc<str>> = (0..1000).map(|n| format!("n{n}").into()).collect();
        let mut ledger = Ledger::new("me".to_owned(), [], start);
        let (mut now, mut seen) = (start, BTreeMap::<Arc<str>, String>::new());
        let (mut revision, mut writes) = (0, 0_u32);
        // Somebody applies something every second, for a minute.
        while now < start + 60 * SECOND {
            revision = now.duration_since(start).as_secs();
            let all = nodes.iter().map(|node| said(node, &revision.to_string(), 1)).collect();
            ledger.look(&revision.to_string(), &nodes, all, now);
            for (node, status) in ledger.due(now) {
                writes += 1;
                seen.insert(node, status.revision);
            }
            now += SECOND / 5;
        }
        assert!(writes <= 50 + 60 * 20 + 20, "{writes}");
        // Nobody is forgotten, and once nothing is applied any more all come to the end.
        for _ in 0..300 {
            let all = nodes.iter().map(|node| said(node, &revision.to_string(), 1)).collect();
            ledger.look(&revision.to_string(), &nodes, all, now);
            ledger.due(now).into_iter().for_each(|(node, status)| drop(seen.insert(node, status.revision)));
            now += SECOND / 5;
        }
        assert!(seen.len() == 1000 && seen.values().all(|seen| *seen == revision.to_string()));
    }

    #[test]
    fn what_was_not_written_is_tried_again_and_a_node_that_is_gone_is_not() {
        let now = Instant::now();
        let node: Arc<str> = "n".into();
        let mut ledger = Ledger::new("me".to_owned(), [], now);
        ledger.look("a", [&node], vec![said("n", "a", 1)], now);
        assert_eq!(ledger.due(now).len(), 1);
        ledger.failed("n");
        assert!(ledger.due(now + SECOND).is_empty());
        assert_eq!(ledger.next(now), Some(now + APART));
        assert_eq!(ledger.due(now + APART).len(), 1);
        ledger.failed("n");
        ledger.look("a", [], vec![said("n", "a", 1)], now);
        assert!(ledger.due(now + 60 * SECOND).is_empty());
        assert_eq!(ledger.next(now), None);
    }

    #[test]
    fn who_takes_over_writes_nothing_that_is_there_already() {
        let now = Instant::now();
        let node: Arc<str> = "n".into();
        let there = NodeEnforcementStatus {
            revision: "a".to_owned(),
            state: NodeState::Current,
            pods: 1,
            agent_version: "0.1.0".to_owned(),
            controller: "another".to_owned(),
            ..NodeEnforcementStatus::default()
        };
        let mut ledger = Ledger::new("me".to_owned(), [(node.clone(), there)], now);
        ledger.look("a", [&node], vec![said("n", "a", 1)], now);
        assert!(ledger.due(now).is_empty());
    }
}
