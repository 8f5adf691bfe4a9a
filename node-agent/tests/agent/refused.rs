//! An agent that controllers refuse goes on asking, and is let in once its files are right: they are changed below it.

use std::net::{SocketAddr, TcpListener as StdListener};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Identity, Server as Grpc, ServerTlsConfig};
use tonic::{Request, Status};

use crate::level1::policies_server::PoliciesServer;
use crate::netns::{Namespace, in_world};
use crate::older::{Old, state};
use crate::packets::Server;
use crate::world::World;

const NAME: &str = "moat-controller.moat-system.svc";

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Serves by TLS whoever shows the token, until the test ends.
fn serve(node: &Namespace, ca: &Ca, old: Old, token: watch::Receiver<&'static str>) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([NAME.to_owned()]).unwrap().signed_by(&key, ca).unwrap();
    let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
    let listener = node.run(|| StdListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let check = move |request: Request<()>| {
                let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
                match shown.and_then(|shown| shown.strip_prefix("Bearer ")) == Some(*token.borrow()) {
                    true => Ok(request),
                    false => Err(Status::unauthenticated("this token is not taken")),
                }
            };
            let service = InterceptedService::new(PoliciesServer::new(old), check);
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            let mut server = Grpc::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
            server.add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
    });
    address
}

#[test]
fn an_agent_that_was_refused_is_let_in_when_its_files_are_right() {
    in_world(|| {
        let mut world = World::new();
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let (old, new) = (ca(), ca());
        write("ca.crt", &old.pem());
        write("token", "first");
        let (token, taken) = watch::channel("second");
        let (_answer, answers) = watch::channel(true);
        let (hang_up, ends) = watch::channel(());
        let told = Old { state: state(&world, &["web", "other", "api"]), answers, ends };
        let address = serve(&world.node, &new, told, taken);
        world.follows = Some(format!("https://{address}"));
        for (flag, file) in [("--controller-ca", "ca.crt"), ("--token-file", "token")] {
            let path: &'static str = folder.path().join(file).display().to_string().leak();
            world.flags.extend([flag, path]);
        }
        let says = |world: &World, what: &str| world.readyz().is_some_and(|ready| ready.body.contains(what));

        world.start();
        world.until("another CA is not believed", |world| says(world, "signed by none of the CAs"));
        write("ca.crt", &new.pem());
        world.until("the token is refused", |world| says(world, "this token is not taken"));
        write("token", "second");
        world.until("it is let in", |world| world.readyz().is_some_and(|ready| ready.status == 200));
        let (web, other, api) = (world.add("web"), world.add("other"), world.add("api"));
        let server = Server::start(&api);
        assert!(server.answers(&web) && !server.answers(&other));

        // The token ends while it is served: what it was told holds, and with the next it is let in again.
        token.send_replace("third");
        hang_up.send_replace(());
        world.until("it is refused", |world| says(world, "this token is not taken"));
        assert!(server.answers(&web) && !server.answers(&other));
        write("token", "third");
        world.until("it is let in again", |world| world.readyz().is_some_and(|ready| ready.status == 200));
        assert!(server.answers(&web) && !server.answers(&other));
    });
}
