//! Ports of the node that lead to a pod: `runtimeConfig.portMappings`, the capability `portMappings`.
//!
//! Runtimes that follow the conventions write `hostPort`, containerd writes `HostPort`: Go's decoder does not tell them
//! apart, so neither does this one. In all else it is strict.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{CniError, code};

/// The field that is read here, as errors name it.
const FIELD: &str = "runtimeConfig.portMappings";

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];

    /// The number that an IP header has for it.
    pub const fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
            Transport::Sctp => 132,
        }
    }

    /// Its name, as runtimes write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        }
    }
}

/// A port of the node that leads to one of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// `protocol`.
    pub protocol: Transport,
    /// `hostPort`: the node's.
    pub host_port: u16,
    /// `hostIP`: to which address a packet must be. `None`: to any of the node's; an unspecified one: to any of the node's in
    /// its family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// `containerPort`: the pod's.
    pub port: u16,
}

impl HostPort {
    /// Whether IPv4 (or else IPv6) packets are led to the pod.
    pub fn is_of(&self, ipv4: bool) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == ipv4)
    }

    /// The one address that it is about, if it is not about all of the node's.
    pub fn address(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether there is a packet that both want.
    pub fn overlaps(&self, other: &HostPort) -> bool {
        let families = [true, false].into_iter().any(|ipv4| self.is_of(ipv4) && other.is_of(ipv4));
        let apart = matches!((self.address(), other.address()), (Some(one), Some(two)) if one != two);
        self.protocol == other.protocol && self.host_port == other.host_port && families && !apart
    }
}

/// The node's side of it: `8080/tcp`, `192.0.2.1:8080/tcp`.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            None => write!(f, "{}", self.host_port)?,
            Some(ip) => write!(f, "{}", std::net::SocketAddr::new(ip, self.host_port))?,
        }
        write!(f, "/{}", self.protocol.as_str())
    }
}

/// What the value of `portMappings` says.
pub(crate) fn decode(value: &Value) -> Result<Vec<HostPort>, CniError> {
    let list = match value {
        // What Go writes for an empty list.
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        other => return Err(wrong(FIELD, other, "it must be a list")),
    };
    let mut ports: Vec<HostPort> = Vec::with_capacity(list.len());
    for (index, entry) in list.iter().enumerate() {
        let place = format!("{FIELD}[{index}]");
        let Value::Object(fields) = entry else { return Err(wrong(&place, entry, "it must be an object")) };
        let port = Fields::of(&place, fields)?.decode()?;
        if let Some(twice) = ports.iter().find(|other| other.overlaps(&port)) {
            return Err(wrong(&place, entry, &format!("the host port {twice} is in the list already")));
        }
        ports.push(port);
    }
    Ok(ports)
}

/// One mapping's fields, each once.
#[derive(Default)]
struct Fields<'a> {
    place: &'a str,
    host_port: Option<&'a Value>,
    container_port: Option<&'a Value>,
    protocol: Option<&'a Value>,
    host_ip: Option<&'a Value>,
}

impl<'a> Fields<'a> {
    fn of(place: &'a str, fields: &'a Map<String, Value>) -> Result<Self, CniError> {
        let mut found = Fields { place, ..Fields::default() };
        for (name, value) in fields {
            let slot = match name.to_ascii_lowercase().as_str() {
                "hostport" => &mut found.host_port,
                "containerport" => &mut found.container_port,
                "protocol" => &mut found.protocol,
                "hostip" => &mut found.host_ip,
                _ => {
                    let why = "a port mapping has hostPort, containerPort, protocol and hostIP";
                    return Err(wrong(&format!("{place}.{name}"), value, why));
                }
            };
            if slot.replace(value).is_some() {
                return Err(wrong(&format!("{place}.{name}"), value, "the mapping has this field twice"));
            }
        }
        Ok(found)
    }

    fn decode(&self) -> Result<HostPort, CniError> {
        Ok(HostPort {
            protocol: self.protocol()?,
            host_port: self.port("hostPort", self.host_port)?,
            host_ip: self.host_ip()?,
            port: self.port("containerPort", self.container_port)?,
        })
    }

