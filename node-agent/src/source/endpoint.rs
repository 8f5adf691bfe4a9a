//! Where a controller is.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tonic::transport;

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(5);

/// How often a connection is asked whether it lives, and how long it may take to answer.
const ALIVE: Duration = Duration::from_secs(10);

/// The address of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// In clear text, on this host.
    Loopback(SocketAddr),
}

/// Why an address is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Neither of those that there are.
    #[error("{0:?} is neither unix:PATH nor http://ADDRESS:PORT")]
    Text(String),
    /// TLS is asked for.
    #[error("this version speaks no TLS: give unix:PATH, or http:// with a loopback address")]
    Tls,
    /// Others could read along, and answer in the controller's place.
    #[error(
        "will not follow {0} in clear text: whoever is on the way could change this node's policy; give unix:PATH, or http:// with a \
         loopback address"
    )]
    Open(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Endpoint::Unix(path.into()));
        }
        if text.starts_with("https://") {
            return Err(EndpointError::Tls);
        }
        let address = text.strip_prefix("http://").and_then(|rest| rest.trim_end_matches('/').parse().ok());
        match address {
            Some(address) if SocketAddr::ip(&address).is_loopback() => Ok(Endpoint::Loopback(address)),
            Some(address) => Err(EndpointError::Open(address)),
            None => Err(EndpointError::Text(text.to_owned())),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Loopback(address) => write!(f, "http://{address}"),
        }
    }
}

impl Endpoint {
    /// A connection, once it is there.
    pub(crate) async fn connect(&self) -> Result<transport::Channel, transport::Error> {
        let endpoint = transport::Endpoint::from_shared(self.to_string())?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(ALIVE)
            .keep_alive_timeout(ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        endpoint.connect().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_could_change_on_the_way_is_not_followed() {
        for good in ["unix:/run/moat/controller.sock", "http://127.0.0.1:9471", "http://[::1]:9471"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        let refused = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert_eq!(refused("https://controller:9471"), EndpointError::Tls);
        assert!(matches!(refused("http://192.0.2.1:9471"), EndpointError::Open(_)));
        for bad in ["", "unix:", "unix:here", "http://controller:9471", "127.0.0.1:9471"] {
            assert!(matches!(refused(bad), EndpointError::Text(_)), "{bad}");
        }
    }
}
