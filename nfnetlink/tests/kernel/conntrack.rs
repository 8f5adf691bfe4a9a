//! Connections of real packets, over loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use moat_nfnetlink::conntrack::{
    Changed, Conntrack, Deletion, Detail, Entry, Family, Filter, Losses, MarkChange, Tuple, status,
};
use moat_nfnetlink::nft::{
    self, Batch, Chain, Hook, Policy, Rule, Socket, Statement, Table, TableId, Verdict,
};

use crate::support::{in_namespace, run};

/// Loads a table that tracks, and marks what is new with `mark`.
fn track(mark: u32) {
    let table = TableId::new(nft::Family::Inet, "track");
    let mut batch = Batch::new();
    batch.add_table(&Table::new(table.clone())).unwrap();
    batch.add_chain(&table, &Chain::filter("out", Hook::Output, 0, Policy::Accept)).unwrap();
    let rule = Rule::new()
        .ct_state(moat_nfnetlink::nft::ct_state::NEW)
        .then(Statement::SetCtMark { value: mark, mask: u32::MAX })
        .verdict(Verdict::Accept);
    batch.add_rule(&table, "out", &rule).unwrap();
    Socket::open().unwrap().send(&batch, None).unwrap();
}

/// Sends a packet and an answer between two sockets; returns the flow's tuple.
fn talk(from: &str, to: &str) -> (Tuple, UdpSocket, UdpSocket) {
    let client = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 0)).unwrap();
    let server = UdpSocket::bind((to.parse::<IpAddr>().unwrap(), 0)).unwrap();
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    }
    let address = server.local_addr().unwrap();
    client.send_to(b"question", address).unwrap();
    let mut buffer = [0; 16];
    // With a timeout the kernel does not wait on after an interruption by itself (signal(7)).
    let mut heard = |socket: &UdpSocket| loop {
        match socket.recv_from(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other.unwrap().1,
        }
    };
    let peer = heard(&server);
    server.send_to(b"answer", peer).unwrap();
    heard(&client);
    (tuple(client.local_addr().unwrap(), address), client, server)
}

fn tuple(source: SocketAddr, destination: SocketAddr) -> Tuple {
    Tuple {
        source: source.ip(),
        destination: destination.ip(),
        protocol: 17,
        detail: Detail::Ports { source: source.port(), destination: destination.port() },
    }
}

fn entries(conntrack: &mut Conntrack, filter: Filter) -> Vec<Entry> {
    let mut entries = Vec::new();
    conntrack.entries(&filter, |entry| entries.push(entry)).unwrap();
    entries.sort_by_key(|entry| entry.original);
    entries
}

#[test]
fn a_dump_holds_the_flows() {
    in_namespace(|| {
        track(0);
        let (first, ..) = talk("127.0.0.1", "127.0.0.2");
        let (second, ..) = talk("127.0.0.3", "127.0.0.2");
        for address in ["fd00::1/128", "fd00::2/128", "fd00::3/128"] {
            run("ip", &["address", "add", address, "dev", "lo", "nodad"]);
            // The kernel makes the route to itself a little later.
            let (address, _) = address.split_once('/').unwrap();
            while !run("ip", &["-6", "route", "show", "table", "local"]).contains(address) {}
        }
        let (six, ..) = talk("fd00::1", "fd00::3");
        let (seven, ..) = talk("fd00::2", "fd00::3");
        let mut conntrack = Conntrack::open().unwrap();
        let all = entries(&mut conntrack, Filter::all());
        let tuples: Vec<Tuple> = all.iter().map(|entry| entry.original).collect();
        assert_eq!(tuples, [first, second, six, seven]);
        assert_eq!(all[0].reply.source, first.destination);
        assert_ne!(all[0].status & status::SEEN_REPLY, 0);
        assert!(all[0].timeout > 0 && all[0].id != all[1].id);

        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let found = |conntrack: &mut Conntrack, filter| -> Vec<Tuple> {
            entries(conntrack, filter).iter().map(|entry| entry.original).collect()
        };
        assert_eq!(found(&mut conntrack, Filter::opened_by(address("127.0.0.3"))), [second]);
        assert_eq!(found(&mut conntrack, Filter::answered_by(address("127.0.0.2"))), [first, second]);
        assert_eq!(found(&mut conntrack, Filter::opened_by(address("fd00::1"))), [six]);
        assert_eq!(found(&mut conntrack, Filter::opened_by(address("fd00::2"))), [seven]);
        assert_eq!(found(&mut conntrack, Filter::answered_by(address("fd00::3"))), [six, seven]);
        assert_eq!(found(&mut conntrack, Filter::opened_by(address("127.0.0.9"))), []);
        let both = Filter {
            original_destination: Some(address("127.0.0.2")),
            reply_destination: Some(address("127.0.0.1")),
            ..Filter::default()
        };
        assert_eq!(found(&mut conntrack, both), [first]);
    });
}

