//! The `moat` command: can A reach B, and why.
//!
//! ```text
//!   moat reach A B --port 80/TCP -f DIR     one question, with reasons; exit status 0 allowed, 1 denied, 2 error
//!   moat matrix -f DIR --port 80/TCP        every pod to every other
//!   moat lab run -f DIR                     the same with real packets (`moat-lab`)
//!   moat drops [--follow], moat flows       what the agents of a node or lab drop and let pass (`moat_cni::stream`)
//! ```
//!
//! The answers are the engine's (`moat-policies`), read from manifests as strictly as an API server reads them
//! (`moat-manifests`). One module a subcommand; the rest is what they share.

mod agents;
mod columns;
mod drops;
mod endpoint;
mod flows;
mod input;
mod lab;
mod matrix;
mod output;
mod port;
mod reach;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Answers what a cluster's NetworkPolicies allow, from its manifests.
#[derive(Parser)]
#[command(
    name = "moat",
    version,
    max_term_width = 110,
    after_help = "Examples:
  May the web pod talk to the api, and why not?
      moat reach shop/web shop/api --port 8080/TCP -f manifests/
  Who may talk to whom?
      moat matrix -f manifests/ --port 80/TCP --port 53/UDP
  Do real packets agree?
      moat lab run -f manifests/
  What is being dropped, and why?
      moat drops --follow
  The same questions for what is in a cluster now:
      kubectl get ns,nodes,pods,networkpolicies -A -o yaml | moat matrix -f - --port 80/TCP"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Reach(reach::Args),
    Matrix(matrix::Args),
    Lab(lab::Args),
    Drops(drops::Args),
    Flows(flows::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Reach(args) => reach::run(&args),
        Command::Matrix(args) => matrix::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Drops(args) => drops::run(&args),
        Command::Flows(args) => flows::run(&args),
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        ExitCode::from(2)
    })
}
