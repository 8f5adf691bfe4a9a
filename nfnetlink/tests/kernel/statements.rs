//! Every statement, written by us and read back by `nft`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use moat_nfnetlink::nft::{
    Base, Batch, Chain, ChainType, Cmp, Direction, Element, Family, FibResult, Hook, IcmpError, IfName,
    Limit, Log, Meta, Operand, Options, Policy, Reject, Rule, Set, Socket, Source, Statement, Table, TableId,
    Value, Verdict, ct_state, fib,
};
use moat_nfnetlink::nft::{Field, KeyType};
use serde_json::{Value as Json, json};

use crate::readback::Ruleset;
use crate::support::{in_namespace, run};

/// Commits one rule and returns what nft says it is.
fn round_trip(rule: Rule) -> Json {
    let table = TableId::new(Family::Inet, "moat");
    let mut batch = Batch::new();
    batch.add_table(&Table::new(table.clone())).unwrap();
    batch.delete_table(&table).unwrap();
    batch.add_table(&Table::new(table.clone())).unwrap();
    batch.add_set(&table, &Set::new("peers", Field::Ipv4Addr)).unwrap();
    let ports = KeyType::new(&[Field::InetProto, Field::InetService]).unwrap();
    batch.add_set(&table, &Set::new("ports", ports).verdict_map()).unwrap();
    batch.add_set(&table, &each()).unwrap();
    batch.add_counter(&table, "all").unwrap();
    batch.add_chain(&table, &Chain::new("target")).unwrap();
    batch.add_chain(&table, &Chain::filter("base", Hook::Prerouting, -300, Policy::Accept)).unwrap();
    batch.add_rule(&table, "base", &rule).unwrap();
    Socket::open().unwrap().send(&batch, None).unwrap();
    Ruleset::read().expressions("base").remove(0)
}

/// Limits for each pair of interfaces.
fn each() -> Set {
    let pair = KeyType::new(&[Field::IfName, Field::IfName]).unwrap();
    Set::new("each", pair).dynamic().size(2).timeout(Duration::from_secs(60))
}

fn eq(left: Json, right: Json) -> Json {
    json!([{ "match": { "left": left, "right": right, "op": "==" } }])
}

fn meta(key: &str) -> Json {
    json!({ "meta": { "key": key } })
}