#[test]
fn a_mark_changes_in_its_mask_alone() {
    in_namespace(|| {
        track(0x0000_1234);
        let (first, ..) = talk("127.0.0.1", "127.0.0.2");
        let (second, ..) = talk("127.0.0.3", "127.0.0.2");
        let mut conntrack = Conntrack::open().unwrap();
        const REVOKED: u32 = 0x4000_0000;
        let revoke = |tuple| MarkChange { tuple, zone: 0, value: REVOKED, mask: REVOKED };
        let none = Tuple { source: Ipv4Addr::new(127, 9, 9, 9).into(), ..first };
        let changed = conntrack.set_marks(&[revoke(first), revoke(none)]).unwrap();
        assert_eq!(changed, Changed { changed: 1, gone: 1 });
        let marks = |conntrack: &mut Conntrack| -> Vec<u32> {
            entries(conntrack, Filter::all()).iter().map(|entry| entry.mark).collect()
        };
        assert_eq!(marks(&mut conntrack), [0x4000_1234, 0x0000_1234]);
        let revoked = Filter { mark: Some((REVOKED, REVOKED)), ..Filter::default() };
        assert_eq!(entries(&mut conntrack, revoked).len(), 1);

        // Bits outside of the mask do not count in the value either.
        let clear = MarkChange { tuple: first, zone: 0, value: 0x00ff_0000, mask: REVOKED };
        assert_eq!(conntrack.set_marks(&[clear]).unwrap().changed, 1);
        assert_eq!(marks(&mut conntrack), [0x0000_1234, 0x0000_1234]);

        // Another entry of the same tuple is not the one that was meant.
        let meant =
            entries(&mut conntrack, Filter::all()).into_iter().find(|e| e.original == second).unwrap();
        let other = Deletion { id: Some(meant.id ^ 1), ..Deletion::of(&meant) };
        assert_eq!(conntrack.delete(&[other]).unwrap(), Changed { changed: 0, gone: 1 });
        assert_eq!(entries(&mut conntrack, Filter::of(Family::V4)).len(), 2);
        assert_eq!(entries(&mut conntrack, Filter::of(Family::V6)).len(), 0);
        let none = Deletion { tuple: none, zone: 0, id: None };
        assert_eq!(conntrack.delete(&[Deletion::of(&meant), none]).unwrap(), Changed { changed: 1, gone: 1 });
        assert_eq!(marks(&mut conntrack), [0x0000_1234]);
    });
}

#[test]
fn hundreds_of_marks_at_once() {
    in_namespace(|| {
        track(1);
        let mut open = Vec::new();
        let mut changes = Vec::new();
        for _ in 0..300 {
            let (tuple, client, server) = talk("127.0.0.1", "127.0.0.2");
            changes.push(MarkChange { tuple, zone: 0, value: 2, mask: 2 });
            let none = Tuple { protocol: 132, ..tuple };
            changes.push(MarkChange { tuple: none, zone: 0, value: 2, mask: 2 });
            open.push((client, server));
        }
        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.set_marks(&changes).unwrap(), Changed { changed: 300, gone: 300 });
        let all = entries(&mut conntrack, Filter::all());
        assert_eq!(all.len(), 300);
        assert!(all.iter().all(|entry| entry.mark == 3));
        assert_eq!(conntrack.set_marks(&[]).unwrap(), Changed::default());
    });
}

#[test]
fn the_kernel_says_how_full_the_table_is() {
    in_namespace(|| {
        track(0);
        let mut conntrack = Conntrack::open().unwrap();
        let before = conntrack.usage().unwrap();
        let flows: Vec<_> = (1..=5).map(|n| talk("127.0.0.1", &format!("127.0.0.{n}"))).collect();
        let usage = conntrack.usage().unwrap();
        assert_eq!(usage.entries, before.entries + flows.len() as u32);
        let limit: u32 = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(usage.limit.unwrap_or_default(), limit);
        assert_eq!(conntrack.losses().unwrap(), Losses::default());
    });
}
