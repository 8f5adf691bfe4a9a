//! What a change touches, noted for the next commit.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::arena::Arena;
use super::membership::{GroupIx, Membership, Moved, Profile, ProfileIx};
use super::nodes::Nodes;
use super::pods::{Claims, PodEntries, PodEntry};
use super::programs::Programs;
use super::rules::{RuleIx, Rules};
use super::sets::{SetIx, Sets};
use super::subjects::{Subject, Touched};
use crate::pods::PodIx;
use crate::{Direction, Labels, NamespaceScope, NamespacedName, NetworkPolicy, Pod, Pods};

/// What is compiled from the objects.
#[derive(Default)]
pub(super) struct Compiler {
    pub(super) members: Membership,
    pub(super) rules: Rules,
    policies: HashMap<NamespacedName, Held>,
    pub(super) pods: PodEntries,
    pub(super) claims: Claims,
    pub(super) programs: Programs,
    pub(super) sets: Sets,
    pub(super) nodes: Nodes,
    pub(super) dirty_profiles: Vec<ProfileIx>,
    pub(super) dirty_pods: Vec<PodIx>,
}

/// What a policy holds on to.
struct Held {
    subject: GroupIx,
    /// By direction; `None` where it does not isolate.
    rules: [Option<Box<[RuleIx]>>; 2],
}

