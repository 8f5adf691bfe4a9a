//! Who it was and why, in words: from a packet's headers, what this node knows and the engine's explanation. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::SystemTime;

use moat_cni::stream::{Dropped, End, LiveFlow};
use moat_nfnetlink::conntrack::{Detail, Tuple};
use moat_policies::{Direction, Endpoint, Evaluator, Family, Flow, Objects, Reason, Traffic};

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
        DropReason::Tunnel => match point.direction {
            Direction::Egress => "it is for a tunnel's port, which is no pod's business",
            Direction::Ingress => {
                "it came to the tunnel's port, and no node that is known may send what is in it from there"
            }
        },
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
        true if side.reason == Reason::OwnNode => {
            format!(
                "no policy allows {source} to reach its own node, and --pod-to-node is policy",
                source = flow.source
            )
        }
        true => format!("denied then; now {}", side.explain(&flow)),
    }
}

#[cfg(test)]
mod tests {
    use moat_manifests::Changes;
    use moat_nfnetlink::conntrack::Detail;

    use super::*;
    use crate::podnet::Attachment;

    const MANIFESTS: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: here}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: here, containers: [{name: c, image: i}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: api, namespace: shop, labels: {app: api}}, spec: {nodeName: here, containers: [{name: c, image: i}]}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: api, namespace: shop}
  spec:
    podSelector: {matchLabels: {app: api}}
    ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}]
";

    fn desired() -> Desired {
        let attachment = |pod: &str, n| Attachment {
            container_id: pod.into(),
            ifname: "eth0".into(),
            network: "moat".into(),
            pod_namespace: "shop".into(),
            pod_name: pod.into(),
            pod_uid: None,
            netns: "/netns".into(),
            host_ifname: format!("moat{pod}"),
            host_mac: [6; 6],
            pod_mac: [2; 6],
            v4: Some([10, 0, 0, n].into()),
            v6: None,
            mtu: 1500,
            host_ports: Vec::new(),
        };
        let mut desired = Desired::new("here".into(), [attachment("web", 1), attachment("api", 2)]);
        let apply = moat_manifests::decode([("pods.yaml", MANIFESTS.as_bytes())]).unwrap().objects;
        desired.start(Changes { apply, ..Changes::default() });
        desired
    }

    fn line(point: DropPoint, from: [u8; 4], to: [u8; 4], carries: Carries, port: Option<u16>) -> Dropped {
        let headers = Headers { source: Some(from.into()), destination: Some(to.into()), carries, port };
        let kind = Kind { point, indev: Some(3), outdev: Some(4), headers };
        let interfaces = Interfaces { indev: Some("moatweb".into()), outdev: Some("moatapi".into()) };
        dropped(&kind, &interfaces, SystemTime::UNIX_EPOCH, &desired())
    }

    #[test]
    fn who_whom_and_why() {
        let (web, api, node, outside) = ([10, 0, 0, 1], [10, 0, 0, 2], [192, 168, 0, 1], [192, 0, 2, 1]);
        let (tcp, icmp) = (Carries::Ip(6), Carries::Ip(1));
        let denied = DropReason::Policy.on(Direction::Ingress);
        let isolated = "shop/api is isolated for ingress by shop/api; nearest: shop/api ingress[0] allows";
        let table = [
            (
                denied,
                web,
                api,
                tcp,
                Some(9090),
                "shop/web -> shop/api",
                format!("{isolated} 8080/TCP, not 9090/TCP"),
            ),
            (
                denied,
                outside,
                api,
                tcp,
                Some(8080),
                "192.0.2.1 -> shop/api",
                format!("{isolated} it from pods app=web in namespace shop, not from 192.0.2.1"),
            ),
            (denied, web, api, icmp, None, "shop/web -> shop/api", format!("{isolated} 8080/TCP, not ICMP")),
            // Allowed by the time that it is asked.
            (
                denied,
                web,
                api,
                tcp,
                Some(8080),
                "shop/web -> shop/api",
                "denied then; now shop/api ingress[0] allows it".to_owned(),
            ),
            (
                DropReason::Tunnel.on(Direction::Egress),
                web,
                node,
                Carries::Ip(17),
                Some(4789),
                "shop/web -> node here",
                "it is for a tunnel's port, which is no pod's business".to_owned(),
            ),
        ];
        for (point, from, to, carries, port, ends, why) in table {
            let line = line(point, from, to, carries, port);
            assert_eq!(format!("{} -> {}", line.source, line.destination), ends);
            assert_eq!(line.explanation, why);
            let pod = if point.direction == Direction::Egress { "shop/web" } else { "shop/api" };
            assert_eq!((line.pod.as_deref(), &*line.node), (Some(pod), "here"));
            assert_eq!(line.time, "1970-01-01T00:00:00.000000Z");
        }
        for point in DropPoint::all() {
            let line = line(point, web, api, tcp, None);
            assert!(!line.explanation.is_empty() && line.count == 1, "{point}");
        }
    }

    #[test]
    fn a_flow_through_a_service_is_between_its_ends() {
        let tuple = |source: [u8; 4], destination: [u8; 4], ports: (u16, u16)| Tuple {
            source: source.into(),
            destination: destination.into(),
            protocol: 6,
            detail: Detail::Ports { source: ports.0, destination: ports.1 },
        };
        let flow = flows::LiveFlow {
            original: tuple([10, 0, 0, 1], [10, 96, 0, 1], (40_000, 80)),
            reply: tuple([10, 0, 0, 2], [10, 0, 0, 1], (9090, 40_000)),
            source: None,
            destination: None,
            ruling: Ruling::Denied(DropReason::Policy.on(Direction::Ingress)),
            revoked: true,
            timeout: 10,
        };
        let live = Names::default().live(&flow, &desired());
        assert_eq!(
            (live.source.to_string(), live.destination.to_string()),
            ("shop/web".into(), "shop/api".into())
        );
        assert_eq!((live.source_port, live.destination_port), (Some(40_000), Some(9090)));
        assert_eq!(live.asked.as_deref(), Some("10.96.0.1:80"));
        assert_eq!(
            (live.allowed, live.revoked, live.reason.as_deref()),
            (false, true, Some("policy-ingress"))
        );
        assert!(live.explanation.is_some_and(|why| why.ends_with("allows 8080/TCP, not 9090/TCP")));
        let direct = flows::LiveFlow {
            original: tuple([10, 0, 0, 1], [10, 0, 0, 2], (40_000, 9090)),
            ruling: Ruling::Allowed,
            revoked: false,
            ..flow
        };
        let live = Names::default().live(&direct, &desired());
        assert_eq!((live.asked, live.reason, live.explanation, live.allowed), (None, None, None, true));
    }
}
