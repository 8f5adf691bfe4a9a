//! The sets of the pod network: the tunnel, masquerade, host ports, who is the cluster's.

use std::collections::BTreeMap;

use moat_nfnetlink::nft::{Element, Set};
use moat_policies::DenyAction;

use super::State;
use crate::dataplane::layout::{self, ChainRules, Table};
use crate::dataplane::op::{Op, Plan};
use crate::dataplane::update::Update;

impl State {
    /// Plans the sets of the pod network, and the chains of host ports.
    pub(super) fn net(&mut self, update: &Update, plan: &mut Plan) {
        let (before, chains_before) = (self.net_sets(), self.host_port_chains());
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
        let chains = self.host_port_chains();
        if chains.is_empty() {
            take_away(chains_before, plan);
        } else if chains_before.is_empty() {
            put_there(chains, plan);
        }
    }

    /// The chains of host ports, as long as any port leads to a pod.
    pub(super) fn host_port_chains(&self) -> Vec<ChainRules> {
        if self.config.host_ports { self.host_ports.chains() } else { Vec::new() }
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

/// Packets come to a base chain as soon as it is there: what it leads to is there by then.
fn put_there(chains: Vec<ChainRules>, plan: &mut Plan) {
    for ChainRules { table, chain, rules } in chains {
        let ops = if chain.base.is_none() { &mut plan.stage } else { &mut plan.commit };
        ops.push(Op::AddChain(table, chain.clone()));
        ops.push(Op::AddRules(table, chain.name, rules));
    }
}

/// Those that lead first.
fn take_away(chains: Vec<ChainRules>, plan: &mut Plan) {
    for ChainRules { table, chain, .. } in chains.into_iter().rev() {
        plan.commit.push(Op::FlushChain(table, chain.name.clone()));
        plan.commit.push(Op::DeleteChain(table, chain.name));
    }
}
