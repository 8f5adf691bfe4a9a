//! What is to be said to controllers: the newest of everything, however long they do not listen.
//!
//! One controller is followed, and hears how far it is followed. It and every other replica that it names, each an *ear*, hear
//! which interfaces the node has, and answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moat_api::wire::{self, from_agent};
use moat_api::{Announced, Attached, Attachments};
use moat_policies::NamespacedName;
use tokio::sync::{Notify, watch};

use super::endpoint::Endpoint;
use crate::podnet::{Answers, Attachment};

/// What is to be said, and who waits for an answer.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Up to which number new connections elsewhere know of what is there; `None` while nobody is there to say so.
    known: watch::Sender<Option<u64>>,
    /// Up to which number nobody has anything of what is gone.
    answers: Arc<Answers>,
    /// Which replicas are to be told.
    replicas: watch::Sender<BTreeSet<Endpoint>>,
    /// The process that is followed, while one is.
    followed: watch::Sender<Option<String>>,
}

/// A controller that is told of attachments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ear {
    /// The one that is followed.
    Followed,
    /// A replica.
    Replica(Endpoint),
}

#[derive(Debug, Default)]
struct State {
    /// The newest connection to the controller that is followed.
    connection: u64,
    applied: wire::Applied,
    applied_is_news: bool,
    /// For people; said to every connection anew.
    enforced: wire::Enforced,
    /// The interfaces that there are; `None` before that is known.
    attached: Option<BTreeMap<NamespacedName, Attached>>,
    /// Counts changes of `attached`.
    number: u64,
    ears: BTreeMap<Ear, Listener>,
    /// The process that is followed, while one is.
    process: Option<String>,
    /// Where replicas are, as it has said; `None` before it has.
    listed: Option<BTreeSet<Endpoint>>,
}

/// What one controller has heard.
#[derive(Debug, Default)]
struct Listener {
    presence: Presence,
    /// Woken when there is something to be said.
    news: Arc<Notify>,
    /// Pods of which it has not been told the newest.
    unsaid: BTreeSet<NamespacedName>,
    /// It has not been told anything of them.
    whole: bool,
    /// It has not been told the newest for people.
    enforced_is_news: bool,
    /// What it has answered.
    answered: Announced,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Presence {
    /// It is about to be found out.
    #[default]
    Unknown,
    Here,
    Away,
    /// It is the one that is followed.
    Same,
}

impl Outbox {
    /// An outbox that says in `answers` how far it was answered.
    pub(crate) fn new(answers: Arc<Answers>) -> Self {
        let listener = Listener { presence: Presence::Away, ..Listener::default() };
        let state = State { ears: [(Ear::Followed, listener)].into(), ..State::default() };
        Self {
            state: Mutex::new(state),
            known: watch::Sender::new(None),
            answers,
            replicas: watch::Sender::default(),
            followed: watch::Sender::default(),
        }
    }

