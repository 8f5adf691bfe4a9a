//! Sockets that write and read whole frames, and those that see what a node's stack lets in.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockaddrLike as _, recvfrom, sendto};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::cast::Place;
use super::frame::{self, Mac};
use super::sight;

/// `ETH_P_ALL`, in the order of the wire.
const EVERYTHING: i32 = (0x0003_u16.to_be()) as i32;
/// `PACKET_OUTGOING`: the namespace's own frames are seen, too.
const OUTGOING: u8 = 4;
/// Large enough for a burst. Where the limit is lower, that is used.
const BUFFER: usize = 4 << 20;

/// What has been seen where.
#[derive(Clone, Default, Debug)]
pub(super) struct Sights(Arc<Seen>);

#[derive(Default, Debug)]
struct Seen {
    /// What comes is thrown away.
    away: AtomicBool,
    all: Mutex<BTreeSet<(u64, Place)>>,
    more: Notify,
}

impl Sights {
    fn add(&self, number: u64, place: Place) {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner).insert((number, place));
        self.0.more.notify_waiters();
    }

    /// Where this number was seen.
    pub(super) fn of(&self, number: u64) -> BTreeSet<Place> {
        let all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(n, _)| *n == number).map(|(_, place)| *place).collect()
    }

    /// Looks away, or at what comes again: nobody has to look at each of a million frames.
    pub(super) fn look_away(&self, away: bool) {
        self.0.away.store(away, Ordering::SeqCst);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Waits until this number is seen there; whether it was in time.
    pub(super) async fn wait(&self, number: u64, place: Place, patience: Duration) -> bool {
        let look = async {
            loop {
                let more = self.0.more.notified();
                if self.of(number).contains(&place) {
                    return;
                }
                more.await;
            }
        };
        timeout(patience, look).await.is_ok()
    }
}

/// A link of the calling thread's namespace, and its hardware address.
pub(super) fn link(name: &str) -> io::Result<(LinkAddr, Mac)> {
    let all = nix::ifaddrs::getifaddrs()?;
    let mut own = all.filter(|a| a.interface_name == name).filter_map(|a| a.address);
    let found = own.find_map(|a| {
        let link = a.as_link_addr()?;
        Some((*link, link.addr()?))
    });
    found.ok_or_else(|| io::Error::other(format!("no link {name} with a hardware address")))
}

/// Writes frames to a link.
#[derive(Debug)]
pub(super) struct Writer {
    socket: Socket,
    link: LinkAddr,
}

impl Writer {
    /// For a link of the calling thread's namespace.
    pub(super) fn open(link: LinkAddr) -> io::Result<Self> {
        // Of no protocol: it receives nothing.
        Ok(Self { socket: Socket::new(Domain::PACKET, Type::RAW, None)?, link })
    }

    /// Sends each of these.
    pub(super) fn send(&self, frames: &[Vec<u8>]) -> io::Result<()> {
        for frame in frames {
            sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty())?;
        }
        Ok(())
    }
}

/// A socket that is read by a task of its own, and by whoever wants to know at once.
pub(super) struct Watch {
    socket: UdpSocket,
    look: Box<Look>,
    sights: Sights,
    bytes: Mutex<Vec<u8>>,
}

/// Whose something is, and where it was seen.
type Look = dyn Fn(&[u8], Option<LinkAddr>) -> Option<(u64, Place)> + Send + Sync;

impl Watch {
    /// Watches the links of the namespace that the task runs in: `place_of` says where a frame is that comes in by the link of
    /// that number.
    pub(super) fn links(
        place_of: impl Fn(usize) -> Option<Place> + Send + Sync + 'static,
        sights: &Sights,
    ) -> io::Result<Arc<Self>> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING)))?;
        let look = move |bytes: &[u8], from: Option<LinkAddr>| {
            let from = from.filter(|link| link.family() == Some(AddressFamily::Packet))?;
            let place = Some(from).filter(|link| link.pkttype() != OUTGOING);
            Some((sight::of_frame(bytes)?, place.and_then(|link| place_of(link.ifindex()))?))
        };
        Self::start(socket, Box::new(look), sights)
    }

    /// Watches what the stack of the namespace that the task runs in delivers, for all protocols that rows use.
    pub(super) fn stack(place: Place, sights: &Sights) -> io::Result<Vec<Arc<Self>>> {
        use frame::{ESP, GRE, ICMP, ICMP6, IP6_IN_IP, IPIP, SCTP, TCP, UDP};
        let both = [TCP, UDP, IPIP, IP6_IN_IP, GRE, ESP, SCTP, UNKNOWN];
        let v4 = both.into_iter().chain([ICMP]).map(|p| (Domain::IPV4, p));
        let v6 = both.into_iter().chain([ICMP6]).map(|p| (Domain::IPV6, p));
        let watches = v4.chain(v6).map(|(domain, protocol)| {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
            let is_v4 = domain == Domain::IPV4;
            let look = move |bytes: &[u8], _: Option<LinkAddr>| {
                Some((sight::of_datagram(bytes, is_v4, protocol)?, place))
            };
            Self::start(socket, Box::new(look), sights)
        });
        watches.collect()
    }

    fn start(socket: Socket, look: Box<Look>, sights: &Sights) -> io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        let _ = socket.set_recv_buffer_size(BUFFER);
        // The async runtime knows datagrams by its UDP type, which does nothing to a socket that is not true of every one of
        // them.
        let socket = UdpSocket::from_std(socket.into())?;
        let own = Arc::new(Self { socket, look, sights: sights.clone(), bytes: Mutex::new(vec![0; 65536]) });
        let theirs = Arc::downgrade(&own);
        tokio::spawn(async move {
            while let Some(watch) = theirs.upgrade() {
                // Now and then it looks whether it is still wanted.
                let readable = timeout(Duration::from_millis(100), watch.socket.readable()).await;
                if readable.is_ok_and(|ready| ready.is_ok()) {
                    let _ = watch.socket.try_io(Interest::READABLE, || watch.read());
                }
            }
        });
        Ok(own)
    }

    /// Reads everything that has come so far. When it returns, all of that is among the sights, whoever has read it.
    pub(super) fn catch_up(&self) {
        // What it ends with: there is no more.
        let _ = self.read();
    }

    fn read(&self) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (length, from) = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut bytes)?;
            if self.sights.0.away.load(Ordering::Relaxed) {
                continue;
            }
            if let Some((number, place)) = (self.look)(&bytes[..length], from) {
                self.sights.add(number, place);
            }
        }
    }
}

/// A protocol that nobody has (RFC 3692).
pub(super) const UNKNOWN: u8 = 253;

/// Sends a datagram by an ordinary socket.
pub(super) fn send_datagram(to: (IpAddr, u16), payload: &[u8]) -> io::Result<()> {
    let any: IpAddr = if to.0.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    // Not connected: the kernel then leaves identification and flow label at zero or anywhere, but not where rows count.
    std::net::UdpSocket::bind((any, 0))?.send_to(payload, to).map(drop)
}
