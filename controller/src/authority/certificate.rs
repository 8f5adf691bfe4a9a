//! Certificates of CAs, with and without their keys, as they stand in objects: PEM.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// From when on everything that we sign is valid: 2024-01-01. It is no secret when a key was made, and so clocks that differ never
/// make a certificate one of the future.
pub(crate) const ALWAYS: Duration = Duration::from_secs(1_704_067_200);

const TAG: &str = "CERTIFICATE";

/// The certificate of a CA.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Certificate {
    der: Vec<u8>,
    not_after: SystemTime,
}

/// A CA that can sign.
pub struct Authority {
    certificate: Certificate,
    key: String,
}

/// What is no certificate, or no key.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No PEM, or none of a certificate.
    #[error("no certificate")]
    Certificate,
    /// The key is none, or another certificate's.
    #[error("the key does not fit its certificate")]
    Key,
    /// It cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not_after = self.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        f.debug_struct("Certificate").field("octets", &self.der.len()).field("not_after", &not_after).finish()
    }
}

impl fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.certificate.fmt(f)
    }
}

impl Certificate {
    /// A certificate of these octets, valid until then.
    pub(crate) fn new(der: Vec<u8>, not_after: SystemTime) -> Self {
        Self { der, not_after }
    }

    pub(crate) fn of_der(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| CertificateError::Certificate)?;
        let after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self::new(der.to_vec(), SystemTime::UNIX_EPOCH + Duration::from_secs(after)))
    }

    /// Until when it is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// As PEM.
    pub fn pem(&self) -> String {
        pem::encode(&pem::Pem::new(TAG, self.der.clone()))
    }
}

/// The certificates in a text. What is none is left out: who wrote it there did so by mistake, and agents would refuse the rest for it.
pub fn bundle_of(text: &str) -> Vec<Certificate> {
    let sections = pem::parse_many(text).unwrap_or_default();
    let certificates = sections.iter().filter(|section| section.tag() == TAG);
    certificates.filter_map(|section| Certificate::of_der(section.contents()).ok()).collect()
}

/// The text of a bundle.
pub fn text_of(bundle: &[Certificate]) -> String {
    bundle.iter().map(Certificate::pem).collect()
}

impl Authority {
    /// Makes a CA for the controllers of `namespace`, valid until `not_after`.
    pub fn make(namespace: &str, not_after: SystemTime) -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.not_before = (SystemTime::UNIX_EPOCH + ALWAYS).into();
        params.not_after = not_after.into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("moat-controller of {namespace}"));
        // Nothing below it but leaves.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let made = params.self_signed(&key)?;
        Ok(Self { certificate: Certificate::of_der(made.der())?, key: key.serialize_pem() })
    }

    /// The CA of this certificate and this key, both PEM.
    pub fn of_pem(certificate: &str, key: &str) -> Result<Self, CertificateError> {
        let certificate = bundle_of(certificate).into_iter().next().ok_or(CertificateError::Certificate)?;
        let authority = Self { certificate, key: key.to_owned() };
        let pair = KeyPair::from_pem(key).map_err(|_| CertificateError::Key)?;
        let parsed = X509Certificate::from_der(&authority.certificate.der);
        let (_, parsed) = parsed.map_err(|_| CertificateError::Certificate)?;
        match parsed.public_key().subject_public_key.data == pair.public_key_raw() {
            true => Ok(authority),
            false => Err(CertificateError::Key),
        }
    }

    /// Its certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Its key as PEM. For the Secret alone.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// What signs.
    pub(crate) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, CertificateError> {
        let der = self.certificate.der.as_slice().into();
        Ok(Issuer::from_ca_cert_der(&der, KeyPair::from_pem(&self.key)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + ALWAYS + Duration::from_secs(seconds)
    }

    #[test]
    fn a_ca_is_read_as_it_was_written() {
        let made = Authority::make("moat-system", until(1000)).unwrap();
        assert_eq!(made.certificate().not_after(), until(1000));
        let read = Authority::of_pem(&made.certificate().pem(), made.key()).unwrap();
        assert_eq!(read.certificate(), made.certificate());
        let other = Authority::make("moat-system", until(1000)).unwrap();
        assert!(matches!(
            Authority::of_pem(&made.certificate().pem(), other.key()),
            Err(CertificateError::Key)
        ));
        assert!(matches!(Authority::of_pem("nothing", made.key()), Err(CertificateError::Certificate)));
        assert!(!format!("{made:?}").contains("KEY"));
    }

    #[test]
    fn of_a_bundle_what_is_a_certificate_is_taken() {
        let [one, two] = [10, 20].map(|end| Authority::make("moat-system", until(end)).unwrap().certificate);
        let bundle = vec![one, two];
        let text = text_of(&bundle);
        assert_eq!(bundle_of(&text), bundle);
        let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(bundle_of(&format!("# mine\n{odd}{text}")), bundle);
        assert_eq!(bundle_of("mine"), []);
    }
}
