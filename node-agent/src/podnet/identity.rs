//! Whose a pod's link is, told by the link itself: the text of its alias (`IFLA_IFALIAS`).
//!
//! ```text
//! moat1 5d41402a c0ffee… eth0 10.1.0.5,fd00:1::5 shop/web-0 7c9e6679-… moat
//!       sum      container    addresses          pod        uid        network
//! moat1 09f7e02f closed 10.1.0.6            a link of which nobody knows whose it is
//! ```
//!
//! The kernel keeps it as long as the link, so an agent that lost its state folder finds there what it needs: which
//! container, which pod, which addresses. The sum covers the link's name, too; so what was cut off, edited or
//! copied from another link is told from what moat wrote.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::attachment::{Attachment, AttachmentKey, macs};

/// The longest alias that the kernel takes, in bytes.
const MAX_ALIAS: usize = 255;

/// How the first word says that it is ours, and in which version of its form.
const MAGIC: &str = "moat1";

/// Stands for a missing uid.
const NONE: &str = "-";

/// What an alias of ours says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Alias {
    /// The link is a pod's.
    Pod(Identity),
    /// Nobody knows whose it is; whoever it is held these addresses.
    Closed(Vec<IpAddr>),
}

/// Whose a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) key: AttachmentKey,
    pub(crate) network: String,
    pub(crate) pod_namespace: String,
    pub(crate) pod_name: String,
    pub(crate) pod_uid: Option<String>,
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
}

impl Identity {
    /// The attachment of this identity, as far as a link can tell it: where the pod's namespace is mounted, it cannot.
    pub(crate) fn attachment(self, mtu: u32) -> Attachment {
        let (host_mac, pod_mac) = macs(self.v4, self.v6);
        Attachment {
            host_ifname: self.key.host_ifname(),
            container_id: self.key.container_id,
            ifname: self.key.ifname,
            network: self.network,
            pod_namespace: self.pod_namespace,
            pod_name: self.pod_name,
            pod_uid: self.pod_uid,
            netns: std::path::PathBuf::new(),
            host_mac,
            pod_mac,
            v4: self.v4,
            v6: self.v6,
            mtu,
            host_ports: Vec::new(),
        }
    }
}

/// The alias of an attachment's link; `None` where the names are too long for one. A uid that does not fit is left out.
pub(crate) fn of(attachment: &Attachment) -> Option<String> {
    let uid = attachment.pod_uid.as_deref().filter(|uid| is_word(uid));
    [uid.unwrap_or(NONE), NONE].into_iter().find_map(|uid| {
        let pod = format!("{}/{}", attachment.pod_namespace, attachment.pod_name);
        let addresses = list(attachment.addresses());
        let names = [attachment.pod_namespace.as_str(), attachment.pod_name.as_str()];
        let words = [
            attachment.container_id.as_str(),
            &attachment.ifname,
            &addresses,
            &pod,
            uid,
            &attachment.network,
        ];
        let fits = words.into_iter().chain(names).all(is_word) && !attachment.pod_namespace.contains('/');
        let alias = signed(&attachment.host_ifname, &words.join(" "));
        (fits && alias.len() <= MAX_ALIAS).then_some(alias)
    })
}

/// The alias of a link of which nobody knows whose it is.
pub(crate) fn closed(link: &str, addresses: &[IpAddr]) -> String {
    // As many addresses as ever belong to one link.
    signed(link, format!("closed {}", list(addresses.iter().copied().take(4))).trim_end())
}

/// What the alias of the link `link` says; `None` where it does not say it in moat's words and whole.
pub(crate) fn parse(link: &str, alias: &[u8]) -> Option<Alias> {
    let text = std::str::from_utf8(alias).ok()?;
    let (_, body) = text.strip_prefix(MAGIC)?.strip_prefix(' ')?.split_once(' ')?;
    let words: Vec<&str> = body.split(' ').collect();
    if text.len() > MAX_ALIAS || signed(link, body) != text || !words.iter().all(|word| is_word(word)) {
        return None;
    }
    match words[..] {
        ["closed"] => Some(Alias::Closed(Vec::new())),
        ["closed", addresses] => listed(addresses).map(Alias::Closed),
        [container, ifname, addresses, pod, uid, network] => {
            let (pod_namespace, pod_name) = pod.split_once('/')?;
            let (mut v4, mut v6) = (None, None);
            for address in listed(addresses)? {
                match address {
                    IpAddr::V4(address) => v4 = Some(address),
                    IpAddr::V6(address) => v6 = Some(address),
                }
            }
            let key = AttachmentKey::new(container, ifname);
            (key.host_ifname() == link).then(|| {
                Alias::Pod(Identity {
                    key,
                    network: network.to_owned(),
                    pod_namespace: pod_namespace.to_owned(),
                    pod_name: pod_name.to_owned(),
                    pod_uid: Some(uid).filter(|uid| *uid != NONE).map(str::to_owned),
                    v4,
                    v6,
                })
            })
        }
        _ => None,
    }
}

/// Whether what an alias with this body says of a link is written, and then read, as the same; for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub(crate) fn is_stable(link: &str, body: &str) -> bool {
    match parse(link, signed(link, body).as_bytes()) {
        None => true,
        Some(Alias::Closed(addresses)) => {
            addresses.len() > 4
                || parse(link, closed(link, &addresses).as_bytes()) == Some(Alias::Closed(addresses))
        }
        Some(Alias::Pod(identity)) => match of(&identity.clone().attachment(1500)) {
            None => true,
            Some(alias) => parse(link, alias.as_bytes()) == Some(Alias::Pod(identity)),
        },
    }
}

