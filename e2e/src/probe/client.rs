//! Who asks, over TCP and UDP: sends a number from a given address and waits for it to come back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Answer, PAYLOAD, number_in, payload};

pub(super) async fn tcp(from: IpAddr, to: IpAddr, port: u16, number: u64, wait: Duration) -> Answer {
    let talk = async {
        let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        first_free(from, number, |at| socket.bind(at))?;
        let mut stream = socket.connect(SocketAddr::new(to, port)).await?;
        stream.write_all(&payload(number)).await?;
        let mut back = [0; PAYLOAD];
        stream.read_exact(&mut back).await?;
        Ok(number_in(&back) == Some(number))
    };
    answer(timeout(wait, talk).await)
}

pub(super) async fn udp(from: IpAddr, to: IpAddr, port: u16, number: u64, wait: Duration) -> Answer {
    let talk = async {
        let socket = first_free(from, number, std::net::UdpSocket::bind)?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        socket.connect(SocketAddr::new(to, port)).await?;
        exchange(&socket, &payload(number), wait, |back| number_in(back) == Some(number)).await
    };
    answer(timeout(wait, talk).await)
}

/// Binds to a source port that follows from the probe's number. The kernel's own choice could be one that an earlier probe had, and then
/// the packet would belong to that probe's flow, which conntrack remembers for minutes.
fn first_free<T>(from: IpAddr, number: u64, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    const FIRST: u16 = 10_000;
    const PORTS: u64 = 50_000;
    let mut numbers = number..;
    loop {
        let offset = numbers.next().map_or(0, |n| n % PORTS);
        // Below 50,000.
        let port = FIRST + offset as u16;
        match bind(SocketAddr::new(from, port)) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && numbers.start - number < PORTS => {}
            result => return result,
        }
    }
}

/// Sends at once and again at half time (datagrams have nobody who would do it for us), and reads until the answer is there.
pub(super) async fn exchange(
    socket: &UdpSocket,
    message: &[u8],
    wait: Duration,
    is_answer: impl Fn(&[u8]) -> bool,
) -> io::Result<bool> {
    let mut bytes = [0; 256];
    let half_time = Instant::now() + wait / 2;
    let mut sent_again = false;
    socket.send(message).await?;
    loop {
        tokio::select! {
            biased;
            received = socket.recv(&mut bytes) => {
                if is_answer(&bytes[..received?]) {
                    return Ok(true);
                }
            }
            () = sleep_until(half_time), if !sent_again => {
                sent_again = true;
                socket.send(message).await?;
            }
        }
    }
}

/// What a wait came to.
pub(super) fn answer(result: Result<io::Result<bool>, tokio::time::error::Elapsed>) -> Answer {
    match result {
        Err(_elapsed) => Answer::Silence,
        Ok(Ok(true)) => Answer::Came,
        Ok(Ok(false)) => Answer::Error("answered with something else".into()),
        Ok(Err(error)) => Answer::Error(error.to_string()),
    }
}
