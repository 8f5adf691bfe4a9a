//! What goes wrong between us and the kernel.

use std::path::PathBuf;
use std::sync::Arc;

use moat_nfnetlink::nft::TableId;

use crate::guard::GuardError;

/// Why the kernel does not hold what it was to hold. What it held before it goes on enforcing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused, or could not be asked.
    #[error(transparent)]
    Kernel(Arc<moat_nfnetlink::Error>),
    /// A table of ours belongs to another process.
    #[error(
        "the table {table} belongs to another process (netlink port {owner}): is another moat-agent running in this \
         network namespace, or does a guard of another --run-dir keep its tables? Stop the one, or end the other \
         (moat-agent guard --stop --run-dir DIR)"
    )]
    Owned {
        /// The table.
        table: TableId,
        /// The netlink port of its owner, mostly the process's id.
        owner: u32,
    },
    /// The guard does not give what it keeps.
    #[error(transparent)]
    Guard(Arc<GuardError>),
    /// What the guard keeps is of another network namespace.
    #[error(
        "the guard in {} keeps the tables of another network namespace: give this agent another --run-dir, or end that \
         guard (moat-agent guard --stop --run-dir {})",
        run_dir.display(), run_dir.display()
    )]
    GuardElsewhere {
        /// The run folder.
        run_dir: PathBuf,
    },
    /// The data plane has stopped.
    #[error("the data plane has stopped")]
    Stopped,
    /// The data plane's thread could not be started.
    #[error("cannot start the data plane's thread")]
    Thread(#[source] Arc<std::io::Error>),
}

impl From<moat_nfnetlink::Error> for Error {
    fn from(error: moat_nfnetlink::Error) -> Self {
        Error::Kernel(Arc::new(error))
    }
}

impl From<moat_nfnetlink::EncodeError> for Error {
    fn from(error: moat_nfnetlink::EncodeError) -> Self {
        moat_nfnetlink::Error::from(error).into()
    }
}
