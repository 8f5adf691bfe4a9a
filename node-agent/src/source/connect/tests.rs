//! Connections over real TLS, to a server that notes which token it is shown.

use std::path::Path;
use std::time::SystemTime;

use moat_api::wire::policies_client::PoliciesClient;
use moat_api::wire::policies_server::{Policies, PoliciesServer};
use moat_api::wire::{FromAgent, FromController};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::Streaming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::*;

const NAME: &str = "moat-controller.moat-system.svc";

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// What a server shows that has this name until then.
fn identity(ca: &Ca, name: &str, until: SystemTime) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.not_after = until.into();
    Identity::from_pem(params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

/// Answers every call by saying which token came with it.
struct Echo;

#[tonic::async_trait]
impl Policies for Echo {
    type FollowStream = ReceiverStream<Result<FromController, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<tonic::Response<Self::FollowStream>, Status> {
        let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        Err(Status::unauthenticated(token.unwrap_or_default()))
    }
}

async fn serve(identity: Identity, at: &str) -> Endpoint {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    let server = server.add_service(PoliciesServer::new(Echo));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Endpoint::from(address)
}

fn trust(dir: &Path) -> Trust {
    Trust { ca: Some(dir.join("ca.crt")), token: Some(dir.join("token")), name: NAME.to_owned() }
}

async fn shown(endpoint: &Endpoint, trust: &Trust) -> String {
    let connection = endpoint.connect(trust).await.unwrap();
    let mut client = PoliciesClient::new(connection);
    client.follow(tokio_stream::empty()).await.unwrap_err().message().to_owned()
}

async fn refused(endpoint: &Endpoint, trust: &Trust) -> ConnectError {
    endpoint.connect(trust).await.err().unwrap()
}

#[tokio::test]
async fn what_the_files_hold_counts_at_every_connection() {
    let dir = tempfile::tempdir().unwrap();
    let trust = trust(dir.path());
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let (old, new) = (ca(), ca());
    let before = serve(identity(&old, NAME, later()), "127.0.0.1:0").await;
    let after = serve(identity(&new, NAME, later()), "[::1]:0").await;

    write("ca.crt", &old.pem());
    write("token", "first\n");
    assert_eq!(shown(&before, &trust).await, "Bearer first");
    write("token", "second");
    assert_eq!(shown(&before, &trust).await, "Bearer second");

    let error = refused(&after, &trust).await;
    assert!(matches!(error, ConnectError::Signer(..)), "{error:?}");
    write("ca.crt", &format!("{}{}", new.pem(), old.pem()));
    assert_eq!(shown(&after, &trust).await, "Bearer second");
    assert_eq!(shown(&before, &trust).await, "Bearer second");
}

#[tokio::test]
async fn a_controller_that_cannot_be_one_is_shown_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let trust = trust(dir.path());
    let ca = ca();
    fs::write(dir.path().join("ca.crt"), ca.pem()).unwrap();
    fs::write(dir.path().join("token"), "mine").unwrap();

    let other = serve(identity(&ca, "kubernetes.default.svc", later()), "127.0.0.1:0").await;
    let error = refused(&other, &trust).await;
    assert!(matches!(&error, ConnectError::Name(_, name) if name == NAME), "{error:?}");

    let ended = SystemTime::now() - Duration::from_secs(60);
    let expired = serve(identity(&ca, NAME, ended), "127.0.0.1:0").await;
    let error = refused(&expired, &trust).await;
    assert!(matches!(error, ConnectError::Expired(_)), "{error:?}");

    let nobody = Endpoint::Tls { host: "127.0.0.1".to_owned(), port: 1 };
    let error = refused(&nobody, &trust).await;
    assert!(matches!(error, ConnectError::Transport(..)), "{error:?}");
}

#[tokio::test]
async fn files_that_are_of_no_use_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let trust = trust(dir.path());
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let ca = ca();
    let endpoint = serve(identity(&ca, NAME, later()), "127.0.0.1:0").await;

    write("token", "mine");
    assert!(matches!(refused(&endpoint, &trust).await, ConnectError::Ca(..)));
    for text in ["", "mine", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
        write("ca.crt", text);
        assert!(matches!(refused(&endpoint, &trust).await, ConnectError::NotPem(_)), "{text:?}");
    }
    write("ca.crt", &ca.pem());
    for text in ["", "\n", "two\nlines"] {
        write("token", text);
        assert!(matches!(refused(&endpoint, &trust).await, ConnectError::NoToken(_)), "{text:?}");
    }
    fs::remove_file(dir.path().join("token")).unwrap();
    assert!(matches!(refused(&endpoint, &trust).await, ConnectError::Token(..)));
    let nobodys = Trust { ca: None, ..trust.clone() };
    assert!(matches!(refused(&endpoint, &nobodys).await, ConnectError::NoCa(_)));
}
