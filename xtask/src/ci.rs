//! `cargo xtask ci`: what every change must pass, the quick checks first.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{cargo, check, root};
use crate::setup::cargo_tool;
use crate::steps::Steps;
use crate::{docs, fuzz, test};

/// How long each fuzz target runs: long enough to see that all inputs of the corpus pass, and to try some new ones.
const FUZZ: Duration = Duration::from_secs(8);

/// All checks, then every test.
pub(crate) fn run() -> Result<ExitCode> {
    let mut steps = Steps::new("ci", 7);
    steps.step("tools", tools)?;
    steps.step("format", || {
        check(&mut cargo(["fmt", "--all", "--check"]))?;
        check(&mut cargo(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
    })?;
    steps.step("links between pages", docs::links)?;
    steps.step("lints", || {
        check(&mut cargo(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    })?;
    steps.step("rustdoc", || {
        check(cargo(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    // Late, since cargo-deny is long to build where it is missing.
    steps.step("licences and sources", deny)?;
    steps.step("decoders against hostile input", || fuzz::run(&fuzz::Options::each_for(FUZZ)).map(drop))?;
    test::run(&[])
}

/// rustfmt and clippy from rustup, if they are missing.
fn tools() -> Result<()> {
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if !answers(program) {
            check(Command::new("rustup").args(["component", "add", component]))
                .with_context(|| format!("{program} is missing"))?;
        }
    }
    Ok(())
}

/// rustup leaves a program in place for components that are not installed: it must run, not just be there.
fn answers(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
}

/// The licences, bans and sources of deny.toml. The advisory database is on GitHub, which a closed machine does not
/// reach: then that part is left out, and we say so.
fn deny() -> Result<()> {
    let program = cargo_tool("cargo-deny")?;
    let deny = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).current_dir(root());
        command
    };
    let rules = ["check", "licenses", "bans", "sources"];
    check(deny(&["--workspace", "--locked"]).args(rules))?;
    check(deny(&["--manifest-path", "fuzz/Cargo.toml"]).args(rules))?;
    if !deny(&["fetch", "db"]).output().is_ok_and(|out| out.status.success()) {
        eprintln!("advisories: NOT CHECKED, their database cannot be fetched from here");
        return Ok(());
    }
    check(&mut deny(&["--workspace", "--locked", "check", "--disable-fetch", "advisories"]))
}
