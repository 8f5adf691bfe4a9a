//! `cargo xtask bench`: the benchmarks, each of which prints its own table.

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::lab;
use crate::process::{binaries, cargo, check, root};
use crate::steps::Steps;

/// One of the benchmarks.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Building and changing the whole cluster's verdict programs; no root needed
    Engine,
    /// Elements, sets and pods into the kernel through netlink
    Netlink,
    /// Connections and packets between two pods, with and without policy; root only
    Datapath,
    /// What it would cost to bound how many connections a pod may have; root only
    Limit,
    /// Streams and small packets between pods of one node and of two, routed and by VXLAN; beside ptp and bridge
    Podnet,
    /// A dropped packet, with the drop log and without; root only
    Drops,
    /// A pod's interface, from the runtime's ADD until an allowed peer has been answered; beside ptp and host-local
    Cni,
    /// The same on nodes with 10 and with 250 pods, which take turns
    Pods,
    /// Agent and plugin die at every step of ADD and DEL, 1,000 times, and nothing may be left behind
    Crash,
    /// Until connections that are there follow a change, with 10,000 and 200,000 of them; root only
    Flows,
    /// Starts of the data plane with 250 pods and 100,000 peers: how long, and how much memory; root only
    Agent,
    /// What the agent holds that reads 100,000 pods from a folder and protects 250, and what it does at rest
    Memory,
    /// From the rename of a manifest to the last packet let through, with the real agent
    Latency,
    /// A controller with 1,000 agents and 100,000 pods: processor, memory, how long changes take, and a restart; no root needed
    Controller,
    /// The lab, all in one, with nine pods that serve three ports each over TCP and UDP
    Lab,
}

impl Bench {
    fn run(self, quick: bool) -> Result<()> {
        check(&mut cargo(match self {
            Bench::Engine => &["bench", "-p", "moat-policies", "--bench", "*"][..],
            Bench::Netlink => &["bench", "-p", "moat-nfnetlink", "--bench", "*"],
            Bench::Datapath if quick => return check(cargo(DATAPATH).args(["--", "--rounds", "300"])),
            Bench::Datapath => &DATAPATH,
            Bench::Limit => &["run", "--release", "-p", "moat-agent", "--example", "bench_limit"],
            Bench::Drops => &["run", "--release", "-p", "moat-agent", "--example", "bench_drops"],
            Bench::Cni if quick => &["bench", "-p", "moat-agent", "--bench", "cni_add", "--", "--quick"],
            Bench::Cni => &["bench", "-p", "moat-agent", "--bench", "cni_add"],
            Bench::Podnet if quick => &["bench", "-p", "moat-agent", "--bench", "podnet", "--", "--quick"],
            Bench::Podnet => &["bench", "-p", "moat-agent", "--bench", "podnet"],
            Bench::Pods => return pods(quick),
            Bench::Crash => return crash(if quick { 64 } else { 1000 }),
            Bench::Flows => &["run", "--release", "-p", "moat-agent", "--example", "bench_flows"],
            Bench::Agent => &["bench", "-p", "moat-agent", "--bench", "agent"],
            Bench::Memory => &["bench", "-p", "moat-agent", "--bench", "memory"],
            Bench::Latency if quick => &["bench", "-p", "moat-agent", "--bench", "latency", "--", "--quick"],
            Bench::Latency => &["bench", "-p", "moat-agent", "--bench", "latency"],
            Bench::Controller if quick => {
                &["bench", "-p", "moat-controller", "--bench", "agents", "--", "--quick"]
            }
            Bench::Controller => &["bench", "-p", "moat-controller", "--bench", "agents"],
            Bench::Lab => return nine_pods(),
        }))
    }
}

const DATAPATH: [&str; 6] = ["run", "--release", "-p", "moat-agent", "--example", "bench_datapath"];

/// Whether a pod's start grows with the number of pods.
fn pods(quick: bool) -> Result<()> {
    let mut bench = cargo(["bench", "-p", "moat-agent", "--bench", "cni_add", "--", "--pods", "10,250"]);
    check(bench.args(quick.then_some("--quick")))
}

/// Runs the tests of deaths, longer than the tests do.
fn crash(runs: usize) -> Result<()> {
    let test = ["test", "-p", "moat-agent", "--test", "podnet", "--", "--nocapture", "steps::"];
    check(cargo(test).env("MOAT_CRASH_RUNS", runs.to_string()))
}

/// How often the lab is run.
const LABS: usize = 5;

/// Times `moat lab run`, which says itself whether prediction and packets agree.
fn nine_pods() -> Result<()> {
    lab::build()?;
    let folder = root().join("xtask/nine-pods");
    for families in [&[][..], &["--dual-stack"]] {
        let mut seconds = Vec::new();
        for _ in 0..LABS {
            let mut lab = Command::new(binaries("release").join("moat"));
            lab.args(["lab", "run", "-f"]).arg(&folder).args(families).stdout(Stdio::null());
            let started = Instant::now();
            check(&mut lab)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let (median, most) = (seconds[LABS / 2], seconds[LABS - 1]);
        let what = if families.is_empty() { "IPv4" } else { "dual stack" };
        println!(
            "moat lab run, 9 pods x 3 ports, TCP and UDP, {what}: median {median:.2} s, at most {most:.2} s"
        );
    }
    Ok(())
}

/// All of them, or one. They are not run side by side: they would measure each other.
pub(crate) fn run(only: Option<Bench>, quick: bool) -> Result<ExitCode> {
    let wanted = Bench::value_variants().iter().filter(|bench| only.is_none_or(|only| only == **bench));
    let wanted: Vec<_> = wanted.collect();
    let mut steps = Steps::new("bench", wanted.len());
    for bench in wanted {
        let name = bench.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        steps.step(&name, || bench.run(quick))?;
    }
    Ok(ExitCode::SUCCESS)
}
