//! What the kernel tests share: a network namespace for each, and `nft` to read back what we wrote.

use std::process::Command;
use std::thread;

use rustix::thread::UnshareFlags;

/// Runs a test in a network namespace of its own, on a thread that ends with it. Without root, the test
/// binary runs itself again for this one test, in a user and network namespace.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    const CHILD: &str = "MOAT_TEST_IN_NAMESPACE";
    if !rustix::process::geteuid().is_root() && std::env::var_os(CHILD).is_none() {
        let name = thread::current().name().expect("tests run on named threads").to_owned();
        let status = Command::new("unshare")
            .args(["--map-root-user", "--user", "--net", "--mount", "--"])
            .arg(std::env::current_exe().expect("the test binary has a path"))
            .args(["--exact", &name, "--nocapture"])
            .env(CHILD, "1")
            .status()
            .expect("unshare (util-linux) is installed");
        assert!(status.success(), "{name} failed in its user namespace");
        return;
    }
    let thread = thread::spawn(move || {
        unshare_network();
        run("ip", &["link", "set", "lo", "up"]);
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Moves the calling thread into a new network namespace.
#[allow(unsafe_code)]
pub(crate) fn unshare_network() {
    // SAFETY: only the network namespace changes, and with it no descriptor, memory or file system.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
}

/// Runs a command in the calling thread's namespace; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// Like [`run`], for a command that is expected to fail; returns what it complained of.
pub(crate) fn run_failing(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(!output.status.success(), "{program} {arguments:?} was expected to fail");
    String::from_utf8(output.stderr).expect("text")
}

/// Whether this process has its capabilities over the machine, not over a namespace only.
pub(crate) fn in_first_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}
