//! Connections that are to live and packets that are to die, whatever happens to the cluster meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::probe::{Expect, fresh_id};
use super::stage::{Cell, Pod, Stage, cells, pod};
use super::stream::Stream;

/// Pods on two nodes, a policy between them, and traffic all the time.
pub(crate) struct Watchers {
    server: Pod,
    friend: Pod,
    near: Pod,
    foe: Pod,
    kept: Vec<Stream>,
    denied: Vec<Stream>,
    since: Vec<usize>,
}

impl Watchers {
    /// Starts them, and checks that all is as it should be before anything happens.
    pub(crate) fn post(stage: &mut Stage) -> Result<Self> {
        let pods = [
            pod("server", "node2", &[]),
            pod("friend", "node1", &[("side", "friend")]),
            pod("near", "node2", &[("side", "friend")]),
            pod("foe", "node1", &[]),
        ];
        let pods = stage.start(&pods)?;
        let [server, friend, near, foe] = &pods[..] else { anyhow::bail!("four pods were started") };
        stage.policy(
            "guard",
            json!({
                "podSelector": { "matchLabels": { "pod": "server" } },
                "policyTypes": ["Ingress"],
                "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "side": "friend" } } }] }],
            }),
        )?;
        let (server, friend, near, foe) = (server.clone(), friend.clone(), near.clone(), foe.clone());
        let mut own =
            Self { server, friend, near, foe, kept: Vec::new(), denied: Vec::new(), since: Vec::new() };
        stage.check("before anything happens, the policy is in force", &own.cells())?;
        own.kept = stage.streams(&own.friend, &own.server, 80)?;
        own.kept.extend(stage.streams(&own.near, &own.server, 80)?);
        for address in own.server.addresses.clone() {
            let name = format!("foe to server at {address}");
            let to = (address, 81).into();
            own.denied.push(Stream::start(name, &own.foe.network, super::probe::Protocol::Udp, to)?);
        }
        own.mark();
        Ok(own)
    }

    fn mark(&mut self) {
        self.since = self.kept.iter().map(Stream::next).collect();
    }

    fn cells(&self) -> Vec<Cell> {
        let mut asked = cells(&self.friend, &self.server, 80, Expect::PASSES);
        asked.extend(cells(&self.near, &self.server, 80, Expect::PASSES));
        asked.extend(cells(&self.foe, &self.server, 80, Expect::Blocked));
        asked
    }

    /// What is wrong since the last time that somebody looked: connections that have lost something, packets that have arrived.
    fn wrong(&mut self, stage: &Stage) -> Vec<String> {
        let broken =
            self.kept.iter().zip(&self.since).filter_map(|(stream, since)| stream.broken_since(*since));
        let mut wrong: Vec<String> = broken.collect();
        for stream in &self.denied {
            if let Some(arrived) = stage.echo.arrived(stream.id) {
                wrong.push(format!("{}: {} packets arrived", stream.name, arrived.packets));
            }
        }
        self.mark();
        wrong
    }

    /// A check that nobody was cut, nothing got through and every new connection was judged rightly while this happened and for `after`
    /// from then on.
    pub(crate) fn through(
        &mut self,
        stage: &mut Stage,
        what: &str,
        after: Duration,
        happens: impl FnOnce(&Stage) -> Result<()>,
    ) -> Result<()> {
        self.mark();
        let over = AtomicBool::new(false);
        let (happened, misjudged) = thread::scope(|scope| {
            let shared: &Stage = stage;
            let asked = self.cells();
            let over = &over;
            let asker = scope.spawn(move || ask_until(shared, &asked, over));
            let happened = happens(shared).and_then(|()| shared.field.hold_for(after));
            over.store(true, Ordering::Relaxed);
            (happened, asker.join().unwrap_or_else(|_| vec!["the asking thread panicked".into()]))
        });
        let mut wrong = self.wrong(stage);
        wrong.extend(misjudged);
        wrong.extend(happened.err().map(|error| format!("{error:#}")));
        stage.field.interrupt.check()?;
        stage.verdict(what, &wrong);
        Ok(())
    }

    /// A check that new questions are answered as the policy says, now.
    pub(crate) fn ask(&self, stage: &mut Stage, what: &str) -> Result<()> {
        stage.check(what, &self.cells())
    }

    /// A check that changes are followed: a policy that denies and one that goes, and a pod that starts.
    pub(crate) fn follows(&self, stage: &mut Stage, what: &str) -> Result<()> {
        let friend_out =
            json!({ "podSelector": { "matchLabels": { "pod": "foe" } }, "policyTypes": ["Ingress"] });
        let name = format!("change-{}", fresh_id());
        let (from, to) = (&self.friend, &self.foe);
        stage.check(&format!("{what}: open before"), &cells(from, to, 80, Expect::PASSES))?;
        stage.policy(&name, friend_out)?;
        stage.check(
            &format!("{what}: a new policy comes into force"),
            &cells(from, to, 80, Expect::Blocked),
        )?;
        stage.remove_policy(&name)?;
        stage.check(&format!("{what}: and goes"), &cells(from, to, 80, Expect::PASSES))?;
        let newcomer = format!("newcomer-{}", fresh_id());
        let pods = stage.start(&[pod(&newcomer, "node1", &[("side", "friend")])])?;
        for newcomer in &pods {
            let asked = cells(newcomer, &self.server, 80, Expect::PASSES);
            stage.check(&format!("{what}: a new pod has its policy"), &asked)?;
        }
        Ok(())
    }
}

/// Asks the same questions again and again, over new connections, and tells what came out wrong.
fn ask_until(stage: &Stage, asked: &[Cell], over: &AtomicBool) -> Vec<String> {
    let mut wrong = Vec::new();
    while !over.load(Ordering::Relaxed) {
        wrong.extend(stage.round(asked));
    }
    wrong
}
