//! Programs that are to run as long as the cluster does: started, watched, started again, as systemd would.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitOptions, wait};

/// As long as this a program is left alone that has ended.
const PAUSE: Duration = Duration::from_secs(1);

/// How a program is run.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) name: String,
    program: OsString,
    arguments: Vec<OsString>,
    log: PathBuf,
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Running {
    daemon: Daemon,
    child: Child,
}

impl Daemon {
    /// Its log goes to `NAME.log` in the folder of logs.
    pub(crate) fn new<A: Into<OsString>>(
        name: &str,
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = A>,
        logs: PathBuf,
    ) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { name: name.into(), program: program.into(), arguments, log: logs.join(format!("{name}.log")) }
    }

    /// Starts it.
    pub(crate) fn start(self) -> Result<Running> {
        let child = self.spawn().with_context(|| format!("cannot start {}", self.name))?;
        Ok(Running { daemon: self, child })
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let errors = log.try_clone()?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir("/");
        command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn()
    }
}

impl Running {
    /// Waits until it does what it is for. That it ended meanwhile is an error.
    pub(crate) fn wait_until(&mut self, patience: Duration, ready: impl FnMut() -> bool) -> Result<()> {
        let (name, log) = (self.daemon.name.clone(), self.daemon.log.clone());
        let alive = || match self.child.try_wait()? {
            Some(status) => {
                bail!("{name} ended ({status}); its log, {}, ends with:\n{}", log.display(), log_end(&log))
            }
            None => Ok(()),
        };
        wait_until(patience, ready, alive).with_context(|| {
            format!("{} is not ready; its log is {}", self.daemon.name, self.daemon.log.display())
        })
    }
}

/// Waits for a condition; `alive` fails when it cannot come any more.
pub(crate) fn wait_until(
    patience: Duration,
    mut ready: impl FnMut() -> bool,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<()> {
    let deadline = std::time::Instant::now() + patience;
    while !ready() {
        alive()?;
        if std::time::Instant::now() > deadline {
            bail!("not in {} s", patience.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Watches over programs for ever, and reaps whatever else ends here: for the first process of a process namespace, whose children
/// all orphans become. Never returns.
pub(crate) fn hold(mut all: Vec<Running>) -> ! {
    loop {
        let Ok(Some((pid, status))) = wait(WaitOptions::empty()) else {
            // No child at all; some may come from outside.
            thread::sleep(PAUSE);
            continue;
        };
        let Some(ended) = all.iter_mut().find(|r| Pid::from_child(&r.child) == pid) else { continue };
        let name = &ended.daemon.name;
        eprintln!("{name} ended ({status:?}), and is started again");
        ended.child = loop {
            thread::sleep(PAUSE);
            match ended.daemon.spawn() {
                Ok(child) => break child,
                Err(error) => eprintln!("{name} cannot be started again: {error}"),
            }
        };
    }
}

/// The last lines of a log.
pub(crate) fn log_end(log: &std::path::Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
