//! Tables with an owner.

use moat_nfnetlink::nft::{Batch, Chain, Family, Socket, Table, TableId, table_flags};

use crate::support::{in_namespace, run, run_failing};

const GUARDED: u32 = table_flags::OWNER | table_flags::PERSIST;

fn table() -> Table {
    Table::new(TableId::new(Family::Inet, "moat")).flags(GUARDED)
}

fn add(table: &Table, chain: &str) -> Batch {
    let mut batch = Batch::new();
    batch.add_table(table).unwrap();
    batch.add_chain(&table.id, &Chain::new(chain)).unwrap();
    batch
}

#[test]
fn nobody_else_may_touch_an_owned_table() {
    in_namespace(|| {
        let mut owner = Socket::open().unwrap();
        owner.send(&add(&table(), "first"), None).unwrap();
        let listed = owner.tables(None).unwrap().items;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].owner, Some(owner.port_id()));
        assert_eq!(listed[0].flags, GUARDED);

        let mut other = Socket::open().unwrap();
        let error = other.send(&add(&table(), "second"), None).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPERM), "{error}");
        let mut delete = Batch::new();
        delete.delete_table(&table().id).unwrap();
        let error = other.send(&delete, None).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPERM), "{error}");
        run_failing("nft", &["add", "chain", "inet", "moat", "third"]);
        run("nft", &["flush", "ruleset"]);
        assert_eq!(owner.chains(&table().id).unwrap().items.len(), 1);
        owner.send(&add(&table(), "fourth"), None).unwrap();
    });
}

#[test]
fn an_orphaned_table_stays_and_is_taken_over() {
    in_namespace(|| {
        let mut first = Socket::open().unwrap();
        first.send(&add(&table(), "first"), None).unwrap();
        drop(first);

        let mut second = Socket::open().unwrap();
        let orphan = second.tables(None).unwrap().items.remove(0);
        assert_eq!((orphan.owner, orphan.flags), (None, table_flags::PERSIST));
        second.send(&add(&table(), "second"), None).unwrap();
        let taken = second.tables(None).unwrap().items.remove(0);
        assert_eq!(taken.owner, Some(second.port_id()));
        assert_eq!(taken.handle, orphan.handle, "the same table, with all it held");
        assert_eq!(second.chains(&table().id).unwrap().items.len(), 2);
        let error = Socket::open().unwrap().send(&add(&table(), "third"), None).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPERM));
    });
}
