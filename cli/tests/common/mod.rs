//! Running the `moat` binary.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What one run left behind.
pub(crate) struct Run {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `moat` with words separated by spaces, in the folder of these tests.
pub(crate) fn moat(words: &str) -> Run {
    moat_with(&words.split_whitespace().collect::<Vec<_>>(), "")
}

/// Runs `moat` with these arguments and standard input.
pub(crate) fn moat_with(arguments: &[&str], input: &str) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_moat"))
        .args(arguments)
        .current_dir(tests())
        // Whose tests these are may have a cluster.
        .env("KUBECONFIG", tests().join("no-such-kubeconfig"))
        .env_remove("KUBERNETES_SERVICE_HOST")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A run that does not read it closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { status: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The folder of these tests.
pub(crate) fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Compares with `golden/NAME`. With BLESS=1 in the environment, writes it instead.
#[track_caller]
pub(crate) fn golden(name: &str, text: &str) {
    let path = tests().join("golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "golden/{name} differs (BLESS=1 accepts this):\n{text}");
}
