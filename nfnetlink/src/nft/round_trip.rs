//! What is encoded is what is decoded, and the bytes are those that the kernel's headers describe.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::EncodeError;
use crate::nft::info::ElementView;
use crate::wire::{Messages, flags};

fn table() -> TableId {
    TableId::new(Family::Inet, "moat")
}

fn field() -> impl Strategy<Value = Field> {
    prop::sample::select(Field::ALL.to_vec())
}

fn key_type() -> impl Strategy<Value = KeyType> {
    vec(field(), 1..=5).prop_filter_map("fits the registers", |fields| KeyType::new(&fields).ok())
}

fn value(field: Field) -> BoxedStrategy<Value> {
    match field {
        Field::NfProto => any::<u8>().prop_map(Value::NfProto).boxed(),
        Field::Ipv4Addr => any::<[u8; 4]>().prop_map(|octets| Value::Ipv4(octets.into())).boxed(),
        Field::Ipv6Addr => any::<[u8; 16]>().prop_map(|octets| Value::Ipv6(octets.into())).boxed(),
        Field::EtherAddr => any::<[u8; 6]>().prop_map(Value::Ether).boxed(),
        Field::EtherType => any::<u16>().prop_map(Value::EtherType).boxed(),
        Field::InetProto => any::<u8>().prop_map(Value::Proto).boxed(),
        Field::InetService => any::<u16>().prop_map(Value::Port).boxed(),
        Field::IcmpType => any::<u8>().prop_map(Value::IcmpType).boxed(),
        Field::Icmp6Type => any::<u8>().prop_map(Value::Icmp6Type).boxed(),
        Field::Mark => any::<u32>().prop_map(Value::Mark).boxed(),
        Field::IfIndex => any::<u32>().prop_map(Value::IfIndex).boxed(),
        Field::CtState => any::<u32>().prop_map(Value::CtState).boxed(),
        Field::IfName => "[a-z0-9]{1,15}".prop_map(|name| Value::IfName(IfName::new(&name).unwrap())).boxed(),
    }
}

fn key(kind: KeyType) -> impl Strategy<Value = Key> {
    kind.fields().iter().map(|&field| value(field)).collect::<Vec<_>>().prop_map(|values| match values[..] {
        [a] => Key::from(a),
        [a, b] => Key::from([a, b]),
        [a, b, c] => Key::from([a, b, c]),
        [a, b, c, d] => Key::from([a, b, c, d]),
        [a, b, c, d, e] => Key::from([a, b, c, d, e]),
        _ => unreachable!("a key type has one to five fields"),
    })
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Continue),
        Just(Verdict::Return),
        "[a-z]{1,40}".prop_map(|chain| Verdict::jump(chain.as_str())),
        "[a-z]{1,40}".prop_map(|chain| Verdict::goto(chain.as_str())),
    ]
}

fn set_and_elements() -> impl Strategy<Value = (Set, Vec<Element>)> {
    (key_type(), any::<[bool; 3]>(), 0..3).prop_flat_map(|(kind, [intervals, dynamic, counted], data)| {
        let set = Set::new("set", kind);
        let set = if dynamic { set.dynamic() } else { set };
        let set = if counted { set.counted() } else { set };
        let set = if intervals && kind.fields().len() > 1 { set.intervals() } else { set };
        let (set, data) = match data {
            0 => (set, Just(None).boxed()),
            1 => (set.verdict_map(), verdict().prop_map(|verdict| Some(Data::Verdict(verdict))).boxed()),
            _ => (set.map(kind), key(kind).prop_map(|key| Some(Data::Value(key))).boxed()),
        };
        let end = if set.has_intervals() { prop::option::of(key(kind)).boxed() } else { Just(None).boxed() };
        let comment = prop::option::of("[ -~]{0,40}".prop_map(Box::from));
        let element = (key(kind), end, data, comment).prop_map(|(key, end, data, comment)| Element {
            key,
            end,
            data,
            comment,
        });
        (Just(set), vec(element, 0..60))
    })
}

