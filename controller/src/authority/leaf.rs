//! The certificate that a controller shows.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::Lifetimes;
use super::certificate::{ALWAYS, Authority, Certificate, CertificateError};

/// What is shown to who connects: what was put there last. Connections that are there keep what they were shown.
#[derive(Clone, Default)]
pub struct Shown(Arc<RwLock<Showing>>);

#[derive(Default)]
struct Showing {
    key: Option<Arc<CertifiedKey>>,
    standing: Standing,
}

/// How it stands with what is shown, for people. Nothing of it where no certificate is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Until when the certificate is valid; `None`: there is none.
    pub certificate: Option<SystemTime>,
    /// Until when the CA is that signs such certificates, where it is ours.
    pub authority: Option<SystemTime>,
    /// What keeps it from being seen to, in words.
    pub trouble: Option<String>,
}

impl Shown {
    /// Shows this one from now on.
    pub fn put(&self, key: CertifiedKey) {
        let certificate = key.cert.first().and_then(|der| Certificate::of_der(der).ok());
        let mut showing = self.0.write().unwrap_or_else(PoisonError::into_inner);
        showing.standing.certificate = certificate.map(|certificate| certificate.not_after());
        showing.key = Some(Arc::new(key));
    }

    /// What was signed with is valid until then.
    pub fn signed_until(&self, not_after: SystemTime) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).standing.authority = Some(not_after);
    }

    /// What is shown was seen to, or was not, for this reason.
    pub fn seen_to(&self, trouble: Option<String>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).standing.trouble = trouble;
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        self.0.read().unwrap_or_else(PoisonError::into_inner).standing.clone()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).key.clone()
    }
}

/// A leaf, made.
#[derive(Debug)]
pub struct Leaf {
    /// Who signed it.
    pub issuer: Certificate,
    /// When it was made.
    pub made: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// Certificate and key.
    pub key: CertifiedKey,
}

impl Leaf {
    /// Makes one for these names, signed by `authority`.
    pub fn make(
        authority: &Authority,
        names: &[String],
        now: SystemTime,
        lifetimes: Lifetimes,
    ) -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        let not_after = authority.certificate().not_after().min(now + lifetimes.leaf);
        params.not_before = (SystemTime::UNIX_EPOCH + ALWAYS).into();
        params.not_after = not_after.into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "moat-controller");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let made = params.signed_by(&key, &authority.issuer()?)?;
        let chain = vec![CertificateDer::from(made.der().to_vec())];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider());
        let key = key.map_err(|_| CertificateError::Key)?;
        Ok(Self { issuer: authority.certificate().clone(), made: now, not_after, key })
    }

    /// Whether another is to take its place: half its life is over, it was made in what is now the future, or agents do not believe
    /// its issuer any more.
    pub fn due(&self, bundle: &[Certificate], now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.made).unwrap_or_default();
        !bundle.contains(&self.issuer) || now < self.made || now >= self.made + life / 2
    }
}
