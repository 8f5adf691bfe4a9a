//! The controller's process.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

pub(crate) struct Controller {
    kubeconfig: PathBuf,
    address: SocketAddr,
    http: SocketAddr,
    process: Child,
}

/// What it has in memory, in MB.
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) most: u64,
}

impl Controller {
    pub(crate) fn start(kubeconfig: Result<PathBuf>) -> Result<Self> {
        let kubeconfig = kubeconfig?;
        let (address, http) = (free_address()?, free_address()?);
        let process = spawn(&kubeconfig, address, http)?;
        Ok(Self { kubeconfig, address, http, process })
    }

    /// Where agents connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it at once, and starts another one.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(&self.kubeconfig, self.address, self.http)?;
        Ok(())
    }

    /// What it has used so far.
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name before it may hold anything; the 14th and 15th fields are the 12th and 13th behind it, in hundredths of a second.
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has a name")?;
        let hundredths = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let hundredths: u64 = hundredths.sum::<Result<_, _>>()?;
        Ok(Duration::from_millis(hundredths * 10))
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let megabytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes / 1024)
        };
        let (now, most) = megabytes("VmRSS:").zip(megabytes("VmHWM:")).context("/proc/PID/status says it")?;
        Ok(Memory { now, most })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(kubeconfig: &PathBuf, address: SocketAddr, http: SocketAddr) -> Result<Child> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moat-controller"));
    command.arg("--kubeconfig").arg(kubeconfig);
    command.arg(format!("--listen={address}")).arg(format!("--http={http}"));
    command.env("RUST_LOG", "warn").stdin(Stdio::null());
    command.spawn().context("the controller starts")
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
