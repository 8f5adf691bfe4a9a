//! What moat made in the node's namespace, and somebody removed or changed, is made again.
//!
//! ```text
//!   rtnetlink's groups ──▶ Event ──▶ Suspect, by its Pace ──▶ look: is it as it must be? ──▶ made again, said, counted
//!     links, addresses, routes, neighbours, rules, and what netconf tells of kernel parameters
//! ```
//!
//! An event is only a reason to look: most are of moat's own making, and then nothing is found. What the kernel does
//! silently (IPv4 routes that go with their link) is found because the look is at all that belongs to the suspect.
//! A link that has not been activated is nobody's suspect: its pod's policy is not in the kernel yet.
//!
//! Rtnetlink tells of no change of some parameters of a pod's link: their files are watched ([`parameter`]), and read once a
//! minute for who writes unheard. While nothing changes nothing else is done.

mod event;
mod pace;
mod parameter;
mod remake;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use prometheus_client::metrics::counter::Counter;
use tracing::{error, warn};

use super::attachment::{Attachment, format_mac, is_host_ifname};
use super::check::{self, Defaults};
use super::netlink::{Netlink, NetlinkError, Request};
use super::netns::{Netns, NetnsError, NetnsId};
use super::node::NodeNetwork;
use super::{PodNetError, ROUTE_PROTOCOL, TUNNEL, identity, sysctl, wire};
use event::{Event, Watch};
use pace::Pace;
use parameter::Parameters;
pub(crate) use remake::Policy;

/// How often parameters are read of whose change nobody may have told.
const TURN: Duration = Duration::from_secs(60);
/// What fails is tried again after this time.
const RETRY: Duration = Duration::from_millis(500);
/// And then after ever more, twice as much each time, so often; then as long as that.
const RETRIES: u32 = 6;
/// Whom an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Suspect {
    /// The routes to other nodes, and all that belongs to them.
    Nodes,
    /// The pod whose link has this name.
    Pod(String),
}

/// The links that were set up for their pods, by name. Whoever is among them stays as it is while this is locked.
#[derive(Debug, Default)]
pub(crate) struct Active(Mutex<BTreeMap<String, Home>>);

/// Where the pod's end of a link is.
#[derive(Debug)]
struct Home {
    /// Not known where only the link told of its pod.
    netns: Option<NetnsId>,
    /// The link was deleted and is being made again; what there is of it must not come up as it is.
    unfinished: bool,
}

impl Active {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Home>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A link is up, with its pod's policy in the kernel.
    pub(crate) fn add(&self, attachment: &Attachment) {
        let netns = Netns::open(&attachment.netns).ok().and_then(|netns| netns.id());
        self.lock().insert(attachment.host_ifname.clone(), Home { netns, unfinished: false });
    }

    /// A link is about to go: when this returns, nobody mends it any more.
    pub(crate) fn remove(&self, link: &str) {
        self.lock().remove(link);
    }
}

/// Starts the thread that keeps what `node` made. It ends when nobody else has the node any more.
pub(crate) fn keep(node: &Arc<NodeNetwork>, mended: Counter, policy: &Policy) -> Result<(), PodNetError> {
    let weak = Arc::downgrade(node);
    // A thread is born in the namespace of the one that makes it.
    node.node.run(move || {
        let failed = |source| NetnsError::Enter { path: "/proc/thread-self/ns/net".into(), source };
        let parameters = Parameters::open().map_err(failed)?;
        let keeper = Keeper::new(Watch::open()?, parameters, mended, policy.clone())?;
        let spawned = thread::Builder::new().name("podnet-keep".into()).spawn(move || keeper.run(&weak));
        spawned.map(|_| ()).map_err(|source| PodNetError::from(failed(source)))
    })?
}

struct Keeper {
    watch: Watch,
    parameters: Parameters,
    /// Pods' links, by their indices: an event about a route or a neighbour has no more.
    names: BTreeMap<u32, String>,
    /// Whether other links pass packets.
    others: BTreeMap<u32, bool>,
    tunnel: Option<u32>,
    /// Who is to be looked at, and when.
    due: BTreeMap<Suspect, Instant>,
    paces: BTreeMap<Suspect, Pace>,
    /// What could not be made again: what was said of it, and how often it was tried.
    failed: BTreeMap<Suspect, (String, u32)>,
    /// Routes to other nodes that were said to be gone.
    gone: BTreeSet<IpNet>,
    mended: Counter,
    policy: Policy,
}

