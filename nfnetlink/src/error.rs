//! What can go wrong: what cannot be written, what the kernel refused, and what the socket did.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::nft::Operation;

/// Why something cannot be put into a netlink message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A name that is empty or longer than the kernel takes.
    #[error("the name {name:?} must have 1 to {limit} bytes")]
    NameLength {
        /// The name.
        name: String,
        /// The most bytes it may have.
        limit: usize,
    },
    /// A text with a zero byte in it; the kernel would end it there.
    #[error("the text {text:?} holds a zero byte")]
    Zero {
        /// The text.
        text: String,
    },
    /// An interface name with a slash or a blank.
    #[error("{name:?} is no interface name: slashes, colons and blanks cannot be in one")]
    InterfaceName {
        /// The name.
        name: String,
    },
    /// An attribute longer than its 16-bit length can say.
    #[error("an attribute of {length} bytes is longer than netlink can say (65535)")]
    AttributeTooLong {
        /// Its length with its header.
        length: usize,
    },
    /// A comment or private data longer than the kernel keeps.
    #[error("user data of {length} bytes is longer than the kernel keeps ({limit})")]
    UserData {
        /// Its length.
        length: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// A key longer than the registers hold, or with more fields than a type number can name.
    #[error("a key of {fields} fields and {bytes} bytes: at most 5 fields and 64 bytes fit")]
    KeyTooLong {
        /// Its number of fields.
        fields: usize,
        /// Its bytes, each field padded to four.
        bytes: usize,
    },
    /// An interval set of one field: the kernel's pipapo sets need two at least.
    #[error("set {set:?}: an interval set needs two fields or more (add one that takes every value)")]
    IntervalFields {
        /// The set.
        set: Arc<str>,
    },
    /// An element that does not have its set's type.
    #[error("set {set:?}: an element's {part} is {found}, the set's is {expected}")]
    ElementType {
        /// The set.
        set: Arc<str>,
        /// The element's part: `key`, `key end` or `data`.
        part: &'static str,
        /// What the element has.
        found: String,
        /// What the set was declared with.
        expected: String,
    },
    /// A statement that compares values of different lengths.
    #[error("{what} has {source_length} bytes, compared with {value_length}")]
    Length {
        /// What is read from the packet.
        what: String,
        /// Its length.
        source_length: usize,
        /// The length of the value or mask.
        value_length: usize,
    },
    /// A key read into registers that has no field, or more than the registers hold.
    #[error("a key read from {sources} sources ({bytes} bytes) does not fit the registers")]
    Registers {
        /// How many sources.
        sources: usize,
        /// How many bytes they fill.
        bytes: usize,
    },
    /// A base chain without a device on the netdev hook, or with one elsewhere.
    #[error("chain {chain:?}: the netdev hooks, and only they, belong to a device")]
    Device {
        /// The chain.
        chain: Arc<str>,
    },
}

/// One message of a request that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which message of the batch it is, from 0; [`Batch::len`](crate::nft::Batch::len) counts the same.
    pub index: usize,
    /// What that message was to do.
    pub operation: Operation,
    /// The error number.
    pub errno: i32,
    /// The kernel's own words, where it has any.
    pub message: Option<String>,
    /// Which element of the message's list the kernel pointed at, from 0.
    pub element: Option<usize>,
}

impl Failure {
    /// The kind of the error number.
    pub fn kind(&self) -> io::ErrorKind {
        io::Error::from_raw_os_error(self.errno).kind()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation)?;
        if let Some(element) = self.element {
            write!(f, ", element {element} of the message")?;
        }
        write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        Ok(())
    }
}

/// Every message that failed, as the kernel names them; the first is the cause, later ones may only follow from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The first failure.
    pub first: Failure,
    /// The failures after it, in order.
    pub rest: Vec<Failure>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        match self.rest.len() {
            0 => Ok(()),
            1 => write!(f, " (and one more failure after it)"),
            more => write!(f, " (and {more} more failures after it)"),
        }
    }
}

/// Why a request did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A system call on the socket failed.
    #[error("cannot {doing}")]
    Socket {
        /// What the socket was doing.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A descriptor that was to be taken over is not a netlink socket for netfilter.
    #[error("this is not a netlink socket for netfilter")]
    NotNetfilter,
    /// A socket that was to be taken over belongs to another network namespace than the calling thread.
    #[error("the socket belongs to another network namespace")]
    OtherNetwork,
    /// The kernel refused the batch; nothing of it is in force.
    #[error("the kernel refused to {0}")]
    Refused(Box<Refusal>),
    /// Somebody else committed since the generation that the batch was built on; nothing of it is in
    /// force. Read the generation and what changed, then send again.
    #[error("the ruleset changed since it was read (generation {expected})")]
    Restart {
        /// The generation that the batch expected.
        expected: u32,
    },
    /// The whole batch failed, no message of it in particular; nothing of it is in force.
    #[error("the kernel refused the whole batch of {messages} messages{}", words(.message))]
    Commit {
        /// How many messages the batch has.
        messages: usize,
        /// The kernel's own words, where it has any.
        message: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// The batch does not fit the socket's send buffer. A process without CAP_NET_ADMIN in the first
    /// user namespace gets no more than net.core.wmem_max.
    #[error("a batch of {size} bytes does not fit the socket's send buffer; raise net.core.wmem_max")]
    TooLarge {
        /// The batch's size.
        size: usize,
    },
    /// A single request, not a batch, was refused.
    #[error("cannot {doing}{}", words(.message))]
    Request {
        /// What was asked.
        doing: String,
        /// The kernel's own words, where it has any.
        message: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// The kernel dropped answers because the socket's receive buffer was full.
    #[error("answers to {doing:?} were lost: the socket's receive buffer was full")]
    Overrun {
        /// What was asked.
        doing: &'static str,
    },
    /// An answer that does not follow the protocol.
    #[error("cannot read the kernel's answer to {doing:?}")]
    Malformed {
        /// What was asked.
        doing: &'static str,
    },
}

impl Error {
    pub(crate) fn socket(doing: &'static str, source: impl Into<io::Error>) -> Self {
        Error::Socket { doing, source: source.into() }
    }

    /// The error number of the kernel's answer, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused(refusal) => Some(refusal.first.errno),
            Error::Restart { .. } => Some(libc::ERESTART),
            Error::Socket { source, .. } | Error::Commit { source, .. } | Error::Request { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }

    /// Whether what was asked for does not exist (ENOENT).
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(libc::ENOENT)
    }
}

/// The kernel's words as they stand at the end of a sentence.
fn words(message: &Option<String>) -> String {
    message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default()
}
