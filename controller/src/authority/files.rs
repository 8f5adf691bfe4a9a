//! A certificate from files, read again when they change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::time;
use tracing::{info, warn};

use super::leaf::Shown;

/// How often the files are looked at: they may be on any file system, and nobody waits for them.
const LOOK: Duration = Duration::from_secs(10);

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and those between it and the CA; PEM.
    pub certificate: PathBuf,
    /// Its key; PEM.
    pub key: PathBuf,
}

/// Why files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// One holds something else.
    #[error("{} is to hold a {} as PEM, and holds none that can be read", .0.display(), .1)]
    Pem(PathBuf, &'static str),
    /// They do not go together.
    #[error("the key in {} is not that of the certificate in {}", .0.key.display(), .0.certificate.display())]
    Pair(Files, #[source] rustls::Error),
}

impl Files {
    /// What the files hold now.
    pub fn read(&self) -> Result<CertifiedKey, FilesError> {
        self.parse(&read(&self.certificate)?, &read(&self.key)?)
    }

    fn parse(&self, certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, FilesError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| FilesError::Pem(self.certificate.clone(), "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| FilesError::Pem(self.key.clone(), "key"))?;
        CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|error| FilesError::Pair(self.clone(), error))
    }

    /// Shows what the files hold, whenever that changes. What is of no use is said, and what was shown stays.
    pub async fn follow(self, shown: Shown) {
        let mut last = None;
        let mut ticks = time::interval(LOOK);
        loop {
            ticks.tick().await;
            let now = (fs::read(&self.certificate).ok(), fs::read(&self.key).ok());
            if last.as_ref() == Some(&now) {
                continue;
            }
            match self.read() {
                Ok(key) => {
                    shown.put(key);
                    shown.seen_to(None);
                    info!(certificate = %self.certificate.display(), "this certificate is shown from now on");
                }
                Err(error) => {
                    let why = format!("{:#}", anyhow::Error::new(error));
                    warn!("the certificate that was shown stays: {why}");
                    shown.seen_to(Some(why));
                }
            }
            last = Some(now);
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    fs::read(path).map_err(|error| FilesError::Read(path.to_owned(), error))
}
