//! Who waits until others know of his pods' addresses, and until they know that addresses are nobody's any more.

use std::collections::BTreeMap;

use moat_api::Announced;

use super::AgentId;

/// More announcements of one agent than this are answered together.
const MOST: usize = 64;

/// How far an agent has said it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Progress {
    /// New connections follow.
    pub(super) in_force: u64,
    /// Connections that were there follow, too.
    pub(super) followed: u64,
}

/// The announcements of one agent that have no answer yet. What comes and what goes is answered apart: a pod that starts is not
/// to wait for connections of one that ended.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    /// Until new connections follow.
    known: Waits,
    /// Until connections that were there follow, too.
    gone: Waits,
    /// What was answered last.
    said: Announced,
}

impl Announcements {
    /// An announcement is answered when these agents have come to these revisions, as far as each list says.
    pub(super) fn add(
        &mut self,
        number: u64,
        known: impl IntoIterator<Item = (AgentId, u64)>,
        gone: impl IntoIterator<Item = (AgentId, u64)>,
    ) {
        self.known.add(number, known);
        self.gone.add(number, gone);
    }

    /// An agent has come so far. Returns whether there is an answer to be given.
    pub(super) fn came(&mut self, agent: AgentId, progress: Progress) -> bool {
        self.known.came(agent, progress.in_force);
        self.gone.came(agent, progress.followed);
        self.has_news()
    }

    /// Nobody waits for this one any more: it is not connected. Returns whether there is an answer to be given.
    pub(super) fn left(&mut self, agent: AgentId) -> bool {
        self.known.left(agent);
        self.gone.left(agent);
        self.has_news()
    }

    /// The answer, if it is another than the last.
    pub(super) fn take(&mut self) -> Option<Announced> {
        let now = self.now();
        let news = (now != self.said).then_some(now);
        self.said = now;
        news
    }

    fn has_news(&self) -> bool {
        self.now() != self.said
    }

    fn now(&self) -> Announced {
        Announced { number: self.known.answered(), gone: self.gone.answered() }
    }
}

/// An announcement, and the revisions that others must come to before it is answered.
#[derive(Debug)]
struct Wait {
    /// The first that it stands for; also for those up to the next.
    number: u64,
    on: BTreeMap<AgentId, u64>,
}

#[derive(Debug, Default)]
struct Waits {
    /// By number, ascending.
    waiting: Vec<Wait>,
    /// The newest announcement.
    newest: u64,
}

impl Waits {
    fn add(&mut self, number: u64, on: impl IntoIterator<Item = (AgentId, u64)>) {
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
        for (agent, revision) in on {
            let needed = wait.on.entry(agent).or_default();
            *needed = revision.max(*needed);
        }
    }

    fn came(&mut self, agent: AgentId, revision: u64) {
        for wait in &mut self.waiting {
            if wait.on.get(&agent).is_some_and(|needed| *needed <= revision) {
                wait.on.remove(&agent);
            }
        }
        self.waiting.retain(|wait| !wait.on.is_empty());
    }

    fn left(&mut self, agent: AgentId) {
        self.waiting.retain_mut(|wait| {
            wait.on.remove(&agent);
            !wait.on.is_empty()
        });
    }

    /// The announcement up to which all have their answer.
    fn answered(&self) -> u64 {
        // An agent that counts from zero has said so itself.
        self.waiting.first().map_or(self.newest, |wait| wait.number.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_order_and_a_list_that_grows_is_shortened_not_forgotten() {
        let (a, b) = (AgentId(1), AgentId(2));
        let mut waits = Waits::default();
        waits.add(1, [(a, 10), (b, 10)]);
        waits.add(2, [(b, 11)]);
        waits.add(3, []);
        assert_eq!(waits.answered(), 0);
        waits.came(b, 11);
        assert_eq!(waits.answered(), 0, "the first still waits for the other");
        waits.came(a, 9);
        assert_eq!(waits.answered(), 0);
        waits.came(a, 10);
        assert_eq!(waits.answered(), 3);

        for number in 4..200 {
            waits.add(number, [(b, number)]);
        }
        assert_eq!((waits.waiting.len(), waits.answered()), (MOST, 3));
        waits.came(b, 70);
        assert!(waits.answered() < 70);
        waits.came(b, 199);
        assert_eq!(waits.answered(), 199);
        waits.add(200, [(a, 200)]);
        waits.left(a);
        assert_eq!(waits.answered(), 200);
    }

    #[test]
    fn whatever_number_an_agent_says_only_its_own_answers_are_others() {
        let b = AgentId(2);
        for number in [0, u64::MAX] {
            let mut announcements = Announcements::default();
            announcements.add(number, [(b, 5)], [(b, 5)]);
            assert_eq!(announcements.now().number, number.saturating_sub(1));
            announcements.came(b, Progress { in_force: 5, followed: 5 });
            assert_eq!(announcements.now(), Announced { number, gone: number });
        }
    }

    #[test]
    fn what_comes_does_not_wait_for_what_goes() {
        let b = AgentId(2);
        let mut announcements = Announcements::default();
        announcements.add(1, [], [(b, 5)]);
        announcements.add(2, [(b, 6)], []);
        assert_eq!(announcements.take(), Some(Announced { number: 1, gone: 0 }));
        assert!(announcements.came(b, Progress { in_force: 6, followed: 0 }));
        assert_eq!(announcements.take(), Some(Announced { number: 2, gone: 0 }));
        assert!(announcements.came(b, Progress { in_force: 6, followed: 5 }));
        assert_eq!(announcements.take(), Some(Announced { number: 2, gone: 2 }));
        assert_eq!(announcements.take(), None);
    }
}