    /// Changes something, and tells whoever waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        state.ears.values().for_each(|listener| listener.news.notify_one());
        self.answers.announce(state.number);
        self.answers.answer(state.gone());
        let (known, replicas) = (state.known(), state.replicas());
        self.known.send_if_modified(|before| std::mem::replace(before, known) != known);
        self.replicas.send_if_modified(|before| {
            let other = *before != replicas;
            *before = replicas;
            other
        });
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
            state.ears.values_mut().for_each(|listener| listener.whole = true);
            state.number += 1;
        });
    }

    /// A pod has an interface from now on. The number is what [`announced`](Self::announced) waits for.
    pub(crate) fn attach(&self, attachment: &Attachment) -> u64 {
        self.change(|state| {
            let pod = attachment.pod();
            state.attached.get_or_insert_default().insert(pod.clone(), attached(attachment));
            state.say(pod)
        })
    }

    /// This interface is going. Another one that its pod has got meanwhile stays.
    pub(crate) fn detach(&self, attachment: &Attachment) {
        self.change(|state| {
            let pod = attachment.pod();
            let all = state.attached.get_or_insert_default();
            if all.get(&pod).is_some_and(|newest| *newest == attached(attachment)) {
                all.remove(&pod);
                state.say(pod);
            }
        });
    }

    /// Waits until everybody who is to know of the announcement does; at once where there is no controller to tell them.
    pub(crate) async fn announced(&self, number: u64) {
        let mut known = self.known.subscribe();
        // It cannot end before this does.
        let _ = known.wait_for(|up_to| up_to.is_none_or(|up_to| up_to >= number)).await;
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
            if state.enforced != before {
                state.ears.values_mut().for_each(|listener| listener.enforced_is_news = true);
            }
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

    /// A controller is followed, by this connection; `process` names it. It counts its own revisions. Its answers are worth
    /// something once it has said which replicas there are, which one of an earlier `level` never does: it has none.
    pub(super) fn follows(&self, connection: u64, process: &str, level: u32) {
        self.change(|state| {
            state.connection = connection;
            state.applied = wire::Applied::default();
            state.applied_is_news = false;
            state.listed = None;
            state.process = Some(process.to_owned());
            self.followed.send_replace(Some(process.to_owned()));
            for (ear, listener) in &mut state.ears {
                match ear {
                    Ear::Followed => listener.hears_all(),
                    // Which of them it is is to be found out anew, and until then its answer counts.
                    Ear::Replica(_) if listener.presence == Presence::Same => *listener = Listener::default(),
                    Ear::Replica(_) => {}
                }
            }
        });
        if level < 2 {
            self.lists(BTreeSet::new());
        }
    }

    /// A replica listens.
    pub(super) fn hears(&self, ear: &Ear) {
        self.at(ear, Listener::hears_all);
    }

    /// Whether the process that this replica is is the one that is followed. If so nothing is said to it twice.
    pub(super) fn is_followed(&self, ear: &Ear, process: &str) -> bool {
        self.change(|state| {
            let same = state.process.as_deref() == Some(process);
            if let Some(listener) = state.ears.get_mut(ear).filter(|_| same) {
                listener.presence = Presence::Same;
            }
            same
        })
    }

    /// Changes what is known of an ear, if it is one still.
    fn at(&self, ear: &Ear, change: impl FnOnce(&mut Listener)) {
        self.change(|state| {
            if let Some(listener) = state.ears.get_mut(ear) {
                change(listener);
            }
        });
    }

    /// A controller does not listen any more, or cannot be reached.
    pub(super) fn away(&self, ear: &Ear) {
        self.change(|state| {
            if let Some(listener) = state.ears.get_mut(ear) {
                listener.presence = Presence::Away;
                listener.unsaid.clear();
            }
            state.forget_absent();
            if *ear == Ear::Followed {
                state.process = None;
                self.followed.send_replace(None);
            }
        });
    }

    /// The controller that is followed says where replicas are. One that is not among them any more may have agents that follow it as
    /// long as it is there.
    pub(super) fn lists(&self, endpoints: BTreeSet<Endpoint>) {
        self.change(|state| {
            for endpoint in &endpoints {
                state.ears.entry(Ear::Replica(endpoint.clone())).or_default();
            }
            state.listed = Some(endpoints);
            state.forget_absent();
        });
    }

    /// Which replicas are to be told.
    pub(super) fn replicas(&self) -> watch::Receiver<BTreeSet<Endpoint>> {
        self.replicas.subscribe()
    }

    /// Which process is followed.
    pub(super) fn process(&self) -> watch::Receiver<Option<String>> {
        self.followed.subscribe()
    }

    /// A controller answers.
    pub(super) fn heard(&self, ear: &Ear, answered: Announced) {
        self.at(ear, |listener| listener.answered = answered);
    }

    /// Waits until there is something to be said to this one, and takes it.
    pub(super) async fn next(&self, ear: &Ear) -> Vec<from_agent::What> {
        loop {
            let woken = {
                let mut state = self.state();
                let news = state.take(ear);
                if !news.is_empty() {
                    return news;
                }
                state.ears.get(ear).map(|listener| listener.news.clone())
            };
            match woken {
                Some(woken) => woken.notified().await,
                // It is not told anything any more, and whoever asks in its name is about to end.
                None => std::future::pending().await,
            }
        }
    }
}

