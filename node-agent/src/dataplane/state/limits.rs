//! What is above a limit, and what is not in the tables because of that or of a refusal.

use std::collections::{BTreeMap, BTreeSet};

use moat_policies::{ProgramId, SetId};

use super::State;
use super::sets::HeldSet;
use crate::dataplane::closed::{Limits, Reason, Subject, sets_of};

impl State {
    /// Finds out what is above a limit; tells whether that has changed.
    pub(super) fn limit(&mut self) -> bool {
        let Limits { classes, prefixes, elements } = self.limits;
        let mut limited = BTreeMap::new();
        for (id, program) in &self.programs {
            let count = program.classes.len();
            let reason = match program.excess {
                Some(excess) => Reason::Excess(excess),
                None if count > classes => Reason::Classes { count, limit: classes },
                None => continue,
            };
            limited.insert(Subject::Program(*id), reason);
        }
        for (id, set) in self.sets.iter().filter(|(_, s)| s.prefixes.len() > prefixes) {
            let reason = Reason::Prefixes { count: set.prefixes.len(), limit: prefixes };
            limited.insert(Subject::Set(*id), reason);
        }
        let all: usize = self.sets.values().map(HeldSet::size).sum();
        let mut changed = self.closings.limit(limited.clone());
        if all > elements {
            // What is left out anyhow does not count.
            let absent = self.absent();
            let mut present: Vec<(usize, SetId)> = self
                .sets
                .iter()
                .filter(|(id, _)| !absent.contains(id))
                .map(|(id, s)| (s.size(), *id))
                .collect();
            present.sort_unstable();
            let mut total: usize = present.iter().map(|(size, _)| size).sum();
            while total > elements
                && let Some((size, id)) = present.pop()
            {
                total -= size;
                limited.insert(Subject::Set(id), Reason::Elements { count: size, limit: elements });
            }
            changed = self.closings.limit(limited) || changed;
        }
        changed
    }

    /// The allow sets that are not to be in the tables.
    pub(super) fn absent(&self) -> BTreeSet<SetId> {
        if self.closings.is_empty() {
            return BTreeSet::new();
        }
        let mut absent: BTreeSet<SetId> =
            self.sets.keys().filter(|id| self.closings.why(&Subject::Set(**id)).is_some()).copied().collect();
        let open_pods =
            self.pods.iter().filter(|(name, _)| self.closings.why(&Subject::Pod((*name).clone())).is_none());
        let open: BTreeSet<ProgramId> = open_pods
            .flat_map(|(_, programs)| [programs.ingress, programs.egress])
            .flatten()
            .filter(|id| {
                self.programs.get(id).is_some_and(|program| self.closings.why_program(*id, program).is_none())
            })
            .collect();
        let (open, closed): (Vec<_>, Vec<_>) = self.programs.iter().partition(|(id, _)| open.contains(id));
        let needed: BTreeSet<SetId> = open.into_iter().flat_map(|(_, program)| sets_of(program)).collect();
        absent.extend(closed.into_iter().flat_map(|(_, p)| sets_of(p)).filter(|id| !needed.contains(id)));
        absent
    }
}
