//! `cargo xtask lab …`: what we ship, built as we ship it, then `moat lab …`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::process::{binaries, cargo, check};

/// Builds, then becomes `moat lab`, so that its exit status, its terminal and Ctrl-C are its own.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    build()?;
    let moat = binaries("release").join("moat");
    let error = Command::new(&moat).arg("lab").args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", moat.display()))
}

/// Builds the programs that the lab starts, for release.
pub(crate) fn build() -> Result<()> {
    check(&mut cargo(["build", "--release", "--bins", "-p", "moat", "-p", "moat-agent", "-p", "moat-cni"]))
}
