//! What the controller asks of an API server: lists in pages, watches, the objects of its CA, and whose a token is.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::cluster::{Shape, node_name};
use crate::trust;

/// How long it takes to say whose a token is: a real one checks a signature, and looks at three objects.
const REVIEW: Duration = Duration::from_millis(2);

/// Objects of one page, if not fewer are asked for.
const PAGE: usize = 500;

pub(crate) struct ApiServer {
    inner: Arc<Inner>,
    trust: trust::ApiServer,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

struct Inner {
    shape: Shape,
    state: Mutex<Moves>,
}

/// What has changed since the beginning.
struct Moves {
    version: u64,
    /// Of pods that have moved, how often.
    moves: HashMap<usize, usize>,
    /// All pods, as they are sent: that they are put in words is not this side's to measure.
    texts: Vec<String>,
    /// Who watches pods.
    watches: Vec<mpsc::UnboundedSender<Bytes>>,
}

impl ApiServer {
    pub(crate) async fn start(shape: Shape) -> Result<Self> {
        let texts = (0..shape.pods).map(|pod| shape.pod(pod, 0, 1 + pod as u64).to_string()).collect();
        let (moves, watches) = (HashMap::new(), Vec::new());
        let state = Mutex::new(Moves { version: 1_000_000, moves, texts, watches });
        let inner = Arc::new(Inner { shape, state });
        let trust = trust::ApiServer::default();
        let trusted = Router::new()
            .route("/version", get(answer_of_trust))
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(answer_of_trust))
            .route("/api/v1/namespaces/{namespace}/{kind}", any(answer_of_trust))
            .route("/api/v1/namespaces/{namespace}/{kind}/{name}", any(answer_of_trust))
            .with_state(trust.clone());
        let router = Router::new()
            .route("/api/v1/{kind}", get(answer))
            .route("/apis/networking.k8s.io/v1/{kind}", get(answer))
            .route("/apis/discovery.k8s.io/v1/namespaces/moat-system/{kind}", get(answer))
            .with_state(inner.clone())
            .merge(trusted)
            .fallback(async || status(404));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { inner, trust, folder: tempfile::tempdir()?, address })
    }

    /// A kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self) -> Result<PathBuf> {
        let file = self.folder.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{"name": "it", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "it", "user": {}}],
        });
        std::fs::write(&file, text.to_string())?;
        Ok(file)
    }

    /// What agents are told to believe; empty before there is a CA.
    pub(crate) fn bundle(&self) -> String {
        self.trust.bundle()
    }

    /// A token of the agent of this node.
    pub(crate) fn token(&self, node: usize) -> String {
        let (node, expires) = (node_name(node), SystemTime::now() + Duration::from_secs(3600));
        let token = trust::token(trust::USER, "moat-controller", expires, &node);
        self.trust.allot(&token, Some(&node));
        token
    }

    /// How often it was asked whose a token is.
    pub(crate) fn reviews(&self) -> u64 {
        self.trust.reviews()
    }

    /// A pod has its other address now.
    pub(crate) fn moved(&self, pod: usize) {
        let mut state = self.inner.state.lock().expect("nobody panics with it");
        state.version += 1;
        let version = state.version;
        let moves = state.moves.entry(pod).or_default();
        *moves += 1;
        let object = self.inner.shape.pod(pod, *moves, version).to_string();
        let line = format!(r#"{{"type":"MODIFIED","object":{object}}}"#) + "\n";
        state.texts[pod] = object;
        let line = Bytes::from(line);
        state.watches.retain(|watch| watch.send(line.clone()).is_ok());
    }
}

async fn answer(
    Path(kind): Path<String>,
    RawQuery(query): RawQuery,
    State(inner): State<Arc<Inner>>,
) -> Response {
    let query = query.unwrap_or_default();
    let parameter = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    if parameter("watch") == Some("true") {
        return inner.watch(&kind);
    }
    let from = parameter("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
    let limit = parameter("limit").and_then(|limit| limit.parse().ok()).unwrap_or(PAGE);
    inner.list(&kind, from, limit)
}

async fn answer_of_trust(
    State(trust): State<trust::ApiServer>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    if uri.path().ends_with("/tokenreviews") {
        sleep(REVIEW).await;
    }
    let (status, answer) =
        trust.answer(&method, uri.path(), serde_json::from_slice(&body).unwrap_or_default());
    (status, answer.to_string()).into_response()
}

impl Inner {
    fn list(&self, kind: &str, from: usize, limit: usize) -> Response {
        let shape = self.shape;
        let state = self.state.lock().expect("nobody panics with it");
        let made = |count: usize, make: fn(Shape, usize, u64) -> Value| {
            let items = (from..(from + limit).min(count)).map(|n| make(shape, n, 1 + n as u64).to_string());
            (count, items.collect::<Vec<_>>().join(","))
        };
        let (count, items) = match kind {
            "namespaces" => made(shape.namespaces(), Shape::namespace),
            "nodes" => made(shape.nodes, Shape::node),
            "networkpolicies" => made(shape.policies(), Shape::policy),
            "endpointslices" => made(0, Shape::node),
            "pods" => {
                (shape.pods, state.texts[from.min(shape.pods)..(from + limit).min(shape.pods)].join(","))
            }
            _ => return status(404),
        };
        let next = if from + limit < count { (from + limit).to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": state.version.to_string(), "continue": next});
        drop(state);
        format!(r#"{{"kind":"List","apiVersion":"v1","metadata":{metadata},"items":[{items}]}}"#)
            .into_response()
    }

    /// Only pods change. A watch lasts as long as somebody reads it.
    fn watch(&self, kind: &str) -> Response {
        let (watch, lines) = mpsc::unbounded_channel();
        if kind == "pods" {
            self.state.lock().expect("nobody panics with it").watches.push(watch);
        } else {
            // Nothing ever comes, and it does not end.
            tokio::spawn(async move { watch.closed().await });
        }
        Body::from_stream(UnboundedReceiverStream::new(lines).map(Ok::<_, Infallible>)).into_response()
    }
}

fn status(code: u16) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no such kind", "reason": "NotFound", "code": code});
    (StatusCode::from_u16(code).unwrap_or_default(), body.to_string()).into_response()
}
