//! ICMP echo, over raw sockets: a pod has no process that could ask its kernel for less.
//!
//! The kernel answers echo requests itself; a raw socket at the destination sees them too, and so records them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::client::{answer, exchange};
use super::{Answer, Arrival, PAYLOAD, Record, number_in, payload};

const HEADER: usize = 8;

/// Type of an echo request, and of its reply, in the family of an address.
pub(crate) fn types(address: IpAddr) -> (u8, u8) {
    if address.is_ipv4() { (8, 0) } else { (128, 129) }
}

/// A raw ICMP socket that belongs to an address. The async runtime knows datagrams by its UDP type, which does nothing
/// to a socket that is not true of every datagram socket.
pub(crate) fn socket(own: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) =
        if own.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(SocketAddr::new(own, 0)))?;
    // Each raw socket gets a copy of all ICMP of its address: a burst must fit. Where the limit is lower, that is used.
    let _ = socket.set_recv_buffer_size(1 << 20);
    UdpSocket::from_std(socket.into())
}

/// Records the echo requests that arrive.
pub(super) async fn watch(socket: UdpSocket, own: IpAddr, record: Record) {
    let mut bytes = [0; 256];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut bytes).await else { continue };
        if let Some(number) = echo(&bytes[..length], own, types(own).0) {
            record.write(number, Arrival { from: peer.ip(), to: own });
        }
    }
}

/// Sends an echo request and waits for its reply.
pub(super) async fn ask(from: IpAddr, to: IpAddr, number: u64, wait: Duration) -> Answer {
    let talk = async {
        let socket = socket(from)?;
        // From now on the kernel hands it only what comes from there.
        socket.connect(SocketAddr::new(to, 0)).await?;
        let reply = types(from).1;
        let is_answer = |packet: &[u8]| echo(packet, from, reply) == Some(number);
        // Numbers count up: each probe is a flow of its own.
        exchange(&socket, &request(from, number as u16, number), wait, is_answer).await
    };
    answer(timeout(wait, talk).await)
}

/// An echo request of a flow. To conntrack the identifier is what ports are elsewhere.
pub(crate) fn request(from: IpAddr, identifier: u16, number: u64) -> [u8; HEADER + PAYLOAD] {
    let mut bytes = [0; HEADER + PAYLOAD];
    bytes[0] = types(from).0;
    bytes[4..6].copy_from_slice(&identifier.to_be_bytes());
    bytes[HEADER..].copy_from_slice(&payload(number));
    if from.is_ipv4() {
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    // The kernel fills in ICMPv6's, which covers the addresses.
    bytes
}

/// RFC 1071, of an even number of octets.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The number in an echo message of one type. IPv4's raw sockets hand out the IP header too.
pub(crate) fn echo(packet: &[u8], own: IpAddr, kind: u8) -> Option<u64> {
    let header = if own.is_ipv4() { usize::from(packet.first()? & 0xf) * 4 } else { 0 };
    let message = packet.get(header..)?;
    (*message.first()? == kind).then(|| number_in(message.get(HEADER..)?)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_recognised_and_its_sum_is_right() {
        let v4: IpAddr = "10.0.0.1".parse().unwrap();
        let request = request(v4, 7, 0x0102_0304_0506_0708);
        assert_eq!(checksum(&request), 0);
        let mut packet = vec![0x45; 20];
        packet.extend(request);
        assert_eq!(echo(&packet, v4, 8), Some(0x0102_0304_0506_0708));
        assert_eq!(echo(&packet, v4, 0), None);
        assert_eq!(echo(&[], v4, 8), None);
    }
}
