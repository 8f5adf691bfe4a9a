//! Pods that are closed although policy allows them something: the kernel did not take their rules, or a limit keeps them
//! from it. Pure.
//!
//! What is refused or limited is a *subject*: an allow set, a program, or what a pod has of its own. A pod is closed as
//! long as anything that it needs is: so one change that makes it good opens all of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use moat_policies::{self as policies, Allow, Excess, NamespacedName, Program, ProgramId, SetId};

/// What one pod, one policy and the node may ask of the kernel. Beyond that the subject is closed: one namespace's policies
/// must not slow down, or keep from the kernel, those of all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Port classes of a pod, in one direction. The kernel has a chain and up to four sets for each.
    pub classes: usize,
    /// Prefixes of an allow set: CIDRs less their excepts.
    pub prefixes: usize,
    /// Elements of all allow sets of the node. The largest are left out first.
    pub elements: usize,
}

impl Limits {
    /// What the engine is not to work out.
    pub fn of_the_engine(&self) -> policies::Limits {
        policies::Limits { classes: self.classes, work: self.classes.saturating_mul(WORK_OF_A_CLASS) }
    }
}

/// So much work on each class that may be. Docs: how long that takes.
const WORK_OF_A_CLASS: usize = 8192;

impl Default for Limits {
    fn default() -> Self {
        Self { classes: 256, prefixes: 20_000, elements: 300_000 }
    }
}

/// Why something is not in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The kernel refused it, in these words.
    Refused(Arc<str>),
    /// A program has too many port classes.
    Classes { count: usize, limit: usize },
    /// The engine did not work a program out.
    Excess(Excess),
    /// An allow set has too many prefixes.
    Prefixes { count: usize, limit: usize },
    /// An allow set does not fit on the node any more.
    Elements { count: usize, limit: usize },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Refused(words) => f.write_str(words),
            Reason::Classes { count, limit } => write!(
                f,
                "policy distinguishes {count} classes of ports for it, and --max-classes-per-pod is {limit}"
            ),
            Reason::Excess(Excess::Classes(limit)) => {
                write!(f, "policy distinguishes more classes of ports for it than --max-classes-per-pod {limit}")
            }
            Reason::Excess(Excess::Work(_)) => f.write_str(
                "its policies overlap on too many ports, with too many peers, to be worked out; --max-classes-per-pod raises \
                 this limit too",
            ),
            Reason::Prefixes { count, limit } => write!(
                f,
                "policy allows it {count} prefixes (CIDRs less their excepts) on one class of ports, and \
                 --max-prefixes is {limit}"
            ),
            Reason::Elements { count, limit } => write!(
                f,
                "one of its allow sets has {count} elements, with which the node would have more than \
                 --max-elements {limit}"
            ),
        }
    }
}

/// What can be refused or limited.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// An allow set.
    Set(SetId),
    /// A verdict program, in either direction.
    Program(ProgramId),
    /// What a pod has of its own: its interface's chain, and an element in each of the sets of pods.
    Pod(NamespacedName),
}

/// Everything that is not in the kernel and should be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Closings {
    /// What the kernel refused, until it changes or is tried again.
    refused: BTreeMap<Subject, Refusal>,
    /// What is above a limit, as things are.
    limited: BTreeMap<Subject, Reason>,
}

#[derive(Debug, Clone)]
struct Refusal {
    reason: Reason,
    /// Refused once more, as what only drops everything: nothing at all is in the tables then, which drops everything too.
    twice: bool,
}

impl Closings {
    /// Whether everything is as it should be.
    pub(crate) fn is_empty(&self) -> bool {
        self.refused.is_empty() && self.limited.is_empty()
    }

    /// Why a subject is not in the kernel.
    pub(crate) fn why(&self, subject: &Subject) -> Option<&Reason> {
        self.refused.get(subject).map(|r| &r.reason).or_else(|| self.limited.get(subject))
    }

    /// Whether a pod has nothing in the tables, not even what drops everything.
    pub(crate) fn omits(&self, pod: &NamespacedName) -> bool {
        !self.refused.is_empty() && self.refused.get(&Subject::Pod(pod.clone())).is_some_and(|r| r.twice)
    }

    /// The kernel refused this.
    pub(crate) fn refuse(&mut self, subject: Subject, reason: Reason) {
        let twice = self.refused.contains_key(&subject);
        self.refused.insert(subject, Refusal { reason, twice });
    }

    /// Lets what was refused be tried again, where `which` says so; tells whether there was any.
    pub(crate) fn lift(&mut self, which: impl Fn(&Subject) -> bool) -> bool {
        let before = self.refused.len();
        self.refused.retain(|subject, _| !which(subject));
        self.refused.len() != before
    }

    /// Whether the kernel refused anything that could be tried again.
    pub(crate) fn any_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// What is above a limit now; tells whether that is something else than before.
    pub(crate) fn limit(&mut self, limited: BTreeMap<Subject, Reason>) -> bool {
        let changed = self.limited != limited;
        self.limited = limited;
        changed
    }

    /// Whether a program, or a set that it looks into, is not in the kernel; and why.
    pub(crate) fn why_program(&self, id: ProgramId, program: &Program) -> Option<&Reason> {
        if self.is_empty() {
            return None;
        }
        self.why(&Subject::Program(id))
            .or_else(|| sets_of(program).find_map(|set| self.why(&Subject::Set(set))))
    }
}

/// The allow sets that a program looks into; some perhaps more than once.
pub(crate) fn sets_of(program: &Program) -> impl Iterator<Item = SetId> + '_ {
    let allows = program.classes.iter().map(|class| class.allow).chain(program.every);
    allows
        .filter_map(|allow| match allow {
            Allow::Set(id) => Some(id),
            Allow::Everyone => None,
        })
        .chain(program.named)
}
