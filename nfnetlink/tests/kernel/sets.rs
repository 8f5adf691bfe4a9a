//! Sets and maps, written by us and read back by `nft`.

use std::net::{Ipv4Addr, Ipv6Addr};

use moat_nfnetlink::nft::{
    Batch, Chain, Element, Family, Field, IfName, KeyType, Set, Socket, Table, TableId, UserData, Value,
    Verdict,
};
use moat_nfnetlink::{EncodeError, Error};
use serde_json::json;

use crate::readback::Ruleset;
use crate::support::{in_namespace, run_failing};

fn table() -> TableId {
    TableId::new(Family::Inet, "moat")
}

fn begin() -> Batch {
    let mut batch = Batch::new();
    batch.add_table(&Table::new(table())).unwrap();
    for name in ["web", "db"] {
        batch.add_chain(&table(), &Chain::new(name)).unwrap();
    }
    batch
}

fn key(fields: &[Field]) -> KeyType {
    KeyType::new(fields).unwrap()
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn commit(batch: &Batch) {
    Socket::open().unwrap().send(batch, None).unwrap();
}

#[test]
fn sets_of_addresses() {
    in_namespace(|| {
        let mut batch = begin();
        let four = Set::new("four", Field::Ipv4Addr).userdata(UserData::new().comment("of a pod"));
        let six = Set::new("six", Field::Ipv6Addr).size(100);
        batch.add_set(&table(), &four).unwrap();
        batch.add_set(&table(), &six).unwrap();
        batch.add_elements(&table(), &four, [1, 2].map(|last| Element::new(v4(last)))).unwrap();
        let noted = Element::new("fd00::1".parse::<Ipv6Addr>().unwrap()).comment("the first");
        batch.add_elements(&table(), &six, [noted]).unwrap();
        commit(&batch);

        let ruleset = Ruleset::read();
        let four = ruleset.set_json("four");
        assert_eq!(four["type"], "ipv4_addr");
        assert_eq!(four["elem"], json!(["10.0.0.1", "10.0.0.2"]));
        assert_eq!(four["comment"], "of a pod");
        let six = ruleset.set_json("six");
        assert_eq!(six["size"], 100);
        assert_eq!(six["elem"], json!([{ "elem": { "val": "fd00::1", "comment": "the first" } }]));
    });
}

#[test]
fn sets_of_ranges_have_two_fields() {
    in_namespace(|| {
        let set = Set::new("cidrs", key(&[Field::Ipv4Addr, Field::InetProto])).intervals();
        let mut batch = begin();
        batch.add_set(&table(), &set).unwrap();
        let any = |address: [u8; 4], proto| [Value::Ipv4(address.into()), Value::Proto(proto)];
        let elements = [
            Element::range(any([10, 1, 0, 0], 0), any([10, 1, 255, 255], 255)),
            Element::range(any([192, 168, 0, 1], 6), any([192, 168, 0, 6], 6)),
            Element::new(any([9, 9, 9, 9], 17)),
        ];
        batch.add_elements(&table(), &set, elements).unwrap();
        commit(&batch);

        let set = Ruleset::read().set_json("cidrs");
        assert_eq!(set["type"], json!(["ipv4_addr", "inet_proto"]));
        assert_eq!(set["flags"], json!(["interval"]));
        let mut elements = set["elem"].as_array().unwrap().clone();
        elements.sort_by_key(|element| element.to_string());
        assert_eq!(
            elements,
            [
                json!({ "concat": ["9.9.9.9", "udp"] }),
                json!({ "concat": [{ "prefix": { "addr": "10.1.0.0", "len": 16 } }, { "range": [0, 255] }] }),
                json!({ "concat": [{ "range": ["192.168.0.1", "192.168.0.6"] }, "tcp"] }),
            ]
        );
    });
}

/// Why the builder refuses them: the kernel does.
#[test]
fn the_kernel_has_no_pipapo_set_of_one_field() {
    in_namespace(|| {
        let refused = begin().add_set(&table(), &Set::new("one", Field::Ipv4Addr).intervals());
        assert!(matches!(refused, Err(EncodeError::IntervalFields { .. })), "{refused:?}");

        // Two fields as the builder writes them, with the second one taken off the description.
        let mut two = begin();
        let set = Set::new("two", key(&[Field::Ipv4Addr, Field::InetProto])).intervals();
        two.add_set(&table(), &set).unwrap();
        let socket = crate::raw::RawBatch::from(&two);
        assert_eq!(socket.clone().commit(), 0);
        assert_eq!(socket.with_one_field().commit(), libc::EINVAL);
    });
}

#[test]
fn verdict_maps() {
    in_namespace(|| {
        let ports = Set::new("ports", key(&[Field::InetProto, Field::InetService])).verdict_map();
        let veths = Set::new("veths", Field::IfName).verdict_map();
        let pairs = Set::new("pairs", key(&[Field::IfName, Field::Ipv4Addr])).verdict_map();
        let ranges =
            Set::new("ranges", key(&[Field::InetProto, Field::InetService])).intervals().verdict_map();
        let mut batch = begin();
        for map in [&ports, &veths, &pairs, &ranges] {
            batch.add_set(&table(), map).unwrap();
        }
        let port = |port| [Value::Proto(6), Value::Port(port)];
        let veth = IfName::new("moat0123456789a").unwrap();
        batch
            .add_elements(
                &table(),
                &ports,
                [
                    Element::new(port(80)).verdict(Verdict::jump("web")).comment("http"),
                    Element::new(port(443)).verdict(Verdict::Drop),
                ],
            )
            .unwrap();
        batch.add_elements(&table(), &veths, [Element::new(veth).verdict(Verdict::goto("db"))]).unwrap();
        let pair = [Value::IfName(veth), Value::Ipv4(v4(1))];
        batch.add_elements(&table(), &pairs, [Element::new(pair).verdict(Verdict::Accept)]).unwrap();
        batch
            .add_elements(
                &table(),
                &ranges,
                [Element::range(port(8000), port(8999)).verdict(Verdict::goto("web"))],
            )
            .unwrap();
        commit(&batch);

        let ruleset = Ruleset::read();
        let map = ruleset.map("ports");
        assert_eq!(map.key, json!(["inet_proto", "inet_service"]));
        assert_eq!(map.data, json!("verdict"));
        let mut elements = map.elem.clone();
        elements.sort_by_key(|element| element.0.to_string());
        assert_eq!(
            elements,
            [
                (json!({ "concat": ["tcp", 443] }), json!({ "drop": null })),
                (
                    json!({ "elem": { "val": { "concat": ["tcp", 80] }, "comment": "http" } }),
                    json!({ "jump": { "target": "web" } })
                ),
            ]
        );
        assert_eq!(
            ruleset.map("veths").elem,
            [(json!("moat0123456789a"), json!({ "goto": { "target": "db" } }))]
        );
        assert_eq!(ruleset.map("ranges").flags, ["interval"]);
        assert_eq!(
            ruleset.map("ranges").elem,
            [(
                json!({ "concat": ["tcp", { "range": [8000, 8999] }] }),
                json!({ "goto": { "target": "web" } })
            )]
        );
        assert_eq!(
            ruleset.map("pairs").elem,
            [(json!({ "concat": ["moat0123456789a", "10.0.0.1"] }), json!({ "accept": null }))]
        );
    });
}

#[test]
fn maps_of_values() {
    in_namespace(|| {
        let marks = Set::new("marks", Field::Ipv4Addr).map(Field::Mark);
        let mut batch = begin();
        batch.add_set(&table(), &marks).unwrap();
        batch.add_elements(&table(), &marks, [Element::new(v4(1)).value(Value::Mark(0x42))]).unwrap();
        commit(&batch);
        let ruleset = Ruleset::read();
        assert_eq!(ruleset.map("marks").data, json!("mark"));
        assert_eq!(ruleset.map("marks").elem, [(json!("10.0.0.1"), json!(0x42))]);
    });
}

#[test]
fn elements_come_and_go() {
    in_namespace(|| {
        let map = Set::new("map", Field::Ipv4Addr).verdict_map();
        let to = |chain| Element::new(v4(1)).verdict(Verdict::goto(chain));
        let mut socket = Socket::open().unwrap();
        let mut batch = begin();
        batch.add_set(&table(), &map).unwrap();
        batch.add_elements(&table(), &map, [to("web")]).unwrap();
        socket.send(&batch, None).unwrap();

        // Again is fine, elsewhere is not, unless the old one goes in the same batch.
        let again = |elements: Vec<Element>| {
            let mut batch = Batch::new();
            batch.add_elements(&table(), &map, elements).unwrap();
            batch
        };
        socket.send(&again(vec![to("web")]), None).unwrap();
        let error = socket.send(&again(vec![to("db")]), None).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
        let mut change = Batch::new();
        change.delete_elements(&table(), &map, [to("db")]).unwrap();
        change.add_elements(&table(), &map, [to("db")]).unwrap();
        socket.send(&change, None).unwrap();
        assert_eq!(
            Ruleset::read().map("map").elem,
            [(json!("10.0.0.1"), json!({ "goto": { "target": "db" } }))]
        );

        let mut gone = Batch::new();
        gone.delete_elements(&table(), &map, [Element::new(v4(1))]).unwrap();
        socket.send(&gone, None).unwrap();
        let error = socket.send(&gone, None).unwrap_err();
        assert!(matches!(error, Error::Refused(_)) && error.is_not_found(), "{error}");
        assert!(
            run_failing("nft", &["get", "element", "inet", "moat", "map", "{ 10.0.0.1 }"]).contains("Error")
        );
    });
}

#[test]
fn an_element_of_another_type_is_not_written() {
    let set = Set::new("peers", Field::Ipv4Addr);
    let mut batch = begin();
    let before = batch.as_bytes().to_vec();
    let error = batch.add_elements(&table(), &set, [Element::new(v4(1)), Element::new(Ipv6Addr::LOCALHOST)]);
    assert!(matches!(error, Err(EncodeError::ElementType { part: "key", .. })), "{error:?}");
    let error = batch.add_elements(&table(), &set, [Element::new(v4(1)).verdict(Verdict::Drop)]);
    assert!(matches!(error, Err(EncodeError::ElementType { part: "data", .. })), "{error:?}");
    let error = batch.add_elements(&table(), &set, [Element::range(v4(1), v4(2))]);
    assert!(matches!(error, Err(EncodeError::ElementType { part: "key end", .. })), "{error:?}");
    assert_eq!(batch.as_bytes(), before, "nothing of them is left");
}
