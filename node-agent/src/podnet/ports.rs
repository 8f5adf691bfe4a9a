//! Whether ports of the node can lead to a pod, and whether they do.

use std::net::IpAddr;

use moat_cni::port::{HostPort, Transport};

use super::attachment::Attachment;
use super::{Mode, PodNetError};
use crate::dataplane::{HostPorts, TUNNEL_PORT};

/// Whether a pod can have these ports beside `others`. `families`: whether it will have an IPv4 and an IPv6 address.
pub(crate) fn can_be_had(
    ports: &[HostPort],
    families: [bool; 2],
    mode: Mode,
    others: &[Attachment],
) -> Result<(), PodNetError> {
    for &port in ports {
        let reachable = [true, false].into_iter().zip(families).any(|(ipv4, has)| has && port.is_of(ipv4));
        // A node without podCIDRs is another matter, with an error of its own.
        if !reachable && families.contains(&true) {
            return Err(PodNetError::HostPortFamily { port });
        }
        if mode != Mode::Routed && port.protocol == Transport::Udp && port.host_port == TUNNEL_PORT {
            return Err(PodNetError::HostPortOfTunnel { port });
        }
        let has = |other: &&Attachment| other.host_ports.iter().any(|theirs| theirs.overlaps(&port));
        if let Some(other) = others.iter().find(has) {
            return Err(PodNetError::HostPortTaken { port, pod: other.pod(), key: other.key() });
        }
    }
    Ok(())
}

/// What is not as it was made: a sentence each. `asked` is what the runtime says that ADD was asked for, if it says that.
/// To be called in the node's namespace.
pub(crate) fn drift(attachment: &Attachment, asked: &[HostPort]) -> Vec<String> {
    let known = &attachment.host_ports;
    let mut drift = Vec::new();
    if !asked.is_empty() {
        let strange = asked.iter().filter(|port| !known.contains(port));
        drift.extend(
            strange.map(|port| format!("the runtime believes that the host port {port} leads to it")),
        );
        let unheard = known.iter().filter(|port| !asked.contains(port));
        drift.extend(
            unheard.map(|port| format!("the runtime does not know that the host port {port} leads to it")),
        );
    }
    if known.is_empty() {
        return drift;
    }
    match HostPorts::in_force() {
        Ok(there) => drift.extend(there.drift(&wanted([attachment]))),
        Err(error) => {
            drift.push(format!("where the node's ports lead cannot be read: {:#}", anyhow::Error::new(error)))
        }
    }
    drift
}

/// Where ports of the node are to lead for the sake of these.
pub(crate) fn wanted<'a>(attachments: impl IntoIterator<Item = &'a Attachment>) -> HostPorts {
    let of = |a: &'a Attachment| {
        let pairs = |address: IpAddr| a.host_ports.iter().map(move |port| (port, address));
        a.addresses().flat_map(pairs)
    };
    HostPorts::of(attachments.into_iter().flat_map(of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podnet::AttachmentKey;
    use crate::podnet::identity::Identity;

    fn port(protocol: Transport, host_port: u16, host_ip: &str) -> HostPort {
        HostPort { protocol, host_port, host_ip: host_ip.parse().ok(), port: 80 }
    }

    fn attachment(host_ports: Vec<HostPort>) -> Attachment {
        let identity = Identity {
            key: AttachmentKey::new("c0ffee", "eth0"),
            network: "moat".into(),
            pod_namespace: "shop".into(),
            pod_name: "web".into(),
            pod_uid: None,
            v4: "10.1.0.5".parse().ok(),
            v6: None,
        };
        Attachment { host_ports, ..identity.attachment(1500) }
    }

    #[test]
    fn who_has_a_port_is_named() {
        let others = [attachment(vec![port(Transport::Tcp, 8080, "")])];
        let ask = |port: HostPort| can_be_had(&[port], [true, true], Mode::Auto, &others);
        let refused = ask(port(Transport::Tcp, 8080, "192.0.2.1")).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("192.0.2.1:8080/tcp") && text.contains("shop/web"), "{text}");
        assert!(ask(port(Transport::Udp, 8080, "")).is_ok());
        assert!(ask(port(Transport::Tcp, 8081, "")).is_ok());
    }

    #[test]
    fn a_port_that_could_lead_nowhere_is_refused() {
        let ask = |host_ip: &str, families| {
            can_be_had(&[port(Transport::Tcp, 80, host_ip)], families, Mode::Auto, &[]).is_ok()
        };
        assert!(ask("", [true, false]) && ask("", [false, true]));
        assert!(ask("0.0.0.0", [true, false]) && !ask("0.0.0.0", [false, true]));
        assert!(ask("2001:db8::1", [false, true]) && !ask("2001:db8::1", [true, false]));
    }

    #[test]
    fn the_tunnels_port_is_the_nodes() {
        let ask = |protocol, mode| can_be_had(&[port(protocol, TUNNEL_PORT, "")], [true, true], mode, &[]);
        assert!(matches!(ask(Transport::Udp, Mode::Auto), Err(PodNetError::HostPortOfTunnel { .. })));
        assert!(ask(Transport::Tcp, Mode::Auto).is_ok() && ask(Transport::Udp, Mode::Routed).is_ok());
    }
}
