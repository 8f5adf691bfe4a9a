//! One pod interface: what was decided about it, and the names that follow from that.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use moat_cni::name;
pub use moat_cni::name::{IFNAME_PREFIX, is_host_ifname};
use moat_cni::port::HostPort;
use moat_cni::protocol::{Address, Attached};
use moat_policies::NamespacedName;
use serde::{Deserialize, Serialize};

use super::wire;

/// The gateway that every pod has for IPv4: link-local, the same for all, held by no interface.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The gateway that every pod has for IPv6: link-local, the same for all, held by no interface.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What an interface of a pod is known by: the runtime's container id and the interface's name in the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`, the name inside the pod.
    pub ifname: String,
}

impl AttachmentKey {
    /// The key of `ifname` in the container `container_id`.
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self { container_id: container_id.into(), ifname: ifname.into() }
    }

    /// The host end's name: always the same for the same key, so that a second try finds what a first one left.
    pub fn host_ifname(&self) -> String {
        name::host_ifname(&self.container_id, &self.ifname)
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container_id)
    }
}

/// A pod interface: whose it is, where its two ends are, and which addresses it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`, the name inside the pod.
    pub ifname: String,
    /// The `name` of the network configuration that it was asked for by.
    pub network: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// `metadata.uid` of the pod, where the runtime told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// `CNI_NETNS`: the path of the pod's network namespace. Empty where only the link told of the attachment.
    pub netns: PathBuf,
    /// The name of the end in the node's namespace.
    pub host_ifname: String,
    /// The hardware address of the end in the node's namespace.
    #[serde(with = "mac_text")]
    pub host_mac: [u8; 6],
    /// The hardware address of the pod's end.
    #[serde(with = "mac_text")]
    pub pod_mac: [u8; 6],
    /// The pod's IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// The pod's IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
    /// Ports of the node that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

impl Attachment {
    /// What it is known by.
    pub fn key(&self) -> AttachmentKey {
        AttachmentKey::new(&self.container_id, &self.ifname)
    }

    /// The pod's namespaced name.
    pub fn pod(&self) -> NamespacedName {
        NamespacedName::new(self.pod_namespace.as_str(), self.pod_name.as_str())
    }

    /// What ADD answers about it.
    pub fn attached(&self) -> Attached {
        Attached {
            host_ifname: self.host_ifname.clone(),
            host_mac: format_mac(self.host_mac),
            pod_mac: format_mac(self.pod_mac),
            mtu: self.mtu,
            addresses: self
                .addresses()
                .map(|address| Address { address, gateway: wire::gateway(address) })
                .collect(),
        }
    }

    /// The pod's addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// The hardware addresses (host end, pod end) of a pod with these addresses.
///
/// They are explicit because an auto-assigned one may be rewritten behind our back (udev does), and then the
/// permanent neighbour entries would be stale. Derived from the address, so that a capture can be read.
pub(crate) fn macs(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> ([u8; 6], [u8; 6]) {
    let [a, b, c, d] = match (v4, v6) {
        (Some(v4), _) => v4.octets(),
        (None, Some(v6)) => {
            let o = v6.octets();
            [o[12], o[13], o[14], o[15]]
        }
        (None, None) => [0; 4],
    };
    // The second-lowest bit of the first byte says "locally administered", the lowest "not multicast".
    ([0x06, 0x6d, a, b, c, d], [0x02, 0x6d, a, b, c, d])
}

/// `aa:bb:cc:dd:ee:ff`.
pub fn format_mac(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

mod mac_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mac: &[u8; 6], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::format_mac(*mac))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 6], D::Error> {
        let text = String::deserialize(d)?;
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or_else(|| D::Error::custom("a hardware address has six parts"))?;
            *byte = u8::from_str_radix(part, 16).map_err(D::Error::custom)?;
        }
        match parts.next() {
            None => Ok(mac),
            Some(_) => Err(D::Error::custom("a hardware address has six parts")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_local_and_unicast() {
        let (host, pod) = macs(Some(Ipv4Addr::new(10, 1, 2, 3)), None);
        assert_eq!(format_mac(host), "06:6d:0a:01:02:03");
        assert_eq!(format_mac(pod), "02:6d:0a:01:02:03");
        let (host, pod) = macs(None, "fd00::a:1".parse().ok());
        assert_eq!(format_mac(host), "06:6d:00:0a:00:01");
        assert_eq!(host[0] & 3, 2);
        assert_eq!(pod[0] & 3, 2);
    }

    #[test]
    fn an_attachment_survives_its_text() {
        let a = Attachment {
            container_id: "c".into(),
            ifname: "eth0".into(),
            network: "moat".into(),
            pod_namespace: "default".into(),
            pod_name: "web-0".into(),
            pod_uid: None,
            netns: "/run/netns/x".into(),
            host_ifname: AttachmentKey::new("c", "eth0").host_ifname(),
            host_mac: [6, 0x6d, 10, 1, 0, 5],
            pod_mac: [2, 0x6d, 10, 1, 0, 5],
            v4: Some(Ipv4Addr::new(10, 1, 0, 5)),
            v6: None,
            mtu: 1500,
            host_ports: Vec::new(),
        };
        let text = serde_json::to_string(&a).unwrap();
        assert!(text.contains(r#""pod_mac":"02:6d:0a:01:00:05""#));
        assert!(!text.contains("host_ports"), "as releases without them wrote it");
        assert_eq!(serde_json::from_str::<Attachment>(&text).unwrap(), a);
        let port = HostPort {
            protocol: moat_cni::port::Transport::Udp,
            host_port: 53,
            host_ip: Some("192.0.2.1".parse().unwrap()),
            port: 5353,
        };
        let a = Attachment { host_ports: vec![port], ..a };
        let text = serde_json::to_string(&a).unwrap();
        assert_eq!(serde_json::from_str::<Attachment>(&text).unwrap(), a);
    }
}
