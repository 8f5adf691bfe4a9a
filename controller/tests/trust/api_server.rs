//! What of an API server tokens and the CA need, in memory: versions of objects and their conflicts, reviews, and a clock.
//!
//! It decides nothing that is tested: which token is whose is said by the test. (With a real one: the suites of the cluster.)

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::http::{Method, Request, Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kube::client::Body;
use serde_json::{Value, json};

pub(crate) const USER: &str = "system:serviceaccount:moat-system:moat-agent";

#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Each token's node, while it is good.
    tokens: HashMap<String, String>,
    reviews: u64,
    away: bool,
    ahead: Duration,
}

/// A token that says of itself what one of the kubelet's does.
pub(crate) fn token(user: &str, audience: &str, expires: SystemTime, salt: &str) -> String {
    let exp = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let payload = json!({ "aud": [audience], "sub": user, "exp": exp, "jti": salt });
    format!("e30.{}.{}", URL_SAFE_NO_PAD.encode(payload.to_string()), URL_SAFE_NO_PAD.encode(salt))
}

impl ApiServer {
    pub(crate) fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                // What is asked at the same time is answered in any order.
                tokio::task::yield_now().await;
                if server.0.lock().unwrap().away {
                    return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                }
                let (status, answer) = server.answer(&head.method, head.uri.path(), body);
                let date = httpdate::fmt_http_date(SystemTime::now() + server.0.lock().unwrap().ahead);
                let response = Response::builder().status(status).header("date", date);
                Ok(response.body(Body::from(answer.to_string().into_bytes())).unwrap())
            }
        });
        kube::Client::new(service, "default")
    }

    /// What it answers to one request.
    pub(crate) fn answer(&self, method: &Method, path: &str, mut body: Value) -> (StatusCode, Value) {
        let mut state = self.0.lock().unwrap();
        let refusal = |code: StatusCode, reason: &str| {
            (code, json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code.as_u16()}))
        };
        let conflict = || refusal(StatusCode::CONFLICT, "Conflict");
        if path == "/version" {
            return (StatusCode::OK, json!({}));
        }
        if path.ends_with("/tokenreviews") {
            state.reviews += 1;
            let token = body["spec"]["token"].as_str().unwrap();
            body["status"] = match state.tokens.get(token) {
                None => json!({"authenticated": false, "error": "not mine"}),
                Some(node) => json!({
                    "authenticated": true,
                    "audiences": body["spec"]["audiences"],
                    "user": {"username": USER, "extra": {"authentication.kubernetes.io/node-name": [node]}},
                }),
            };
            return (StatusCode::CREATED, body);
        }
        let name = match *method == Method::POST {
            true => format!("{path}/{}", body["metadata"]["name"].as_str().unwrap()),
            false => path.to_owned(),
        };
        let before = state.objects.get(&name).cloned();
        match (method.as_str(), before) {
            ("GET", Some(object)) => return (StatusCode::OK, object),
            ("GET" | "PUT", None) => return refusal(StatusCode::NOT_FOUND, "NotFound"),
            ("POST", None) => {}
            ("PUT", Some(before))
                if before["metadata"]["resourceVersion"] == body["metadata"]["resourceVersion"] => {}
            _ => return conflict(),
        }
        state.version += 1;
        body["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(name, body.clone());
        (StatusCode::OK, body)
    }

    fn object(&self, kind: &str) -> Option<Value> {
        let name = format!("/api/v1/namespaces/moat-system/{kind}/moat-controller-ca");
        self.0.lock().unwrap().objects.get(&name).cloned()
    }

    /// What agents are told to believe.
    pub(crate) fn bundle(&self) -> String {
        let map = self.object("configmaps");
        map.and_then(|map| Some(map["data"]["ca.crt"].as_str()?.to_owned())).unwrap_or_default()
    }

    /// A text of the Secret.
    pub(crate) fn secret(&self, key: &str) -> Option<String> {
        let secret = self.object("secrets")?;
        Some(String::from_utf8(STANDARD.decode(secret["data"][key].as_str()?).unwrap()).unwrap())
    }

    /// Somebody deletes Secret and ConfigMap.
    pub(crate) fn lose(&self) {
        self.0.lock().unwrap().objects.clear();
    }

    /// From now on this token is this node's; `None`: no good.
    pub(crate) fn allot(&self, token: &str, node: Option<&str>) {
        let tokens = &mut self.0.lock().unwrap().tokens;
        match node {
            Some(node) => tokens.insert(token.to_owned(), node.to_owned()),
            None => tokens.remove(token),
        };
    }

    pub(crate) fn reviews(&self) -> u64 {
        self.0.lock().unwrap().reviews
    }

    pub(crate) fn away(&self, away: bool) {
        self.0.lock().unwrap().away = away;
    }

    /// Its clock is that far ahead.
    pub(crate) fn ahead(&self, ahead: Duration) {
        self.0.lock().unwrap().ahead = ahead;
    }
}
