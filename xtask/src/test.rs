//! `cargo xtask test`: every test there is, on a machine that has nothing but Rust.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::{env, io};

use anyhow::{Context, Result};

use crate::process::{binaries, cache, cargo, check};
use crate::steps::Steps;
use crate::{cluster, kubernetes, setup};

/// Sets up, builds, tests, and where all is to be tested, tests on a real cluster; ends with one line that says it all.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    let words: Vec<_> = args.iter().take_while(|arg| *arg != "--").collect();
    let says = |start: &str| words.iter().any(|arg| arg.to_string_lossy().starts_with(start));
    let some = says("-p") || says("--package");
    let selected: &[&str] = if some { &["test"] } else { &["test", "--workspace"] };
    // The kubelets of a real cluster need root; without it, that part is left out, and we say so.
    let all = args.is_empty();
    let on_cluster = all && setup::rootly();
    let mut steps = Steps::new("test", if on_cluster { 4 + cluster::STEPS } else { 3 });
    steps.step("programs that the tests call", setup::ensure)?;
    let kubernetes = match on_cluster {
        true => Some(steps.step("Kubernetes, built once", kubernetes::ensure)?),
        false => None,
    };
    steps.step("build", || check(cargo(selected).args(&words).arg("--no-run")))?;
    let mut command = cargo(selected);
    command.arg("--no-fail-fast").args(args).stdout(Stdio::piped());
    if !some {
        // The end-to-end suites start moat's programs. Those that were built just now will do.
        command.env("MOAT_BIN_DIR", binaries(if says("--release") { "release" } else { "debug" }));
    }
    let mut path = tools_path()?;
    if let Some(kubernetes) = &kubernetes {
        // For tests that want a real API server and nothing else of a cluster.
        command.env("MOAT_KUBERNETES", &kubernetes.programs);
        path.extend(env::split_paths(&kubernetes.path()?));
    }
    command.env("PATH", env::join_paths(path)?);
    let (tally, passed) = steps.step("run", || tests(command))?;
    let suites = kubernetes.map(|kubernetes| cluster::test(&mut steps, &kubernetes)).transpose()?;
    let passed = passed && suites != Some(false);
    let verdict = if passed { "all tests passed" } else { "TESTS FAILED" };
    let cluster = match suites {
        Some(true) => ", and the suites on a real cluster,",
        Some(false) => ", and suites on a real cluster FAILED,",
        None if all => "; the suites on a real cluster were NOT RUN, since they need root;",
        None => "",
    };
    println!("xtask test: {verdict}: {tally}{cluster} in {:.0} s", steps.seconds());
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the tests find other people's programs.
fn tools_path() -> Result<Vec<PathBuf>> {
    let path = env::var_os("PATH").unwrap_or_default();
    let tools = [cache()?.join("bin")].into_iter().chain(env::split_paths(&path));
    Ok(tools.chain(["/usr/sbin".into(), "/sbin".into()]).collect())
}

/// Shows what the tests print, and counts. All of them are run even if some fail: one run says everything that is wrong.
fn tests(mut command: Command) -> Result<(Tally, bool)> {
    let mut child = command.spawn().context("cannot run cargo test")?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        let mut ours = io::stdout().lock();
        for line in BufReader::new(output).lines() {
            let line = line.context("cannot read cargo test's output")?;
            writeln!(ours, "{line}")?;
            tally.read(&line);
        }
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    Ok((tally, status.success()))
}

/// The sum of the `test result:` lines, one of which each test binary prints.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Adds `test result: ok. 12 passed; 0 failed; 1 ignored; …`; other lines say nothing.
    fn read(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn the_tally_is_the_sum_of_the_result_lines() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
            "test a::b ... ok",
            "the test result: none",
        ] {
            tally.read(line);
        }
        assert_eq!(tally, Tally { passed: 16, failed: 2, ignored: 1 });
    }
}
