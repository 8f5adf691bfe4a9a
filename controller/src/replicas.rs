//! Where the replicas of this controller are: those that the EndpointSlices of its Service name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use tokio::sync::watch;
use tokio::time;
use tokio_stream::StreamExt as _;
use tracing::{info, warn};

/// The Service in front of all replicas.
const SERVICE: &str = "moat-controller";

/// How long a watch lasts, in seconds; then all is listed anew.
const LASTS: u32 = 60;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The least between two lists, and the most after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Says which replicas there are, and again whenever that changes. Never ends.
pub(crate) async fn follow(client: Client, namespace: String, tell: watch::Sender<Option<Vec<String>>>) {
    let slices = Api::namespaced(client, &namespace);
    let mut pause = PAUSE.0;
    let mut failed = false;
    loop {
        match look(&slices, &tell).await {
            Ok(()) => (pause, failed) = (PAUSE.0, false),
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    warn!(
                        namespace,
                        "cannot tell which replicas there are, those that were known stay: {error:#}"
                    );
                }
                pause = (pause * 2).min(PAUSE.1);
            }
        }
        time::sleep(pause).await;
    }
}

/// Lists them, and waits until something of it changes.
async fn look(slices: &Api<EndpointSlice>, tell: &watch::Sender<Option<Vec<String>>>) -> anyhow::Result<()> {
    let ours = format!("kubernetes.io/service-name={SERVICE}");
    let list = time::timeout(PATIENCE, slices.list(&ListParams::default().labels(&ours))).await??;
    let endpoints = endpoints(&list.items);
    tell.send_if_modified(|told| {
        let news = told.as_ref() != Some(&endpoints);
        if news {
            info!(?endpoints, "the replicas that agents announce to");
            *told = Some(endpoints);
        }
        news
    });
    let version = list.metadata.resource_version.unwrap_or_default();
    let params = WatchParams::default().labels(&ours).timeout(LASTS);
    let events = time::timeout(PATIENCE, slices.watch(&params, &version)).await??;
    let mut events = std::pin::pin!(events);
    let ends = Duration::from_secs(LASTS.into()) + PATIENCE;
    while let Some(event) = time::timeout(ends, events.try_next()).await?? {
        // Whatever it is, a list says what there is now.
        if !matches!(event, WatchEvent::Bookmark(_)) {
            break;
        }
    }
    Ok(())
}

