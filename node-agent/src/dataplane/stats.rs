//! Numbers about the data plane, for whoever renders them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What the writer has done since the start. Shared; every number may be read at any time.
        #[derive(Debug, Default)]
        pub struct Stats {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Stats {
            $($(#[$doc])* pub fn $name(&self) -> u64 { self.$name.load(Ordering::Relaxed) })*

            /// All of them by name, in a fixed order.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name())),*]
            }
        }
    };
}

counters! {
    /// Updates that were submitted.
    updates,
    /// Updates that went into a commit together with an earlier one.
    coalesced,
    /// Commits that changed something.
    commits,
    /// Commits that the kernel refused.
    refusals,
    /// Times that our tables were listed: at the start, and after trouble.
    listings,
    /// Commits by others that did not touch our tables, as far as we listened.
    foreign_commits,
    /// Times that our tables were restored because somebody had changed or deleted them.
    restores,
    /// Nanoseconds that the last commit took.
    last_commit_ns,
    /// Nanoseconds that all commits took.
    commit_ns,
    /// Pods in force.
    pods,
    /// Pods that are closed because the kernel refused what they need, or a limit keeps it from the kernel.
    closed,
    /// 1 while our tables have us as their owner.
    owner,
    /// 1 while a guard keeps the owner of our tables, so that they have one also when we do not live.
    guard,
    /// 1 while the kernel does not hold what it is to hold; retried every second.
    behind,
}

impl Stats {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set(gauge: &AtomicU64, value: u64) {
        gauge.store(value, Ordering::Relaxed);
    }

    pub(super) fn committed(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        Self::count(&self.commits);
        Self::set(&self.last_commit_ns, ns);
        self.commit_ns.fetch_add(ns, Ordering::Relaxed);
    }
}
