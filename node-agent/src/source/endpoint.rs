//! Where a controller is.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a controller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// In clear text, on this host.
    Loopback(SocketAddr),
    /// By TLS.
    Tls {
        /// A name, an IPv4 address, or an IPv6 address without its brackets.
        host: String,
        /// The TCP port.
        port: u16,
    },
}

/// Why an address is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// None of those that there are.
    #[error("{0:?} is neither https://HOST:PORT, unix:PATH nor http://ADDRESS:PORT")]
    Text(String),
    /// Others could read along, and answer in the controller's place.
    #[error(
        "will not follow {0} in clear text: whoever is on the way could change this node's policy; give https://, unix:PATH, or http:// \
         with a loopback address"
    )]
    Open(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let none = || EndpointError::Text(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Endpoint::Unix(path.into()));
        }
        if let Some(rest) = text.strip_prefix("https://") {
            let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(none)?;
            let port = port.parse().map_err(|_| none())?;
            return Ok(Endpoint::Tls { host: host_of(host).ok_or_else(none)?, port });
        }
        let address = text.strip_prefix("http://").and_then(|rest| rest.trim_end_matches('/').parse().ok());
        match address {
            Some(address) if SocketAddr::ip(&address).is_loopback() => Ok(Endpoint::Loopback(address)),
            Some(address) => Err(EndpointError::Open(address)),
            None => Err(none()),
        }
    }
}

/// The host that stands in a URL as `text`. The kubelet's variable of a Service's address has no brackets, in which an IPv6 address
/// should stand; as there is always a port behind it, it is clear without them.
fn host_of(text: &str) -> Option<String> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some(address.to_string());
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().ok().map(|address| address.to_string());
    }
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    (!text.is_empty() && text.chars().all(letter)).then(|| text.to_owned())
}

impl From<SocketAddr> for Endpoint {
    /// The controller that serves TLS there.
    fn from(address: SocketAddr) -> Self {
        Endpoint::Tls { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Loopback(address) => write!(f, "http://{address}"),
            Endpoint::Tls { host, port } => match host.parse() {
                Ok(IpAddr::V6(host)) => write!(f, "https://[{host}]:{port}"),
                _ => write!(f, "https://{host}:{port}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_could_change_on_the_way_is_not_followed() {
        let good = [
            "unix:/run/moat/controller.sock",
            "http://127.0.0.1:9471",
            "http://[::1]:9471",
            "https://192.0.2.1:9471",
            "https://[2001:db8::1]:9471",
            "https://moat-controller.moat-system.svc:9471",
        ];
        for good in good {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        let bare: Endpoint = "https://2001:db8::1:9471".parse().unwrap();
        assert_eq!(bare.to_string(), "https://[2001:db8::1]:9471");
        let refused = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert!(matches!(refused("http://192.0.2.1:9471"), EndpointError::Open(_)));
        let bad = [
            "",
            "unix:",
            "unix:here",
            "http://controller:9471",
            "127.0.0.1:9471",
            "https://controller",
            "https://:9471",
            "https://2001:db8::1::9471",
            "https://[controller]:9471",
            "https://controller:9471/path",
            "https://me@controller:9471",
            "https://controller:94710",
        ];
        for bad in bad {
            assert!(matches!(refused(bad), EndpointError::Text(_)), "{bad}");
        }
    }

    #[test]
    fn a_replicas_address_is_one_of_tls() {
        for address in ["192.0.2.1:9471", "[2001:db8::1]:9471"] {
            let endpoint = Endpoint::from(address.parse::<SocketAddr>().unwrap());
            assert_eq!(endpoint.to_string(), format!("https://{address}"));
            assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
        }
    }
}
