//! What a cluster leaves on the machine while it is up, and how all of it goes.
//!
//! ```text
//!   /var/tmp/moat-cluster/NAME/
//!     front.json        who made it: what is not yet anybody's is not removed by others
//!     keeper.json       the process that holds the cluster; with it goes every other one
//!     restore.json      what was changed on the machine, to be put back
//!     plan.json  kubeconfig  keeper.log  logs/  pki/  objects/
//!     nodes/NODE/       config/ logs/, and the node's own /var/lib, /var/log, /etc/cni/net.d
//! ```
//!
//! On a disk, not in memory: each node unpacks its own images.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use moat_lab::Process;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cgroups;
use crate::plan::{self, Plan, good_name};

const BASE: &str = "/var/tmp/moat-cluster";
const FRONT: &str = "front.json";
const KEEPER: &str = "keeper.json";
const PLAN: &str = "plan.json";
/// Is there from before the first control group is made.
pub(crate) const CGROUPS_MADE: &str = "cgroups-made";
const RESTORE: &str = "restore.json";
/// What is too small on most machines for several kubelets, and how much is enough.
const RAISED: &[(&str, u64)] = &[("/proc/sys/fs/inotify/max_user_instances", 1024)];

/// The folder of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct State {
    path: PathBuf,
    name: String,
}

impl State {
    /// The folder of the cluster `name`, which may not exist.
    pub(crate) fn named(name: &str) -> Result<Self> {
        if !good_name(name) {
            bail!("`{name}` is no name for a cluster: lower-case letters, digits and dashes, at most 24");
        }
        Ok(Self { path: Path::new(BASE).join(name), name: name.to_owned() })
    }

    /// Whether its keeper is alive, or whoever is just making it.
    fn in_use(&self) -> bool {
        self.keeper().is_some() || self.read::<Process>(FRONT).is_some_and(|front| front.is_alive())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn keeper_log(&self) -> PathBuf {
        self.path.join("keeper.log")
    }

    /// The process that holds the cluster, while it lives.
    pub(crate) fn keeper(&self) -> Option<Process> {
        self.read::<Process>(KEEPER).filter(Process::is_alive)
    }

    /// The plan of a cluster that is up.
    pub(crate) fn plan(&self) -> Result<Plan> {
        let up = self.keeper().and_then(|_| self.read(PLAN));
        up.with_context(|| {
            format!("no cluster `{}` is up: make one with `cargo xtask cluster up`", self.name)
        })
    }

    /// Makes the folder for a new cluster. What a dead one of that name left is removed first; a living one is an error.
    pub(crate) fn create(&self, plan: &Plan) -> Result<()> {
        let base = self.path.parent().unwrap_or(Path::new(BASE));
        let make = |path: &Path| fs::DirBuilder::new().mode(0o700).recursive(true).create(path);
        make(base).with_context(|| format!("cannot make {}", base.display()))?;
        // While it is held, no folder is made or removed by another `up`.
        let lock = fs::File::create(base.join(".lock")).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.with_context(|| format!("cannot lock {}", base.display()))?;
        if self.in_use() {
            bail!("the cluster `{}` is up already: look at it with `cargo xtask cluster status`", self.name);
        }
        self.remove()?;
        make(&self.path).with_context(|| format!("cannot make {}", self.path.display()))?;
        self.write(FRONT, &Process::of(std::process::id()).context("cannot read /proc")?)?;
        self.write(PLAN, plan)
    }

    /// Records the keeper.
    pub(crate) fn set_keeper(&self, keeper: &Process) -> Result<()> {
        self.write(KEEPER, keeper)
    }

    /// Raises what is too small, and remembers what it was.
    pub(crate) fn raise(&self) -> Result<()> {
        let mut before = BTreeMap::new();
        for (file, enough) in RAISED {
            let now: u64 =
                fs::read_to_string(file)?.trim().parse().with_context(|| format!("{file} is no number"))?;
            if now < *enough {
                before.insert((*file).to_owned(), now);
            }
        }
        // First the memory, then the change: a crash between the two changes nothing.
        self.write(RESTORE, &before)?;
        for file in before.keys() {
            let enough = RAISED.iter().find(|(raised, _)| raised == file).map_or(0, |(_, enough)| *enough);
            fs::write(file, enough.to_string()).with_context(|| format!("cannot raise {file}"))?;
        }
        Ok(())
    }

    /// Ends the cluster's processes and removes everything of it. Goes on after a failure, and tells all of them. Succeeds where
    /// there is nothing; says whether there was something.
    pub(crate) fn remove(&self) -> Result<bool> {
        if !self.path.exists() {
            return Ok(false);
        }
        let mut failed = Vec::new();
        // Process 1 of the cluster's process namespace: all the others in it end before it does, and the mounts and the networks
        // end with them.
        if let Some(Err(error)) = self.read::<Process>(KEEPER).map(|keeper| keeper.kill()) {
            bail!("cannot end the cluster's process: {error}");
        }
        for (file, before) in self.read::<BTreeMap<String, u64>>(RESTORE).unwrap_or_default() {
            if let Err(error) = fs::write(&file, before.to_string()) {
                failed.push(format!("cannot put {before} back into {file}: {error}"));
            }
        }
        if self.path.join(CGROUPS_MADE).exists()
            && let Err(error) = cgroups::remove(&plan::cgroup(&self.name))
        {
            failed.push(format!("{error:#}"));
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                failed.push(format!("cannot remove {}: {error}", self.path.display()));
            }
            _ => {}
        }
        if failed.is_empty() { Ok(true) } else { bail!("{}", failed.join("\n")) }
    }

