//! What an agent tells whoever looks: dropped packets and live flows, an event a line.
//!
//! ```text
//! ▶ {"version":2,"command":{"drops":{"follow":true}}}
//! ◀ {"version":2,"outcome":"stream"}
//! ◀ {"drop":{"time":"2026-11-22T02:41:07.123456Z","node":"node-1","source":{"address":"10.0.0.5","pod":"shop/web"},…}}
//! ◀ …
//! ◀ "end"                                                      where nothing follows
//! ```
//!
//! A stream that does not end with `"end"` was cut off. Later versions may add fields: what is not known is passed over.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client;
use crate::error::CniError;
use crate::protocol::{self, Command, MAX_LINE, Outcome, Request};

/// The longest line of a stream, newline included, in bytes.
pub const MAX_EVENT: usize = 64 << 10;

/// One line of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// A packet was dropped, or several of a kind.
    Drop(Dropped),
    /// More packets were dropped than the log tells one by one.
    Unlogged(Unlogged),
    /// A flow that is live.
    Flow(LiveFlow),
    /// The reader was too slow for so many events.
    Missed(u64),
    /// That was all.
    End,
}

/// One end of a packet or flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct End {
    /// Its address; none where the packet has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The pod that has the address: `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node that has the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// As a person would say it: the pod, else the node, else the address.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.pod, &self.node, self.address) {
            (Some(pod), ..) => f.write_str(pod),
            (None, Some(node), _) => write!(f, "node {node}"),
            (None, None, Some(address)) => address.fmt(f),
            (None, None, None) => f.write_str("?"),
        }
    }
}

/// A packet that was dropped, or several of a kind: same ends, protocol, port, side and reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// When, the last of them: RFC 3339, UTC, microseconds. Sorts as text.
    pub time: String,
    /// On which node.
    pub node: String,
    /// Who it says that it is from.
    pub source: End,
    /// Who it was for.
    pub destination: End,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, `ARP`, or the IP protocol's number.
    pub protocol: String,
    /// The destination port, where the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `egress` or `ingress`: whose side dropped it.
    pub direction: String,
    /// The pod whose side that is, by its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// One word of a closed list: `policy`, `revoked`, `invalid`, …
    pub reason: String,
    /// Why, in one sentence.
    pub explanation: String,
    /// How many packets this is about.
    pub count: u64,
    /// When the first of them was, if there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

impl Dropped {
    /// Protocol and port as a policy writes them: `9090/TCP`, `ICMP`.
    pub fn traffic(&self) -> String {
        traffic(&self.protocol, self.port)
    }
}

/// Packets of a pod that were dropped and counted, and not logged one by one because there were too many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlogged {
    /// When they were counted.
    pub time: String,
    /// On which node.
    pub node: String,
    /// The pod whose side dropped them.
    pub pod: String,
    /// `egress` or `ingress`.
    pub direction: String,
    /// As [`Dropped::reason`].
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// A tracked connection to or from a pod of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveFlow {
    /// The node that tracks it.
    pub node: String,
    /// `TCP`, `UDP`, … as [`Dropped::protocol`].
    pub protocol: String,
    /// Who opened it.
    pub source: End,
    /// Its source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Who answers.
    pub destination: End,
    /// The port that is answered on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// The address that was asked for, where that was another one: a Service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// Whether the policies let it go on.
    pub allowed: bool,
    /// Whether it is cut.
    pub revoked: bool,
    /// Why it may not go on: side and reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
}

impl LiveFlow {
    /// Protocol and port as a policy writes them.
    pub fn traffic(&self) -> String {
        traffic(&self.protocol, self.destination_port)
    }
}

fn traffic(protocol: &str, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("{port}/{protocol}"),
        None => protocol.to_owned(),
    }
}

/// Why a stream ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The agent refused, or cannot be reached.
    #[error("{}", .0.words())]
    Refused(CniError),
    /// The connection broke.
    #[error("the agent's stream broke off")]
    Broken(#[source] io::Error),
    /// Something came that is no event.
    #[error("the agent's stream carried a line that cannot be read")]
    Undecodable(#[source] serde_json::Error),
}

/// The longest time that the agent may take for its answer, before the stream begins.
const PATIENCE: Duration = Duration::from_secs(10);

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    lines: BufReader<UnixStream>,
    ended: bool,
}

