//! The sets of the pod network: the tunnel, masquerade, host ports, who is the cluster's.

use std::collections::BTreeMap;

use moat_nfnetlink::nft::{Element, Set};
use moat_policies::DenyAction;

use super::State;
use crate::dataplane::layout::{self, Table};
use crate::dataplane::op::{Op, Plan};
use crate::dataplane::update::Update;

impl State {
    /// Plans the sets of the pod network.
    pub(super) fn net(&mut self, update: &Update, plan: &mut Plan) {
        let before = self.net_sets();
        self.senders = update.senders.clone().unwrap_or_else(|| std::mem::take(&mut self.senders));
        self.inside = update.inside.clone().unwrap_or_else(|| std::mem::take(&mut self.inside));
        self.host_ports = update.host_ports.clone().unwrap_or_else(|| std::mem::take(&mut self.host_ports));
        // One that leads elsewhere now is both gone and come.
        let less = |these: &[Element], those: &[Element]| -> Vec<Element> {
            let those: BTreeMap<_, _> = those.iter().map(|e| ((e.key, e.end), &e.data)).collect();
            these.iter().filter(|e| those.get(&(e.key, e.end)) != Some(&&e.data)).cloned().collect()
        };
        for ((table, set, before), (.., after)) in before.into_iter().zip(self.net_sets()) {
            let (gone, come) = (less(&before, &after), less(&after, &before));
            if !gone.is_empty() {
                plan.commit.push(Op::DeleteElements(table, set.clone(), gone));
            }
            if !come.is_empty() {
                plan.commit.push(Op::AddElements(table, set, come));
            }
        }
    }

    /// The sets of the pod network, always in the same order.
    pub(super) fn net_sets(&self) -> Vec<(Table, Set, Vec<Element>)> {
        let mut sets = Vec::new();
        let of = |table: Table| move |(set, elements)| (table, set, elements);
        if self.config.tunnel {
            sets.extend(layout::tunnel_sets(&self.senders).into_iter().map(of(Table::Net)));
        }
        if self.config.masquerade {
            sets.extend(self.inside.sets().map(of(Table::Net)));
        }
        if self.config.host_ports {
            sets.extend(self.host_ports.sets().into_iter().map(of(Table::Net)));
        }
        if self.config.deny == DenyAction::Reject {
            sets.extend(self.inside.sets_of_all().map(of(Table::Inet)));
        }
        sets
    }
}
