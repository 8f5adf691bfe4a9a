//! Keeps the CA in the API server's objects, beside other replicas that do the same, and this replica's leaf.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use axum::http;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::client::Body;
use tokio::time::{self, Instant};
use tracing::{error, info, warn};

use super::Lifetimes;
use super::certificate::{Authority, Certificate, CertificateError, bundle_of, text_of};
use super::leaf::{Leaf, Shown};
use super::plan::{State, Step, decide};

/// The Secret and the ConfigMap.
pub const NAME: &str = "moat-controller-ca";

/// The ConfigMap's key, and so the file's name in an agent's pod.
pub const BUNDLE: &str = "ca.crt";

/// How often the objects are looked at, at most.
const LOOK: Duration = Duration::from_secs(60);

/// How long after a failure they are looked at again.
const AGAIN: Duration = Duration::from_secs(2);

/// How far this clock may be from the API server's for anything to be done about the CA.
const CLOCKS: Duration = Duration::from_secs(5 * 60);

/// How many times a look may find that something is to be done: more means that somebody undoes it.
const STEPS: usize = 16;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
enum KeeperError {
    /// The API server does not answer, or not well.
    #[error("the API server does not let us {0}")]
    Api(&'static str, #[source] Box<kube::Error>),
    /// Which of the two clocks is right is not for us to say.
    #[error("this clock is {0:?} from the API server's: nothing is done about the CA before they agree")]
    Clock(Duration),
    /// It cannot be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Each step is followed by another.
    #[error("somebody changes Secret or ConfigMap {NAME} back")]
    Undone,
}

/// Keeps CA and leaf.
pub struct Keeper {
    client: kube::Client,
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    namespace: String,
    names: Vec<String>,
    lifetimes: Lifetimes,
    shown: Shown,
    leaf: Option<Leaf>,
    /// Since when each certificate has been in the bundle.
    since: HashMap<Certificate, Instant>,
}

/// What the objects hold.
struct Found {
    secret: Option<Secret>,
    map: Option<ConfigMap>,
    signing: Option<Authority>,
    next: Option<Authority>,
    bundle: Vec<Certificate>,
}

impl Found {
    fn state(&self) -> State {
        let certificate = |authority: &Option<Authority>| authority.as_ref().map(|a| a.certificate().clone());
        State {
            signing: certificate(&self.signing),
            next: certificate(&self.next),
            bundle: self.bundle.clone(),
        }
    }
}

impl Keeper {
    /// Keeps the CA of the controllers in `namespace`, and shows leaves for the names of their Service.
    pub fn new(client: kube::Client, namespace: &str, lifetimes: Lifetimes, shown: Shown) -> Self {
        let service = format!("moat-controller.{namespace}");
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            maps: Api::namespaced(client.clone(), namespace),
            client,
            namespace: namespace.to_owned(),
            names: vec![format!("{service}.svc"), format!("{service}.svc.cluster.local"), service],
            lifetimes,
            shown,
            leaf: None,
            since: HashMap::new(),
        }
    }

    /// Brings everything to be as it should, once: after it there is a leaf to show. Says in words why it could not.
    pub async fn turn(&mut self) -> Result<(), String> {
        let done = self.settle().await.map_err(|why| format!("{:#}", anyhow::Error::new(why)));
        self.shown.seen_to(done.as_ref().err().cloned());
        done
    }

    async fn settle(&mut self) -> Result<(), KeeperError> {
        self.compare_clocks().await?;
        for _ in 0..STEPS {
            let found = self.look().await?;
            let (now, state) = (SystemTime::now(), found.state());
            let settled = |certificate: &Certificate| {
                self.since.get(certificate).map_or(Duration::ZERO, Instant::elapsed)
            };
            let Some(step) = decide(&state, settled, now, self.lifetimes) else {
                return self.leaf(&found, now);
            };
            match self.take(step, found, now).await {
                // Somebody else was quicker: what is to be done now is seen in what they did.
                Err(KeeperError::Api(_, error)) if conflict(&error) => {}
                done => done?,
            }
        }
        Err(KeeperError::Undone)
    }

    /// Goes on doing so, for ever.
    pub async fn keep(mut self) {
        // What takes time takes the lifetimes' time.
        let look = LOOK.min(self.lifetimes.settle / 2).min(self.lifetimes.leaf / 4);
        let mut said = String::new();
        loop {
            let pause = match self.turn().await {
                Ok(()) => {
                    said.clear();
                    look
                }
                Err(why) => {
                    if said != why {
                        error!("the CA stays as it is: {why}");
                        said = why;
                    }
                    AGAIN.min(look)
                }
            };
            time::sleep(pause).await;
        }
    }

    /// Whoever's clock has jumped would take what is valid for expired, and the other way round.
    async fn compare_clocks(&self) -> Result<(), KeeperError> {
        let failed = |error| KeeperError::Api("ask for its time", Box::new(error));
        let request = http::Request::get("/version").body(Body::empty()).map_err(kube::Error::HttpError);
        let answer = self.client.send(request.map_err(failed)?).await.map_err(failed)?;
        let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else { return Ok(()) };
        let apart = match SystemTime::now().duration_since(theirs) {
            Ok(ahead) => ahead,
            Err(behind) => behind.duration(),
        };
        match apart <= CLOCKS {
            true => Ok(()),
            false => Err(KeeperError::Clock(apart)),
        }
    }

