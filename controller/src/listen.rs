//! Where agents are listened to.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use moat_daemon::socket::{self, BindError};
use rustls::ServerConfig;
use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

/// An address for agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket that nobody but its owner may connect to.
    Unix(PathBuf),
    /// An address and a port, with TLS or without ([`crate::entrance`]).
    Tcp(SocketAddr),
}

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listener {
    /// See [`Listen::Unix`].
    Unix(UnixListener),
    /// In clear text.
    Tcp(TcpListener),
    /// By TLS, as this says.
    Tls(TcpListener, Arc<ServerConfig>),
}

/// Why nobody is listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Neither of the two.
    #[error("{0:?} is neither unix:PATH nor ADDRESS:PORT")]
    Text(String),
    /// Another controller serves the socket.
    #[error("another controller is listening on {}; stop it first, or give this one another --listen", .0.display())]
    InUse(PathBuf),
    /// The kernel refuses.
    #[error("cannot listen on {0}")]
    Io(Listen, #[source] io::Error),
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Listen::Unix(path.into())),
            _ => text.parse().map(Listen::Tcp).map_err(|_| ListenError::Text(text.to_owned())),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Tcp(address) => address.fmt(f),
        }
    }
}

impl Listen {
    /// Listens, in place of a socket that a dead controller left there.
    pub async fn bind(&self) -> Result<Listener, ListenError> {
        let failed = |error| ListenError::Io(self.clone(), error);
        match self {
            Listen::Tcp(address) => {
                let listener = match TcpListener::bind(address).await {
                    Err(error) if let Some(other) = instead(*address, &error) => {
                        warn!("cannot listen on {address}: {error}; listening on {other}, for IPv4 alone");
                        TcpListener::bind(other).await
                    }
                    bound => bound,
                };
                listener.map(Listener::Tcp).map_err(failed)
            }
            Listen::Unix(path) => socket::bind(path).map(Listener::Unix).map_err(|error| match error {
                BindError::InUse => ListenError::InUse(path.clone()),
                BindError::Io(error) => failed(error),
            }),
        }
    }
}

/// Where to listen in place of all addresses of both families, on a kernel that has no IPv6.
fn instead(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let none = error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    let all = address.is_ipv6() && address.ip().is_unspecified();
    (none && all).then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_address_is_a_socket_or_a_port() {
        for good in ["unix:/run/moat/controller.sock", "127.0.0.1:9471", "[::]:9471"] {
            assert_eq!(good.parse::<Listen>().unwrap().to_string(), good);
        }
        for bad in ["", "unix:", "9471", "localhost:9471"] {
            assert!(matches!(bad.parse::<Listen>(), Err(ListenError::Text(_))), "{bad}");
        }
    }

    #[test]
    fn without_ipv6_all_addresses_are_those_of_ipv4() {
        let without = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        let instead = |address: &str, error| instead(address.parse().unwrap(), error);
        assert_eq!(instead("[::]:9471", &without), Some("0.0.0.0:9471".parse().unwrap()));
        for one in ["[::1]:9471", "[2001:db8::1]:9471", "0.0.0.0:9471"] {
            assert_eq!(instead(one, &without), None, "{one}");
        }
        let in_use = io::Error::from_raw_os_error(libc::EADDRINUSE);
        assert_eq!(instead("[::]:9471", &in_use), None);
    }

    #[tokio::test]
    async fn a_dead_controllers_socket_is_taken_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(dir.path().join("run/controller.sock"));
        let first = listen.bind().await.unwrap();
        assert!(matches!(listen.bind().await, Err(ListenError::InUse(_))));
        drop(first);
        listen.bind().await.unwrap();
        let mode = fs::metadata(dir.path().join("run/controller.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
