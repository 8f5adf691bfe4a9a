//! What we write is what `nft` reads back.

mod support;

use std::net::Ipv4Addr;

use moat_nfnetlink::nft::{
    Batch, Chain, Element, Family, Field, Hook, IfName, KeyType, Policy, Rule, Set, Socket, Source, Table,
    TableId, Value, Verdict,
};
use support::{in_namespace, readback::Ruleset, run};

#[test]
fn a_table_reads_back() {
    in_namespace(|| {
        let table = TableId::new(Family::Inet, "moat");
        let peers = Set::new("peers", Field::Ipv4Addr);
        let ports =
            Set::new("ports", KeyType::new(&[Field::InetProto, Field::InetService]).unwrap()).verdict_map();
        let veths = Set::new("veths", Field::IfName).verdict_map();
        let cidrs =
            Set::new("cidrs", KeyType::new(&[Field::Ipv4Addr, Field::InetProto]).unwrap()).intervals();
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table.clone())).unwrap();
        batch.add_chain(&table, &Chain::new("web")).unwrap();
        batch.add_chain(&table, &Chain::filter("forward", Hook::Forward, 0, Policy::Accept)).unwrap();
        batch.add_set(&table, &peers).unwrap();
        batch.add_set(&table, &ports).unwrap();
        batch.add_set(&table, &veths).unwrap();
        batch.add_set(&table, &cidrs).unwrap();
        batch
            .add_elements(
                &table,
                &peers,
                [
                    Element::new(Ipv4Addr::new(10, 0, 0, 1)),
                    Element::new(Ipv4Addr::new(10, 0, 0, 2)).comment("x"),
                ],
            )
            .unwrap();
        batch
            .add_elements(
                &table,
                &ports,
                [Element::new([Value::Proto(6), Value::Port(80)]).verdict(Verdict::jump("web"))],
            )
            .unwrap();
        batch
            .add_elements(
                &table,
                &veths,
                [Element::new(IfName::new("moat1234").unwrap()).verdict(Verdict::goto("web"))],
            )
            .unwrap();
        batch
            .add_elements(
                &table,
                &cidrs,
                [Element::range(
                    [Value::Ipv4(Ipv4Addr::new(10, 1, 0, 0)), Value::Proto(0)],
                    [Value::Ipv4(Ipv4Addr::new(10, 1, 255, 255)), Value::Proto(255)],
                )],
            )
            .unwrap();
        batch
            .add_rule(
                &table,
                "web",
                &Rule::new()
                    .eq(Source::NFPROTO, 2)
                    .lookup([Source::IP_SADDR], "peers")
                    .counter()
                    .verdict(Verdict::Accept)
                    .comment("hello"),
            )
            .unwrap();
        batch
            .add_rule(&table, "forward", &Rule::new().vmap([Source::L4PROTO, Source::TH_DPORT], "ports"))
            .unwrap();
        batch.add_rule(&table, "forward", &Rule::new().vmap([Source::IIFNAME], "veths")).unwrap();
        let mut socket = Socket::open().unwrap();
        let before = socket.generation().unwrap();
        let committed = socket.send(&batch, None).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(committed.genid, before + 1);
        println!("{}", run("nft", &["list", "ruleset"]));
        println!("{:#?}", Ruleset::read());
        println!(
            "{:#?} {:#?} {:#?} {:#?}",
            socket.tables(None).unwrap(),
            socket.sets(&table).unwrap(),
            socket.chains(&table).unwrap(),
            socket.rules(&table, None).unwrap()
        );
        for set in [&peers, &ports, &veths, &cidrs] {
            socket.elements(&table, set.name(), |e| println!("{:?}", e.element(set))).unwrap();
        }
    });
}
