//! What the kernel can do: each thing is tried in a network namespace that nobody else has and that goes at once.

use std::collections::BTreeMap;
use std::thread;

use moat_nfnetlink::conntrack::{Conntrack, Filter};
use moat_nfnetlink::nft::{
    Base, Batch, Chain, ChainType, Element, Family, FibResult, Field, Hook, IfName, KeyType, Log, Operand,
    Policy, Rule, Set, Socket, Source, Statement, Table, TableId, Value, Verdict, ct_state, fib, table_flags,
};
use moat_nfnetlink::{EncodeError, Error};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use nix::sched::{CloneFlags, unshare};

use super::Probe;
use crate::podnet::{Existing, Netlink, Request, sysctl};

/// Where VXLAN frames go (IANA).
const VXLAN_PORT: u16 = 4789;

/// Something that moat asks of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Tables that see forwarded packets, their connections' states and marks.
    Tables,
    /// Chains that see what a link receives before anything else does.
    Ingress,
    /// Maps from several fields to a verdict.
    VerdictMaps,
    /// Sets of ranges of several fields.
    Intervals,
    /// Copies of dropped packets.
    Log,
    /// Reading tracked connections.
    Conntrack,
    /// Pairs of links.
    Veth,
    /// Tables that only their owner changes.
    Owner,
    /// Chains that translate addresses.
    Nat,
    /// Tunnels between nodes.
    Vxlan,
    /// IPv6.
    Ipv6,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Feature; 11] = [
        Feature::Tables,
        Feature::Ingress,
        Feature::VerdictMaps,
        Feature::Intervals,
        Feature::Log,
        Feature::Conntrack,
        Feature::Veth,
        Feature::Owner,
        Feature::Nat,
        Feature::Vxlan,
        Feature::Ipv6,
    ];

    /// What it is.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Feature::Tables => "nftables that see forwarded packets and connections",
            Feature::Ingress => "nftables at a link's ingress, which keeps pods from spoofing",
            Feature::VerdictMaps => "nftables' verdict maps over several fields",
            Feature::Intervals => "nftables' sets of ranges over several fields, which hold CIDRs",
            Feature::Log => "nftables' log statement, which tells of drops",
            Feature::Conntrack => {
                "connection tracking that can be read, which a policy's change needs to cut connections"
            }
            Feature::Veth => "veth links, which are the pods' interfaces",
            Feature::Owner => "nftables' owned tables (Linux 6.9), which nobody but the agent can change",
            Feature::Nat => "nftables' address translation, which masquerade and hostPort need",
            Feature::Vxlan => "VXLAN, which carries pods' packets between nodes that share no link",
            Feature::Ipv6 => "IPv6",
        }
    }

    /// The kernel's options for it.
    pub(super) fn option(self) -> &'static str {
        match self {
            Feature::Tables => "CONFIG_NF_TABLES_INET and CONFIG_NFT_CT",
            Feature::Ingress => "CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_INGRESS",
            Feature::VerdictMaps | Feature::Intervals => "CONFIG_NF_TABLES (Linux 5.6)",
            Feature::Log => "CONFIG_NFT_LOG and CONFIG_NETFILTER_NETLINK_LOG",
            Feature::Conntrack => "CONFIG_NF_CT_NETLINK and CONFIG_NF_CONNTRACK_MARK",
            Feature::Veth => "CONFIG_VETH",
            Feature::Owner => "CONFIG_NF_TABLES (Linux 6.9)",
            Feature::Nat => "CONFIG_NFT_NAT, CONFIG_NFT_MASQ and CONFIG_NFT_FIB_INET",
            Feature::Vxlan => "CONFIG_VXLAN",
            Feature::Ipv6 => "CONFIG_IPV6",
        }
    }

    /// What moat does without it; `None`: it does not start.
    pub(super) fn fallback(self, ipv6_pods: bool) -> Option<&'static str> {
        match self {
            Feature::Owner => Some(
                "instead, the agent watches its tables and puts back what others change, as with --no-owner: between the two \
                 there is a moment, so let nobody run nft flush ruleset",
            ),
            Feature::Nat => Some(
                "instead, pods reach the world by their own addresses, and no pod can ask for a hostPort",
            ),
            Feature::Vxlan => Some("instead, packets between nodes are routed: all nodes must share a link"),
            Feature::Ipv6 if !ipv6_pods => Some("instead, pods have IPv4 addresses only"),
            _ => None,
        }
    }
}

/// Tries everything. Needs what it takes to make a network namespace.
pub(super) fn probe() -> BTreeMap<Feature, Probe> {
    let unknown = |why: String| Feature::ALL.map(|feature| (feature, Probe::Unknown(why.clone()))).into();
    // A thread that has changed its namespace ends with it.
    let tried = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("no network namespace to try it in: {errno}"))?;
        Ok::<_, String>(Feature::ALL.map(|feature| (feature, attempt(feature))).into())
    });
    match tried.join() {
        Ok(Ok(probes)) => probes,
        Ok(Err(why)) => unknown(why),
        Err(_) => unknown("trying it failed, by a defect that is told above".to_owned()),
    }
}

