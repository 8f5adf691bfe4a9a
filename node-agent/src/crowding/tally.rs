//! Whose entries they are. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use moat_policies::NamespacedName;

/// A pod and how many entries are its.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pod: NamespacedName,
    pub(super) entries: u64,
}

/// Counts entries by pod.
#[derive(Debug)]
pub(super) struct Tally {
    pods: Vec<Holder>,
    /// Where each address's pod is among them.
    places: HashMap<IpAddr, usize>,
}

impl Tally {
    /// For the pods that have these addresses.
    pub(super) fn of(addresses: Vec<(IpAddr, NamespacedName)>) -> Self {
        let mut names: HashMap<NamespacedName, usize> = HashMap::new();
        let mut pods = Vec::new();
        let places = addresses.into_iter().map(|(address, pod)| {
            let place = *names.entry(pod.clone()).or_insert_with(|| {
                pods.push(Holder { pod, entries: 0 });
                pods.len() - 1
            });
            (address, place)
        });
        let places = places.collect();
        Self { pods, places }
    }

    /// There is an entry. It is of the pod that opened it, or where no pod of this node did, of the one that answers.
    pub(super) fn add(&mut self, opener: IpAddr, answerer: IpAddr) {
        let place = self.places.get(&opener).or_else(|| self.places.get(&answerer));
        if let Some(holder) = place.and_then(|place| self.pods.get_mut(*place)) {
            holder.entries += 1;
        }
    }

    /// Up to `number` pods that have some, those with the most first.
    pub(super) fn most(mut self, number: usize) -> Vec<Holder> {
        self.pods.retain(|holder| holder.entries > 0);
        self.pods.sort_by_key(|holder| Reverse(holder.entries));
        self.pods.truncate(number);
        self.pods
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_of_who_opened_it() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let pod = |name: &str| NamespacedName::new("shop", name);
        let mut tally = Tally::of(vec![
            (address("10.0.0.1"), pod("a")),
            (address("10.0.0.2"), pod("b")),
            (address("fd00::2"), pod("b")),
            (address("10.0.0.3"), pod("c")),
        ]);
        for (opener, answerer) in [
            ("10.0.0.2", "10.0.0.1"),
            ("fd00::2", "2001:db8::1"),
            ("203.0.113.1", "10.0.0.1"),
            ("203.0.113.1", "192.0.2.1"),
        ] {
            tally.add(address(opener), address(answerer));
        }
        let holder = |name, entries| Holder { pod: pod(name), entries };
        assert_eq!(tally.most(10), [holder("b", 2), holder("a", 1)]);
    }
}
