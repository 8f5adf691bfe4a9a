//! What a person's command does: start a keeper, ask it, end it. Ctrl-C ends the lab of a command that has not finished.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::chaos::{ChaosOptions, ChaosReport};
use crate::error::{LabError, Trying as _};
use crate::hostile::{HostileOptions, HostileReport};
use crate::info::Info;
use crate::keeper::{Event, Request, SOCKET, STAY};
use crate::options::Options;
use crate::outer;
use crate::report::Report;
use crate::state::{Process, StateDir};

/// Gets told what is being done.
pub type Progress<'a> = &'a dyn Fn(&str);

/// Makes a lab that stays. Returns where everything is.
pub fn up(name: &str, options: &Options, progress: Progress<'_>) -> Result<Info, LabError> {
    let state = StateDir::named(name)?;
    let mut held = Held::start(state, options)?;
    let info = held.until_ready(progress)?;
    held.stay()?;
    Ok(info)
}

/// Probes a lab that is up.
pub fn probe(name: &str, expected: bool, progress: Progress<'_>) -> Result<Report, LabError> {
    let state = StateDir::named(name)?;
    if !state.keeper().is_some_and(|keeper| keeper.is_alive()) {
        return Err(LabError::NotUp(name.to_owned()));
    }
    ask(&state, &Request::Probe { expected }, progress)
}

/// Removes a lab. Succeeds where there is none; tells whether there was one.
pub fn down(name: &str) -> Result<bool, LabError> {
    let state = StateDir::named(name)?;
    let there = state.path().exists();
    state.remove()?;
    Ok(there)
}

/// A lab for one probe: makes it, probes it, removes it.
pub fn run(options: &Options, expected: bool, progress: Progress<'_>) -> Result<Report, LabError> {
    let held = Held::for_one_run(options, progress)?;
    let asked = ask(&held.state, &Request::Probe { expected }, progress);
    held.unless_interrupted(asked)
}

/// A lab for one table of what pods should not send.
pub fn hostile(
    options: &Options,
    hostile: &HostileOptions,
    progress: Progress<'_>,
) -> Result<HostileReport, LabError> {
    let held = Held::for_one_run(options, progress)?;
    let stream = send(&held.state, &Request::Hostile(hostile.clone()))?;
    let answered = match answer(&held.state, stream, progress) {
        Ok(Event::Hostile(report)) => Ok(report),
        Ok(_) => Err(ended(&held.state)),
        Err(error) => Err(error),
    };
    held.unless_interrupted(answered)
}

/// A lab for one run of faults. Ctrl-C ends the faults, and the report is of those until then; a second one ends the lab.
pub fn chaos(
    options: &Options,
    chaos: &ChaosOptions,
    progress: Progress<'_>,
) -> Result<ChaosReport, LabError> {
    let held = Held::for_one_run(options, progress)?;
    let stream = send(&held.state, &Request::Chaos(chaos.clone()))?;
    held.interrupt.shut_first(&stream)?;
    match answer(&held.state, stream, progress) {
        Ok(Event::Chaos(report)) => Ok(*report),
        Ok(_) => held.unless_interrupted(Err(ended(&held.state))),
        Err(error) => held.unless_interrupted(Err(error)),
    }
}

/// A lab that is removed when this is dropped, or when somebody presses Ctrl-C.
struct Held {
    state: StateDir,
    interrupt: Arc<Interrupt>,
    events: BufReader<ChildStdout>,
    // The keeper ends when this is closed.
    leash: ChildStdin,
    stays: bool,
}

#[derive(Default)]
struct Interrupt {
    came: AtomicBool,
    keeper: Mutex<Option<Process>>,
    /// What is shut by the first signal; the keeper has then something to say before it ends.
    first: Mutex<Option<UnixStream>>,
}

impl Interrupt {
    /// Catches the signals that ask a command to end.
    fn install() -> Result<Arc<Self>, LabError> {
        let own = Arc::new(Self::default());
        let shared = own.clone();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).trying(|| "cannot catch signals".into())?;
        std::thread::spawn(move || {
            for _signal in signals.forever() {
                shared.came.store(true, Ordering::SeqCst);
                let first = shared.first.lock().unwrap_or_else(PoisonError::into_inner).take();
                if first.is_none_or(|stream| stream.shutdown(Shutdown::Write).is_err()) {
                    shared.end_keeper();
                }
            }
        });
        Ok(own)
    }

    /// Whoever waits for the keeper sees it end, and goes on to clean up.
    fn end_keeper(&self) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Err(error)) = keeper.map(|k| k.kill()) {
            eprintln!("cannot end the lab's process: {error}");
        }
    }

    fn shut_first(&self, stream: &UnixStream) -> Result<(), LabError> {
        let stream = stream.try_clone().trying(|| "cannot talk to the lab".into())?;
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        Ok(())
    }

    fn set_keeper(&self, keeper: Process) {
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        if self.came.load(Ordering::SeqCst) {
            self.end_keeper();
        }
    }
}

