//! Running programs: cargo, what it built, and what the system has.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The repository's root: the folder above this crate's.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The cargo that runs us, in the repository's root.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs it with our own output; an exit status other than 0 is an error that names the command.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", in_words(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", in_words(command));
    }
    Ok(())
}

/// The command as one would type it.
pub(crate) fn in_words(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = [program].into_iter().chain(command.get_args()).map(OsStr::to_string_lossy);
    format!("`{}`", words.collect::<Vec<_>>().join(" "))
}

/// Where cargo puts what it builds.
pub(crate) fn builds() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Where the release or debug binaries are.
pub(crate) fn binaries(profile: &str) -> PathBuf {
    builds().join(profile)
}

/// Where tools are kept that we install: `$MOAT_CACHE`, else `~/.cache/moat`.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("MOAT_CACHE") {
        return Ok(dir.into());
    }
    let home = env::var_os("HOME").context("neither MOAT_CACHE nor HOME is set: where may tools be kept?")?;
    Ok(PathBuf::from(home).join(".cache/moat"))
}

/// The program, if it is on the path, in the cache, or in one of the places that a plain user's path leaves out.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cached = cache().map(|dir| dir.join("bin")).into_iter();
    let more = ["/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(cached).chain(more).map(|dir| dir.join(program)).find(|file| file.is_file())
}
