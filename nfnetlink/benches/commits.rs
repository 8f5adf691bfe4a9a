//! How long the kernel takes to take what we send: `cargo bench -p moat-nfnetlink` (as root).
//!
//! Each figure is one call of `Socket::send`, batch building apart, in a network namespace of its own.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on says why and ends")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use moat_nfnetlink::nft::{
    Batch, Chain, Element, Family, Field, Hook, IfName, KeyType, Policy, Rule, Set, Socket, Source, Table,
    TableId, Value, Verdict,
};
use rustix::thread::UnshareFlags;

fn main() {
    in_namespace(|| {
        let mut node = Node::new(0);
        measure("generation read (a round trip that does nothing)", 2000, |_| {
            let start = Instant::now();
            node.socket.generation().unwrap();
            start.elapsed()
        });
    });
    for (count, chains) in [(100, 0), (100_000, 0), (100_000, 1000)] {
        in_namespace(move || one_address(count, chains));
    }
    for count in [1000, 10_000] {
        in_namespace(move || one_range(count));
    }
    for pods in [0, 110, 250] {
        in_namespace(move || one_pod(pods));
    }
    in_namespace(full_load);
}

fn one_address(count: u32, chains: u32) {
    let mut node = Node::new(chains);
    let set = Set::new("peers", Field::Ipv4Addr);
    let address = |index: u32| Element::new(Ipv4Addr::from(0x0a00_0000 + index));
    let mut batch = Batch::new();
    batch.add_set(&node.table, &set).unwrap();
    batch.add_elements(&node.table, &set, (0..count).map(address)).unwrap();
    node.commit(&batch);
    let table = node.table.clone();
    measure(&format!("one address into a hash set of {count}, {chains} chains"), 2000, |index| {
        let mut batch = Batch::new();
        batch.add_elements(&table, &set, [address(count + index)]).unwrap();
        node.commit(&batch)
    });
    measure(&format!("one address out of a hash set of {count}, {chains} chains"), 2000, |index| {
        let mut batch = Batch::new();
        batch.delete_elements(&table, &set, [address(count + index)]).unwrap();
        node.commit(&batch)
    });
    if chains == 0 {
        let start = Instant::now();
        let mut seen = 0;
        node.socket.elements(&table, "peers", |_| seen += 1).unwrap();
        println!("{:<66} {:>9.1} µs", format!("listing a set of {seen}"), micros(start.elapsed()));
    }
}

fn one_range(count: u32) {
    let mut node = Node::new(0);
    let key = KeyType::new(&[Field::Ipv4Addr, Field::InetProto]).unwrap();
    let set = Set::new("cidrs", key).intervals();
    let range = |index: u32| {
        let end = |address, proto| [Value::Ipv4(Ipv4Addr::from(address)), Value::Proto(proto)];
        Element::range(end(0x0a00_0000 + index * 512, 0), end(0x0a00_00ff + index * 512, 255))
    };
    let mut batch = Batch::new();
    batch.add_set(&node.table, &set).unwrap();
    batch.add_elements(&node.table, &set, (0..count).map(range)).unwrap();
    node.commit(&batch);
    let table = node.table.clone();
    measure(&format!("one prefix into an interval set of {count}"), 200, |index| {
        let mut batch = Batch::new();
        batch.add_elements(&table, &set, [range(count + index)]).unwrap();
        node.commit(&batch)
    });
}

fn one_pod(present: u32) {
    let mut node = Node::new(0);
    for pod in 0..present {
        let batch = node.add_pod(pod);
        node.commit(&batch);
    }
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..500 {
        let batch = node.add_pod(present);
        times.0.push(node.commit(&batch));
        let batch = node.remove_pod(present);
        times.1.push(node.commit(&batch));
    }
    report(&format!("a pod in: set of 40, chain, 3 rules, map entry; {present} pods present"), times.0);
    report(&format!("a pod out again; {present} pods present"), times.1);
}

