//! The cluster's own certificate authority, and what the servers show to their clients.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::host::MASTER;

/// Names that the servers' certificate is for.
const NAMES: [&str; 5] = ["master.mesos", "leader.mesos", "marathon.mesos", "metronome.mesos", "localhost"];
/// Where nodes of Enterprise have the CA.
const ON_NODES: &str = "/run/dcos/pki/CA/ca-bundle.crt";

/// Where the CA's certificate lies, in PEM.
pub fn ca_file(dir: &Path) -> PathBuf {
    dir.join("state/cluster-ca.pem")
}

/// Makes the CA if there is none yet, and a certificate for the servers.
///
/// # Errors
/// A file cannot be read or written, or the CA is none.
pub(crate) fn prepare(dir: &Path) -> io::Result<Arc<ServerConfig>> {
    let (certificate, key) = (ca_file(dir), dir.join("state/cluster-ca.key"));
    let (pem, key) = match (std::fs::read_to_string(&certificate), std::fs::read_to_string(&key)) {
        (Ok(pem), Ok(key)) => (pem, KeyPair::from_pem(&key).map_err(io::Error::other)?),
        _ => make_ca(&certificate, &key)?,
    };
    server(&pem, &key).map_err(io::Error::other)
}

/// Puts the CA where nodes of Enterprise have it.
///
/// # Errors
/// It cannot be written.
pub(crate) fn put_on_master(dir: &Path) -> io::Result<()> {
    let path = Path::new(ON_NODES);
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    std::fs::copy(ca_file(dir), path).map(drop)
}

/// Has the CA sign a request: a certificate for these hosts or, when there are none, for those that the request names.
///
/// # Errors
/// The request is none, or the CA cannot be read.
pub(crate) fn sign(dir: &Path, csr: &str, hosts: &[String]) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let key = KeyPair::from_pem(&std::fs::read_to_string(dir.join("state/cluster-ca.key"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&std::fs::read_to_string(ca_file(dir))?, &key)?;
    let mut request = CertificateSigningRequestParams::from_pem(csr)?;
    let params = &mut request.params;
    if !hosts.is_empty() {
        params.subject_alt_names = CertificateParams::new(hosts)?.subject_alt_names;
    }
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 1, 1);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(request.signed_by(&issuer)?.pem())
}

fn make_ca(certificate: &Path, key_file: &Path) -> io::Result<(String, KeyPair)> {
    let made = || -> Result<(String, KeyPair), rcgen::Error> {
        let mut params = parameters("DC/OS Root CA", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        Ok((params.self_signed(&key)?.pem(), key))
    };
    let (pem, key) = made().map_err(io::Error::other)?;
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(key_file)?;
    file.write_all(key.serialize_pem().as_bytes())?;
    std::fs::write(certificate, &pem)?;
    Ok((pem, key))
}

fn parameters(name: &str, names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 1, 1);
    Ok(params)
}

fn server(ca_pem: &str, ca_key: &KeyPair) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error + Send + Sync>> {
    let issuer = Issuer::from_ca_cert_pem(ca_pem, ca_key)?;
    let names: Vec<String> = NAMES.iter().map(ToString::to_string).chain([MASTER.to_string(), "127.0.0.1".to_owned()]).collect();
    let mut params = parameters("master.mesos", &names)?;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let leaf = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_stays_the_same_and_its_key_is_its_owners_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        prepare(dir.path()).unwrap();
        let first = std::fs::read_to_string(ca_file(dir.path())).unwrap();
        prepare(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(ca_file(dir.path())).unwrap(), first);
        let mode = std::fs::metadata(dir.path().join("state/cluster-ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
