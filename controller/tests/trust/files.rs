//! Certificates that somebody else makes.

use std::fs;

use moat_controller::authority::files::{Files, FilesError};
use moat_controller::authority::leaf::Shown;
use moat_controller::entrance::{Entrance, EntranceError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Controller, NAME, entrance};
use crate::until;

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, files: &Files) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([NAME.to_owned()]).unwrap();
        fs::write(&files.certificate, params.signed_by(&key, &self.0).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn another_certificate_is_shown_from_then_on_and_one_of_no_use_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key") };
    let entrance = Entrance { files: Some(files.clone()), insecure_any_agent: true, ..entrance() };
    let refused = entrance.prepare(None, Shown::default(), &CancellationToken::new()).await.err().unwrap();
    assert!(matches!(refused, EntranceError::Files(FilesError::Read(..))), "{refused}");

    let [old, new] = [Ca::new(), Ca::new()];
    old.sign(&files);
    let controller = Controller::start(entrance, None).await;
    let channel = controller.connect(&old.0.pem()).await.unwrap();
    let agent = Agent::follow(channel, "n1", None).await.unwrap();
    assert_eq!(agent.pods(), ["shop/web"]);

    fs::write(&files.certificate, "nothing").unwrap();
    controller.connect(&old.0.pem()).await.unwrap();
    new.sign(&files);
    until("the new one is shown", async || controller.connect(&new.0.pem()).await.is_ok()).await;
    controller.connect(&old.0.pem()).await.unwrap_err();
}
