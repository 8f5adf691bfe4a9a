//! The tables that are printed.

use serde_json::Value;

use crate::Site;
use crate::traffic::Slice;
use crate::worlds::{Kind, PTP, ROUTED};

/// What moat's routes are to reach, measured by ptp's.
const TO_REACH: f64 = 0.97;

/// The measures of a slice that are CPU time.
const COSTS: [fn(&Slice) -> f64; 3] = [|slice| slice.stream, |slice| slice.packet, |slice| slice.round_trip];

/// Prints the figures of the worlds' slices, and each world's ratios to that of `ptp`: 1.1 is a tenth faster or cheaper.
pub(crate) fn case(name: &str, worlds: &[(Kind, &[Slice])]) {
    println!(
        "\n{name:<30} {:>9} {:>11} {:>10} {:>12}   {:>27}",
        "Gbit/s", "CPU, ns/KiB", "packet, ns", "and back, ns", "each : ptp"
    );
    let ptp = worlds.iter().find(|(kind, _)| *kind == PTP).map(|(_, slices)| *slices);
    for (kind, slices) in worlds {
        let [stream, packet, round_trip] = COSTS.map(|of| median(slices.iter().map(of)));
        let speed = 1024.0 * 8.0 / unhindered(slices);
        print!("{kind:<30} {speed:>9.1} {stream:>11.1} {packet:>10.0} {round_trip:>12.0}  ");
        if let Some(ptp) = ptp {
            let pairs = || ptp.iter().zip(*slices);
            let mut ratios = vec![unhindered(ptp) / unhindered(slices)];
            ratios.extend(COSTS.map(|of| median(pairs().map(|(ptp, own)| of(ptp) / of(own)))));
            ratios.iter().for_each(|ratio| print!(" {ratio:>6.3}"));
            let missed = *kind == ROUTED && ratios.iter().any(|ratio| *ratio < TO_REACH);
            print!("{}", if missed { format!("  MISSED: {TO_REACH}") } else { String::new() });
        }
        println!();
    }
}

/// What a stream's KiB takes between two threads in the fastest tenth of slices: whatever else the machine does, it does not make
/// them faster.
fn unhindered(slices: &[Slice]) -> f64 {
    quantile(slices.iter().map(|slice| slice.speed), 10)
}

/// Says how long packets are on the link between the nodes: the kernel cuts a stream late, or it does not.
pub(crate) fn frames(site: &Site) {
    let [node, _] = site.world.spaces();
    let links: Value = serde_json::from_str(&node.sh("ip -s -j link show uplink")).unwrap();
    let sent = |what: &str| links[0]["stats64"]["tx"][what].as_f64().unwrap();
    println!("{:<30} {:.0} bytes a frame between nodes", site.world.kind, sent("bytes") / sent("packets"));
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    quantile(values, 50)
}

fn quantile(values: impl Iterator<Item = f64>, percent: usize) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * percent / 100]
}
