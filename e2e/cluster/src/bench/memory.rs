//! What moat's processes hold when nothing happens.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::suites::Field;

/// So long nothing happens first.
const REST: Duration = Duration::from_secs(10);

/// Prints the resident memory of each of them.
pub(super) fn run(field: &Field) -> Result<()> {
    field.hold_for(REST)?;
    println!("resident memory after {} s of rest; to reach: agent 20 MB, controller 60 MB", REST.as_secs());
    for program in ["moat-agent", "moat-guard", "moat-controller"] {
        for process in field.processes(program)? {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
            let kilobytes = resident(&status).with_context(|| format!("{program} has no memory"))?;
            println!("{program:<18} {:>8.1} MB", kilobytes as f64 * 1024.0 / 1e6);
        }
    }
    Ok(())
}

fn resident(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}
