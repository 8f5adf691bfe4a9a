//! What it would cost to bound how many connections a pod may have: CPU time of a new flow's first packet, by how many there
//! are already, with the kernel's own count (`ct count`) and without.
//!
//! ```text
//! cargo run --release -p moat-agent --example bench_limit
//! ```
//!
//! Needs root, `ip` and `nft`. Both worlds take turns, from few flows to many.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends by panicking")]

#[path = "../tests/dataplane/space.rs"]
#[allow(dead_code, reason = "shared with the kernel tests, which use more of it")]
mod space;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use space::Space;

/// How many flows there are when new ones are measured.
const THERE: [u32; 6] = [100, 1_000, 2_000, 5_000, 10_000, 20_000];
/// New flows that are measured then.
const NEW: u32 = 200;

const WORLDS: [(&str, &str); 2] = [
    ("conntrack only", "add rule inet bounded output ct state new accept"),
    (
        "ct count",
        "add set inet bounded each { type ipv4_addr ; size 256 ; flags dynamic ; } ;
         add rule inet bounded output ct state new add @each { ip saddr ct count over 1000000 } drop",
    ),
];

fn main() {
    let worlds = WORLDS.map(|(name, rules)| {
        let space = Space::new("limit");
        space.command(&format!(
            "nft add table inet bounded ;
             add chain inet bounded output {{ type filter hook output priority 0 ; }} ;
             {rules}"
        ));
        (name, space)
    });
    println!("{:>10} {:>22} {:>22}", "flows", worlds[0].0, worlds[1].0);
    let mut sent = 0;
    for there in THERE {
        let [plain, counted] = worlds.each_ref().map(|(_, space)| {
            space.run(move || {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 5)).unwrap();
                open(&socket, sent..there);
                let begin = cpu_time();
                open(&socket, there..there + NEW);
                (cpu_time() - begin).as_secs_f64() * 1e6 / f64::from(NEW)
            })
        });
        println!("{there:>10} {plain:>19.1} us {counted:>19.1} us");
        sent = there + NEW;
    }
}

/// Opens flows, each to an address and port of its own, where nobody is.
fn open(socket: &UdpSocket, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let to = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + number / 1_000);
        socket.send_to(b"x", (to, 10_000 + (number % 1_000) as u16)).unwrap();
    }
}

/// The CPU time of this thread so far, and of the kernel on its behalf.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}
