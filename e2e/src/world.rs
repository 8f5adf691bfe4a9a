//! `world.txt`: who is outside the cluster.
//!
//! One outside host a line: its address, then the ports it serves. `#` starts a comment.
//!
//! ```text
//! 203.0.113.10   443/TCP 53/UDP     # an API, and a resolver
//! 2001:db8::10   443/TCP
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use moat_policies::Protocol;

use crate::textfile::{self, LineError};

/// The file's name in a manifest folder.
pub const WORLD_FILE: &str = "world.txt";

/// A host outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldHost {
    /// Its address.
    pub address: IpAddr,
    /// What it serves.
    pub ports: BTreeSet<(Protocol, u16)>,
}

/// Reads the text of a `world.txt`.
pub(crate) fn parse(text: &str) -> Result<Vec<WorldHost>, LineError> {
    let mut hosts: Vec<WorldHost> = Vec::new();
    for (line, words) in textfile::lines(text) {
        let (address, ports) = words.split_first().ok_or_else(|| line.error("is empty"))?;
        let address: IpAddr =
            address.parse().map_err(|_| line.error(format!("`{address}` is not an address")))?;
        if hosts.iter().any(|h| h.address == address) {
            return Err(line.error(format!("{address} is there twice")));
        }
        let ports = ports.iter().map(|p| port(p).map_err(|e| line.error(e))).collect::<Result<_, _>>()?;
        hosts.push(WorldHost { address, ports });
    }
    Ok(hosts)
}

/// Reads `443/TCP`.
pub(crate) fn port(text: &str) -> Result<(Protocol, u16), String> {
    let wrong = || format!("`{text}` is not a port: write it as 443/TCP or 53/UDP");
    let (number, protocol) = text.split_once('/').ok_or_else(wrong)?;
    let number = number.parse().ok().filter(|n| *n != 0).ok_or_else(wrong)?;
    match protocol {
        "TCP" => Ok((Protocol::Tcp, number)),
        "UDP" => Ok((Protocol::Udp, number)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_their_ports() {
        let hosts = parse("# who\n203.0.113.10 443/TCP 53/UDP # both\n\n2001:db8::1\n").unwrap();
        assert_eq!(hosts.len(), 2);
        assert_eq!(hosts[0].ports, BTreeSet::from([(Protocol::Tcp, 443), (Protocol::Udp, 53)]));
        assert!(hosts[1].ports.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, said) in [
            ("\nhere 1/TCP", "line 2: `here` is not an address"),
            ("10.0.0.1 443", "line 1: `443` is not a port: write it as 443/TCP or 53/UDP"),
            ("10.0.0.1 0/TCP", "line 1: `0/TCP` is not a port: write it as 443/TCP or 53/UDP"),
            ("10.0.0.1\n10.0.0.1", "line 2: 10.0.0.1 is there twice"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), said);
        }
    }
}
