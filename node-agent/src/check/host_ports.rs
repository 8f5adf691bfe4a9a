//! Where ports of the node lead, as `nft -j list table inet moat-net` says it, beside what pods have asked for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use moat_cni::port::Transport;
use serde_json::Value;

use super::reader::ReadError;
use crate::podnet::Attachment;

/// To which address (any of the node's of a family, or one), over which protocol, to which port.
type Key = (Result<IpAddr, bool>, Transport, u16);

/// What is not as it should be, a line each: ports that lead elsewhere than to the pod that asked for them, or nowhere, and ports
/// that lead to somebody who did not ask.
pub(super) fn compare(listing: &str, attachments: &[Attachment]) -> Result<Vec<String>, ReadError> {
    let there = read(listing)?;
    let mut asked: BTreeMap<Key, (SocketAddr, String)> = BTreeMap::new();
    for attachment in attachments {
        for port in &attachment.host_ports {
            for address in attachment.addresses().filter(|address| port.is_of(address.is_ipv4())) {
                let to = port.address().ok_or(address.is_ipv4());
                let target = (SocketAddr::new(address, port.port), attachment.pod().to_string());
                asked.insert((to, port.protocol, port.host_port), target);
            }
        }
    }
    let mut lines = Vec::new();
    for (key, (target, pod)) in &asked {
        match there.get(key) {
            Some(is) if is == target => {}
            Some(is) => {
                lines.push(format!("{}: leads to {is}, and {pod} ({target}) has asked for it", name(key)))
            }
            None => {
                lines.push(format!("{}: leads nowhere, and {pod} ({target}) has asked for it", name(key)))
            }
        }
    }
    let unasked = there.iter().filter(|(key, _)| !asked.contains_key(key));
    lines.extend(
        unasked.map(|(key, is)| format!("{}: leads to {is}, and no pod has asked for it", name(key))),
    );
    Ok(lines)
}

fn name((to, protocol, port): &Key) -> String {
    let protocol = protocol.as_str();
    match to {
        Ok(address) => format!("host port {}/{protocol}", SocketAddr::new(*address, *port)),
        Err(true) => format!("host port {port}/{protocol} (IPv4)"),
        Err(false) => format!("host port {port}/{protocol} (IPv6)"),
    }
}

/// The elements of the maps that lead to pods.
fn read(listing: &str) -> Result<BTreeMap<Key, SocketAddr>, ReadError> {
    let document: Value = serde_json::from_str(listing).map_err(ReadError::Json)?;
    let objects = document.get("nftables").and_then(Value::as_array).ok_or(ReadError::NoObjects)?;
    let mut ports = BTreeMap::new();
    for map in objects.iter().filter_map(|object| object.get("map")) {
        let name = map.get("name").and_then(Value::as_str).unwrap_or_default();
        if !name.starts_with("host-ports") {
            continue;
        }
        for element in map.get("elem").and_then(Value::as_array).into_iter().flatten() {
            let unknown = || ReadError::Unknown { place: format!("map {name}"), what: element.to_string() };
            let (key, target) = lead(element).ok_or_else(unknown)?;
            ports.insert(key, target);
        }
    }
    Ok(ports)
}

fn lead(element: &Value) -> Option<(Key, SocketAddr)> {
    let parts = |value: &Value| value.get("concat").and_then(Value::as_array).cloned();
    let [key, target] = element.as_array()?.as_slice() else { return None };
    let (key, target) = (parts(key)?, parts(target)?);
    let [address, port] = target.as_slice() else { return None };
    let target = SocketAddr::new(ip(address)?, number(port)?);
    let key = match key.as_slice() {
        [protocol, port] => (Err(target.is_ipv4()), transport(protocol)?, number(port)?),
        [address, protocol, port] => (Ok(ip(address)?), transport(protocol)?, number(port)?),
        _ => return None,
    };
    Some((key, target))
}

fn ip(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

fn transport(value: &Value) -> Option<Transport> {
    let is =
        |t: &Transport| value.as_str() == Some(t.as_str()) || value.as_u64() == Some(u64::from(t.number()));
    Transport::ALL.into_iter().find(is)
}

#[cfg(test)]
mod tests {
    use moat_cni::port::HostPort;
    use serde_json::json;

    use super::*;
    use crate::podnet::AttachmentKey;
    use crate::podnet::identity::Identity;

    fn pod(name: &str, v4: &str, host_port: u16, host_ip: &str) -> Attachment {
        let identity = Identity {
            key: AttachmentKey::new(name, "eth0"),
            network: "moat".into(),
            pod_namespace: "shop".into(),
            pod_name: name.into(),
            pod_uid: None,
            v4: v4.parse().ok(),
            v6: None,
        };
        let port = HostPort { protocol: Transport::Tcp, host_port, host_ip: host_ip.parse().ok(), port: 80 };
        Attachment { host_ports: vec![port], ..identity.attachment(1500) }
    }

    #[test]
    fn each_difference_is_a_line() {
        let listing = json!({"nftables": [
            {"metainfo": {}},
            {"map": {"family": "inet", "table": "moat-net", "name": "host-ports4", "elem": [
                [{"concat": ["tcp", 8080]}, {"concat": ["10.1.0.5", 80]}],
                [{"concat": ["udp", 53]}, {"concat": ["10.1.0.9", 53]}]]}},
            {"map": {"family": "inet", "table": "moat-net", "name": "host-ports-at4", "elem": [
                [{"concat": ["192.0.2.1", "tcp", 443]}, {"concat": ["10.1.0.5", 80]}]]}},
        ]})
        .to_string();
        let right = pod("right", "10.1.0.5", 8080, "");
        let lines = compare(
            &listing,
            &[right, pod("wrong", "10.1.0.6", 443, "192.0.2.1"), pod("lost", "10.1.0.7", 22, "")],
        );
        assert_eq!(
            lines.unwrap(),
            [
                "host port 192.0.2.1:443/tcp: leads to 10.1.0.5:80, and shop/wrong (10.1.0.6:80) has asked for it",
                "host port 22/tcp (IPv4): leads nowhere, and shop/lost (10.1.0.7:80) has asked for it",
                "host port 53/udp (IPv4): leads to 10.1.0.9:53, and no pod has asked for it",
            ]
        );
        assert!(compare("[]", &[]).is_err());
    }
}
