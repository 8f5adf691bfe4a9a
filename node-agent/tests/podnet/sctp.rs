//! SCTP by host ports. Kernels are built without its sockets, and moat needs none: its packets are written by hand here.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::fleet::{add, of, pod};
use crate::hostport::alone;
use crate::world::interrupted::uninterrupted;
use crate::world::{Namespace, in_world};

const SCTP: i32 = 132;
/// Kinds of chunks (RFC 9260): the first of a connection, and its answer.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// What each end says its packets are to be known by.
const TAG: u32 = 1;
const IPV4_HEADER: usize = 20;

#[derive(Debug, PartialEq, Eq)]
struct Ports {
    from: u16,
    to: u16,
}

/// A packet with one chunk.
fn packet(ports: &Ports, kind: u8) -> Vec<u8> {
    // Who begins does not know the other's tag.
    let tag = if kind == INIT { 0 } else { TAG };
    let mut bytes = [ports.from.to_be_bytes(), ports.to.to_be_bytes()].concat();
    bytes.extend([tag, 0].map(u32::to_be_bytes).concat());
    // Kind, flags, length; own tag, window, streams there and back, first number.
    bytes.extend([kind, 0, 0, 20]);
    bytes.extend([TAG, 1 << 16, 1 << 16 | 1, 1].map(u32::to_be_bytes).concat());
    let sum = crc32c(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

/// Castagnoli's sum.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |sum: u32, _| (sum >> 1) ^ (0x82f6_3b78 * (sum & 1));
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), bit))
}

/// What says and hears SCTP in a network namespace.
struct End {
    socket: UdpSocket,
    ipv4: bool,
}

impl End {
    fn new(ns: &Namespace, ipv4: bool) -> Self {
        let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
        let raw = ns.run(move || Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP))).unwrap());
        raw.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self { socket: OwnedFd::from(raw).into(), ipv4 }
    }

    fn says(&self, to: IpAddr, ports: Ports, kind: u8) {
        self.socket.send_to(&packet(&ports, kind), (to, 0)).unwrap();
    }

    /// Waits for a chunk of this kind, whole as it was sent but for the ports: who it is from, and its ports.
    #[track_caller]
    fn hears(&self, kind: u8) -> (IpAddr, Ports) {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            let mut buffer = [0; 256];
            let Ok((length, from)) = uninterrupted(|| self.socket.recv_from(&mut buffer)) else { continue };
            let heard = &buffer[if self.ipv4 { IPV4_HEADER } else { 0 }..length];
            let port = |at| u16::from_be_bytes([heard[at], heard[at + 1]]);
            let ports = Ports { from: port(0), to: port(2) };
            if heard[12] == kind {
                assert_eq!(heard, packet(&ports, kind), "its sum is that of the ports that it bears");
                return (from.ip(), ports);
            }
        }
        panic!("no chunk of kind {kind} comes");
    }
}

#[test]
fn a_port_leads_to_its_pod_over_sctp_too_and_answers_come_back() {
    in_world(|| {
        let (node, world) = alone(&pod("web", "a"));
        let target = add(&node, "web", &[(8080, 80, "sctp", "")]);
        for to in of("a") {
            let [asks, answers] = [&world, &target.ns].map(|ns| End::new(ns, to.is_ipv4()));
            asks.says(to, Ports { from: 40_000, to: 8080 }, INIT);
            let (caller, ports) = answers.hears(INIT);
            assert_eq!(ports, Ports { from: 40_000, to: 80 });
            answers.says(caller, Ports { from: 80, to: 40_000 }, INIT_ACK);
            assert_eq!(asks.hears(INIT_ACK), (to, Ports { from: 8080, to: 40_000 }));
        }
    });
}
