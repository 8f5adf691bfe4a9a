//! Pods and the addresses they claim.

use std::hash::BuildHasher as _;
use std::net::IpAddr;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use super::arena::{Arena, Ix};
use super::membership::ProfileIx;
use super::nodes::NodeIx;
use super::programs::ProgramEntry;
use crate::NamespacedName;

pub(super) type PodIx = Ix<PodEntry>;

/// A pod that policies can apply to.
pub(super) struct PodEntry {
    pub(super) name: NamespacedName,
    pub(super) profile: ProfileIx,
    pub(super) node: Option<NodeIx>,
    pub(super) addresses: Box<[IpAddr]>,
    /// What its node was told last.
    pub(super) told: Option<[Option<Ix<ProgramEntry>>; 2]>,
    pub(super) dirty: bool,
}

/// Pods by their names. Of each it keeps the place only: the names are in the pods themselves.
#[derive(Default)]
pub(super) struct PodNames {
    table: HashTable<PodIx>,
    hasher: DefaultHashBuilder,
}

impl PodNames {
    pub(super) fn find(&self, name: &NamespacedName, pods: &Arena<PodEntry>) -> Option<PodIx> {
        self.table.find(self.hasher.hash_one(name), |ix| pods[*ix].name == *name).copied()
    }

    /// A pod that is new there.
    pub(super) fn insert(&mut self, ix: PodIx, pods: &Arena<PodEntry>) {
        let hash = |ix: &PodIx| self.hasher.hash_one(&pods[*ix].name);
        self.table.insert_unique(hash(&ix), ix, hash);
    }

    pub(super) fn remove(&mut self, name: &NamespacedName, pods: &Arena<PodEntry>) -> Option<PodIx> {
        let entry = self.table.find_entry(self.hasher.hash_one(name), |ix| pods[*ix].name == *name);
        entry.ok().map(|entry| entry.remove().0)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

/// Who claims which address. An address has one owner: where several pods claim it, none of them has it, since a
/// packet from there could be any of theirs.
#[derive(Default)]
pub(super) struct Claims {
    /// The owners of addresses that one pod claims.
    one: HashMap<IpAddr, PodIx>,
    several: HashMap<IpAddr, Vec<PodIx>>,
}

impl Claims {
    /// A pod claims an address. Tells who owned it until now.
    pub(super) fn add(&mut self, address: IpAddr, pod: PodIx) -> Option<PodIx> {
        if let Some(pods) = self.several.get_mut(&address) {
            pods.push(pod);
            return None;
        }
        match self.one.entry(address) {
            hashbrown::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(pod);
                None
            }
            hashbrown::hash_map::Entry::Occupied(occupied) => {
                let owner = occupied.remove();
                self.several.insert(address, vec![owner, pod]);
                Some(owner)
            }
        }
    }

    /// A pod claims an address no longer. Tells who owns it from now on.
    pub(super) fn remove(&mut self, address: IpAddr, pod: PodIx) -> Option<PodIx> {
        let Some(pods) = self.several.get_mut(&address) else {
            self.one.remove(&address);
            return None;
        };
        pods.retain(|p| *p != pod);
        let [owner] = pods[..] else { return None };
        self.several.remove(&address);
        self.one.insert(address, owner);
        Some(owner)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.one.is_empty() && self.several.is_empty()
    }

    /// The pods that claim an address.
    pub(super) fn of(&self, address: &IpAddr) -> &[PodIx] {
        match self.one.get(address) {
            Some(pod) => std::slice::from_ref(pod),
            None => self.several.get(address).map_or(&[], |pods| pods),
        }
    }

    /// Whether the pod alone claims the address.
    pub(super) fn owns(&self, address: &IpAddr, pod: PodIx) -> bool {
        self.one.get(address) == Some(&pod)
    }
}
