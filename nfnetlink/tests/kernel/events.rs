//! Commits as everybody hears of them.

use std::collections::BTreeSet;

use moat_nfnetlink::nft::{Batch, Chain, Commit, Event, Events, Family, Socket, Table, TableId};

use crate::support::{in_namespace, run};

fn next(events: &mut Events) -> Commit {
    match events.try_next().unwrap().expect("a commit") {
        Event::Commit(commit) => commit,
        Event::Lost => panic!("lost"),
    }
}

#[test]
fn a_commit_names_its_tables_and_who_made_it() {
    in_namespace(|| {
        let mut events = Events::open().unwrap();
        assert_eq!(events.try_next().unwrap(), None);
        let ours = TableId::new(Family::Inet, "moat");
        let mut batch = Batch::new();
        batch.add_table(&Table::new(ours.clone())).unwrap();
        batch.add_chain(&ours, &Chain::new("web")).unwrap();
        let mut socket = Socket::open().unwrap();
        let committed = socket.send(&batch, None).unwrap();
        let commit = next(&mut events);
        assert_eq!(commit.genid, committed.genid);
        assert_eq!(commit.port_id, socket.port_id());
        assert_eq!(commit.process.map(|(id, _)| id), Some(rustix::thread::gettid().as_raw_pid() as u32));
        assert_eq!(commit.tables, BTreeSet::from([ours.clone()]));

        run("nft", &["add table ip foreign; add chain ip foreign c; add table ip6 other"]);
        let commit = next(&mut events);
        assert_ne!(commit.port_id, socket.port_id());
        assert_eq!(commit.process.map(|(_, name)| name), Some("nft".to_owned()));
        let foreign = [TableId::new(Family::Ip, "foreign"), TableId::new(Family::Ip6, "other")];
        assert_eq!(commit.tables, BTreeSet::from(foreign.clone()));

        // Each kind of edit of our table is one.
        for edit in [
            "add set inet moat s { type ipv4_addr; }",
            "add element inet moat s { 10.0.0.1 }",
            "add rule inet moat web accept",
            "delete element inet moat s { 10.0.0.1 }",
            "flush chain inet moat web",
            "delete set inet moat s",
            "delete chain inet moat web",
            "delete table inet moat",
        ] {
            run("nft", &[edit]);
            assert_eq!(next(&mut events).tables, BTreeSet::from([ours.clone()]), "{edit}");
        }
        run("nft", &["flush", "ruleset"]);
        assert_eq!(next(&mut events).tables, BTreeSet::from(foreign));
        assert_eq!(events.try_next().unwrap(), None);
    });
}
