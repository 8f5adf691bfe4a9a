//! The pods of a cluster, many of them in little room.
//!
//! A node knows all pods of its cluster, for any of them can be a peer. Nearly all of what describes a pod, others have, too:
//! a record holds only what is the pod's own, 64 bytes and its name's text, and points to the rest.
//!
//! ```text
//!   Record ─┬─ name, uid, addresses                            its own
//!           ├─ Common: namespace, labels, ports, hostNetwork   the same for the pods of a workload
//!           └─ NodeName                                        the same for the pods of a node
//! ```
//!
//! [`Pod`]s are made from it for those who ask.

use std::fmt;
use std::hash::BuildHasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use slab::Slab;

use crate::sharing::Shared;
use crate::texts::{Text, Texts};
use crate::{ContainerPort, Labels, NamespacedName, Pod};

/// The place of a pod. When the pod is removed, another one can get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodIx(u32);

/// Pods, by their names.
#[derive(Clone, Default)]
pub struct Pods {
    records: Slab<Record>,
    texts: Texts,
    /// Of each pod the place only: its name is in its record.
    names: HashTable<PodIx>,
    hasher: DefaultHashBuilder,
    commons: Shared<Arc<Common>>,
    nodes: Shared<Arc<NodeName>>,
}

/// One pod.
#[derive(Clone)]
struct Record {
    name: Text,
    common: Arc<Common>,
    node: Option<Arc<NodeName>>,
    addresses: Addresses,
    uid: Uid,
}

// Ten bytes more are a megabyte more for a hundred thousand pods.
const _: () = assert!(size_of::<Record>() == 64);

/// What pods have in common.
#[derive(PartialEq, Eq, Hash)]
struct Common {
    namespace: Arc<str>,
    labels: Labels,
    ports: Box<[ContainerPort]>,
    host_network: bool,
}

/// An `Arc<str>` is two words wide; a pointer to one is one.
#[derive(PartialEq, Eq, Hash)]
struct NodeName(Arc<str>);

/// Addresses in their order. Of one of IPv4, which is what most pods have, nothing is on the heap.
#[derive(Clone)]
enum Addresses {
    None,
    V4(Ipv4Addr),
    V6(Box<Ipv6Addr>),
    Both(Box<(Ipv4Addr, Ipv6Addr)>),
    #[allow(
        clippy::box_collection,
        reason = "one word wide: hardly any pod has these, and every record has their room"
    )]
    Others(Box<Vec<IpAddr>>),
}

/// A `metadata.uid`. As a text, a UUID has 36 bytes.
#[derive(Clone)]
enum Uid {
    None,
    Uuid([u8; 16]),
    Text(Box<str>),
}

/// A pod that was put.
pub(crate) struct Put {
    pub(crate) place: PodIx,
    /// The one of its name that was there.
    pub(crate) before: Option<Pod>,
}

impl Pods {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether there is one of this name.
    pub fn contains(&self, name: &NamespacedName) -> bool {
        self.find(name).is_some()
    }

    /// The one of this name.
    pub fn get(&self, name: &NamespacedName) -> Option<Pod> {
        self.find(name).map(|place| self.pod(place))
    }

    /// All names, in their order.
    pub fn names(&self) -> impl Iterator<Item = NamespacedName> {
        self.in_order().into_iter().map(|place| self.name(place))
    }