fn signed(link: &str, body: &str) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(link.as_bytes());
    hash.update(&[0]);
    hash.update(body.as_bytes());
    format!("{MAGIC} {} {body}", &hash.finalize().to_hex().as_str()[..8])
}

fn list(addresses: impl Iterator<Item = IpAddr>) -> String {
    addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(",")
}

/// The same, read: only as it is written.
fn listed(text: &str) -> Option<Vec<IpAddr>> {
    let addresses: Vec<IpAddr> = text.split(',').map(|a| a.parse().ok()).collect::<Option<_>>()?;
    (list(addresses.iter().copied()) == text).then_some(addresses)
}

/// Whether it can stand between two spaces. What the specification and Kubernetes call names can.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attachment(container: &str, namespace: &str, name: &str, uid: Option<&str>) -> Attachment {
        let identity = Identity {
            key: AttachmentKey::new(container, "eth0"),
            network: "moat".into(),
            pod_namespace: namespace.into(),
            pod_name: name.into(),
            pod_uid: uid.map(str::to_owned),
            v4: "10.244.11.17".parse().ok(),
            v6: "fd00:10:244:11::17".parse().ok(),
        };
        identity.attachment(1450)
    }

    fn read(attachment: &Attachment) -> Option<Attachment> {
        match parse(&attachment.host_ifname, of(attachment)?.as_bytes())? {
            Alias::Pod(identity) => Some(identity.attachment(attachment.mtu)),
            Alias::Closed(_) => None,
        }
    }

    #[test]
    fn what_moat_would_not_write_is_nobodys() {
        let said = |container: &str, addresses: &str| {
            let link = AttachmentKey::new(container, "eth0").host_ifname();
            let body = format!("{container} eth0 {addresses} shop/web-0 - moat");
            parse(&link, signed(&link, &body).as_bytes())
        };
        assert!(said("c0ffee", "10.1.0.5,fd00:1::5").is_some());
        assert_eq!(said(&"c0ffee".repeat(40), "10.1.0.5"), None, "longer than the kernel takes");
        assert_eq!(said("c0ffee", "10.1.0.5,fd00:1:0::5"), None, "not as it is printed");
    }

    const UID: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

    #[test]
    fn a_pod_is_read_as_it_was_written() {
        let a = attachment(&"c0ffee42".repeat(8), "shop", "web-7d4b9c8f5-x2x9z", Some(UID));
        let alias = of(&a).unwrap();
        assert!(alias.contains(" 10.244.11.17,fd00:10:244:11::17 shop/web-7d4b9c8f5-x2x9z "), "{alias}");
        assert_eq!(read(&a), Some(a));
        let single = Attachment { v4: None, pod_uid: None, ..attachment("c", "a", "b", None) };
        // Its hardware addresses follow from the other family's address.
        let (host_mac, pod_mac) = macs(None, single.v6);
        assert_eq!(read(&single), Some(Attachment { host_mac, pod_mac, ..single }));
    }

    #[test]
    fn what_does_not_fit_is_left_out_in_this_order() {
        let container = "c0ffee42".repeat(8);
        let long =
            |namespace, name| attachment(&container, &"n".repeat(namespace), &"p".repeat(name), Some(UID));
        // Names as long as a controller makes them, and a usual namespace: all of it.
        assert_eq!(read(&long(20, 63)), Some(long(20, 63)));
        // The longest of both: without the uid.
        assert_eq!(read(&long(63, 63)), Some(Attachment { pod_uid: None, ..long(63, 63) }));
        assert_eq!(of(&long(63, 253)), None);
    }

    #[test]
    fn what_cannot_be_told_apart_is_not_written() {
        assert_eq!(of(&attachment("c", "shop", "web 0", None)), None);
        assert_eq!(of(&attachment("c", "shop/x", "web", None)), None);
        assert_eq!(of(&attachment("c", "", "", None)), None);
        // A uid that is none is one that is missing.
        assert_eq!(read(&attachment("c", "a", "b", Some("x y"))).unwrap().pod_uid, None);
    }

    #[test]
    fn a_closed_link_keeps_its_addresses() {
        let addresses = vec!["10.1.0.6".parse().unwrap(), "fd00::6".parse().unwrap()];
        let alias = closed("moat0123456789a", &addresses);
        assert_eq!(parse("moat0123456789a", alias.as_bytes()), Some(Alias::Closed(addresses)));
        assert_eq!(parse("moat0123456789b", alias.as_bytes()), None, "another link's");
        let none = closed("moat0123456789a", &[]);
        assert_eq!(parse("moat0123456789a", none.as_bytes()), Some(Alias::Closed(vec![])));
    }

    proptest! {
        #[test]
        fn anything_may_be_an_alias(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(parse("moat0123456789a", &bytes), None);
        }

        /// One byte changed, lost or gained, anywhere: it is not believed.
        #[test]
        fn damage_is_seen(at in any::<prop::sample::Index>(), byte in any::<u8>(), how in 0..3) {
            let a = attachment("c0ffee", "shop", "web", Some(UID));
            let mut alias = of(&a).unwrap().into_bytes();
            let at = at.index(alias.len());
            match how {
                0 if alias[at] != byte => alias[at] = byte,
                0 | 1 => drop(alias.remove(at)),
                _ => alias.insert(at, byte),
            }
            prop_assert_eq!(parse(&a.host_ifname, &alias), None);
        }
    }
}
