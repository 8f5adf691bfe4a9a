//! What the kernel holds, listed as a starting agent lists it.

use std::net::Ipv4Addr;

use moat_nfnetlink::nft::{
    Batch, Chain, Element, Family, Field, Hook, IfName, KeyType, Policy, Position, Rule, Set, Socket, Source,
    Table, TableId, UserData, Value, Verdict, userdata,
};

use crate::support::{in_namespace, run};

fn table() -> TableId {
    TableId::new(Family::Inet, "moat")
}

fn listed(socket: &mut Socket, set: &Set) -> Vec<Element> {
    let mut elements = Vec::new();
    let consistent = socket.elements(&table(), set.name(), |view| elements.push(view.element(set).unwrap()));
    assert!(consistent.unwrap());
    elements.sort_by_key(|element| element.key);
    elements
}

#[test]
fn what_was_written_is_what_is_listed() {
    in_namespace(|| {
        let pairs = KeyType::new(&[Field::InetProto, Field::InetService]).unwrap();
        let cidrs = KeyType::new(&[Field::Ipv4Addr, Field::InetProto]).unwrap();
        let sets = [
            Set::new("peers", Field::Ipv4Addr).userdata(UserData::new().comment("who")),
            Set::new("ports", pairs).verdict_map(),
            Set::new("veths", Field::IfName).verdict_map(),
            Set::new("cidrs", cidrs).intervals(),
            Set::new("marks", Field::EtherAddr).map(Field::Mark).size(10),
        ];
        let address = |a, b, proto| [Value::Ipv4(Ipv4Addr::new(10, a, b, 0)), Value::Proto(proto)];
        let elements = [
            vec![
                Element::new(Ipv4Addr::new(10, 0, 0, 1)).comment("one"),
                Element::new(Ipv4Addr::new(10, 0, 0, 2)),
            ],
            vec![Element::new([Value::Proto(17), Value::Port(53)]).verdict(Verdict::jump("web"))],
            vec![Element::new(IfName::new("moat1").unwrap()).verdict(Verdict::goto("web"))],
            vec![Element::range(address(1, 0, 0), address(2, 0, 255))],
            vec![Element::new(Value::Ether([2, 0, 0, 0, 0, 1])).value(Value::Mark(9))],
        ];
        let mut batch = Batch::new();
        batch
            .add_table(&Table::new(table()).userdata(UserData::new().comment("ours").with(200, *b"v1")))
            .unwrap();
        batch.add_chain(&table(), &Chain::new("web").userdata(UserData::new().with(201, [7; 32]))).unwrap();
        batch.add_chain(&table(), &Chain::filter("fwd", Hook::Forward, -5, Policy::Accept)).unwrap();
        for (set, elements) in sets.iter().zip(&elements) {
            batch.add_set(&table(), set).unwrap();
            batch.add_elements(&table(), set, elements.clone()).unwrap();
        }
        let data = UserData::new().comment("why").with(200, [1, 2, 3]);
        batch
            .add_rule(&table(), "web", &Rule::new().counter().verdict(Verdict::Accept).with_userdata(data))
            .unwrap();
        batch.add_rule(&table(), "fwd", &Rule::new().vmap([Source::IIFNAME], "veths")).unwrap();
        let mut socket = Socket::open().unwrap();
        socket.send(&batch, None).unwrap();

        let tables = socket.tables(Some(Family::Inet)).unwrap();
        assert!(tables.consistent);
        assert_eq!(tables.items[0].id, table());
        assert_eq!(userdata::comment(&tables.items[0].userdata), Some("ours"));
        assert_eq!(userdata::find(&tables.items[0].userdata, 200), Some(&b"v1"[..]));

        let chains = socket.chains(&table()).unwrap().items;
        assert_eq!(chains.iter().map(|chain| &*chain.name).collect::<Vec<_>>(), ["web", "fwd"]);
        assert_eq!(userdata::find(&chains[0].userdata, 201), Some(&[7; 32][..]));
        assert!(chains[0].base.is_none());
        let base = chains[1].base.as_ref().unwrap();
        assert_eq!((base.hook, base.priority, base.accept, &*base.kind), (2, -5, true, "filter"));

        let found = socket.sets(&table()).unwrap().items;
        for ((info, set), elements) in found.iter().zip(&sets).zip(&elements) {
            assert_eq!(info.declaration().as_ref(), Some(set));
            assert_eq!(&listed(&mut socket, set), elements);
        }
        assert_eq!(found.len(), sets.len());

        let rules = socket.rules(&table(), Some("web")).unwrap().items;
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].expression_names(), ["counter", "immediate"]);
        assert_eq!(rules[0].counter(), Some((0, 0)));
        assert_eq!(userdata::comment(&rules[0].userdata), Some("why"));
        assert_eq!(userdata::find(&rules[0].userdata, 200), Some(&[1, 2, 3][..]));
        assert_eq!(socket.rules(&table(), None).unwrap().items.len(), 2);

        // And nft shows it without stumbling over data that is not its own.
        let text = run("nft", &["list", "ruleset"]);
        assert!(text.contains("accept comment \"why\""), "{text}");
    });
}

