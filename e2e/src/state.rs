//! What a lab leaves on disk while it is up, and how its process is found again.
//!
//! ```text
//!   BASE/NAME/                one lab; BASE is /run/moat-lab, or a folder of the user's own
//!     front.json keeper.json  who made it, and the process that holds it: pid and start time
//!     control.sock            how `moat lab probe` talks to it
//!     keeper.log
//!     manifests ->            the folder that the agents watch: first baseline/, then the user's
//!     baseline/               the user's objects without the policies
//!     nodes/  pods/           Node objects of the lab's own making; the pods' statuses
//!     netns/                  the pods' network namespaces (in the lab's own mount namespace)
//!     node/NAME/              a node's agent: its log, its state, its socket
//! ```

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{LabError, Trying as _};

/// A process, such that another one with its number is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// In clock ticks since boot: field 22 of `/proc/PID/stat`.
    started: u64,
    boot: String,
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { pid, started: start_time(pid)?, boot })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A handle on it, if it is still there.
    fn open(&self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The handle is first: were the number given to another process now, the handle would be on that one, and the
        // start time not ours.
        let same = Self::of(u32::try_from(self.pid).ok()?).is_ok_and(|now| now == *self);
        (same && !has_ended(&fd)).then_some(fd)
    }

    /// Whether it is still there.
    pub fn is_alive(&self) -> bool {
        self.open().is_some()
    }

    /// Ends it for sure, and waits until it is gone. A lab's keeper is the first process of a process namespace: all the others in
    /// it end before it does.
    pub fn kill(&self) -> io::Result<()> {
        let Some(fd) = self.open() else { return Ok(()) };
        match pidfd_send_signal(&fd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], None) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|n| n > 0)
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command's name in parentheses, and may hold anything.
    let after = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let field = after.split_whitespace().nth(19).and_then(|f| f.parse().ok());
    field.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))
}

/// The folder of one lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// The folder of the lab `name`, which may not exist.
    pub fn named(name: &str) -> Result<Self, LabError> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 24 || !name.chars().all(good) {
            return Err(LabError::Name(name.to_owned()));
        }
        Ok(Self { path: base()?.join(name) })
    }

    /// The folder at this path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Makes it, empty, for this process. Whatever an earlier lab of that name left behind, of which nobody is alive, is removed first.
    pub fn create(&self) -> Result<(), LabError> {
        let _lock = sweep()?;
        if let Err(error) = fs::create_dir(&self.path) {
            if error.kind() == io::ErrorKind::AlreadyExists {
                return Err(LabError::AlreadyUp(self.name()));
            }
            return Err(error).trying(|| format!("cannot make {}", self.path.display()));
        }
        let own = Process::of(std::process::id()).trying(|| "cannot read /proc".into())?;
        self.write_json("front.json", &own)
    }

    /// The lab's name.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Writes a file of the folder as JSON, at once: a reader finds the old one or the new one.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), LabError> {
        let text = serde_json::to_vec_pretty(value).map_err(io::Error::from);
        text.and_then(|text| write_at_once(&self.join(name), &text))
            .trying(|| format!("cannot write {}", self.join(name).display()))
    }

    /// The process that holds the lab, if one was ever recorded.
    pub fn keeper(&self) -> Option<Process> {
        self.recorded("keeper.json")
    }

    fn recorded(&self, file: &str) -> Option<Process> {
        serde_json::from_slice(&fs::read(self.join(file)).ok()?).ok()
    }

    /// Whether its keeper is alive, or whoever is just making it.
    fn in_use(&self) -> bool {
        self.keeper().or_else(|| self.recorded("front.json")).is_some_and(|p| p.is_alive())
    }

    /// Ends the lab and removes the folder. Succeeds where there is nothing.
    pub fn remove(&self) -> Result<(), LabError> {
        if let Some(keeper) = self.keeper() {
            keeper.kill().trying(|| format!("cannot end the lab's process {}", keeper.pid()))?;
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).trying(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The last lines of a log.
    pub(crate) fn log_end(log: &Path) -> String {
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// Removes the folders of labs that ended without removing them: a crash, a kill, a reboot. While the file that it returns
/// is open nobody else does so: a folder that is just being made is not yet anybody's.
fn sweep() -> Result<fs::File, LabError> {
    let base = base()?;
    let lock_file = base.join(".lock");
    let lock = fs::File::create(&lock_file).and_then(|f| f.lock().map(|()| f));
    let lock = lock.trying(|| format!("cannot lock {}", lock_file.display()))?;
    let entries = fs::read_dir(&base).trying(|| format!("cannot read {}", base.display()))?;
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        let lab = StateDir::at(entry.path());
        if !lab.in_use() {
            lab.remove()?;
        }
    }
    Ok(lock)
}

/// Where the folders of labs are; nobody else may look into it.
fn base() -> Result<PathBuf, LabError> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    let uid = rustix::process::geteuid();
    let base = match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if uid.is_root() => PathBuf::from("/run/moat-lab"),
        Some(own) if Path::new(&own).is_dir() => Path::new(&own).join("moat-lab"),
        _ => std::env::temp_dir().join(format!("moat-lab-{}", uid.as_raw())),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&base)
        .trying(|| format!("cannot make {}", base.display()))?;
    let owner = fs::symlink_metadata(&base).trying(|| format!("cannot read {}", base.display()))?;
    if owner.uid() != uid.as_raw() || !owner.is_dir() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(LabError::Io { what: format!("{} belongs to somebody else", base.display()), source });
    }
    Ok(base)
}

/// Writes a file such that a reader finds the old text or the new one, whole.
pub(crate) fn write_at_once(path: &Path, text: &[u8]) -> io::Result<()> {
    // A name that no reader of manifests takes for one.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_its_number_and_its_start() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        let other = Process { started: process.started + 1, ..process.clone() };
        assert!(!other.is_alive());
        other.kill().unwrap();
        assert!(process.is_alive(), "a process with another start time is not ours to kill");
        process.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        process.kill().unwrap();
    }

    #[test]
    fn names() {
        assert!(StateDir::named("lab-1").is_ok());
        for bad in ["", "Lab", "a/b", "..", "a-name-that-is-much-too-long"] {
            assert!(matches!(StateDir::named(bad), Err(LabError::Name(_))), "{bad}");
        }
    }
}
