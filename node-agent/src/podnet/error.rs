//! What goes wrong in the pod network, and which CNI error it is.

use moat_cni::error::{CniError, code};
use moat_cni::port::HostPort;
use moat_policies::NamespacedName;

use super::attachment::AttachmentKey;
use super::ipam::IpamError;
use super::journal::JournalError;
use super::netlink::NetlinkError;
use super::netns::NetnsError;
use super::sysctl::SysctlError;

/// What goes wrong in the pod network.
#[derive(Debug, thiserror::Error)]
pub enum PodNetError {
    /// There is no address to give.
    #[error("no address can be given to the pod")]
    Ipam(#[from] IpamError),
    /// The state file cannot be used.
    #[error("the attachments cannot be recorded")]
    Journal(#[from] JournalError),
    /// The kernel refused something.
    #[error("the kernel refused a change to the network")]
    Kernel(#[from] NetlinkError),
    /// The pod's namespace cannot be entered.
    #[error("the pod's network namespace cannot be used")]
    Netns(#[from] NetnsError),
    /// A kernel parameter cannot be set.
    #[error("a kernel parameter is not as it must be")]
    Sysctl(#[from] SysctlError),
    /// ADD of an interface that is there already.
    #[error("there is an {0} already; remove it first")]
    InterfaceExists(AttachmentKey),
    /// A port of the node that leads to another pod.
    #[error(
        "the host port {port} of this node leads to the pod {pod} already ({key}): remove that pod first, or give one of \
         them another hostPort or hostIP"
    )]
    HostPortTaken {
        /// The port that was asked for.
        port: HostPort,
        /// Who has it.
        pod: NamespacedName,
        /// By which interface.
        key: AttachmentKey,
    },
    /// A port at an address of a family that pods have none of.
    #[error(
        "the host port {port} cannot lead to the pod, which has no address of that family: see the node's podCIDRs"
    )]
    HostPortFamily {
        /// The port that was asked for.
        port: HostPort,
    },
    /// The port at which the node takes in what other nodes send through the tunnel.
    #[error(
        "the host port {port} is that of the tunnel between nodes: use another hostPort, or run moat-agent with --mode routed"
    )]
    HostPortOfTunnel {
        /// The port that was asked for.
        port: HostPort,
    },
    /// A link vanished while it was worked on.
    #[error("the link {0} is gone; its pod was probably removed meanwhile")]
    LinkGone(String),
    /// A link that is up on both ends, and yet passes nothing.
    #[error("{0} is up, but the kernel does not let packets pass")]
    NotReady(AttachmentKey),
    /// A link that was made again and may not come up yet.
    #[error("the policy of {0} is not in the kernel, so it stays down")]
    NoPolicy(AttachmentKey),
    /// An attachment that nobody knows.
    #[error("there is no {0}")]
    UnknownAttachment(AttachmentKey),
    /// CHECK found differences.
    #[error("the network of {key} is not as it was made: {}", .drift.join("; "))]
    Drifted {
        /// Whose.
        key: AttachmentKey,
        /// Each difference in a sentence.
        drift: Vec<String>,
    },
    /// More than one thing went wrong while something was removed; everything that could be removed was.
    #[error("{}", list(.0))]
    Several(Vec<PodNetError>),
}

impl PodNetError {
    /// One error of a list that may hold none, one or more.
    pub(crate) fn collect(mut errors: Vec<PodNetError>) -> Result<(), PodNetError> {
        match errors.pop() {
            None => Ok(()),
            Some(only) if errors.is_empty() => Err(only),
            Some(last) => {
                errors.push(last);
                Err(PodNetError::Several(errors))
            }
        }
    }

    fn code(&self) -> u32 {
        match self {
            // An address may be released, a podCIDR may come, a link may be made again, a pod may go.
            PodNetError::Ipam(_)
            | PodNetError::LinkGone(_)
            | PodNetError::NotReady(_)
            | PodNetError::NoPolicy(_)
            | PodNetError::HostPortTaken { .. } => code::TRY_AGAIN,
            PodNetError::HostPortFamily { .. } | PodNetError::HostPortOfTunnel { .. } => code::INVALID_CONFIG,
            PodNetError::Journal(_) => code::IO_FAILURE,
            PodNetError::Kernel(_) | PodNetError::Sysctl(_) => code::KERNEL_REFUSED,
            PodNetError::Netns(_) => code::INVALID_ENVIRONMENT,
            PodNetError::InterfaceExists(_) => code::INTERFACE_EXISTS,
            PodNetError::UnknownAttachment(_) => code::UNKNOWN_CONTAINER,
            PodNetError::Drifted { .. } => code::DRIFTED,
            PodNetError::Several(errors) => errors.first().map_or(code::INTERNAL, PodNetError::code),
        }
    }
}

impl From<PodNetError> for CniError {
    fn from(error: PodNetError) -> Self {
        let details = match &error {
            PodNetError::Drifted { drift, .. } => drift.join("; "),
            other => causes(other),
        };
        let msg = match &error {
            PodNetError::Netns(cause) => format!("CNI_NETNS cannot be used: {cause}"),
            PodNetError::Drifted { key, .. } => format!("the network of {key} is not as it was made"),
            other => other.to_string(),
        };
        CniError::new(error.code(), msg, details)
    }
}

/// The causes of an error, outermost first.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// All errors of a list, each with its causes.
fn list(errors: &[PodNetError]) -> String {
    let lines: Vec<String> = errors
        .iter()
        .map(|error| match causes(error) {
            causes if causes.is_empty() => error.to_string(),
            causes => format!("{error}: {causes}"),
        })
        .collect();
    lines.join("; ")
}
