//! What was written down, and what the kernel has: which of them counts. Pure.
//!
//! The kernel's word goes first: a link that is there is somebody's, and what its alias says is what ADD made. What was
//! written down fills in what a link does not tell, and stands for its alias where that is missing or damaged. So a state
//! file that is lost, old or damaged takes no pod's network away, and no address of a link that is there looks free.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::attachment::{Attachment, AttachmentKey};
use super::identity::{self, Alias};
use super::links::PodLink;

/// What follows from the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// The attachments that there are, the oldest link first.
    pub(crate) kept: Vec<Kept>,
    /// Links that somebody has, and nobody knows who.
    pub(crate) closed: Vec<Closed>,
    /// Links that were never anybody's.
    pub(crate) stray: Vec<String>,
    /// Recorded attachments whose link is gone.
    pub(crate) gone: Vec<AttachmentKey>,
}

/// An attachment that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) attachment: Attachment,
    /// The index of its link.
    pub(crate) index: u32,
    /// Whether its link is up: if not, it was never activated, and its runtime never told that it is there.
    pub(crate) up: bool,
    /// Its link's alias does not say what it should.
    pub(crate) unmarked: bool,
    /// It was not recorded, or something else was.
    pub(crate) rebuilt: bool,
}

/// A link that somebody has, and nobody knows who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) link: String,
    pub(crate) index: u32,
    /// The addresses that it may hold.
    pub(crate) addresses: Vec<IpAddr>,
    /// Why it is closed, where it was not before.
    pub(crate) why: Option<&'static str>,
}

/// Compares what was `recorded` with the links that there are, the oldest first.
pub(crate) fn settle(recorded: &[Attachment], links: &[PodLink]) -> Settled {
    let mut settled = Settled::default();
    let mut owned: BTreeSet<IpAddr> = BTreeSet::new();
    for pod in links {
        let name = pod.link.name.as_str();
        let record = recorded.iter().find(|a| a.host_ifname == name);
        let alias = identity::parse(name, &pod.link.alias);
        let attachment = match (&alias, record) {
            (Some(Alias::Pod(identity)), record) => Some(told(identity.clone(), record, pod.link.mtu)),
            (_, Some(record)) => Some(record.clone()),
            (_, None) => None,
        };
        let never_activated = !pod.link.up && pod.link.alias.is_empty();
        let Some(attachment) = attachment else {
            match alias {
                Some(Alias::Closed(addresses)) => {
                    let addresses = addresses.into_iter().chain(pod.addresses.iter().copied());
                    settled.closed.push(close(pod, addresses.collect(), None));
                }
                _ if never_activated => settled.stray.push(name.to_owned()),
                _ => {
                    let why = "its alias is damaged, and no record tells whose it is";
                    settled.closed.push(close(pod, pod.addresses.clone(), Some(why)));
                }
            }
            continue;
        };
        // Of two links with one address, the one that had it first keeps it; this is not for moat to have made.
        if attachment.addresses().any(|address| owned.contains(&address)) {
            let addresses = attachment.addresses().chain(pod.addresses.iter().copied()).collect();
            settled.closed.push(close(pod, addresses, Some("an older link has an address of it")));
            continue;
        }
        owned.extend(attachment.addresses());
        settled.kept.push(Kept {
            unmarked: identity::of(&attachment).is_some_and(|alias| alias.as_bytes() != pod.link.alias),
            rebuilt: record != Some(&attachment),
            index: pod.link.index,
            up: pod.link.up,
            attachment,
        });
    }
    let there = |key: &AttachmentKey| settled.kept.iter().any(|kept| kept.attachment.key() == *key);
    settled.gone = recorded.iter().map(Attachment::key).filter(|key| !there(key)).collect();
    settled
}