    /// All pods, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = Pod> {
        self.in_order().into_iter().map(|place| self.pod(place))
    }

    /// Stores a pod in place of the one of its name. `None`: that one is the same.
    pub(crate) fn put(&mut self, pod: Pod) -> Option<Put> {
        let found = self.find(&pod.name);
        let before = found.map(|place| self.pod(place));
        if before.as_ref() == Some(&pod) {
            return None;
        }
        let record = self.record(pod, found);
        let place = match found {
            Some(place) => {
                self.records[place.at()] = record;
                place
            }
            None => {
                let place = self.records.insert(record);
                let place = PodIx::new(place).expect("fewer than 2^32 pods fit in memory");
                let (records, texts) = (&self.records, &self.texts);
                let hash = |place: &PodIx| self.hasher.hash_one(records[place.at()].key(texts));
                self.names.insert_unique(hash(&place), place, hash);
                place
            }
        };
        Some(Put { place, before })
    }

    /// Removes the one of this name. Tells what it was.
    pub(crate) fn remove(&mut self, name: &NamespacedName) -> Option<(PodIx, Pod)> {
        let hash = self.hasher.hash_one(key(name));
        let place = self.find(name)?;
        if let Ok(entry) = self.names.find_entry(hash, |found| *found == place) {
            entry.remove();
        }
        let pod = self.pod(place);
        self.texts.remove(self.records.remove(place.at()).name);
        self.texts.tidy(self.records.iter_mut().map(|(_, record)| &mut record.name));
        Some((place, pod))
    }

    pub(crate) fn find(&self, name: &NamespacedName) -> Option<PodIx> {
        let same = |place: &PodIx| self.key(*place) == key(name);
        self.names.find(self.hasher.hash_one(key(name)), same).copied()
    }

    /// The places of all pods, in the order of their names.
    pub(crate) fn in_order(&self) -> Vec<PodIx> {
        let mut all: Vec<PodIx> = self.names.iter().copied().collect();
        all.sort_unstable_by_key(|place| self.key(*place));
        all
    }

    pub(crate) fn pod(&self, place: PodIx) -> Pod {
        let Record { name: _, common, node, addresses, uid } = &self.records[place.at()];
        Pod {
            name: self.name(place),
            labels: common.labels.clone(),
            node: node.as_ref().map(|node| node.0.clone()),
            addresses: addresses.iter().collect(),
            ports: common.ports.to_vec(),
            host_network: common.host_network,
            finished: false,
            uid: uid.text(),
        }
    }

    pub(crate) fn name(&self, place: PodIx) -> NamespacedName {
        let record = &self.records[place.at()];
        NamespacedName::new(record.common.namespace.clone(), self.texts.get(record.name))
    }

    pub(crate) fn node(&self, place: PodIx) -> Option<&Arc<str>> {
        self.records[place.at()].node.as_ref().map(|node| &node.0)
    }

    pub(crate) fn addresses(&self, place: PodIx) -> impl Iterator<Item = IpAddr> {
        self.records[place.at()].addresses.iter()
    }

    pub(crate) fn is_in_host_network(&self, place: PodIx) -> bool {
        self.records[place.at()].common.host_network
    }

    fn key(&self, place: PodIx) -> (&str, &str) {
        self.records[place.at()].key(&self.texts)
    }

    /// The record of a pod, whose name is the one at this place if there is one.
    fn record(&mut self, pod: Pod, found: Option<PodIx>) -> Record {
        let Pod {
            name: NamespacedName { namespace, name },
            labels,
            node,
            addresses,
            ports,
            host_network,
            ..
        } = pod;
        let common = Common { namespace, labels, ports: ports.into(), host_network };
        Record {
            name: found.map_or_else(|| self.texts.insert(&name), |place| self.records[place.at()].name),
            common: self.commons.one(Arc::new(common)),
            node: node.map(|node| self.nodes.one(Arc::new(NodeName(node)))),
            addresses: Addresses::new(addresses),
            uid: pod.uid.map_or(Uid::None, |uid| Uid::new(&uid)),
        }
    }
}

impl PodIx {
    pub(crate) fn new(at: usize) -> Option<Self> {
        u32::try_from(at).ok().map(Self)
    }

    pub(crate) fn at(self) -> usize {
        self.0 as usize
    }
}

impl Record {
    fn key<'p>(&'p self, texts: &'p Texts) -> (&'p str, &'p str) {
        (&self.common.namespace, texts.get(self.name))
    }
}

fn key(name: &NamespacedName) -> (&str, &str) {
    (&name.namespace, &name.name)
}

