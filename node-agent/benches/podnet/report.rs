//! The tables that are printed.

use serde_json::Value;

use crate::Site;
use crate::traffic::Slice;
use crate::worlds::{Kind, PTP, ROUTED};

/// What moat's routes are to reach, measured by ptp's.
const TO_REACH: f64 = 0.97;

/// The measures of a slice.
const MEASURES: [fn(&Slice) -> f64; 4] =
    [|slice| slice.speed, |slice| slice.stream, |slice| slice.packet, |slice| slice.round_trip];

/// Prints the figures of the worlds' slices, and each world's ratios to that of `ptp`: 1.1 is a tenth faster or cheaper.
pub(crate) fn case(name: &str, worlds: &[(Kind, &[Slice])]) {
    println!(
        "\n{name:<30} {:>9} {:>11} {:>10} {:>12}   {:>27}",
        "Gbit/s", "CPU, ns/KiB", "packet, ns", "and back, ns", "each : ptp"
    );
    let ptp = worlds.iter().find(|(kind, _)| *kind == PTP).map(|(_, slices)| *slices);
    for (kind, slices) in worlds {
        let [speed, stream, packet, round_trip] = MEASURES.map(|of| median(slices.iter().map(of)));
        print!("{kind:<30} {:>9.1} {stream:>11.1} {packet:>10.0} {round_trip:>12.0}  ", 1024.0 * 8.0 / speed);
        if let Some(ptp) = ptp {
            let ratios =
                MEASURES.map(|of| median(ptp.iter().zip(*slices).map(|(ptp, own)| of(ptp) / of(own))));
            ratios.iter().for_each(|ratio| print!(" {ratio:>6.3}"));
            let missed = *kind == ROUTED && ratios.iter().any(|ratio| *ratio < TO_REACH);
            print!("{}", if missed { format!("  MISSED: {TO_REACH}") } else { String::new() });
        }
        println!();
    }
}

/// Says how long the packets of streams are on the link between the nodes, and whether any were lost there.
pub(crate) fn frames(site: &Site) {
    let [node, _] = site.world.spaces();
    let text = node.sh("ip -s -j link show uplink");
    let links: Value = serde_json::from_str(&text).unwrap();
    let sent = &links[0]["stats64"]["tx"];
    let of = |name: &str| sent[name].as_f64().unwrap();
    println!(
        "{:<30} {:.0} bytes a frame, {} dropped",
        site.world.kind,
        of("bytes") / of("packets"),
        of("dropped")
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
