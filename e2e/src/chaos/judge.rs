//! Holds every packet against the verdict of its moment. Pure: events in, a report out.
//!
//! A packet was decided upon somewhere between the moment before it was sent and the moment at which it arrived, or, where
//! it did not, shortly after it was sent. If in all that time, and in the grace before it, there was one verdict only,
//! the packet is held to it; if there were two, it is counted as in grace.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use moat_policies::{Endpoint, Family, Objects, Protocol, Traffic};

use super::clock::Moment;
use super::law::{FlowKey, Halves, Law};
use super::report::{ChaosReport, Finding};
use super::views::{Epoch, View};

/// How long after a write the old verdict may still be met.
pub(crate) const GRACE: Duration = Duration::from_millis(30);
/// A packet that has not arrived by then will not.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1500);
/// After a cut link is whole again, so long may packets go astray: neighbours are looked for again, TCP waits.
pub(crate) const MEND: Duration = Duration::from_secs(2);

/// A flow with its source port, or what stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) flow: FlowKey,
    pub(crate) port: u16,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A datagram, or an echo request.
    Datagram,
    /// A TCP connection being made.
    Connect,
    /// Data on a TCP connection: what is lost is sent again.
    Frame,
}

/// A packet that was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) tuple: Tuple,
    pub(crate) kind: Kind,
    /// Whether it goes back to who opened the flow.
    pub(crate) answer: bool,
    /// Whether it is the first of a flow that nobody had before it.
    pub(crate) opens: bool,
    pub(crate) before: Moment,
    pub(crate) after: Moment,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A packet was sent.
    Sent { number: u64, sent: Sent },
    /// A packet arrived.
    Arrived { number: u64, at: Moment },
    /// A connection broke.
    Broke { tuple: Tuple, at: Moment, how: String },
    /// A write began a new epoch. Nodes that knew of it earlier are named.
    Written { objects: Box<Objects>, before: Moment, after: Moment, early: Vec<(usize, Moment)> },
    /// A node's agent was killed, not before this moment.
    Killed { node: usize, at: Moment },
    /// It is dead.
    Dead { node: usize },
    /// The next one was started, not before this moment.
    Started { node: usize, at: Moment },
    /// It says that an epoch is in force.
    Ready { node: usize, at: Moment, epoch: Epoch },
    /// A node's agent waited for a processor, and an epoch had until this moment to come into force.
    Lengthened { node: usize, epoch: Epoch, until: Moment, by: Duration },
    /// Somebody changed a node's tables, which are whole again by the end of this time.
    Damaged { node: usize, from: Moment, until: Moment },
    /// A node was off the link.
    Cut { node: usize, from: Moment, until: Moment },
    /// Somebody answers at an address.
    Came { address: IpAddr, at: Moment },
    /// Nobody answers there any more.
    Went { address: IpAddr, at: Moment },
    /// Something was done to the lab.
    Fault { at: Moment, kind: &'static str, words: String },
    /// Something was seen that must not be.
    Found { at: Moment, what: String },
}

/// What is known of a flow that goes on.
#[derive(Debug)]
struct History {
    first: Moment,
    /// It has been denied, or others were at its tables, or its ends changed: it may have been cut, and need not go on.
    doubtful: bool,
    /// The last epochs that were looked at, on the source's node and the destination's.
    checked: (Epoch, Epoch),
}

/// The outcomes that policy allows for in some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Allowed,
    Denied,
    /// Both; whether because an agent was away.
    Either {
        waited: bool,
    },
}

/// Judges.
pub(crate) struct Judge {
    views: Vec<View>,
    laws: Vec<Law>,
    blocks: Vec<Vec<IpNet>>,
    nodes: HashMap<IpAddr, Option<usize>>,
    present: HashMap<IpAddr, Vec<(Moment, Moment)>>,
    cuts: Vec<(usize, Moment, Moment)>,
    histories: HashMap<Tuple, History>,
    flows: BTreeMap<FlowKey, ()>,
    waiting: HashMap<u64, Sent>,
    /// Data that had not arrived when it was judged: TCP sends it again, for as long as it takes.
    unarrived: HashMap<u64, Sent>,
    late: Vec<(Sent, Moment)>,
    arrived: HashMap<u64, Moment>,
    /// Numbers by the moment at which they are judged.
    due: VecDeque<(Moment, u64)>,
    /// Connections that broke, judged when all that was going on then is known.
    broke: Vec<(Tuple, Moment, String)>,
    faults: Vec<(Moment, String)>,
    report: ChaosReport,
}