impl Compiler {
    /// Whether it keeps nothing at all.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            members,
            rules,
            policies,
            pods,
            claims,
            programs,
            sets,
            nodes,
            dirty_profiles,
            dirty_pods,
        } = self;
        let pods = pods.is_empty() && claims.is_empty();
        let policies = members.is_empty() && rules.is_empty() && policies.is_empty();
        let told = programs.is_empty() && sets.is_empty() && nodes.is_empty();
        pods && policies && told && dirty_profiles.is_empty() && dirty_pods.is_empty()
    }

    /// The pods that claim any of these addresses, and those that claim any of theirs.
    pub(super) fn pods_around(&self, addresses: &[IpAddr], pods: &Pods) -> BTreeSet<PodIx> {
        let claim = |address: &IpAddr| self.claims.of(address).iter().copied();
        let near = addresses.iter().flat_map(claim).flat_map(|pod| pods.addresses(pod));
        near.flat_map(|address| self.claims.of(&address).iter().copied()).collect()
    }

    /// A namespace object is there with these labels, or gone.
    pub(super) fn describe_namespace(&mut self, name: &Arc<str>, labels: Option<&Labels>, pods: &Pods) {
        for Moved { profile: ix, before } in self.members.describe_namespace(name, labels) {
            // A subject is always of one namespace, so no recipe changes: only sets gain and lose the profile's pods.
            let profile = &self.members.profiles[ix];
            let touched = sets_of(&self.members, before.iter().chain(&profile.groups));
            for set in touched {
                for (groups, by) in [(&before, -1), (&profile.groups, 1)] {
                    for pod in &profile.pods {
                        let owned = pods.addresses(*pod).filter(|a| self.claims.owns(a, *pod));
                        self.sets.shift(set, profile, groups, owned, by);
                    }
                }
            }
        }
    }

    pub(super) fn put_policy(&mut self, policy: &NetworkPolicy) {
        let name = &policy.name;
        let subject = self.members.hold_group(&name.namespace, &NamespaceScope::Own, &policy.subject);
        let rules = Direction::ALL.map(|direction| {
            let rules = policy.rules(direction)?.iter();
            Some(rules.map(|rule| self.rules.hold(&mut self.members, name, rule)).collect::<Box<[RuleIx]>>())
        });
        let held = Held { subject, rules };
        self.put_in_force(&held, true);
        // The new one first: what both say does not change meanwhile.
        if let Some(before) = self.policies.insert(name.clone(), held) {
            self.withdraw(before);
        }
    }

    pub(super) fn remove_policy(&mut self, name: &NamespacedName) {
        if let Some(held) = self.policies.remove(name) {
            self.withdraw(held);
        }
    }

    fn withdraw(&mut self, held: Held) {
        self.put_in_force(&held, false);
        for rule in held.rules.into_iter().flatten().flatten() {
            self.rules.release(&mut self.members, rule);
        }
        self.members.release(held.subject);
    }

    fn put_in_force(&mut self, held: &Held, in_force: bool) {
        for direction in Direction::ALL {
            let Some(rules) = &held.rules[direction as usize] else { continue };
            let group = &mut self.members.groups[held.subject];
            let side = group.subject.get_or_insert_with(|| Box::new(Subject::default())).side_mut(direction);
            let names = |rule| direction == Direction::Ingress && self.rules.key(rule).ports.has_names();
            let Touched { profiles, recipes } =
                if in_force { side.add(rules, names) } else { side.remove(rules, names) };
            if recipes {
                side.recipes.iter().for_each(|recipe| self.programs.mark(*recipe));
            }
            if profiles {
                for profile in &group.profiles {
                    mark_profile(&mut self.members.profiles, &mut self.dirty_profiles, *profile);
                }
            }
        }
    }

    /// A pod that was so is so now; `None`: it is not there, or in its node's network.
    pub(super) fn change_pod(&mut self, ix: PodIx, before: Option<&Pod>, now: Option<&Pod>) {
        let Some(pod) = now else {
            if let Some(before) = before {
                self.detach(ix, before);
                self.pods.remove(ix);
            }
            return;
        };
        let profile = self.members.profile(&pod.name.namespace, &pod.labels, &pod.ports);
        let node = pod.node.as_ref().map(|name| self.nodes.hold(name));
        if let Some(before) = before {
            if self.pods.get(ix).is_some_and(|entry| entry.profile == profile && entry.node == node) {
                // Only the addresses can differ, or nothing that matters here.
                node.into_iter().for_each(|node| self.nodes.release(node));
                self.change_addresses(ix, &before.addresses, &pod.addresses);
                return;
            }
            self.detach(ix, before);
        }
        self.pods.insert(ix, PodEntry { profile, node, told: None, dirty: false });
        self.members.profiles[profile].pods.insert(ix);
        mark_pod(&mut self.pods, &mut self.dirty_pods, ix);
        if self.members.profiles[profile].pods.len() == 1 {
            mark_profile(&mut self.members.profiles, &mut self.dirty_profiles, profile);
        }
        self.span_pod(ix, 1);
        self.change_addresses(ix, &[], &pod.addresses);
    }

    /// Takes a pod out of its profile and off its node.
    fn detach(&mut self, ix: PodIx, pod: &Pod) {
        let Some(PodEntry { profile, node, told, .. }) = self.pods.get(ix).copied() else { return };
        self.change_addresses(ix, &pod.addresses, &[]);
        self.span_pod(ix, -1);
        if let Some(node) = node {
            if told.is_some() {
                self.nodes.touch(node).told.insert(pod.name.clone(), None);
            }
            self.nodes.release(node);
        }
        self.members.profiles[profile].pods.remove(&ix);
        if self.members.profiles[profile].pods.is_empty() {
            mark_profile(&mut self.members.profiles, &mut self.dirty_profiles, profile);
        }
    }

    fn span_pod(&mut self, ix: PodIx, by: i32) {
        let Some(PodEntry { profile, node: Some(node), .. }) = self.pods.get(ix).copied() else { return };
        for recipe in self.members.profiles[profile].recipes.into_iter().flatten() {
            if let Some(program) = self.programs.recipes[recipe].program {
                self.programs.span(&mut self.sets, &mut self.nodes, program, node, by);
            }
        }
    }

    fn change_addresses(&mut self, ix: PodIx, before: &[IpAddr], after: &[IpAddr]) {
        for address in before.iter().filter(|a| !after.contains(a)) {
            if self.claims.owns(address, ix) {
                self.shift_address(ix, *address, -1);
            }
            if let Some(owner) = self.claims.remove(*address, ix) {
                self.shift_address(owner, *address, 1);
            }
        }
        for address in after.iter().filter(|a| !before.contains(a)) {
            if let Some(owner) = self.claims.add(*address, ix) {
                self.shift_address(owner, *address, -1);
            }
            if self.claims.owns(address, ix) {
                self.shift_address(ix, *address, 1);
            }
        }
    }

    /// An address comes to its owner's sets (+1) or goes from them (-1).
    fn shift_address(&mut self, ix: PodIx, address: IpAddr, by: i8) {
        let Some(entry) = self.pods.get(ix) else { return };
        let profile = &self.members.profiles[entry.profile];
        for set in sets_of(&self.members, profile.groups.iter()) {
            self.sets.shift(set, profile, &profile.groups, std::iter::once(address), by);
        }
    }
}

/// The sets that hold any of these groups, each once.
fn sets_of<'a>(members: &Membership, groups: impl Iterator<Item = &'a GroupIx>) -> Vec<SetIx> {
    let mut sets: Vec<SetIx> = groups.flat_map(|g| members.groups[*g].sets.iter().copied()).collect();
    sets.sort_unstable();
    sets.dedup();
    sets
}

fn mark_profile(profiles: &mut Arena<Profile>, dirty: &mut Vec<ProfileIx>, ix: ProfileIx) {
    if !std::mem::replace(&mut profiles[ix].dirty, true) {
        dirty.push(ix);
    }
}

pub(super) fn mark_pod(pods: &mut PodEntries, dirty: &mut Vec<PodIx>, ix: PodIx) {
    if pods.get_mut(ix).is_some_and(|pod| !std::mem::replace(&mut pod.dirty, true)) {
        dirty.push(ix);
    }
}