    fn read<T: DeserializeOwned>(&self, file: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path.join(file)).ok()?).ok()
    }

    fn write(&self, file: &str, value: &impl Serialize) -> Result<()> {
        let path = self.path.join(file);
        let new = self.path.join(format!(".{file}.new"));
        fs::write(&new, serde_json::to_vec_pretty(value)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The first process of a node, by its number here: a child of the keeper's with the node's name.
pub(crate) fn node_process(keeper: &Process, node: &str) -> Option<i32> {
    let mut all =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.find(|pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        field("Name:") == Some(node) && field("PPid:") == Some(&keeper.pid().to_string())
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_a_dead_cluster_left_is_removed_and_a_living_one_is_not() {
        let base = tempfile::tempdir().unwrap();
        let state = State { path: base.path().join("one"), name: "one".into() };
        let mut keeper = Command::new("sleep").arg("60").spawn().unwrap();
        fs::create_dir(&state.path).unwrap();
        state.set_keeper(&Process::of(keeper.id()).unwrap()).unwrap();
        let plan = crate::plan::tests::plan(1);
        let refused = state.create(&plan).unwrap_err();
        assert!(refused.to_string().contains("is up already"), "{refused}");
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        fs::write(state.path.join("old"), "").unwrap();
        state.create(&plan).unwrap();
        assert!(!state.path.join("old").exists());
        let refused = state.create(&plan).unwrap_err();
        assert!(refused.to_string().contains("is up already"), "we are just making it: {refused}");
        assert!(state.plan().is_err(), "it has no keeper yet");
    }

    #[test]
    fn removing_ends_the_keeper_and_puts_back_what_was_changed() {
        let base = tempfile::tempdir().unwrap();
        let state = State { path: base.path().join("one"), name: "one".into() };
        assert!(!state.remove().unwrap(), "nothing is there");
        let mut keeper = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(keeper.id()).unwrap();
        fs::create_dir(&state.path).unwrap();
        state.set_keeper(&process).unwrap();
        let setting = base.path().join("setting");
        fs::write(&setting, "1024").unwrap();
        state.write(RESTORE, &BTreeMap::from([(setting.display().to_string(), 128)])).unwrap();
        assert!(state.remove().unwrap());
        keeper.wait().unwrap();
        assert!(!process.is_alive() && !state.path.exists());
        assert_eq!(fs::read_to_string(setting).unwrap(), "128");
    }
}
