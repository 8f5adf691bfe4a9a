//! Tables that another version of moat made are taken over, and no packet is misjudged meanwhile.
//!
//! `layout-1/` and `layout-3/` hold what the last agent of that layout wrote for the world of these tests: its one batch, byte
//! for byte, with the kernel's guard and without, and what `nft` lists then. The first had no chains for answers and no
//! table of the pod network; the third had a chain for each class of a program's ports.

use std::net::SocketAddr;

use moat_agent::dataplane::{Config, DropReason};
use moat_nfnetlink::nft::{
    Batch, Chain, Family, Field, Hook, Policy, Position, Rule, Set, Socket, TableId, UserData, userdata,
};
use moat_policies::Direction::{Egress, Ingress};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::interrupted::uninterrupted;
use crate::probe::Fate::{Dropped, Passed};
use crate::probe::{From, udp_socket};
use crate::space::privileged;
use crate::world::World;
use crate::writer::{Traffic, unguarded};

const POLICIES: &str = include_str!("layout-1/policies.yaml");

/// What an agent of an older layout wrote.
struct Frozen {
    guarded: &'static [u8],
    unguarded: &'static [u8],
    listing: &'static str,
}

const FIRST: Frozen = Frozen {
    guarded: include_bytes!("layout-1/guarded.batch"),
    unguarded: include_bytes!("layout-1/unguarded.batch"),
    listing: include_str!("layout-1/listing.nft"),
};
const THIRD: Frozen = Frozen {
    guarded: include_bytes!("layout-3/guarded.batch"),
    unguarded: include_bytes!("layout-3/unguarded.batch"),
    listing: include_str!("layout-3/listing.nft"),
};

/// The kind of the user data that holds the version, and this version's.
const VERSION: u8 = 0x6d;
const OURS: u8 = 6;

/// Sends the batch of an agent that lives no more.
fn send(w: &World, batch: &'static [u8]) {
    w.node.run(move || {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(netlink::NETFILTER),
        )
        .expect("a socket");
        let sent = rustix::net::send(&socket, batch, SendFlags::empty()).expect("the batch is sent");
        assert_eq!(sent, batch.len());
        let mut answer = [0; 4096];
        let (_, got) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::DONTWAIT).expect("an answer");
        // One acknowledgement: the header, and the error number behind it.
        let error = i32::from_ne_bytes(answer[16..20].try_into().expect("four bytes"));
        assert_eq!((got, error), (36, 0), "the kernel takes the batch");
    });
}

fn inet() -> TableId {
    TableId::new(Family::Inet, "moat")
}

/// The table's handle, and the version of who filled it last.
fn standing(w: &World) -> (u64, Option<u8>) {
    w.node.run(|| {
        let mut socket = Socket::open().expect("a socket");
        let tables = socket.tables(Some(Family::Inet)).expect("tables").items;
        let rules = socket.rules(&inet(), Some("forward")).expect("rules").items;
        let version = userdata::find(&rules[0].userdata, VERSION).map(|v| v[0]);
        (tables.iter().find(|t| t.id == inet()).expect("the table").handle, version)
    })
}

fn verdicts(w: &World) {
    assert_eq!(w.udp(From::Pod("a"), w.v4("b"), 80), Passed);
    assert_eq!(w.udp(From::Pod("a"), w.v6("b"), 81), Passed);
    assert_eq!(w.udp(From::Outside(w.v4("r")), w.v4("b"), 80), Passed);
    assert_eq!(w.tcp(From::Pod("c"), w.v4("a"), 80), Passed);
    assert_eq!(w.tcp(From::Pod("c"), w.v6("a"), 7005), Passed);
    assert_eq!(w.tcp(From::Pod("a"), w.v4("b"), 443), Dropped(DropReason::Policy.on(Ingress)));
    assert_eq!(w.tcp(From::Pod("c"), w.v4("b"), 80), Dropped(DropReason::Policy.on(Egress)));
    assert_eq!(w.udp(From::Pod("a"), w.v6("d"), 53), Dropped(DropReason::Policy.on(Ingress)));
}

