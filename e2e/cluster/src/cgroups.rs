//! The nodes' control groups. Of all that a cluster has, they alone belong to no namespace: they are made, and removed, by name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use crate::daemon::wait_until;
use crate::plan::Plan;

/// Where everybody expects them.
const ROOT: &str = "/sys/fs/cgroup";

/// In the caller's own mount namespace, mounts /sys and the control groups anew: sysfs shows the network that it was mounted in, and what
/// is below the machine's /sys may be hidden or in part.
pub(crate) fn fresh_sys() -> Result<()> {
    while unmount("/sys", UnmountFlags::DETACH).is_ok() {}
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).context("cannot mount /sys")?;
    let own = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    let hierarchies = hierarchies(&own);
    if hierarchies.is_empty() {
        return mount("cgroup2", ROOT, "cgroup2", MountFlags::empty(), None)
            .context("cannot mount the control groups");
    }
    mount("cgroup", ROOT, "tmpfs", MountFlags::empty(), None)
        .with_context(|| format!("cannot mount {ROOT}"))?;
    for options in hierarchies {
        let folder = Path::new(ROOT).join(options.trim_start_matches("name="));
        fs::create_dir(&folder)?;
        let options = std::ffi::CString::new(options)?;
        mount("cgroup", &folder, "cgroup", MountFlags::empty(), Some(options.as_c_str()))
            .with_context(|| format!("cannot mount {}", folder.display()))?;
    }
    Ok(())
}

/// The mount options of each hierarchy of version 1, of `/proc/self/cgroup`: `4:cpu,cpuacct:/`.
fn hierarchies(own: &str) -> Vec<&str> {
    let options = own.lines().filter_map(|line| line.split(':').nth(1));
    options.filter(|options| !options.is_empty()).collect()
}

/// Makes the nodes' control groups, which the kubelets expect to find.
pub(crate) fn make(plan: &Plan) -> Result<()> {
    for root in roots()? {
        let own = root.join(plan.cgroup().trim_start_matches('/'));
        make_one(&own)?;
        for node in plan.nodes() {
            make_one(&own.join(&node.name))?;
        }
    }
    Ok(())
}

fn make_one(folder: &Path) -> Result<()> {
    let make = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let Some(parent) = folder.parent() else { return Ok(()) };
        // Version 1: an empty cpuset takes no process, and is not inherited.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (ours, theirs) = (folder.join(file), parent.join(file));
            if theirs.exists() && !parent.join("cgroup.controllers").exists() {
                fs::write(ours, fs::read_to_string(theirs)?.trim())?;
            }
        }
        // Version 2: what the parent has, its children may have.
        if let Ok(controllers) = fs::read_to_string(folder.join("cgroup.controllers")) {
            let all: Vec<String> = controllers.split_whitespace().map(|c| format!("+{c}")).collect();
            fs::write(folder.join("cgroup.subtree_control"), all.join(" "))?;
        }
        Ok(())
    };
    make().with_context(|| format!("cannot make the control group {}", folder.display()))
}

/// Removes a control group and all below it. Its processes have ended; the kernel may take a moment to notice.
pub(crate) fn remove(cgroup: &str) -> Result<()> {
    let cgroup = cgroup.trim_start_matches('/').to_owned();
    // Where they are found for sure: in a mount namespace of a thread that ends here.
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        fresh_sys()?;
        for root in roots()? {
            let own = root.join(&cgroup);
            wait_until(Duration::from_secs(5), || remove_tree(&own).is_ok(), || Ok(()))
                .with_context(|| format!("the control group {} does not go", own.display()))?;
        }
        Ok(())
    });
    thread.join().unwrap_or_else(|_| bail!("the thread that removes control groups panicked"))
}

/// Deepest first: the files in there are the kernel's, and go with the folder.
fn remove_tree(folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// The roots of all hierarchies.
fn roots() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let entries = fs::read_dir(root).with_context(|| format!("cannot read {ROOT}"))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.join("tasks").exists()).collect())
}

#[cfg(test)]
mod tests {
    use super::hierarchies;

    #[test]
    fn every_hierarchy_has_its_options() {
        let own = "9:name=systemd:/\n4:cpu,cpuacct:/a:b\n3:memory:/\n0::/\n";
        assert_eq!(hierarchies(own), ["name=systemd", "cpu,cpuacct", "memory"]);
        assert!(hierarchies("0::/user.slice\n").is_empty());
    }
}