/// The attachment that an alias tells of, with what only a record can tell.
fn told(identity: identity::Identity, record: Option<&Attachment>, mtu: u32) -> Attachment {
    let told = identity.attachment(mtu);
    match record {
        None => told,
        Some(record) => Attachment {
            netns: record.netns.clone(),
            mtu: record.mtu,
            host_ports: record.host_ports.clone(),
            // A long name may have pushed the uid out.
            pod_uid: told.pod_uid.or_else(|| record.pod_uid.clone()),
            ..told
        },
    }
}

fn close(pod: &PodLink, addresses: BTreeSet<IpAddr>, why: Option<&'static str>) -> Closed {
    Closed {
        link: pod.link.name.clone(),
        index: pod.link.index,
        addresses: addresses.into_iter().collect(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::attachment::macs;
    use super::*;

    fn attachment(container: &str, last: u8) -> Attachment {
        let key = AttachmentKey::new(container, "eth0");
        let v4 = Some([10, 1, 0, last].into());
        let (host_mac, pod_mac) = macs(v4, None);
        Attachment {
            container_id: container.into(),
            ifname: "eth0".into(),
            network: "moat".into(),
            pod_namespace: "shop".into(),
            pod_name: container.into(),
            pod_uid: Some("u-1".into()),
            netns: "/run/netns/x".into(),
            host_ifname: key.host_ifname(),
            host_mac,
            pod_mac,
            v4,
            v6: None,
            mtu: 1450,
            host_ports: Vec::new(),
        }
    }

    fn containers(settled: &Settled) -> Vec<&str> {
        settled.kept.iter().map(|kept| kept.attachment.container_id.as_str()).collect()
    }

    #[test]
    fn where_both_agree_nothing_is_to_be_done() {
        let (a, b) = (attachment("a", 1), attachment("b", 2));
        let settled = settle(&[b.clone(), a.clone()], &[PodLink::of(&a, 5), PodLink::of(&b, 9)]);
        assert_eq!(containers(&settled), ["a", "b"], "the oldest link first");
        assert!(settled.kept.iter().all(|kept| !kept.unmarked && !kept.rebuilt && kept.up));
        assert!(settled.closed.is_empty() && settled.stray.is_empty() && settled.gone.is_empty());
    }

    #[test]
    fn without_records_the_links_tell_all_but_the_namespace() {
        let a = attachment("a", 1);
        let settled = settle(&[], &[PodLink::of(&a, 5)]);
        assert_eq!(settled.kept[0].attachment, Attachment { netns: "".into(), ..a });
        assert!(settled.kept[0].rebuilt && !settled.kept[0].unmarked);
    }

    #[test]
    fn records_stand_for_aliases_that_are_missing_or_damaged() {
        let a = attachment("a", 1);
        for alias in [&b""[..], b"uplink of rack 7", b"\xff"] {
            let mut pod = PodLink::of(&a, 5);
            pod.link.alias = alias.to_vec();
            let settled = settle(std::slice::from_ref(&a), &[pod]);
            assert_eq!(settled.kept[0].attachment, a);
            assert!(settled.kept[0].unmarked && !settled.kept[0].rebuilt);
        }
    }

    #[test]
    fn an_old_record_gives_way_to_what_the_link_says() {
        let (old, new) = (attachment("a", 1), attachment("a", 2));
        let settled = settle(&[old], &[PodLink::of(&new, 5)]);
        assert_eq!(settled.kept[0].attachment, new);
        assert!(settled.kept[0].rebuilt && settled.gone.is_empty());
    }

    #[test]
    fn a_link_of_which_nobody_knows_is_closed_and_keeps_its_addresses() {
        let a = attachment("a", 1);
        let mut pod = PodLink::of(&a, 5);
        pod.link.alias.pop();
        let settled = settle(&[], &[pod.clone()]);
        let [closed] = &settled.closed[..] else { panic!("{settled:?}") };
        assert_eq!(closed.addresses, a.addresses().collect::<Vec<_>>());
        assert!(closed.why.is_some_and(|why| why.contains("damaged")));
        // Closed before: its routes are gone since, its alias has them.
        pod.link.alias = identity::closed(&a.host_ifname, &closed.addresses).into_bytes();
        (pod.link.up, pod.addresses) = (false, BTreeSet::new());
        let again = settle(&[], &[pod.clone()]);
        assert_eq!(again.closed[0].addresses, closed.addresses);
        assert_eq!(again.closed[0].why, None);
        // Should a record turn up (from a backup), it is believed.
        assert_eq!(containers(&settle(std::slice::from_ref(&a), &[pod])), ["a"]);
    }

    #[test]
    fn what_was_never_activated_is_a_stray_unless_it_is_recorded() {
        let a = attachment("a", 1);
        let mut pod = PodLink::of(&a, 5);
        (pod.link.up, pod.link.alias) = (false, vec![]);
        assert_eq!(settle(&[], std::slice::from_ref(&pod)).stray, std::slice::from_ref(&a.host_ifname));
        let settled = settle(std::slice::from_ref(&a), &[pod]);
        assert_eq!(containers(&settled), ["a"]);
        assert!(!settled.kept[0].up);
    }

    #[test]
    fn a_record_without_a_link_is_gone() {
        let (a, b) = (attachment("a", 1), attachment("b", 2));
        assert_eq!(settle(&[a.clone(), b.clone()], &[PodLink::of(&b, 5)]).gone, [a.key()]);
    }

    #[test]
    fn of_two_links_with_one_address_the_first_keeps_it() {
        let (a, b) = (attachment("a", 1), attachment("b", 1));
        let settled = settle(&[a.clone(), b.clone()], &[PodLink::of(&b, 5), PodLink::of(&a, 9)]);
        assert_eq!(containers(&settled), ["b"]);
        assert_eq!(settled.closed[0].link, a.host_ifname);
        assert_eq!(settled.gone, [a.key()]);
    }

    proptest! {
        /// Whatever was recorded and whatever the links say: no address has two owners, every link is accounted for once, and no
        /// address of a link that was up looks free.
        #[test]
        fn nothing_is_lost_and_nothing_is_owned_twice(
            recorded in prop::collection::btree_map(0..6u8, 1..6u8, 0..6),
            links in prop::collection::btree_map(0..6u8, (1..6u8, 0..4u8, any::<bool>()), 0..6),
        ) {
            let of = |(container, last): (u8, u8)| attachment(&format!("c{container}"), last);
            let recorded: Vec<Attachment> = recorded.into_iter().map(of).collect();
            let links: Vec<PodLink> = links
                .into_iter()
                .map(|(container, (last, alias, up))| {
                    let a = of((container, last));
                    let mut pod = PodLink::of(&a, 10 + u32::from(container));
                    match alias {
                        0 => pod.link.alias = vec![],
                        1 => drop(pod.link.alias.pop()),
                        _ => {}
                    }
                    pod.link.up = up;
                    pod
                })
                .collect();
            let settled = settle(&recorded, &links);
            let mut owners: BTreeSet<IpAddr> = BTreeSet::new();
            for kept in &settled.kept {
                for address in kept.attachment.addresses() {
                    prop_assert!(owners.insert(address), "{address} has two owners");
                }
            }
            prop_assert_eq!(settled.kept.len() + settled.closed.len() + settled.stray.len(), links.len());
            owners.extend(settled.closed.iter().flat_map(|closed| closed.addresses.clone()));
            for pod in links.iter().filter(|pod| pod.link.up) {
                let told = matches!(identity::parse(&pod.link.name, &pod.link.alias), Some(Alias::Pod(_)));
                let recorded = recorded.iter().any(|a| a.host_ifname == pod.link.name);
                // A record stands for a missing alias, routes and all.
                if told || !recorded {
                    prop_assert!(pod.addresses.iter().all(|address| owners.contains(address)), "{settled:?}");
                }
            }
        }
    }
}
