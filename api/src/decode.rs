//! From the wire to the engine's types. What cannot be is refused, whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use moat_policies::{
    Allow, AllowSet, DenyAction, Element, Excess, LogLimit, NamespacedName, NetworkConfig, Node, PodPrograms,
    PortClass, PortRange, Program, ProgramId, Protocol, RouteMode, SetChange, SetId, SetKind, SetUpdate,
};

use crate::wire::{self, allow, excess, side};
use crate::{Attached, Attachments, Change, Digest, Held, Hello, ToldPod};

/// What a message says that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An id or a sum that is not 16 octets long.
    #[error("an id is 16 octets long, this one {0}")]
    Id(usize),
    /// Packed values that end within one.
    #[error("packed {0} end in the middle of one")]
    Packed(&'static str),
    /// A prefix that is none, or has bits beyond its length.
    #[error("a prefix that is none")]
    Prefix,
    /// An address or prefix of a node that is none.
    #[error("a node with an address or a podCIDR that is none")]
    Node,
    /// A protocol without ports, or none.
    #[error("the protocol {0} has no ports that policy can name")]
    Protocol(u32),
    /// Ports that are none, or not as they must be.
    #[error("port ranges are to be sorted, disjoint and not adjacent, and not empty")]
    Ports,
    /// A name or a UID that no object can have.
    #[error("a name of {0} octets")]
    Name(usize),
    /// A pod with more than one address of a family.
    #[error("an interface has at most one address of each family")]
    Addresses,
    /// A field without which the message has no meaning.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// A set whose elements are not of its kind.
    #[error("a set with elements of another kind than its own")]
    Kind,
    /// An element that comes and goes at once.
    #[error("an element of a set that comes and goes at once")]
    ComesAndGoes,
    /// A program that allows somebody although nothing was worked out.
    #[error("a program that exceeds a limit, and allows somebody")]
    Excess,
    /// A network configuration with something that cannot be.
    #[error("a network configuration whose {0} cannot be")]
    Config(&'static str),
    /// The same thing is there and gone, or there twice.
    #[error("one message says two things of the same {0}")]
    Twice(&'static str),
}

/// The longest name of anything in Kubernetes. (UIDs have 36 octets.)
const LONGEST_NAME: usize = 253;

type Result<T> = std::result::Result<T, Invalid>;

impl TryFrom<wire::Update> for Change {
    type Error = Invalid;

    fn try_from(update: wire::Update) -> Result<Self> {
        let mut change =
            Change { pods_whole: update.pods_whole, nodes_whole: update.nodes_whole, ..Change::default() };
        let sets = &mut change.policy.sets;
        for whole in update.sets {
            once(sets, SetId(id(&whole.id)?), SetChange::Create(Arc::new(set(&whole)?)), "set")?;
        }
        for changed in update.set_changes {
            let add = elements(changed.add.as_ref())?;
            let remove = elements(changed.remove.as_ref())?;
            if add.iter().any(|element| remove.binary_search(element).is_ok()) {
                return Err(Invalid::ComesAndGoes);
            }
            let changes = SetChange::Update(Arc::new(SetUpdate { add, remove }));
            once(sets, SetId(id(&changed.id)?), changes, "set")?;
        }
        for gone in &update.sets_gone {
            once(sets, SetId(id(gone)?), SetChange::Delete, "set")?;
        }
        let programs = &mut change.policy.programs;
        for whole in update.programs {
            once(programs, ProgramId(id(&whole.id)?), Some(Arc::new(program(whole)?)), "program")?;
        }
        for gone in &update.programs_gone {
            once(programs, ProgramId(id(gone)?), None, "program")?;
        }
        let mut pods = BTreeMap::new();
        for there in update.pods {
            let name = pod_name(there.name)?;
            let programs = PodPrograms { ingress: side(there.ingress)?, egress: side(there.egress)? };
            once(&mut pods, name, Some(ToldPod { uid: text(&there.uid), programs }), "pod")?;
        }
        for gone in update.pods_gone {
            once(&mut pods, pod_name(Some(gone))?, None, "pod")?;
        }
        pods.into_iter().for_each(|(name, pod)| change.put_pod(name, pod));
        for there in update.nodes {
            let there = node(there)?;
            once(&mut change.nodes, there.name.clone(), Some(there), "node")?;
        }
        for gone in update.nodes_gone {
            once(&mut change.nodes, gone.into(), None, "node")?;
        }
        change.moved = addresses(update.moved.as_ref())?.into_iter().collect();
        change.config = update.config.map(config).transpose()?;
        change.fingerprint = text(&update.fingerprint);
        Ok(change)
    }
}

impl TryFrom<wire::Hello> for Hello {
    type Error = Invalid;

    fn try_from(hello: wire::Hello) -> Result<Self> {
        let mut sets = BTreeMap::new();
        for held in &hello.sets {
            once(&mut sets, SetId(id(&held.id)?), Digest(id(&held.digest)?), "set")?;
        }
        let programs = hello.programs.iter().map(|program| Ok(ProgramId(id(program)?)));
        let programs = programs.collect::<Result<BTreeSet<_>>>()?;
        let held = Held { sets, programs, pods: Digest(id(&hello.pods)?), nodes: Digest(id(&hello.nodes)?) };
        let node = name(&hello.node)?.ok_or(Invalid::Missing("node"))?;
        let (announces_only, life) = (hello.announces_only, name(&hello.life)?.unwrap_or_default());
        Ok(Hello { level: hello.level, node, version: hello.version, held, announces_only, life })
    }
}

impl TryFrom<wire::Attachments> for Attachments {
    type Error = Invalid;

    fn try_from(message: wire::Attachments) -> Result<Self> {
        let mut pods = BTreeMap::new();
        for there in message.there {
            let addresses = addresses(there.addresses.as_ref())?;
            let of_v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
            if of_v4 > 1 || addresses.len() - of_v4 > 1 {
                return Err(Invalid::Addresses);
            }
            let attached = Attached { uid: name(&there.uid)?, addresses };
            once(&mut pods, pod_name(there.pod)?, Some(attached), "pod")?;
        }
        for gone in message.gone {
            once(&mut pods, pod_name(Some(gone))?, None, "pod")?;
        }
        Ok(Attachments { number: message.number, whole: message.whole, pods })
    }
}

fn once<K: Ord, V>(all: &mut BTreeMap<K, V>, key: K, value: V, what: &'static str) -> Result<()> {
    all.insert(key, value).map_or(Ok(()), |_| Err(Invalid::Twice(what)))
}

fn id(bytes: &[u8]) -> Result<[u8; 16]> {
    bytes.try_into().map_err(|_| Invalid::Id(bytes.len()))
}

/// What an empty text does not say.
fn text(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

/// What may be the name of something; `None`: it is not said.
fn name(text: &str) -> Result<Option<Arc<str>>> {
    if text.len() > LONGEST_NAME { Err(Invalid::Name(text.len())) } else { Ok(self::text(text)) }
}

fn pod_name(pod: Option<wire::PodName>) -> Result<NamespacedName> {
    let pod = pod.ok_or(Invalid::Missing("name"))?;
    let part = |part: &str| name(part)?.ok_or(Invalid::Missing("name"));
    Ok(NamespacedName { namespace: part(&pod.namespace)?, name: part(&pod.name)? })
}

fn side(side: Option<wire::Side>) -> Result<Option<ProgramId>> {
    match side.and_then(|side| side.what) {
        Some(side::What::Open(true)) => Ok(None),
        Some(side::What::Program(program)) => Ok(Some(ProgramId(id(&program)?))),
        Some(side::What::Open(false)) | None => Err(Invalid::Missing("side")),
    }
}

fn node(node: wire::Node) -> Result<Node> {
    let name = text(&node.name).ok_or(Invalid::Missing("name"))?;
    let addresses = node.addresses.iter().map(|address| address.parse().map_err(|_| Invalid::Node));
    let pod_cidrs = node.pod_cidrs.iter().map(|cidr| cidr.parse().map_err(|_| Invalid::Node));
    Ok(Node {
        name,
        addresses: addresses.collect::<Result<_>>()?,
        pod_cidrs: pod_cidrs.collect::<Result<_>>()?,
    })
}

/// Values of a fixed length each.
fn packed<'b, const N: usize>(
    bytes: &'b [u8],
    what: &'static str,
) -> Result<impl Iterator<Item = &'b [u8; N]>> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    if rest.is_empty() { Ok(chunks.iter()) } else { Err(Invalid::Packed(what)) }
}

fn v4(octets: &[u8; 4]) -> IpAddr {
    Ipv4Addr::from(*octets).into()
}

fn v6(octets: &[u8; 16]) -> IpAddr {
    Ipv6Addr::from(*octets).into()
}

fn addresses(all: Option<&wire::Addresses>) -> Result<Vec<IpAddr>> {
    let Some(all) = all else { return Ok(Vec::new()) };
    Ok(packed(&all.v4, "addresses")?.map(v4).chain(packed(&all.v6, "addresses")?.map(v6)).collect())
}

fn prefixes(all: Option<&wire::Prefixes>) -> Result<Arc<[IpNet]>> {
    let Some(all) = all else { return Ok([].into()) };
    let mut list = Vec::new();
    for [a, b, c, d, length] in packed::<5>(&all.v4, "prefixes")? {
        list.push((v4(&[*a, *b, *c, *d]), *length));
    }
    for entry in packed::<17>(&all.v6, "prefixes")? {
        let (octets, length) = (entry.first_chunk().copied().unwrap_or_default(), entry[16]);
        list.push((v6(&octets), length));
    }
    let net = |(address, length)| {
        let net = IpNet::new(address, length).map_err(|_| Invalid::Prefix)?;
        if net.network() == address { Ok(net) } else { Err(Invalid::Prefix) }
    };
    let mut list = list.into_iter().map(net).collect::<Result<Vec<_>>>()?;
    list.sort_unstable();
    // Sorted, one that contains another comes directly before something it contains.
    if list.windows(2).any(|pair| pair[0].contains(&pair[1])) {
        return Err(Invalid::Prefix);
    }
    Ok(list.into())
}

fn elements(all: Option<&wire::Elements>) -> Result<Vec<Element>> {
    let Some(all) = all else { return Ok(Vec::new()) };
    let what = "elements";
    let mut list: Vec<Element> = Vec::new();
    list.extend(packed(&all.v4, what)?.map(|octets| Element { address: v4(octets), port: None }));
    list.extend(packed(&all.v6, what)?.map(|octets| Element { address: v6(octets), port: None }));
    for entry in packed::<7>(&all.v4_ports, what)? {
        let octets = entry.first_chunk().copied().unwrap_or_default();
        list.push(Element { address: v4(&octets), port: Some(port(entry[4], [entry[5], entry[6]])?) });
    }
    for entry in packed::<19>(&all.v6_ports, what)? {
        let octets = entry.first_chunk().copied().unwrap_or_default();
        list.push(Element { address: v6(&octets), port: Some(port(entry[16], [entry[17], entry[18]])?) });
    }
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

fn port(protocol: u8, port: [u8; 2]) -> Result<(Protocol, u16)> {
    Ok((self::protocol(protocol.into())?, u16::from_be_bytes(port)))
}

fn protocol(number: u32) -> Result<Protocol> {
    let named = |protocol: &Protocol| u32::from(protocol.number()) == number;
    Protocol::ALL.into_iter().find(named).ok_or(Invalid::Protocol(number))
}

fn set(set: &wire::Set) -> Result<AllowSet> {
    let kind = match set.kind() {
        wire::set::Kind::Addresses => SetKind::Addresses,
        wire::set::Kind::AddressPorts => SetKind::AddressPorts,
        wire::set::Kind::Unspecified => return Err(Invalid::Missing("kind")),
    };
    let set = AllowSet {
        kind,
        pods: set.pods,
        prefixes: prefixes(set.prefixes.as_ref())?,
        elements: elements(set.elements.as_ref())?,
    };
    let ports = kind == SetKind::AddressPorts;
    if set.elements.iter().any(|element| element.port.is_some() != ports)
        || (ports && !set.prefixes.is_empty())
    {
        return Err(Invalid::Kind);
    }
    Ok(set)
}

fn allow(allow: wire::Allow) -> Result<Allow> {
    match allow.who {
        Some(allow::Who::Everyone(true)) => Ok(Allow::Everyone),
        Some(allow::Who::Set(set)) => Ok(Allow::Set(SetId(id(&set)?))),
        Some(allow::Who::Everyone(false)) | None => Err(Invalid::Missing("allow")),
    }
}

fn range(range: &wire::PortRange) -> Result<PortRange> {
    let number = |number: u32| u16::try_from(number).map_err(|_| Invalid::Ports);
    let range = PortRange {
        protocol: protocol(range.protocol)?,
        first: number(range.first)?,
        last: number(range.last)?,
    };
    if range.first <= range.last { Ok(range) } else { Err(Invalid::Ports) }
}

fn class(class: wire::PortClass) -> Result<PortClass> {
    let ports = class.ports.iter().map(range).collect::<Result<Vec<_>>>()?;
    let apart = |pair: &[PortRange]| {
        let [one, next] = pair else { return true };
        one.protocol < next.protocol
            || (one.protocol == next.protocol && u32::from(one.last) + 1 < u32::from(next.first))
    };
    if ports.is_empty() || !ports.windows(2).all(apart) {
        return Err(Invalid::Ports);
    }
    Ok(PortClass { ports, allow: allow(class.allow.ok_or(Invalid::Missing("allow"))?)? })
}

fn config(config: wire::Config) -> Result<NetworkConfig> {
    let nets = |all: &[String], what| -> Result<Vec<IpNet>> {
        all.iter().map(|net| net.parse().map_err(|_| Invalid::Config(what))).collect()
    };
    let route_mode = match config.route_mode() {
        wire::config::RouteMode::Unspecified => None,
        wire::config::RouteMode::Auto => Some(RouteMode::Auto),
        wire::config::RouteMode::Routed => Some(RouteMode::Routed),
        wire::config::RouteMode::Vxlan => Some(RouteMode::Vxlan),
    };
    let deny = match config.deny() {
        wire::config::DenyAction::Unspecified => None,
        wire::config::DenyAction::Drop => Some(DenyAction::Drop),
        wire::config::DenyAction::Reject => Some(DenyAction::Reject),
    };
    let mtu = Some(config.mtu).filter(|mtu| *mtu != 0);
    if mtu.is_some_and(|mtu| !NetworkConfig::MTU.contains(&mtu)) {
        return Err(Invalid::Config("MTU"));
    }
    let drop_log = config.drop_log.map(|log| LogLimit { rate: log.rate, burst: log.burst });
    if drop_log
        .is_some_and(|log| !LogLimit::RATE.contains(&log.rate) || !LogLimit::BURST.contains(&log.burst))
    {
        return Err(Invalid::Config("log limit"));
    }
    Ok(NetworkConfig {
        cluster_cidrs: nets(&config.cluster_cidrs, "clusterCIDRs")?,
        route_mode,
        mtu,
        masquerade: config.masquerade,
        masquerade_except: nets(&config.masquerade_except, "exceptCIDRs")?,
        deny,
        drop_log,
    })
}

fn program(program: wire::Program) -> Result<Program> {
    let excess = |excess: wire::Excess| match excess.what {
        Some(excess::What::Classes(limit)) => {
            Ok(Excess::Classes(usize::try_from(limit).unwrap_or(usize::MAX)))
        }
        Some(excess::What::Work(limit)) => Ok(Excess::Work(usize::try_from(limit).unwrap_or(usize::MAX))),
        None => Err(Invalid::Missing("excess")),
    };
    let decoded = Program {
        every: program.every.map(allow).transpose()?,
        classes: program.classes.into_iter().map(class).collect::<Result<_>>()?,
        named: if program.named.is_empty() { None } else { Some(SetId(id(&program.named)?)) },
        excess: program.excess.map(excess).transpose()?,
    };
    let mut ranges: Vec<PortRange> = decoded.classes.iter().flat_map(|c| c.ports.iter().copied()).collect();
    ranges.sort_unstable();
    let overlap = |pair: &[PortRange]| pair[0].protocol == pair[1].protocol && pair[0].last >= pair[1].first;
    if ranges.windows(2).any(overlap) {
        return Err(Invalid::Ports);
    }
    let allows = decoded.every.is_some() || !decoded.classes.is_empty() || decoded.named.is_some();
    if decoded.excess.is_some() && allows {
        return Err(Invalid::Excess);
    }
    Ok(decoded)
}
