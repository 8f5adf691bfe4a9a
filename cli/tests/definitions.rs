//! What is made from the definitions of commands and flags: completions, man pages, and times as they are written.

// Helpers outside #[test] functions unwrap what the test wrote itself.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the tests of manifests use the rest")]
mod common;

use common::{moat, moat_with};

#[test]
fn each_shell_has_completions() {
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef moat"), ("fish", "complete -c moat"), ("elvish", "moat")]
    {
        let run = moat(&format!("completion {shell}"));
        assert_eq!((run.status, &*run.stderr), (0, ""));
        for word in [word, "matrix", "chaos", "allow-for-load"] {
            assert!(run.stdout.contains(word), "{shell}: no {word}");
        }
    }
    assert_eq!(moat("completion tcsh").status, 2);
}

#[test]
fn each_command_has_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let run = moat_with(&["man", path], "");
    assert_eq!((run.status, run.stdout, run.stderr), (0, String::new(), String::new()));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(read("moat.1").contains("moat\\-reach(1)"));
    assert!(read("moat-status.1").contains("Exit status: 0 everything applied is in force"));
    assert!(read("moat-lab-chaos.1").contains("\\-\\-kills"));
    assert!(!folder.path().join("moat-help.1").exists());

    let run = moat_with(&["man", &format!("{path}/nowhere")], "");
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("cannot write man pages to"), "{}", run.stderr);
}

#[test]
fn a_time_may_have_a_unit() {
    for time in ["15s", "2m", "60"] {
        // It is a time, and then there is no cluster to ask.
        let run = moat(&format!("status --wait --timeout {time}"));
        assert!(run.status == 2 && run.stderr.contains("no kubeconfig"), "{time}: {}", run.stderr);
    }
    let run = moat("status --wait --timeout 1.5");
    assert!(run.stderr.contains("write it as 500ms, 60s, 10m or 2h"), "{}", run.stderr);
}
