//! Who answers: records the number of each probe that arrives, then sends it back.

use std::io;
use std::net::{IpAddr, SocketAddr};

use moat_policies::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use super::{Arrival, PAYLOAD, Record, icmp, number_in};

/// Starts a server for each (address, port), `None` being ICMP echo, in the namespace that the task runs in.
pub(super) async fn start(
    wanted: Vec<(IpAddr, Option<(Protocol, u16)>)>,
    record: Record,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut servers = Vec::with_capacity(wanted.len());
    for (address, port) in wanted {
        let record = record.clone();
        servers.push(match port {
            None => tokio::spawn(icmp::watch(icmp::socket(address)?, address, record)),
            Some((Protocol::Tcp, port)) => {
                tokio::spawn(tcp(listener(SocketAddr::new(address, port))?, record))
            }
            Some((Protocol::Udp, port)) => {
                let socket = UdpSocket::bind(SocketAddr::new(address, port)).await?;
                tokio::spawn(udp(socket, address, record))
            }
            Some((Protocol::Sctp, _)) => continue,
        });
    }
    Ok(servers)
}

fn listener(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    // All probes of a port arrive at once.
    socket.listen(1024)
}

async fn tcp(listener: TcpListener, record: Record) {
    loop {
        // An error here is about one connection (or about too many files): the next may do.
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        tokio::spawn(answer_tcp(stream, peer, record.clone()));
    }
}

async fn answer_tcp(mut stream: TcpStream, peer: SocketAddr, record: Record) {
    let mut bytes = [0; PAYLOAD];
    if stream.read_exact(&mut bytes).await.is_err() {
        return;
    }
    if let (Some(number), Ok(local)) = (number_in(&bytes), stream.local_addr()) {
        record.write(number, Arrival { from: peer.ip(), to: local.ip() });
        // If it fails, the sender says so.
        let _ = stream.write_all(&bytes).await;
    }
}

async fn udp(socket: UdpSocket, own: IpAddr, record: Record) {
    let mut bytes = [0; PAYLOAD];
    loop {
        // An error is an ICMP message about an answer that nobody waited for.
        let Ok((length, peer)) = socket.recv_from(&mut bytes).await else { continue };
        if let Some(number) = number_in(&bytes[..length]) {
            record.write(number, Arrival { from: peer.ip(), to: own });
            let _ = socket.send_to(&bytes, peer).await;
        }
    }
}