impl Keeper {
    fn new(
        watch: Watch,
        parameters: Parameters,
        mended: Counter,
        policy: Policy,
    ) -> Result<Self, NetlinkError> {
        let mut keeper = Self {
            watch,
            parameters,
            names: BTreeMap::new(),
            others: BTreeMap::new(),
            tunnel: None,
            due: BTreeMap::new(),
            paces: BTreeMap::new(),
            failed: BTreeMap::new(),
            gone: BTreeSet::new(),
            mended,
            policy,
        };
        for link in Netlink::open()?.links()? {
            keeper.links(link.index, &link.name, Some(link.running));
        }
        Ok(keeper)
    }

    fn run(mut self, node: &Weak<NodeNetwork>) {
        let mut turn = Instant::now() + TURN;
        loop {
            let next = self.due.values().min().map_or(turn, |due| turn.min(*due));
            let events = self.watch.wait(&self.parameters, next.saturating_duration_since(Instant::now()));
            let Some(node) = node.upgrade() else { return };
            match events {
                Ok(Some(events)) => events.into_iter().for_each(|event| self.hear(&node, &event)),
                // Some were lost.
                Ok(None) => self.suspect_everybody(&node),
                Err(error) => {
                    error!(
                        "what others remove of the pod network is not made again: {:#}",
                        anyhow::Error::new(error)
                    );
                    return;
                }
            }
            match self.parameters.written() {
                Ok(links) => links.into_iter().for_each(|link| self.suspect(Suspect::Pod(link))),
                Err(error) => warn!(%error, "what is written to kernel parameters is not heard"),
            }
            let now = Instant::now();
            if now >= turn {
                turn = now + TURN;
                self.paces.retain(|_, pace| !pace.is_over(now));
                self.read(&node);
            }
            let due: Vec<Suspect> =
                self.due.iter().filter(|(_, due)| **due <= now).map(|(suspect, _)| suspect.clone()).collect();
            for suspect in due {
                self.due.remove(&suspect);
                self.look(&node, suspect);
            }
        }
    }

    /// Notes what is known of a link; whether it passes packets now that did not before.
    fn links(&mut self, index: u32, name: &str, running: Option<bool>) -> bool {
        if name == TUNNEL {
            self.tunnel = running.map(|_| index);
        }
        match running {
            None => {
                if self.names.remove(&index).is_some() {
                    self.parameters.forget(name);
                }
                self.others.remove(&index);
                false
            }
            Some(_) if is_host_ifname(name) => {
                if self.names.insert(index, name.to_owned()).as_deref() != Some(name)
                    && let Err(error) = self.parameters.watch(name)
                {
                    warn!(%error, link = name, "not all of its kernel parameters are watched: they are read once a minute");
                }
                false
            }
            Some(running) => self.others.insert(index, running) != Some(running) && running,
        }
    }

