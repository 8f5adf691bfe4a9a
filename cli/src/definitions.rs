//! `moat completion` and `moat man`: what the help says, for shells and for man.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

use crate::output;

/// Print the completions of moat's commands and flags for a shell
#[derive(clap::Args)]
#[command(after_help = "Examples:
  For this shell, and for those to come:
      source <(moat completion bash)
      moat completion bash > /etc/bash_completion.d/moat
      moat completion zsh > \"${fpath[1]}/_moat\"
      moat completion fish > ~/.config/fish/completions/moat.fish")]
pub(crate) struct Completion {
    /// Which shell
    shell: Shell,
}

/// Write a man page of moat, and one of each of its commands, to a folder
#[derive(clap::Args)]
#[command(after_help = "Example:
      moat man /usr/local/share/man/man1 && man moat-reach")]
pub(crate) struct Man {
    /// The folder; it must be there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs `moat completion`.
pub(crate) fn completion(mut definitions: Command, args: &Completion) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut definitions, "moat", &mut text);
    output::print(|out| out.write_all(&text))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `moat man`.
pub(crate) fn man(definitions: Command, args: &Man) -> Result<ExitCode> {
    clap_mangen::generate_to(definitions, &args.folder)
        .with_context(|| format!("cannot write man pages to {}", args.folder.display()))?;
    Ok(ExitCode::SUCCESS)
}
