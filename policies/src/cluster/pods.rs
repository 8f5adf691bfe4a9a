//! What is compiled for a pod, and the addresses that pods claim.

use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::arena::Ix;
use super::membership::ProfileIx;
use super::nodes::NodeIx;
use super::programs::ProgramEntry;
use crate::pods::PodIx;

/// A pod that policies can apply to. Its name and its addresses are where its object is.
#[derive(Clone, Copy)]
pub(super) struct PodEntry {
    pub(super) profile: ProfileIx,
    pub(super) node: Option<NodeIx>,
    /// What its node was told last.
    pub(super) told: Option<[Option<Ix<ProgramEntry>>; 2]>,
    pub(super) dirty: bool,
}

// See what a record of a pod may have: there is one of these for each of those.
const _: () = assert!(size_of::<Option<PodEntry>>() <= 24);

/// What is compiled for each pod, by the places of the pods' objects. Of a pod in its node's network there is nothing.
#[derive(Default)]
pub(super) struct PodEntries {
    entries: Vec<Option<PodEntry>>,
    here: usize,
}

impl PodEntries {
    pub(super) fn get(&self, pod: PodIx) -> Option<&PodEntry> {
        self.entries.get(pod.at())?.as_ref()
    }

    pub(super) fn get_mut(&mut self, pod: PodIx) -> Option<&mut PodEntry> {
        self.entries.get_mut(pod.at())?.as_mut()
    }

    pub(super) fn insert(&mut self, pod: PodIx, entry: PodEntry) {
        if self.entries.len() <= pod.at() {
            self.entries.resize(pod.at() + 1, None);
        }
        self.here += usize::from(self.entries[pod.at()].replace(entry).is_none());
    }

    pub(super) fn remove(&mut self, pod: PodIx) {
        let entry = self.entries.get_mut(pod.at()).and_then(Option::take);
        self.here -= usize::from(entry.is_some());
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PodIx, &PodEntry)> {
        self.entries.iter().enumerate().filter_map(|(at, entry)| Some((PodIx::new(at)?, entry.as_ref()?)))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.here == 0
    }
}

/// Who claims which address. An address has one owner: where several pods claim it, none of them has it, since a
/// packet from there could be any of theirs.
#[derive(Default)]
pub(super) struct Claims {
    v4: ClaimsOf<Ipv4Addr>,
    v6: ClaimsOf<Ipv6Addr>,
}

/// Those of one family: kept apart, an IPv4 address and its owner take eight bytes.
struct ClaimsOf<A> {
    /// The owners of addresses that one pod claims.
    one: HashMap<A, PodIx>,
    several: HashMap<A, Vec<PodIx>>,
}

impl Claims {
    /// A pod claims an address. Tells who owned it until now.
    pub(super) fn add(&mut self, address: IpAddr, pod: PodIx) -> Option<PodIx> {
        match address {
            IpAddr::V4(address) => self.v4.add(address, pod),
            IpAddr::V6(address) => self.v6.add(address, pod),
        }
    }

    /// A pod claims an address no longer. Tells who owns it from now on.
    pub(super) fn remove(&mut self, address: IpAddr, pod: PodIx) -> Option<PodIx> {
        match address {
            IpAddr::V4(address) => self.v4.remove(address, pod),
            IpAddr::V6(address) => self.v6.remove(address, pod),
        }
    }

    /// The pods that claim an address.
    pub(super) fn of(&self, address: &IpAddr) -> &[PodIx] {
        match address {
            IpAddr::V4(address) => self.v4.of(address),
            IpAddr::V6(address) => self.v6.of(address),
        }
    }

    /// Whether the pod alone claims the address.
    pub(super) fn owns(&self, address: &IpAddr, pod: PodIx) -> bool {
        *self.of(address) == [pod]
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let v4 = self.v4.one.is_empty() && self.v4.several.is_empty();
        v4 && self.v6.one.is_empty() && self.v6.several.is_empty()
    }
}

impl<A> Default for ClaimsOf<A> {
    fn default() -> Self {
        Self { one: HashMap::new(), several: HashMap::new() }
    }
}

impl<A: Copy + Eq + Hash> ClaimsOf<A> {
    fn add(&mut self, address: A, pod: PodIx) -> Option<PodIx> {
        if let Some(pods) = self.several.get_mut(&address) {
            pods.push(pod);
            return None;
        }
        match self.one.entry(address) {
            Entry::Vacant(vacant) => {
                vacant.insert(pod);
                None
            }
            Entry::Occupied(occupied) => {
                let owner = occupied.remove();
                self.several.insert(address, vec![owner, pod]);
                Some(owner)
            }
        }
    }

    fn remove(&mut self, address: A, pod: PodIx) -> Option<PodIx> {
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

    fn of(&self, address: &A) -> &[PodIx] {
        match self.one.get(address) {
            Some(pod) => std::slice::from_ref(pod),
            None => self.several.get(address).map_or(&[], |pods| pods),
        }
    }
}