impl Addresses {
    fn new(addresses: Vec<IpAddr>) -> Self {
        match addresses[..] {
            [] => Self::None,
            [IpAddr::V4(v4)] => Self::V4(v4),
            [IpAddr::V6(v6)] => Self::V6(Box::new(v6)),
            [IpAddr::V4(v4), IpAddr::V6(v6)] => Self::Both(Box::new((v4, v6))),
            _ => Self::Others(Box::new(addresses)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let (v4, v6, others) = match self {
            Self::None => (None, None, &[][..]),
            Self::V4(v4) => (Some(*v4), None, &[][..]),
            Self::V6(v6) => (None, Some(**v6), &[][..]),
            Self::Both(both) => (Some(both.0), Some(both.1), &[][..]),
            Self::Others(others) => (None, None, &others[..]),
        };
        v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).chain(others.iter().copied())
    }
}

impl Uid {
    fn new(text: &str) -> Self {
        match from_uuid(text) {
            Some(uuid) => Self::Uuid(uuid),
            None => Self::Text(text.into()),
        }
    }

    fn text(&self) -> Option<Arc<str>> {
        match self {
            Self::None => None,
            Self::Uuid(uuid) => Some(to_uuid(uuid).into()),
            Self::Text(text) => Some((&**text).into()),
        }
    }
}

/// The bytes of a UUID, if its text is exactly the one that [`to_uuid`] writes.
fn from_uuid(text: &str) -> Option<[u8; 16]> {
    let mut uuid = [0; 16];
    let mut digits = text.bytes().filter(|byte| *byte != b'-');
    for byte in &mut uuid {
        let mut digit = || char::from(digits.next()?).to_digit(16);
        *byte = (digit()? * 16 + digit()?) as u8;
    }
    (to_uuid(&uuid) == text).then_some(uuid)
}

fn to_uuid(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
        text.extend([digit(byte >> 4), digit(byte & 15)]);
    }
    text
}

impl PartialEq for Pods {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.names.iter().all(|place| {
                let pod = self.pod(*place);
                other.get(&pod.name) == Some(pod)
            })
    }
}

impl Eq for Pods {}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    fn pod(name: &str, addresses: &[&str], uid: Option<&str>) -> Pod {
        let port = ContainerPort { name: Some("http".into()), protocol: Protocol::Tcp, port: 80 };
        Pod {
            name: NamespacedName::new("shop", name),
            labels: [("app".into(), "web".into())].into(),
            node: Some("node-1".into()),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ports: vec![port],
            host_network: false,
            finished: false,
            uid: uid.map(Into::into),
        }
    }

    #[test]
    fn a_pod_comes_out_as_it_went_in() {
        let uuid = "0e9f3ab1-1234-4cde-8f00-00000000ffff";
        let addresses: [&[&str]; 6] = [
            &[],
            &["10.0.0.1"],
            &["fd00::1"],
            &["10.0.0.1", "fd00::1"],
            &["fd00::1", "10.0.0.1"],
            &["10.0.0.1", "10.0.0.2"],
        ];
        let uids = [
            None,
            Some(uuid),
            Some("a"),
            Some(""),
            Some(&uuid[1..]),
            Some("0E9F3AB1-1234-4CDE-8F00-00000000FFFF"),
        ];
        let mut pods = Pods::default();
        for addresses in addresses {
            for uid in uids {
                let pod = pod("a", addresses, uid);
                assert!(pods.put(pod.clone()).is_some());
                assert!(pods.put(pod.clone()).is_none(), "the same once more");
                assert_eq!(pods.get(&pod.name), Some(pod));
            }
        }
        assert!(matches!(Uid::new(uuid), Uid::Uuid(_)));
    }

    #[test]
    fn pods_are_found_by_their_names_and_told_in_their_order() {
        let mut pods = Pods::default();
        for name in ["c", "a", "b"] {
            pods.put(pod(name, &[], None));
        }
        let names = |pods: &Pods| pods.names().map(|n| n.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&pods), ["a", "b", "c"]);
        let (place, gone) = pods.remove(&NamespacedName::new("shop", "b")).unwrap();
        assert_eq!((&*gone.name.name, pods.len()), ("b", 2));
        assert_eq!(pods.put(pod("d", &[], None)).unwrap().place, place, "a place is used again");
        assert_eq!(names(&pods), ["a", "c", "d"]);
        assert!(!pods.contains(&gone.name));
    }
}
