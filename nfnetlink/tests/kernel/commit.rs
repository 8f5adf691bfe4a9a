//! What a commit says when it fails, and how large one may be.

use std::net::Ipv4Addr;

use moat_nfnetlink::Error;
use moat_nfnetlink::nft::{
    Batch, Chain, Element, Family, Field, Object, Rule, Set, Socket, Source, Table, TableId, Verb, Verdict,
};

use crate::readback::Ruleset;
use crate::support::{in_namespace, run};

fn table() -> TableId {
    TableId::new(Family::Inet, "moat")
}

fn refusal(error: Error) -> moat_nfnetlink::Refusal {
    match error {
        Error::Refused(refusal) => *refusal,
        error => panic!("not a refusal: {error}"),
    }
}

#[test]
fn a_missing_set_is_named() {
    in_namespace(|| {
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table())).unwrap();
        batch.add_chain(&table(), &Chain::new("web")).unwrap();
        let looks = Rule::new().lookup([Source::IP_SADDR], "nowhere").verdict(Verdict::Accept);
        batch.add_rule(&table(), "web", &looks).unwrap();
        let set = Set::new("absent", Field::Ipv4Addr);
        batch.add_elements(&table(), &set, [Element::new(Ipv4Addr::LOCALHOST)]).unwrap();
        let error = Socket::open().unwrap().send(&batch, None).unwrap_err();
        assert!(error.is_not_found());
        let text = error.to_string();
        assert!(text.starts_with("the kernel refused to add rule inet moat web: "), "{text}");
        let refusal = refusal(error);
        assert_eq!((refusal.first.index, refusal.first.errno), (2, libc::ENOENT));
        assert_eq!(refusal.rest.len(), 1, "{refusal:?}");
        assert_eq!(refusal.rest[0].operation.object, Object::Elements("absent".into()));
        assert_eq!(refusal.rest[0].operation.verb, Verb::Add);
        assert!(Ruleset::read().tables.is_empty(), "nothing is in force");
    });
}

#[test]
fn the_element_at_fault_is_pointed_at() {
    in_namespace(|| {
        let set = Set::new("peers", Field::Ipv4Addr);
        let address = |last| Element::new(Ipv4Addr::new(10, 0, 0, last));
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table())).unwrap();
        batch.add_set(&table(), &set).unwrap();
        batch.add_elements(&table(), &set, [1, 2].map(address)).unwrap();
        let mut socket = Socket::open().unwrap();
        socket.send(&batch, None).unwrap();
        let mut batch = Batch::new();
        batch.delete_elements(&table(), &set, [1, 2, 3].map(address)).unwrap();
        let refusal = refusal(socket.send(&batch, None).unwrap_err());
        assert_eq!(refusal.first.operation.to_string(), "delete elements inet moat peers");
        assert_eq!(refusal.first.element, Some(2), "{refusal}");
    });
}

/// Answers come in several datagrams, and the last of them must count.
#[test]
fn a_failure_at_any_place_of_any_batch_is_reported() {
    in_namespace(|| {
        let mut socket = Socket::open().unwrap();
        for count in [1, 63, 64, 65, 128, 192, 640, 2000] {
            for bad in [0, count / 2, count - 1] {
                let mut batch = Batch::new();
                batch.add_table(&Table::new(table())).unwrap();
                for index in 0..count {
                    let chain = if index == bad { "absent".to_owned() } else { format!("c{index}") };
                    if index != bad {
                        batch.add_chain(&table(), &Chain::new(chain.as_str())).unwrap();
                    } else {
                        batch.add_rule(&table(), &chain, &Rule::new().verdict(Verdict::Accept)).unwrap();
                    }
                }
                let refusal = refusal(socket.send(&batch, None).unwrap_err());
                assert_eq!(refusal.first.index, bad + 1, "{count} messages: {refusal}");
                assert!(refusal.rest.is_empty(), "{count} messages: {refusal}");
            }
        }
        assert!(Ruleset::read().tables.is_empty());
    });
}

#[test]
fn thousands_of_failures_are_a_failure() {
    in_namespace(|| {
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table())).unwrap();
        for _ in 0..20_000 {
            batch.add_rule(&table(), "absent", &Rule::new().verdict(Verdict::Accept)).unwrap();
        }
        let mut socket = Socket::open().unwrap();
        let refused = refusal(socket.send(&batch, None).unwrap_err());
        assert_eq!(refused.first.index, 1);
        // And the socket is as good as new.
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table())).unwrap();
        socket.send(&batch, None).unwrap();
        assert_eq!(Ruleset::read().tables.len(), 1);
    });
}

#[test]
fn a_foreign_commit_restarts_a_batch_that_names_its_generation() {
    in_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table())).unwrap();
        let genid = socket.generation().unwrap();
        run("nft", &["add", "table", "ip", "foreign"]);
        let error = socket.send(&batch, Some(genid)).unwrap_err();
        assert!(matches!(error, Error::Restart { expected } if expected == genid), "{error:?}");
        assert_eq!(Ruleset::read().tables.len(), 1);
        let genid = socket.generation().unwrap();
        let committed = socket.send(&batch, Some(genid)).unwrap();
        assert_eq!(committed.genid, genid + 1);
        // What is there already makes no generation, and the next batch can be built on the one returned.
        assert_eq!(socket.send(&batch, Some(committed.genid)).unwrap(), committed);
        assert_eq!(socket.generation().unwrap(), committed.genid);
        assert_eq!(socket.send(&Batch::new(), Some(7)).unwrap().genid, 7);
    });
}

#[test]
fn two_hundred_thousand_elements_in_one_batch() {
    in_namespace(|| {
        const COUNT: u32 = 200_000;
        let set = Set::new("peers", Field::Ipv4Addr);
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table())).unwrap();
        batch.add_set(&table(), &set).unwrap();
        let elements = (0..COUNT).map(|index| Element::new(Ipv4Addr::from(0x0a00_0000 + index)));
        batch.add_elements(&table(), &set, elements).unwrap();
        assert!(batch.as_bytes().len() > 3_000_000);
        let mut socket = Socket::open().unwrap();
        match socket.send(&batch, None) {
            Ok(_) => {}
            // In a user namespace the buffer has a limit, which is then named.
            Err(Error::TooLarge { size }) if !crate::support::in_first_user_namespace() => {
                assert_eq!(size, batch.as_bytes().len() + 40);
                return;
            }
            Err(error) => panic!("{error}"),
        }
        let mut seen = 0;
        socket.elements(&table(), "peers", |_| seen += 1).unwrap();
        assert_eq!(seen, COUNT);
    });
}
