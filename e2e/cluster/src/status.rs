//! `status`: what runs, and what it costs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::kubectl;
use crate::state::State;

/// Prints the nodes as the API server sees them, and the memory of all of the cluster's processes.
pub(crate) fn print(state: &State) -> Result<()> {
    let plan = state.plan()?;
    let keeper = state.keeper().context("the cluster has just ended")?;
    for node in kubectl::nodes(&kubectl::json(&plan, &plan.kubeconfig(), &["get", "nodes"])?) {
        let ready = if node.ready { "ready".to_owned() } else { format!("not ready: {}", node.why) };
        println!("{:<8} {:<18} {ready}", node.name, node.pod_cidrs.join(" "));
    }
    let mut memory = memory(keeper.pid());
    let total: u64 = memory.values().map(|m| m.bytes).sum();
    println!("\n{:<26} {:>5}  {:>6}", "program", "runs", "MB");
    let mut rows: Vec<(String, Memory)> = std::mem::take(&mut memory).into_iter().collect();
    rows.sort_by_key(|(_, memory)| std::cmp::Reverse(memory.bytes));
    for (name, memory) in rows {
        println!("{name:<26} {:>5}  {:>6.1}", memory.processes, megabytes(memory.bytes));
    }
    println!("{:<26} {:>5}  {:>6.1}", "all", "", megabytes(total));
    println!("\nexport KUBECONFIG={}", plan.kubeconfig().display());
    Ok(())
}

#[derive(Default)]
struct Memory {
    processes: usize,
    bytes: u64,
}

/// Memory of a process and all of its descendants, by program: each page that several share counts as a part for each.
fn memory(root: i32) -> BTreeMap<String, Memory> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = field(pid, "status", "PPid:") {
            children.entry(i32::try_from(parent).unwrap_or_default()).or_default().push(pid);
        }
    }
    let mut all: BTreeMap<String, Memory> = BTreeMap::new();
    let mut left = vec![root];
    while let Some(pid) = left.pop() {
        left.extend(children.remove(&pid).unwrap_or_default());
        let Some(kilobytes) = field(pid, "smaps_rollup", "Pss:") else { continue };
        let memory = all.entry(program(pid)).or_default();
        memory.processes += 1;
        memory.bytes += kilobytes * 1024;
    }
    all
}

fn program(pid: i32) -> String {
    let path: PathBuf = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Of a program that was built anew since.
    name.trim_end_matches(" (deleted)").to_owned()
}

fn field(pid: i32, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
