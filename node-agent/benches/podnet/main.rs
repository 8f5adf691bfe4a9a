//! What carrying pods' packets costs: streams and small packets between pods of one node and of two, as moat carries them,
//! routed and by VXLAN, beside the reference plugins `ptp` and `bridge`.
//!
//! ```text
//! cargo xtask bench podnet [--quick]         (or cargo bench -p moat-agent --bench podnet -- [--quick] [WORD]...)
//! ```
//!
//! With words, only the worlds whose names have one of them.
//!
//! Every world has two nodes on a link, two pods on the one and one on the other, made by the real plugins and, where it is
//! moat's, by the real agent with policy. Then some of moat's worlds lose tables: that of policy and all of its own, or
//! these and the anti-spoofing, and what is left tracks connections, as the reference's worlds do. All worlds exist side
//! by side and take turns, slices of a millisecond in another order each round; a ratio is the median of those of slices of
//! the same round, so what disturbs the machine for longer disturbs both sides alike.
//!
//! CPU time is that of one thread that is client and server, with what the kernel does on its back: all that client, nodes
//! and server do. A stream's speed is that of two threads, one at each end, each kept on a processor of its own, in the
//! fastest tenth of slices: other load only makes them slower. Every slice's stream is a new connection, and all have buffers
//! of the same size. One more world of `ptp` says how far equal ones are apart.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends by panicking")]

#[path = "../../tests/podnet/real.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod real;
#[path = "../shared/reference.rs"]
mod reference;
mod report;
mod traffic;
#[path = "../../tests/podnet/world.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod world;
mod worlds;

use std::time::{Duration, Instant};

use traffic::{Flow, Seat, Slice, stay_on};
use worlds::{Kind, World};

/// How long the slices of all rounds may take together.
const ALL: Duration = Duration::from_secs(220);
const QUICK: Duration = Duration::from_secs(25);

/// Which pods talk, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Case {
    same_node: bool,
    ipv4: bool,
}

const CASES: [Case; 4] = [
    Case { same_node: true, ipv4: true },
    Case { same_node: true, ipv4: false },
    Case { same_node: false, ipv4: true },
    Case { same_node: false, ipv4: false },
];

impl Case {
    fn name(self) -> String {
        let (path, family) = (self.same_node, self.ipv4);
        format!("{}, {}", if path { "one node" } else { "two nodes" }, if family { "IPv4" } else { "IPv6" })
    }
}

/// A world with what was measured in it: for each case, a slice for each round.
struct Site {
    world: World,
    flows: [Flow; CASES.len()],
    slices: [Vec<Slice>; CASES.len()],
}

impl Site {
    fn new(kind: Kind) -> Self {
        let world = World::new(kind);
        let flows = CASES.map(|case| {
            let [client, neighbour, remote] = &world.pods;
            Flow::open(client, if case.same_node { neighbour } else { remote }, case.ipv4)
        });
        Self { world, flows, slices: Default::default() }
    }
}

fn main() {
    world::in_world(|| {
        world::plugin_binary();
        let (options, words): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|a| a.starts_with("--"));
        let time = if options.iter().any(|option| option == "--quick") { QUICK } else { ALL };
        let wanted =
            |kind: &Kind| words.is_empty() || words.iter().any(|word| kind.to_string().contains(word));
        let here = |kind: &Kind| !kind.is_reference() || reference::is_here();
        let kinds = Kind::ALL.into_iter().filter(wanted).filter(here);
        let mut sites: Vec<Site> = kinds.map(Site::new).collect();
        // The agents run already, wherever they like.
        stay_on(Seat::Reader);
        let rounds = measure(&mut sites, time);
        println!("{rounds} rounds; medians");
        for (case, slices) in CASES.iter().zip(0..) {
            // Where pods do not leave their node there is no tunnel.
            let sites = sites.iter().filter(|site| !(case.same_node && site.world.kind.is_tunnel()));
            let rows: Vec<_> = sites.map(|site| (site.world.kind, &site.slices[slices][..])).collect();
            report::case(&case.name(), &rows);
        }
        for site in &sites {
            report::frames(site);
        }
    });
}

/// Lets the worlds take turns until the time is over; how many rounds that were.
fn measure(sites: &mut [Site], time: Duration) -> usize {
    let (begin, count) = (Instant::now(), sites.len());
    let mut round = 0;
    loop {
        for (case, which) in CASES.iter().enumerate() {
            // Another first one each time, and every other time backwards: nobody always runs in the same one's wake.
            for place in 0..count {
                let place = if round % 2 == 0 { place } else { count - 1 - place };
                let site = &mut sites[(place + round / 2) % count];
                if which.same_node && site.world.kind.is_tunnel() {
                    continue;
                }
                let slice = site.flows[case].measure(&site.world.pods[0]);
                // The first round fills caches.
                if round > 0 {
                    site.slices[case].push(slice);
                }
            }
        }
        if begin.elapsed() > time && round > 0 {
            return round;
        }
        round += 1;
    }
}
