//! `cargo xtask fuzz`: the decoders of what comes from outside, against inputs that look for trouble.
//!
//! ```text
//!   fuzz/corpus/TARGET  kept in the repository ─┐
//!   CACHE/fuzz/TARGET   what earlier runs found ┴─▶ libFuzzer ──▶ CACHE/fuzz/TARGET
//!                                                       └─ an input that breaks it ──▶ fuzz/artifacts/TARGET
//! ```
//!
//! cargo-fuzz builds with the stable compiler: coverage instrumentation without a sanitizer, which safe Rust can do
//! without.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{builds, cache, check, find, in_words, root};
use crate::setup::{self, Need, cargo_tool};
use crate::steps::Steps;

/// The runtime of libFuzzer is C++.
const COMPILER: Need = Need { program: "c++", package: "g++", why: "compiles libFuzzer" };
/// The longest input, in bytes: as `LONGEST` in fuzz/src/lib.rs.
const LONGEST: usize = 64 << 10;

/// What to do with the targets.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this target: one of the files in fuzz/targets
    target: Option<String>,
    /// How long each target runs: 90s, 10m, 2h
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = duration)]
    time: Duration,
    /// Run nothing: add to fuzz/corpus what earlier runs found that reaches more than the corpus does
    #[arg(long, conflicts_with = "time")]
    keep: bool,
}

impl Options {
    /// All targets, each for so long.
    pub(crate) fn each_for(time: Duration) -> Self {
        Options { target: None, time, keep: false }
    }
}

/// Builds the targets, then runs them one after the other; stops at the first input that breaks one.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let targets = targets(options.target.as_deref())?;
    let mut steps = Steps::new("fuzz", targets.len() + 2);
    steps.step("cargo-fuzz", tools)?;
    steps.step("build", || check(&mut cargo_fuzz("build")?))?;
    for target in &targets {
        steps.step(target, || if options.keep { keep(target) } else { attack(target, options.time) })?;
    }
    println!("xtask fuzz: {} targets, nothing broke, in {:.0} s", targets.len(), steps.seconds());
    Ok(ExitCode::SUCCESS)
}

/// The names of the targets, which are those of the files.
fn targets(only: Option<&str>) -> Result<Vec<String>> {
    let folder = root().join("fuzz/targets");
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        targets.extend(entry?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    targets.sort();
    let Some(only) = only else { return Ok(targets) };
    if !targets.iter().any(|target| target == only) {
        bail!("there is no target {only}; there are {}", targets.join(", "));
    }
    Ok(vec![only.to_owned()])
}

fn tools() -> Result<()> {
    if find(COMPILER.program).is_none() {
        setup::install(&[&COMPILER])?;
    }
    cargo_tool("cargo-fuzz").map(drop)
}

fn cargo_fuzz(what: &str) -> Result<Command> {
    let mut command = Command::new(cargo_tool("cargo-fuzz")?);
    command.args(["fuzz", what, "--sanitizer", "none", "--fuzz-dir"]).arg(root().join("fuzz"));
    command.current_dir(root());
    // A folder of its own: nothing that is built here can be used by other builds.
    command.arg("--target-dir").arg(builds().join("fuzz"));
    Ok(command)
}

/// The inputs of the repository, and those that earlier runs found.
fn corpora(target: &str) -> Result<(PathBuf, PathBuf)> {
    let found = cache()?.join("fuzz").join(target);
    let kept = root().join("fuzz/corpus").join(target);
    for folder in [&found, &kept] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok((found, kept))
}

fn attack(target: &str, time: Duration) -> Result<()> {
    let (found, kept) = corpora(target)?;
    let mut command = cargo_fuzz("run")?;
    command.arg(target).args([&found, &kept]).arg("--");
    command.arg(format!("-max_total_time={}", time.as_secs().max(1)));
    command.arg(format!("-max_len={LONGEST}"));
    command.args(["-timeout=10", "-rss_limit_mb=2048"]);
    // libFuzzer says much that is of use only when something broke.
    let output = command.output().with_context(|| format!("cannot run {}", in_words(&command)))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{said}");
        bail!(
            "{} failed: {}; mend what broke, and keep the input as a test",
            in_words(&command),
            output.status
        );
    }
    // As in `#25474 DONE cov: 8298 ft: 27986 corp: 1431/1380Kb …`.
    if let Some(done) = said.lines().find(|line| line.contains("DONE")) {
        println!("{target}: {}", done.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

fn keep(target: &str) -> Result<()> {
    let (found, kept) = corpora(target)?;
    let mut command = cargo_fuzz("run")?;
    command.arg(target).args([&kept, &found]).args(["--", "-merge=1"]).arg(format!("-max_len={LONGEST}"));
    check(&mut command)
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("it must be a number and s, m or h, as in 90s".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "it must begin with a number, as in 90s".to_owned())?;
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(duration("90").is_err() && duration("s").is_err() && duration("1d").is_err());
    }

    /// Names and versions of a lock file's packages.
    fn locked(file: &str) -> BTreeMap<String, Vec<String>> {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let mut packages: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let value = |line: &str, field: &str| {
            Some(line.strip_prefix(field)?.strip_prefix(" = \"")?.trim_end_matches('"').to_owned())
        };
        let mut lines = text.lines();
        while let Some(name) = lines.find_map(|line| value(line, "name")) {
            let version = lines.next().and_then(|line| value(line, "version")).unwrap();
            packages.entry(name).or_default().push(version);
        }
        packages
    }

    /// What is fuzzed is what is shipped.
    #[test]
    fn both_lock_files_hold_the_same_versions() {
        let ours = locked("Cargo.lock");
        assert!(ours.len() > 50, "{ours:?}");
        for (name, versions) in locked("fuzz/Cargo.lock") {
            let Some(shipped) = ours.get(&name) else { continue };
            assert!(
                versions.iter().all(|version| shipped.contains(version)),
                "fuzz/Cargo.lock has {name} {versions:?}, Cargo.lock has {shipped:?}: \
                 cp Cargo.lock fuzz/ && cargo metadata --manifest-path fuzz/Cargo.toml"
            );
        }
    }
}