fn field(protocol: &str, field: &str) -> Json {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

#[test]
fn meta_data() {
    in_namespace(|| {
        let veth = IfName::new("moat1").unwrap();
        assert_eq!(round_trip(Rule::new().eq(Source::L4PROTO, 6)), eq(meta("l4proto"), json!("tcp")));
        assert_eq!(round_trip(Rule::new().eq(Source::NFPROTO, 10)), eq(meta("nfproto"), json!("ipv6")));
        assert_eq!(round_trip(Rule::new().eq(Source::IIFNAME, veth)), eq(meta("iifname"), json!("moat1")));
        assert_eq!(
            round_trip(Rule::new().eq(Source::OIFNAME, Operand::prefix(IfName::new("moat").unwrap()))),
            eq(meta("oifname"), json!("moat*"))
        );
        assert_eq!(round_trip(Rule::new().eq(Source::IIF, Value::IfIndex(1))), eq(meta("iif"), json!("lo")));
        assert_eq!(
            round_trip(Rule::new().masked(
                Source::MARK,
                Operand::host32(0xff00),
                Cmp::Eq,
                Operand::host32(0x1200)
            )),
            eq(json!({ "&": [meta("mark"), 0xff00] }), json!(0x1200))
        );
    });
}

#[test]
fn connection_tracking() {
    in_namespace(|| {
        assert_eq!(
            round_trip(Rule::new().ct_state(ct_state::ESTABLISHED | ct_state::RELATED)),
            json!([{ "match": { "left": { "ct": { "key": "state" } }, "right": ["established", "related"],
                "op": "in" } }])
        );
        assert_eq!(
            round_trip(Rule::new().ct_mark(0x4000_0000, true)),
            json!([{ "match": { "left": { "&": [{ "ct": { "key": "mark" } }, 0x4000_0000] }, "right": 0,
                "op": "!=" } }])
        );
        assert_eq!(
            round_trip(Rule::new().eq(Source::CT_DIRECTION, Direction::Reply as u8)),
            eq(json!({ "ct": { "key": "direction" } }), json!("reply"))
        );
        assert_eq!(
            round_trip(Rule::new().eq(Source::ct_ip_saddr(Direction::Original), Ipv4Addr::new(10, 0, 0, 1))),
            eq(json!({ "ct": { "key": "ip saddr", "dir": "original" } }), json!("10.0.0.1"))
        );
        assert_eq!(
            round_trip(Rule::new().eq(Source::ct_ip6_daddr(Direction::Reply), Ipv6Addr::LOCALHOST)),
            eq(json!({ "ct": { "key": "ip6 daddr", "dir": "reply" } }), json!("::1"))
        );
        assert_eq!(
            round_trip(Rule::new().then(Statement::SetCtMark { value: 1, mask: 1 })),
            json!([{ "mangle": { "key": { "ct": { "key": "mark" } },
                "value": { "|": [{ "ct": { "key": "mark" } }, 1] } } }])
        );
    });
}

#[test]
fn packet_fields() {
    in_namespace(|| {
        let v4 = |rule: Rule| Rule::new().eq(Source::NFPROTO, 2).then(rule.statements()[0].clone());
        assert_eq!(
            round_trip(v4(Rule::new().eq(Source::IP_DADDR, Ipv4Addr::new(10, 1, 2, 3)))),
            eq(field("ip", "daddr"), json!("10.1.2.3"))
        );
        assert_eq!(
            round_trip(
                Rule::new()
                    .eq(Source::NFPROTO, 10)
                    .neq(Source::IP6_SADDR, "fd00::1".parse::<Ipv6Addr>().unwrap())
            ),
            json!([{ "match": { "left": field("ip6", "saddr"), "right": "fd00::1", "op": "!=" } }])
        );
        assert_eq!(
            round_trip(Rule::new().eq(Source::L4PROTO, 6).range(
                Source::TH_DPORT,
                Operand::be16(80),
                Operand::be16(90)
            )),
            json!([{ "match": { "left": field("tcp", "dport"), "right": { "range": [80, 90] }, "op": "==" } }])
        );
        assert_eq!(
            round_trip(Rule::new().eq(Source::L4PROTO, 17).cmp(
                Source::TH_SPORT,
                Cmp::Gte,
                Value::Port(1024)
            )),
            json!([{ "match": { "left": field("udp", "sport"), "right": 1024, "op": ">=" } }])
        );
        assert_eq!(
            round_trip(Rule::new().eq(Source::L4PROTO, 58).eq(Source::ICMP_TYPE, Value::Icmp6Type(134))),
            eq(field("icmpv6", "type"), json!("nd-router-advert"))
        );
        assert_eq!(
            round_trip(Rule::new().eq(Source::Has { options: Options::Ipv6, kind: 43 }, 1)),
            eq(json!({ "exthdr": { "name": "rt" } }), json!(true))
        );
        assert_eq!(
            round_trip(Rule::new().eq(
                Source::Fib { flags: fib::SADDR | fib::PRESENT, result: FibResult::Oif },
                Operand::host32(0)
            )),
            eq(json!({ "fib": { "result": "oif", "flags": ["saddr"] } }), json!(false))
        );
        // The nftables crate does not know this operator.
        let no_syn = Rule::new().eq(Source::L4PROTO, 6).masked(Source::TCP_FLAGS, 2, Cmp::Eq, 0);
        round_trip_text(no_syn, "tcp flags ! syn");
    });
}

#[test]
fn lookups_and_verdicts() {
    in_namespace(|| {
        let v4 = Rule::new().eq(Source::NFPROTO, 2);
        assert_eq!(
            round_trip(v4.clone().lookup([Source::IP_SADDR], "peers")),
            eq(field("ip", "saddr"), json!("@peers"))
        );
        assert_eq!(
            round_trip(v4.lookup_missing([Source::IP_SADDR], "peers").verdict(Verdict::Drop)),
            json!([{ "match": { "left": field("ip", "saddr"), "right": "@peers", "op": "!=" } },
                { "drop": null }])
        );
        assert_eq!(
            round_trip(Rule::new().vmap([Source::L4PROTO, Source::TH_DPORT], "ports")),
            json!([{ "vmap": { "key": { "concat": [meta("l4proto"), field("th", "dport")] },
                "data": "@ports" } }])
        );
        let verdict = |verdict| round_trip(Rule::new().verdict(verdict))[0].clone();
        assert_eq!(verdict(Verdict::Accept), json!({ "accept": null }));
        assert_eq!(verdict(Verdict::Return), json!({ "return": null }));
        assert_eq!(verdict(Verdict::Continue), json!({ "continue": null }));
        assert_eq!(verdict(Verdict::jump("target")), json!({ "jump": { "target": "target" } }));
        assert_eq!(verdict(Verdict::goto("target")), json!({ "goto": { "target": "target" } }));
    });
}

#[test]
fn effects() {
    in_namespace(|| {
        assert_eq!(round_trip(Rule::new().counter())[0], json!({ "counter": { "packets": 0, "bytes": 0 } }));
        let limit = Limit { rate: 10, per: Duration::from_secs(1), burst: 5 };
        assert_eq!(
            round_trip(Rule::new().limit(limit))[0],
            json!({ "limit": { "rate": 10, "burst": 5, "per": "second" } })
        );
        assert_eq!(round_trip(Rule::new().count_in("all"))[0], json!({ "counter": "all" }));
        let log = Log { group: 7, prefix: "moat drop".into(), snaplen: Some(128), threshold: Some(2) };
        assert_eq!(
            round_trip(Rule::new().log(log))[0],
            json!({ "log": { "prefix": "moat drop", "group": 7, "snaplen": 128, "queue-threshold": 2 } })
        );
        assert_eq!(
            round_trip(Rule::new().reject(Reject::Icmp(IcmpError::AdminProhibited)))[0],
            json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } })
        );
        assert_eq!(
            round_trip(Rule::new().eq(Source::L4PROTO, 6).reject(Reject::TcpReset))[1],
            json!({ "reject": { "type": "tcp reset" } })
        );
        // The types of the nftables crate know none of these.
        round_trip_text(
            Rule::new().meter([Source::IIFNAME, Source::OIFNAME], "each", limit),
            "update @each { iifname . oifname limit rate 10/second }",
        );
        round_trip_text(Rule::new().then(Statement::NoTrack), "notrack");
        round_trip_text(Rule::new().verdict(Verdict::Accept).comment("why so"), "accept comment \"why so\"");
    });
}

