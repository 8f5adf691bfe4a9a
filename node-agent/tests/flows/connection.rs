//! Connections that stay, and whether their packets get through, each way. Nothing here waits for time to pass: a packet comes
//! out at the other end, or is counted where it is dropped.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Protocol, SockAddr, Socket};

use crate::probe::{From, checksum, patiently, raw_socket, udp_socket, unspecified};
use crate::watched::Watched;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From who opened the connection.
    There,
    /// Back to them.
    Back,
}

/// An open connection.
pub(crate) enum Connection {
    Udp {
        client: UdpSocket,
        server: UdpSocket,
        peer: Option<SocketAddr>,
    },
    Tcp {
        client: TcpStream,
        server: TcpStream,
    },
    /// Pings with one identifier; the other end's kernel answers.
    Ping {
        socket: Socket,
        to: IpAddr,
    },
    /// Packets of a protocol without ports.
    Raw {
        client: Socket,
        server: Socket,
        ends: [IpAddr; 2],
    },
}

const PORTLESS: i32 = 253;

impl Connection {
    /// A UDP flow in which both have spoken. `at` is where the server is, if not where the client sends to.
    pub(crate) fn udp(w: &Watched, from: From<'_>, to: SocketAddr, at: Option<SocketAddr>) -> Self {
        let client = udp_client(w, from, to);
        let there = at.unwrap_or(to);
        let server = w.holder(there.ip()).run(move || udp_socket(there));
        client.connect(to).expect("a route");
        let mut udp = Connection::Udp { client, server, peer: None };
        udp.open(w);
        udp
    }

    /// A TCP connection in which both have spoken.
    pub(crate) fn tcp(w: &Watched, from: From<'_>, to: SocketAddr, at: Option<SocketAddr>) -> Self {
        let there = at.unwrap_or(to);
        let listener = w.holder(there.ip()).run(move || patiently(|| TcpListener::bind(there)));
        let source = own(from);
        let client = w.space(from).run(move || {
            let socket = Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None);
            let socket = socket.expect("a socket");
            if let Some(source) = source {
                socket.bind(&SocketAddr::new(source, 0).into()).expect("an own address");
            }
            socket.connect_timeout(&to.into(), Duration::from_secs(10)).expect("allowed");
            TcpStream::from(socket)
        });
        let (server, _) = listener.accept().expect("a connection");
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("an option");
            stream.set_nonblocking(true).expect("an option");
        }
        let mut tcp = Connection::Tcp { client, server };
        tcp.open(w);
        tcp
    }

    /// A ping that was answered.
    pub(crate) fn ping(w: &Watched, from: From<'_>, to: IpAddr) -> Self {
        let protocol = if to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let source = own(from);
        let socket = w.space(from).run(move || raw_socket(to, protocol, source));
        let mut ping = Connection::Ping { socket, to };
        ping.open(w);
        ping
    }

    /// A flow of a protocol without ports, in which both have spoken.
    pub(crate) fn raw(w: &Watched, from: From<'_>, ends: [IpAddr; 2]) -> Self {
        let client = w.space(from).run(move || raw_socket(ends[1], PORTLESS.into(), Some(ends[0])));
        let server = w.holder(ends[1]).run(move || raw_socket(ends[0], PORTLESS.into(), Some(ends[1])));
        let mut raw = Connection::Raw { client, server, ends };
        raw.open(w);
        raw
    }

    fn open(&mut self, w: &Watched) {
        for way in [Way::There, Way::Back] {
            assert!(self.passes(w, way), "allowed at first, {way:?}");
        }
    }

    /// Whether a packet gets through. Where an earlier one of TCP was lost, that one.
    pub(crate) fn passes(&mut self, w: &Watched, way: Way) -> bool {
        let before = w.denied();
        self.drain();
        self.send(way);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let dropped = w.denied() > before;
            if self.arrived(way) {
                return true;
            }
            if dropped {
                return false;
            }
            assert!(Instant::now() < deadline, "the packet is neither here nor there, {way:?}");
            std::thread::yield_now();
        }
    }

    /// Waits until a packet gets through, though others of the connection were lost.
    pub(crate) fn arrives(&mut self, way: Way) {
        self.send(way);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.arrived(way) {
            assert!(Instant::now() < deadline, "nothing gets through, {way:?}");
            std::thread::yield_now();
        }
    }

    fn drain(&mut self) {
        while self.arrived(Way::There) {}
        while self.arrived(Way::Back) {}
    }

    pub(crate) fn send(&mut self, way: Way) {
        match (self, way) {
            (Connection::Udp { client, .. }, Way::There) => drop(client.send(b"there").expect("sent")),
            (Connection::Udp { server, peer, .. }, Way::Back) => {
                server.send_to(b"back", peer.expect("the client has spoken")).expect("sent");
            }
            (Connection::Tcp { client, .. }, Way::There) => drop(client.write(b"t").expect("sent")),
            (Connection::Tcp { server, .. }, Way::Back) => drop(server.write(b"b").expect("sent")),
            (Connection::Ping { socket, to }, _) => {
                let mut echo = [if to.is_ipv4() { 8 } else { 128 }, 0, 0, 0, 0x4d, 0x70, 0, 1];
                let sum = checksum(&echo);
                echo[2..4].copy_from_slice(&sum.to_be_bytes());
                socket.send_to(&echo, &SockAddr::from(SocketAddr::new(*to, 0))).expect("sent");
            }
            (Connection::Raw { client, ends, .. }, Way::There) => {
                client.send_to(b"there", &SockAddr::from(SocketAddr::new(ends[1], 0))).expect("sent");
            }
            (Connection::Raw { server, ends, .. }, Way::Back) => {
                server.send_to(b"back", &SockAddr::from(SocketAddr::new(ends[0], 0))).expect("sent");
            }
        }
    }

    /// Whether something has come out at that end.
    pub(crate) fn arrived(&mut self, way: Way) -> bool {
        let mut buffer = [0; 2048];
        match (self, way) {
            (Connection::Udp { server, peer, .. }, Way::There) => match server.recv_from(&mut buffer) {
                Ok((_, from)) => {
                    *peer = Some(from);
                    true
                }
                Err(_) => false,
            },
            (Connection::Udp { client, .. }, Way::Back) => client.recv(&mut buffer).is_ok(),
            (Connection::Tcp { server, .. }, Way::There) => server.read(&mut buffer).is_ok_and(|n| n > 0),
            (Connection::Tcp { client, .. }, Way::Back) => client.read(&mut buffer).is_ok_and(|n| n > 0),
            (Connection::Ping { socket, to }, _) => {
                let Ok(length) = Read::read(&mut &*socket, &mut buffer) else { return false };
                let (body, kind) =
                    if to.is_ipv4() { (&buffer[20..length], 0) } else { (&buffer[..length], 129) };
                body.len() >= 6 && body[0] == kind && body[4..6] == [0x4d, 0x70]
            }
            (Connection::Raw { server, .. }, Way::There) => Read::read(&mut &*server, &mut buffer).is_ok(),
            (Connection::Raw { client, .. }, Way::Back) => Read::read(&mut &*client, &mut buffer).is_ok(),
        }
    }
}

fn own(from: From<'_>) -> Option<IpAddr> {
    match from {
        From::Outside(address) => Some(address),
        _ => None,
    }
}

fn udp_client(w: &Watched, from: From<'_>, to: SocketAddr) -> UdpSocket {
    let source = own(from).unwrap_or(unspecified(to.ip()));
    w.space(from).run(move || udp_socket(SocketAddr::new(source, 0)))
}