    fn port(&self, name: &str, value: Option<&Value>) -> Result<u16, CniError> {
        let value = self.required(name, value)?;
        let number = value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|port| *port > 0);
        number.ok_or_else(|| self.wrong(name, value, "it must be a number from 1 to 65535"))
    }

    fn protocol(&self) -> Result<Transport, CniError> {
        let value = self.required("protocol", self.protocol)?;
        let named = |text: &str| Transport::ALL.into_iter().find(|t| text.eq_ignore_ascii_case(t.as_str()));
        let known = value.as_str().and_then(named);
        known.ok_or_else(|| self.wrong("protocol", value, "it must be tcp, udp or sctp"))
    }

    fn host_ip(&self) -> Result<Option<IpAddr>, CniError> {
        let value = match self.host_ip {
            // What runtimes write where the pod says nothing.
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) if text.is_empty() => return Ok(None),
            Some(value) => value,
        };
        let ip = value.as_str().and_then(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
        let Some(ip) = ip else {
            return Err(self.wrong("hostIP", value, "it must be an IPv4 or IPv6 address"));
        };
        if ip.is_loopback() {
            let msg = format!("the field {}.hostIP with the value {value} is not supported", self.place);
            let why = "what is sent to a loopback address does not leave its host: the kernel would have to route 127/8 \
                       (route_localnet), and then pods could reach what listens there. Use one of the node's addresses";
            return Err(CniError::new(code::UNSUPPORTED_FIELD, msg, why));
        }
        if ip.is_multicast() || ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) {
            return Err(self.wrong("hostIP", value, "it must be the address of one host"));
        }
        Ok(Some(ip))
    }

    fn required(&self, name: &str, value: Option<&'a Value>) -> Result<&'a Value, CniError> {
        let missing = format!("the field {}.{name} is missing", self.place);
        value.ok_or_else(|| CniError::new(code::INVALID_CONFIG, missing, ""))
    }

    fn wrong(&self, name: &str, value: &Value, why: &str) -> CniError {
        wrong(&format!("{}.{name}", self.place), value, why)
    }
}