fn round_trip_text(rule: Rule, expected: &str) {
    let table = TableId::new(Family::Inet, "text");
    let mut batch = Batch::new();
    batch.add_table(&Table::new(table.clone())).unwrap();
    batch.add_set(&table, &each()).unwrap();
    batch.add_chain(&table, &Chain::filter("base", Hook::Prerouting, -300, Policy::Accept)).unwrap();
    batch.flush_chain(&table, "base").unwrap();
    batch.add_rule(&table, "base", &rule).unwrap();
    Socket::open().unwrap().send(&batch, None).unwrap();
    let listed = run("nft", &["list", "chain", "inet", "text", "base"]);
    assert!(listed.lines().any(|line| line.trim() == expected), "{listed}");
}

#[test]
fn a_device_chain() {
    in_namespace(|| {
        run("ip", &["link", "add", "moat0", "type", "veth", "peer", "name", "eth0"]);
        let table = TableId::new(Family::Netdev, "moat");
        let mac = [2, 0, 0, 0, 0, 1];
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table.clone())).unwrap();
        let hook = Hook::Ingress(IfName::new("moat0").unwrap());
        batch.add_chain(&table, &Chain::filter("moat0", hook, -500, Policy::Drop)).unwrap();
        let rules = [
            Rule::new()
                .eq(Source::Meta(Meta::IifType), Operand::host16(1))
                .neq(Source::ETHER_SADDR, Value::Ether(mac))
                .verdict(Verdict::Drop),
            Rule::new()
                .eq(Source::PROTOCOL, Value::EtherType(0x0806))
                .eq(Source::ARP_OPERATION, Operand::be16(2))
                .eq(Source::ARP_SADDR_IP, Ipv4Addr::new(10, 0, 0, 9))
                .eq(Source::ARP_SADDR_ETHER, Value::Ether(mac))
                .verdict(Verdict::Accept),
        ];
        for rule in &rules {
            batch.add_rule(&table, "moat0", rule).unwrap();
        }
        Socket::open().unwrap().send(&batch, None).unwrap();
        let listed = run("nft", &["list", "table", "netdev", "moat"]);
        for line in [
            "type filter hook ingress device \"moat0\" priority -500; policy drop;",
            "ether saddr != 02:00:00:00:00:01 drop",
            "arp operation reply arp saddr ip 10.0.0.9 arp saddr ether 02:00:00:00:00:01 accept",
        ] {
            assert!(listed.lines().any(|listed| listed.trim() == line), "{line}\n{listed}");
        }
    });
}

