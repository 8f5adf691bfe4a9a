//! What is wrong with an input, and where.

use std::fmt;
use std::io;
use std::sync::Arc;

/// A document of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was named; `stdin` for standard input.
    pub file: Arc<str>,
    /// Which document of the file, from 1; documents without content do not count.
    pub document: usize,
    /// The line in the file, from 1, where it is known.
    pub line: Option<u32>,
}

/// As in `shop/policies.yaml, document 2 (line 14)`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file, self.document)?;
        match self.line {
            Some(line) => write!(f, " (line {line})"),
            None => Ok(()),
        }
    }
}

/// One thing that is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be read.
    #[error("{file}: {reason}")]
    Read {
        /// The file or folder, as it was named.
        file: Arc<str>,
        /// What kind of failure it was: a watcher reads a file again that vanished meanwhile.
        kind: io::ErrorKind,
        /// The system's words.
        reason: String,
    },
    /// A file that is no text, or too much of it.
    #[error("{file}: {reason}")]
    File {
        /// The file, as it was named.
        file: Arc<str>,
        /// What is wrong.
        reason: String,
    },
    /// A document that is neither YAML nor JSON.
    #[error("{place}: {reason}")]
    Syntax {
        /// Where.
        place: Place,
        /// What is wrong.
        reason: String,
    },
    /// A field that the API server would refuse, or that moat cannot do without.
    #[error("{place}: {field}: {reason}")]
    Field {
        /// Where.
        place: Place,
        /// The field's path, as in `spec.ingress[0].from[1].ipBlock.cidr`.
        field: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// An object that an earlier document has described already.
    #[error("{place}: {object} is there already: {first}")]
    Twice {
        /// Where it is the second time.
        place: Place,
        /// Kind and name.
        object: String,
        /// Where it was the first time.
        first: Place,
    },
}

/// All that is wrong with an input; never empty. Displays one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// The errors as a value, or `value` where there are none.
    pub(crate) fn or<T>(errors: Vec<Error>, value: T) -> Result<T, Errors> {
        if errors.is_empty() { Ok(value) } else { Err(Errors(errors)) }
    }

    /// Each of them, in the order of the input.
    pub fn iter(&self) -> std::slice::Iter<'_, Error> {
        self.0.iter()
    }
}

impl IntoIterator for Errors {
    type Item = Error;
    type IntoIter = std::vec::IntoIter<Error>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Something odd that does not stand in the way: a field that is not known, outside of policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub place: Place,
    /// The field's path.
    pub field: String,
    /// What is odd.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.field, self.reason)
    }
}
