//! Tokens decide which node an agent speaks for.

use std::time::{Duration, SystemTime};

use tonic::Code;

use crate::agent::{Agent, Controller, entrance};
use crate::api_server::{ApiServer, USER, token};
use crate::until;

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

/// A good token of this node.
fn of(api: &ApiServer, node: &str) -> String {
    let token = token(USER, "moat-controller", later(), node);
    api.allot(&token, Some(node));
    token
}

fn holds(octets: &[u8], text: &[u8]) -> bool {
    octets.windows(text.len()).any(|window| window == text)
}

#[tokio::test]
async fn a_node_is_shown_its_own_pods_and_no_others() {
    let api = ApiServer::default();
    let controller = Controller::start(entrance(), Some(api.client())).await;
    let bundle = api.bundle();
    let agents = async |node: &'static str| {
        let channel = controller.connect(&bundle).await.unwrap();
        Agent::follow(channel, node, Some(&of(&api, node))).await.unwrap()
    };
    let (one, two) = (agents("n1").await, agents("n2").await);
    assert_eq!((one.pods(), two.pods()), (vec!["shop/web".to_owned()], vec!["shop/db".to_owned()]));
    // Neither the other's pod nor what its policy allows.
    let allowed = [198, 51, 100, 7, 32];
    assert!(holds(&one.octets(), b"web") && !holds(&one.octets(), b"db") && !holds(&one.octets(), &allowed));
    assert!(holds(&two.octets(), b"db") && !holds(&two.octets(), b"web") && holds(&two.octets(), &allowed));
}

#[tokio::test]
async fn who_shows_no_good_token_of_the_node_is_refused_and_counted() {
    let api = ApiServer::default();
    let controller = Controller::start(entrance(), Some(api.client())).await;
    let bundle = api.bundle();
    let yesterday = SystemTime::now() - Duration::from_secs(3600);
    let theirs = of(&api, "n2");
    let made_up = token(USER, "moat-controller", later(), "made up");
    let expired = token(USER, "moat-controller", yesterday, "expired");
    let others = token("system:serviceaccount:shop:default", "moat-controller", later(), "");
    let elsewhere = token(USER, "https://kubernetes.default.svc", later(), "");
    let table = [
        ("no_token", None, Code::Unauthenticated),
        ("malformed", Some("mine"), Code::Unauthenticated),
        ("bad", Some(&*made_up), Code::Unauthenticated),
        ("expired", Some(&*expired), Code::Unauthenticated),
        ("account", Some(&*others), Code::PermissionDenied),
        ("audience", Some(&*elsewhere), Code::Unauthenticated),
        ("other_node", Some(&*theirs), Code::PermissionDenied),
    ];
    for (reason, shown, code) in table {
        assert_eq!(controller.refused(reason), 0, "{reason}");
        let channel = controller.connect(&bundle).await.unwrap();
        let status = Agent::follow(channel, "n1", shown).await.err().unwrap();
        assert_eq!(status.code(), code, "{reason}: {status}");
        assert_eq!(controller.refused(reason), 1, "{reason}");
    }
    assert_eq!(controller.number("agents"), 0);
}

#[tokio::test]
async fn what_is_no_tls_of_the_controllers_is_no_connection() {
    let api = ApiServer::default();
    let controller = Controller::start(entrance(), Some(api.client())).await;
    let other = ApiServer::default();
    let _other = Controller::start(entrance(), Some(other.client())).await;
    controller.connect(&other.bundle()).await.unwrap_err();
    until("a failed handshake is counted", async || controller.number("tls_handshakes_failed_total") == 1)
        .await;
}

#[tokio::test]
async fn an_api_server_that_is_away_ends_no_stream_and_lets_in_whom_it_has_known() {
    let api = ApiServer::default();
    let entrance =
        moat_controller::entrance::Entrance { token_recheck: Duration::from_millis(50), ..entrance() };
    let controller = Controller::start(entrance, Some(api.client())).await;
    let bundle = api.bundle();
    let (mine, others) = (of(&api, "n1"), of(&api, "n2"));
    let channel = controller.connect(&bundle).await.unwrap();
    let agent = Agent::follow(channel.clone(), "n1", Some(&mine)).await.unwrap();
    let asked = api.reviews();
    until("the token is looked at again", async || api.reviews() >= asked + 2).await;

    api.away(true);
    let unknown = Agent::follow(channel.clone(), "n2", Some(&others)).await.err().unwrap();
    assert_eq!(unknown.code(), Code::Unavailable, "{unknown}");
    assert_eq!(controller.refused("api_server"), 1);
    drop(agent);
    let agent = Agent::follow(channel.clone(), "n1", Some(&mine)).await.unwrap();

    api.away(false);
    Agent::follow(channel.clone(), "n2", Some(&others)).await.unwrap();
    // The pod is gone, and its token with it.
    api.allot(&mine, None);
    let end = agent.end().await;
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");
    assert_eq!(controller.refused("bad"), 1);
}

#[tokio::test]
async fn agents_that_come_back_are_not_asked_about_each_time() {
    let api = ApiServer::default();
    let controller = Controller::start(entrance(), Some(api.client())).await;
    let channel = controller.connect(&api.bundle()).await.unwrap();
    let (mine, made_up) = (of(&api, "n1"), token(USER, "moat-controller", later(), "made up"));
    for _ in 0..20 {
        Agent::follow(channel.clone(), "n1", Some(&mine)).await.unwrap();
        Agent::follow(channel.clone(), "n1", Some(&made_up)).await.err().unwrap();
    }
    assert_eq!(api.reviews(), 2);
    assert_eq!(controller.refused("bad"), 20);
}

/// Connections cost memory and a descriptor before anybody knows whose they are.
#[tokio::test]
async fn an_address_has_few_connections_that_have_shown_nothing() {
    let api = ApiServer::default();
    let controller = Controller::start(entrance(), Some(api.client())).await;
    let (bundle, mine) = (api.bundle(), of(&api, "n1"));
    let connect = || controller.connect(&bundle);
    let agent = Agent::follow(connect().await.unwrap(), "n1", Some(&mine)).await.unwrap();
    let mut idle = Vec::new();
    while let Ok(channel) = connect().await {
        idle.push(channel);
        assert!(idle.len() < 1000, "as many as somebody likes");
    }
    until("it is counted", async || controller.number("tls_handshakes_failed_total") >= 1).await;
    assert_eq!(controller.number("agents"), 1, "who is served stays");
    drop(idle);
    let again = async || Agent::follow(connect().await.ok()?, "n1", Some(&mine)).await.ok();
    until("there is room again", async || again().await.is_some()).await;
    drop(agent);
}

#[tokio::test]
async fn what_an_agent_says_of_itself_is_shown_on_one_line() {
    let api = ApiServer::default();
    let controller = Controller::start(entrance(), Some(api.client())).await;
    let (bundle, mine) = (api.bundle(), of(&api, "n1"));
    let channel = controller.connect(&bundle).await.unwrap();
    let claimed = format!("n2\n\u{1b}[2J{}", "x".repeat(200));
    let status = Agent::follow(channel.clone(), &claimed, Some(&mine)).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("n2 \\u{1b}[2Jx"), "{}", status.message());
    let status = Agent::follow(channel, &"x".repeat(254), Some(&mine)).await.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}