fn attempt(feature: Feature) -> Probe {
    let tried = match feature {
        Feature::Veth => link(vec![LinkInfo::Kind(InfoKind::Veth)]),
        Feature::Vxlan => {
            let data = InfoData::Vxlan(vec![InfoVxlan::Id(1), InfoVxlan::Port(VXLAN_PORT)]);
            link(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(data)])
        }
        Feature::Ipv6 => {
            return match sysctl::has_ipv6() {
                true => Probe::Works,
                false => Probe::Missing("there is no /proc/sys/net/ipv6".to_owned()),
            };
        }
        Feature::Conntrack => {
            let filter = Filter { mark: Some((1, 1)), ..Filter::default() };
            Conntrack::open().and_then(|mut conntrack| conntrack.entries(&filter, |_| {})).map_err(chain)
        }
        _ => tables(feature).map_err(chain),
    };
    tried.map_or_else(Probe::Missing, |()| Probe::Works)
}

/// An error with everything that led to it.
fn chain(error: Error) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

/// Commits what a feature is about, in a table of its own.
fn tables(feature: Feature) -> Result<(), Error> {
    let mut socket = Socket::open()?;
    socket.send(&batch(feature)?, None)?;
    Ok(())
}

fn batch(feature: Feature) -> Result<Batch, EncodeError> {
    let family = if feature == Feature::Ingress { Family::Netdev } else { Family::Inet };
    let id = TableId::new(family, format!("probe-{feature:?}"));
    let mut table = Table::new(id.clone());
    if feature == Feature::Owner {
        table = table.flags(table_flags::OWNER | table_flags::PERSIST);
    }
    let mut batch = Batch::new();
    batch.add_table(&table)?;
    let accept = || Verdict::Accept;
    match feature {
        Feature::Tables => {
            batch.add_chain(&id, &Chain::filter("forward", Hook::Forward, 0, Policy::Accept))?;
            let rule =
                Rule::new().ct_mark(1, false).eq(Source::CT_STATE, Value::CtState(ct_state::ESTABLISHED));
            batch.add_rule(&id, "forward", &rule.verdict(accept()))?;
        }
        Feature::Ingress => {
            batch
                .add_chain(&id, &Chain::filter("lo", Hook::Ingress(IfName::new("lo")?), 0, Policy::Accept))?;
        }
        Feature::VerdictMaps => {
            let fields = [Field::IfName, Field::EtherAddr];
            let map = Set::new("map", KeyType::new(&fields)?).verdict_map();
            batch.add_set(&id, &map)?;
            let key = [Value::IfName(IfName::new("lo")?), Value::Ether([2, 0, 0, 0, 0, 1])];
            batch.add_elements(&id, &map, [Element::new(key).verdict(accept())])?;
        }
        Feature::Intervals => {
            let set = Set::new("set", KeyType::new(&[Field::Ipv4Addr, Field::InetProto])?).intervals();
            batch.add_set(&id, &set)?;
            let at = |last: u8, protocol| [Value::Ipv4([10, 0, 0, last].into()), Value::Proto(protocol)];
            batch.add_elements(&id, &set, [Element::range(at(0, 0), at(255, 255))])?;
        }
        Feature::Log => {
            batch.add_chain(&id, &Chain::new("log"))?;
            let log = Log { group: 1, prefix: "probe".into(), snaplen: Some(64), threshold: None };
            batch.add_rule(&id, "log", &Rule::new().log(log))?;
        }
        Feature::Nat => {
            let base =
                Base { kind: ChainType::Nat, hook: Hook::Postrouting, priority: 100, policy: Policy::Accept };
            batch.add_chain(&id, &Chain { base: Some(base), ..Chain::new("nat") })?;
            batch.add_rule(&id, "nat", &Rule::new().then(Statement::Masquerade))?;
            let port = KeyType::new(&[Field::InetProto, Field::InetService])?;
            let map = Set::new("map", port).map(KeyType::new(&[Field::Ipv4Addr, Field::InetService])?);
            batch.add_set(&id, &map)?;
            let base = Base { hook: Hook::Prerouting, priority: -99, ..base };
            batch.add_chain(&id, &Chain { base: Some(base), ..Chain::new("in") })?;
            let local = Source::Fib { flags: fib::DADDR, result: FibResult::AddressType };
            let key = [Source::L4PROTO, Source::TH_DPORT].into();
            let lead = Statement::DestinationNat { key, map: "map".into(), ipv4: true };
            batch.add_rule(
                &id,
                "in",
                &Rule::new().eq(Source::NFPROTO, 2).eq(local, Operand::host32(2)).then(lead),
            )?;
        }
        _ => {}
    }
    Ok(batch)
}

/// Makes a link of a kind.
fn link(info: Vec<LinkInfo>) -> Result<(), String> {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::LinkInfo(info)];
    let request =
        Request::create(RouteNetlinkMessage::NewLink(message), Existing::Refuse, "make such a link");
    let made = Netlink::open().and_then(|mut netlink| netlink.apply(vec![request]));
    made.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
}
