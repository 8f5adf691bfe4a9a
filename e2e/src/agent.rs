//! A node's agent: a real `moat-agent`, in the node's namespace.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::error::{LabError, Trying as _};
use crate::space::Space;
use crate::state::{Process, StateDir};
use crate::supervise;

/// Where an agent is asked, in its node's namespace.
pub(crate) const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9469);
/// How often an agent is asked what it has applied; it has no way to call us.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// An agent that has not applied the folders by then never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node's agent, started again when it ends.
pub(crate) struct Agent {
    node: String,
    folder: PathBuf,
    space: Arc<Space>,
    life: watch::Receiver<Life>,
    told: AtomicUsize,
}

/// What has become of a node's agent so far.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// The process that runs, or ran last.
    pub(crate) process: Process,
    /// Taken just before that process was started.
    pub(crate) started: Instant,
    /// Each end so far, in words, and when it was noticed.
    pub(crate) ends: Vec<(Instant, String)>,
    /// How often it was started.
    pub(crate) starts: usize,
    /// It has ended, and nobody starts it again.
    pub(crate) over: bool,
}

/// How agents are run.
#[derive(Clone, Debug)]
pub(crate) struct AgentOptions {
    pub(crate) program: PathBuf,
    /// Whether one that ends is started again.
    pub(crate) restart: bool,
    /// More arguments.
    pub(crate) arguments: Vec<String>,
}

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Readiness {
    /// The fingerprint of the folders that are now in the kernel.
    applied: Option<String>,
    /// What it could not read.
    error: Option<String>,
}

/// The folders that every agent watches.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) manifests: Vec<PathBuf>,
    pub(crate) pod_status: PathBuf,
}

impl Sources {
    /// The fingerprint of what the folders hold now.
    pub(crate) fn fingerprint(&self) -> Result<String, LabError> {
        let paths: Vec<PathBuf> = self.manifests.iter().chain([&self.pod_status]).cloned().collect();
        let sources = moat_manifests::read(&paths).map_err(|e| LabError::Manifests(e.to_string()))?;
        Ok(moat_manifests::fingerprint(&sources))
    }
}

impl Agent {
    /// Starts the agent of a node, and goes on starting it again if it is to be. `folder` is for its log, its state and its socket.
    pub(crate) async fn start(
        options: &AgentOptions,
        node: &str,
        space: Arc<Space>,
        folder: PathBuf,
        sources: &Sources,
    ) -> Result<Self, LabError> {
        let (state, run) = (folder.join("state"), folder.join("run"));
        for dir in [&state, &run] {
            fs::create_dir_all(dir).trying(|| format!("cannot make {}", dir.display()))?;
        }
        let mut arguments: Vec<OsString> = ["run", "--node", node].map(OsString::from).into();
        for folder in &sources.manifests {
            arguments.extend(["--manifests".into(), folder.into()]);
        }
        arguments.extend(["--pod-status".into(), (&sources.pod_status).into()]);
        arguments.extend(["--state-dir".into(), state.into(), "--run-dir".into(), run.into()]);
        arguments.extend(["--listen".into(), LISTEN.to_string().into()]);
        arguments.extend(options.arguments.iter().map(OsString::from));
        let log = folder.join("agent.log");
        let recipe = supervise::Recipe { program: options.program.clone(), arguments, log };
        let life = supervise::start(recipe, options.restart, &space).await;
        let life = life.trying(|| format!("cannot start {}", options.program.display()))?;
        Ok(Self { node: node.to_owned(), folder, space, life, told: AtomicUsize::new(0) })
    }

    /// Where its CNI server listens.
    pub(crate) fn socket(&self) -> PathBuf {
        Self::socket_in(&self.folder)
    }

    /// The same, for an agent of this folder that need not run.
    pub(crate) fn socket_in(folder: &Path) -> PathBuf {
        folder.join("run").join("agent.sock")
    }

    /// Its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// The process that runs, or ran last.
    pub(crate) fn process(&self) -> Process {
        self.life.borrow().process.clone()
    }

    /// What becomes of it.
    pub(crate) fn life(&self) -> watch::Receiver<Life> {
        self.life.clone()
    }

    /// The fingerprint of what it says is in force.
    pub(crate) async fn applied(&self) -> Option<String> {
        self.readiness().await.applied
    }

    /// How it ended, if it did and is not started again.
    pub(crate) fn ended(&self) -> Option<String> {
        let life = self.life.borrow();
        life.ends.last().filter(|_| life.over).map(|(_, how)| how.clone())
    }

    /// How it ended and was started again, each time since this was last asked.
    pub(crate) fn news(&self) -> Vec<String> {
        let life = self.life.borrow();
        let restarted = life.ends.len() - usize::from(life.over);
        let told = self.told.swap(restarted, Ordering::Relaxed);
        life.ends[told.min(restarted)..restarted].iter().map(|(_, how)| how.clone()).collect()
    }

    /// Waits until the kernel of its node holds what the folders say. They may go on changing meanwhile.
    pub(crate) async fn wait_until_applied(&self, sources: &Sources) -> Result<(), LabError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A file that is just being replaced cannot be read; a moment later it can.
            let wanted = sources.fingerprint();
            let now = self.readiness().await;
            if wanted.as_ref().is_ok_and(|wanted| now.applied.as_ref() == Some(wanted)) {
                return Ok(());
            }
            if let Some(status) = self.ended() {
                return Err(self.failed(format!("ended ({status})")));
            }
            if Instant::now() > deadline {
                wanted?;
                let said = now.error.map(|e| format!(": {e}")).unwrap_or_default();
                let what = format!("did not apply the manifests in {} s{said}", PATIENCE.as_secs());
                return Err(self.failed(what));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn readiness(&self) -> Readiness {
        let asked = self.space.run(tokio::time::timeout(Duration::from_secs(2), ask())).await;
        match asked {
            Ok(Ok(Ok(answer))) => parse(&answer),
            // It does not listen yet, or does not answer: not ready.
            _ => Readiness::default(),
        }
    }

    fn failed(&self, what: String) -> LabError {
        LabError::Agent { node: self.node.clone(), what, log_end: StateDir::log_end(&self.log()) }
    }
}

async fn ask() -> io::Result<String> {
    let mut stream = TcpStream::connect(LISTEN).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Status 200 and a line `applied FINGERPRINT`; an `error` line where the last read failed.
fn parse(answer: &str) -> Readiness {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Readiness::default() };
    let ok = head.split_whitespace().nth(1) == Some("200");
    let line =
        |word: &str| body.lines().find_map(|l| l.strip_prefix(word)).map(|rest| rest.trim().to_owned());
    Readiness { applied: line("applied ").filter(|_| ok), error: line("error ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_ready_only_with_status_200() {
        let ready = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\napplied 0a1b\nerror a.yaml: bad\n";
        let expected = Readiness { applied: Some("0a1b".into()), error: Some("a.yaml: bad".into()) };
        assert_eq!(parse(ready), expected);
        assert_eq!(parse(&ready.replace("200 OK", "503 No")).applied, None);
        assert_eq!(parse(""), Readiness::default());
    }
}
