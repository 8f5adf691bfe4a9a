//! What plugin and agent say to each other: one request line and one response line a connection.
//!
//! ```text
//! ▶ {"version":1,"command":{"add":{"network":"moat","container_id":"c0ffee","ifname":"eth0",…}}}
//! ◀ {"version":1,"outcome":{"attached":{"host_ifname":"moat1a2b3c4d5e6","pod_mac":"02:6d:…",…}}}
//! ◀ {"version":1,"outcome":{"refused":{"code":11,"msg":"no free address","details":"…"}}}
//! ```
//!
//! Both are files on one machine and can be replaced at different moments; so every line carries the
//! protocol's version. A request has the version in which its command was new ([`Command::since`]), so that a newer plugin
//! goes on with an older agent as long as that can do what it is asked for; the answer has the request's. A line of a version
//! that is not known is refused with words that say which side is the older.
//!
//! | version | what was new |
//! |---|---|
//! | 1 | ADD, DEL, CHECK, GC, STATUS |
//! | 2 | streams: `drops`, `flows` ([`stream`](crate::stream)) |
//! | 3 | ADD and CHECK with `host_ports`; without, they are of version 1 |

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{CniError, code};
use crate::port::HostPort;

/// The newest version of the protocol that this build speaks.
pub const VERSION: u32 = 3;

/// The oldest one.
pub const OLDEST: u32 = 1;

/// The longest line, newline included, in bytes. GC's list of attachments is the largest thing that is said.
pub const MAX_LINE: usize = 1 << 20;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// That of the command, see [`Command::since`].
    pub version: u32,
    /// What it asks for.
    pub command: Command,
}

/// The CNI commands that need the agent, and what people ask it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// ADD.
    Add(Add),
    /// DEL.
    Del(Del),
    /// CHECK.
    Check(Check),
    /// GC.
    Gc(Gc),
    /// STATUS.
    Status(Status),
    /// The drop log.
    Drops(Drops),
    /// The live flows of the node's pods.
    Flows(Flows),
}

impl Command {
    /// The version of the protocol in which it was new.
    pub fn since(&self) -> u32 {
        match self {
            Command::Add(Add { host_ports, .. }) | Command::Check(Check { host_ports, .. })
                if !host_ports.is_empty() =>
            {
                3
            }
            Command::Add(_) | Command::Del(_) | Command::Check(_) | Command::Gc(_) | Command::Status(_) => 1,
            Command::Drops(_) | Command::Flows(_) => 2,
        }
    }
}

/// Give a pod an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// The `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `K8S_POD_NAMESPACE` of `CNI_ARGS`.
    pub pod_namespace: String,
    /// `K8S_POD_NAME` of `CNI_ARGS`.
    pub pod_name: String,
    /// `K8S_POD_UID` of `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Ports of the node that are to lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// Take a pod's interface away. It is no error that there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Del {
    /// The `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// Compare a pod's interface with what ADD answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// The addresses that `prevResult` gives the interface.
    pub addresses: Vec<IpAddr>,
    /// The gateways of the default routes in `prevResult`: a later plugin may have taken ours away.
    pub gateways: Vec<IpAddr>,
    /// Ports of the node that should lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// Remove every attachment of a network that is not in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// The `name` of the network configuration.
    pub network: String,
    /// `cni.dev/valid-attachments`.
    pub valid: Vec<ValidAttachment>,
}

/// One attachment that still exists, as the specification writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// `CNI_CONTAINERID` of its ADD.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME` of its ADD.
    pub ifname: String,
}

/// Ask whether ADD can be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The `name` of the network configuration.
    pub network: String,
}

/// Ask for the packets that were dropped lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drops {
    /// And for those that are dropped from now on, until somebody closes the connection.
    pub follow: bool,
}

/// Ask for the connections that exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flows {}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// The request's.
    pub version: u32,
    /// What came of the request.
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// ADD: the pod's interface is up, under policy.
    Attached(Attached),
    /// Any other command: done, or all is well.
    Done,
    /// Events follow, each on a line of its own ([`Event`](crate::stream::Event)).
    Stream,
    /// It did not work.
    Refused(CniError),
}

/// What ADD made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// The name of the end in the node's namespace.
    pub host_ifname: String,
    /// Its hardware address.
    pub host_mac: String,
    /// The hardware address of the pod's end.
    pub pod_mac: String,
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
    /// The pod's addresses, each with the gateway of its default route.
    pub addresses: Vec<Address>,
}

/// One address of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The address, alone in its prefix (/32 or /128).
    pub address: IpAddr,
    /// The gateway of the pod's default route in this family.
    pub gateway: IpAddr,
}

/// Only the part of a line that every version of the protocol has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// `message` as the line that goes over the socket.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Strings, numbers and lists of them: nothing here can fail to become JSON. Should that ever change, an empty
    // line is what both sides refuse.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The request in a line that the agent received, or what to answer instead.