impl Events {
    /// Asks an agent for a stream: [`Command::Drops`] or [`Command::Flows`].
    pub fn open(socket: &Path, command: Command) -> Result<Self, StreamError> {
        let refused = |error: &io::Error| StreamError::Refused(client::unreachable(socket, error));
        let stream = UnixStream::connect(socket).map_err(|e| refused(&e))?;
        let request = protocol::encode(&Request { version: command.since(), command });
        let asked = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .and_then(|()| (&stream).write_all(&request));
        asked.map_err(|e| refused(&e))?;
        let mut lines = BufReader::new(stream);
        let answer = line(&mut lines, MAX_LINE).map_err(|e| refused(&e))?;
        match protocol::decode_response(&answer).map_err(StreamError::Refused)? {
            Outcome::Stream => {}
            Outcome::Refused(error) => return Err(StreamError::Refused(error)),
            other => {
                let odd = io::Error::new(io::ErrorKind::InvalidData, format!("it answered {other:?}"));
                return Err(refused(&odd));
            }
        }
        // Events come when they come.
        lines.get_ref().set_read_timeout(None).map_err(|e| refused(&e))?;
        Ok(Self { lines, ended: false })
    }
}

impl Iterator for Events {
    type Item = Result<Event, StreamError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = line(&mut self.lines, MAX_EVENT)
            .map_err(StreamError::Broken)
            .and_then(|line| serde_json::from_slice(&line).map_err(StreamError::Undecodable));
        self.ended = matches!(event, Err(_) | Ok(Event::End));
        (!matches!(event, Ok(Event::End))).then_some(event)
    }
}

/// A whole line, with its newline.
fn line(from: &mut impl BufRead, most: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.take(most as u64).read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => Ok(line),
        _ if line.len() >= most => Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long")),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::error::code;
    use crate::protocol::{Drops, Response, VERSION};

    /// An agent that takes one request and says these bytes.
    fn says(bytes: Vec<u8>) -> Result<Vec<Result<Event, StreamError>>, StreamError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut reader = BufReader::new(&stream);
            reader.read_until(b'\n', &mut request).unwrap();
            let request = protocol::decode_request(&request).unwrap();
            assert_eq!((request.version, request.command), (2, Command::Drops(Drops { follow: true })));
            // The client may have gone by then.
            let _ = (&stream).write_all(&bytes);
        });
        let events = Events::open(&path, Command::Drops(Drops { follow: true })).map(Iterator::collect);
        agent.join().unwrap();
        events
    }

    fn opened(outcome: Outcome) -> Vec<u8> {
        protocol::encode(&Response { version: VERSION, outcome })
    }

    #[test]
    fn events_come_until_the_end() {
        let mut bytes = opened(Outcome::Stream);
        let end = End { pod: Some("shop/web".into()), ..End::default() };
        let drop = Event::Drop(Dropped {
            time: "2026-11-22T02:41:07.000001Z".into(),
            node: "n".into(),
            source: end.clone(),
            destination: End { address: Some([10, 0, 0, 1].into()), ..End::default() },
            protocol: "TCP".into(),
            port: Some(80),
            direction: "egress".into(),
            pod: Some("shop/web".into()),
            reason: "policy".into(),
            explanation: "because".into(),
            count: 1,
            since: None,
        });
        bytes.extend(protocol::encode(&drop));
        // What a later version says besides.
        bytes.extend(b"{\"unlogged\":{\"time\":\"t\",\"node\":\"n\",\"pod\":\"p\",\"direction\":\"egress\",\"reason\":\"r\",\"count\":3,\"new\":1}}\n");
        bytes.extend(b"{\"missed\":7}\n\"end\"\n{\"missed\":8}\n");
        let events: Vec<Event> = says(bytes).unwrap().into_iter().map(Result::unwrap).collect();
        let [one, Event::Unlogged(more), Event::Missed(7)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((one, more.count), (&drop, 3));
    }

    #[test]
    fn what_is_no_stream_is_told() {
        let cut = says(opened(Outcome::Stream)).unwrap();
        assert!(matches!(cut[..], [Err(StreamError::Broken(_))]), "{cut:?}");
        let odd = says([opened(Outcome::Stream), b"[]\n".to_vec()].concat()).unwrap();
        assert!(matches!(odd[..], [Err(StreamError::Undecodable(_))]), "{odd:?}");
        let long = says([opened(Outcome::Stream), vec![b' '; MAX_EVENT]].concat()).unwrap();
        assert!(
            matches!(&long[..], [Err(StreamError::Broken(e))] if e.to_string().contains("too long")),
            "{long:?}"
        );
        let refusal = CniError::new(code::TRY_AGAIN, "not today", "");
        assert!(
            matches!(says(opened(Outcome::Refused(refusal))), Err(StreamError::Refused(e)) if e.msg == "not today")
        );
        assert!(matches!(says(opened(Outcome::Done)), Err(StreamError::Refused(_))));
        assert!(matches!(says(Vec::new()), Err(StreamError::Refused(_))));
        let gone = Events::open(Path::new("/nowhere/agent.sock"), Command::Drops(Drops { follow: false }));
        assert!(matches!(gone, Err(StreamError::Refused(e)) if e.details.contains("is moat-agent running")));
    }
}
