//! The cluster's certificates: one authority, and a certificate for everybody who speaks to the API server.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::plan::{API_SERVICE, CONTROL_PLANE, Plan};

/// Who has a certificate: the file's name, the user that the API server takes its owner for, and the group.
pub(crate) struct Identity {
    pub(crate) file: String,
    pub(crate) user: String,
    pub(crate) group: Option<&'static str>,
}

impl Identity {
    fn new(file: &str, user: &str, group: Option<&'static str>) -> Self {
        Self { file: file.into(), user: user.into(), group }
    }
}

/// Everybody who speaks to the API server with a certificate.
pub(crate) fn identities(plan: &Plan) -> Vec<Identity> {
    let mut all = vec![
        Identity::new("admin", "moat-cluster-admin", Some("system:masters")),
        Identity::new("controller-manager", "system:kube-controller-manager", None),
        Identity::new("scheduler", "system:kube-scheduler", None),
        Identity::new("proxy", "system:kube-proxy", None),
    ];
    let node = |name: String| Identity::new(&name, &format!("system:node:{name}"), Some("system:nodes"));
    all.extend(plan.nodes().into_iter().map(|n| node(n.name)));
    all
}

/// Makes all keys and certificates, in the folder `pki`.
pub(crate) fn write(plan: &Plan) -> Result<()> {
    let folder = plan.state.join("pki");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let key = KeyPair::generate()?;
    let secret_key = key.serialize_pem();
    let authority = CertifiedIssuer::self_signed(authority(), key)?;
    fs::write(folder.join("ca.crt"), authority.pem())?;
    secret(&folder.join("ca.key"), &secret_key)?;
    let client = [ExtendedKeyUsagePurpose::ClientAuth];
    for identity in identities(plan) {
        let params = params(&identity.user, identity.group, &client);
        sign(&authority, &folder, &identity.file, params)?;
    }
    // The API server as the kubelets' client: it may do everything there.
    sign(
        &authority,
        &folder,
        "kubelet-client",
        params("kube-apiserver-kubelet-client", Some("system:masters"), &client),
    )?;
    let mut server = params("kube-apiserver", None, &[ExtendedKeyUsagePurpose::ServerAuth]);
    let addresses = [IpAddr::V4(CONTROL_PLANE), IpAddr::V4(API_SERVICE), IpAddr::from([127, 0, 0, 1])];
    server.subject_alt_names.extend(addresses.map(SanType::IpAddress));
    for name in ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"] {
        server.subject_alt_names.push(SanType::DnsName(name.try_into()?));
    }
    sign(&authority, &folder, "apiserver", server)?;
    // Not a certificate: what service accounts' tokens are signed with.
    let accounts = KeyPair::generate()?;
    secret(&folder.join("service-accounts.key"), &accounts.serialize_pem())?;
    fs::write(folder.join("service-accounts.pub"), accounts.public_key_pem())?;
    Ok(())
}

fn authority() -> CertificateParams {
    let mut params = params("moat-cluster", None, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn params(user: &str, group: Option<&str>, usages: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = usages.to_vec();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn sign(
    authority: &CertifiedIssuer<'_, KeyPair>,
    folder: &Path,
    file: &str,
    params: CertificateParams,
) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    let path = folder.join(format!("{file}.crt"));
    fs::write(&path, certificate.pem()).with_context(|| format!("cannot write {}", path.display()))?;
    secret(&folder.join(format!("{file}.key")), &key.serialize_pem())
}

fn secret(path: &Path, text: &str) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;
    use crate::plan::tests::plan;

    /// Asks openssl, as an independent party, where it is installed.
    #[test]
    fn every_certificate_is_signed_by_the_authority() {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan { state: folder.path().to_owned(), ..plan(2) };
        write(&plan).unwrap();
        let key = fs::metadata(plan.pki("admin.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        if Command::new("openssl").arg("version").output().is_err() {
            return;
        }
        let verify = |file: &str, purpose: &str| {
            let mut command = Command::new("openssl");
            command.args(["verify", "-purpose", purpose, "-CAfile"]).arg(plan.pki("ca.crt"));
            command.arg(plan.pki(file)).output().unwrap().status.success()
        };
        for identity in identities(&plan) {
            assert!(verify(&format!("{}.crt", identity.file), "sslclient"), "{}", identity.file);
        }
        assert!(verify("apiserver.crt", "sslserver"));
        assert!(!verify("apiserver.crt", "sslclient"));
    }
}