/// The elements of all messages of a batch, and checks on the messages.
fn read_back(batch: &Batch, set: &Set) -> Vec<Element> {
    let mut found = Vec::new();
    let count = batch.len();
    for (index, message) in Messages::new(batch.as_bytes()).enumerate() {
        assert_eq!(message.seq as usize, index + 1);
        assert_eq!(message.flags & flags::ACK != 0, index + 1 == count, "the last one alone is acknowledged");
        let elements = message.attrs().filter(|attr| attr.kind == 3).flat_map(|list| list.nested());
        found.extend(elements.filter_map(|element| ElementView::decode(element.nested())?.element(set)));
    }
    assert_eq!(Messages::new(batch.as_bytes()).count(), count);
    found
}

proptest! {
    #[test]
    fn elements((set, elements) in set_and_elements()) {
        let mut batch = Batch::new();
        batch.add_elements(&table(), &set, elements.clone()).unwrap();
        prop_assert_eq!(read_back(&batch, &set), elements);
    }

    #[test]
    fn sets((set, _) in set_and_elements()) {
        let mut batch = Batch::new();
        batch.add_set(&table(), &set).unwrap();
        let message = Messages::new(batch.as_bytes()).next().unwrap();
        // A dump has everything that the declaration has.
        let found = info::SetInfo::decode(&message).unwrap();
        prop_assert_eq!(found.declaration(), Some(set));
        prop_assert_eq!(found.key_len as usize, found.declaration().unwrap().key().bytes());
    }

    #[test]
    fn key_types(kind in key_type()) {
        prop_assert_eq!(KeyType::from_number(kind.number()), Some(kind));
    }

    #[test]
    fn rules_and_operations(chain in "[a-z]{1,30}", handle in prop::option::of(any::<u64>())) {
        let mut batch = Batch::new();
        match handle {
            Some(handle) => batch.delete_rule(&table(), &chain, handle).unwrap(),
            None => batch.add_rule(&table(), &chain, &Rule::new().verdict(Verdict::Drop)).unwrap(),
        }
        let verb = if handle.is_some() { Verb::Delete } else { Verb::Add };
        let object = Object::Rule { chain: chain.into(), handle };
        prop_assert_eq!(batch.operation(0), Some(Operation { verb, object, table: table() }));
    }
}

#[test]
fn many_elements_are_many_messages() {
    let set = Set::new("peers", Field::Ipv4Addr);
    let all: Vec<Element> =
        (0..100_000u32).map(|index| Element::new(std::net::Ipv4Addr::from(index))).collect();
    let mut batch = Batch::new();
    batch.add_elements(&table(), &set, all.clone()).unwrap();
    assert!(batch.len() > 20, "{} messages", batch.len());
    assert!(read_back(&batch, &set) == all);
    let before = batch.len();
    batch.add_elements(&table(), &set, []).unwrap();
    assert_eq!(batch.len(), before, "no elements, no message");
}

#[test]
fn a_list_is_closed_in_time() {
    let name: String = std::iter::repeat_n('c', 255).collect();
    let set = Set::new("map", Field::Ipv6Addr).verdict_map();
    let all = (0..2000u128).map(|index| {
        let comment: String = std::iter::repeat_n('x', 253).collect();
        Element::new(std::net::Ipv6Addr::from(index)).verdict(Verdict::goto(name.as_str())).comment(comment)
    });
    let mut batch = Batch::new();
    batch.add_elements(&table(), &set, all).unwrap();
    assert_eq!(read_back(&batch, &set).len(), 2000);
}

#[test]
fn bytes_of_a_table() {
    let mut batch = Batch::new();
    batch.add_table(&Table::new(table()).flags(table_flags::OWNER | table_flags::PERSIST)).unwrap();
    #[rustfmt::skip]
    let expected: Vec<u8> = [
        &40u32.to_ne_bytes()[..], &0x0a00u16.to_ne_bytes(), &0x0405u16.to_ne_bytes(), // create, ack, request
        &1u32.to_ne_bytes(), &[0; 4],
        &[1, 0, 0, 0],                                                               // inet
        &9u16.to_ne_bytes(), &1u16.to_ne_bytes(), b"moat\0", &[0; 3],                 // NFTA_TABLE_NAME
        &8u16.to_ne_bytes(), &2u16.to_ne_bytes(), &[0, 0, 0, 6],                      // NFTA_TABLE_FLAGS
    ]
    .concat();
    assert_eq!(batch.as_bytes(), expected);
}