fn wrong(field: &str, value: &Value, why: &str) -> CniError {
    CniError::new(code::INVALID_CONFIG, format!("the field {field} is {value}"), why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(mapping: Value) -> Result<HostPort, CniError> {
        decode(&json!([mapping])).map(|ports| ports[0])
    }

    #[test]
    fn what_runtimes_send_is_read() {
        let port = |protocol, host_ip: Option<&str>| HostPort {
            protocol,
            host_port: 8080,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            port: 80,
        };
        for (mapping, expected) in [
            // The conventions' example, and Podman.
            (json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}), port(Transport::Tcp, None)),
            // containerd, for a pod without hostIP.
            (
                json!({"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": ""}),
                port(Transport::Udp, None),
            ),
            // As the CRI names protocols.
            (
                json!({"hostPort": 8080, "containerPort": 80, "protocol": "SCTP", "hostIP": null}),
                port(Transport::Sctp, None),
            ),
            (
                json!({"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"}),
                port(Transport::Tcp, Some("0.0.0.0")),
            ),
            (
                json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "2001:DB8::0:1"}),
                port(Transport::Tcp, Some("2001:db8::1")),
            ),
            (
                json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "::ffff:192.0.2.1"}),
                port(Transport::Tcp, Some("192.0.2.1")),
            ),
        ] {
            assert_eq!(one(mapping.clone()), Ok(expected), "{mapping}");
        }
        assert_eq!(decode(&Value::Null), Ok(vec![]));
        assert_eq!(decode(&json!([])), Ok(vec![]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |field: &str, value: Value| {
            let mut mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
            mapping[field] = value;
            mapping
        };
        for (mapping, field, expected) in [
            (json!({}), ".protocol", code::INVALID_CONFIG),
            (json!({"hostPort": 1, "protocol": "tcp"}), ".containerPort", code::INVALID_CONFIG),
            (json!({"containerPort": 1, "protocol": "tcp"}), ".hostPort", code::INVALID_CONFIG),
            (json!(7), "portMappings[0]", code::INVALID_CONFIG),
            (with("hostPort", json!(0)), ".hostPort", code::INVALID_CONFIG),
            (with("hostPort", json!(65536)), ".hostPort", code::INVALID_CONFIG),
            (with("hostPort", json!(-1)), ".hostPort", code::INVALID_CONFIG),
            (with("hostPort", json!("80")), ".hostPort", code::INVALID_CONFIG),
            (with("containerPort", json!(80.5)), ".containerPort", code::INVALID_CONFIG),
            (with("protocol", json!("icmp")), ".protocol", code::INVALID_CONFIG),
            (with("protocol", json!("")), ".protocol", code::INVALID_CONFIG),
            (with("protocol", json!(6)), ".protocol", code::INVALID_CONFIG),
            (with("hostIP", json!("node")), ".hostIP", code::INVALID_CONFIG),
            (with("hostIP", json!("192.0.2.1/32")), ".hostIP", code::INVALID_CONFIG),
            (with("hostIP", json!("fe80::1%eth0")), ".hostIP", code::INVALID_CONFIG),
            (with("hostIP", json!("224.0.0.1")), ".hostIP", code::INVALID_CONFIG),
            (with("hostIP", json!("255.255.255.255")), ".hostIP", code::INVALID_CONFIG),
            (with("hostIP", json!("127.0.0.1")), ".hostIP", code::UNSUPPORTED_FIELD),
            (with("hostIP", json!("127.8.0.1")), ".hostIP", code::UNSUPPORTED_FIELD),
            (with("hostIP", json!("::1")), ".hostIP", code::UNSUPPORTED_FIELD),
            (with("HostPort", json!(81)), ".hostPort", code::INVALID_CONFIG),
            (with("hostport2", json!(81)), ".hostport2", code::INVALID_CONFIG),
        ] {
            let error = one(mapping.clone()).unwrap_err();
            assert!(error.code == expected && error.msg.contains(field), "{mapping}: {error}");
        }
        assert_eq!(decode(&json!({})).unwrap_err().code, code::INVALID_CONFIG);
    }

    #[test]
    fn two_that_want_the_same_packet_overlap() {
        let port = |protocol, host_port, host_ip: &str| HostPort {
            protocol,
            host_port,
            host_ip: host_ip.parse().ok(),
            port: 80,
        };
        let all = |ip| port(Transport::Tcp, 80, ip);
        for (one, other, expected) in [
            (all(""), all(""), true),
            (all(""), all("192.0.2.1"), true),
            (all(""), all("0.0.0.0"), true),
            (all(""), all("::"), true),
            (all("0.0.0.0"), all("::"), false),
            (all("0.0.0.0"), all("192.0.2.1"), true),
            (all("0.0.0.0"), all("2001:db8::1"), false),
            (all("192.0.2.1"), all("192.0.2.1"), true),
            (all("192.0.2.1"), all("192.0.2.2"), false),
            (all(""), port(Transport::Tcp, 81, ""), false),
            (all(""), port(Transport::Udp, 80, ""), false),
        ] {
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (expected, expected), "{one} {other}");
        }
        let twice = json!([
            {"hostPort": 80, "containerPort": 8080, "protocol": "tcp"},
            {"hostPort": 80, "containerPort": 8081, "protocol": "tcp", "hostIP": "192.0.2.1"},
        ]);
        let error = decode(&twice).unwrap_err();
        assert!(error.msg.contains("portMappings[1]") && error.details.contains("80/tcp"), "{error}");
    }

    #[test]
    fn a_port_is_written_for_people() {
        let port = |host_ip: &str| {
            HostPort { protocol: Transport::Udp, host_port: 53, host_ip: host_ip.parse().ok(), port: 5353 }
                .to_string()
        };
        assert_eq!(port(""), "53/udp");
        assert_eq!(port("192.0.2.1"), "192.0.2.1:53/udp");
        assert_eq!(port("2001:db8::1"), "[2001:db8::1]:53/udp");
    }
}