impl Judge {
    /// A judge of a lab in which these objects are in force everywhere. A node is the prefixes that are behind it.
    pub(crate) fn new(nodes: Vec<Vec<IpNet>>, objects: Objects) -> Self {
        Self {
            views: nodes.iter().map(|_| View::new(GRACE)).collect(),
            laws: vec![Law::new(objects, std::iter::empty())],
            blocks: nodes,
            nodes: HashMap::new(),
            present: HashMap::new(),
            cuts: Vec::new(),
            histories: HashMap::new(),
            flows: BTreeMap::new(),
            waiting: HashMap::new(),
            unarrived: HashMap::new(),
            late: Vec::new(),
            arrived: HashMap::new(),
            due: VecDeque::new(),
            broke: Vec::new(),
            faults: Vec::new(),
            report: ChaosReport::default(),
        }
    }

    /// Takes note of an event.
    pub(crate) fn note(&mut self, event: Event) {
        match event {
            Event::Sent { number, sent } => {
                self.flows.entry(sent.tuple.flow).or_default();
                self.waiting.insert(number, sent);
                self.due.push_back((sent.after + PATIENCE, number));
                let new = History { first: sent.before, doubtful: false, checked: (0, 0) };
                if sent.opens {
                    self.histories.insert(sent.tuple, new);
                } else {
                    self.histories.entry(sent.tuple).or_insert(new);
                }
            }
            Event::Arrived { number, at } => match self.unarrived.remove(&number) {
                Some(sent) => self.late.push((sent, at)),
                None => drop(self.arrived.entry(number).or_insert(at)),
            },
            Event::Broke { tuple, at, how } => self.broke.push((tuple, at, how)),
            Event::Written { objects, before, after, early } => {
                self.laws.push(Law::new(*objects, self.flows.keys().copied()));
                for (node, view) in self.views.iter_mut().enumerate() {
                    let known = early.iter().find(|(n, _)| *n == node).map_or(before, |(_, at)| *at);
                    view.written(known, after);
                }
            }
            Event::Killed { node, at } => self.views[node].killed(at),
            Event::Dead { node } => self.views[node].dead(),
            Event::Started { node, at } => self.views[node].started(at),
            Event::Ready { node, at, epoch } => self.views[node].ready(at, epoch),
            Event::Lengthened { node, epoch, until, by } => {
                self.views[node].lengthened(epoch, until);
                self.report.lengthened += 1;
                self.report.lengthened_max_ms = self.report.lengthened_max_ms.max(by.as_secs_f64() * 1e3);
            }
            Event::Damaged { node, from, until } => self.views[node].damaged(from, until),
            Event::Cut { node, from, until } => self.cuts.push((node, from, until)),
            Event::Came { address, at } => {
                self.present.entry(address).or_default().push((at, Moment::NEVER));
            }
            Event::Went { address, at } => {
                if let Some((_, until)) = self.present.get_mut(&address).and_then(|p| p.last_mut()) {
                    *until = at;
                }
            }
            Event::Fault { at, kind, words } => {
                *self.report.faults.entry(kind.to_owned()).or_default() += 1;
                self.report.done.push(Finding { at: at.offset().as_secs_f64(), what: words.clone() });
                self.faults.push((at, words));
            }
            Event::Found { at, what } => self.find(at, what),
        }
    }

    /// Judges all packets that cannot arrive any more by this moment.
    pub(crate) fn settle(&mut self, now: Moment) {
        while let Some((_, number)) = self.due.pop_front_if(|(due, _)| *due <= now) {
            let Some(sent) = self.waiting.remove(&number) else { continue };
            let arrived = self.arrived.remove(&number);
            self.judge(&sent, arrived);
            if arrived.is_none() && sent.kind == Kind::Frame {
                self.unarrived.insert(number, sent);
            }
        }
        let settled = |at: Moment| at + PATIENCE <= now;
        for (sent, at) in self.late.extract_if(.., |(_, at)| settled(*at)).collect::<Vec<_>>() {
            self.judge(&sent, Some(at));
        }
        for (tuple, at, how) in self.broke.extract_if(.., |(_, at, _)| settled(*at)).collect::<Vec<_>>() {
            let from = at - PATIENCE;
            if self.deliverable(tuple.flow, from, at) && !self.doubtful(tuple, at) {
                let what = format!("{}: the connection broke ({how})", self.name(tuple));
                let during = self.during(at);
                self.report
                    .broken
                    .push(Finding { at: at.offset().as_secs_f64(), what: format!("{what}; {during}") });
            }
        }
    }

    /// The report so far. `now` is the end.
    pub(crate) fn report(mut self, now: Moment) -> ChaosReport {
        self.settle(Moment::NEVER);
        self.report.seconds = now.offset().as_secs_f64();
        self.report
    }

    /// Packets judged so far, and wrong ones among them.
    pub(crate) fn progress(&self) -> (usize, usize) {
        (self.report.judged(), self.report.wrong.len() + self.report.broken.len())
    }

    fn find(&mut self, at: Moment, what: String) {
        self.report.found.push(Finding { at: at.offset().as_secs_f64(), what });
    }

