//! Which node an agent may speak for: what its ServiceAccount token says, and the API server confirms.
//!
//! ```text
//!   authorization: Bearer … ─▶ claims (does it say it is for us?) ─▶ cache ─▶ TokenReview ─▶ Pass: this node
//! ```
//!
//! What a token says of itself (`claims`) only spares the API server questions and makes the answers plain: whether it is true,
//! the API server says (`review`). It is asked again while the stream lasts, so a token that is no good any more ends its stream;
//! an API server that does not answer ends nothing.

mod cache;
mod claims;
mod refusal;
mod review;

pub use claims::AUDIENCE;
pub use refusal::Refusal;

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Semaphore;
use tokio::time;
use tonic::metadata::MetadataMap;

use crate::entrance::NAMESPACE;
use cache::{Cache, Known};

/// How long the API server may take over one review, and how long one may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many reviews are asked for at once: a thousand agents that come back at once are no more work for the API server than that.
const AT_ONCE: usize = 32;

/// A token. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// The token that comes with a request.
    pub fn of(metadata: &MetadataMap) -> Result<Self, Refusal> {
        let value = metadata.get("authorization").ok_or(Refusal::NoToken)?;
        let value = value.to_str().map_err(|_| Refusal::Malformed)?;
        let token = value.strip_prefix("Bearer ").filter(|token| !token.is_empty());
        Ok(Self(token.ok_or(Refusal::Malformed)?.into()))
    }
}

/// Checks tokens.
pub struct Tokens {
    client: kube::Client,
    /// The user that an agent must be, as the API server names it.
    user: String,
    /// How long a stream goes on before its token is looked at again.
    again: Duration,
    cache: Mutex<Cache>,
    turns: Semaphore,
}

impl Tokens {
    /// Takes tokens of this ServiceAccount ("namespace/name"), and looks at them again every so often.
    pub fn new(client: kube::Client, account: &Account, again: Duration) -> Self {
        Self { client, user: account.user(), again, cache: Mutex::default(), turns: Semaphore::new(AT_ONCE) }
    }

    /// The node that the token's owner may speak for.
    pub async fn check(&self, token: &Token) -> Result<Arc<str>, Refusal> {
        let claims = claims::of(&token.0, &self.user)?;
        let known = self.cache().look(&token.0, Instant::now(), SystemTime::now());
        match known {
            Some(Known::Fresh(answer)) => answer,
            Some(Known::Old(node)) => match self.ask(token, &claims).await {
                // Nobody can have learnt since that it is no good any more.
                Err(Refusal::Unreachable(_)) => Ok(node),
                answer => answer,
            },
            None => self.ask(token, &claims).await,
        }
    }

    /// Returns once a token that was good is no good any more.
    pub async fn expired(&self, token: &Token) -> Refusal {
        let random = RandomState::new();
        for turn in 0u64.. {
            // Those that came at once are not looked at at once.
            let share = (random.hash_one(turn) % 1024) as f64 / 1024.0;
            time::sleep(self.again.mul_f64(0.8 + 0.4 * share)).await;
            let answer = match claims::of(&token.0, &self.user) {
                Ok(claims) => self.ask(token, &claims).await,
                Err(refusal) => Err(refusal),
            };
            match answer {
                Ok(_) | Err(Refusal::Unreachable(_)) => {}
                Err(refusal) => return refusal,
            }
        }
        Refusal::Expired
    }

    async fn ask(&self, token: &Token, claims: &claims::Claims) -> Result<Arc<str>, Refusal> {
        let silent = || Refusal::Unreachable("it does not answer in time".to_owned());
        let turn = time::timeout(PATIENCE, self.turns.acquire()).await.map_err(|_| silent())?;
        let answer = match time::timeout(PATIENCE, review::ask(&self.client, &token.0)).await {
            Err(_) => Err(silent()),
            Ok(Err(error)) => Err(Refusal::Unreachable(format!("{:#}", anyhow::Error::new(error)))),
            Ok(Ok(status)) => review::node_of(&status, &self.user, claims, SystemTime::now()),
        };
        drop(turn);
        self.cache().put(&token.0, &answer, claims.expires, Instant::now());
        answer
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    namespace: String,
    name: String,
}

/// A text that names no ServiceAccount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not NAMESPACE/NAME of a ServiceAccount")]
pub struct AccountError(String);

impl Default for Account {
    /// The one of deploy/base.
    fn default() -> Self {
        Self { namespace: NAMESPACE.to_owned(), name: "moat-agent".to_owned() }
    }
}

impl std::str::FromStr for Account {
    type Err = AccountError;

    fn from_str(text: &str) -> Result<Self, AccountError> {
        let fits = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
        };
        match text.split_once('/') {
            Some((namespace, name)) if fits(namespace) && fits(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(AccountError(text.to_owned())),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Account {
    /// What the API server calls it.
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}
