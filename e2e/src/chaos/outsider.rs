//! Somebody on the node who edits the kernel's tables.

use std::io;
use std::process::Stdio;

use tokio::process::Command;

use super::plan::Edit;
use crate::space::Space;

/// How the kernel answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It did as it was told, or so it says.
    Done,
    /// It refused, in its words.
    Refused(String),
    /// There is no `nft` here.
    NoNft,
}

/// Tries an edit in a node's namespace.
pub(crate) async fn edit(space: &Space, edit: Edit) -> io::Result<Answer> {
    let run = async move {
        let mut nft = Command::new("nft");
        nft.args(edit.command().split(' ')).stdin(Stdio::null()).kill_on_drop(true);
        nft.output().await
    };
    match space.run(run).await? {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Answer::NoNft),
        Err(error) => Err(error),
        Ok(output) if output.status.success() => Ok(Answer::Done),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Ok(Answer::Refused(said.lines().next().unwrap_or_default().to_owned()))
        }
    }
}