    async fn look(&mut self) -> Result<Found, KeeperError> {
        let failed =
            |error| KeeperError::Api("read Secret and ConfigMap moat-controller-ca", Box::new(error));
        let secret = self.secrets.get_opt(NAME).await.map_err(failed)?;
        let map = self.maps.get_opt(NAME).await.map_err(failed)?;
        let data = secret.as_ref().and_then(|secret| secret.data.as_ref());
        let text = map.as_ref().and_then(|map| map.data.as_ref()).and_then(|data| data.get(BUNDLE));
        let bundle = text.map(|text| bundle_of(text)).unwrap_or_default();
        self.since.retain(|certificate, _| bundle.contains(certificate));
        for certificate in &bundle {
            self.since.entry(certificate.clone()).or_insert_with(Instant::now);
        }
        let (signing, next) = (authority(data, "tls"), authority(data, "next"));
        Ok(Found { secret, map, signing, next, bundle })
    }

    async fn take(&mut self, step: Step, found: Found, now: SystemTime) -> Result<(), KeeperError> {
        let make = || Authority::make(&self.namespace, now + self.lifetimes.ca);
        match step {
            Step::MakeSigning => {
                self.put_secret(found.secret, &make()?, found.next.as_ref()).await?;
                info!("made a CA for controllers");
            }
            Step::MakeNext => {
                let Some(signing) = &found.signing else { return Ok(()) };
                self.put_secret(found.secret, signing, Some(&make()?)).await?;
                info!("made the CA that follows the one that signs");
            }
            Step::Promote => {
                let Some(next) = &found.next else { return Ok(()) };
                self.put_secret(found.secret, next, None).await?;
                info!(
                    "the next CA signs from now on; what the one before has signed is believed until that expires"
                );
            }
            Step::Publish(bundle) => {
                self.put_map(found.map, &bundle).await?;
                info!(certificates = bundle.len(), "published the CAs that agents believe");
            }
        }
        Ok(())
    }

    async fn put_secret(
        &self,
        before: Option<Secret>,
        signing: &Authority,
        next: Option<&Authority>,
    ) -> Result<(), KeeperError> {
        let mut data = BTreeMap::new();
        for (name, authority) in [("tls", Some(signing)), ("next", next)] {
            let Some(authority) = authority else { continue };
            data.insert(format!("{name}.crt"), ByteString(authority.certificate().pem().into_bytes()));
            data.insert(format!("{name}.key"), ByteString(authority.key().as_bytes().to_vec()));
        }
        let params = PostParams::default();
        let written = match before {
            // With the resourceVersion that was read: who writes in between makes this fail.
            Some(before) => self.secrets.replace(NAME, &params, &Secret { data: Some(data), ..before }).await,
            None => {
                let type_ = Some("kubernetes.io/tls".to_owned());
                let made = Secret { metadata: self.named(), data: Some(data), type_, ..Secret::default() };
                self.secrets.create(&params, &made).await
            }
        };
        written
            .map(drop)
            .map_err(|error| KeeperError::Api("write Secret moat-controller-ca", Box::new(error)))
    }

    async fn put_map(&self, before: Option<ConfigMap>, bundle: &[Certificate]) -> Result<(), KeeperError> {
        let text = (BUNDLE.to_owned(), text_of(bundle));
        let params = PostParams::default();
        let written = match before {
            Some(mut before) => {
                before.data.get_or_insert_default().extend([text]);
                self.maps.replace(NAME, &params, &before).await
            }
            None => {
                let data = Some(BTreeMap::from([text]));
                let made = ConfigMap { metadata: self.named(), data, ..ConfigMap::default() };
                self.maps.create(&params, &made).await
            }
        };
        written
            .map(drop)
            .map_err(|error| KeeperError::Api("write ConfigMap moat-controller-ca", Box::new(error)))
    }

    fn named(&self) -> ObjectMeta {
        let label = ("app.kubernetes.io/name".to_owned(), "moat-controller".to_owned());
        ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(self.namespace.clone()),
            labels: Some(BTreeMap::from([label])),
            ..ObjectMeta::default()
        }
    }

    /// Shows another leaf if it is time to.
    fn leaf(&mut self, found: &Found, now: SystemTime) -> Result<(), KeeperError> {
        let Some(signing) = &found.signing else { return Ok(()) };
        self.shown.signed_until(signing.certificate().not_after());
        if self.leaf.as_ref().is_none_or(|leaf| leaf.due(&found.bundle, now)) {
            let leaf = Leaf::make(signing, &self.names, now, self.lifetimes)?;
            self.shown.put(leaf.key.clone());
            let until = leaf.not_after.duration_since(now).unwrap_or_default();
            info!(hours = until.as_secs() / 3600, "this replica has a new certificate");
            self.leaf = Some(leaf);
        }
        Ok(())
    }
}

/// The CA of this name in the Secret. One that cannot be read is one that is not there: another takes its place.
fn authority(data: Option<&BTreeMap<String, ByteString>>, name: &str) -> Option<Authority> {
    let text = |end: &str| data?.get(&format!("{name}.{end}")).map(|text| String::from_utf8_lossy(&text.0));
    let (certificate, key) = (text("crt")?, text("key")?);
    Authority::of_pem(&certificate, &key)
        .inspect_err(|error| warn!("{name}.crt and {name}.key of Secret {NAME} are of no use: {error}"))
        .ok()
}

/// Whether somebody else has written in between. (Conflict is said of an old resourceVersion, and of what is there already.)
fn conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
