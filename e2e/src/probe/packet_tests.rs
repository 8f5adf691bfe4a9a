//! The prober against a hand-made network, with drops put in by `nft`.

use std::collections::BTreeSet;
use std::process::Command;

use moat_policies::{Endpoint, NamespacedName};

use super::*;
use crate::cells::{Named, cells};
use crate::link::{Links, UPLINK};
use crate::space::sysctl;

/// Hosts on one bridge, dual stack, with a TCP and a UDP port each.
async fn hand_made(names: &[&str]) -> (Arc<Space>, Vec<Station>) {
    let fabric = Arc::new(Space::new("fabric").unwrap());
    fabric.run(async { Links::open().unwrap().add_bridge().await.unwrap() }).await.unwrap();
    let mut stations = Vec::new();
    for (number, name) in (1u16..).zip(names) {
        let space = Arc::new(Space::new(name).unwrap());
        let (port, netns) = (format!("to-{name}"), space.raw_fd());
        fabric
            .run(async move { Links::open().unwrap().add_cable(&port, netns, true).await.unwrap() })
            .await
            .unwrap();
        let of = |number: u16| -> [IpAddr; 2] {
            [[10, 77, 0, number as u8].into(), [0xfd77, 0, 0, 0, 0, 0, 0, number].into()]
        };
        let addresses = of(number).to_vec();
        let others: Vec<IpAddr> =
            (1..).take(names.len()).filter(|other| *other != number).flat_map(of).collect();
        let own = addresses.clone();
        let wired = async move {
            let links = Links::open().unwrap();
            links.up("lo").await.unwrap();
            links.up(UPLINK).await.unwrap();
            for address in own {
                links.add_address(UPLINK, address).await.unwrap();
            }
            for address in others {
                links.add_neighbour_route(UPLINK, address).await.unwrap();
            }
        };
        space.run(wired).await.unwrap();
        let ports = BTreeSet::from([(Protocol::Tcp, 80), (Protocol::Udp, 53)]);
        let endpoint = Endpoint::Pod(NamespacedName::new("test", *name));
        stations.push(Station {
            host: Host { endpoint, node: None, addresses, ports },
            space,
            outside_as: vec![],
        });
    }
    let settle = async { sysctl("net.ipv6.conf.all.disable_ipv6", "0") };
    fabric.run(settle).await.unwrap().unwrap();
    (fabric, stations)
}

async fn nft(space: &Space, rules: &str) {
    let rules = rules.to_owned();
    let run = async move { Command::new("nft").arg(rules).status() };
    assert!(space.run(run).await.unwrap().expect("nft is needed: apt-get install nftables").success());
}

#[test]
fn packets_tell_allowed_from_denied_from_half_way() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: namespaces from a test's thread need root; the lab's own tests cover the rest");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (_fabric, stations) = hand_made(&["a", "b", "c"]).await;
        let hosts: Vec<Host> = stations.iter().map(|s| s.host.clone()).collect();
        let cells = cells(&hosts);
        // Six pairs, two families, five kinds of traffic.
        assert_eq!(cells.len(), 60);
        let prober = Prober::start(stations.clone()).await.unwrap();
        let all = vec![true; cells.len()];
        let (seen, _) = prober.probe_with_second_try(&cells, &all).await.unwrap();
        for (cell, seen) in cells.iter().zip(&seen) {
            assert_eq!(*seen, Observed::Allowed, "{}", Named(cell, &hosts));
        }

        let b = &stations[1].space;
        nft(b, "add table inet t; add chain inet t in { type filter hook input priority 0; }").await;
        nft(b, "add rule inet t in ip saddr 10.77.0.1 tcp dport 80 drop").await;
        nft(b, "add rule inet t in ip6 saddr fd77::1 udp dport 53 reject").await;
        nft(b, "add chain inet t out { type filter hook output priority 0; }").await;
        nft(b, "add rule inet t out ip daddr 10.77.0.3 icmp type echo-reply drop").await;
        for (cell, seen) in cells.iter().zip(prober.probe(&cells, FIRST_WAIT).await.unwrap()) {
            let seen = seen.observed;
            let name = Named(cell, &hosts).to_string();
            match &*name {
                "test/a -> test/b 80/TCP IPv4" => assert_eq!(seen, Observed::Denied, "{name}"),
                "test/a -> test/b 53/UDP IPv6" => {
                    assert_eq!(seen, Observed::Other("Connection refused (os error 111)".into()), "{name}")
                }
                "test/c -> test/b ICMP IPv4" => {
                    assert_eq!(seen, Observed::Other("arrived, but no answer came back".into()), "{name}")
                }
                _ => assert_eq!(seen, Observed::Allowed, "{name}"),
            }
        }
        prober.stop().await;
    });
}
