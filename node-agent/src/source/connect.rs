//! Connecting to a controller: how it is known to be one, and how it is shown who asks.
//!
//! What that takes is read from files at every connection: certificates and tokens are changed below a running agent.

use std::error::Error as _;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{self, Certificate, Channel, ClientTlsConfig};
use tonic::{Request, Status};

use super::endpoint::Endpoint;

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(5);

/// How often a connection is asked whether it lives, and how long it may take to answer.
const ALIVE: Duration = Duration::from_secs(10);

/// What makes a controller one that is believed, and this agent one that is served. Of use for `https://` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The file of the CAs of which one must have signed the controller's certificate (PEM).
    pub ca: Option<PathBuf>,
    /// The file of the token that is shown to the controller.
    pub token: Option<PathBuf>,
    /// The name that the controller's certificate must be for, whatever its address.
    pub name: String,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing says which controllers are to be believed.
    #[error("{0} takes --controller-ca: without it anybody could be the controller")]
    NoCa(Endpoint),
    /// The CAs' file cannot be read.
    #[error("cannot read the controllers' CA in {} (a mounted ConfigMap is filled once a controller has run)", .0.display())]
    Ca(PathBuf, #[source] io::Error),
    /// The CAs' file holds something else.
    #[error("{} is to hold certificates as PEM, and holds none that can be read", .0.display())]
    NotPem(PathBuf),
    /// The token's file cannot be read.
    #[error("cannot read the token in {}", .0.display())]
    Token(PathBuf, #[source] io::Error),
    /// The token's file holds something else.
    #[error("{} is to hold a token, and holds nothing or what no token has in it", .0.display())]
    NoToken(PathBuf),
    /// The controller's certificate is another's.
    #[error("who answers at {0} has no certificate for {1}")]
    Name(Endpoint, String),
    /// The controller's certificate is not valid now.
    #[error(
        "the certificate of the controller at {0} is expired or not valid yet; compare this node's clock with the controller's"
    )]
    Expired(Endpoint),
    /// The controller's certificate is of another CA.
    #[error("the certificate of the controller at {} is signed by none of the CAs in {}", .0, .1.display())]
    Signer(Endpoint, PathBuf),
    /// It does not come to that.
    #[error("cannot connect to the controller at {0}")]
    Transport(Endpoint, #[source] transport::Error),
}

/// A connection on which every call shows the token.
pub(crate) type Connection = InterceptedService<Channel, Shown>;

/// What is shown with each call.
#[derive(Clone, Debug)]
pub(crate) struct Shown(Option<MetadataValue<Ascii>>);

impl Interceptor for Shown {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Endpoint {
    /// A connection, once it is there.
    pub(crate) async fn connect(&self, trust: &Trust) -> Result<Connection, ConnectError> {
        let failed = |error| ConnectError::Transport(self.clone(), error);
        let mut endpoint = transport::Endpoint::from_shared(self.to_string())
            .map_err(failed)?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(ALIVE)
            .keep_alive_timeout(ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        // Only who has shown a certificate is shown a token.
        let mut shown = Shown(None);
        if matches!(self, Endpoint::Tls { .. }) {
            let ca = trust.ca.as_ref().ok_or_else(|| ConnectError::NoCa(self.clone()))?;
            shown = Shown(trust.token.as_ref().map(bearer).transpose()?);
            let tls = ClientTlsConfig::new()
                .domain_name(&trust.name)
                .ca_certificate(Certificate::from_pem(bundle(ca)?))
                .timeout(CONNECT);
            endpoint = endpoint.tls_config(tls).map_err(failed)?;
        }
        let channel = endpoint.connect().await.map_err(|error| self.explain(trust, error))?;
        Ok(InterceptedService::new(channel, shown))
    }

    /// Says what is wrong with a certificate, if that is what it is.
    fn explain(&self, trust: &Trust, error: transport::Error) -> ConnectError {
        let at = self.clone();
        match (certificate_error(&error), &trust.ca) {
            (
                Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
                _,
            ) => ConnectError::Name(at, trust.name.clone()),
            (
                Some(
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. },
                ),
                _,
            ) => ConnectError::Expired(at),
            (Some(CertificateError::UnknownIssuer | CertificateError::BadSignature), Some(ca)) => {
                ConnectError::Signer(at, ca.clone())
            }
            _ => ConnectError::Transport(at, error),
        }
    }
}

fn bundle(path: &PathBuf) -> Result<Vec<u8>, ConnectError> {
    let text = fs::read(path).map_err(|error| ConnectError::Ca(path.clone(), error))?;
    let mut certificates = CertificateDer::pem_slice_iter(&text);
    let one = certificates.next().is_some_and(|first| first.is_ok());
    match one && certificates.all(|further| further.is_ok()) {
        true => Ok(text),
        false => Err(ConnectError::NotPem(path.clone())),
    }
}

fn bearer(path: &PathBuf) -> Result<MetadataValue<Ascii>, ConnectError> {
    let text = fs::read_to_string(path).map_err(|error| ConnectError::Token(path.clone(), error))?;
    let token = text.trim();
    let none = || ConnectError::NoToken(path.clone());
    if token.is_empty() {
        return Err(none());
    }
    let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| none())?;
    // Kept out of logs, and of what compression would let others guess.
    value.set_sensitive(true);
    Ok(value)
}

/// What is wrong with the certificate, from below the layers that wrap it.
fn certificate_error(error: &transport::Error) -> Option<CertificateError> {
    let mut next = error.source();
    while let Some(error) = next {
        // An io::Error leaves out of the chain what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = wrapped
            .and_then(|wrapped| wrapped.downcast_ref::<rustls::Error>())
            .or_else(|| error.downcast_ref());
        if let Some(rustls::Error::InvalidCertificate(why)) = found {
            return Some(why.clone());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests;
