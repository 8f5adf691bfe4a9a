//! A node whose connections are looked after.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use moat_agent::dataplane::{Config, DropReason, LayoutConfig, Update};
use moat_agent::flows::{Flows, LiveFlow};
use moat_policies::Key;

use crate::world::{World, name, objects};

pub(crate) struct Watched {
    // Before the world, which it listens to.
    flows: Option<Flows>,
    world: World,
}

impl Deref for Watched {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Watched {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

impl Watched {
    pub(crate) fn new(local: &[&str], remote: &[&str], policies: &str) -> Self {
        let mut watched = Self::with(local, remote, policies);
        watched.follow();
        watched
    }

    /// A node whose tables anybody may change.
    pub(crate) fn unguarded(local: &[&str], policies: &str) -> Self {
        let config = Config { followed: true, owner: false, ..Config::default() };
        let mut watched = Self { flows: None, world: World::with(local, &[], policies, config) };
        watched.follow();
        watched
    }

    /// A node on which somebody is to look after connections, and has not begun.
    pub(crate) fn unwatched(local: &[&str], remote: &[&str]) -> Self {
        Self::with(local, remote, "")
    }

    fn with(local: &[&str], remote: &[&str], policies: &str) -> Self {
        let config = Config { followed: true, ..Config::default() };
        Self { flows: None, world: World::with(local, remote, policies, config) }
    }

    /// Has somebody look after connections.
    fn follow(&mut self) {
        let dataplane = self.world.dataplane.take().expect("a data plane");
        let block = "10.0.0.0/24".parse().expect("a block");
        let (dataplane, flows) = self.world.node.run(move || {
            let flows = Flows::start(&dataplane, &LayoutConfig::default(), &[block]);
            (dataplane, flows)
        });
        self.world.dataplane = Some(dataplane);
        self.flows = Some(flows.expect("connections can be looked after"));
    }

    pub(crate) fn flows(&self) -> &Flows {
        self.flows.as_ref().expect("somebody looks after connections")
    }

    /// The agent dies, without a word to anybody.
    pub(crate) fn die(&mut self) {
        self.flows = None;
        self.world.dataplane = None;
    }

    /// Another agent starts with what is in the cluster by now.
    pub(crate) fn revive(&mut self) {
        self.world.cluster.commit();
        let whole = self.world.whole();
        self.world.start(whole);
        self.follow();
    }

    /// Applies manifests; when this returns, connections follow them, those of packets that were under way too.
    pub(crate) fn apply(&mut self, text: &str) {
        let mut all = objects(text);
        self.world.address(&mut all);
        all.into_iter().for_each(|o| self.world.cluster.apply(o));
        self.commit(Update::default());
    }

    pub(crate) fn delete_policy(&mut self, policy: &str) {
        self.world.cluster.delete(&Key::Policy(name(policy)));
        self.commit(Update::default());
    }

    /// Hands over what has changed in the cluster, with what `with` has besides.
    pub(crate) fn commit(&mut self, with: Update) {
        let policy = self.world.cluster.commit().remove("node").unwrap_or_default();
        let cut =
            self.world.dataplane().submit(Update { policy, ..with }).wait().expect("the kernel takes it");
        cut.wait();
        self.settle();
    }

    /// Applies manifests; when this returns, the kernel holds them, and nobody has looked at connections.
    pub(crate) fn apply_only(&mut self, text: &str) {
        self.world.apply(text);
    }

    /// Applies manifests that nobody is told of before the next commit.
    pub(crate) fn apply_quietly(&mut self, text: &str) {
        objects(text).into_iter().for_each(|o| self.world.cluster.apply(o));
    }

    /// The address of a pod of the same family as this one.
    pub(crate) fn same(&self, pod: &str, family: IpAddr) -> IpAddr {
        if family.is_ipv4() { self.v4(pod) } else { self.v6(pod) }
    }

    /// Waits until the last commit's look is over.
    pub(crate) fn settle(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.flows().stats().under_way() > 0 {
            assert!(Instant::now() < deadline, "no look");
            std::thread::yield_now();
        }
    }

    /// Waits until all connections may take the fast path again.
    pub(crate) fn at_rest(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.node.command("nft list chain inet moat forward").contains("goto answers") {
            assert!(Instant::now() < deadline, "connections are judged anew and anew");
        }
    }

    /// The connections between two addresses, as the socket's `flows` tells them.
    pub(crate) fn between(&self, source: IpAddr, destination: IpAddr) -> Vec<LiveFlow> {
        let mut found = Vec::new();
        let each = |flow: LiveFlow| {
            if (flow.original.source, flow.reply.source) == (source, destination) {
                found.push(flow);
            }
        };
        self.flows().live(each).expect("the table can be read");
        found
    }

    /// How many packets of connections that are denied now were dropped so far: by the mark, or judged anew.
    pub(crate) fn denied(&self) -> u64 {
        let mut by: BTreeMap<DropReason, u64> = BTreeMap::new();
        for (point, packets) in self.drops() {
            *by.entry(point.reason).or_default() += packets;
        }
        [DropReason::Revoked, DropReason::Policy].iter().filter_map(|r| by.get(r)).sum()
    }
}
