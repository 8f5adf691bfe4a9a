//! The networks of others: of nodes, of pods, of the fabric. What is opened there stays there: a socket keeps the network that it was
//! born in.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace that somebody else made.
#[derive(Clone, Debug)]
pub(crate) struct Network(Arc<OwnedFd>);

impl Network {
    /// A process's.
    pub(crate) fn of_process(pid: i32) -> Result<Self> {
        Self::at(format!("/proc/{pid}/ns/net"))
    }

    /// The one that a path names.
    pub(crate) fn at(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self(Arc::new(file.into())))
    }

    /// Brings the calling thread there, for good.
    pub(crate) fn join(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter a network namespace")
    }

    /// Whether it can be entered.
    pub(crate) fn join_on_a_thread(&self) -> Result<()> {
        self.run(|| Ok(()))
    }

    /// Does something there, on a thread of its own, and waits for it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.join()?;
                work()
            });
            inside.join().unwrap_or_else(|_| bail!("a thread in a network namespace panicked"))
        })
    }

    /// The number by which the kernel tells it from others.
    pub(crate) fn number(&self) -> Result<u64> {
        Ok(File::from(self.0.try_clone()?).metadata()?.ino())
    }

    /// How many TCP segments were sent again here.
    pub(crate) fn retransmissions(&self) -> Result<u64> {
        let text = self.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
        retransmissions(&text).context("the kernel does not say how many segments were sent again")
    }
}

/// `RetransSegs` of the `Tcp:` lines, the first of which names what the second counts.
fn retransmissions(snmp: &str) -> Option<u64> {
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let column = tcp.next()?.split_whitespace().position(|name| name == "RetransSegs")?;
    tcp.next()?.split_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_segments_that_are_sent_again() {
        let snmp = "Ip: Forwarding\nIp: 1\nTcp: RtoMin MaxConn RetransSegs InErrs\nTcp: 200 -1 7 0\n";
        assert_eq!(retransmissions(snmp), Some(7));
        let own = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        assert!(retransmissions(&own).is_some());
    }
}
