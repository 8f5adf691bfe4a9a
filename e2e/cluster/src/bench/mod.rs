//! `bench`: what moat takes on the real cluster, from the API server's answer to the packet. Each figure has a bounded number of trials;
//! those of record are in docs/figures.md.

mod add;
mod figures;
mod memory;
mod policy;
mod starts;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::state::State;
use crate::suites::{Field, Stage};

/// One of the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// From the API server's answer to a policy until the last packet that got through, or the first: half a minute each
    Policy,
    /// How many of 1,000 new pods had to send their first SYN again: minutes
    Starts,
    /// A pod's interface, as the runtime asks the plugin for it, known to its peers: half a minute
    Add,
    /// What agents and controllers hold when nothing happens
    Memory,
}

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these; all without it
    #[arg(value_enum, value_name = "FIGURE")]
    only: Vec<Bench>,
    /// A tenth of the trials, to see that it works
    #[arg(long)]
    quick: bool,
}

/// Measures, and prints.
pub(crate) fn run(state: &State, options: &Options) -> Result<ExitCode> {
    let field = Field::of(state, Duration::ZERO)?;
    let of = |trials: usize| if options.quick { trials / 10 } else { trials };
    for bench in Bench::value_variants() {
        if !options.only.is_empty() && !options.only.contains(bench) {
            continue;
        }
        match bench {
            Bench::Policy => policy::run(&Stage::set(&field, "bench-policy")?, of(200))?,
            Bench::Starts => starts::run(&Stage::set(&field, "bench-starts")?, of(1000))?,
            // Fewer than a node has addresses, which rest for a minute after each.
            Bench::Add => add::run(&Stage::set(&field, "bench-add")?, of(200))?,
            Bench::Memory => memory::run(&field)?,
        }
        field.interrupt.check()?;
    }
    Ok(ExitCode::SUCCESS)
}
