//! Notes about interfaces that the plugin removed while no agent ran.
//!
//! ```text
//!   plugin                                          agent
//!   connect: nobody listens                         …
//!   write the note        (1)                       read the notes, work them off
//!   remove the link                                 take the node over
//!   connect once more     (2)                       listen            (3)
//!     somebody listens: ask him, drop the note      read the notes once more, work them off   (4)
//!     nobody: done                                  serve
//! ```
//!
//! If (2) finds nobody, it came before (3), so (1) came before (4): no note is overlooked, however the two meet.
//!
//! A note is about one link, named by its index in one boot of the machine. So a note that was left behind, however long
//! ago, says nothing about another link that a container of the same name got later.
//!
//! The notes lie beside the agent's socket: what they tell of is gone after the machine's next start, and so is that folder
//! where it is in memory, as `/run` is.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failpoint;
use crate::name::{host_ifname, is_host_ifname};

/// The longest note that is read, in bytes.
const MAX_NOTE: u64 = 4096;

/// One attachment that its runtime wants to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// The index of the link that the plugin found and then removed; `None` where there was no link any more.
    pub link: Option<u32>,
    /// Which boot of the machine `link` is of.
    pub boot: String,
}

impl Note {
    /// The name of the link that it is about.
    pub fn host_ifname(&self) -> String {
        host_ifname(&self.container_id, &self.ifname)
    }
}

/// The folder of the notes for the agent that listens on `socket`.
pub fn folder(socket: &Path) -> PathBuf {
    socket.parent().unwrap_or(Path::new("/")).join("removed")
}

/// Which boot of the machine this is; empty where the kernel does not say.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Leaves `note` in `folder`: wholly or not at all.
pub fn write(folder: &Path, note: &Note) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let name = note.host_ifname();
    let new = folder.join(format!(".{name}.{}", std::process::id()));
    let mut file = File::create(&new)?;
    failpoint::reach("note begun");
    let text = serde_json::to_vec(note)?;
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&new, folder.join(&name))) {
        // A disk that took half of it may not take the removal either; the agent clears such files away.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    File::open(folder)?.sync_all()
}

/// Takes the note about this link back, if there is one.
pub fn remove(folder: &Path, host_ifname: &str) -> io::Result<()> {
    match fs::remove_file(folder.join(host_ifname)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The notes in a folder, by the name of the link that each is about. What cannot be read as a note is `Err`; what a plugin
/// began and did not end is cleared away.
pub fn read_all(folder: &Path) -> io::Result<Vec<(String, io::Result<Note>)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut notes = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if is_host_ifname(name) {
            notes.push((name.to_owned(), read(&path, name)));
        } else if name.starts_with('.') && is_stale(name) {
            let _ = fs::remove_file(&path);
        }
    }
    notes.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(notes)
}

/// Whether the plugin that writes this file is gone.
fn is_stale(name: &str) -> bool {
    let pid = name.rsplit('.').next().filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()));
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

fn read(path: &Path, name: &str) -> io::Result<Note> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_NOTE).read_to_end(&mut text)?;
    let note: Note = serde_json::from_slice(&text)?;
    if note.host_ifname() == name {
        Ok(note)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it is about another link than its name says"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(id: &str) -> Note {
        Note { container_id: id.into(), ifname: "eth0".into(), link: Some(7), boot: boot_id() }
    }

    #[test]
    fn what_is_left_is_found_until_it_is_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(&root.path().join("agent.sock"));
        assert!(read_all(&folder).unwrap().is_empty(), "no folder, no notes");
        write(&folder, &note("a")).unwrap();
        write(&folder, &note("b")).unwrap();
        write(&folder, &note("b")).unwrap();
        let found: Vec<Note> = read_all(&folder).unwrap().into_iter().map(|(_, n)| n.unwrap()).collect();
        assert_eq!(found.len(), 2);
        assert!(found.contains(&note("a")) && found.contains(&note("b")));
        remove(&folder, &note("a").host_ifname()).unwrap();
        remove(&folder, &note("a").host_ifname()).unwrap();
        assert_eq!(read_all(&folder).unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_note_is_said_to_be_none() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        fs::write(folder.join("moat0123456789a"), "{").unwrap();
        fs::write(folder.join("moat0123456789b"), serde_json::to_vec(&note("a")).unwrap()).unwrap();
        fs::write(folder.join("README"), "not ours").unwrap();
        // Half of a note, by a process that is gone: no process has this number.
        fs::write(folder.join(".moat0123456789c.4194305"), "{").unwrap();
        let found = read_all(folder).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|(_, note)| note.is_err()));
        assert!(!folder.join(".moat0123456789c.4194305").exists());
        assert!(folder.join("README").exists());
    }
}
