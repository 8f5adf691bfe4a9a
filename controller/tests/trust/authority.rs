//! The controllers' CA, kept by several of them in one API server.

use std::collections::BTreeSet;
use std::time::Duration;

use moat_controller::authority::Lifetimes;
use moat_controller::authority::keeper::Keeper;
use moat_controller::authority::leaf::Shown;
use moat_controller::entrance::Entrance;

use crate::agent::{Controller, entrance};
use crate::api_server::ApiServer;
use crate::until;

fn keeper(api: &ApiServer) -> Keeper {
    Keeper::new(api.client(), "moat-system", Lifetimes::default(), Shown::default())
}

#[tokio::test]
async fn replicas_that_begin_together_make_one_ca() {
    for _ in 0..20 {
        let api = ApiServer::default();
        let mut keepers = [keeper(&api), keeper(&api), keeper(&api)];
        let [one, two, three] = &mut keepers;
        let (one, two, three) = tokio::join!(one.turn(), two.turn(), three.turn());
        for done in [one, two, three] {
            done.unwrap();
        }
        assert_eq!(api.bundle(), api.secret("tls.crt").unwrap());
        assert_eq!(api.secret("next.crt"), None);
    }
}

#[tokio::test]
async fn nothing_is_done_by_a_clock_that_may_be_wrong() {
    let api = ApiServer::default();
    api.ahead(Duration::from_secs(3600));
    let why = keeper(&api).turn().await.unwrap_err();
    assert!(why.contains("nothing is done about the CA before they agree"), "{why}");
    assert_eq!((api.bundle(), api.secret("tls.crt")), (String::new(), None));
    api.ahead(Duration::ZERO);
    keeper(&api).turn().await.unwrap();
    assert!(api.secret("tls.crt").is_some());
}

#[tokio::test]
async fn agents_believe_both_replicas_while_the_ca_changes() {
    let api = ApiServer::default();
    let lifetimes = Lifetimes {
        ca: Duration::from_secs(12),
        settle: Duration::from_secs(1),
        leaf: Duration::from_secs(2),
    };
    let entrance = Entrance { lifetimes: lifetimes.check().unwrap(), ..entrance() };
    let replicas = [
        Controller::start(entrance.clone(), Some(api.client())).await,
        Controller::start(entrance, Some(api.client())).await,
    ];
    let mut signed = BTreeSet::new();
    until("two CAs have followed the first", async || {
        let bundle = api.bundle();
        for replica in &replicas {
            replica.connect(&bundle).await.unwrap();
        }
        assert!(bundle.matches("BEGIN CERTIFICATE").count() <= 3, "{bundle}");
        signed.insert(api.secret("tls.crt").unwrap());
        signed.len() == 3
    })
    .await;
    for replica in &replicas {
        assert_eq!(replica.number("tls_handshakes_failed_total"), 0);
    }
}

#[tokio::test]
async fn what_somebody_deletes_is_made_again() {
    let api = ApiServer::default();
    let lifetimes = Lifetimes {
        ca: Duration::from_secs(3600),
        settle: Duration::from_millis(400),
        leaf: Duration::from_secs(600),
    };
    let controller = Controller::start(Entrance { lifetimes, ..entrance() }, Some(api.client())).await;
    let first = api.bundle();
    controller.connect(&first).await.unwrap();
    api.lose();
    until("there is another CA, and who has it is believed", async || {
        !api.bundle().is_empty() && api.bundle() != first && controller.connect(&api.bundle()).await.is_ok()
    })
    .await;
}
