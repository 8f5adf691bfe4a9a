//! What the lab's tests share: the real binaries, folders to change, labs that are removed at the end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]
#![allow(unreachable_pub, dead_code, reason = "no test file uses all of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moat_lab::{Info, Report};
use tempfile::TempDir;

/// The folder of the binaries. They are built here, since cargo builds for a test only what is in its own package;
/// `MOAT_BIN_DIR` names binaries to test instead, say installed ones.
pub fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("MOAT_BIN_DIR") {
            return dir.into();
        }
        // target/PROFILE/deps/this-test
        let own = std::env::current_exe().unwrap();
        let profile = own.parent().and_then(Path::parent).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--package",
            "moat",
            "--package",
            "moat-agent",
            "--package",
            "moat-cni",
        ]);
        build.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
        profile.to_owned()
    })
}

/// The moat command.
pub fn moat() -> Command {
    Command::new(bin_dir().join("moat"))
}

pub fn examples_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples").canonicalize().unwrap()
}

/// A copy of a recipe, to be changed.
pub fn copy_of(example: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(examples_dir().join(example)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// A lab that is up, and is removed when this is dropped.
pub struct UpLab {
    pub name: String,
    pub info: Info,
}

impl UpLab {
    pub fn up(folder: &Path, flags: &[&str]) -> Self {
        let name = unique_name();
        let output = up(&name, folder, flags);
        assert!(output.status.success(), "{}", stderr(&output));
        Self { info: serde_json::from_slice(&output.stdout).unwrap(), name }
    }

    /// Probes: the exit status, and the report where there is one.
    pub fn probe(&self, flags: &[&str]) -> (i32, Result<Report, String>) {
        let output =
            moat().args(["lab", "probe", "-o", "json", "--name", &self.name]).args(flags).output().unwrap();
        outcome(&output)
    }
}

impl Drop for UpLab {
    fn drop(&mut self) {
        let status = moat().args(["lab", "down", "--name", &self.name]).status();
        assert!(status.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}

pub fn up(name: &str, folder: &Path, flags: &[&str]) -> Output {
    moat().args(["lab", "up", "-o", "json", "--name", name, "-f"]).arg(folder).args(flags).output().unwrap()
}

/// `moat lab run`, as it is when it prints JSON.
pub fn run(folder: &Path, flags: &[&str]) -> (i32, Result<Report, String>) {
    outcome(&moat().args(["lab", "run", "-o", "json", "-f"]).arg(folder).args(flags).output().unwrap())
}

pub fn outcome(output: &Output) -> (i32, Result<Report, String>) {
    let report = serde_json::from_slice(&output.stdout).map_err(|_| stderr(output));
    (output.status.code().unwrap_or(-1), report)
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A name that no other test's lab has.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The cells that differ, in words.
pub fn differences(report: &Report) -> Vec<String> {
    report.differences().map(ToString::to_string).collect()
}

/// Waits for something that is about to happen.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process of this number runs. One that has ended, all of its threads too, and that nobody has asked about yet
/// (an orphan whose init is slow) does not.
pub fn exists(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let zombie = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'));
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map(Iterator::count).unwrap_or_default();
    threads > 1 || !zombie
}
