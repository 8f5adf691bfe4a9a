//! Connections of those who have shown nothing yet: few of one address, not too many in all, and none for long.
//!
//! ```text
//!   accepted ─▶ guest ── TLS, a token, Hello ──▶ served, for as long as it likes
//!                 └── too many, or too slow ──▶ closed
//! ```
//!
//! Whoever reaches the port can open connections, and each costs memory and a descriptor before anybody knows whose it is.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::transport::server::Connected;

/// How many guests there may be at once, and how many of them from one address: more than a node's agent ever needs.
const AT_ONCE: usize = 1024;
const OF_ONE: usize = 64;

/// How long one may stay without being served: for TLS, for what the API server takes to look at a token, and for Hello.
const STAY: Duration = Duration::from_secs(20);

/// All guests.
#[derive(Clone)]
pub(crate) struct Guests {
    places: Arc<Semaphore>,
    of_one: Arc<Mutex<HashMap<IpAddr, usize>>>,
    stay: Duration,
}

impl Guests {
    pub(crate) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), of_one: Arc::default(), stay: STAY }
    }

    /// A place, once there is one.
    pub(crate) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// Who comes from there takes it; `None`: there are too many from there.
    pub(crate) fn take(&self, place: OwnedSemaphorePermit, peer: SocketAddr) -> Option<Visitor> {
        let address = peer.ip().to_canonical();
        let mut of_one = lock(&self.of_one);
        let taken = of_one.entry(address).or_default();
        if *taken >= OF_ONE {
            return None;
        }
        *taken += 1;
        let place = Place { _place: place, address, of_one: self.of_one.clone() };
        let stay = self.stay;
        let visit = Visit { served: 0, place: Some(place), until: Instant::now() + stay };
        Some(Visitor { address, stay, visit: Arc::new(Mutex::new(visit)) })
    }
}

/// One of the places for guests.
struct Place {
    _place: OwnedSemaphorePermit,
    address: IpAddr,
    of_one: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of_one = lock(&self.of_one);
        let left = of_one.get_mut(&self.address).map_or(0, |taken| {
            *taken -= 1;
            *taken
        });
        if left == 0 {
            of_one.remove(&self.address);
        }
    }
}

/// Who is at the other end of a connection: comes with each of its requests.
#[derive(Clone)]
pub(crate) struct Visitor {
    /// Where it connects from.
    pub(crate) address: IpAddr,
    stay: Duration,
    visit: Arc<Mutex<Visit>>,
}

struct Visit {
    /// Its streams that are served.
    served: usize,
    /// While it never was.
    place: Option<Place>,
    /// How long it may stay where it is not.
    until: Instant,
}

impl Visitor {
    /// It has shown who it is, and is served until this is dropped.
    pub(crate) fn serve(self) -> Served {
        let mut visit = lock(&self.visit);
        visit.served += 1;
        visit.place = None;
        drop(visit);
        Served(self)
    }

    /// How long the connection may last, as it stands.
    fn until(&self) -> Option<Instant> {
        let visit = lock(&self.visit);
        (visit.served == 0).then_some(visit.until)
    }
}

/// A stream that is served.
pub(crate) struct Served(Visitor);

impl Drop for Served {
    fn drop(&mut self) {
        let mut visit = lock(&self.0.visit);
        visit.served -= 1;
        visit.until = Instant::now() + self.0.stay;
    }
}

/// A connection that ends when its visitor has been there for long enough without being served.
pub(crate) struct Connection<S> {
    stream: S,
    visitor: Visitor,
    ends: Pin<Box<Sleep>>,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, visitor: Visitor) -> Self {
        let ends = Box::pin(sleep_until(visitor.until().unwrap_or_else(Instant::now)));
        Self { stream, visitor, ends }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Visitor;

    fn connect_info(&self) -> Visitor {
        self.visitor.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Whoever is served is asked now and then whether it lives, so this is looked at again also where its last stream ends.
        if let Some(until) = self.visitor.until() {
            if self.ends.deadline() != until {
                self.ends.as_mut().reset(until);
            }
            if self.ends.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn guest(guests: &Guests, peer: &str) -> Option<Visitor> {
        let place = guests.place().await.unwrap();
        guests.take(place, format!("{peer}:1").parse().unwrap())
    }

    #[tokio::test]
    async fn one_address_takes_few_places_and_gives_them_back() {
        let guests = Guests::new();
        let mut there = Vec::new();
        while let Some(visitor) = guest(&guests, "192.0.2.1").await {
            there.push(visitor);
        }
        assert_eq!((there.len(), guests.places.available_permits()), (OF_ONE, AT_ONCE - OF_ONE));
        let other = guest(&guests, "192.0.2.2").await.unwrap();
        // Who is served is no guest any more, and who has gone is none either.
        let served = there.pop().unwrap().serve();
        let another = guest(&guests, "192.0.2.1").await.unwrap();
        assert!(guest(&guests, "192.0.2.1").await.is_none());
        drop((there, other, another, served));
        assert_eq!(guests.places.available_permits(), AT_ONCE);
        assert!(lock(&guests.of_one).is_empty());
    }

    #[tokio::test]
    async fn a_connection_lasts_while_it_is_served_and_else_not_long() {
        let stay = Duration::from_millis(50);
        let guests = Guests { stay, ..Guests::new() };
        let visitor = guest(&guests, "192.0.2.1").await.unwrap();
        let (stream, _other) = tokio::io::duplex(64);
        let mut connection = Connection::new(stream, visitor.clone());
        let served = visitor.clone().serve();
        let read = tokio::time::timeout(4 * stay, connection.read_u8()).await;
        assert!(read.is_err(), "nobody ends it");
        let begin = Instant::now();
        drop(served);
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() >= stay);
    }
}
