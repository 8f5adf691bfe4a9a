//! What of the layout changes while it is in force: each part takes effect, and no connection notices.
#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking, as the test does")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use moat_agent::dataplane::{Config, DropReason, Inside, LayoutConfig, Live, Update};
use moat_policies::Direction::{Egress, Ingress};
use moat_policies::{DenyAction, LogLimit, Node};

use crate::interrupted::uninterrupted;
use crate::probe::Fate::{Dropped, Passed};
use crate::probe::{From, patiently, udp_socket, unspecified};
use crate::space::{Space, privileged};
use crate::verdicts::policy;
use crate::world::{OUTSIDE_V4, World};

/// Nobody may talk to `shut`, and `mute` may talk to nobody; `open` and `free` are nobody's matter.
fn world() -> World {
    let shut = "{podSelector: {matchLabels: {app: shut}}, policyTypes: [Ingress]}";
    let mute = "{podSelector: {matchLabels: {app: mute}}, policyTypes: [Egress]}";
    let layout = LayoutConfig { masquerade: true, host_ports: true, ..LayoutConfig::default() };
    let config = Config { layout, ..Config::default() };
    let policies = policy("shut", shut) + &policy("mute", mute);
    let w = World::with(&["free", "mute", "open", "shut"], &["r"], &policies, config);
    let node = |name: &str, address: &str, cidrs: &[&str]| Node {
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    };
    let local = node("node", "192.168.0.1", &["10.0.0.0/24", "fd00::/64"]);
    let other = node("other", "192.168.0.3", &["10.0.1.0/24", "fd00:1::/64"]);
    let inside = Some(Inside::of(&local, &[other], &[]));
    w.dataplane().submit(Update { inside, ..Update::default() }).wait().unwrap();
    w
}

fn as_it_was() -> Live {
    Live { tunnel: false, masquerade: true, deny: DenyAction::Drop, drop_log: LogLimit::default() }
}

fn lay_out(w: &World, live: Live) {
    w.dataplane().submit(Update { live: Some(live), ..Update::default() }).wait().unwrap();
}

/// How a connection fails from there.
fn failure(from: &Space, to: IpAddr, patience: Duration) -> ErrorKind {
    let connect = move || TcpStream::connect_timeout(&SocketAddr::new(to, 80), patience);
    from.run(move || connect().map(drop).unwrap_err().kind())
}

