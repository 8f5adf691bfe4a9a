//! All kinds, followed side by side.

use std::sync::Arc;

use kube::Client;
use kube::api::Api;
use moat_manifests::{StoredConfig, StoredPolicy};
use moat_policies::{Namespace, Node, Pod};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{debug, info, warn};

use crate::follow::Follow;
use crate::held::{Heard, Held, News};
use crate::record::Kind;

/// So much may have been heard and not been taken in; beyond that the API server is read no further.
const ROOM: usize = 1024;

/// How it stands with one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindState {
    /// The kind, in the plural.
    pub kind: &'static str,
    /// How often it was listed.
    pub lists: u64,
    /// How often listing or watching failed.
    pub failures: u64,
    /// Why nothing is heard of it now; `None`: it is watched.
    pub error: Option<String>,
}

/// How it stands with all kinds.
pub type State = [KindState; 5];

/// Whoever follows one kind reports here.
pub(crate) struct Reporter {
    states: Arc<watch::Sender<State>>,
    number: usize,
}

impl Reporter {
    pub(crate) fn listed(&self) {
        self.states.send_modify(|states| states[self.number].lists += 1);
    }

    pub(crate) fn watching(&self) {
        let again = self.states.send_if_modified(|states| states[self.number].error.take().is_some());
        if again {
            info!(kind = self.kind(), "watched again");
        }
    }

    /// Says so in the log once for as long as it is the same.
    pub(crate) fn failed(&self, error: String) {
        let before = self.states.borrow()[self.number].error.clone();
        match before.is_some_and(|before| before == error) {
            true => debug!(kind = self.kind(), "still: {error}"),
            false => warn!(kind = self.kind(), "what is known stays in force: {error}"),
        }
        self.states.send_modify(|states| {
            states[self.number].failures += 1;
            states[self.number].error = Some(error);
        });
    }

    fn kind(&self) -> &'static str {
        self.states.borrow()[self.number].kind
    }
}

/// A watch over everything that decides verdicts. It ends when it is dropped.
pub struct Watch {
    heard: mpsc::Receiver<(usize, Heard)>,
    room: Vec<(usize, Heard)>,
    held: Held,
    again: [Arc<Notify>; 5],
    states: watch::Receiver<State>,
}

impl Watch {
    /// Begins to list and watch.
    pub fn begin(client: &Client) -> Self {
        let (to, heard) = mpsc::channel(ROOM);
        let state = |kind| KindState { kind, lists: 0, failures: 0, error: None };
        let kinds =
            [Namespace::PLURAL, Node::PLURAL, StoredPolicy::PLURAL, Pod::PLURAL, StoredConfig::PLURAL];
        let (sender, states) = watch::channel(kinds.map(state));
        let watch = Self { heard, room: Vec::new(), held: Held::new(), again: Default::default(), states };
        let sender = Arc::new(sender);
        watch.follow::<Namespace>(0, client, &to, &sender);
        watch.follow::<Node>(1, client, &to, &sender);
        watch.follow::<StoredPolicy>(2, client, &to, &sender);
        watch.follow::<Pod>(3, client, &to, &sender);
        watch.follow::<StoredConfig>(4, client, &to, &sender);
        watch
    }

    fn follow<K: Kind>(
        &self,
        number: usize,
        client: &Client,
        to: &mpsc::Sender<(usize, Heard)>,
        states: &Arc<watch::Sender<State>>,
    ) {
        let follow = Follow::<K> {
            api: Api::all(client.clone()),
            to: to.clone(),
            number,
            again: self.again[number].clone(),
            report: Reporter { states: states.clone(), number },
        };
        tokio::spawn(follow.run());
    }

    /// Waits until something is different, and tells all that is. May be dropped at any time; nothing is lost. `None`: nobody
    /// follows the API server any more, which happens only when the process ends.
    pub async fn news(&mut self) -> Option<News> {
        loop {
            if let Some(news) = self.held.news() {
                return Some(news);
            }
            // Whatever has come meanwhile is taken in at once; nothing waits for more.
            if self.heard.recv_many(&mut self.room, ROOM).await == 0 {
                return None;
            }
            for (kind, heard) in self.room.drain(..) {
                if self.held.take(kind, heard).is_err() {
                    self.again[kind].notify_one();
                }
            }
        }
    }

    /// How it stands, now and later.
    pub fn states(&self) -> watch::Receiver<State> {
        self.states.clone()
    }
}
