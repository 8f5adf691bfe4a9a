//! The same with a real API server, which makes the tokens and the objects, and says which are good.

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams};
use moat_apiserver::Access;
use moat_controller::entrance::Entrance;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tonic::Code;

use crate::agent::{Agent, Controller, entrance};
use crate::server::{Programs, Server, kubeconfig};

const NAMESPACE: &str = "moat-system";

async fn create<K: Clone + Serialize + DeserializeOwned + std::fmt::Debug>(api: &Api<K>, object: Value) {
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

/// What the kubelet asks for when it mounts a token into this pod; `None`: what somebody else asks for.
async fn token(client: &kube::Client, account: &str, audience: &str, pod: Option<&str>) -> String {
    let pod = pod.map(|name| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(name.to_owned()),
        uid: None,
    });
    let spec = TokenRequestSpec {
        audiences: vec![audience.to_owned()],
        bound_object_ref: pod,
        expiration_seconds: Some(600),
    };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), NAMESPACE);
    accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap()
        .status
        .unwrap()
        .token
}

/// The same token as the API server would have made it an hour before.
fn of_an_hour_ago(token: &str, folder: &Path) -> String {
    let mut parts = token.split('.');
    let (header, payload) = (parts.next().unwrap(), parts.next().unwrap());
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    for time in ["exp", "iat", "nbf"] {
        claims[time] = json!(claims[time].as_u64().unwrap() - 3600);
    }
    let text = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(folder.join("accounts.key")).unwrap()).unwrap();
    let signature = rcgen::SigningKey::sign(&key, text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(raw(&signature)))
}

/// A signature as JWTs have it (RFC 7518, 3.4): two numbers of 32 octets, which DER writes without zeros in front.
fn raw(der: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    let mut rest = &der[2..];
    for _ in 0..2 {
        let (number, after) = rest[2..].split_at(usize::from(rest[1]));
        let number = &number[number.len().saturating_sub(32)..];
        raw.extend(std::iter::repeat_n(0, 32 - number.len()).chain(number.iter().copied()));
        rest = after;
    }
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_says_whose_a_token_is() {
    let Some(programs) = Programs::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(programs, folder.path()).await;
    let file = Some(kubeconfig(folder.path(), server.port()));
    let client = Access::Kubeconfig { file, context: None }.client().await.unwrap();

    create(&Api::<Namespace>::all(client.clone()), json!({"metadata": {"name": NAMESPACE}})).await;
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), NAMESPACE);
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    for account in ["moat-agent", "other"] {
        create(&accounts, json!({"metadata": {"name": account}})).await;
    }
    for (pod, node, account) in
        [("one", "n1", "moat-agent"), ("two", "n2", "moat-agent"), ("other", "n1", "other")]
    {
        let containers = json!([{"name": "agent", "image": "i"}]);
        let spec = json!({"nodeName": node, "serviceAccountName": account, "containers": containers});
        create(&pods, json!({"metadata": {"name": pod}, "spec": spec})).await;
    }

    let entrance = Entrance { token_recheck: Duration::from_millis(500), ..entrance() };
    let controller = Controller::start(entrance, Some(client.clone())).await;
    let maps = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    let bundle = maps.get("moat-controller-ca").await.unwrap().data.unwrap().remove("ca.crt").unwrap();
    let connect = async || controller.connect(&bundle).await.unwrap();

    let audience = "moat-controller";
    let [one, two] = [
        token(&client, "moat-agent", audience, Some("one")).await,
        token(&client, "moat-agent", audience, Some("two")).await,
    ];
    let mine = Agent::follow(connect().await, "n1", Some(&one)).await.unwrap();
    let theirs = Agent::follow(connect().await, "n2", Some(&two)).await.unwrap();
    assert_eq!((mine.pods(), theirs.pods()), (vec!["shop/web".to_owned()], vec!["shop/db".to_owned()]));

    let expired = of_an_hour_ago(&one, folder.path());
    let forged = format!("{}x", &one[..one.len() - 2]);
    let other = token(&client, "other", audience, Some("other")).await;
    let elsewhere = token(&client, "moat-agent", "https://kubernetes.default.svc", Some("one")).await;
    let unbound = token(&client, "moat-agent", audience, None).await;
    let table = [
        ("no_token", None, Code::Unauthenticated),
        ("bad", Some(&forged), Code::Unauthenticated),
        ("expired", Some(&expired), Code::Unauthenticated),
        ("account", Some(&other), Code::PermissionDenied),
        ("audience", Some(&elsewhere), Code::Unauthenticated),
        ("no_node", Some(&unbound), Code::PermissionDenied),
        ("other_node", Some(&two), Code::PermissionDenied),
    ];
    for (reason, shown, code) in table {
        let status = Agent::follow(connect().await, "n1", shown.map(String::as_str)).await.err().unwrap();
        assert_eq!((status.code(), controller.refused(reason)), (code, 1), "{reason}: {status}");
    }

    // The pod goes, and its token with it: the stream that was begun with it ends.
    pods.delete("two", &DeleteParams::default().grace_period(0)).await.unwrap();
    let end = theirs.end().await;
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");

    // Who is known comes back while the API server is away, and others are to try again.
    let unknown = token(&client, "moat-agent", audience, Some("one")).await;
    server.stop().await;
    drop(mine);
    let mine = Agent::follow(connect().await, "n1", Some(&one)).await.unwrap();
    let status = Agent::follow(connect().await, "n1", Some(&unknown)).await.err().unwrap();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    server.go_on().await;
    let again = Agent::follow(connect().await, "n1", Some(&one)).await.unwrap();
    assert_eq!(again.pods(), ["shop/web"]);
    drop(mine);
}