pub fn decode_request(line: &[u8]) -> Result<Request, CniError> {
    match version_of(line)? {
        OLDEST..=VERSION => serde_json::from_slice(line).map_err(|error| undecodable("request", &error)),
        other => Err(mismatch("plugin", other, "agent", VERSION)),
    }
}

/// What the agent said in a line that the plugin received.
pub fn decode_response(line: &[u8]) -> Result<Outcome, CniError> {
    match version_of(line)? {
        OLDEST..=VERSION => match serde_json::from_slice(line) {
            Ok(Response { outcome, .. }) => Ok(outcome),
            Err(error) => Err(undecodable("response", &error)),
        },
        other => Err(mismatch("agent", other, "plugin", VERSION)),
    }
}

fn version_of(line: &[u8]) -> Result<u32, CniError> {
    serde_json::from_slice::<Versioned>(line)
        .map(|line| line.version)
        .map_err(|error| undecodable("line", &error))
}

fn undecodable(what: &str, error: &serde_json::Error) -> CniError {
    CniError::new(
        code::DECODING_FAILURE,
        format!("the agent's socket carried a {what} that cannot be read"),
        error.to_string(),
    )
}

fn mismatch(them: &str, theirs: u32, us: &str, ours: u32) -> CniError {
    let older = if theirs < ours { them } else { us };
    CniError::new(
        code::PROTOCOL_MISMATCH,
        format!("the {them} speaks version {theirs} of moat's protocol, the {us} version {ours}"),
        format!("the {older} is the older: install moat-cni and moat-agent of the same release"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused_before_anything_else_is_read() {
        let error = decode_request(br#"{"version":7,"verb":{"whatever":[1,2]}}"#).unwrap_err();
        assert_eq!(error.code, code::PROTOCOL_MISMATCH);
        assert!(
            error.msg.contains("version 7") && error.details.contains("the agent is the older"),
            "{error}"
        );
        let error = decode_response(br#"{"version":0,"outcome":"done"}"#).unwrap_err();
        assert!(error.details.contains("the agent is the older"), "{error}");
    }

    #[test]
    fn garbage_and_unknown_fields_are_refused() {
        for line in [
            &b""[..],
            b"{}",
            b"[]",
            b"{\"version\":1}",
            b"{\"version\":1,\"command\":{\"add\":{}}}",
            b"{\"version\":1,\"command\":{\"del\":{\"network\":\"n\",\"container_id\":\"c\",\"ifname\":\"e\",\"x\":1}}}",
        ] {
            assert_eq!(decode_request(line).unwrap_err().code, code::DECODING_FAILURE);
        }
    }

    #[test]
    fn plugins_and_agents_of_the_first_version_go_on() {
        let line = br#"{"version":1,"command":{"status":{"network":"moat"}}}"#;
        let request = decode_request(line).unwrap();
        assert_eq!((request.version, request.command.since()), (1, 1));
        assert_eq!(
            encode(&Request { version: request.command.since(), ..request }),
            [&line[..], b"\n"].concat()
        );
        assert_eq!(decode_response(br#"{"version":1,"outcome":"done"}"#).unwrap(), Outcome::Done);
        assert_eq!(Command::Flows(Flows {}).since(), 2);
    }

    #[test]
    fn host_ports_need_an_agent_that_knows_them() {
        let mut add = Add {
            network: "moat".into(),
            container_id: "c".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            pod_namespace: "default".into(),
            pod_name: "web".into(),
            pod_uid: None,
            host_ports: Vec::new(),
        };
        assert_eq!(Command::Add(add.clone()).since(), 1);
        let line = String::from_utf8(encode(&add)).unwrap();
        assert!(!line.contains("host_ports"), "older agents refuse what they do not know: {line}");
        add.host_ports = vec![HostPort {
            protocol: crate::port::Transport::Tcp,
            host_port: 8080,
            host_ip: None,
            port: 80,
        }];
        let request = Request { version: Command::Add(add.clone()).since(), command: Command::Add(add) };
        assert_eq!(request.version, 3);
        let line = encode(&request);
        assert!(
            String::from_utf8_lossy(&line)
                .contains(r#""host_ports":[{"protocol":"tcp","host_port":8080,"port":80}]"#)
        );
        assert_eq!(decode_request(&line).unwrap(), request);
    }

    #[test]
    fn a_request_survives_the_line() {
        let request = Request {
            version: OLDEST,
            command: Command::Gc(Gc {
                network: "moat".into(),
                valid: vec![ValidAttachment { container_id: "c".into(), ifname: "eth0".into() }],
            }),
        };
        let line = encode(&request);
        assert_eq!(line.last(), Some(&b'\n'));
        assert_eq!(decode_request(&line).unwrap(), request);
    }
}
