//! `cargo xtask image`: moat's programs as a container image, from scratch: static binaries and nothing else, built without Docker.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::archive::{Entry, Image, PASSWD};
use crate::process::{builds, cargo, check};

/// The programs that run in a cluster: in the image under /usr/bin.
const PROGRAMS: &[(&str, &str, &str)] =
    &[("moat-agent", "moat-agent", "usr/bin/moat-agent"), ("moat-cni", "moat-cni", "usr/bin/moat-cni")];

/// What to call it, and where to put it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The image's name, with registry and tag
    #[arg(long, default_value = concat!("moat.dev/moat:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// The archive [default: images/moat.tar where cargo builds]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Builds the programs for it and writes the archive, in the OCI's format.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    // A target of its own: static binaries share nothing with the others.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cargo(["build", "--release", "--locked", "--bins", "--target", &target]);
    for (package, ..) in PROGRAMS {
        build.args(["-p", package]);
    }
    check(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let built = builds().join(&target).join("release");
    let mut files = vec![("etc/passwd", Entry::Text(PASSWD)), ("tmp", Entry::Scratch)];
    for (_, program, path) in PROGRAMS {
        let program = built.join(program);
        static_or_error(&program)?;
        files.push((path, Entry::Program(program)));
    }
    let image = Image {
        name: options.name.clone(),
        files,
        entrypoint: vec!["/usr/bin/moat-agent"],
        command: vec!["run"],
    };
    let output = options.output.clone().unwrap_or_else(|| builds().join("images/moat.tar"));
    if let Some(folder) = output.parent() {
        std::fs::create_dir_all(folder)?;
    }
    image.write(&output).with_context(|| format!("cannot write {}", output.display()))?;
    println!("{}: {} ({} MB)", image.name, output.display(), std::fs::metadata(&output)?.len() / 1_000_000);
    println!(
        "load it with: ctr -n k8s.io images import FILE, podman load -i FILE, or kind load image-archive FILE"
    );
    Ok(ExitCode::SUCCESS)
}

/// An image from scratch has no loader: a program that asks for one would not start, and say "no such file".
fn static_or_error(program: &PathBuf) -> Result<()> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !said.contains("statically linked") && !said.contains("not a dynamic executable") {
        bail!("{} is not static:\n{said}", program.display());
    }
    Ok(())
}
