//! DEL: by the agent where there is one, by the plugin itself where there is none.

use std::path::Path;
use std::time::Duration;

use crate::client::{self, Unanswered};
use crate::error::{CniError, code};
use crate::failpoint;
use crate::link;
use crate::name::host_ifname;
use crate::note::{self, Note};
use crate::protocol::{Command, Del, Outcome};

/// Has the attachment removed. With no agent on `socket`, its link is removed here and a [`note`] left for the next agent;
/// that is a success: the pod is gone, and its addresses are released by the agent.
pub fn remove(socket: &Path, del: Del, patience: Duration) -> Result<Outcome, CniError> {
    match client::call(socket, Command::Del(del.clone()), patience) {
        Err(Unanswered::NoAgent(_)) => {}
        other => return Ok(other?),
    }
    let folder = note::folder(socket);
    let noted = leave_note(&folder, &del);
    failpoint::reach("note left");
    remove_link(&del, noted.as_ref().err())?;
    failpoint::reach("link removed");
    if let Err(error) = noted {
        // The agent sees at its start that the link of a record is gone, and releases it all the same.
        eprintln!("moat-cni: no note can be left in {}: {error}", folder.display());
    }
    // An agent may have started meanwhile, and read the notes before ours was there.
    match client::call(socket, Command::Del(del.clone()), patience) {
        Err(Unanswered::NoAgent(_)) => Ok(Outcome::Done),
        Err(Unanswered::Failed(error)) => Err(error),
        Ok(outcome) => {
            failpoint::reach("asked again");
            if outcome == Outcome::Done {
                // What it tells of is done. Should it stay, it is about a link that is no more.
                let _ = note::remove(&folder, &host_ifname(&del.container_id, &del.ifname));
            }
            Ok(outcome)
        }
    }
}

fn leave_note(folder: &Path, del: &Del) -> std::io::Result<()> {
    let name = host_ifname(&del.container_id, &del.ifname);
    let note = Note {
        container_id: del.container_id.clone(),
        ifname: del.ifname.clone(),
        link: link::index(&name)?,
        boot: note::boot_id(),
    };
    note::write(folder, &note)
}

fn remove_link(del: &Del, no_note: Option<&std::io::Error>) -> Result<(), CniError> {
    let name = host_ifname(&del.container_id, &del.ifname);
    let removed = match link::index(&name) {
        Ok(None) => Ok(()),
        Ok(Some(index)) => link::remove(index),
        Err(error) => Err(error),
    };
    removed.map_err(|error| {
        let note = no_note.map_or(String::new(), |why| format!("; no note can be left for it either: {why}"));
        CniError::new(
            code::TRY_AGAIN,
            format!("no agent runs, and the plugin cannot remove the link {name}"),
            format!("{error}{note}; is moat-agent running on this node?"),
        )
    })
}
