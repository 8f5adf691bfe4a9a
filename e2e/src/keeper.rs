//! The process that holds a lab: process 1 of the lab's namespaces. It builds, then answers requests until it is ended.

use std::io::{BufRead, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::chaos::{self, ChaosOptions, ChaosReport};
use crate::error::{LabError, Trying as _};
use crate::gate;
use crate::hostile::{self, HostileOptions, HostileReport};
use crate::info::Info;
use crate::lab::Lab;
use crate::options::{Options, Purpose};
use crate::report::Report;
use crate::state::StateDir;

/// The socket's name in the lab's folder.
pub(crate) const SOCKET: &str = "control.sock";

/// What the front writes to the keeper's stdin when the lab is to outlive it.
pub(crate) const STAY: &str = "stay";

/// How often the folder is looked at for pods that came or went. (Policies and labels are the agents' to see, and they see them
/// at once; a probe looks first, too.)
const FOLLOW_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// What the keeper tells, one a line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Event {
    /// What is being done.
    Progress(String),
    /// The lab is up, its policies are in force.
    Ready(Info),
    /// Everything was probed.
    Report(Report),
    /// A run of faults is over.
    Chaos(Box<ChaosReport>),
    /// Everything was sent that pods should not.
    Hostile(HostileReport),
    /// It cannot be done.
    Failed(String),
}

/// What the keeper is asked, one a connection, a line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    /// Bring everything up to date, and probe.
    Probe {
        /// Whether to compare with `expected.txt`.
        expected: bool,
    },
    /// Run faults and traffic, until their time is over or the connection's other end is shut.
    Chaos(ChaosOptions),
    /// Send what pods should not.
    Hostile(HostileOptions),
}

/// Runs the keeper: reads [`Options`] from stdin, builds the lab, and serves it. Returns when the lab cannot be built; once it is, only the
/// front's end (where it was not told to stay) or a kill ends it.
pub fn keep(state: StateDir) -> Result<(), LabError> {
    let stdin = std::io::stdin();
    let mut line = String::new();
    stdin.lock().read_line(&mut line).trying(|| "cannot read what to build".into())?;
    let options: Options =
        serde_json::from_str(&line).map_err(|e| LabError::Told(format!("not a request: {e}")))?;
    let result = gate::settle(&state.join("netns")).and_then(|()| {
        hold_leash();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.trying(|| "cannot start".into())?.block_on(run(options, state))
    });
    if let Err(error) = &result {
        say(&Event::Failed(error.to_string()));
    }
    result
}

async fn run(mut options: Options, state: StateDir) -> Result<(), LabError> {
    match options.purpose {
        Purpose::Probe => {}
        Purpose::Chaos => options.folder = chaos::prepare(&options, &state)?,
        Purpose::Hostile => options.folder = hostile::prepare(&state)?,
    }
    let mut lab = Lab::build(options, state.clone(), &|text| say(&Event::Progress(text.into()))).await?;
    let socket = state.join(SOCKET);
    let listener = UnixListener::bind(&socket).trying(|| format!("cannot listen on {}", socket.display()))?;
    say(&Event::Ready(lab.info()));
    loop {
        // One thing at a time: two probes at once would be in each other's packets' way.
        match tokio::time::timeout(FOLLOW_EVERY, listener.accept()).await {
            Err(_elapsed) => lab.follow().await,
            Ok(accepted) => {
                let (stream, _) = accepted.trying(|| "cannot answer".into())?;
                if let Err(error) = answer(&mut lab, stream).await {
                    eprintln!("a request was not answered: {error}");
                }
            }
        }
    }
}

async fn answer(lab: &mut Lab, stream: UnixStream) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader);
    reader.read_line(&mut line).await?;
    let request: Request = serde_json::from_str(&line)?;
    // Who asked may shut the connection's other half: that is enough.
    let (stop, stopped) = watch::channel(false);
    let shut = tokio::spawn(async move {
        let _ = reader.read_line(&mut String::new()).await;
        let _ = stop.send(true);
        stop.closed().await;
    });
    // Progress is told while the work is done, and the work does not wait for who listens.
    let (progress, mut told) = tokio::sync::mpsc::unbounded_channel();
    let work = async {
        let progress = progress;
        let tell = |text: &str| drop(progress.send(Event::Progress(text.into())));
        let done = match request {
            Request::Probe { expected } => lab.probe(expected, &tell).await.map(Event::Report),
            Request::Hostile(options) => hostile::run(lab, &options, &tell).await.map(Event::Hostile),
            Request::Chaos(options) => {
                chaos::run(lab, &options, stopped, &tell).await.map(|report| Event::Chaos(Box::new(report)))
            }
        };
        done.unwrap_or_else(|error| Event::Failed(error.to_string()))
    };
    let listen = async {
        while let Some(event) = told.recv().await {
            writer.write_all(&line_of(&event)?).await?;
        }
        Ok::<_, std::io::Error>(writer)
    };
    let (last, writer) = tokio::join!(work, listen);
    shut.abort();
    writer?.write_all(&line_of(&last)?).await
}

fn line_of(event: &Event) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}

/// Tells the front; when it is gone, nobody.
fn say(event: &Event) {
    static STDOUT: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STDOUT.lock();
    let mut stdout = std::io::stdout().lock();
    let _ = line_of(event).and_then(|line| stdout.write_all(&line)).and_then(|()| stdout.flush());
}

/// Ends the process, and with it the lab, when the front does (by Ctrl-C, by a crash, by kill -9), unless it said that the lab stays.
fn hold_leash() {
    static STAYS: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line == STAY {
                STAYS.store(true, Ordering::Relaxed);
            }
        }
        if !STAYS.load(Ordering::Relaxed) {
            std::process::exit(1);
        }
    });
}
