//! Why an agent is not served.

use tonic::{Code, Status};

/// Why an agent is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It shows nothing.
    #[error("no token: an agent shows the ServiceAccount token that is mounted into its pod (--token-file)")]
    NoToken,
    /// It shows something else.
    #[error("what is shown is no ServiceAccount token")]
    Malformed,
    /// The token is for somebody else.
    #[error("the token is for {0}, not for {audience}", audience = super::AUDIENCE)]
    Audience(String),
    /// Somebody else's token.
    #[error("the token is {0}'s, and agents are {1}")]
    Account(String, String),
    /// A token of yesterday.
    #[error("the token has expired; the kubelet renews the one that is mounted into the agent's pod")]
    Expired,
    /// The API server knows better.
    #[error("the API server does not take the token for a good one: {0}")]
    Bad(String),
    /// A token of no node.
    #[error(
        "the token is bound to no node: it must be one that the kubelet has mounted into a pod, of Kubernetes 1.32 or newer"
    )]
    NoNode,
    /// A node speaks for another.
    #[error("the token is of node {token}, and does not speak for node {claimed}")]
    OtherNode {
        /// Whose token it is.
        token: String,
        /// Who its owner says to be.
        claimed: String,
    },
    /// Nobody can say.
    #[error("whether the token is good cannot be asked of the API server just now ({0}); try again")]
    Unreachable(String),
}

impl Refusal {
    /// All reasons, as they are counted.
    pub const REASONS: [&'static str; 9] = [
        "no_token",
        "malformed",
        "audience",
        "account",
        "expired",
        "bad",
        "no_node",
        "other_node",
        "api_server",
    ];

    /// Its name among those.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::NoToken => "no_token",
            Refusal::Malformed => "malformed",
            Refusal::Audience(_) => "audience",
            Refusal::Account(..) => "account",
            Refusal::Expired => "expired",
            Refusal::Bad(_) => "bad",
            Refusal::NoNode => "no_node",
            Refusal::OtherNode { .. } => "other_node",
            Refusal::Unreachable(_) => "api_server",
        }
    }
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        let code = match refusal {
            Refusal::Unreachable(_) => Code::Unavailable,
            Refusal::Account(..) | Refusal::NoNode | Refusal::OtherNode { .. } => Code::PermissionDenied,
            _ => Code::Unauthenticated,
        };
        Status::new(code, refusal.to_string())
    }
}
