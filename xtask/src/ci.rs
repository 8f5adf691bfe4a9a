//! `cargo xtask ci`: what every change must pass, the quick checks first.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::process::{cache, cargo, check, find, root};
use crate::steps::Steps;
use crate::{docs, test};

/// All checks, then every test.
pub(crate) fn run() -> Result<ExitCode> {
    let mut steps = Steps::new("ci", 6);
    steps.step("tools", tools)?;
    steps.step("format", || check(&mut cargo(["fmt", "--all", "--check"])))?;
    steps.step("links between pages", docs::links)?;
    steps.step("lints", || {
        check(&mut cargo(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    })?;
    steps.step("rustdoc", || {
        check(cargo(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    // Late, since cargo-deny is long to build where it is missing.
    steps.step("licences and sources", deny)?;
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
    if find("cargo-deny").is_none() {
        let root = cache()?;
        let install = cargo(["install", "--locked", "--quiet", "cargo-deny", "--root"]).arg(&root).status();
        anyhow::ensure!(
            install.is_ok_and(|s| s.success()),
            "cannot install cargo-deny into {}",
            root.display()
        );
    }
    Ok(())
}

/// rustup leaves a program in place for components that are not installed: it must run, not just be there.
fn answers(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
}

/// The licences, bans and sources of deny.toml; cargo-deny itself comes from crates.io into the cache. The advisory database is on GitHub, which a closed machine does not
/// reach: then that part is left out, and we say so.
fn deny() -> Result<()> {
    if find("cargo-deny").is_none() {
        check(cargo(["install", "--locked", "--quiet", "cargo-deny", "--root"]).arg(cache()?))?;
    }
    let program = find("cargo-deny").context("cargo-deny is not where it was installed")?;
    let deny = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["--workspace", "--locked"]).args(args).current_dir(root());
        command
    };
    check(&mut deny(&["check", "licenses", "bans", "sources"]))?;
    if !deny(&["fetch", "db"]).output().is_ok_and(|out| out.status.success()) {
        eprintln!("advisories: NOT CHECKED, their database cannot be fetched from here");
        return Ok(());
    }
    check(&mut deny(&["check", "--disable-fetch", "advisories"]))
}
