//! The lab without root, where the kernel lets users make namespaces.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// A user who is nobody special.
const NOBODY: u32 = 65534;

/// A command as that user, or as ourselves where we are not root.
fn as_somebody(program: &Path, runtime_dir: &Path) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(program);
    command.env("XDG_RUNTIME_DIR", runtime_dir).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Copies what the user must be able to read.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

/// Whether the kernel lets that user make namespaces, asked by a program that is not ours. Ubuntu's, by default, does not.
fn users_may(runtime_dir: &Path) -> bool {
    let mut unshare = as_somebody(Path::new("unshare"), runtime_dir);
    unshare.args(["--user", "--map-root-user", "--net", "--mount", "true"]);
    unshare.output().unwrap().status.success()
}

#[test]
fn run_up_probe_and_down_without_root() {
    let place = tempfile::tempdir().unwrap();
    open_to_all(place.path());
    let (folder, runtime) = (place.path().join("dir"), place.path().join("run"));
    copy(&common::examples_dir().join("ingress-external-cidr"), &folder);
    fs::create_dir(&runtime).unwrap();
    [&folder, &runtime].into_iter().for_each(|p| open_to_all(p));
    let bin = place.path().join("bin");
    fs::create_dir(&bin).unwrap();
    open_to_all(&bin);
    for name in ["moat", "moat-agent", "moat-cni"] {
        let from = common::bin_dir().join(name);
        // The folder of the binaries may be closed to others.
        fs::hard_link(&from, bin.join(name)).or_else(|_| fs::copy(&from, bin.join(name)).map(drop)).unwrap();
    }
    let lab = |words: &[&str]| {
        let mut command = as_somebody(&bin.join("moat"), &runtime);
        command.arg("lab").args(words).output().unwrap()
    };
    let dir = folder.to_str().unwrap();

    if !users_may(&runtime) {
        let refused = lab(&["run", "-f", dir]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(common::stderr(&refused).contains("Run it as root, or"), "{}", common::stderr(&refused));
        return;
    }
    let (status, report) = common::outcome(&lab(&["run", "-o", "json", "-f", dir]));
    let report = report.unwrap();
    assert_eq!((status, common::differences(&report)), (0, vec![]));
    assert!(report.hosts.iter().any(|h| h.node.is_none()), "the world outside is there");

    let up = lab(&["up", "-f", dir]);
    let text = String::from_utf8_lossy(&up.stdout).into_owned();
    assert!(up.status.success(), "{}", common::stderr(&up));
    assert!(text.contains("--user --preserve-credentials"), "{text}");
    let (status, report) = common::outcome(&lab(&["probe", "-o", "json"]));
    assert_eq!((status, report.map(|r| common::differences(&r))), (0, Ok(vec![])));
    // As the text says one can look around.
    let pod = text.lines().find(|l| l.starts_with("dmz/")).unwrap();
    let target = pod.split_whitespace().last().unwrap();
    let mut enter = as_somebody(Path::new("nsenter"), &runtime);
    enter.args(["--target", target, "--user", "--preserve-credentials", "--net", "cat", "/proc/net/dev"]);
    let seen = enter.output().unwrap();
    assert!(String::from_utf8_lossy(&seen.stdout).contains("eth0"), "{}", common::stderr(&seen));
    assert!(lab(&["down"]).status.success());
    let left: Vec<_> =
        fs::read_dir(runtime.join("moat-lab")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}