    fn hear(&mut self, node: &NodeNetwork, event: &Event) {
        let suspect = match event {
            Event::Link { index, name, link } => {
                let came_up = self.links(*index, name, link.as_ref().map(|link| link.running));
                match link {
                    _ if name == TUNNEL => {
                        link.as_ref().is_none_or(|link| !link.up).then_some(Suspect::Nodes)
                    }
                    Some(link) if is_host_ifname(name) => {
                        let as_made = |a: &Attachment| {
                            let alias = identity::of(a).is_none_or(|alias| alias.as_bytes() == link.alias);
                            link.up && link.mac == a.host_mac && link.mtu == a.mtu && alias
                        };
                        node.by_link(name).is_some_and(|a| !as_made(&a)).then(|| Suspect::Pod(name.clone()))
                    }
                    None if is_host_ifname(name) => Some(Suspect::Pod(name.clone())),
                    // With its link, a route goes without a word.
                    _ => came_up.then_some(Suspect::Nodes),
                }
            }
            Event::Route { to, link } => {
                // Somebody's route that took the place of a pod's leaves by another link.
                let of_pod = node.by_address(to.addr()).filter(|_| to.prefix_len() == to.max_prefix_len());
                let suspect = of_pod.map_or_else(|| self.of_link(*link), |a| Suspect::Pod(a.host_ifname));
                if suspect == Suspect::Nodes {
                    self.gone.insert(*to);
                }
                Some(suspect)
            }
            Event::Neighbour { link, .. } if Some(*link) == self.tunnel => Some(Suspect::Nodes),
            Event::Neighbour { link, permanent, .. } => self.names.get(link).and_then(|name| {
                let as_made = |a: &Attachment| permanent.as_deref() == Some(&a.pod_mac[..]);
                node.by_link(name).is_some_and(|a| !as_made(&a)).then(|| Suspect::Pod(name.clone()))
            }),
            Event::Address { link } => (!self.names.contains_key(link)).then_some(Suspect::Nodes),
            Event::Rule => Some(Suspect::Nodes),
            Event::Parameter { link } => match link {
                Some(index) if !self.names.contains_key(index) && self.tunnel != Some(*index) => None,
                link => Some(self.of_link(*link)),
            },
        };
        if let Some(suspect) = suspect {
            self.suspect(suspect);
        }
    }

    fn of_link(&self, link: Option<u32>) -> Suspect {
        let name = link.and_then(|index| self.names.get(&index));
        name.map_or(Suspect::Nodes, |name| Suspect::Pod(name.clone()))
    }

    fn suspect(&mut self, suspect: Suspect) {
        let now = Instant::now();
        let wait = self.paces.get(&suspect).map_or(Duration::ZERO, |pace| pace.wait(now));
        self.due.entry(suspect).or_insert(now + wait);
    }

    fn suspect_everybody(&mut self, node: &NodeNetwork) {
        self.suspect(Suspect::Nodes);
        let all: Vec<String> = node.active.lock().keys().cloned().collect();
        all.into_iter().for_each(|name| self.suspect(Suspect::Pod(name)));
    }

    fn look(&mut self, node: &NodeNetwork, suspect: Suspect) {
        let found = match &suspect {
            Suspect::Nodes => self.nodes(node),
            Suspect::Pod(link) => pod(node, link, &self.policy),
        };
        match found {
            Ok(found) if found.is_empty() => drop(self.failed.remove(&suspect)),
            Ok(found) => {
                self.failed.remove(&suspect);
                self.mended.inc_by(found.len() as u64);
                match &suspect {
                    Suspect::Nodes => warn!("made again: {}", found.join("; ")),
                    Suspect::Pod(link) => warn!(link, "made again: {}", found.join("; ")),
                }
                let now = Instant::now();
                if self.paces.entry(suspect).or_default().mended(now) {
                    warn!(
                        "somebody goes on changing what moat made; it is made again more slowly from now on"
                    );
                }
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                let (said, times) = self.failed.entry(suspect.clone()).or_default();
                if *said != error {
                    warn!("not everything is as it must be, and is tried again: {error}");
                }
                (*said, *times) = (error, (*times + 1).min(RETRIES));
                // There may be no other event.
                self.due.insert(suspect, Instant::now() + RETRY * (1 << *times));
            }
        }
    }

    /// Makes again what leads to other nodes; says what was not there.
    fn nodes(&mut self, node: &NodeNetwork) -> Result<Vec<String>, PodNetError> {
        let gone = std::mem::take(&mut self.gone);
        let mine = || node.netlink(|netlink| Ok(mine(netlink, &self.names)?));
        let before = mine()?;
        node.refresh()?;
        // What went between the two was made again with the rest; of routes it was told.
        let was_gone = |what: &&String| gone.iter().any(|to| **what == route_to(to));
        let missing = mine()?.into_iter().filter(|what| !before.contains(what) || was_gone(&what));
        Ok(missing.map(|what| format!("{what} was missing")).collect())
    }

