//! Who waits until others know of his pods' addresses.

use std::collections::{BTreeMap, BTreeSet};

use super::AgentId;

/// More announcements of one agent than this are answered together.
const MOST: usize = 64;

/// How far somebody must say he is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// New connections follow.
    InForce,
    /// Connections that were there follow, too.
    Followed,
}

/// How far an agent has said it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Progress {
    pub(super) in_force: u64,
    pub(super) followed: u64,
}

/// An announcement, and on whom its answer waits.
#[derive(Debug)]
struct Wait {
    /// The first that it stands for; also for those up to the next.
    number: u64,
    on: BTreeMap<AgentId, Needed>,
}

/// Revisions that an agent must have come to.
#[derive(Clone, Copy, Debug, Default)]
struct Needed(Progress);

impl Needed {
    fn raise(&mut self, revision: u64, until: Until) {
        let needed = match until {
            Until::InForce => &mut self.0.in_force,
            Until::Followed => &mut self.0.followed,
        };
        *needed = (*needed).max(revision);
    }

    fn met(&self, progress: Progress) -> bool {
        progress.in_force >= self.0.in_force && progress.followed >= self.0.followed
    }
}

/// The announcements of one agent that have no answer yet.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// By number, ascending.
    waiting: Vec<Wait>,
    /// The newest announcement.
    newest: u64,
}

impl Waits {
    /// An announcement waits for these agents to come to this revision, each as far as said.
    pub(super) fn add(&mut self, number: u64, revision: u64, on: impl IntoIterator<Item = (AgentId, Until)>) {
        self.newest = number;
        let mut on = on.into_iter().peekable();
        if on.peek().is_none() {
            return;
        }
        // A full list's newest entry stands for more then, and is answered later than it could be; the list stays short.
        if self.waiting.len() < MOST {
            self.waiting.push(Wait { number, on: BTreeMap::new() });
        }
        let Some(wait) = self.waiting.last_mut() else { return };
        for (agent, until) in on {
            wait.on.entry(agent).or_default().raise(revision, until);
        }
    }

    /// An agent has come so far.
    pub(super) fn came(&mut self, agent: AgentId, progress: Progress) {
        for wait in &mut self.waiting {
            if wait.on.get(&agent).is_some_and(|needed| needed.met(progress)) {
                wait.on.remove(&agent);
            }
        }
        self.waiting.retain(|wait| !wait.on.is_empty());
    }

    /// Nobody waits for these any more: they are not connected.
    pub(super) fn gone(&mut self, agents: &BTreeSet<AgentId>) {
        for wait in &mut self.waiting {
            wait.on.retain(|agent, _| !agents.contains(agent));
        }
        self.waiting.retain(|wait| !wait.on.is_empty());
    }

    /// The announcement up to which all have their answer.
    pub(super) fn answered(&self) -> u64 {
        self.waiting.first().map_or(self.newest, |wait| wait.number - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_order_and_a_list_that_grows_is_shortened_not_forgotten() {
        let (a, b) = (AgentId(1), AgentId(2));
        let came = |in_force, followed| Progress { in_force, followed };
        let mut waits = Waits::default();
        waits.add(1, 10, [(a, Until::InForce), (b, Until::InForce)]);
        waits.add(2, 11, [(b, Until::Followed)]);
        waits.add(3, 11, []);
        assert_eq!(waits.answered(), 0);
        waits.came(b, came(11, 11));
        assert_eq!(waits.answered(), 0, "the first still waits for the other");
        waits.came(a, came(9, 9));
        assert_eq!(waits.answered(), 0);
        waits.came(a, came(10, 0));
        assert_eq!(waits.answered(), 3);

        for number in 4..200 {
            waits.add(number, number, [(b, Until::Followed)]);
        }
        assert_eq!((waits.waiting.len(), waits.answered()), (MOST, 3));
        waits.came(b, came(199, 70));
        assert!(waits.answered() < 70);
        waits.came(b, came(199, 199));
        assert_eq!(waits.answered(), 199);
        waits.add(200, 200, [(a, Until::InForce)]);
        waits.gone(&[a].into());
        assert_eq!(waits.answered(), 200);
    }
}
