//! Who is let in, and how: what of TLS and tokens an address takes.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::authority::Lifetimes;
use crate::authority::files::{Files, FilesError};
use crate::authority::keeper::Keeper;
use crate::authority::leaf::Shown;
use crate::listen::{Listen, ListenError, Listener};
use crate::tls;
use crate::tokens::{Account, Tokens};

/// The namespace of everything that is moat's, where nothing else is said.
pub const NAMESPACE: &str = "moat-system";

/// How long a stream goes on before its token is looked at again, where nothing else is said.
pub const RECHECK: Duration = Duration::from_secs(600);

/// How long after a failure the CA is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How agents are let in.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// Where they connect.
    pub listen: Listen,
    /// Whether that may be in clear text where others could read along.
    pub insecure_plaintext: bool,
    /// Whether anybody may speak for any node.
    pub insecure_any_agent: bool,
    /// A certificate that somebody else makes.
    pub files: Option<Files>,
    /// The controllers' namespace: there is their CA.
    pub namespace: String,
    /// Who agents are.
    pub account: Account,
    /// How long a stream goes on before its token is looked at again.
    pub token_recheck: Duration,
    /// How long what is valid.
    pub lifetimes: Lifetimes,
}

/// What an address takes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rules {
    /// How agents know the controller.
    shown: Known,
    /// Whether an agent shows a token.
    tokens: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// In clear text.
    Plain,
    /// By a certificate in files.
    Files(Files),
    /// By a certificate of the controllers' CA.
    Authority,
}

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
pub enum EntranceError {
    /// Anybody could read along, and ask in any node's name.
    #[error(
        "will not listen on {0} in clear text: everybody who reaches it could read every node's policy and speak for every node; give \
         unix:PATH, a loopback address, or --tls-cert and --tls-key, or --insecure-plaintext if nobody else can reach it"
    )]
    Plaintext(Listen),
    /// Nobody checks who asks.
    #[error(
        "will not listen on {0}: without an API server nobody checks who asks, so everybody who reaches it could read every node's policy \
         and speak for every node; give --insecure-any-agent if nobody else can reach it"
    )]
    AnyAgent(Listen),
    /// The certificate's files are of no use.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// TLS cannot be had.
    #[error("cannot speak TLS")]
    Tls(#[from] rustls::Error),
    /// There is no listening there.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// What is ready before anybody is listened to.
#[derive(Clone, Default)]
pub struct Gate {
    /// How TLS is spoken with agents; `None`: they are spoken with in clear text.
    tls: Option<Arc<ServerConfig>>,
    /// What their tokens are checked with; `None`: they need none.
    pub tokens: Option<Arc<Tokens>>,
}

impl Gate {
    /// Whether agents are spoken with by TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Listens as the gate says.
    pub async fn listen(&self, listen: &Listen) -> Result<Listener, ListenError> {
        Ok(match (listen.bind().await?, &self.tls) {
            (Listener::Tcp(listener), Some(tls)) => Listener::Tls(listener, tls.clone()),
            (listener, _) => listener,
        })
    }
}

impl Entrance {
    /// At this address, and in everything else as where nothing is said.
    pub fn at(listen: Listen) -> Self {
        Self {
            listen,
            insecure_plaintext: false,
            insecure_any_agent: false,
            files: None,
            namespace: NAMESPACE.to_owned(),
            account: Account::default(),
            token_recheck: RECHECK,
            lifetimes: Lifetimes::default(),
        }
    }

    fn rules(&self, api_server: bool) -> Result<Rules, EntranceError> {
        let Listen::Tcp(address) = &self.listen else {
            // Whoever may open the socket is of this user.
            return Ok(Rules { shown: Known::Plain, tokens: false });
        };
        let here = address.ip().is_loopback();
        let shown = match &self.files {
            _ if self.insecure_plaintext => return Ok(Rules { shown: Known::Plain, tokens: false }),
            Some(files) => Known::Files(files.clone()),
            None if api_server => Known::Authority,
            None if here => Known::Plain,
            None => return Err(EntranceError::Plaintext(self.listen.clone())),
        };
        let tokens = api_server && !self.insecure_any_agent;
        match tokens || here || self.insecure_any_agent {
            true => Ok(Rules { shown, tokens }),
            false => Err(EntranceError::AnyAgent(self.listen.clone())),
        }
    }

    /// Says early what cannot be.
    pub fn check(&self, api_server: bool) -> Result<(), EntranceError> {
        self.rules(api_server).map(drop)
    }

    /// Makes ready what is shown and what is checked, and keeps it so until `stop`. Waits for the API server if there is one.
    pub async fn prepare(
        &self,
        client: Option<kube::Client>,
        shown: Shown,
        stop: &CancellationToken,
    ) -> Result<Gate, EntranceError> {
        let rules = self.rules(client.is_some())?;
        let work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = match (rules.shown, &client) {
            (Known::Files(files), _) => {
                shown.put(files.read()?);
                Box::pin(files.follow(shown.clone()))
            }
            (Known::Authority, Some(client)) => {
                let mut keeper = Keeper::new(client.clone(), &self.namespace, self.lifetimes, shown.clone());
                if stop.run_until_cancelled(first(&mut keeper)).await.is_none() {
                    return Ok(Gate::default());
                }
                Box::pin(keeper.keep())
            }
            (Known::Plain | Known::Authority, _) => return Ok(Gate::default()),
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(work));
        let tokens = client.filter(|_| rules.tokens);
        let tokens = tokens.map(|client| Arc::new(Tokens::new(client, &self.account, self.token_recheck)));
        Ok(Gate { tls: Some(tls::config(shown)?), tokens })
    }
}

/// There is nothing to show before there is a CA.
async fn first(keeper: &mut Keeper) {
    let mut said = String::new();
    while let Err(why) = keeper.turn().await {
        if why != said {
            warn!("no agent is served before there is a CA: {why}");
            said = why;
        }
        time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrance(listen: &str) -> Entrance {
        Entrance::at(listen.parse().unwrap())
    }

    #[test]
    fn whoever_could_be_anybody_shows_a_token_and_is_shown_a_certificate() {
        let files = Files { certificate: "tls.crt".into(), key: "tls.key".into() };
        let plain = Rules { shown: Known::Plain, tokens: false };
        let own = Rules { shown: Known::Authority, tokens: true };
        for open in ["0.0.0.0:9471", "[::]:9471", "192.0.2.1:9471"] {
            let with = |change: &dyn Fn(&mut Entrance), api_server| {
                let mut entrance = entrance(open);
                change(&mut entrance);
                entrance.rules(api_server)
            };
            assert_eq!(with(&|_| (), true).unwrap(), own);
            assert!(matches!(with(&|_| (), false), Err(EntranceError::Plaintext(_))));
            assert_eq!(with(&|e| e.insecure_plaintext = true, false).unwrap(), plain);
            let given = |e: &mut Entrance| e.files = Some(files.clone());
            let shown = Known::Files(files.clone());
            assert_eq!(with(&given, true).unwrap(), Rules { shown: shown.clone(), tokens: true });
            assert!(matches!(with(&given, false), Err(EntranceError::AnyAgent(_))));
            let any = |e: &mut Entrance| (e.files, e.insecure_any_agent) = (Some(files.clone()), true);
            assert_eq!(with(&any, false).unwrap(), Rules { shown, tokens: false });
        }
        for here in ["127.0.0.1:9471", "[::1]:9471"] {
            assert_eq!(entrance(here).rules(false).unwrap(), plain);
            assert_eq!(entrance(here).rules(true).unwrap(), own);
        }
        for api_server in [true, false] {
            assert_eq!(entrance("unix:/run/moat/controller.sock").rules(api_server).unwrap(), plain);
        }
    }
}
