//! `cargo xtask bench`: the benchmarks, each of which prints its own table.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use crate::process::{cargo, check};
use crate::steps::Steps;

/// One of the benchmarks.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Building and changing the whole cluster's verdict programs; no root needed
    Engine,
    /// Elements, sets and pods into the kernel through netlink
    Netlink,
    /// Connections and packets between two pods, with and without policy; root only
    Datapath,
    /// A pod's interface, from the runtime's ADD to its answer
    Cni,
}

impl Bench {
    fn command(self) -> &'static [&'static str] {
        match self {
            Bench::Engine => &["bench", "-p", "moat-policies", "--bench", "*"],
            Bench::Netlink => &["bench", "-p", "moat-nfnetlink", "--bench", "*"],
            Bench::Datapath => &["run", "--release", "-p", "moat-agent", "--example", "bench_datapath"],
            Bench::Cni => &["bench", "-p", "moat-agent", "--bench", "cni_add"],
        }
    }
}

/// All of them, or one. They are not run side by side: they would measure each other.
pub(crate) fn run(only: Option<Bench>) -> Result<ExitCode> {
    let wanted = Bench::value_variants().iter().filter(|bench| only.is_none_or(|only| only == **bench));
    let wanted: Vec<_> = wanted.collect();
    let mut steps = Steps::new("bench", wanted.len());
    for bench in wanted {
        let name = bench.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        steps.step(&name, || check(&mut cargo(bench.command())))?;
    }
    Ok(ExitCode::SUCCESS)
}
