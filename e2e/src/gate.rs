//! The lab's own world: user (where we are not root), process, mount and network namespaces.
//!
//! ```text
//!   moat lab up|run ── front: arguments, progress, Ctrl-C                        host's namespaces
//!     └─ gate       ── enters new user and process namespaces, starts the keeper, records it, ends
//!          └─ keeper ── process 1 of the lab; own mounts, own network: the lab is in it   lab's namespaces
//!               └─ moat-agent, moat-cni, a thread in each network namespace
//! ```
//!
//! Process 1 is the whole lab: when it ends, however that comes about, the kernel ends every process in its
//! process namespace, and with them the mounts, the network namespaces and all that is in them. So there is nothing
//! that a crash could leave behind but a folder, and nothing of the host's that the lab could touch.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::error::{LabError, Trying as _};
use crate::state::{Process, StateDir};

/// The gate: runs the keeper in new namespaces, with this process's stdin and stdout, and ends. Call it before any thread is
/// started: a process with threads cannot enter a user namespace.
pub fn gate(lab: &StateDir) -> Result<(), LabError> {
    let root = rustix::process::geteuid().is_root();
    if !(root && unshare(CloneFlags::CLONE_NEWPID).is_ok()) {
        enter_user_namespace().map_err(LabError::NoNamespaces)?;
    }
    let log_path = lab.join("keeper.log");
    let log = fs::File::create(&log_path).trying(|| format!("cannot write {}", log_path.display()))?;
    let keeper = Command::new("/proc/self/exe")
        .args(["lab", "keeper"])
        .arg(lab.path())
        .stdin(Stdio::inherit())
        .stdout(Stdio::inherit())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .trying(|| "cannot start the lab's keeper".into())?;
    let process = Process::of(keeper.id()).trying(|| "cannot find the lab's keeper".into())?;
    lab.write_json("keeper.json", &process)
}

/// New user and process namespaces, in which we are root.
fn enter_user_namespace() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)?;
    // Without this the kernel lets nobody map groups.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))
}

/// The keeper's first steps, before it has threads: away from the terminal, own mounts, own network.
pub(crate) fn settle(netns_folder: &Path) -> Result<(), LabError> {
    // Ctrl-C on the terminal is for the front, which then ends us.
    rustix::process::setsid().trying(|| "cannot leave the terminal".into())?;
    // What `ps` shows.
    let _ = rustix::thread::set_name(c"moat-lab");
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(namespaces).map_err(|e| LabError::NoNamespaces(e.into()))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).trying(|| "cannot make the lab's mounts its own".into())?;
    let folder = netns_folder.display();
    fs::create_dir_all(netns_folder).trying(|| format!("cannot make {folder}"))?;
    mount("moat-lab", netns_folder, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, None)
        .trying(|| format!("cannot mount on {folder}"))?;
    // So that process numbers in /proc are the lab's own. Where a container has covered parts of /proc, the kernel refuses; the old
    // /proc serves all that we need.
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let _ = mount("proc", "/proc", "proc", plain, None);
    Ok(())
}