#[test]
fn rules_go_where_they_are_told_and_leave_by_handle() {
    in_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let note = |text: &str| Rule::new().verdict(Verdict::Accept).comment(text);
        let notes = |socket: &mut Socket| -> Vec<(u64, String)> {
            let rules = socket.rules(&table(), Some("c")).unwrap().items;
            let note = |data| userdata::comment(data).unwrap().to_owned();
            rules.iter().map(|rule| (rule.handle, note(&rule.userdata))).collect()
        };
        let words = |list: &[(u64, String)]| list.iter().map(|(_, note)| note.clone()).collect::<Vec<_>>();
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table())).unwrap();
        batch.add_chain(&table(), &Chain::new("c")).unwrap();
        batch.add_rule(&table(), "c", &note("b")).unwrap();
        batch.add_rule(&table(), "c", &note("d")).unwrap();
        batch.add_rule_at(&table(), "c", Position::First, &note("a")).unwrap();
        socket.send(&batch, None).unwrap();
        let before = notes(&mut socket);
        assert_eq!(words(&before), ["a", "b", "d"]);

        let mut batch = Batch::new();
        batch.add_rule_at(&table(), "c", Position::After(before[1].0), &note("c")).unwrap();
        batch.add_rule_at(&table(), "c", Position::Before(before[0].0), &note("0")).unwrap();
        batch.add_rule_at(&table(), "c", Position::Replace(before[2].0), &note("D")).unwrap();
        batch.delete_rule(&table(), "c", before[0].0).unwrap();
        socket.send(&batch, None).unwrap();
        assert_eq!(words(&notes(&mut socket)), ["0", "b", "c", "D"]);

        let mut batch = Batch::new();
        batch.flush_chain(&table(), "c").unwrap();
        socket.send(&batch, None).unwrap();
        assert!(notes(&mut socket).is_empty());
        let handle = socket.chains(&table()).unwrap().items[0].handle;
        let mut batch = Batch::new();
        batch.delete_chain(&table(), handle).unwrap();
        socket.send(&batch, None).unwrap();
        assert!(socket.chains(&table()).unwrap().items.is_empty());

        let mut batch = Batch::new();
        batch.add_set(&table(), &Set::new("s", Field::Ipv4Addr)).unwrap();
        socket.send(&batch, None).unwrap();
        let (set, whole) = (socket.sets(&table()).unwrap().items, socket.tables(None).unwrap().items);
        let mut batch = Batch::new();
        batch.delete_set(&table(), set[0].handle).unwrap();
        batch.delete_table_by_handle(Family::Inet, whole[0].handle).unwrap();
        socket.send(&batch, None).unwrap();
        assert!(socket.tables(None).unwrap().items.is_empty());
        let error = socket.send(&batch, None).unwrap_err();
        let text = format!("the kernel refused to delete set inet moat handle {}: ", set[0].handle);
        assert!(error.to_string().starts_with(&text), "{error}");
    });
}

#[test]
fn listing_what_is_not_there() {
    in_namespace(|| {
        let mut socket = Socket::open().unwrap();
        assert!(socket.tables(None).unwrap().items.is_empty());
        let error = socket.elements(&table(), "nowhere", |_| {}).unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert!(error.to_string().starts_with("cannot list elements"), "{error}");
        assert!(socket.chains(&table()).unwrap().items.is_empty());
        assert!(socket.rules(&table(), None).unwrap().items.is_empty());
    });
}
