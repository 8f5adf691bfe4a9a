//! `cargo xtask image`: moat's programs as a container image, from scratch: static binaries and nothing else, built without Docker.
//!
//! ```text
//!   cargo build --target ARCH-unknown-linux-gnu, crt-static ──▶ moat-agent, moat-controller, moat-cni, moat ──▶ images/moat.tar
//! ```
//!
//! `Dockerfile` makes the same image for those who would rather have Docker build it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::archive::{Entry, Image, PASSWD};
use crate::process::{builds, cargo, check};

/// The image's name where nobody gives it another: as the manifests in `deploy/` have it.
const NAME: &str = concat!("moat.dev/moat:", env!("CARGO_PKG_VERSION"));
/// What it holds: a crate's program, and where it is in the image.
const PROGRAMS: &[(&str, &str)] = &[
    ("moat-agent", "usr/bin/moat-agent"),
    ("moat-controller", "usr/bin/moat-controller"),
    ("moat-cni", "usr/bin/moat-cni"),
    ("moat", "usr/bin/moat"),
];
/// What is built in a tenth of the time, for tests.
const DEV: &str = "image-dev";

/// What to call it, and where to put it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The image's name, with registry and tag
    #[arg(long, default_value = NAME)]
    name: String,
    /// The archive [default: images/moat.tar where cargo builds]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Cargo's profile: release, or image-dev, which is quicker to build and slower to run
    #[arg(long, default_value = "release")]
    profile: String,
}

/// Builds the programs and writes the archive, in the OCI's format.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let output = options.output.clone().unwrap_or_else(|| builds().join("images/moat.tar"));
    write(&options.name, &options.profile, &output)?;
    println!("{}: {} ({} MB)", options.name, output.display(), std::fs::metadata(&output)?.len() / 1_000_000);
    println!(
        "load it with: ctr -n k8s.io images import FILE, podman load -i FILE, or kind load image-archive FILE"
    );
    Ok(ExitCode::SUCCESS)
}

/// The archive for a cluster of this machine: with programs that are built as the tests are.
pub(crate) fn for_tests() -> Result<PathBuf> {
    let output = builds().join("images/moat-dev.tar");
    write(NAME, DEV, &output)?;
    Ok(output)
}

fn write(name: &str, profile: &str, output: &Path) -> Result<()> {
    // A target of its own: static binaries share nothing with the others.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cargo(["build", "--locked", "--bins", "--target", &target, "--profile", profile]);
    for (package, _) in PROGRAMS {
        build.args(["-p", package]);
    }
    // Without line tables, which are four fifths of it. Names of functions stay, for a panic's report.
    build.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    check(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let built = builds().join(&target).join(if profile == "dev" { "debug" } else { profile });
    let mut files = vec![
        ("etc/passwd", Entry::Text(PASSWD)),
        ("tmp", Entry::Scratch),
        // Runtimes name network namespaces by the old path.
        ("run", Entry::Folder),
        ("var/run", Entry::Link("/run")),
    ];
    for (program, path) in PROGRAMS {
        let program = built.join(program);
        static_or_error(&program)?;
        files.push((path, Entry::Program(program)));
    }
    let image =
        Image { name: name.to_owned(), files, entrypoint: vec!["/usr/bin/moat-agent"], command: vec!["run"] };
    if let Some(folder) = output.parent() {
        std::fs::create_dir_all(folder)?;
    }
    image.write(output).with_context(|| format!("cannot write {}", output.display()))
}

/// An image from scratch has no loader: a program that asks for one would not start, and say "no such file".
fn static_or_error(program: &Path) -> Result<()> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !said.contains("statically linked") && !said.contains("not a dynamic executable") {
        bail!("{} is not static:\n{said}", program.display());
    }
    Ok(())
}