    fn judge(&mut self, sent: &Sent, arrived: Option<Moment>) {
        let flow = sent.tuple.flow;
        let (from, until) = match (arrived, sent.kind) {
            // Its last transmission was just before it arrived; but behind a cut link its node has let it go long before, and it waits
            // for a neighbour to be found again.
            (Some(at), Kind::Frame) if !self.was_cut(flow, sent.before, at) => {
                (sent.before.max(at - GRACE), at)
            }
            (Some(at), _) => (sent.before, at),
            (None, _) => (sent.before, sent.after + GRACE),
        };
        let from = from - GRACE;
        if self.ends(flow).any(|node| self.views[node].was_damaged(from, until)) {
            self.report.restoring += 1;
            return;
        }
        if arrived.is_none() && !self.deliverable(flow, from, until) {
            self.report.undeliverable += 1;
            return;
        }
        match (self.outcome(flow, from, until), arrived) {
            (Outcome::Allowed, Some(_)) => self.report.allowed += 1,
            (Outcome::Denied, None) => self.report.denied += 1,
            (Outcome::Either { waited }, _) => {
                self.report.grace += 1;
                self.report.grace_waiting += usize::from(waited);
            }
            (Outcome::Allowed, None) if self.doubtful(sent.tuple, sent.after + GRACE) => {
                self.report.resumed += 1;
            }
            (Outcome::Allowed, None) => {
                self.report.wrong_allowed += 1;
                self.wrong(sent, sent.before, from, "allowed, but it did not arrive".to_owned());
            }
            (Outcome::Denied, Some(_)) if self.turned(sent.tuple, from, until) => self.report.turned += 1,
            (Outcome::Denied, Some(at)) => {
                self.report.wrong_denied += 1;
                let took = at.since(sent.before).as_secs_f64() * 1e3;
                self.wrong(sent, sent.before, from, format!("denied, but it arrived {took:.1} ms later"));
            }
        }
    }

    /// Whether a UDP conversation may have been opened anew by the one who answers, which policy allows. The kernel forgets
    /// connections while the tables are gone; the first packet after that tells who asks, and UDP has no other sign.
    fn turned(&mut self, tuple: Tuple, from: Moment, until: Moment) -> bool {
        let FlowKey { source, destination, traffic } = tuple.flow;
        let Traffic::Port(Protocol::Udp, _) = traffic else { return false };
        let Some(first) = self.histories.get(&tuple).map(|h| h.first) else { return false };
        let damaged = self.ends(tuple.flow).any(|node| self.views[node].was_damaged(first - GRACE, until));
        let traffic = Traffic::Port(Protocol::Udp, tuple.port);
        let back = FlowKey { source: destination, destination: source, traffic };
        damaged && !matches!(self.outcome(back, from, until), Outcome::Denied)
    }

    fn wrong(&mut self, sent: &Sent, at: Moment, from: Moment, what: String) {
        let kind = match (sent.kind, sent.answer) {
            (Kind::Connect, _) => "connecting",
            (Kind::Frame, false) => "data",
            (Kind::Frame, true) => "data back",
            (Kind::Datagram, false) => "packet",
            (Kind::Datagram, true) => "answer",
        };
        let age = self.histories.get(&sent.tuple).map(|h| at.since(h.first)).unwrap_or_default();
        let since = at.since(self.since(sent.tuple.flow, from)).as_secs_f64();
        let name = self.name(sent.tuple);
        let during = self.during(at);
        let age = if age.is_zero() { "new".to_owned() } else { format!("{:.2} s old", age.as_secs_f64()) };
        let what = format!("{name} ({kind}, flow {age}): {what}; so for {since:.3} s; {during}");
        self.report.wrong.push(Finding { at: at.offset().as_secs_f64(), what });
    }

    /// What was done last before a moment.
    fn during(&self, at: Moment) -> String {
        let before = self.faults.partition_point(|(t, _)| *t <= at);
        let words = |(t, words): &(Moment, String)| {
            format!("{:.0} ms after {words}", at.since(*t).as_secs_f64() * 1e3)
        };
        let last: Vec<String> =
            self.faults[before.saturating_sub(2)..before].iter().rev().map(words).collect();
        if last.is_empty() { "before any fault".to_owned() } else { last.join(", ") }
    }

    /// Since when a flow's verdict is what it was at a moment.
    fn since(&mut self, flow: FlowKey, at: Moment) -> Moment {
        let Some(node) = self.ends(flow).next() else { return Moment(0) };
        let (now, _) = self.views[node].possible(at, at);
        let verdict = |h: Halves| h.egress && h.ingress;
        let last = verdict(self.laws[now].halves(flow));
        let mut epoch = now;
        while epoch > 0 && verdict(self.laws[epoch - 1].halves(flow)) == last {
            epoch -= 1;
        }
        self.views[node].written_at(epoch)
    }

