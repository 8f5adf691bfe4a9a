//! Pods and the addresses they claim.

use std::net::IpAddr;

use hashbrown::HashMap;

use super::arena::Ix;
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
    pub(super) addresses: Vec<IpAddr>,
    /// What its node was told last.
    pub(super) told: Option<[Option<Ix<ProgramEntry>>; 2]>,
    pub(super) dirty: bool,
}

/// Who claims which address. An address has one owner: where several pods claim it, none of them has it, since a
/// packet from there could be any of theirs.
#[derive(Default)]
pub(super) struct Claims(HashMap<IpAddr, Claim>);

enum Claim {
    One(PodIx),
    Several(Vec<PodIx>),
}

impl Claims {
    /// A pod claims an address. Tells who owned it until now.
    pub(super) fn add(&mut self, address: IpAddr, pod: PodIx) -> Option<PodIx> {
        match self.0.entry(address) {
            hashbrown::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Claim::One(pod));
                None
            }
            hashbrown::hash_map::Entry::Occupied(mut occupied) => match occupied.get_mut() {
                Claim::One(owner) => {
                    let owner = *owner;
                    occupied.insert(Claim::Several(vec![owner, pod]));
                    Some(owner)
                }
                Claim::Several(pods) => {
                    pods.push(pod);
                    None
                }
            },
        }
    }

    /// A pod claims an address no longer. Tells who owns it from now on.
    pub(super) fn remove(&mut self, address: IpAddr, pod: PodIx) -> Option<PodIx> {
        match self.0.get_mut(&address)? {
            Claim::One(_) => {
                self.0.remove(&address);
                None
            }
            Claim::Several(pods) => {
                pods.retain(|p| *p != pod);
                let [owner] = pods[..] else { return None };
                self.0.insert(address, Claim::One(owner));
                Some(owner)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pods that claim an address.
    pub(super) fn of(&self, address: &IpAddr) -> &[PodIx] {
        match self.0.get(address) {
            None => &[],
            Some(Claim::One(pod)) => std::slice::from_ref(pod),
            Some(Claim::Several(pods)) => pods,
        }
    }

    /// Whether the pod alone claims the address.
    pub(super) fn owns(&self, address: &IpAddr, pod: PodIx) -> bool {
        matches!(self.0.get(address), Some(Claim::One(owner)) if *owner == pod)
    }
}
