//! Files of words: one entry a line, words between blanks, `#` starts a comment.

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct LineError {
    /// Counted from 1.
    pub line: usize,
    /// In plain words.
    pub reason: String,
}

/// A line's number, to say what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line(pub(crate) usize);

impl Line {
    pub(crate) fn error(self, reason: impl Into<String>) -> LineError {
        LineError { line: self.0, reason: reason.into() }
    }
}

/// The lines that hold words.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (Line, Vec<&str>)> {
    text.lines().enumerate().filter_map(|(at, line)| {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        (!words.is_empty()).then_some((Line(at + 1), words))
    })
}
