//! The controllers' own certificate authority (CA): what lets an agent know a controller.
//!
//! ```text
//!   Secret moat-controller-ca                        ConfigMap moat-controller-ca
//!     signing CA, its key ──signs──▶ leaf (memory)     bundle: every CA that may have signed a leaf
//!     next CA, its key                 │                 │ the kubelet mounts it into agents' pods
//!          ▲      ▲                    ▼ TLS             ▼
//!          └ keeper ┘               agents: is the leaf signed by one of the bundle?
//! ```
//!
//! All replicas keep the same two objects, none leads. What is to be done to them follows from what they hold and from the time
//! ([`plan`]); whoever is quicker does it, and who was slower reads again ([`keeper`]). Each replica makes leaves for itself
//! ([`leaf`]). Where certificates are somebody else's work, they come from [`files`].

pub mod certificate;
pub mod files;
pub mod keeper;
pub mod leaf;
pub mod plan;

use std::time::Duration;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// For how long what is for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// How long a CA is valid. Its successor is made when a third of that is left.
    pub ca: Duration,
    /// How long a CA is in the bundle before it signs: longer than the kubelets take to bring a ConfigMap into all pods.
    pub settle: Duration,
    /// How long a leaf is valid. It is made anew when half of that is over.
    pub leaf: Duration,
}

/// Lifetimes that do not go together.
#[derive(Debug, thiserror::Error)]
#[error(
    "a CA of {0:?} is too short for leaves of {1:?} and {2:?} in the bundle before it signs: a third of its life must be longer than both \
     together"
)]
pub struct LifetimesError(Duration, Duration, Duration);

impl Default for Lifetimes {
    fn default() -> Self {
        Self { ca: HOUR * 24 * 365, settle: HOUR, leaf: HOUR * 24 }
    }
}

impl Lifetimes {
    /// Refuses what would let a CA expire before its successor signs.
    pub fn check(self) -> Result<Self, LifetimesError> {
        match self.ca / 3 > self.settle + self.leaf {
            true => Ok(self),
            false => Err(LifetimesError(self.ca, self.leaf, self.settle)),
        }
    }
}