impl Held {
    /// A lab of this process alone, made and ready.
    fn for_one_run(options: &Options, progress: Progress<'_>) -> Result<Self, LabError> {
        let state = StateDir::named(&format!("run-{}", std::process::id()))?;
        let mut held = Self::start(state, options)?;
        held.until_ready(progress)?;
        Ok(held)
    }

    fn start(state: StateDir, options: &Options) -> Result<Self, LabError> {
        // The gate ends before the keeper, which then is our child: when it ends, nothing of it stays in the process table.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .trying(|| "cannot adopt processes".into())?;
        let interrupt = Interrupt::install()?;
        state.create()?;
        let started = Self::start_in(state.clone(), options, interrupt);
        if started.is_err() {
            // What went wrong is what is told.
            let _ = state.remove();
        }
        started
    }

    fn start_in(state: StateDir, options: &Options, interrupt: Arc<Interrupt>) -> Result<Self, LabError> {
        let mut gate = Command::new("/proc/self/exe")
            .args(["lab", "gate"])
            .arg(state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .trying(|| "cannot start the lab's process".into())?;
        let pipes = gate.stdin.take().zip(gate.stdout.take());
        let output = gate.wait_with_output().trying(|| "cannot start the lab's process".into())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(LabError::Told(said.trim().trim_start_matches("error: ").to_owned()));
        }
        let (mut leash, events) = pipes.ok_or_else(|| LabError::Told("no pipes".into()))?;
        if let Some(keeper) = state.keeper() {
            interrupt.set_keeper(keeper);
        }
        let mut line = serde_json::to_vec(options).map_err(std::io::Error::from);
        if let Ok(line) = &mut line {
            line.push(b'\n');
        }
        line.and_then(|line| leash.write_all(&line)).trying(|| "cannot tell the lab what to build".into())?;
        Ok(Self { state, interrupt, events: BufReader::new(events), leash, stays: false })
    }

    fn until_ready(&mut self, progress: Progress<'_>) -> Result<Info, LabError> {
        let last = last_event(&mut self.events, progress);
        match self.unless_interrupted(last)? {
            Some(Event::Ready(info)) => Ok(match self.state.keeper() {
                Some(keeper) => outer::info(info, keeper.pid()),
                None => info,
            }),
            Some(Event::Failed(why)) => Err(LabError::Told(why)),
            Some(_) | None => Err(ended(&self.state)),
        }
    }

    /// When the lab was ended on request, whatever failed because of it is not what a person wants to hear.
    fn unless_interrupted<T>(&self, result: Result<T, LabError>) -> Result<T, LabError> {
        if self.interrupt.came.load(Ordering::SeqCst) { Err(LabError::Interrupted) } else { result }
    }

    fn stay(&mut self) -> Result<(), LabError> {
        writeln!(self.leash, "{STAY}").trying(|| "cannot tell the lab to stay".into())?;
        self.unless_interrupted(Ok(()))?;
        self.stays = true;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = self.state.remove()
        {
            eprintln!("the lab was not removed: {error}");
        }
    }
}

fn ask(state: &StateDir, request: &Request, progress: Progress<'_>) -> Result<Report, LabError> {
    match answer(state, send(state, request)?, progress)? {
        Event::Report(report) => Ok(report),
        _ => Err(ended(state)),
    }
}

fn send(state: &StateDir, request: &Request) -> Result<UnixStream, LabError> {
    let socket = state.join(SOCKET);
    let talk = || -> std::io::Result<UnixStream> {
        let mut stream = UnixStream::connect(&socket)?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(stream)
    };
    match talk() {
        // It is about to end, or not yet up.
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
            Err(LabError::NotUp(state.name()))
        }
        talked => talked.trying(|| format!("cannot talk to the lab on {}", socket.display())),
    }
}

fn answer(state: &StateDir, stream: UnixStream, progress: Progress<'_>) -> Result<Event, LabError> {
    match last_event(&mut BufReader::new(stream), progress)? {
        Some(Event::Failed(why)) => Err(LabError::Told(why)),
        Some(event) => Ok(event),
        None => Err(ended(state)),
    }
}

fn ended(state: &StateDir) -> LabError {
    LabError::Ended { log_end: StateDir::log_end(&state.join("keeper.log")) }
}

/// Tells progress, and returns the event after it.
fn last_event(events: &mut impl BufRead, progress: Progress<'_>) -> Result<Option<Event>, LabError> {
    let mut line = String::new();
    loop {
        line.clear();
        if events.read_line(&mut line).trying(|| "cannot hear the lab".into())? == 0 {
            return Ok(None);
        }
        match serde_json::from_str(&line) {
            Ok(Event::Progress(text)) => progress(&text),
            Ok(event) => return Ok(Some(event)),
            Err(error) => return Err(LabError::Told(format!("the lab said something odd: {error}"))),
        }
    }
}
