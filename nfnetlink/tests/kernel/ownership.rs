//! Tables with an owner.

use std::os::fd::{AsFd, OwnedFd};

use moat_nfnetlink::Error;
use moat_nfnetlink::nft::{Batch, Chain, Element, Family, Field, Set, Socket, Table, TableId, table_flags};
use rustix::net::{RecvFlags, SendFlags};

use crate::support::{in_namespace, run, run_failing, unshare_network};

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

fn duplicate(socket: &Socket) -> OwnedFd {
    socket.as_fd().try_clone_to_owned().unwrap()
}

/// The owner is the socket, not the process: whoever has its descriptor goes on where the other stopped, even in the
/// middle of a listing and with answers unread.
#[test]
fn a_socket_that_is_handed_on_still_owns_its_tables() {
    in_namespace(|| {
        let mut first = Socket::open().unwrap();
        let set = Set::new("peers", Field::Ipv4Addr);
        let mut batch = add(&table(), "first");
        batch.add_set(&table().id, &set).unwrap();
        let elements = (0..50_000_u32).map(|n| Element::new(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n)));
        batch.add_elements(&table().id, &set, elements).unwrap();
        first.send(&batch, None).unwrap();
        let (port, kept) = (first.port_id(), duplicate(&first));
        // A listing of elements that nobody reads on: NFT_MSG_GETSETELEM of this table and set, as a dump.
        let request: &[u8] = &[
            44, 0, 0, 0, 13, 10, 1, 3, 99, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, // headers; inet
            9, 0, 1, 0, b'm', b'o', b'a', b't', 0, 0, 0, 0, // table
            10, 0, 2, 0, b'p', b'e', b'e', b'r', b's', 0, 0, 0, // set
        ];
        rustix::net::send(&kept, request, SendFlags::empty()).unwrap();
        let mut part = vec![0; 64 * 1024];
        let read = rustix::net::recv(&kept, &mut part[..], RecvFlags::DONTWAIT).unwrap().0;
        assert!(read > 1_000, "a part of the listing, {read} bytes");
        drop(first);
        run_failing("nft", &["delete", "table", "inet", "moat"]);

        let mut second = Socket::take_over(duplicate_fd(&kept)).unwrap();
        assert_eq!(second.port_id(), port);
        assert_eq!(second.tables(None).unwrap().items[0].owner, Some(port));
        let mut listed = 0;
        assert!(second.elements(&table().id, "peers", |_| listed += 1).unwrap());
        assert_eq!(listed, 50_000);
        second.send(&add(&table(), "second"), None).unwrap();
        assert_eq!(second.chains(&table().id).unwrap().items.len(), 2);
        drop((second, kept));
        run("nft", &["delete", "table", "inet", "moat"]);
    });
}

fn duplicate_fd(socket: &OwnedFd) -> OwnedFd {
    socket.try_clone().unwrap()
}

#[test]
fn only_a_socket_of_this_namespace_is_taken_over() {
    in_namespace(|| {
        let elsewhere = duplicate(&Socket::open().unwrap());
        unshare_network();
        let error = Socket::take_over(elsewhere).unwrap_err();
        assert!(matches!(error, Error::OtherNetwork), "{error:?}");
        let other = std::net::UdpSocket::bind("[::]:0").unwrap();
        let error = Socket::take_over(other.into()).unwrap_err();
        assert!(matches!(error, Error::NotNetfilter), "{error:?}");
    });
}
