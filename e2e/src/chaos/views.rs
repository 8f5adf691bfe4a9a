//! Which states of the policies a node may be enforcing at a moment. Pure.
//!
//! Every write of the folder begins a new *epoch*. A node goes over to it at some time between the write and the end of
//! the grace; where its agent was not there, some time after it was started again, and at the latest when it said
//! so. A node whose agent is dead goes over to nothing.
//!
//! ```text
//!   write ──────── +30 ms                     killed   write           started again     ready
//!     │ old or new │ new                          │      │   old only       │ old or new  │ new
//! ```

use std::time::Duration;

use super::clock::Moment;

/// A state of the folder, by its number.
pub(crate) type Epoch = usize;

/// When a node may have gone over to an epoch, and from when it has for sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Switch {
    from: Moment,
    /// When the write was done.
    written: Moment,
    until: Moment,
}

/// Whether the agent can act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agent {
    Ready,
    Dead,
    Starting,
}

/// What one node may be enforcing.
#[derive(Clone, Debug)]
pub(crate) struct View {
    grace: Duration,
    agent: Agent,
    switches: Vec<Switch>,
    /// When its tables were in somebody else's hands: anything may have passed, or not.
    damaged: Vec<(Moment, Moment)>,
}

impl View {
    /// A node that enforces epoch 0.
    pub(crate) fn new(grace: Duration) -> Self {
        let first = Switch { from: Moment(0), written: Moment(0), until: Moment(0) };
        Self { grace, agent: Agent::Ready, switches: vec![first], damaged: Vec::new() }
    }

    /// The next epoch was written: not before `from`, and not after `to`.
    pub(crate) fn written(&mut self, from: Moment, to: Moment) {
        let (from, until) = match self.agent {
            Agent::Ready => (from, to + self.grace),
            Agent::Starting => (from, Moment::NEVER),
            Agent::Dead => (Moment::NEVER, Moment::NEVER),
        };
        self.switches.push(Switch { from, written: to, until });
    }

    /// From this moment on the agent may be dead.
    pub(crate) fn killed(&mut self, at: Moment) {
        // What it had no time for is not done for sure.
        for switch in self.switches.iter_mut().rev().take_while(|s| s.until > at) {
            switch.until = Moment::NEVER;
        }
        self.agent = Agent::Starting;
    }

    /// It is dead.
    pub(crate) fn dead(&mut self) {
        self.agent = Agent::Dead;
    }

    /// Not before this moment, the next one was started.
    pub(crate) fn started(&mut self, at: Moment) {
        for switch in self.switches.iter_mut().rev().take_while(|s| s.from == Moment::NEVER) {
            switch.from = at;
        }
        self.agent = Agent::Starting;
    }

    /// At this moment it said that an epoch is in force.
    pub(crate) fn ready(&mut self, at: Moment, epoch: Epoch) {
        let grace = self.grace;
        for (number, switch) in self.switches.iter_mut().enumerate() {
            if switch.until == Moment::NEVER {
                switch.until = if number <= epoch { at } else { at.max(switch.written) + grace };
            }
        }
        self.agent = Agent::Ready;
    }

    /// Its agent, which was ready, waited for a processor: an epoch had until this moment.
    pub(crate) fn lengthened(&mut self, epoch: Epoch, until: Moment) {
        if let Some(switch) = self.switches.get_mut(epoch).filter(|s| s.until != Moment::NEVER) {
            switch.until = switch.until.max(until);
        }
    }

    /// Its tables were changed by somebody else, and repaired by the end of this time.
    pub(crate) fn damaged(&mut self, from: Moment, until: Moment) {
        self.damaged.push((from, until));
    }

    /// Whether its tables were in somebody else's hands in this time.
    pub(crate) fn was_damaged(&self, from: Moment, until: Moment) -> bool {
        self.damaged.iter().any(|(start, end)| *start <= until && from <= *end)
    }

    /// When an epoch was written.
    pub(crate) fn written_at(&self, epoch: Epoch) -> Moment {
        self.switches.get(epoch).map_or(Moment::NEVER, |s| s.written)
    }

    /// Whether one of these epochs had to wait for an agent.
    pub(crate) fn waited(&self, epochs: std::ops::RangeInclusive<Epoch>) -> bool {
        let late = |s: &Switch| s.until > s.written + self.grace;
        self.switches.get(epochs).is_some_and(|some| some.iter().any(late))
    }

    /// The first and the last epoch that may have been in force in this time.
    pub(crate) fn possible(&self, from: Moment, until: Moment) -> (Epoch, Epoch) {
        let oldest = self.switches.iter().rposition(|s| s.until <= from).unwrap_or(0);
        let newest = self.switches.iter().rposition(|s| s.from <= until).unwrap_or(0);
        (oldest, newest.max(oldest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_nanos(30);

    fn at(view: &View, moment: u64) -> (Epoch, Epoch) {
        view.possible(Moment(moment), Moment(moment))
    }

    #[test]
    fn a_write_takes_effect_within_the_grace() {
        let mut view = View::new(GRACE);
        view.written(Moment(100), Moment(102));
        assert_eq!([99, 100, 131, 132].map(|m| at(&view, m)), [(0, 0), (0, 1), (0, 1), (1, 1)]);
        assert_eq!(view.possible(Moment(50), Moment(500)), (0, 1));
    }

    #[test]
    fn a_dead_agent_keeps_what_was_in_force_until_the_next_one() {
        let mut view = View::new(GRACE);
        view.killed(Moment(90));
        view.dead();
        view.written(Moment(100), Moment(102));
        assert_eq!(at(&view, 1000), (0, 0));
        view.started(Moment(200));
        assert_eq!([199, 200, 1000].map(|m| at(&view, m)), [(0, 0), (0, 1), (0, 1)]);
        view.written(Moment(250), Moment(252));
        view.ready(Moment(300), 1);
        assert_eq!([249, 250, 300, 329, 330].map(|m| at(&view, m)), [(0, 1), (0, 2), (1, 2), (1, 2), (2, 2)]);
        assert!(view.waited(1..=1));
    }

    #[test]
    fn an_agent_killed_amid_a_change_may_have_made_it_or_not() {
        let mut view = View::new(GRACE);
        view.written(Moment(100), Moment(102));
        view.killed(Moment(110));
        view.dead();
        assert_eq!([105, 500].map(|m| at(&view, m)), [(0, 1), (0, 1)]);
        view.started(Moment(600));
        view.ready(Moment(700), 1);
        assert_eq!([699, 700].map(|m| at(&view, m)), [(0, 1), (1, 1)]);
    }

    #[test]
    fn an_agent_without_a_processor_has_longer() {
        let mut view = View::new(GRACE);
        view.written(Moment(100), Moment(102));
        view.lengthened(1, Moment(150));
        assert_eq!([149, 150].map(|m| at(&view, m)), [(0, 1), (1, 1)]);
        view.written(Moment(200), Moment(202));
        view.killed(Moment(210));
        view.lengthened(2, Moment(250));
        assert_eq!(at(&view, 260), (1, 2), "it may not have done it at all");
    }

    #[test]
    fn a_change_that_was_done_before_the_kill_stays_done() {
        let mut view = View::new(GRACE);
        view.written(Moment(100), Moment(102));
        view.killed(Moment(140));
        view.dead();
        assert_eq!(at(&view, 150), (1, 1));
    }
}