#[test]
fn destinations_by_maps() {
    in_namespace(|| {
        for (ipv4, address) in [(true, Field::Ipv4Addr), (false, Field::Ipv6Addr)] {
            let table = TableId::new(Family::Inet, "nat");
            let port = KeyType::new(&[Field::InetProto, Field::InetService]).unwrap();
            let target = KeyType::new(&[address, Field::InetService]).unwrap();
            let to: Value = if ipv4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            let map = Set::new("ports", port).map(target);
            let base =
                Base { kind: ChainType::Nat, hook: Hook::Prerouting, priority: -99, policy: Policy::Accept };
            let chain = Chain { base: Some(base), ..Chain::new("in") };
            let rule =
                Rule::new().eq(Source::NFPROTO, if ipv4 { 2 } else { 10 }).then(Statement::DestinationNat {
                    key: [Source::L4PROTO, Source::TH_DPORT].into(),
                    map: "ports".into(),
                    ipv4,
                });
            let element = Element::new([Value::Proto(17), Value::Port(53)]).value([to, Value::Port(5353)]);
            let mut batch = Batch::new();
            batch.add_table(&Table::new(table.clone())).unwrap();
            batch.add_set(&table, &map).unwrap();
            batch.add_elements(&table, &map, [element.clone()]).unwrap();
            batch.add_chain(&table, &chain).unwrap();
            batch.add_rule(&table, "in", &rule).unwrap();
            let mut socket = Socket::open().unwrap();
            socket.send(&batch, None).unwrap();
            let text = run("nft", &["list", "table", "inet", "nat"]);
            let family = if ipv4 { "ip" } else { "ip6" };
            let rule = format!("dnat {family} to meta l4proto . th dport map @ports");
            assert!(text.contains(&rule) && text.contains("type nat hook prerouting priority"), "{text}");
            let mut there = Vec::new();
            socket.elements(&table, "ports", |view| there.extend(view.element(&map))).unwrap();
            assert_eq!(there, [element]);
            let mut batch = Batch::new();
            batch.delete_table(&table).unwrap();
            socket.send(&batch, None).unwrap();
        }
    });
}
