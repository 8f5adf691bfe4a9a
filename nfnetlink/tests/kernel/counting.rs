//! What counts and what limits, with packets: counters with names, sets whose elements count, limits for each key.

use std::net::UdpSocket;
use std::time::Duration;

use moat_nfnetlink::nft::{
    Batch, Chain, Element, Family, Field, Hook, IfName, KeyType, Limit, Policy, Rule, Set, Socket, Source,
    Table, TableId, Value, Verdict,
};

use crate::support::{in_namespace, run};

fn table() -> TableId {
    TableId::new(Family::Inet, "moat")
}

fn lo() -> IfName {
    IfName::new("lo").unwrap()
}

/// Sends datagrams to ports of this machine. What the rules do with each is done when this returns.
fn send(ports: impl IntoIterator<Item = u16>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for port in ports {
        // The answer to an earlier one, that nobody listens, may come as an error of the next.
        while socket.send_to(b"x", ("127.0.0.1", port)).is_err() {}
    }
}

fn counter(socket: &mut Socket, name: &str) -> u64 {
    let all = socket.counters(&table()).unwrap().items;
    all.iter().find(|c| &*c.name == name).unwrap().packets
}

fn elements(socket: &mut Socket, set: &Set) -> Vec<(Element, Option<u64>)> {
    let mut all = Vec::new();
    socket
        .elements(&table(), set.name(), |e| {
            all.push((e.element(set).unwrap(), e.counter.map(|(packets, _)| packets)));
        })
        .unwrap();
    all
}

#[test]
fn counters_with_names_and_counted_elements_outlive_their_rules() {
    in_namespace(|| {
        let names = Set::new("names", Field::IfName).counted();
        let rules = |batch: &mut Batch| {
            let udp = Rule::new().eq(Source::L4PROTO, 17);
            batch.flush_chain(&table(), "in").unwrap();
            let rule = udp.count_in("all").lookup([Source::IIFNAME], "names").verdict(Verdict::Accept);
            batch.add_rule(&table(), "in", &rule).unwrap();
            batch.add_rule(&table(), "in", &Rule::new().eq(Source::L4PROTO, 17).count_in("rest")).unwrap();
        };
        let mut socket = Socket::open().unwrap();
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table())).unwrap();
        batch.add_set(&table(), &names).unwrap();
        let other = Element::new(IfName::new("moat1").unwrap());
        batch.add_elements(&table(), &names, [Element::new(lo()), other.clone()]).unwrap();
        for name in ["all", "rest"] {
            batch.add_counter(&table(), name).unwrap();
        }
        batch.add_chain(&table(), &Chain::filter("in", Hook::Input, 0, Policy::Accept)).unwrap();
        rules(&mut batch);
        socket.send(&batch, None).unwrap();
        send([4000; 3]);
        assert_eq!((counter(&mut socket, "all"), counter(&mut socket, "rest")), (3, 0));

        // Again, as who adopts the table does: what was counted stays.
        let mut batch = Batch::new();
        batch.add_counter(&table(), "all").unwrap();
        batch.add_elements(&table(), &names, [Element::new(lo())]).unwrap();
        rules(&mut batch);
        socket.send(&batch, None).unwrap();
        send([4000; 2]);
        assert_eq!(counter(&mut socket, "all"), 5);
        let mut counted = elements(&mut socket, &names);
        counted.sort_by_key(|(element, _)| element.key);
        assert_eq!(counted, [(Element::new(lo()), Some(5)), (other, Some(0))]);
        let found = socket.sets(&table()).unwrap().items[0].declaration().unwrap();
        assert!(found.is_counted() && !found.is_dynamic());

        // An element that is not there counts nothing, and the packet goes on.
        let mut batch = Batch::new();
        batch.delete_elements(&table(), &names, [Element::new(lo())]).unwrap();
        socket.send(&batch, None).unwrap();
        send([4000]);
        assert_eq!((counter(&mut socket, "all"), counter(&mut socket, "rest")), (6, 1));

        let mut batch = Batch::new();
        batch.delete_counter(&table(), "all").unwrap();
        let busy = socket.send(&batch, None).unwrap_err();
        assert_eq!(busy.errno(), Some(libc::EBUSY), "{busy}");
        assert!(busy.to_string().contains("delete counter inet moat all"), "{busy}");
    });
}

#[test]
fn each_key_has_a_limit_of_its_own_and_a_full_set_lets_nobody_go_on() {
    in_namespace(|| {
        let key = KeyType::new(&[Field::IfName, Field::InetService]).unwrap();
        let ports = Set::new("ports", key).dynamic().size(2).timeout(Duration::from_secs(3600));
        let limit = Limit { rate: 1, per: Duration::from_secs(3600), burst: 5 };
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table())).unwrap();
        batch.add_set(&table(), &ports).unwrap();
        for name in ["all", "let on"] {
            batch.add_counter(&table(), name).unwrap();
        }
        batch.add_chain(&table(), &Chain::filter("in", Hook::Input, 0, Policy::Accept)).unwrap();
        let udp = || Rule::new().eq(Source::L4PROTO, 17);
        let meter = udp().meter([Source::IIFNAME, Source::TH_DPORT], "ports", limit);
        batch.add_rule(&table(), "in", &meter.count_in("let on")).unwrap();
        batch.add_rule(&table(), "in", &udp().count_in("all").verdict(Verdict::Drop)).unwrap();
        let mut socket = Socket::open().unwrap();
        socket.send(&batch, None).unwrap();

        send([4001; 50]);
        assert_eq!(counter(&mut socket, "let on"), 5);
        send([4002; 3]);
        assert_eq!(counter(&mut socket, "let on"), 8, "another key is not held up by the first");
        send([4003; 10]);
        assert_eq!(counter(&mut socket, "let on"), 8, "the set is full");
        send([4002; 3]);
        assert_eq!(counter(&mut socket, "let on"), 10, "who is in it goes on as before");
        assert_eq!(counter(&mut socket, "all"), 66, "and the next rule has met them all");
        let mut keys: Vec<_> = elements(&mut socket, &ports).into_iter().map(|(e, _)| e.key).collect();
        keys.sort_unstable();
        assert_eq!(keys, [4001, 4002].map(|port| [Value::IfName(lo()), Value::Port(port)].into()));
        let found = socket.sets(&table()).unwrap().items[0].declaration().unwrap();
        assert!(found.is_dynamic() && !found.is_counted());
        let listed = run("nft", &["list", "set", "inet", "moat", "ports"]);
        assert!(listed.contains("\"lo\" . 4001 limit rate 1/"), "{listed}");
    });
}