#[test]
fn bytes_of_an_element() {
    let set = Set::new("s", KeyType::new(&[Field::InetProto, Field::InetService]).unwrap()).verdict_map();
    let mut batch = Batch::new();
    let element = Element::new([Value::Proto(6), Value::Port(80)]).verdict(Verdict::goto("web"));
    batch.delete_elements(&table(), &set, [element.clone()]).unwrap();
    batch.add_elements(&table(), &set, [element]).unwrap();
    let nest = |length: u16, kind: u16| [length.to_ne_bytes(), (kind | 0x8000).to_ne_bytes()].concat();
    #[rustfmt::skip]
    let key: Vec<u8> = [
        &nest(16, 1)[..], &12u16.to_ne_bytes(), &1u16.to_ne_bytes(), &[6, 0, 0, 0, 0, 80, 0, 0], // each padded
    ]
    .concat();
    #[rustfmt::skip]
    let verdict: Vec<u8> = [
        &nest(24, 2)[..], &nest(20, 2), // NFTA_SET_ELEM_DATA, NFTA_DATA_VERDICT
        &8u16.to_ne_bytes(), &1u16.to_ne_bytes(), &(-4i32).to_be_bytes(),
        &8u16.to_ne_bytes(), &2u16.to_ne_bytes(), b"web\0",
    ]
    .concat();
    let messages: Vec<_> = Messages::new(batch.as_bytes()).collect();
    assert_eq!((messages[0].kind, messages[1].kind), (0x0a0e, 0x0a0c));
    assert_eq!((messages[0].flags, messages[1].flags), (0x1, 0x405));
    let list = |index: usize| messages[index].attrs().find(3).unwrap().payload.to_vec();
    assert_eq!(list(0), [&nest(20, 1)[..], &key].concat(), "only the key counts in a delete");
    assert_eq!(list(1), [&nest(44, 1)[..], &key, &verdict].concat());
}

#[test]
fn bytes_of_a_rule() {
    let mut batch = Batch::new();
    let rule = Rule::new().eq(Source::IIFNAME, Operand::prefix(IfName::new("moat").unwrap()));
    batch.add_rule(&table(), "c", &rule).unwrap();
    let message = Messages::new(batch.as_bytes()).next().unwrap();
    let expressions: Vec<_> = message.attrs().find(4).unwrap().nested().collect();
    let name = |index: usize| expressions[index].nested().find(1).unwrap().string().unwrap();
    let part = |index: usize, kind| expressions[index].nested().find(2).unwrap().nested().find(kind).unwrap();
    assert_eq!((name(0), name(1)), ("meta", "cmp"));
    assert_eq!((part(0, 1).be32(), part(0, 2).be32()), (Some(8), Some(6)), "iifname into the first register");
    assert_eq!((part(1, 1).be32(), part(1, 2).be32()), (Some(8), Some(0)));
    assert_eq!(part(1, 3).nested().find(1).unwrap().payload, b"moat", "no zero byte: a prefix");
}

