//! Who it was and why, in words: from a packet's headers, what this node knows and the engine's explanation. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::SystemTime;

use moat_cni::stream::{Dropped, End, LiveFlow};
use moat_nfnetlink::conntrack::{Detail, Tuple};
use moat_policies::{Direction, Endpoint, Evaluator, Family, Flow, Objects, Traffic};

use super::packet::{Carries, Headers, Kind};
use crate::dataplane::{DropPoint, DropReason, Ruling};
use crate::desired::Desired;
use crate::flows;

/// The names of the interfaces that a packet came in by and was to leave by, where they (still) have names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interfaces {
    pub(super) indev: Option<String>,
    pub(super) outdev: Option<String>,
}

impl Interfaces {
    /// The one on whose side a packet was dropped.
    pub(super) fn on(&self, direction: Direction) -> Option<&str> {
        match direction {
            Direction::Egress => self.indev.as_deref(),
            Direction::Ingress => self.outdev.as_deref(),
        }
    }
}

/// A moment as it stands in the log: RFC 3339, UTC, microseconds.
pub(super) fn moment(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}

/// The line for a packet.
pub(super) fn dropped(kind: &Kind, interfaces: &Interfaces, time: SystemTime, desired: &Desired) -> Dropped {
    let Kind { point, headers, .. } = kind;
    let addresses: Vec<IpAddr> = headers.source.into_iter().chain(headers.destination).collect();
    let evaluator = desired.evaluator_of(&addresses);
    let end = |address| end(address, &evaluator, desired.objects());
    Dropped {
        time: moment(time),
        node: desired.node_name().to_string(),
        source: end(headers.source),
        destination: end(headers.destination),
        protocol: headers.carries.name(),
        port: headers.port,
        direction: point.direction.to_string(),
        pod: interfaces.on(point.direction).and_then(|i| desired.pod_of(i)).map(|pod| pod.to_string()),
        reason: point.reason.to_string(),
        explanation: explanation(*point, headers, &evaluator),
        count: 1,
        since: None,
    }
}

/// Names the ends of live flows. There are many flows and few ends: what an address is called is found out once.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<IpAddr, End>);

impl Names {
    /// What a live flow is called, and why it may not go on if it may not.
    pub(crate) fn live(&mut self, flow: &flows::LiveFlow, desired: &Desired) -> LiveFlow {
        let (source, destination) = (flow.original.source, flow.reply.source);
        let (source_port, asked_port) = ports(&flow.original);
        let (destination_port, _) = ports(&flow.reply);
        let carries = Carries::Ip(flow.original.protocol);
        let ends = (Some(source), Some(destination));
        let headers = Headers { source: ends.0, destination: ends.1, carries, port: destination_port };
        let denied = match flow.ruling {
            Ruling::Allowed => None,
            Ruling::Denied(point) => Some(point),
        };
        let translated = flow.original.destination != destination || asked_port != destination_port;
        let asked = || match (flow.original.destination, asked_port) {
            (address, None) => address.to_string(),
            (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
            (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
        };
        LiveFlow {
            node: desired.node_name().to_string(),
            protocol: carries.name(),
            source: self.end(source, desired),
            source_port,
            destination: self.end(destination, desired),
            destination_port,
            asked: translated.then(asked),
            allowed: denied.is_none(),
            revoked: flow.revoked,
            reason: denied.map(|point| point.to_string()),
            explanation: denied
                .map(|point| explanation(point, &headers, &desired.evaluator_of(&[source, destination]))),
        }
    }

    fn end(&mut self, address: IpAddr, desired: &Desired) -> End {
        let name = || end(Some(address), &desired.evaluator_of(&[address]), desired.objects());
        self.0.entry(address).or_insert_with(name).clone()
    }
}

/// Source and destination port.
fn ports(tuple: &Tuple) -> (Option<u16>, Option<u16>) {
    match tuple.detail {
        Detail::Ports { source, destination } => (Some(source), Some(destination)),
        Detail::Icmp { .. } | Detail::None => (None, None),
    }
}

fn end(address: Option<IpAddr>, evaluator: &Evaluator<'_>, objects: &Objects) -> End {
    let Some(at) = address else { return End::default() };
    let (pod, node) = match evaluator.resolve(&Endpoint::Address(at)) {
        Endpoint::Pod(name) => (Some(name.to_string()), None),
        Endpoint::Address(_) => {
            let node = objects.nodes().values().find(|node| node.addresses.contains(&at));
            (None, node.map(|node| node.name.to_string()))
        }
    };
    End { address, pod, node }
}

/// Why, in one sentence.
fn explanation(point: DropPoint, headers: &Headers, evaluator: &Evaluator<'_>) -> String {
    let fixed = match point.reason {
        DropReason::Policy => return policy(point.direction, headers, evaluator),
        DropReason::Revoked => "its connection was allowed once and is not any more",
        DropReason::Invalid => "it belongs to no connection and cannot open one",
        DropReason::MidStream => "it would pick up a TCP connection in the middle, and the pod is isolated",
        DropReason::UnknownPod => "the pod's policy is not known yet, so it has no network",
        DropReason::Spoofed => match point.direction {
            Direction::Egress => {
                "the pod may not send this: it is not from its own addresses, or only a router may say it"
            }
            Direction::Ingress => "it has a pod's address and does not come from that pod",
        },
        DropReason::Tunnel => "it is for a tunnel's port, which is no pod's business",
        DropReason::KernelRefused => "the kernel did not take the pod's rules, so the pod is closed",
    };
    fixed.to_owned()
}

/// The engine's words. It is asked after the packet was dropped, and may have another opinion by then.
fn policy(direction: Direction, headers: &Headers, evaluator: &Evaluator<'_>) -> String {
    let traffic = match (headers.traffic(), headers.carries) {
        (Some(traffic), _) => traffic,
        // A later fragment: rules without ports could allow it.
        (None, Carries::Ip(number)) => Traffic::Other(number),
        (None, _) => return "no policy allows it".to_owned(),
    };
    let (Some(source), Some(destination)) = (headers.source, headers.destination) else {
        return "no policy allows it".to_owned();
    };
    let flow = Flow {
        source: evaluator.resolve(&Endpoint::Address(source)),
        destination: evaluator.resolve(&Endpoint::Address(destination)),
        traffic,
        family: Some(Family::of(&source)),
    };
    let Ok(verdict) = evaluator.evaluate(&flow) else { return "no policy allows it".to_owned() };
    let side = match direction {
        Direction::Egress => verdict.egress,
        Direction::Ingress => verdict.ingress,
    };
    match side.allowed {
        false => side.explain(&flow),
        true => format!("denied then; now {}", side.explain(&flow)),
    }
}
