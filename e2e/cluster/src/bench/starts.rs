//! Whether new pods have to send their first SYN again.

use std::time::Instant;

use anyhow::Result;

use crate::suites::{Stage, first_syn};

/// So many are on their way at a time.
const AT_ONCE: usize = 15;

/// Starts so many pods.
pub(super) fn run(stage: &Stage, count: usize) -> Result<()> {
    let began = Instant::now();
    let outcome = first_syn::run(stage, count, AT_ONCE)?;
    let percent = 100.0 * outcome.good as f64 / count as f64;
    println!(
        "first SYN to an allowed peer passes, not sent again: {} of {count} pods, {percent:.2} %, in {:.0} s; to reach: 99.9 %",
        outcome.good,
        began.elapsed().as_secs_f64()
    );
    outcome.wrong.iter().for_each(|wrong| println!("  {wrong}"));
    Ok(())
}
