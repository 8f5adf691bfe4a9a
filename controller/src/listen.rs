//! Where agents are listened to, and who may be there.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use moat_daemon::socket::{self, BindError};
use tokio::net::{TcpListener, UnixListener};

/// An address for agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket that nobody but its owner may connect to.
    Unix(PathBuf),
    /// In clear text.
    Tcp(SocketAddr),
}

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listener {
    /// See [`Listen::Unix`].
    Unix(UnixListener),
    /// See [`Listen::Tcp`].
    Tcp(TcpListener),
}

/// Why nobody is listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Neither of the two.
    #[error("{0:?} is neither unix:PATH nor ADDRESS:PORT")]
    Text(String),
    /// Anybody could read along, and ask in any node's name.
    #[error(
        "will not listen on {0}: there is no TLS and no check of who asks, so everybody who reaches it could read every node's policy \
         and speak for every node; give unix:PATH or a loopback address, or --insecure-plaintext if nobody else can reach it"
    )]
    Open(SocketAddr),
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
    /// Refuses an address that others than this host's processes can reach, unless `insecure`.
    pub fn check(&self, insecure: bool) -> Result<(), ListenError> {
        match self {
            Listen::Tcp(address) if !address.ip().is_loopback() && !insecure => {
                Err(ListenError::Open(*address))
            }
            _ => Ok(()),
        }
    }

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
    fn clear_text_is_for_this_host_alone() {
        let check = |text: &str, insecure| text.parse::<Listen>().and_then(|listen| listen.check(insecure));
        for good in ["unix:/run/moat/controller.sock", "127.0.0.1:9470", "[::1]:9470"] {
            check(good, false).unwrap();
        }
        for open in ["0.0.0.0:9470", "[::]:9470", "192.0.2.1:9470"] {
            assert!(matches!(check(open, false), Err(ListenError::Open(_))), "{open}");
            check(open, true).unwrap();
        }
        for bad in ["", "unix:", "9470", "localhost:9470"] {
            assert!(matches!(check(bad, true), Err(ListenError::Text(_))), "{bad}");
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
