//! The plugin and its configuration, where the node's runtime looks for them: their being there says that pods can come.
//!
//! The kubelet calls its node Ready when its runtime finds a network configuration, and sends pods then. So the configuration is
//! written when this agent can give pods a network, after the plugin that it names, and both in one step each. They stay when the
//! agent ends: until the next one is there ADD fails and is tried again, and without a configuration a runtime could use
//! another's that lies beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use moat_cni::version::SpecVersion;
use serde_json::json;
use tokio::time;
use tracing::{error, info};

/// The plugin's file.
pub(crate) const PLUGIN: &str = "moat-cni";

/// Sorted before what other networks leave lying about: runtimes take the first.
pub(crate) const CONFIG: &str = "05-moat.conflist";

/// How long after a disk that did not take the files they are tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Where a node's runtime looks for plugins and configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniFolders {
    /// Where configurations are, as a rule `/etc/cni/net.d`; `None`: write none.
    pub conf: Option<PathBuf>,
    /// Where plugins are, as a rule `/opt/cni/bin`; `None`: install none.
    pub bin: Option<PathBuf>,
}

/// A file that is to be in its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    folder: PathBuf,
    name: &'static str,
    bytes: Vec<u8>,
    mode: u32,
}

/// Why a file is not in its place.
#[derive(Debug, thiserror::Error)]
pub enum CniFilesError {
    /// It is not known where this process is.
    #[error("cannot tell where this program and its socket are")]
    Here(#[source] io::Error),
    /// The plugin is not there to be installed.
    #[error("cannot read {}: the plugin is expected beside the agent's own program", .0.display())]
    Plugin(PathBuf, #[source] io::Error),
    /// A file cannot be put where it belongs.
    #[error("cannot write {}; pods cannot come before it is there", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

impl CniFolders {
    /// The files that are to be there for an agent that listens on `socket`, in the order in which they are to come: a
    /// configuration is an invitation to use the plugin that it names.
    pub(crate) fn wanted(&self, program: &Path, socket: &Path) -> Result<Vec<Wanted>, CniFilesError> {
        let mut wanted = Vec::new();
        if let Some(folder) = &self.bin {
            let plugin = program.with_file_name(PLUGIN);
            let bytes = fs::read(&plugin).map_err(|error| CniFilesError::Plugin(plugin, error))?;
            wanted.push(Wanted { folder: folder.clone(), name: PLUGIN, bytes, mode: 0o755 });
        }
        if let Some(folder) = &self.conf {
            wanted.push(Wanted { folder: folder.clone(), name: CONFIG, bytes: config(socket), mode: 0o644 });
        }
        Ok(wanted)
    }
}

/// What a file is called until it is whole.
pub(crate) fn unfinished(name: &str) -> String {
    format!(".{name}.new")
}

/// The version that every runtime knows which Kubernetes still runs with. Those that know a newer one take it from the list.
const OLDEST: SpecVersion = SpecVersion::V1_0_0;

/// The network configuration for an agent that listens on `socket`.
fn config(socket: &Path) -> Vec<u8> {
    let config = json!({
        "cniVersion": OLDEST.as_str(),
        "cniVersions": [OLDEST.as_str(), SpecVersion::NEWEST.as_str()],
        "name": "moat",
        "plugins": [{ "type": PLUGIN, "capabilities": { "portMappings": true }, "agentSocket": socket }],
    });
    format!("{config:#}\n").into_bytes()
}

/// What is left to be put in its place, so that the node's runtime sends pods.
#[derive(Debug)]
pub(crate) struct Invitation {
    left: Vec<Wanted>,
    /// Why it was not sent.
    failed: Option<String>,
}

impl Invitation {
    /// To use the agent that listens on `socket`.
    pub(crate) fn of(folders: &CniFolders, socket: &Path) -> Result<Self, CniFilesError> {
        let program = std::env::current_exe().map_err(CniFilesError::Here)?;
        let socket = std::path::absolute(socket).map_err(CniFilesError::Here)?;
        Ok(Self { left: folders.wanted(&program, &socket)?, failed: None })
    }

    /// Puts in place what is not yet. Cheap when everything is.
    pub(crate) fn send(&mut self) {
        while let Some(next) = self.left.first() {
            match next.put() {
                Ok(new) => {
                    info!(file = %next.path().display(), new, "there for the node's runtime");
                    self.left.remove(0);
                    self.failed = None;
                }
                Err(failed) => {
                    let why = format!("{:#}", anyhow::Error::new(failed));
                    if self.failed.as_ref() != Some(&why) {
                        error!("{why}");
                    }
                    return self.failed = Some(why);
                }
            }
        }
    }

    /// Ends when it is to be sent once more; never, where it was not refused.
    pub(crate) async fn try_again(&self) {
        match self.failed {
            Some(_) => time::sleep(AGAIN).await,
            None => std::future::pending().await,
        }
    }
}

impl Wanted {
    /// Puts the file in its place in one step, unless it is there already. Returns whether it was not.
    pub(crate) fn put(&self) -> Result<bool, CniFilesError> {
        if self.is_there() {
            return Ok(false);
        }
        self.write().map_err(|error| CniFilesError::Write(self.folder.join(self.name), error))?;
        Ok(true)
    }

    fn is_there(&self) -> bool {
        let path = self.folder.join(self.name);
        let mode = fs::symlink_metadata(&path)
            .ok()
            .filter(|meta| meta.is_file())
            .map(|meta| meta.permissions().mode());
        mode.is_some_and(|mode| mode & 0o777 == self.mode)
            && fs::read(&path).is_ok_and(|bytes| bytes == self.bytes)
    }

    fn write(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        // Neither the name of a plugin that anybody asks for, nor an ending that runtimes read.
        let new = self.folder.join(unfinished(self.name));
        // Left by an agent that died here, perhaps; and a link must not lead elsewhere.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(self.mode).open(&new)?;
        file.write_all(&self.bytes)?;
        // Whatever the umask took away.
        file.set_permissions(fs::Permissions::from_mode(self.mode))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&new, self.folder.join(self.name))?;
        File::open(&self.folder)?.sync_all()
    }

    /// Where it belongs.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_comes_before_the_configuration_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let (program, bin, conf) =
            (dir.path().join("moat-agent"), dir.path().join("bin"), dir.path().join("net.d"));
        let folders = CniFolders { conf: Some(conf.clone()), bin: Some(bin.clone()) };
        let socket = Path::new("/run/moat/agent.sock");
        let missing = folders.wanted(&program, socket).unwrap_err();
        assert!(matches!(missing, CniFilesError::Plugin(path, _) if path == dir.path().join(PLUGIN)));

        fs::write(dir.path().join(PLUGIN), "one").unwrap();
        let wanted = folders.wanted(&program, socket).unwrap();
        assert_eq!(
            wanted.iter().map(Wanted::path).collect::<Vec<_>>(),
            [bin.join(PLUGIN), conf.join(CONFIG)]
        );
        assert!(wanted.iter().all(|file| file.put().unwrap()));
        assert!(wanted.iter().all(|file| !file.put().unwrap()), "what is there is left alone");
        assert_eq!(fs::read(bin.join(PLUGIN)).unwrap(), b"one");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&bin.join(PLUGIN)), mode(&conf.join(CONFIG))), (0o755, 0o644));
        let written: serde_json::Value =
            serde_json::from_slice(&fs::read(conf.join(CONFIG)).unwrap()).unwrap();
        let expected = json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["1.0.0", "1.1.0"],
            "name": "moat",
            "plugins": [{"type": "moat-cni", "capabilities": {"portMappings": true}, "agentSocket": "/run/moat/agent.sock"}],
        });
        assert_eq!(written, expected);

        // Another release, a half-written file that a crash left, and one that nobody can run.
        fs::write(dir.path().join(PLUGIN), "two").unwrap();
        fs::write(bin.join(".moat-cni.new"), "half").unwrap();
        assert!(folders.wanted(&program, socket).unwrap()[0].put().unwrap());
        fs::set_permissions(bin.join(PLUGIN), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(folders.wanted(&program, socket).unwrap()[0].put().unwrap());
        assert_eq!((fs::read(bin.join(PLUGIN)).unwrap(), mode(&bin.join(PLUGIN))), (b"two".to_vec(), 0o755));
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 1, "nothing else is left lying about");
    }

    #[test]
    fn nothing_is_written_where_nothing_is_asked_for() {
        let wanted = CniFolders::default().wanted(Path::new("/nowhere/moat-agent"), Path::new("/s")).unwrap();
        assert_eq!(wanted, []);
    }
}
