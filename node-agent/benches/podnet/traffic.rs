//! What two pods send each other, and what it costs.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::world::Pod;
use crate::world::interrupted::uninterrupted;

const PORT: u16 = 80;
/// Small packets in a slice, and their length.
const PACKETS: u32 = 150;
const SMALL: usize = 64;
/// What is written to a stream at once: as much as the largest packet that the kernel makes.
const CHUNK: usize = 64 * 1024;
/// Chunks of a slice whose CPU time counts, and of one whose speed does.
const CHUNKS: u32 = 32;
const FAST_CHUNKS: u32 = 96;

/// What a slice is: nanoseconds, each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    /// Of wall time, of a stream's KiB.
    pub(crate) speed: f64,
    /// Of CPU time, of a stream's KiB.
    pub(crate) stream: f64,
    /// Of CPU time, of a packet.
    pub(crate) packet: f64,
    /// Of CPU time, of a packet and its answer.
    pub(crate) round_trip: f64,
}

/// Two pods that have talked both ways, by UDP and by TCP.
pub(crate) struct Flow {
    udp: (UdpSocket, UdpSocket),
    tcp: (TcpStream, TcpStream),
    /// What is written to the stream, and where it is read to.
    chunks: (Vec<u8>, Vec<u8>),
}

impl Flow {
    /// Waits until the two pods reach each other.
    pub(crate) fn open(client: &Pod, server: &Pod, ipv4: bool) -> Self {
        let of = |pod: &Pod| *pod.addresses.iter().find(|address| address.is_ipv4() == ipv4).unwrap();
        let (from, to) = (of(client), of(server));
        // A port for each pair of pods, which is the server's own.
        let port = PORT + u16::from(server.id.as_bytes()[0]);
        let bound = |pod: &Pod, address: IpAddr| {
            pod.ns.run(move || UdpSocket::bind(SocketAddr::new(address, port)).unwrap())
        };
        let (a, b) = (bound(client, from), bound(server, to));
        a.connect((to, port)).unwrap();
        b.connect((from, port)).unwrap();
        let mut buffer = [0; SMALL];
        b.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // Policy may not be in force yet.
        let arrives = |_| a.send(&buffer).is_ok() && uninterrupted(|| b.recv(&mut [0; SMALL])).is_ok();
        assert!((0..300).any(arrives), "nothing gets from {from} to {to}");
        for socket in [&a, &b] {
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        b.send(&buffer).unwrap();
        uninterrupted(|| a.recv(&mut buffer)).unwrap();
        let listener = server.ns.run(move || TcpListener::bind(SocketAddr::new(to, port)).unwrap());
        let tcp = client.ns.run(move || TcpStream::connect(SocketAddr::new(to, port)).unwrap());
        let tcp = (tcp, listener.accept().unwrap().0);
        Self { udp: (a, b), tcp, chunks: (vec![0; CHUNK], vec![0; CHUNK]) }
    }

    /// Measures a slice of each kind.
    pub(crate) fn measure(&mut self) -> Slice {
        Slice {
            packet: cost(PACKETS, || self.packet()),
            round_trip: cost(PACKETS / 2, || self.round_trip()),
            stream: cost(CHUNKS, || self.chunk()) / (CHUNK / 1024) as f64,
            speed: self.speed(),
        }
    }

    fn packet(&mut self) {
        let (client, server) = &self.udp;
        client.send(&[0; SMALL]).unwrap();
        uninterrupted(|| server.recv(&mut [0; SMALL])).unwrap();
    }

    fn round_trip(&mut self) {
        self.packet();
        let (client, server) = &self.udp;
        server.send(&[0; SMALL]).unwrap();
        uninterrupted(|| client.recv(&mut [0; SMALL])).unwrap();
    }

    /// Sends and receives a chunk.
    fn chunk(&mut self) {
        let ((client, server), (data, buffer)) = (&mut self.tcp, &mut self.chunks);
        let mut sent = 0;
        client.set_nonblocking(true).unwrap();
        while sent < CHUNK {
            // What there is no room for goes when the other end has taken something.
            let now = match client.write(&data[sent..]) {
                Ok(now) => now,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
                Err(error) => panic!("a stream broke: {error}"),
            };
            server.read_exact(&mut buffer[..now]).unwrap();
            sent += now;
        }
        client.set_nonblocking(false).unwrap();
    }

    /// How fast a stream is whose ends are two threads.
    fn speed(&mut self) -> f64 {
        let ((client, server), (data, buffer)) = (&mut self.tcp, &mut self.chunks);
        let bytes = CHUNK as u64 * u64::from(FAST_CHUNKS);
        // It has to be under way already.
        client.write_all(data).unwrap();
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| (0..FAST_CHUNKS).for_each(|_| client.write_all(data).unwrap()));
            let mut left = bytes as usize + CHUNK;
            while left > 0 {
                left -= server.read(&mut buffer[..CHUNK.min(left)]).unwrap();
            }
        });
        begin.elapsed().as_secs_f64() * 1e9 / (bytes / 1024) as f64
    }
}

/// The CPU time of one of so many, in nanoseconds.
fn cost(count: u32, mut one: impl FnMut()) -> f64 {
    // What other slices have driven out of the caches comes back uncounted.
    (0..count / 8).for_each(|_| one());
    let begin = cpu_time();
    (0..count).for_each(|_| one());
    (cpu_time() - begin).as_secs_f64() * 1e9 / f64::from(count)
}

/// The CPU time of this thread so far, and of the kernel on its behalf.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}
