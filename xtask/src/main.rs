//! `cargo xtask`: the chores of this repository, in Rust so that there is nothing else to install first.
//!
//! ```text
//! setup ──▶ programs that the tests call (apt, go), once
//! lab ──▶ build release binaries ──▶ moat lab …
//! cluster ──▶ build Kubernetes, once; moat's image ──▶ moat-cluster …
//! image ──▶ static binaries ──▶ an OCI archive
//! test  ──▶ setup ──▶ build every binary ──▶ cargo test --workspace ──▶ cluster up, its suites, down
//! ci    ──▶ fmt, clippy, rustdoc, links, cargo deny ──▶ test
//! fuzz  ──▶ cargo-fuzz, once ──▶ build the targets ──▶ run each for a while
//! bench ──▶ every benchmark, or one of them
//! crds  ──▶ the YAML of moat's Kubernetes types
//! docs  ──▶ every link between our pages resolves; mdbook, where there is one
//! ```
//!
//! Nothing here decides anything about moat: it calls cargo and what cargo built.

mod archive;
mod bench;
mod ci;
mod cluster;
mod crds;
mod docs;
mod fuzz;
mod image;
mod kubernetes;
mod lab;
mod process;
mod setup;
mod steps;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the moat repository.
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "See it work:      cargo xtask lab run -f policies/examples/three-tier-web\n\
                  Before a commit:  cargo xtask ci\n\n\
                  Tools that are installed for the tests go to $MOAT_CACHE (default ~/.cache/moat)."
)]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what the tests need and cargo cannot fetch (as root), or say which packages to install
    Setup {
        /// Build Kubernetes for the local cluster as well: 10 to 20 minutes, once
        #[arg(long)]
        kubernetes: bool,
    },
    /// Build moat, moat-agent and moat-cni for release, then run `moat lab` with the arguments given
    ///
    /// `cargo xtask lab run -f DIR` builds node and pod namespaces for the manifests in DIR, sends real packets, and
    /// prints the matrix; `lab up`, `lab probe` and `lab down` do it in steps. Needs no package; runs as root, and
    /// without root where the kernel lets users make network namespaces.
    Lab {
        /// Handed to `moat lab` as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// A real Kubernetes cluster on this machine: `up`, `status`, `kubectl`, `e2e`, `suite`, `bench`, `down`
    ///
    /// Builds Kubernetes from its Go modules into the cache, once. Each node is a set of namespaces with a kubelet and a
    /// containerd of its own; needs root, and nothing else: no Docker, no registry. `down` leaves nothing behind.
    Cluster {
        /// Handed to `moat-cluster` as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Write moat's programs as a container image, without Docker: an OCI archive of static binaries, from scratch
    Image(image::Options),
    /// Run every test: set up, build, `cargo test --workspace`, the lab with real packets included; then, as root and where no
    /// arguments are given, the suites on a real Kubernetes cluster
    Test {
        /// Handed to `cargo test` as they are, e.g. `-p moat-policies` or a test's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Check everything that a change must pass: format, lints, rustdoc, links, licences, then every test
    Ci,
    /// Attack the decoders of what comes from outside with inputs that look for trouble
    ///
    /// Installs cargo-fuzz into the cache, and a C++ compiler (as root), if they are missing. What a run finds is kept in
    /// the cache for the next one; an input that breaks a target stays in fuzz/artifacts.
    Fuzz(fuzz::Options),
    /// Run the benchmarks and print their tables; the figures of record are in docs/figures.md
    Bench {
        /// Only this one
        #[arg(value_enum)]
        only: Option<bench::Bench>,
        /// Fewer rounds, to see that it works (latency)
        #[arg(long)]
        quick: bool,
    },
    /// Write the definitions of moat's Kubernetes types to crd/yaml, from the types
    Crds {
        /// Write nothing; fail where a file is not what the types say
        #[arg(long)]
        check: bool,
    },
    /// Check that every link between the repository's own pages resolves, and build the book where mdbook is installed
    Docs,
}

fn main() -> ExitCode {
    let done = match Args::parse().chore {
        Chore::Setup { kubernetes: true } => kubernetes::run(),
        Chore::Setup { kubernetes: false } => setup::run(),
        Chore::Lab { args } => lab::run(&args),
        Chore::Cluster { args } => cluster::run(&args),
        Chore::Image(options) => image::run(&options),
        Chore::Test { args } => test::run(&args),
        Chore::Ci => ci::run(),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Bench { only, quick } => bench::run(only, quick),
        Chore::Crds { check } => crds::run(check),
        Chore::Docs => docs::run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
