//! Where objects come from: an API server, or folders.

use anyhow::Context as _;
use kube::Client;
use moat_apiserver::{News, PolicyNote, State, Versioned, Watch};
use moat_crd::Fingerprint;
use moat_manifests::{Changes, Errors, Folders, Reading};
use moat_policies::{Key, NamespacedName, NetworkConfig};
use tokio::sync::{mpsc, watch};
use tracing::error;

/// Where objects come from.
#[derive(Clone)]
pub enum Source {
    /// Folders of manifests, watched.
    Folders(Folders),
    /// An API server.
    Api(Client),
}

impl Source {
    /// The API server that objects come from.
    pub fn client(&self) -> Option<&Client> {
        match self {
            Self::Folders(_) => None,
            Self::Api(client) => Some(client),
        }
    }

    /// Begins to read, and to watch.
    pub(crate) fn begin(&self) -> anyhow::Result<Input> {
        Ok(match self {
            Self::Folders(folders) => Input::Folders(watch_folders(folders.clone())?),
            Self::Api(client) => {
                Input::Api { watch: Box::new(Watch::begin(client)), fingerprint: Fingerprint::default() }
            }
        })
    }
}

/// What a source says, one word after the other.
pub(crate) enum Input {
    Folders(mpsc::Receiver<Result<Reading, Errors>>),
    Api { watch: Box<Watch>, fingerprint: Fingerprint },
}

/// What became different.
pub(crate) struct Taken {
    /// For the index.
    pub(crate) changes: Changes,
    /// Names all that there is now.
    pub(crate) fingerprint: String,
    /// What an API server says beyond that.
    pub(crate) notes: Vec<PolicyNews>,
}

/// What there is to be said about a policy from now on; `None`: nothing.
pub(crate) type PolicyNews = (NamespacedName, Option<PolicyNote>);

impl Input {
    /// Waits for what is different. May be dropped at any time.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Result<Taken, Errors>> {
        match self {
            Self::Folders(readings) => {
                let reading =
                    readings.recv().await.context("the manifest folders are not watched any more")?;
                Ok(reading.map(|Reading { changes, fingerprint }| Taken {
                    changes,
                    fingerprint,
                    notes: Vec::new(),
                }))
            }
            Self::Api { watch, fingerprint } => {
                let news = watch.news().await.context("the API server is not watched any more")?;
                let News { changes, notes, versions } = news;
                versions.iter().for_each(|change| follow(fingerprint, change));
                let (fingerprint, notes) = (fingerprint.to_string(), notes.into_iter().collect());
                Ok(Ok(Taken { changes, fingerprint, notes }))
            }
        }
    }

    /// How it stands with an API server.
    pub(crate) fn states(&self) -> Option<watch::Receiver<State>> {
        match self {
            Self::Folders(_) => None,
            Self::Api { watch, .. } => Some(watch.states()),
        }
    }
}

/// Takes one object's new version into the name of all.
fn follow(fingerprint: &mut Fingerprint, Versioned { key, before, now }: &Versioned) {
    let (kind, namespace, name) = match key {
        Key::Policy(name) => ("NetworkPolicy", &*name.namespace, &*name.name),
        Key::Namespace(name) => ("Namespace", "", &**name),
        Key::Config => ("NetworkConfig", "", NetworkConfig::NAME),
        Key::Pod(_) | Key::Node(_) => return,
    };
    before.iter().for_each(|version| fingerprint.remove(kind, namespace, name, version));
    now.iter().for_each(|version| fingerprint.add(kind, namespace, name, version));
}

/// Readings from a thread of its own: it waits for the kernel.
fn watch_folders(folders: Folders) -> anyhow::Result<mpsc::Receiver<Result<Reading, Errors>>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || {
            if let Err(error) = folders.watch(|reading| sender.blocking_send(reading).is_ok()) {
                error!("cannot watch the manifest folders: {error}");
            }
        })
        .context("cannot start a thread")?;
    Ok(receiver)
}
