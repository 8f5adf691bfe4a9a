//! `--port`: what a question's traffic is.

use std::str::FromStr;
use std::sync::Arc;

use moat_policies::{Protocol, Traffic};

/// `80/TCP`, `80`, `53/udp`, `icmp`, or a container port's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// What a packet says.
    Traffic(Traffic),
    /// A name, to be looked up on the destination pod.
    Named(Protocol, Arc<str>),
}

/// ICMP's number; ICMPv6 has the same verdicts.
const ICMP: u8 = 1;

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(Port::Traffic(Traffic::Other(ICMP)));
        }
        let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let protocol = Protocol::ALL
            .into_iter()
            .find(|p| p.as_str().eq_ignore_ascii_case(protocol))
            .ok_or_else(|| format!("{protocol:?} is not one of TCP, UDP, SCTP"))?;
        if port.bytes().all(|b| b.is_ascii_digit()) && !port.is_empty() {
            return match port.parse::<u16>() {
                Ok(port) if port > 0 => Ok(Port::Traffic(Traffic::Port(protocol, port))),
                _ => Err(format!("{port} is not a port: 1 to 65535")),
            };
        }
        let name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        match port.len() <= 15 && port.bytes().all(name) && port.bytes().any(|b| b.is_ascii_lowercase()) {
            true => Ok(Port::Named(protocol, Arc::from(port))),
            false => {
                Err("a port is written as 80/TCP, 53/UDP, 9999/SCTP, icmp, or a container port's name".into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let port = |protocol, port| Ok(Port::Traffic(Traffic::Port(protocol, port)));
        for (text, expected) in [
            ("80", port(Protocol::Tcp, 80)),
            ("80/TCP", port(Protocol::Tcp, 80)),
            ("53/udp", port(Protocol::Udp, 53)),
            ("65535/Sctp", port(Protocol::Sctp, 65535)),
            ("ICMP", Ok(Port::Traffic(Traffic::Other(1)))),
            ("http", Ok(Port::Named(Protocol::Tcp, Arc::from("http")))),
            ("dns/UDP", Ok(Port::Named(Protocol::Udp, Arc::from("dns")))),
        ] {
            assert_eq!(Port::from_str(text), expected, "{text}");
        }
        for text in ["", "0", "65536", "80/", "80/ICMP", "-1", "80-90", "HTTP", "/TCP", "80/TCP/x"] {
            assert!(Port::from_str(text).is_err(), "{text}");
        }
    }
}
