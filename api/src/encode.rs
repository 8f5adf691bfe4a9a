//! From the engine's types to the wire.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use moat_policies::{
    Allow, AllowSet, DenyAction, Element, Excess, NamespacedName, NetworkConfig, Node, PortClass, PortRange,
    Program, ProgramId, RouteMode, SetChange, SetId, SetKind,
};

use crate::wire::{self, allow, excess, side};
use crate::{Attachments, Change, Hello, ToldPod};

/// A change that leads to this revision, as a message.
pub fn update(revision: u64, change: &Change) -> wire::Update {
    let mut update = wire::Update {
        revision,
        pods_whole: change.pods_whole,
        nodes_whole: change.nodes_whole,
        fingerprint: change.fingerprint.as_deref().unwrap_or_default().to_owned(),
        config: change.config.as_ref().map(config),
        moved: (!change.moved.is_empty()).then(|| addresses(change.moved.iter().copied())),
        ..wire::Update::default()
    };
    for (id, change) in &change.policy.sets {
        match change {
            SetChange::Create(whole) => update.sets.push(set(*id, whole)),
            SetChange::Update(change) => update.set_changes.push(wire::SetChange {
                id: id.0.into(),
                add: elements(&change.add),
                remove: elements(&change.remove),
            }),
            SetChange::Delete => update.sets_gone.push(id.0.into()),
        }
    }
    for (id, program) in &change.policy.programs {
        match program {
            Some(whole) => update.programs.push(self::program(*id, whole)),
            None => update.programs_gone.push(id.0.into()),
        }
    }
    for (name, pod) in &change.pods {
        match pod {
            Some(told) => update.pods.push(self::pod(name, told)),
            None => update.pods_gone.push(pod_name(name)),
        }
    }
    for (name, node) in &change.nodes {
        match node {
            Some(whole) => update.nodes.push(self::node(whole)),
            None => update.nodes_gone.push(name.to_string()),
        }
    }
    update
}

impl From<&Hello> for wire::Hello {
    fn from(hello: &Hello) -> Self {
        let sets = hello.held.sets.iter();
        Self {
            level: hello.level,
            node: hello.node.to_string(),
            version: hello.version.clone(),
            sets: sets
                .map(|(id, digest)| wire::HeldSet { id: id.0.into(), digest: digest.0.into() })
                .collect(),
            programs: hello.held.programs.iter().map(|id| id.0.into()).collect(),
            pods: hello.held.pods.0.into(),
            nodes: hello.held.nodes.0.into(),
            announces_only: hello.announces_only,
            life: hello.life.to_string(),
        }
    }
}

impl From<&Attachments> for wire::Attachments {
    fn from(attachments: &Attachments) -> Self {
        let mut message =
            Self { number: attachments.number, whole: attachments.whole, ..wire::Attachments::default() };
        for (name, attached) in &attachments.pods {
            match attached {
                Some(attached) => message.there.push(wire::Attachment {
                    pod: Some(pod_name(name)),
                    uid: text(attached.uid.as_ref()),
                    addresses: Some(addresses(attached.addresses.iter().copied())),
                }),
                None => message.gone.push(pod_name(name)),
            }
        }
        message
    }
}