impl State {
    /// Something of this pod is to be said.
    fn say(&mut self, pod: NamespacedName) -> u64 {
        // Whoever comes later is told all of them.
        for listener in self.ears.values_mut().filter(|listener| listener.presence == Presence::Here) {
            listener.unsaid.insert(pod.clone());
        }
        self.number += 1;
        self.number
    }

    /// The replicas that are listed, or listen all the same.
    fn replicas(&self) -> BTreeSet<Endpoint> {
        let endpoint = |ear: &Ear| match ear {
            Ear::Followed => None,
            Ear::Replica(endpoint) => Some(endpoint.clone()),
        };
        self.ears.keys().filter_map(endpoint).collect()
    }

    /// Who is not listed and does not listen is none any more.
    fn forget_absent(&mut self) {
        let Some(listed) = &self.listed else { return };
        self.ears.retain(|ear, listener| match ear {
            Ear::Followed => true,
            Ear::Replica(endpoint) => listed.contains(endpoint) || listener.presence == Presence::Here,
        });
    }

    /// Up to which number those who can be asked have answered that what is there is known; `None` where there is nobody.
    fn known(&self) -> Option<u64> {
        let here = |listener: &&Listener| listener.presence == Presence::Here;
        self.ears.values().find(here)?;
        // Who is about to be found is waited for: it may have agents that are concerned.
        let asked = |l: &&Listener| matches!(l.presence, Presence::Here | Presence::Unknown);
        self.ears.values().filter(asked).map(|listener| listener.answered.number).min()
    }

    /// Up to which number all have answered that what is gone is gone; where one cannot be asked, nobody knows.
    fn gone(&self) -> u64 {
        let counts = |listener: &&Listener| listener.presence != Presence::Same;
        let answered = self.ears.values().filter(counts).map(|listener| listener.answered.gone);
        answered.min().filter(|_| self.listed.is_some()).unwrap_or(0)
    }

    fn take(&mut self, ear: &Ear) -> Vec<from_agent::What> {
        let mut news = Vec::new();
        let number = self.number;
        if let (Some(attached), Some(listener)) = (&self.attached, self.ears.get_mut(ear))
            && (listener.whole || !listener.unsaid.is_empty())
        {
            let whole = std::mem::take(&mut listener.whole);
            let unsaid = std::mem::take(&mut listener.unsaid);
            let pods = match whole {
                true => attached.iter().map(|(pod, a)| (pod.clone(), Some(a.clone()))).collect(),
                false => unsaid.into_iter().map(|pod| (pod.clone(), attached.get(&pod).cloned())).collect(),
            };
            let message = Attachments { number, whole, pods };
            news.push(from_agent::What::Attachments((&message).into()));
        }
        if *ear == Ear::Followed && std::mem::take(&mut self.applied_is_news) {
            news.push(from_agent::What::Applied(self.applied.clone()));
        }
        if let Some(listener) = self.ears.get_mut(ear)
            && std::mem::take(&mut listener.enforced_is_news)
        {
            news.push(from_agent::What::Enforced(self.enforced.clone()));
        }
        news
    }
}

impl Listener {
    /// It is there, anew: what it has heard before, it may have forgotten.
    fn hears_all(&mut self) {
        self.presence = Presence::Here;
        (self.whole, self.enforced_is_news) = (true, true);
        self.unsaid.clear();
        self.answered = Announced::default();
    }
}

fn attached(attachment: &Attachment) -> Attached {
    Attached {
        uid: attachment.pod_uid.as_deref().map(Into::into),
        addresses: attachment.addresses().collect(),
    }
}