#[test]
fn tables_of_the_first_layout_are_taken_over_under_traffic() {
    taken_over_under_traffic(&FIRST);
}

#[test]
fn tables_of_the_third_layout_are_taken_over_under_traffic() {
    taken_over_under_traffic(&THIRD);
}

fn taken_over_under_traffic(older: &'static Frozen) {
    privileged(|| {
        for (config, batch) in [(Config::default(), older.guarded), (unguarded(), older.unguarded)] {
            let guarded = config.owner;
            for allowed in ["a", "r"] {
                let mut w = World::unstarted(&["a", "b", "c", "d"], &["r"], POLICIES, config.clone());
                send(&w, batch);
                if !guarded {
                    assert_eq!(w.node.command("nft -s list ruleset").trim(), older.listing.trim());
                }
                let (handle, _) = standing(&w);
                // One connection that is there already, and new ones all the time.
                let (from, to) = (SocketAddr::new(w.v6("a"), 5353), SocketAddr::new(w.v6("b"), 81));
                let old = (
                    w.pods["a"].space.run(move || udp_socket(from)),
                    w.pods["b"].space.run(move || udp_socket(to)),
                );
                let keeps = || {
                    let mut buffer = [0; 8];
                    old.0.send_to(b"there", to).expect("sent");
                    let wait = std::time::Duration::from_secs(5);
                    for socket in [&old.0, &old.1] {
                        socket.set_nonblocking(false).expect("an option");
                        socket.set_read_timeout(Some(wait)).expect("an option");
                    }
                    uninterrupted(|| old.1.recv_from(&mut buffer)).expect("it arrives");
                    old.1.send_to(b"back", from).expect("sent");
                    uninterrupted(|| old.0.recv_from(&mut buffer)).expect("its answer arrives");
                };
                keeps();
                let traffic = Traffic::start(&w, &[allowed], &["c"]);
                for _ in 0..10 {
                    w.dataplane = None;
                    w.start(w.whole());
                    keeps();
                }
                assert_eq!(traffic.stop(), (0, 0), "guarded: {guarded}");
                assert_eq!(standing(&w), (handle, Some(OURS)), "the same table, filled by this version");
                assert_eq!(w.dataplane().stats().owner(), u64::from(guarded));
                w.check();
                drop(old);
                verdicts(&w);
            }
        }
    });
}

/// Back to an older version: what it does not know goes, in the commit that brings what it knows.
#[test]
fn tables_of_a_newer_layout_are_taken_over_under_traffic() {
    privileged(|| {
        for allowed in ["a", "r"] {
            let mut w = World::with(&["a", "b", "c", "d"], &["r"], POLICIES, unguarded());
            w.dataplane = None;
            let (handle, _) = standing(&w);
            w.node.run(|| {
                let mut batch = Batch::new();
                let set = Set::new("of-tomorrow", Field::Mark);
                batch.add_set(&inet(), &set).expect("a set");
                batch.add_chain(&inet(), &Chain::new("tomorrow")).expect("a chain");
                let hook = Chain::filter("early", Hook::Prerouting, -300, Policy::Accept);
                batch.add_chain(&inet(), &hook).expect("a chain");
                let looks = Rule::new().lookup([moat_nfnetlink::nft::Source::MARK], "of-tomorrow");
                batch.add_rule(&inet(), "early", &looks).expect("a rule");
                let newer = Rule::new().counter().with_userdata(UserData::new().with(VERSION, [200]));
                batch.add_rule_at(&inet(), "forward", Position::First, &newer).expect("a rule");
                Socket::open().expect("a socket").send(&batch, None).expect("the kernel takes it");
            });
            assert_eq!(standing(&w).1, Some(200));
            let traffic = Traffic::start(&w, &[allowed], &["c"]);
            w.start(w.whole());
            assert_eq!(traffic.stop(), (0, 0));
            assert_eq!(standing(&w), (handle, Some(OURS)));
            let left = w.node.command("nft list ruleset");
            assert!(!left.contains("tomorrow") && !left.contains("early"), "{left}");
            w.check();
            verdicts(&w);
        }
    });
}
