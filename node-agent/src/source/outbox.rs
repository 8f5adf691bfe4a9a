//! What is to be said to the controller: the newest of everything, however long it does not listen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use moat_api::wire::{self, from_agent};
use moat_api::{Attached, Attachments};
use moat_policies::NamespacedName;
use tokio::sync::{Notify, watch};

use crate::podnet::Attachment;

/// What is to be said, and who waits for an answer.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    news: Notify,
    /// Up to which number announcements are in force elsewhere; `None` while there is no controller to say so.
    announced: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct State {
    /// The newest connection.
    connection: u64,
    /// It is there.
    connected: bool,
    applied: wire::Applied,
    applied_is_news: bool,
    /// For people; said to every connection anew.
    enforced: wire::Enforced,
    enforced_is_news: bool,
    /// The interfaces that there are; `None` before that is known.
    attached: Option<BTreeMap<NamespacedName, Attached>>,
    /// Pods of which this connection has not been told the newest.
    unsaid: BTreeSet<NamespacedName>,
    /// This connection has not been told anything of them.
    whole: bool,
    /// Counts changes of `attached`.
    number: u64,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { state: Mutex::default(), news: Notify::new(), announced: watch::Sender::new(None) }
    }
}

impl Outbox {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.news.notify_one();
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These interfaces there are, and no others.
    pub(crate) fn begin(&self, attachments: impl IntoIterator<Item = Attachment>) {
        let attached = attachments.into_iter().map(|a| (a.pod(), attached(&a))).collect();
        self.change(|state| {
            state.attached = Some(attached);
            state.whole = true;
            state.number += 1;
        });
    }

    /// A pod has an interface from now on. The number is what [`announced`](Self::announced) waits for.
    pub(crate) fn attach(&self, attachment: &Attachment) -> u64 {
        self.put(attachment.pod(), Some(attached(attachment)))
    }

    /// A pod has none any more.
    pub(crate) fn detach(&self, pod: NamespacedName) -> u64 {
        self.put(pod, None)
    }

    fn put(&self, pod: NamespacedName, attached: Option<Attached>) -> u64 {
        self.change(|state| {
            let all = state.attached.get_or_insert_default();
            match attached {
                Some(attached) => drop(all.insert(pod.clone(), attached)),
                None => drop(all.remove(&pod)),
            }
            // A new connection is told all of them.
            if state.connected {
                state.unsaid.insert(pod);
            }
            state.number += 1;
            state.number
        })
    }

    /// Waits until everybody who is to know of the announcement does; at once where there is no controller to tell them.
    pub(crate) async fn announced(&self, number: u64) {
        let mut announced = self.announced.subscribe();
        // It cannot end before this does.
        let _ = announced.wait_for(|up_to| up_to.is_none_or(|up_to| up_to >= number)).await;
    }

    /// New connections follow this revision, which came by that connection.
    pub(crate) fn in_force(&self, connection: u64, revision: u64, closed: usize) {
        self.applied(connection, |applied| {
            applied.revision = revision;
            applied.error.clear();
            applied.closed = u32::try_from(closed).unwrap_or(u32::MAX);
        });
    }

    /// Connections that were there follow this revision, too; so what people applied is in force that has this fingerprint.
    pub(crate) fn followed(&self, connection: u64, revision: u64, fingerprint: &str) {
        self.applied(connection, |applied| applied.followed = revision);
        self.enforced(|enforced, applied| {
            fingerprint.clone_into(&mut enforced.fingerprint);
            enforced.error.clone_from(&applied.error);
            enforced.closed = applied.closed;
        });
    }

    /// The newest revision is not in force.
    pub(crate) fn failed(&self, connection: u64, error: String) {
        self.enforced(|enforced, _| enforced.error.clone_from(&error));
        self.applied(connection, |applied| applied.error = error);
    }

    /// So many pods are closed.
    pub(crate) fn closed(&self, closed: usize) {
        self.enforced(|enforced, _| enforced.closed = u32::try_from(closed).unwrap_or(u32::MAX));
    }

    fn enforced(&self, change: impl FnOnce(&mut wire::Enforced, &wire::Applied)) {
        self.change(|state| {
            let before = state.enforced.clone();
            change(&mut state.enforced, &state.applied);
            state.enforced_is_news |= state.enforced != before;
        });
    }

    fn applied(&self, connection: u64, change: impl FnOnce(&mut wire::Applied)) {
        self.change(|state| {
            // Another controller, or another life of it, counts otherwise.
            if state.connection == connection {
                change(&mut state.applied);
                state.applied_is_news = true;
            }
        });
    }

    /// There is a new connection, whose controller counts its own revisions.
    pub(super) fn connected(&self, connection: u64) {
        self.change(|state| {
            state.connection = connection;
            state.connected = true;
            state.applied = wire::Applied::default();
            state.applied_is_news = false;
            state.enforced_is_news = true;
            state.whole = true;
        });
        self.announced.send_replace(Some(0));
    }

    /// There is no connection any more.
    pub(super) fn alone(&self) {
        let mut state = self.state();
        state.connected = false;
        state.unsaid.clear();
        drop(state);
        self.announced.send_replace(None);
    }

    /// The controller says so.
    pub(super) fn heard(&self, announced: u64) {
        self.announced.send_replace(Some(announced));
    }

    /// Waits until there is something to be said, and takes it.
    pub(super) async fn next(&self) -> Vec<from_agent::What> {
        loop {
            let news = self.state().take();
            if !news.is_empty() {
                return news;
            }
            self.news.notified().await;
        }
    }
}

impl State {
    fn take(&mut self) -> Vec<from_agent::What> {
        let mut news = Vec::new();
        if let Some(attached) = &self.attached
            && (self.whole || !self.unsaid.is_empty())
        {
            let whole = std::mem::take(&mut self.whole);
            let unsaid = std::mem::take(&mut self.unsaid);
            let pods = match whole {
                true => attached.iter().map(|(pod, a)| (pod.clone(), Some(a.clone()))).collect(),
                false => unsaid.into_iter().map(|pod| (pod.clone(), attached.get(&pod).cloned())).collect(),
            };
            let message = Attachments { number: self.number, whole, pods };
            news.push(from_agent::What::Attachments((&message).into()));
        }
        if std::mem::take(&mut self.applied_is_news) {
            news.push(from_agent::What::Applied(self.applied.clone()));
        }
        if std::mem::take(&mut self.enforced_is_news) {
            news.push(from_agent::What::Enforced(self.enforced.clone()));
        }
        news
    }
}

fn attached(attachment: &Attachment) -> Attached {
    Attached {
        uid: attachment.pod_uid.as_deref().map(Into::into),
        addresses: attachment.addresses().collect(),
    }
}
