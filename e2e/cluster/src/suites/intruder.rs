//! Somebody on every node who tries to change moat's tables all the time: refused each time, as long as somebody keeps their owner.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::field::{Field, NodeView};
use crate::network::Network;

/// Between two attempts on a node: far below the second or two that a pod takes to be replaced.
const PERIOD: Duration = Duration::from_millis(50);
/// The first Linux whose tables can have an owner.
const OWNED_SINCE: (u32, u32) = (6, 9);
/// What is tried, and what makes it undone should it work.
const ATTEMPT: &[&str] = &["add", "chain", "inet", "moat", "intruder"];
const UNDONE: &[&str] = &["delete", "chain", "inet", "moat", "intruder"];

/// The attempts, until they are asked about.
#[derive(Debug)]
pub(super) struct Intruders {
    stop: Arc<AtomicBool>,
    threads: Vec<(String, JoinHandle<Tally>)>,
}

#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    worked: usize,
    /// What was neither.
    other: Option<String>,
}

impl Intruders {
    /// Begins on every node; nobody where this kernel cannot guard tables.
    pub(super) fn begin(field: &Field) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let owned = rustix::system::uname().release().to_str().is_ok_and(can_own);
        let nodes: &[NodeView] = if owned { &field.nodes } else { &[] };
        let begin = |node: &NodeView| {
            let (network, stop) = (node.network.clone(), stop.clone());
            (node.name.clone(), thread::spawn(move || intrude(&network, &stop)))
        };
        Self { threads: nodes.iter().map(begin).collect(), stop }
    }

    /// Ends, and tells what worked that may not, or could not be tried.
    pub(super) fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let told = |(node, thread): (String, JoinHandle<Tally>)| {
            let Ok(tally) = thread.join() else { return Some(format!("{node}: the intruder panicked")) };
            match tally {
                Tally { worked: 1.., .. } => Some(format!(
                    "{node}: moat's table could be changed, {} times of {}",
                    tally.worked,
                    tally.worked + tally.refused
                )),
                Tally { other: Some(other), .. } => Some(format!("{node}: {other}")),
                Tally { refused: 0, .. } => Some(format!("{node}: nothing was tried")),
                Tally { .. } => None,
            }
        };
        self.threads.into_iter().filter_map(told).collect()
    }
}

fn intrude(network: &Network, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        match nft(network, ATTEMPT) {
            Ok(output) if output.status.success() => {
                tally.worked += 1;
                // What the agent has put right meanwhile is gone.
                let _ = nft(network, UNDONE);
            }
            Ok(output) => match String::from_utf8_lossy(&output.stderr) {
                said if said.contains("Operation not permitted") => tally.refused += 1,
                said => tally.other = Some(said.into_owned()),
            },
            Err(error) => tally.other = Some(format!("{error:#}")),
        }
        thread::sleep(PERIOD);
    }
    tally
}

fn nft(network: &Network, words: &[&str]) -> Result<Output> {
    network.run(|| Command::new("nft").args(words).output().context("cannot run nft"))
}

/// Whether a kernel of this release lets tables have an owner that outlives its process.
fn can_own(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OWNED_SINCE
}

#[cfg(test)]
mod tests {
    use super::can_own;

    #[test]
    fn tables_have_owners_since_6_9() {
        assert!(can_own("6.9.0") && can_own("6.18.5-amd64") && can_own("7.0-rc1"));
        assert!(!can_own("6.8.12-generic") && !can_own("5.15.0") && !can_own("odd"));
    }
}
