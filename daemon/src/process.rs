//! From the command line to the end.

use std::future::Future;
use std::io::IsTerminal as _;

use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// How a line of the log is written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

impl LogFormat {
    /// From now on, the log goes to standard error. `directives` are as in RUST_LOG, which is stronger.
    pub fn begin(self, directives: &str) {
        let asked = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
        let filter = filter(directives, &asked);
        let terminal = std::io::stderr().is_terminal();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self {
            LogFormat::Text => log.with_ansi(terminal).init(),
            LogFormat::Json => log.json().flatten_event(true).init(),
        }
    }
}

/// What is logged: warnings, errors and what is worth knowing, but for what the directives say. The level is one of the directives, since
/// a default one goes where there is any other.
fn filter(directives: &str, asked: &str) -> EnvFilter {
    EnvFilter::builder().parse_lossy(format!("info,{directives},{asked}"))
}

/// Runs the program, and tells it to stop at SIGTERM and at Ctrl-C.
pub fn run<F>(program: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let told = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            told.cancel();
        });
        program(stop).await
    })
}

#[cfg(test)]
mod tests {
    use tracing::level_filters::LevelFilter;

    use super::*;

    #[test]
    fn what_is_left_out_leaves_the_rest() {
        let level = |directives, asked| filter(directives, asked).max_level_hint();
        assert_eq!(level("", ""), Some(LevelFilter::INFO));
        assert_eq!(level("noisy=off", ""), Some(LevelFilter::INFO));
        assert!(!filter("noisy=off", "error").to_string().contains("info"));
        assert_eq!(level("noisy=off", "noisy=debug"), Some(LevelFilter::DEBUG));
    }
}
