//! Real packets, and what became of them. Nothing here waits for time to pass: a packet has either come out at the
//! other end or been counted by the chain that dropped it.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use moat_agent::dataplane::DropPoint;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::space::Space;
use crate::world::World;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Passed,
    Dropped(DropPoint),
}

/// Where a packet starts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From<'a> {
    Pod(&'a str),
    /// The outside, from this address of its own, or from one that is not.
    Outside(IpAddr),
    Node,
}

impl World {
    pub(crate) fn space(&self, from: From<'_>) -> &Space {
        match from {
            From::Pod(name) => &self.pods[name].space,
            From::Outside(_) => &self.outside,
            From::Node => &self.node,
        }
    }

    /// The space that holds an address.
    pub(crate) fn holder(&self, address: IpAddr) -> &Space {
        if let Some(pod) =
            self.pods.values().find(|p| IpAddr::V4(p.v4) == address || IpAddr::V6(p.v6) == address)
        {
            return &pod.space;
        }
        let node = [IpAddr::from([192, 168, 0, 1]), IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, 1])];
        if node.contains(&address) { &self.node } else { &self.outside }
    }

    /// Waits until a packet has arrived or been counted as dropped.
    pub(crate) fn fate(&self, send: impl FnOnce(), mut arrived: impl FnMut() -> bool) -> Fate {
        let before = self.drops();
        send();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let after = self.drops();
            if arrived() {
                return Fate::Passed;
            }
            if let Some((reason, _)) = after.iter().find(|(r, n)| **n > before.get(r).copied().unwrap_or(0)) {
                return Fate::Dropped(*reason);
            }
            assert!(Instant::now() < deadline, "the packet is neither here nor there");
            std::thread::yield_now();
        }
    }

    /// One UDP datagram.
    pub(crate) fn udp(&self, from: From<'_>, to: IpAddr, port: u16) -> Fate {
        let receiver = self.holder(to).run(move || udp_socket(SocketAddr::new(to, port)));
        let source = match from {
            From::Outside(address) => Some(address),
            _ => None,
        };
        let sender =
            self.space(from).run(move || udp_socket(SocketAddr::new(source.unwrap_or(unspecified(to)), 0)));
        let mut buffer = [0; 16];
        self.fate(
            || assert!(sender.send_to(b"probe", (to, port)).is_ok()),
            || receiver.recv_from(&mut buffer).is_ok(),
        )
    }

    /// One TCP connection.
    pub(crate) fn tcp(&self, from: From<'_>, to: IpAddr, port: u16) -> Fate {
        let listener = self.holder(to).run(move || patiently(|| TcpListener::bind((to, port))));
        listener.set_nonblocking(true).expect("an option");
        let source = match from {
            From::Outside(address) => Some(address),
            _ => None,
        };
        let socket = self.space(from).run(move || {
            let socket =
                Socket::new(Domain::for_address((to, 0).into()), Type::STREAM, None).expect("a socket");
            if let Some(source) = source {
                socket.bind(&SocketAddr::new(source, 0).into()).expect("an own address");
            }
            socket.set_nonblocking(true).expect("an option");
            socket
        });
        self.fate(
            // In progress, or done at once: both are fine.
            || drop(socket.connect(&SocketAddr::new(to, port).into())),
            || listener.accept().is_ok(),
        )
    }

    /// One ICMP echo request, answered by the other end's kernel.
    pub(crate) fn ping(&self, from: From<'_>, to: IpAddr) -> Fate {
        let protocol = if to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let source = match from {
            From::Outside(address) => Some(address),
            _ => None,
        };
        let socket = self.space(from).run(move || raw_socket(to, protocol, source));
        let kinds = if to.is_ipv4() { (8, 0) } else { (128, 129) };
        let mut echo = [kinds.0, 0, 0, 0, 0x4d, 0x6f, 0, 1];
        let sum = checksum(&echo);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut buffer = [0; 128];
        self.fate(
            || assert!(socket.send_to(&echo, &SockAddr::from(SocketAddr::new(to, 0))).is_ok()),
            || loop {
                let Ok(length) = std::io::Read::read(&mut &socket, &mut buffer) else { return false };
                let body = if to.is_ipv4() { &buffer[20..length] } else { &buffer[..length] };
                if body.len() >= 6 && body[0] == kinds.1 && body[4..6] == echo[4..6] {
                    return true;
                }
            },
        )
    }

    /// One packet of any protocol with this payload.
    pub(crate) fn raw(&self, from: From<'_>, to: IpAddr, protocol: i32, payload: &'static [u8]) -> Fate {
        let protocol = Protocol::from(protocol);
        let receiver = self.holder(to).run(move || raw_socket(to, protocol, None));
        let source = match from {
            From::Outside(address) => Some(address),
            _ => None,
        };
        let sender = self.space(from).run(move || raw_socket(to, protocol, source));
        let mut buffer = [0; 128];
        self.fate(
            || assert!(sender.send_to(payload, &SockAddr::from(SocketAddr::new(to, 0))).is_ok()),
            || std::io::Read::read(&mut &receiver, &mut buffer).is_ok(),
        )
    }
}

/// Binds to an address that an earlier probe had: for as long as another test is about to start a program, that program's
/// process holds a copy of every socket.
pub(crate) fn patiently<T>(mut bind: impl FnMut() -> std::io::Result<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match bind() {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            other => return other.expect("an own address"),
        }
    }
}

pub(crate) fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) }
}

pub(crate) fn udp_socket(address: SocketAddr) -> UdpSocket {
    let socket = patiently(|| UdpSocket::bind(address));
    socket.set_nonblocking(true).expect("an option");
    socket
}

/// A raw socket; what is sent through it gets its IP header from the kernel.
pub(crate) fn raw_socket(like: IpAddr, protocol: Protocol, source: Option<IpAddr>) -> Socket {
    let socket = Socket::new(Domain::for_address((like, 0).into()), Type::RAW, Some(protocol)).expect("raw");
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into()).expect("an own address");
    }
    socket.set_nonblocking(true).expect("an option");
    socket
}

/// A raw socket; what is sent through it has its own IP header.
pub(crate) fn forger(like: IpAddr) -> Socket {
    const RAW: i32 = 255;
    let socket = raw_socket(like, Protocol::from(RAW), None);
    if like.is_ipv4() {
        socket.set_header_included_v4(true).expect("an option");
    } else {
        socket.set_header_included_v6(true).expect("an option");
    }
    socket
}

/// A packet with its IP header.
pub(crate) fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16;
    let mut bytes = Vec::new();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            bytes.extend([0x45, 0]);
            bytes.extend((20 + length).to_be_bytes());
            bytes.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            bytes.extend(s.octets());
            bytes.extend(d.octets());
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(length.to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(s.octets());
            bytes.extend(d.octets());
        }
        _ => panic!("one family"),
    }
    bytes.extend(payload);
    bytes
}

/// A UDP datagram with its checksum.
pub(crate) fn udp(source: IpAddr, destination: IpAddr, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut body = Vec::new();
    body.extend(sport.to_be_bytes());
    body.extend(dport.to_be_bytes());
    body.extend(length.to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    let sum = transport_checksum(source, destination, 17, &body);
    body[6..8].copy_from_slice(&sum.to_be_bytes());
    packet(source, destination, 17, &body)
}

/// The checksum of a transport header and payload, with the pseudo header.
pub(crate) fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> u16 {
    let mut pseudo = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(a) => pseudo.extend(a.octets()),
            IpAddr::V6(a) => pseudo.extend(a.octets()),
        }
    }
    pseudo.extend((body.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(body);
    checksum(&pseudo)
}

pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
