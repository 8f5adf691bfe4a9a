//! One kind, listed and then watched, for as long as somebody listens.
//!
//! kube's own watcher does the same but for four things that this needs: it goes on after an event that it could not decode, which
//! is then lost; it asks for ever from a version that the server answers with 410 in place of a stream; it does not say that it
//! watches again after a failure; and it cannot be told to list again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, WatchEvent, WatchParams};
use kube::core::Status;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use crate::held::Heard;
use crate::list::pages;
use crate::record::{Kind, Record};
use crate::watch::Reporter;

/// How long a watch lasts, in seconds; the next one goes on where it ended. The API server's usual five to ten minutes are how
/// long it could take to notice that a connection leads nowhere.
const LASTS: u32 = 60;

/// How much later than that a watch that has not ended is given up.
const GRACE: Duration = Duration::from_secs(5);

/// How long an answer to a request may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait after a failure: doubled with each that follows, up to the second. Two replicas with four kinds each are no
/// herd, and an API server that is back is to be heard soon.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// How long to wait before looking again whether the API server knows a kind by now.
const UNKNOWN: Duration = Duration::from_secs(30);

/// What to do after something went wrong.
enum Trouble {
    /// What happened meanwhile can be told from a list only.
    List(String),
    /// The watch goes on from where it was.
    Watch(String),
    /// There is no such kind, and so nothing of it.
    Unknown,
    /// Nobody listens any more.
    Unheard,
}

/// Follows one kind.
pub(crate) struct Follow<K: Kind> {
    pub(crate) api: Api<Record<K>>,
    /// What is heard, with the kind's number.
    pub(crate) to: mpsc::Sender<(usize, Heard)>,
    pub(crate) number: usize,
    /// The kind is to be listed again.
    pub(crate) again: Arc<Notify>,
    pub(crate) report: Reporter,
}

impl<K: Kind> Follow<K> {
    /// Lists and watches until nobody listens.
    pub(crate) async fn run(self) {
        let mut pause = Pause::default();
        // The version from which to watch on; none: the kind is to be listed.
        let mut from: Option<String> = None;
        loop {
            let ended = match from.clone() {
                None => self.list().await.map(|version| from = Some(version)),
                Some(version) => self.watch(version, &mut from, &mut pause).await,
            };
            let error = match ended {
                Ok(()) => {
                    pause = Pause::default();
                    continue;
                }
                Err(Trouble::Unheard) => return,
                Err(Trouble::Unknown) => {
                    self.report.watching();
                    tokio::select! {
                        () = sleep(UNKNOWN) => continue,
                        () = self.to.closed() => return,
                    }
                }
                Err(Trouble::Watch(error)) => error,
                Err(Trouble::List(error)) => {
                    from = None;
                    error
                }
            };
            self.report.failed(error);
            tokio::select! {
                () = sleep(pause.next()) => {}
                () = self.to.closed() => return,
            }
        }
    }

    async fn hand_on(&self, heard: Heard) -> Result<(), Trouble> {
        self.to.send((self.number, heard)).await.map_err(|_| Trouble::Unheard)
    }

    /// Lists the kind. Returns the version of the cluster from which to watch.
    async fn list(&self) -> Result<String, Trouble> {
        self.hand_on(Heard::Begin).await?;
        let mut pages = pages(self.api.clone());
        let mut version = String::new();
        let failed = |error: &kube::Error| Trouble::List(format!("cannot list: {}", told(error)));
        loop {
            let page = match timeout(PATIENCE, pages.try_next()).await {
                Err(_) => return Err(Trouble::List("cannot list: no answer".to_owned())),
                Ok(Err(kube::Error::Api(status))) if K::MAY_BE_UNKNOWN && status.code == 404 => {
                    self.hand_on(Heard::End("0".into())).await?;
                    return Err(Trouble::Unknown);
                }
                Ok(page) => page.map_err(|error| failed(&error))?,
            };
            let Some(page) = page else { break };
            version = page.version;
            for object in page.objects {
                self.hand_on(Heard::Listed(K::said(object))).await?;
            }
        }
        if version.is_empty() {
            return Err(Trouble::List("a list without metadata.resourceVersion".to_owned()));
        }
        self.hand_on(Heard::End(version.as_str().into())).await?;
        self.report.listed();
        Ok(version)
    }

    /// Watches from a version on, and keeps `from` where to go on.
    async fn watch(
        &self,
        version: String,
        from: &mut Option<String>,
        pause: &mut Pause,
    ) -> Result<(), Trouble> {
        let params = WatchParams::default().timeout(LASTS);
        let began = Instant::now();
        let events = match timeout(PATIENCE, self.api.watch(&params, &version)).await {
            Err(_) => return Err(Trouble::Watch("cannot watch: no answer".to_owned())),
            Ok(events) => events.map_err(|error| trouble(&error))?,
        };
        let mut events = events.boxed();
        self.report.watching();
        let idle = Duration::from_secs(LASTS.into()) + GRACE;
        let mut heard_something = false;
        loop {
            let event = tokio::select! {
                event = timeout(idle, events.next()) => event,
                () = self.again.notified() => {
                    return Err(Trouble::List("events came out of order; listing again".to_owned()));
                }
                () = self.to.closed() => return Err(Trouble::Unheard),
            };
            let event = match event {
                Err(_) => return Err(Trouble::Watch("the watch has not ended in time".to_owned())),
                // A server that ends each watch at once is not to be asked without a pause.
                Ok(None) if heard_something || began.elapsed() > GRACE => return Ok(()),
                Ok(None) => return Err(Trouble::Watch("the watch ended at once".to_owned())),
                Ok(Some(event)) => event.map_err(|error| trouble(&error))?,
            };
            heard_something = true;
            *pause = Pause::default();
            let (object, gone) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    *from = Some(bookmark.metadata.resource_version);
                    continue;
                }
                WatchEvent::Error(status) => return Err(refusal(&status)),
            };
            let version = object.version().to_string();
            let said = K::said(object);
            self.hand_on(if gone { Heard::Deleted(said) } else { Heard::Applied(said) }).await?;
            // Only now: what was not handed on is heard again.
            *from = Some(version).filter(|version| !version.is_empty());
        }
    }
}

/// What an error of a watch means.
fn trouble(error: &kube::Error) -> Trouble {
    match error {
        kube::Error::Api(status) => refusal(status),
        // That event is lost, whatever it was.
        kube::Error::SerdeError(_) => Trouble::List(format!("an event that cannot be read: {}", told(error))),
        _ => Trouble::Watch(format!("cannot watch: {}", told(error))),
    }
}

/// What the API server's word means. 410: the version is too old to say what happened since; 400: it is none; 504: it is one of the
/// future, as after a restore of etcd.
fn refusal(status: &Status) -> Trouble {
    let error = format!("cannot watch: {} ({})", status.message, status.code);
    match status.code {
        400 | 410 | 504 => Trouble::List(error),
        _ => Trouble::Watch(error),
    }
}

/// An error with what lies behind it, each said once.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// How long to wait after the next failure.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE.0)
    }
}

impl Pause {
    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(PAUSE.1);
        now
    }
}