    /// Reads the parameters that have no events.
    fn read(&mut self, node: &NodeNetwork) {
        let all: Vec<String> = node.active.lock().keys().cloned().collect();
        for name in all {
            let differs =
                |a: Attachment| !sysctl::drift(&sysctl::without_events(&name, a.v6.is_some())).is_empty();
            if node.by_link(&name).is_some_and(differs) {
                self.suspect(Suspect::Pod(name));
            }
        }
    }
}

/// Looks at a pod's link and what leads there, and makes again what is not as it was made; says what that was.
fn pod(node: &NodeNetwork, link: &str, policy: &Policy) -> Result<Vec<String>, PodNetError> {
    let mut active = node.active.lock();
    let Some((attachment, home)) = node.by_link(link).zip(active.get_mut(link)) else {
        return Ok(Vec::new());
    };
    if home.unfinished {
        node.netlink(|netlink| Ok(wire::remove(netlink, link)?))?;
    }
    if node.netlink(|netlink| Ok(netlink.link(link)?))?.is_none() {
        let Some(netns) = home.netns else { return Ok(Vec::new()) };
        home.unfinished = true;
        let made = remake::remake(node, &attachment, netns, policy)?;
        home.unfinished = false;
        let deleted = || format!("the link {link} was deleted");
        return Ok(made.then(deleted).into_iter().collect());
    }
    node.netlink(|netlink| {
        let found = check::drift(netlink, &node.node, &attachment, None, Defaults::Any)?;
        if !found.is_empty() {
            check::mend(netlink, &node.node, &attachment, None)?;
        }
        Ok(found)
    })
}

fn route_to(to: &IpNet) -> String {
    format!("the route to {to}")
}

/// What there is of moat's that is no pod's, in words.
fn mine(netlink: &mut Netlink, pods: &BTreeMap<u32, String>) -> Result<BTreeSet<String>, NetlinkError> {
    let mut mine = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        if family == AddressFamily::Inet6 && !sysctl::has_ipv6() {
            continue;
        }
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let ask = Request::plain(RouteNetlinkMessage::GetRoute(message), "list the routes");
        for answer in netlink.dump(ask)? {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            let to_pod = message.attributes.iter().any(|attribute| match attribute {
                RouteAttribute::Oif(index) => pods.contains_key(index),
                _ => false,
            });
            if message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL) && !to_pod {
                mine.extend(event::destination(&message).map(|to| {
                    let table = message.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Table(table) if *table != 254 => Some(format!(" in table {table}")),
                        _ => None,
                    });
                    route_to(&to) + &table.unwrap_or_default()
                }));
            }
        }
        let mut message = RuleMessage::default();
        message.header.family = family;
        let ask = Request::plain(RouteNetlinkMessage::GetRule(message), "list the rules");
        for answer in netlink.dump(ask)? {
            let RouteNetlinkMessage::NewRule(message) = answer else { continue };
            let own = RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
            if message.attributes.contains(&own) {
                let from = message.attributes.iter().find_map(|attribute| match attribute {
                    RuleAttribute::Source(from) => Some(format!("{from}/{}", message.header.src_len)),
                    _ => None,
                });
                mine.insert(format!("the rule from {}", from.unwrap_or_default()));
            }
        }
    }
    if let Some(link) = netlink.link(TUNNEL)?.filter(|link| link.up) {
        mine.insert(format!("the tunnel {TUNNEL}"));
        for family in [AddressFamily::Unspec, AddressFamily::Bridge] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let ask = Request::plain(RouteNetlinkMessage::GetNeighbour(message), "list the neighbours");
            for answer in netlink.dump(ask)? {
                let RouteNetlinkMessage::NewNeighbour(message) = answer else { continue };
                let mac = message.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(mac) => mac[..].try_into().ok().map(format_mac),
                    _ => None,
                });
                if message.header.ifindex == link.index && message.header.state == NeighbourState::Permanent {
                    let kind = if family == AddressFamily::Bridge { "way" } else { "neighbour" };
                    mine.extend(mac.map(|mac| format!("the tunnel's {kind} {mac}")));
                }
            }
        }
    }
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        if sysctl::get(name).as_deref() == Some("1") {
            mine.insert(format!("the 1 of the kernel parameter net/{name}"));
        }
    }
    Ok(mine)
}
