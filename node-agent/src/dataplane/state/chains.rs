//! Chains of programs and of their peers: they are there as long as some pod has the program.

use std::collections::BTreeMap;

use moat_policies::{Direction, ProgramId, SetId};

use super::State;
use crate::dataplane::layout::{self, ChainRules, ProgramObjects, Table};
use crate::dataplane::op::{Op, Plan};

impl State {
    /// Plans the chains of programs that came into use or fell out of it. Those of peers stay where another program leads there.
    pub(super) fn chains(
        &mut self,
        before: &BTreeMap<(Direction, ProgramId), usize>,
        plan: &mut Plan,
        last: &mut Vec<Op>,
    ) {
        let objects = |wanted: fn(bool, bool) -> bool| -> Vec<(Direction, ProgramObjects)> {
            let all = before.iter().filter(|(program, n)| wanted(**n > 0, self.used.contains_key(program)));
            all.filter_map(|(&(direction, id), _)| Some((direction, self.objects(direction, id)?))).collect()
        };
        let (new, gone) = (objects(|before, now| !before && now), objects(|before, now| before && !now));
        let mut touched = BTreeMap::new();
        for (all, comes) in [(&new, true), (&gone, false)] {
            for (direction, id) in
                all.iter().flat_map(|(direction, o)| o.peers.iter().map(|id| (*direction, *id)))
            {
                let count = self.peers.entry((direction, id)).or_default();
                touched.entry((direction, id)).or_insert(*count);
                *count = if comes { *count + 1 } else { count.saturating_sub(1) };
            }
        }
        self.peers.retain(|_, count| *count > 0);
        let now = |peers| self.peers.contains_key(peers);
        for &(direction, id) in touched.iter().filter(|(p, n)| **n == 0 && now(p)).map(|(p, _)| p) {
            self.peer_chains(direction, id).into_iter().for_each(|chain| add_chain(&mut plan.stage, chain));
        }
        for (_, objects) in new {
            for (map, elements) in objects.maps {
                plan.stage.push(Op::AddSet(Table::Inet, map.clone()));
                plan.stage.push(Op::AddElements(Table::Inet, map, elements));
            }
            objects.chains.into_iter().for_each(|chain| add_chain(&mut plan.stage, chain));
        }
        // The reverse order, and before the sets that they look into.
        let delete = |c: ChainRules| Op::DeleteChain(Table::Inet, c.chain.name);
        let mut deletions = Vec::new();
        for (_, objects) in gone {
            deletions.extend(objects.chains.into_iter().map(delete));
            let maps = objects.maps.into_iter();
            deletions.extend(maps.map(|(map, _)| Op::DeleteSet(Table::Inet, map.name().clone())));
        }
        for &(direction, id) in touched.iter().filter(|(p, n)| **n > 0 && !now(p)).map(|(p, _)| p) {
            deletions.extend(self.peer_chains(direction, id).into_iter().map(delete));
        }
        last.splice(0..0, deletions);
    }

    pub(super) fn peer_chains(&self, direction: Direction, set: SetId) -> [ChainRules; 2] {
        layout::peers(direction, set, self.parts(set))
    }

    pub(super) fn objects(&self, direction: Direction, id: ProgramId) -> Option<ProgramObjects> {
        Some(layout::program(direction, id, self.programs.get(&id)?, &|set| self.parts(set)))
    }
}

pub(super) fn add_chain(ops: &mut Vec<Op>, chain: ChainRules) {
    let name = chain.chain.name.clone();
    ops.push(Op::AddChain(chain.table, chain.chain));
    ops.push(Op::AddRules(chain.table, name, chain.rules));
}