fn text(text: Option<&Arc<str>>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

fn pod_name(name: &NamespacedName) -> wire::PodName {
    wire::PodName { namespace: name.namespace.to_string(), name: name.name.to_string() }
}

fn pod(name: &NamespacedName, pod: &ToldPod) -> wire::Pod {
    let side = |program: Option<ProgramId>| {
        let what = program.map_or(side::What::Open(true), |id| side::What::Program(id.0.into()));
        Some(wire::Side { what: Some(what) })
    };
    wire::Pod {
        name: Some(pod_name(name)),
        uid: text(pod.uid.as_ref()),
        ingress: side(pod.programs.ingress),
        egress: side(pod.programs.egress),
    }
}

fn node(node: &Node) -> wire::Node {
    wire::Node {
        name: node.name.to_string(),
        addresses: node.addresses.iter().map(ToString::to_string).collect(),
        pod_cidrs: node.pod_cidrs.iter().map(ToString::to_string).collect(),
    }
}

fn addresses(all: impl IntoIterator<Item = IpAddr>) -> wire::Addresses {
    let mut packed = wire::Addresses::default();
    for address in all {
        match address {
            IpAddr::V4(address) => packed.v4.extend(address.octets()),
            IpAddr::V6(address) => packed.v6.extend(address.octets()),
        }
    }
    packed
}

fn prefixes(all: &[IpNet]) -> Option<wire::Prefixes> {
    let mut packed = wire::Prefixes::default();
    for prefix in all {
        let bytes = match prefix.network() {
            IpAddr::V4(address) => {
                packed.v4.extend(address.octets());
                &mut packed.v4
            }
            IpAddr::V6(address) => {
                packed.v6.extend(address.octets());
                &mut packed.v6
            }
        };
        bytes.push(prefix.prefix_len());
    }
    (!all.is_empty()).then_some(packed)
}

fn elements(all: &[Element]) -> Option<wire::Elements> {
    let mut packed = wire::Elements::default();
    for Element { address, port } in all {
        let bytes = match (address, port) {
            (IpAddr::V4(_), None) => &mut packed.v4,
            (IpAddr::V6(_), None) => &mut packed.v6,
            (IpAddr::V4(_), Some(_)) => &mut packed.v4_ports,
            (IpAddr::V6(_), Some(_)) => &mut packed.v6_ports,
        };
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
        if let Some((protocol, port)) = port {
            bytes.push(protocol.number());
            bytes.extend(port.to_be_bytes());
        }
    }
    (!all.is_empty()).then_some(packed)
}

fn set(id: SetId, set: &AllowSet) -> wire::Set {
    let kind = match set.kind {
        SetKind::Addresses => wire::set::Kind::Addresses,
        SetKind::AddressPorts => wire::set::Kind::AddressPorts,
    };
    wire::Set {
        id: id.0.into(),
        kind: kind.into(),
        pods: set.pods,
        prefixes: prefixes(&set.prefixes),
        elements: elements(&set.elements),
    }
}

fn allow(allow: Allow) -> wire::Allow {
    let who = match allow {
        Allow::Everyone => allow::Who::Everyone(true),
        Allow::Set(id) => allow::Who::Set(id.0.into()),
    };
    wire::Allow { who: Some(who) }
}

fn program(id: ProgramId, program: &Program) -> wire::Program {
    let range = |range: &PortRange| wire::PortRange {
        protocol: range.protocol.number().into(),
        first: range.first.into(),
        last: range.last.into(),
    };
    let class = |class: &PortClass| wire::PortClass {
        ports: class.ports.iter().map(range).collect(),
        allow: Some(allow(class.allow)),
    };
    let excess = |excess: Excess| {
        let what = match excess {
            Excess::Classes(limit) => excess::What::Classes(limit as u64),
            Excess::Work(limit) => excess::What::Work(limit as u64),
        };
        wire::Excess { what: Some(what) }
    };
    wire::Program {
        id: id.0.into(),
        every: program.every.map(allow),
        classes: program.classes.iter().map(class).collect(),
        named: program.named.map(|id| id.0.into()).unwrap_or_default(),
        excess: program.excess.map(excess),
    }
}

fn config(config: &NetworkConfig) -> wire::Config {
    let text = |nets: &[IpNet]| nets.iter().map(IpNet::to_string).collect();
    let route_mode = config.route_mode.map_or(wire::config::RouteMode::Unspecified, |mode| match mode {
        RouteMode::Auto => wire::config::RouteMode::Auto,
        RouteMode::Routed => wire::config::RouteMode::Routed,
        RouteMode::Vxlan => wire::config::RouteMode::Vxlan,
    });
    let deny = config.deny.map_or(wire::config::DenyAction::Unspecified, |deny| match deny {
        DenyAction::Drop => wire::config::DenyAction::Drop,
        DenyAction::Reject => wire::config::DenyAction::Reject,
    });
    wire::Config {
        cluster_cidrs: text(&config.cluster_cidrs),
        route_mode: route_mode.into(),
        mtu: config.mtu.unwrap_or_default(),
        masquerade: config.masquerade,
        masquerade_except: text(&config.masquerade_except),
        deny: deny.into(),
        drop_log: config.drop_log.map(|log| wire::config::LogLimit { rate: log.rate, burst: log.burst }),
    }
}
