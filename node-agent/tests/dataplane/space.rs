//! A network namespace with a thread that lives in it.

use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace. It goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Space {
    jobs: Sender<Job>,
    thread: i32,
}

impl Space {
    pub(crate) fn new(name: &str) -> Self {
        let (jobs, queue) = channel::<Job>();
        let (born, birth) = channel();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
                born.send(nix::unistd::gettid().as_raw()).expect("somebody waits");
                queue.iter().for_each(|job| job());
            })
            .expect("a thread");
        let space = Self { jobs, thread: birth.recv().expect("the thread lives") };
        space.ip("link set lo up");
        space
    }

    /// The thread's number, by which `ip` finds the namespace.
    pub(crate) fn thread(&self) -> i32 {
        self.thread
    }

    /// Runs something on the thread that lives here. Threads, sockets and processes that it makes are born here.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job = Box::new(move || drop(done.send(job())));
        self.jobs.send(job).expect("the thread lives");
        result.recv().expect("the job does not panic")
    }

    /// `ip` with these arguments.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command(&format!("ip {arguments}"))
    }

    /// A command that succeeds; its output.
    pub(crate) fn command(&self, line: &str) -> String {
        let (ok, out, err) = self.try_command(line);
        assert!(ok, "{line}: {err}");
        out
    }

    /// A command; whether it succeeded, its output and its errors.
    pub(crate) fn try_command(&self, line: &str) -> (bool, String, String) {
        let line = line.to_owned();
        self.run(move || {
            let mut words = line.split_whitespace();
            let program = words.next().expect("a program");
            let output = Command::new(program).args(words).output().expect(program);
            let text = |bytes| String::from_utf8(bytes).expect("text");
            (output.status.success(), text(output.stdout), text(output.stderr))
        })
    }

    pub(crate) fn sysctl(&self, name: &'static str, value: &'static str) {
        self.run(move || std::fs::write(format!("/proc/sys/net/{name}"), value)).expect(name);
    }
}

/// Set where a test runs in a user namespace already.
const CHILD: &str = "MOAT_TEST_IN_NAMESPACE";

/// Runs a test. Without root, the test binary runs itself again for this one test in a user namespace.
pub(crate) fn privileged(test: impl FnOnce()) {
    if nix::unistd::geteuid().is_root() || std::env::var_os(CHILD).is_some() {
        return test();
    }
    in_user_namespace(test);
}

/// Runs a test in a user namespace of its own, root or not: with power over its own network, and over nothing else.
pub(crate) fn in_user_namespace(test: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    let name = thread::current().name().expect("tests run on named threads").to_owned();
    let status = Command::new("unshare")
        .args(["--map-root-user", "--user", "--net", "--mount", "--"])
        .arg(std::env::current_exe().expect("the test binary has a path"))
        .args(["--exact", &name, "--nocapture"])
        .env(CHILD, "1")
        .status()
        .expect("unshare (util-linux) is installed");
    assert!(status.success(), "{name} failed in its user namespace");
}
