//! What goes to the terminal: colours where there is one, and no complaint when nobody reads on.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use moat_manifests::Errors;

/// How many of an input's errors are printed.
const MOST_ERRORS: usize = 50;

/// `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Whether standard output takes colours: a terminal, and nobody has said NO_COLOR (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && wanted()
}

fn wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The word for a verdict, green or red where there are colours.
pub(crate) fn verdict(allowed: bool, colours: bool) -> String {
    let (word, colour) = if allowed { ("allowed", 32) } else { ("denied", 31) };
    if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_string() }
}

/// Writes to standard output; a reader that has gone (`| head`) is no error.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
            // What is left in the buffer has no reader either.
            let _ = out.into_parts();
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Something odd, on standard error.
pub(crate) fn warn(text: fmt::Arguments<'_>) {
    message("warning", 33, text);
}

/// Something worth knowing, on standard error.
pub(crate) fn note(text: fmt::Arguments<'_>) {
    message("note", 36, text);
}

/// What went wrong, on standard error, whole. An input's errors stand one a line.
pub(crate) fn error(error: &anyhow::Error) {
    match error.downcast_ref::<Errors>() {
        Some(errors) => {
            let all: Vec<_> = errors.iter().collect();
            let problems =
                if all.len() == 1 { "1 problem".to_string() } else { format!("{} problems", all.len()) };
            message("error", 31, format_args!("{problems} in the input, so there is no answer:"));
            let mut lines: String = all.iter().take(MOST_ERRORS).map(|e| format!("  {e}\n")).collect();
            if all.len() > MOST_ERRORS {
                lines += &format!("  ... and {} more\n", all.len() - MOST_ERRORS);
            }
            stderr(format_args!("{lines}"));
        }
        None => message("error", 31, format_args!("{error:#}")),
    }
}

fn message(word: &str, colour: u8, text: fmt::Arguments<'_>) {
    match io::stderr().is_terminal() && wanted() {
        true => stderr(format_args!("\x1b[1;{colour}m{word}\x1b[0m: {text}\n")),
        false => stderr(format_args!("{word}: {text}\n")),
    }
}

/// Where standard error has gone, there is nobody to tell.
fn stderr(text: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}