fn full_load() {
    let mut node = Node::new(0);
    let mut batch = Batch::new();
    for pod in 0..1000 {
        node.append_pod(&mut batch, pod);
    }
    let size = batch.as_bytes().len();
    let time = node.commit(&batch);
    println!(
        "{:<66} {:>9.1} µs",
        format!("1,000 pods × 40 addresses, one batch of {size} bytes"),
        micros(time)
    );
}

struct Node {
    socket: Socket,
    table: TableId,
    genid: u32,
    map: Set,
}

impl Node {
    fn new(chains: u32) -> Node {
        let table = TableId::new(Family::Inet, "moat");
        let map = Set::new("to_pod", Field::IfName).verdict_map();
        let mut batch = Batch::new();
        batch.add_table(&Table::new(table.clone())).unwrap();
        batch.add_set(&table, &map).unwrap();
        batch.add_chain(&table, &Chain::filter("forward", Hook::Forward, 0, Policy::Accept)).unwrap();
        batch.add_rule(&table, "forward", &Rule::new().vmap([Source::OIFNAME], "to_pod")).unwrap();
        for chain in 0..chains {
            batch.add_chain(&table, &Chain::new(format!("chain{chain}"))).unwrap();
        }
        let mut socket = Socket::open().unwrap();
        let genid = socket.send(&batch, None).unwrap().genid;
        Node { socket, table, genid, map }
    }

    fn commit(&mut self, batch: &Batch) -> Duration {
        let start = Instant::now();
        self.genid = self.socket.send(batch, Some(self.genid)).unwrap().genid;
        start.elapsed()
    }

    fn add_pod(&self, pod: u32) -> Batch {
        let mut batch = Batch::new();
        self.append_pod(&mut batch, pod);
        batch
    }

    fn append_pod(&self, batch: &mut Batch, pod: u32) {
        let (chain, set) = (format!("pod{pod}"), Set::new(format!("peers{pod}"), Field::Ipv4Addr));
        let peers = (0..40).map(|peer| Element::new(Ipv4Addr::from(0x0a00_0000 + pod * 64 + peer)));
        batch.add_set(&self.table, &set).unwrap();
        batch.add_elements(&self.table, &set, peers).unwrap();
        batch.add_chain(&self.table, &Chain::new(chain.as_str())).unwrap();
        let v4 = || Rule::new().eq(Source::NFPROTO, 2);
        let allowed = v4().lookup([Source::IP_SADDR], set.name().clone());
        batch.add_rule(&self.table, &chain, &allowed.verdict(Verdict::Accept)).unwrap();
        let port = Rule::new().eq(Source::L4PROTO, 6).eq(Source::TH_DPORT, Value::Port(80));
        batch.add_rule(&self.table, &chain, &port.verdict(Verdict::Accept)).unwrap();
        batch.add_rule(&self.table, &chain, &Rule::new().counter().verdict(Verdict::Drop)).unwrap();
        let entry = Element::new(veth(pod)).verdict(Verdict::goto(chain));
        batch.add_elements(&self.table, &self.map, [entry]).unwrap();
    }

    fn remove_pod(&self, pod: u32) -> Batch {
        let mut batch = Batch::new();
        batch.delete_elements(&self.table, &self.map, [Element::new(veth(pod))]).unwrap();
        batch.flush_chain(&self.table, &format!("pod{pod}")).unwrap();
        batch.delete_chain(&self.table, format!("pod{pod}").as_str()).unwrap();
        batch.delete_set(&self.table, format!("peers{pod}").as_str()).unwrap();
        batch
    }
}

fn veth(pod: u32) -> IfName {
    IfName::new(&format!("moat{pod}")).unwrap()
}

fn measure(what: &str, rounds: u32, mut round: impl FnMut(u32) -> Duration) {
    report(what, (0..rounds).map(&mut round).collect());
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| micros(times[(times.len() - 1) * percent / 100]);
    println!("{what:<66} p50 {:>7.1} µs  p99 {:>7.1} µs", at(50), at(99));
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[allow(unsafe_code)]
fn in_namespace(bench: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: only the network namespace changes, and with it no descriptor, memory or file system.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("run as root");
        bench();
    });
    if thread.join().is_err() {
        std::process::exit(1);
    }
}