/// Where the replicas listen that serve, each once: one that has addresses of both families is one all the same.
fn endpoints(slices: &[EndpointSlice]) -> Vec<String> {
    let mut found: BTreeMap<String, SocketAddr> = BTreeMap::new();
    for slice in slices {
        let port = slice.ports.iter().flatten().find_map(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { continue };
        for endpoint in &slice.endpoints {
            // One that is about to end serves until it has.
            let serves = endpoint.conditions.as_ref().and_then(|c| c.serving.or(c.ready)).unwrap_or(true);
            let address = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
            let Some(address) = address.filter(|_| serves) else { continue };
            let whose = endpoint.target_ref.as_ref().and_then(|pod| pod.uid.clone());
            let address = SocketAddr::new(address, port);
            let one = found.entry(whose.unwrap_or_else(|| address.to_string())).or_insert(address);
            *one = address.min(*one);
        }
    }
    let mut endpoints: Vec<String> = found.values().map(|address| format!("https://{address}")).collect();
    endpoints.sort_unstable();
    endpoints
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use axum::http;
    use k8s_openapi::api::core::v1::ObjectReference;
    use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
    use kube::client::Body;

    use super::*;

    fn endpoint(address: &str, pod: &str, ready: Option<bool>, serving: Option<bool>) -> Endpoint {
        Endpoint {
            addresses: vec![address.to_owned()],
            conditions: Some(EndpointConditions { ready, serving, terminating: None }),
            target_ref: Some(ObjectReference { uid: Some(pod.to_owned()), ..Default::default() }),
            ..Default::default()
        }
    }

    fn slice(port: i32, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let ports = Some(vec![EndpointPort { port: Some(port), ..Default::default() }]);
        EndpointSlice { ports, endpoints, ..Default::default() }
    }

    #[test]
    fn each_replica_that_serves_is_named_once() {
        let v4 = vec![
            endpoint("192.0.2.1", "a", Some(true), Some(true)),
            endpoint("192.0.2.2", "b", Some(false), Some(true)),
            endpoint("192.0.2.3", "c", Some(false), Some(false)),
            endpoint("192.0.2.4", "d", None, None),
        ];
        let v6 = vec![
            endpoint("2001:db8::1", "a", Some(true), None),
            endpoint("2001:db8::5", "e", Some(true), None),
        ];
        let expected = [
            "https://192.0.2.1:9471",
            "https://192.0.2.2:9471",
            "https://192.0.2.4:9471",
            "https://[2001:db8::5]:9471",
        ];
        assert_eq!(endpoints(&[slice(9471, v6), slice(9471, v4)]), expected);
    }

    #[test]
    fn what_names_no_replica_is_passed_over() {
        let one = || endpoint("192.0.2.1", "a", Some(true), Some(true));
        let expected = ["https://192.0.2.1:9471"];
        // A pod that moves from one slice to another is in both for a moment.
        assert_eq!(endpoints(&[slice(9471, vec![one()]), slice(9471, vec![one()])]), expected);
        // Without a pod the address tells replicas apart.
        let nobodys = || Endpoint { target_ref: None, ..one() };
        assert_eq!(endpoints(&[slice(9471, vec![nobodys(), nobodys()])]), expected);
        let odd = [
            Endpoint { addresses: Vec::new(), ..one() },
            endpoint("controller.example.com", "b", Some(true), Some(true)),
        ];
        assert_eq!(endpoints(&[slice(9471, odd.into())]), Vec::<String>::new());
        assert_eq!(endpoints(&[slice(-1, vec![one()])]), Vec::<String>::new());
        assert_eq!(
            endpoints(&[EndpointSlice { ports: None, ..slice(0, vec![one()]) }]),
            Vec::<String>::new()
        );
        assert_eq!(endpoints(&[]), Vec::<String>::new());
    }

    /// What an API server has of EndpointSlices; `None`: it is away. Each watch ends at once, as if something had changed.
    #[derive(Clone, Default)]
    struct Stored {
        slices: Arc<Mutex<Option<Vec<EndpointSlice>>>>,
        /// How many times it was asked.
        asked: Arc<watch::Sender<u32>>,
    }

    impl Stored {
        fn client(&self) -> Client {
            let stored = self.clone();
            Client::new(
                tower::service_fn(move |request: http::Request<Body>| {
                    stored.asked.send_modify(|times| *times += 1);
                    let version = stored.asked.borrow().to_string();
                    let watch = request.uri().query().unwrap_or_default().contains("watch=true");
                    let list = stored.slices.lock().unwrap().as_ref().map(
                        |items| serde_json::json!({"metadata": {"resourceVersion": version}, "items": items}),
                    );
                    let answer = list.ok_or(io::Error::from(io::ErrorKind::ConnectionRefused)).map(|list| {
                        let text = if watch { String::new() } else { list.to_string() };
                        http::Response::new(Body::from(text.into_bytes()))
                    });
                    std::future::ready(answer)
                }),
                "moat-system",
            )
        }

        /// It is so from now on. Waits until that has been asked for.
        async fn put(&self, slices: Option<Vec<EndpointSlice>>) {
            let mut asked = self.asked.subscribe();
            *self.slices.lock().unwrap() = slices;
            let before = *asked.borrow();
            asked.wait_for(|times| *times >= before + 4).await.unwrap();
        }
    }

    #[tokio::test]
    async fn who_comes_and_goes_is_told_and_who_is_known_stays_while_nobody_can_say() {
        let all = |all: &[(&str, bool)]| {
            let one =
                |(address, ready): &(&str, bool)| endpoint(address, address, Some(*ready), Some(*ready));
            Some(vec![slice(9471, all.iter().map(one).collect())])
        };
        let stored = Stored::default();
        let (tell, told) = watch::channel(None);
        tokio::spawn(follow(stored.client(), "moat-system".to_owned(), tell));
        let told = || told.borrow().clone().map(|told| told.join(" "));
        stored.put(None).await;
        assert_eq!(told(), None, "nobody has said yet that there are none");
        let (one, two) = ("https://192.0.2.1:9471", "https://192.0.2.2:9471");
        stored.put(all(&[("192.0.2.1", true)])).await;
        assert_eq!(told().unwrap(), one);
        stored.put(all(&[("192.0.2.1", true), ("192.0.2.2", false)])).await;
        assert_eq!(told().unwrap(), one, "one that is not ready");
        stored.put(all(&[("192.0.2.1", true), ("192.0.2.2", true)])).await;
        assert_eq!(told().unwrap(), format!("{one} {two}"));
        stored.put(None).await;
        assert_eq!(told().unwrap(), format!("{one} {two}"), "the API server is away");
        stored.put(all(&[("192.0.2.2", true)])).await;
        assert_eq!(told().unwrap(), two, "one that has gone");
        stored.put(Some(Vec::new())).await;
        assert_eq!(told().unwrap(), "", "the Service has none");
    }
}