#[test]
fn bytes_of_a_meter_and_of_a_counter() {
    let mut batch = Batch::new();
    let limit = Limit { rate: 10, per: std::time::Duration::from_secs(1), burst: 20 };
    let rule = Rule::new().count_in("all").meter([Source::IIFNAME, Source::OIFNAME], "each", limit);
    batch.add_rule(&table(), "c", &rule).unwrap();
    batch.add_counter(&table(), "all").unwrap();
    batch.delete_counter(&table(), "all").unwrap();
    let messages: Vec<_> = Messages::new(batch.as_bytes()).collect();
    let expressions: Vec<_> = messages[0].attrs().find(4).unwrap().nested().collect();
    let names: Vec<_> = expressions.iter().map(|e| e.nested().find(1).unwrap().string().unwrap()).collect();
    assert_eq!(names, ["objref", "meta", "meta", "dynset"]);
    let part = |index: usize| expressions[index].nested().find(2).unwrap().nested();
    assert_eq!((part(0).find(1).unwrap().be32(), part(0).find(2).unwrap().string()), (Some(1), Some("all")));
    assert_eq!((part(1).find(1).unwrap().be32(), part(2).find(1).unwrap().be32()), (Some(8), Some(12)));
    let meter = part(3);
    assert_eq!(meter.find(1).unwrap().string(), Some("each"));
    assert_eq!((meter.find(3).unwrap().be32(), meter.find(4).unwrap().be32()), (Some(1), Some(8)));
    let each = meter.find(7).unwrap().nested();
    assert_eq!(each.find(1).unwrap().string(), Some("limit"));
    let each = each.find(2).unwrap().nested();
    assert_eq!((each.find(1).unwrap().be64(), each.find(3).unwrap().be32()), (Some(10), Some(20)));
    // A dump has everything that the declaration has.
    let found = info::CounterInfo::decode(&messages[1]).unwrap();
    assert_eq!((&*found.name, found.packets, found.bytes), ("all", 0, 0));
    let said: Vec<_> = (1..3).map(|index| batch.operation(index).unwrap().to_string()).collect();
    assert_eq!(said, ["add counter inet moat all", "delete counter inet moat all"]);
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let mut batch = Batch::new();
    batch.add_table(&Table::new(table())).unwrap();
    let before = batch.as_bytes().to_vec();
    let mut refused = |result: fn(&mut Batch) -> Result<(), EncodeError>| {
        let error = result(&mut batch).unwrap_err();
        assert_eq!(batch.as_bytes(), before, "{error}");
        assert_eq!(batch.len(), 1);
        error
    };
    assert!(matches!(
        refused(|batch| batch.add_chain(&table(), &Chain::new("x".repeat(256)))),
        EncodeError::NameLength { .. }
    ));
    assert!(matches!(
        refused(|batch| batch.add_chain(&table(), &Chain::new(""))),
        EncodeError::NameLength { .. }
    ));
    assert!(matches!(refused(|batch| batch.delete_chain(&table(), "a\0b")), EncodeError::Zero { .. }));
    assert!(matches!(
        refused(|batch| batch.add_rule(&table(), "c", &Rule::new().eq(Source::TH_DPORT, 80))),
        EncodeError::Length { source_length: 2, value_length: 1, .. }
    ));
    assert!(matches!(
        refused(|batch| batch.add_rule(&table(), "c", &Rule::new().lookup([], "set"))),
        EncodeError::Registers { .. }
    ));
    assert!(matches!(
        refused(|batch| batch.add_rule(&table(), "c", &Rule::new().lookup([Source::IP6_SADDR; 5], "set"))),
        EncodeError::Registers { .. }
    ));
    assert!(matches!(
        refused(|batch| batch.add_rule(&table(), "c", &Rule::new().comment("x".repeat(255)))),
        EncodeError::UserData { .. }
    ));
    assert!(matches!(
        refused(|batch| {
            let chain = Chain::filter("c", Hook::Ingress(IfName::new("eth0").unwrap()), 0, Policy::Accept);
            batch.add_chain(&TableId::new(Family::Ip, "t"), &chain)
        }),
        EncodeError::Device { .. }
    ));
    assert!(matches!(
        refused(|batch| {
            let chain = Chain::filter("c", Hook::Forward, 0, Policy::Accept);
            batch.add_chain(&TableId::new(Family::Netdev, "t"), &chain)
        }),
        EncodeError::Device { .. }
    ));
    for name in ["", "a b", "a/b", "sixteen-bytes-it", "a:b"] {
        assert!(IfName::new(name).is_err(), "{name:?}");
    }
    assert!(KeyType::new(&[]).is_err());
    assert!(KeyType::new(&[Field::Ipv6Addr; 5]).is_err());
    assert!(KeyType::new(&[Field::Mark; 6]).is_err());
}
