//! `cargo xtask cluster …`: Kubernetes and moat's image, built, then the local cluster's own program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::kubernetes::Kubernetes;
use crate::process::{binaries, cargo, check, root};
use crate::steps::Steps;
use crate::{image, kubernetes};

/// A cluster that is made for tests: how, and what is run on it, one after the other.
struct Round {
    up: &'static str,
    flags: &'static [&'static str],
    suites: &'static [(&'static str, &'static [&'static str])],
}

const ROUNDS: [Round; 2] = [
    Round {
        up: "up, both address families",
        flags: &["--dual-stack"],
        suites: &[("the upstream NetworkPolicy suite", &["e2e"]), ("moat's own suites", &["suite"])],
    },
    Round {
        up: "up, with kube-proxy in iptables mode",
        flags: &["--dual-stack", "--proxy", "iptables"],
        suites: &[
            ("moat's own suite of Services", &["suite", "services"]),
            // The cluster has no pod network afterwards.
            ("moat is taken off it", &["suite", "uninstall"]),
        ],
    },
];
/// Their cluster's name.
const TESTS: &str = "tests";
/// How many steps [`test()`] takes.
pub(crate) const STEPS: usize = 1 + ROUNDS[0].steps() + ROUNDS[1].steps();

/// Builds, then becomes `moat-cluster`, so that its exit status, its terminal and Ctrl-C are its own.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    let mut command = program()?;
    command.args(args);
    // A cluster that is up knows where its programs are; and to take one down, nothing need be built.
    if args.iter().any(|arg| arg == "up") && !args.iter().any(|arg| arg == "--help") {
        told_of(&mut command, &kubernetes::ensure()?)?;
        let given = args.iter().any(|arg| arg.to_string_lossy().starts_with("--image"));
        let reference = args.iter().any(|arg| arg == "reference" || arg == "--network=reference");
        if std::env::var_os("MOAT_IMAGE").is_none() && !given && !reference {
            command.env("MOAT_IMAGE", image::for_tests()?);
        }
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// The suites that need a real cluster, on ones that are made for them. Says whether they passed.
pub(crate) fn test(steps: &mut Steps, kubernetes: &Kubernetes) -> Result<bool> {
    let image = steps.step("cluster: moat's image", image::for_tests)?;
    let cluster = |args: &[&str]| -> Result<Command> {
        let mut command = program()?;
        told_of(&mut command, kubernetes)?;
        command.env("MOAT_IMAGE", &image).args(["--name", TESTS]).args(args);
        Ok(command)
    };
    let mut passed = true;
    for round in &ROUNDS {
        passed &= round.run(steps, &cluster)?;
    }
    Ok(passed)
}

impl Round {
    const fn steps(&self) -> usize {
        2 + self.suites.len()
    }

    /// Says whether all of it passed. The cluster goes, whatever happens.
    fn run(&self, steps: &mut Steps, cluster: &impl Fn(&[&str]) -> Result<Command>) -> Result<bool> {
        // Of a run that was killed.
        check(&mut cluster(&["down"])?)?;
        steps.step(&format!("cluster: {}", self.up), || check(cluster(&["up"])?.args(self.flags)))?;
        let passed = self.suites.iter().try_fold(true, |passed, (what, words)| {
            let run = || cluster(words)?.status().context("cannot run the suite");
            steps.step(&format!("cluster: {what}"), run).map(|status| passed && status.success())
        });
        steps.step("cluster: down", || check(&mut cluster(&["down"])?))?;
        passed
    }
}

fn program() -> Result<Command> {
    check(&mut cargo(["build", "--quiet", "-p", "moat-cluster"]))?;
    Ok(Command::new(binaries("debug").join("moat-cluster")))
}

fn told_of(command: &mut Command, kubernetes: &Kubernetes) -> Result<()> {
    command.env("PATH", kubernetes.path()?).env("MOAT_KUBERNETES", &kubernetes.programs);
    command.env("MOAT_IMAGES", std::env::join_paths(&kubernetes.images)?);
    command.env("MOAT_DEPLOY", root().join("deploy/overlays/local"));
    Ok(())
}
