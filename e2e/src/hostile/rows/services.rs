//! Services: addresses that the node turns into a pod's, before anything is judged.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use moat_policies::Family;

use super::{ALLOWED, Cast, Place, Table, Who};
use crate::hostile::cast::DENIED;

/// Where every Service listens.
const PORT: u16 = 80;
/// Where it leads to the port that nobody may reach.
const OTHER_PORT: u16 = 90;

/// The address of the Service whose only endpoint is this pod.
fn address(who: Who, family: Family) -> IpAddr {
    let number = 10 + who as u8;
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd10, 0x96, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// What a node's kube-proxy in nftables mode would have there, for `nft -f -`: a map from Service to a chain, which chooses an
/// endpoint's chain, which marks what comes from the endpoint itself, and translates.
pub(in crate::hostile) fn rules(cast: &Cast) -> String {
    let mut text = String::new();
    for family in Family::ALL {
        let (word, kind) = match family {
            Family::V4 => ("ip", "ipv4_addr"),
            Family::V6 => ("ip6", "ipv6_addr"),
        };
        let (mut map, mut chains) = (String::new(), String::new());
        for who in Who::ALL.into_iter().filter(|who| !cast.pod(*who).address(family).is_unspecified()) {
            let (service, pod) = (address(who, family), cast.pod(who).address(family));
            let shown = if family == Family::V6 { format!("[{pod}]") } else { pod.to_string() };
            for (port, target) in [(PORT, ALLOWED), (OTHER_PORT, DENIED)] {
                let name = format!("{}-{port}", who.name());
                let _ = writeln!(map, "{service} . udp . {port} : goto service-{name},");
                let _ = writeln!(
                    chains,
                    "chain service-{name} {{
                        numgen random mod 1 vmap {{ 0 : goto endpoint-{name} }}
                    }}
                    chain endpoint-{name} {{
                        {word} saddr {pod} meta mark set meta mark or 0x4000
                        meta l4proto udp dnat {word} to {shown}:{target}
                    }}"
                );
            }
        }
        if map.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "table {word} lab-proxy {{
                {chains}
                map services {{
                    type {kind} . inet_proto . inet_service : verdict
                    elements = {{ {map} }}
                }}
                chain nat-prerouting {{
                    type nat hook prerouting priority -100
                    {word} daddr . meta l4proto . th dport vmap @services
                }}
                chain nat-postrouting {{
                    type nat hook postrouting priority 100
                    meta mark and 0x4000 != 0 meta mark set meta mark and 0xffffbfff masquerade fully-random
                }}
            }}"
        );
    }
    text
}

pub(super) fn rows(t: &mut Table<'_>) {
    use Who::{Denied, Far, Limited, Near, Open, OpenFar};
    t.group("Services");
    let family = t.family;
    let service = move |who| address(who, family);
    let of = |who: Who| format!("the Service of {}", who.name());
    t.pod(Limited, of(Near), |d| d.udp(d.own(), service(Near), PORT), &[Place::Pod(Near)]);
    t.pod(Limited, of(Far), |d| d.udp(d.own(), service(Far), PORT), &[Place::Wire(0), Place::Pod(Far)]);
    for victim in [Near, Far] {
        let name = format!("{}, to another port", of(victim));
        t.pod(Limited, name, |d| d.udp(d.own(), service(victim), OTHER_PORT), &[]);
    }
    for to in [Open, OpenFar, Denied] {
        t.pod(Limited, of(to), |d| d.udp(d.own(), service(to), PORT), &[]);
    }
    for to in [Near, Far, Open, OpenFar, Limited] {
        t.pod(Denied, of(to), |d| d.udp(d.own(), service(to), PORT), &[]);
    }
    for victim in [Near, Far] {
        let name = format!("{}, from limited's address", of(victim));
        t.pod(Denied, name, |d| d.udp(d.of(Limited), service(victim), PORT), &[]);
    }
    // Far is another node's to protect.
    t.pod(Open, of(Far), |d| d.udp(d.own(), service(Far), PORT), &[Place::Wire(0)]);
    for to in [Near, Denied, Limited] {
        t.pod(Open, of(to), |d| d.udp(d.own(), service(to), PORT), &[]);
    }
    let across = [Place::Wire(0), Place::Pod(OpenFar)];
    t.pod(Open, of(OpenFar), |d| d.udp(d.own(), service(OpenFar), PORT), &across);
    t.uplink(of(Open), |d| d.udp(d.own(), service(Open), PORT), &[Place::Pod(Open)]);
    for to in [Near, Denied, Limited] {
        t.uplink(of(to), |d| d.udp(d.own(), service(to), PORT), &[]);
    }
    // A pod always reaches itself; but nobody does in its name.
    for itself in [Denied, Limited, Open, Near] {
        let back = [Place::Pod(itself)];
        t.pod(itself, "its own Service", |d| d.udp(d.own(), service(itself), PORT), &back);
    }
    t.pod(Denied, "near's Service, from near's address", |d| d.udp(d.of(Near), service(Near), PORT), &[]);
    t.uplink("near's Service, from near's address", |d| d.udp(d.of(Near), service(Near), PORT), &[]);
    t.uplink("near's Service, from limited's address", |d| d.udp(d.of(Limited), service(Near), PORT), &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::cast::Seat;

    #[test]
    fn rules_name_every_pod_that_has_an_address() {
        let seat = Seat::new([2; 6], [3; 6], &["10.0.0.1".parse().unwrap()]);
        let cast = Cast {
            pods: std::array::from_fn(|_| seat.clone()),
            nodes: vec![seat.clone()],
            world: seat,
            tunnel: None,
            routed: false,
        };
        let text = rules(&cast);
        assert!(text.contains("table ip lab-proxy") && !text.contains("table ip6"));
        assert_eq!(text.matches("dnat ip to 10.0.0.1:8080").count(), Who::ALL.len());
        assert!(text.contains("10.96.0.10 . udp . 80 : goto service-denied-80,"));
    }
}
