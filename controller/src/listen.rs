//! Where agents are listened to.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use moat_daemon::socket::{self, BindError};
use rustls::ServerConfig;
use tokio::net::{TcpListener, UnixListener};

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
            Listen::Tcp(address) => Ok(Listener::Tcp(TcpListener::bind(address).await.map_err(failed)?)),
            Listen::Unix(path) => socket::bind(path).map(Listener::Unix).map_err(|error| match error {
                BindError::InUse => ListenError::InUse(path.clone()),
                BindError::Io(error) => failed(error),
            }),
        }
    }
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
