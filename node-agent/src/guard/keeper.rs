//! The agent's watch over its guard: when it goes, another takes its place.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tracing::{debug, info, warn};

use super::{GuardError, Launch, Lease, Taken};

/// How soon a guard that could not be started is tried again; twice as late each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Sees to it that there is a guard as long as this lives. Dropping it gives the lease back; the guard goes on.
#[derive(Debug)]
pub struct Keeper {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

struct Work {
    launch: Launch,
    descriptor: OwnedFd,
    tell: Box<dyn Fn(bool) + Send>,
    stop: Arc<OwnedFd>,
}

impl Keeper {
    /// Starts the thread that watches. `taken` is from this [`Launch`], or why that failed; `descriptor` is what the
    /// guard is to keep; `tell` is told whenever it begins or ceases to.
    pub fn start(
        launch: Launch,
        taken: Result<Taken, GuardError>,
        descriptor: OwnedFd,
        tell: impl Fn(bool) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let work = Work { launch, descriptor, tell: Box::new(tell), stop: stop.clone() };
        let first = taken.and_then(|taken| work.handed_over(taken)).inspect_err(complain).ok();
        let thread = std::thread::Builder::new().name("guard".to_owned()).spawn(move || work.run(first))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Err(e) = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            debug!("cannot stop watching the guard: {e}");
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Work {
    fn run(self, mut kept: Option<(Lease, Option<Child>)>) {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some((lease, child)) = kept.take() {
                pause = FIRST_PAUSE;
                if !self.wait(Some(&lease), None) {
                    return;
                }
                (self.tell)(false);
                warn!("the guard of moat's tables is gone; another is to take its place");
                // Whoever started it has to take note of its end.
                child.map(|mut child| child.wait());
            } else if !self.wait(None, Some(pause)) {
                return;
            }
            match self.launch.take().and_then(|taken| self.handed_over(taken)) {
                Ok(new) => kept = Some(new),
                Err(error) => {
                    complain(&error);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn handed_over(&self, taken: Taken) -> Result<(Lease, Option<Child>), GuardError> {
        taken.lease.hold(self.descriptor.as_fd())?;
        (self.tell)(true);
        info!(run_dir = %self.launch.run_dir.display(), "a guard keeps the owner of moat's tables");
        Ok((taken.lease, taken.started))
    }

    /// Waits until the guard is gone, or for so long; `false`: to stop.
    fn wait(&self, lease: Option<&Lease>, timeout: Option<Duration>) -> bool {
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        loop {
            let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
            fds.extend(lease.map(|lease| PollFd::new(lease, PollFlags::IN)));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => return fds[0].revents().is_empty(),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    warn!("cannot watch the guard any more: {e}");
                    return false;
                }
            }
        }
    }
}

fn complain(error: &GuardError) {
    let error = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    let text: Vec<String> = error.map(ToString::to_string).collect();
    warn!(
        "no guard: if this agent dies, others may change moat's tables until the next one starts: {}",
        text.join(": ")
    );
}
