//! `cargo xtask crds`: the definitions of moat's Kubernetes types, written from the types.

use std::process::ExitCode;

use anyhow::Result;

use crate::process::{cargo, check, root};

/// Writes crd/yaml, or says what in it has drifted.
pub(crate) fn run(only_check: bool) -> Result<ExitCode> {
    let mut command = cargo(["run", "--quiet", "-p", "moat-crd", "--example", "crds", "--"]);
    command.arg(root().join("crd/yaml"));
    if only_check {
        command.arg("--check");
    }
    check(&mut command)?;
    Ok(ExitCode::SUCCESS)
}
