//! What is to be done about the CA: a function of what there is, and of the time.
//!
//! ```text
//!   no CA ──▶ make one ──▶ publish ──▶ ... a third of its life is left ──▶ make the next ──▶ publish both
//!                                                                                             │ settled
//!               bundle without the old one ◀── it is expired, the new one settled ◀── the next signs
//! ```
//!
//! What holds whatever the clock says, and whoever else acts:
//! - a CA signs after it has been in the bundle for long enough that agents have it; sooner only if none that is valid is left;
//! - a certificate leaves the bundle only when it is expired *and* the signing one is valid and settled;
//! - how long one has been in the bundle is measured by a clock that nobody sets, by each replica for itself.

use std::time::{Duration, SystemTime};

use super::Lifetimes;
use super::certificate::Certificate;

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The CA that signs.
    pub signing: Option<Certificate>,
    /// The one that will.
    pub next: Option<Certificate>,
    /// What agents are told to believe.
    pub bundle: Vec<Certificate>,
}

/// What to do next. After it, everything is looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a CA and let it sign.
    MakeSigning,
    /// Make a CA that is to sign later.
    MakeNext,
    /// Let the next one sign from now on.
    Promote,
    /// Let agents believe these.
    Publish(Vec<Certificate>),
}

/// What to do; `None`: all is as it should be. `settled` says for how long a certificate has been in the bundle without a break, as
/// far as this replica knows.
pub fn decide(
    state: &State,
    settled: impl Fn(&Certificate) -> Duration,
    now: SystemTime,
    lifetimes: Lifetimes,
) -> Option<Step> {
    let valid = |certificate: &Certificate| now < certificate.not_after();
    let settled = |certificate: &Certificate| settled(certificate) >= lifetimes.settle;
    let Some(signing) = &state.signing else { return Some(Step::MakeSigning) };

    let own = [Some(signing), state.next.as_ref()];
    let mut bundle: Vec<Certificate> = own.into_iter().flatten().cloned().collect();
    let tidy = valid(signing) && settled(signing);
    for other in &state.bundle {
        if !bundle.contains(other) && (valid(other) || !tidy) {
            bundle.push(other.clone());
        }
    }
    if bundle != state.bundle {
        return Some(Step::Publish(bundle));
    }

    let left = signing.not_after().duration_since(now).unwrap_or_default();
    match &state.next {
        Some(next) if !valid(next) => Some(Step::MakeNext),
        Some(next) => (settled(next) || !valid(signing)).then_some(Step::Promote),
        None => (left < lifetimes.ca / 3).then_some(Step::MakeNext),
    }
}

#[cfg(test)]
mod tests;