/// Whether who sends a datagram from there is told that it does not arrive.
fn is_told(from: &Space, source: IpAddr, to: IpAddr) -> bool {
    let socket = from.run(move || udp_socket(SocketAddr::new(source, 0)));
    socket.connect((to, 80)).unwrap();
    socket.send(b"x").unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        if socket.take_error().unwrap().is_some() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// A connection that is there, and its answering end.
struct Talk(TcpStream, TcpStream, UdpSocket, UdpSocket);

impl Talk {
    fn begin(w: &World, from: &str, to: &str) -> Self {
        let at = SocketAddr::new(w.v4(to), 8080);
        let listener = w.pods[to].space.run(move || patiently(|| TcpListener::bind(at)));
        let asks = w.pods[from].space.run(move || TcpStream::connect(at).unwrap());
        let (answers, _) = listener.accept().unwrap();
        let receiver = w.pods[to].space.run(move || udp_socket(at));
        let sender = w.pods[from].space.run(move || udp_socket(SocketAddr::new(unspecified(at.ip()), 0)));
        sender.connect(at).unwrap();
        for socket in [&sender, &receiver] {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        let mut talk = Self(asks, answers, sender, receiver);
        talk.goes_on();
        talk
    }

    fn goes_on(&mut self) {
        let mut byte = [0];
        for stream in [&self.0, &self.1] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        self.0.write_all(b"a").unwrap();
        uninterrupted(|| self.1.read(&mut byte)).unwrap();
        self.1.write_all(b"b").unwrap();
        assert_eq!(uninterrupted(|| self.0.read(&mut byte)).unwrap(), 1);
        self.2.send(b"c").unwrap();
        let (_, peer) = uninterrupted(|| self.3.recv_from(&mut byte)).unwrap();
        self.3.send_to(b"d", peer).unwrap();
        uninterrupted(|| self.2.recv(&mut byte)).unwrap();
    }
}

#[test]
fn a_denial_is_told_to_the_cluster_and_to_nobody_else() {
    privileged(|| {
        let w = world();
        let mut talk = Talk::begin(&w, "free", "open");
        let silence = Duration::from_millis(300);
        let free = &w.pods["free"].space;
        assert_eq!(failure(free, w.v4("shut"), silence), ErrorKind::TimedOut);
        lay_out(&w, Live { deny: DenyAction::Reject, ..as_it_was() });
        talk.goes_on();
        let patience = Duration::from_secs(10);
        for (to, source) in [(w.v4("shut"), w.v4("free")), (w.v6("shut"), w.v6("free"))] {
            assert_eq!(failure(free, to, patience), ErrorKind::ConnectionRefused, "{to}");
            assert!(is_told(free, source, to), "{to}");
        }
        // A pod's own egress, whoever it is for.
        let mute = &w.pods["mute"].space;
        for (to, source) in [
            (w.v4("open"), w.v4("mute")),
            (w.v6("open"), w.v6("mute")),
            (OUTSIDE_V4.into(), w.v4("mute")),
            (w.v4("r"), w.v4("mute")),
        ] {
            assert_eq!(failure(mute, to, patience), ErrorKind::ConnectionRefused, "{to}");
            assert!(is_told(mute, source, to), "{to}");
        }
        // Of another node's pod: its address is the cluster's.
        assert!(is_told(&w.outside, w.v4("r"), w.v4("shut")));
        assert!(is_told(&w.outside, w.v6("r"), w.v6("shut")));
        // Of a stranger: nothing.
        assert_eq!(failure(&w.outside, w.v4("shut"), silence), ErrorKind::TimedOut);
        // Counted as before.
        let denied = |direction| Dropped(DropReason::Policy.on(direction));
        assert_eq!(w.udp(From::Pod("free"), w.v4("shut"), 53), denied(Ingress));
        assert_eq!(w.udp(From::Pod("mute"), w.v4("open"), 53), denied(Egress));
        assert_eq!(w.tcp(From::Outside(OUTSIDE_V4.into()), w.v4("shut"), 81), denied(Ingress));
        assert_eq!(w.tcp(From::Pod("free"), w.v4("open"), 81), Passed);
        w.check();
        lay_out(&w, as_it_was());
        assert_eq!(failure(free, w.v4("shut"), silence), ErrorKind::TimedOut);
        talk.goes_on();
        w.check();
    });
}

#[test]
fn a_connection_that_was_there_is_not_reset() {
    privileged(|| {
        let mut w = world();
        lay_out(&w, Live { deny: DenyAction::Reject, ..as_it_was() });
        let mut talk = Talk::begin(&w, "free", "open");
        w.apply(&policy("now", "{podSelector: {matchLabels: {app: open}}, policyTypes: [Ingress]}"));
        assert_eq!(w.tcp(From::Pod("free"), w.v4("open"), 81), Dropped(DropReason::Policy.on(Ingress)));
        w.delete_policy("now");
        talk.goes_on();
    });
}

#[test]
fn masquerade_goes_and_comes() {
    privileged(|| {
        let w = world();
        let mut talk = Talk::begin(&w, "free", "open");
        let seen = || {
            let at = SocketAddr::new(OUTSIDE_V4.into(), 53);
            let receiver = w.outside.run(move || udp_socket(at));
            receiver.set_nonblocking(false).unwrap();
            receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let from = unspecified(at.ip());
            let sender = w.pods["free"].space.run(move || udp_socket(SocketAddr::new(from, 0)));
            sender.send_to(b"who", at).unwrap();
            uninterrupted(|| receiver.recv_from(&mut [0; 8])).unwrap().1.ip()
        };
        let node: IpAddr = "192.168.0.1".parse().unwrap();
        assert_eq!(seen(), node);
        lay_out(&w, Live { masquerade: false, ..as_it_was() });
        assert_eq!(seen(), w.v4("free"));
        talk.goes_on();
        lay_out(&w, as_it_was());
        assert_eq!(seen(), node);
        talk.goes_on();
    });
}

#[test]
fn as_much_is_logged_as_is_asked_for_and_the_tunnel_is_looked_at_when_there_may_be_one() {
    privileged(|| {
        let w = world();
        let mut talk = Talk::begin(&w, "free", "open");
        let chain = || w.node.command("nft list chain inet moat policy-ingress");
        let net = || w.node.command("nft list table inet moat-net");
        assert!(
            chain().contains("limit rate over") || chain().contains("limit rate 10/second"),
            "{}",
            chain()
        );
        assert!(!net().contains("4789"), "{}", net());
        lay_out(&w, Live { drop_log: LogLimit { rate: 3, burst: 7 }, tunnel: true, ..as_it_was() });
        assert!(chain().contains("limit rate 3/second burst 7 packets"), "{}", chain());
        assert!(net().contains("4789"), "{}", net());
        talk.goes_on();
        let denied = Dropped(DropReason::Policy.on(Ingress));
        assert_eq!(w.udp(From::Pod("free"), w.v4("shut"), 53), denied);
        lay_out(&w, Live { drop_log: LogLimit::new(0, None), ..as_it_was() });
        assert!(!chain().contains("log"), "{}", chain());
        assert_eq!(w.udp(From::Pod("free"), w.v4("shut"), 53), denied, "counted all the same");
        assert!(!net().contains("4789"), "{}", net());
        talk.goes_on();
        w.check();
    });
}

#[test]
fn the_same_layout_again_is_no_change() {
    privileged(|| {
        let w = world();
        let listings = w.dataplane().stats().listings();
        lay_out(&w, as_it_was());
        assert_eq!(w.dataplane().stats().listings(), listings);
        lay_out(&w, Live { deny: DenyAction::Reject, ..as_it_was() });
        assert_eq!(w.dataplane().stats().listings(), listings + 1);
    });
}
