//! The `moat` command: can A reach B, and why.
//!
//! ```text
//!   moat reach A B --port 80/TCP -f DIR     one question, with reasons; exit status 0 allowed, 1 denied, 2 error
//!   moat matrix -f DIR --port 80/TCP        every pod to every other
//!   moat lab run -f DIR                     the same with real packets (`moat-lab`)
//!   moat reach A B, moat matrix             the same of the cluster that the kubeconfig names
//!   moat status [--wait]                    whether everything applied is in force there, and where not
//!   moat drops [--follow], moat flows       what the agents of a node or lab drop and let pass (`moat_cni::stream`)
//!   moat completion SHELL, moat man DIR     the same definitions, for shells and for man
//! ```
//!
//! The answers are the engine's (`moat-policies`), read from manifests as strictly as an API server reads them
//! (`moat-manifests`), or from an API server (`moat-apiserver`). One module a subcommand; the rest is what they share.

mod agents;
mod cluster;
mod columns;
mod definitions;
mod drops;
mod duration;
mod endpoint;
mod flows;
mod input;
mod lab;
mod matrix;
mod output;
mod port;
mod reach;
mod status;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// Answers what a cluster's NetworkPolicies allow, from its manifests or from the cluster itself.
#[derive(Parser)]
#[command(
    name = "moat",
    version,
    max_term_width = 110,
    after_help = "Examples:
  May the web pod talk to the api, and why not? In the cluster; and by manifests, before they are applied:
      moat reach shop/web shop/api --port 8080/TCP
      moat reach shop/web shop/api --port 8080/TCP -f manifests/
  Who may talk to whom?
      moat matrix -n shop --port 80/TCP --port 53/UDP
  Is what was applied in force on all nodes?
      moat status --wait
  Do real packets agree?
      moat lab run -f manifests/
  What is being dropped, and why?
      moat drops --follow --node worker-1"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Reach(reach::Args),
    Matrix(matrix::Args),
    Status(status::Args),
    Lab(lab::Args),
    Drops(drops::Args),
    Flows(flows::Args),
    Completion(definitions::Completion),
    Man(definitions::Man),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Reach(args) => reach::run(&args),
        Command::Matrix(args) => matrix::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Drops(args) => drops::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::Completion(args) => definitions::completion(Cli::command(), &args),
        Command::Man(args) => definitions::man(Cli::command(), &args),
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        ExitCode::from(2)
    })
}
