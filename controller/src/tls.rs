//! Connections of agents by TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::ResolvesServerCert;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::warn;

use crate::complaints::Complaints;
use crate::guests::{Connection, Guests};
use crate::metrics::Metrics;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long to wait when the kernel gives no connection, for want of descriptors mostly.
const BREATH: Duration = Duration::from_millis(50);

type Connections = ReceiverStream<io::Result<Connection<TlsStream<TcpStream>>>>;

/// TLS that shows whatever `shown` has when somebody connects.
pub(crate) fn config(shown: impl ResolvesServerCert + 'static) -> Result<Arc<ServerConfig>, rustls::Error> {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = config.with_no_client_auth().with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Who connects, once TLS is there. Ends when nobody takes them.
pub(crate) fn accept(listener: TcpListener, config: Arc<ServerConfig>, metrics: Arc<Metrics>) -> Connections {
    let acceptor = TlsAcceptor::from(config);
    let (ready, connections) = mpsc::channel(16);
    let guests = Guests::new();
    let complaints = Arc::new(Mutex::new(Complaints::default()));
    tokio::spawn(async move {
        while let Some(place) = guests.place().await {
            let accepted = tokio::select! {
                () = ready.closed() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!("cannot take a connection: {error}");
                    time::sleep(BREATH).await;
                    continue;
                }
            };
            let Some(visitor) = guests.take(place, peer) else {
                failed(&metrics, &complaints, peer, "too many connections from there have shown nothing yet");
                continue;
            };
            let (ready, acceptor) = (ready.clone(), acceptor.clone());
            let (metrics, complaints) = (metrics.clone(), complaints.clone());
            tokio::spawn(async move {
                match time::timeout(HANDSHAKE, handshake(&acceptor, stream)).await {
                    // Whoever would serve it has gone if it is not taken.
                    Ok(Ok(stream)) => drop(ready.send(Ok(Connection::new(stream, visitor))).await),
                    Ok(Err(error)) => failed(&metrics, &complaints, peer, &error.to_string()),
                    Err(_) => failed(&metrics, &complaints, peer, "it takes too long"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    acceptor.accept(stream).await
}

fn failed(metrics: &Metrics, complaints: &Mutex<Complaints>, peer: SocketAddr, why: &str) {
    metrics.handshakes_failed.inc();
    let mut complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(others) = complaints.say(peer.ip().to_canonical().to_string(), std::time::Instant::now()) {
        warn!(%peer, others, "no TLS with who connects: {why}");
    }
}
