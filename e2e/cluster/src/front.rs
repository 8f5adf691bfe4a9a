//! What a person's command does: start the keeper and hear it out, or end it. Ctrl-C removes a cluster that is not ready yet.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use moat_lab::Process;
use nix::sched::CloneFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::keeper::{Event, STAY};
use crate::plan::Plan;
use crate::spaces::spawn_in;
use crate::state::{State, node_process};

/// Makes the cluster.
pub(crate) fn up(state: &State, plan: &Plan) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "a cluster needs root: its kubelets make control groups and mounts as on a machine of their own"
        );
    }
    programs_are_there(plan)?;
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    state.create(plan)?;
    let made = hold(state, plan, &interrupt);
    if let Err(error) = made {
        // What went wrong is what is told, with what the logs say; the folder goes, as everything else does.
        state.remove()?;
        return Err(if interrupt.came.load(Ordering::SeqCst) {
            anyhow::anyhow!("interrupted")
        } else {
            error
        });
    }
    println!("{} nodes are ready after {:.1} s", plan.nodes, started.elapsed().as_secs_f64());
    println!("export KUBECONFIG={}", plan.kubeconfig().display());
    println!("logs: {}/nodes/*/logs {}", state.path().display(), plan.logs().display());
    Ok(())
}

fn programs_are_there(plan: &Plan) -> Result<()> {
    let kubernetes =
        ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];
    let kubernetes = kubernetes.iter().map(|program| plan.kubernetes(program));
    for file in kubernetes.chain(plan.images.iter().cloned()) {
        if !file.is_file() {
            bail!("{} is not there: `cargo xtask cluster up` builds it", file.display());
        }
    }
    Ok(())
}

fn hold(state: &State, plan: &Plan, interrupt: &Interrupt) -> Result<()> {
    state.raise()?;
    let mut keeper = start_keeper(state, plan)?;
    let process = Process::of(keeper.id()).context("cannot find the cluster's process")?;
    state.set_keeper(&process)?;
    interrupt.set_keeper(process);
    let (mut leash, events) =
        keeper.stdin.take().zip(keeper.stdout.take()).context("the keeper has no pipes")?;
    for line in BufReader::new(events).lines() {
        let line = line.context("cannot hear the cluster")?;
        match serde_json::from_str(&line)
            .with_context(|| format!("the cluster said something odd: {line}"))?
        {
            Event::Progress(text) => eprintln!("{text}"),
            Event::Failed(why) => bail!("{}", why),
            Event::Ready => {
                writeln!(leash, "{STAY}").context("cannot tell the cluster to stay")?;
                if interrupt.came.load(Ordering::SeqCst) {
                    bail!("interrupted");
                }
                return Ok(());
            }
        }
    }
    bail!("the cluster ended by itself; its log ends with:\n{}", crate::daemon::log_end(&state.keeper_log()))
}

fn start_keeper(state: &State, plan: &Plan) -> Result<Child> {
    let log_path = state.keeper_log();
    let log =
        std::fs::File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("keeper").arg(plan.state.join("plan.json")).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    spawn_in(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS, command)
}

/// Removes it. Succeeds where there is none.
pub(crate) fn down(state: &State, name: &str) -> Result<()> {
    let started = Instant::now();
    match state.remove()? {
        true => println!("the cluster {name} is gone, after {:.1} s", started.elapsed().as_secs_f64()),
        false => println!("there is no cluster {name}"),
    }
    Ok(())
}

/// Becomes kubectl.
pub(crate) fn kubectl(plan: &Plan, args: &[OsString]) -> Result<ExitCode> {
    become_program(crate::kubectl::kubectl(plan, &plan.kubeconfig()).args(args))
}

/// Becomes a program on a node.
pub(crate) fn exec(state: &State, node: &str, words: &[OsString]) -> Result<ExitCode> {
    let plan = state.plan()?;
    let found = state.keeper().and_then(|keeper| node_process(&keeper, node));
    let process = found.with_context(|| {
        let names: Vec<String> = plan.nodes().into_iter().map(|node| node.name).collect();
        format!("there is no node {node} that runs; the cluster has {}", names.join(", "))
    })?;
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &process.to_string()])
        .args(["--mount", "--net", "--pid", "--uts", "--ipc", "--"]);
    become_program(command.args(words))
}

fn become_program(command: &mut Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", Path::new(command.get_program()).display()))
}

/// The signals that ask a command to end.
struct Interrupt {
    came: AtomicBool,
    keeper: Mutex<Option<Process>>,
}

impl Interrupt {
    fn install() -> Result<Arc<Self>> {
        let own = Arc::new(Self { came: AtomicBool::new(false), keeper: Mutex::new(None) });
        let shared = own.clone();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch signals")?;
        std::thread::spawn(move || {
            for _signal in signals.forever() {
                shared.came.store(true, Ordering::SeqCst);
                shared.end_keeper();
            }
        });
        Ok(own)
    }

    /// Whoever listens to the keeper hears it end, and goes on to clean up.
    fn end_keeper(&self) {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Err(error)) = keeper.map(|keeper| keeper.kill()) {
            eprintln!("cannot end the cluster's process: {error}");
        }
    }

    fn set_keeper(&self, keeper: Process) {
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        if self.came.load(Ordering::SeqCst) {
            self.end_keeper();
        }
    }
}
