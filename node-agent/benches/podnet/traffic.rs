//! What two pods send each other, and what it costs.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::SockRef;

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
/// Chunks that a new connection carries before it is measured: it has to be under way.
const FIRST_CHUNKS: u32 = 16;
/// How much a stream's ends hold. Left to itself the kernel lets a receiver's buffer grow up to 32 MB: more than caches and the queue
/// between the ends of a cable hold, and when it does so is chance.
const BUFFER: usize = 208 * 1024;

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

/// Two pods that have talked both ways, and where the one answers the other.
pub(crate) struct Flow {
    udp: (UdpSocket, UdpSocket),
    listener: TcpListener,
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
        // Who is accepted has the listener's.
        SockRef::from(&listener).set_recv_buffer_size(BUFFER).unwrap();
        Self { udp: (a, b), listener, chunks: (vec![0; CHUNK], vec![0; CHUNK]) }
    }

    /// Measures a slice of each kind, from this pod.
    pub(crate) fn measure(&mut self, client: &Pod) -> Slice {
        let to = self.listener.local_addr().unwrap();
        let asks = client.ns.run(move || TcpStream::connect(to).unwrap());
        SockRef::from(&asks).set_send_buffer_size(BUFFER).unwrap();
        let mut stream = Stream { ends: (asks, self.listener.accept().unwrap().0), chunks: &mut self.chunks };
        (0..FIRST_CHUNKS).for_each(|_| stream.chunk());
        Slice {
            stream: cost(CHUNKS, || stream.chunk()) / (CHUNK / 1024) as f64,
            speed: stream.speed(),
            packet: cost(PACKETS, || self.packet()),
            round_trip: cost(PACKETS / 2, || self.round_trip()),
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
}

/// A connection of one slice. What the kernel has learnt of a connection, how much may be under way above all, it keeps as long
/// as that lasts: one that lasted for a whole run would be faster or slower than another world's by chance, all the time.
struct Stream<'c> {
    ends: (TcpStream, TcpStream),
    chunks: &'c mut (Vec<u8>, Vec<u8>),
}

impl Stream<'_> {
    /// Sends and receives a chunk.
    fn chunk(&mut self) {
        let ((client, server), (data, buffer)) = (&mut self.ends, &mut *self.chunks);
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

    /// How fast it is with its ends on two processors.
    fn speed(&mut self) -> f64 {
        let ((client, server), (data, buffer)) = (&mut self.ends, &mut *self.chunks);
        let bytes = CHUNK as u64 * u64::from(FAST_CHUNKS);
        // It has to be under way already.
        client.write_all(data).unwrap();
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                stay_on(Seat::Writer);
                (0..FAST_CHUNKS).for_each(|_| client.write_all(data).unwrap());
            });
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

/// Where a thread is kept, in all worlds alike: where the scheduler puts it decides more about a stream's speed than any table.
#[derive(Clone, Copy)]
pub(crate) enum Seat {
    /// The first processor: whoever reads, and whoever does both.
    Reader,
    /// The last one.
    Writer,
}

/// Keeps the calling thread, and those that it makes, on a processor.
pub(crate) fn stay_on(seat: Seat) {
    static SEATS: OnceLock<[usize; 2]> = OnceLock::new();
    let [reader, writer] = *SEATS.get_or_init(|| {
        let allowed = sched_getaffinity(None).unwrap();
        let mut all = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let first = all.next().unwrap();
        [first, all.next_back().unwrap_or(first)]
    });
    let mut only = CpuSet::new();
    only.set(match seat {
        Seat::Reader => reader,
        Seat::Writer => writer,
    });
    sched_setaffinity(None, &only).unwrap();
}
