//! `suite`: what moat promises and upstream's suite never asks, on the real cluster.
//!
//! ```text
//!   field ── the cluster: API server, networks of nodes
//!     └─ stage ── a suite's namespace, its pods, the servers in them (echo)
//!          ├─ check:  questions from networks (probe), asked until all come out as they should, and once more
//!          └─ stream: a connection that is kept busy while something happens to the cluster
//! ```
//!
//! Pods are plain pods, which do nothing: this process asks and answers in their networks itself, so that a question that is blocked
//! costs a fifth of a second, and a moment can be told to a tenth of a millisecond.

mod dns;
mod echo;
mod faults;
mod field;
pub(crate) mod first_syn;
mod flows;
mod hosts;
mod interrupt;
mod intruder;
mod ports;
mod probe;
mod restarts;
mod rollout;
mod services;
mod stage;
mod start;
mod stream;
mod tokens;
mod uninstall;
mod watchers;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::state::State;
pub(crate) use field::{Field, NodeView};
pub(crate) use stage::{Pod, Stage, pod};

/// A suite: its name, what it is about, and how it is played.
struct Suite {
    name: &'static str,
    about: &'static str,
    play: fn(&mut Stage) -> Result<()>,
}

/// In this order.
const SUITES: &[Suite] = &[
    flows::SUITE,
    ports::SUITE,
    start::SUITE,
    hosts::SUITE,
    services::SUITE,
    dns::SUITE,
    restarts::SUITE,
    rollout::SUITE,
    tokens::SUITE,
    faults::SUITE,
];

/// What the cluster does not survive as one with moat: played when it is asked for.
const BY_NAME: &[Suite] = &[uninstall::SUITE];

/// What to run of them.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these; without it all but `uninstall`
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Say which there are
    #[arg(long)]
    list: bool,
    /// How long the API server stays away when it is taken away
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    away: u64,
}

/// Plays the suites, and says of each check what became of it. The exit status is 1 where one failed.
pub(crate) fn run(state: &State, options: &Options) -> Result<ExitCode> {
    let all = || SUITES.iter().chain(BY_NAME);
    if options.list {
        all().for_each(|suite| println!("{:<10} {}", suite.name, suite.about));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = options.names.iter().find(|name| all().all(|suite| suite.name != **name)) {
        bail!("there is no suite `{unknown}`: --list says which there are");
    }
    let wanted: Vec<&Suite> = match options.names.is_empty() {
        true => SUITES.iter().collect(),
        false => all().filter(|suite| options.names.iter().any(|name| name == suite.name)).collect(),
    };
    let field = Field::of(state, Duration::from_secs(options.away))?;
    let started = Instant::now();
    let (mut checks, mut failed) = (0, Vec::new());
    for suite in wanted {
        println!("{}: {}", suite.name, suite.about);
        let began = Instant::now();
        let (all, wrong) = play(&field, suite)?;
        println!("  {} of {all} checks, in {:.1} s", all - wrong, began.elapsed().as_secs_f64());
        checks += all;
        if wrong > 0 {
            failed.push(suite.name);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    if failed.is_empty() {
        println!("all {checks} checks passed, in {seconds:.0} s");
        return Ok(ExitCode::SUCCESS);
    }
    println!("FAILED: {}; {checks} checks in {seconds:.0} s", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// How many checks there were, and how many failed. That a suite cannot go on is one that failed; that somebody asks for the end
/// is the end of all.
fn play(field: &Field, suite: &Suite) -> Result<(usize, usize)> {
    let mut stage = Stage::set(field, suite.name)?;
    let played = (suite.play)(&mut stage);
    field.interrupt.check()?;
    if let Err(error) = played {
        stage.verdict("the suite goes on to its end", &[format!("{error:#}")]);
    }
    Ok(stage.tally())
}