    fn name(&self, tuple: Tuple) -> String {
        let law = self.laws.last();
        let name = |address| match law.map(|l| l.holder(address)) {
            Some(Endpoint::Pod(pod)) => pod.to_string(),
            _ => address.to_string(),
        };
        let FlowKey { source, destination, traffic } = tuple.flow;
        let family = Family::of(&source);
        format!("{} -> {} {traffic} {family} from port {}", name(source), name(destination), tuple.port)
    }

    fn node_of(&mut self, address: IpAddr) -> Option<usize> {
        let blocks = &self.blocks;
        let find = || blocks.iter().position(|b| b.iter().any(|block| block.contains(&address)));
        *self.nodes.entry(address).or_insert_with(find)
    }

    /// The nodes that a flow's ends are on.
    fn ends(&mut self, flow: FlowKey) -> impl Iterator<Item = usize> + use<> {
        [self.node_of(flow.source), self.node_of(flow.destination)].into_iter().flatten()
    }

    /// Whether, policy aside, a packet could get there.
    fn deliverable(&mut self, flow: FlowKey, from: Moment, until: Moment) -> bool {
        for address in [flow.source, flow.destination] {
            let there = self.present.get(&address);
            if !there.is_some_and(|all| all.iter().any(|(came, went)| *came <= from && until <= *went)) {
                return false;
            }
        }
        !self.was_cut(flow, from, until)
    }

    /// Whether the link between a flow's ends was cut in that time, or not quite whole again.
    fn was_cut(&mut self, flow: FlowKey, from: Moment, until: Moment) -> bool {
        let nodes = [self.node_of(flow.source), self.node_of(flow.destination)];
        let cut = |(node, start, end): &(usize, Moment, Moment)| {
            nodes.contains(&Some(*node)) && *start <= until && from <= *end + MEND
        };
        nodes[0] != nodes[1] && self.cuts.iter().any(cut)
    }

    /// The epochs that the source's and the destination's node may have enforced.
    fn epochs(&mut self, flow: FlowKey, from: Moment, until: Moment) -> [(Epoch, Epoch); 2] {
        let newest = self.laws.len() - 1;
        [flow.source, flow.destination].map(|address| match self.node_of(address) {
            Some(node) => self.views[node].possible(from, until),
            // Nobody enforces anything there.
            None => (newest, newest),
        })
    }

    fn outcome(&mut self, flow: FlowKey, from: Moment, until: Moment) -> Outcome {
        let [source, destination] = self.epochs(flow, from, until);
        let mut egress = [false; 2];
        for epoch in source.0..=source.1 {
            egress[usize::from(self.laws[epoch].halves(flow).egress)] = true;
        }
        let mut ingress = [false; 2];
        for epoch in destination.0..=destination.1 {
            ingress[usize::from(self.laws[epoch].halves(flow).ingress)] = true;
        }
        let allowed = egress[1] && ingress[1];
        let denied = egress[0] || ingress[0];
        match (allowed, denied) {
            (true, false) => Outcome::Allowed,
            (true, true) => {
                let nodes = [self.node_of(flow.source), self.node_of(flow.destination)];
                let waited = nodes.into_iter().zip([source, destination]).any(|(node, (first, last))| {
                    node.is_some_and(|node| self.views[node].waited(first + 1..=last))
                });
                Outcome::Either { waited }
            }
            _ => Outcome::Denied,
        }
    }

    /// Whether a flow that goes on may have been cut at some time.
    fn doubtful(&mut self, tuple: Tuple, until: Moment) -> bool {
        let Some(history) = self.histories.get(&tuple) else { return true };
        if history.doubtful {
            return true;
        }
        let (first, checked) = (history.first - GRACE, history.checked);
        let flow = tuple.flow;
        let [source, destination] = self.epochs(flow, first, until);
        let (source, destination) =
            ((source.0.max(checked.0), source.1), (destination.0.max(checked.1), destination.1));
        let denied = (source.0..=source.1).any(|epoch| !self.laws[epoch].halves(flow).egress)
            || (destination.0..=destination.1).any(|epoch| !self.laws[epoch].halves(flow).ingress);
        let holders =
            |epoch: Epoch| [flow.source, flow.destination].map(|address| self.laws[epoch].holder(address));
        let (low, high) = (source.0.min(destination.0), source.1.max(destination.1));
        let moved = (low..high).any(|epoch| holders(epoch) != holders(epoch + 1));
        let damaged = self.ends(flow).any(|node| self.views[node].was_damaged(first, until));
        let doubtful = denied || moved || damaged;
        if let Some(history) = self.histories.get_mut(&tuple) {
            history.doubtful = doubtful;
            history.checked = (source.1, destination.1);
        }
        doubtful
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
