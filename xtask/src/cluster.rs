//! `cargo xtask cluster …`: Kubernetes and moat, built, then the local cluster's own program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::process::{binaries, cargo, check};
use crate::{kubernetes, lab};

/// Builds, then becomes `moat-cluster`, so that its exit status, its terminal and Ctrl-C are its own.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    check(&mut cargo(["build", "--quiet", "-p", "moat-cluster"]))?;
    let mut command = Command::new(binaries("debug").join("moat-cluster"));
    command.args(args);
    // A cluster that is up knows where its programs are; and to take one down, nothing need be built.
    if args.iter().any(|arg| arg == "up") && !args.iter().any(|arg| arg == "--help") {
        let kubernetes = kubernetes::ensure()?;
        command.env("PATH", kubernetes.path()?).env("MOAT_KUBERNETES", &kubernetes.programs);
        // Whoever sets it has built them.
        if std::env::var_os("MOAT_BIN_DIR").is_none() {
            lab::build()?;
            if args.iter().any(|arg| arg == "--controller") {
                check(&mut cargo(["build", "--release", "--bins", "-p", "moat-controller"]))?;
            }
            command.env("MOAT_BIN_DIR", binaries("release"));
        }
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}
