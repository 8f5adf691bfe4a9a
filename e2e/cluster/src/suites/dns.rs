//! Names: a pod that may ask the cluster's DNS and nothing else gets answers, and one that may not gets none.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::Suite;
use super::probe::{BOTH, Expect, Protocol};
use super::stage::{PATIENCE, Pod, Stage, cells, pod};
use crate::api::Kind;
use crate::network::Network;
use crate::plan::{API_SERVICE, DNS_SERVICE};

pub(super) const SUITE: Suite =
    Suite { name: "dns", about: "egress to the cluster's DNS alone, over UDP and TCP", play };

const NAME: &str = "kubernetes.default.svc.cluster.local";
const PORT: u16 = 53;
/// So long an answer may take that is to come.
const ANSWERED: Duration = Duration::from_secs(2);
/// So long one that is not to come is waited for.
const SILENCE: Duration = Duration::from_millis(500);

fn play(stage: &mut Stage) -> Result<()> {
    if stage.field.api.get(Kind::SERVICE, "kube-system", "kube-dns")?.is_none() {
        bail!("there is no Service kube-dns: this cluster has no DNS");
    }
    let pods = stage.start(&[pod("asker", "node1", &[]), pod("peer", "node2", &[])])?;
    let [asker, peer] = &pods[..] else { bail!("two pods were started") };
    resolves(stage, "without a policy, names are answered", asker)?;
    let deny = json!({ "podSelector": { "matchLabels": { "pod": "asker" } }, "policyTypes": ["Egress"] });
    stage.policy("deny", deny)?;
    stage.check("under default deny, nobody is reached", &cells(asker, peer, 80, Expect::Blocked))?;
    let wrong: Vec<String> = BOTH
        .into_iter()
        .filter(|protocol| ask(&asker.network, *protocol, SILENCE).is_ok())
        .map(|protocol| format!("answered over {protocol}"))
        .collect();
    stage.verdict("nor is DNS", &wrong);
    let dns = json!([{
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "kube-system" } },
        "podSelector": { "matchLabels": { "k8s-app": "kube-dns" } },
    }]);
    let ports = json!([{ "port": PORT, "protocol": "UDP" }, { "port": PORT, "protocol": "TCP" }]);
    let allow = json!({
        "podSelector": { "matchLabels": { "pod": "asker" } },
        "policyTypes": ["Egress"],
        "egress": [{ "to": dns, "ports": ports }],
    });
    stage.policy("allow", allow)?;
    resolves(stage, "allowed to ask the DNS's pods, it is answered at their Service", asker)?;
    stage.check("and reaches nobody else", &cells(asker, peer, 80, Expect::Blocked))
}

/// A check that the name of the API server's Service leads to its address, over both protocols.
fn resolves(stage: &mut Stage, what: &str, asker: &Pod) -> Result<()> {
    for protocol in BOTH {
        let network = &asker.network;
        let right =
            || Ok(matches!(ask(network, protocol, ANSWERED), Ok(addresses) if addresses == [API_SERVICE]));
        stage.comes(&format!("{what} ({protocol})"), PATIENCE, right)?;
    }
    Ok(())
}

/// The IPv4 addresses of [`NAME`].
fn ask(network: &Network, protocol: Protocol, wait: Duration) -> Result<Vec<Ipv4Addr>> {
    let server = SocketAddr::new(IpAddr::V4(DNS_SERVICE), PORT);
    let question = question(0x6d6f);
    let answer = network.run(|| match protocol {
        Protocol::Udp => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(wait))?;
            socket.send(&question)?;
            let mut bytes = [0; 512];
            loop {
                match socket.recv(&mut bytes) {
                    Ok(length) => return Ok(bytes[..length].to_vec()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Protocol::Tcp => {
            let mut stream = TcpStream::connect_timeout(&server, wait)?;
            stream.set_read_timeout(Some(wait))?;
            stream.write_all(&[&u16::try_from(question.len())?.to_be_bytes()[..], &question].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes)?;
            Ok(bytes)
        }
    })?;
    addresses(&answer).context("the answer is none")
}

/// A question for the A records of [`NAME`] (RFC 1035, 4.1).
fn question(id: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    // Recursion is wanted; one question.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in NAME.split('.') {
        // Labels are shorter than 64.
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    // The root; type A, class IN.
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The A records of an answer to our question; nothing if it is none.
fn addresses(answer: &[u8]) -> Option<Vec<Ipv4Addr>> {
    let word = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let is_answer = word(2)? & 0x8000 != 0;
    let good = word(2)? & 0xf == 0;
    if !is_answer || !good {
        return None;
    }
    let mut at = question(0).len();
    let mut found = Vec::new();
    for _ in 0..word(6)? {
        at = after_name(answer, at)?;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = answer.get(at + 10..at + 10 + length)?;
        if let (1, Ok(octets)) = (kind, <[u8; 4]>::try_from(data)) {
            found.push(octets.into());
        }
        at += 10 + length;
    }
    Some(found)
}

/// Where a name ends that begins here: at the root, or at a pointer to the rest of it.
fn after_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *answer.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_an_answer() {
        let mut answer = question(7);
        answer[2] = 0x81;
        answer[7] = 2;
        // An alias, which is passed over, by a name that is spelled out; then an address, by a pointer.
        answer.extend([1, b'a', 0, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 96, 0, 1]);
        assert_eq!(addresses(&answer), Some(vec![API_SERVICE]));
        answer[3] = 3;
        assert_eq!(addresses(&answer), None, "there is no such name");
        assert_eq!(addresses(&question(7)), None, "a question");
        assert_eq!(addresses(&answer[..20]), None);
    }
}
