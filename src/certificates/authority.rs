//! The service's own CA and the leaf that it signs.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::{SecureRandom, SystemRandom};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::certificate::{Certificate, CertificateError, hex};
use super::request::MAX_COMMON_NAME;
use super::{der, pem};
use crate::names::{Host, HostPort};
use crate::secret::Secret;

const PRIVATE_KEY: &str = "PRIVATE KEY";
const DAY: i64 = 24 * 60 * 60;
/// Certificates start this many seconds in the past: for hosts whose clock is up to a day behind, and for a controller whose own is a
/// day ahead.
const CLOCK_SKEW: i64 = 25 * 60 * 60;
const NAME_CONSTRAINTS: [u64; 4] = [2, 5, 29, 30];

/// Why there is no authority or no leaf.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// No name to be valid for.
    #[error("a certificate needs at least one name")]
    NoNames,
    /// The stored CA certificate.
    #[error("the stored CA certificate cannot be used: {0}")]
    Certificate(#[from] CertificateError),
    /// The stored certificate is no CA.
    #[error("the stored certificate of the CA is not a CA certificate")]
    NotCa,
    /// The stored key.
    #[error("the stored CA key is not one P-256 key in PKCS#8 PEM")]
    Key,
    /// Key and certificate are of different authorities.
    #[error("the stored CA key does not belong to the stored CA certificate")]
    KeyMismatch,
    /// The CA ended or ends right now.
    #[error("the CA's certificate has expired; a new CA is needed")]
    Expired,
    /// A host that the CA's own constraints exclude: every client would refuse the leaf.
    #[error("the CA is constrained to other names than {0}; a new CA is needed for it")]
    OutsideConstraints(Host),
    /// The request cannot be read.
    #[error("the certificate request cannot be read")]
    BadRequest,
    /// The request's own signature is wrong: whoever sent it does not hold the key.
    #[error("the certificate request is not signed by the key in it")]
    BadRequestSignature,
    /// A key that is too weak or of an unknown kind.
    #[error("the request's key must be P-256, P-384 or RSA of at least 2048 bits")]
    WeakKey,
    /// A point in time that X.509 cannot express.
    #[error("the lifetime is out of range")]
    Lifetime,
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// Encoding or signing failed.
    #[error("making the certificate failed: {0}")]
    Making(#[from] rcgen::Error),
}

/// A CA of one service, in one generation. It signs nothing but leaves for the service's names.
pub struct Authority {
    certificate: Certificate,
    key: KeyPair,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("subject", &self.certificate.subject()).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new CA for exactly the hosts of `names`, valid from an hour before `now_unix` for `lifetime_days` after it.
    ///
    /// Its subject differs in every generation, so that two CAs can lie side by side in a store that goes by subject.
    pub fn create(service: &str, generation: u32, names: &[HostPort], now_unix: i64, lifetime_days: u32) -> Result<Self, AuthorityError> {
        Self::create_in("", service, generation, names, now_unix, lifetime_days)
    }

    /// The same with an organization in its subject, and in that of every leaf; none if it is empty.
    pub fn create_in(
        organization: &str,
        service: &str,
        generation: u32,
        names: &[HostPort],
        now_unix: i64,
        lifetime_days: u32,
    ) -> Result<Self, AuthorityError> {
        let hosts = distinct_hosts(names);
        if hosts.is_empty() {
            return Err(AuthorityError::NoNames);
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_after = now_unix + i64::from(lifetime_days) * DAY;
        // One CA may stand below: the link of a successor.
        let subject = subject(organization, &ca_common_name(service, generation)?);
        let params = ca_params(subject, &hosts, now_unix - CLOCK_SKEW, not_after, 1)?;
        let certificate = Certificate::from_der(params.self_signed(&key)?.der().to_vec())?;
        Ok(Self { certificate, key })
    }

    /// A certificate of `next`, its successor, signed by this CA: PEM. Served behind a leaf of `next` it lets clients verify that leaf
    /// who know this CA only, because they were away while `next` was made known.
    ///
    /// `names` are those of `next`. The link ends with whichever of the two ends first.
    pub fn link(&self, next: &Self, names: &[HostPort], now_unix: i64) -> Result<String, AuthorityError> {
        let not_after = self.certificate.not_after().min(next.certificate.not_after());
        if not_after <= now_unix {
            return Err(AuthorityError::Expired);
        }
        let not_before = (now_unix - CLOCK_SKEW).max(self.certificate.not_before());
        let mut params = ca_params(next.subject()?, &distinct_hosts(names), not_before, not_after, 0)?;
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate.der().into(), &self.key)?;
        Ok(Certificate::from_der(params.signed_by(&next.key, &issuer)?.der().to_vec())?.pem())
    }

    /// Whether a leaf of this CA may have all these names.
    ///
    /// # Errors
    /// When the CA's own certificate cannot be read.
    pub fn covers(&self, names: &[HostPort]) -> Result<bool, AuthorityError> {
        Ok(self.first_uncovered(&distinct_hosts(names))?.is_none())
    }

    /// Reads what [`certificate`](Self::certificate) and [`key_pem`](Self::key_pem) gave.
    pub fn from_pem(certificate: &str, key: &Secret<String>) -> Result<Self, AuthorityError> {
        let certificate = Certificate::parse_pem(certificate)?;
        if !certificate.is_ca() {
            return Err(AuthorityError::NotCa);
        }
        let der = pem::decode_one(key.expose(), PRIVATE_KEY).map_err(|_| AuthorityError::Key)?;
        let key =
            KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), &PKCS_ECDSA_P256_SHA256).map_err(|_| AuthorityError::Key)?;
        if key.subject_public_key_info() != certificate.public_key_spki_der() {
            return Err(AuthorityError::KeyMismatch);
        }
        Ok(Self { certificate, key })
    }

    /// The public certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The key to store, PKCS#8 in PEM.
    pub fn key_pem(&self) -> Secret<String> {
        Secret::new(pem::encode(PRIVATE_KEY, self.key.serialized_der()))
    }

    /// Signs a leaf for the hosts of `names` and the public key of the request, and nothing else that the request says.
    ///
    /// Returns the chain to serve: PEM, leaf first, then this CA. The leaf never outlives the CA.
    pub fn sign_leaf(&self, csr_pem: &str, names: &[HostPort], now_unix: i64, lifetime_days: u32) -> Result<String, AuthorityError> {
        let hosts = distinct_hosts(names);
        if let Some(outside) = self.first_uncovered(&hosts)? {
            return Err(AuthorityError::OutsideConstraints(outside));
        }
        self.issue(csr_pem, &hosts, now_unix, lifetime_days)
    }

    /// Its subject, to be written once more.
    fn subject(&self) -> Result<DistinguishedName, AuthorityError> {
        let (_, parsed) = X509Certificate::from_der(self.certificate.der()).map_err(|_| CertificateError::NotX509)?;
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
        Ok(subject(&self.organization()?, common_name))
    }

    /// The organization in its subject; empty if there is none.
    fn organization(&self) -> Result<String, AuthorityError> {
        let (_, parsed) = X509Certificate::from_der(self.certificate.der()).map_err(|_| CertificateError::NotX509)?;
        let organization = parsed.subject().iter_organization().next().and_then(|name| name.as_str().ok());
        Ok(organization.unwrap_or_default().to_string())
    }

    /// The first host that this CA's constraints exclude.
    fn first_uncovered(&self, hosts: &[Host]) -> Result<Option<Host>, AuthorityError> {
        let (_, parsed) = X509Certificate::from_der(self.certificate.der()).map_err(|_| CertificateError::NotX509)?;
        let constraints = parsed.name_constraints().map_err(|_| CertificateError::NotX509)?;
        let Some(permitted) = constraints.and_then(|c| c.value.permitted_subtrees.as_ref()) else { return Ok(None) };
        let covered = |host: &Host| permitted.iter().any(|subtree| permits(&subtree.base, host));
        Ok(hosts.iter().find(|host| !covered(host)).cloned())
    }

    fn issue(&self, csr_pem: &str, hosts: &[Host], now_unix: i64, lifetime_days: u32) -> Result<String, AuthorityError> {
        if hosts.is_empty() {
            return Err(AuthorityError::NoNames);
        }
        if self.certificate.not_after() <= now_unix {
            return Err(AuthorityError::Expired);
        }
        let (public_key, is_rsa) = requested_key(csr_pem)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&self.organization()?, &leaf_common_name(hosts));
        params.serial_number = Some(random_serial()?);
        params.not_before = moment((now_unix - CLOCK_SKEW).max(self.certificate.not_before()))?;
        params.not_after = moment((now_unix + i64::from(lifetime_days) * DAY).min(self.certificate.not_after()))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if is_rsa {
            // TLS 1.2 clients of old may still transport the session key with RSA.
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = hosts.iter().map(san).collect::<Result<_, _>>()?;
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate.der().into(), &self.key)?;
        let leaf = Certificate::from_der(params.signed_by(&public_key, &issuer)?.der().to_vec())?;
        Ok(leaf.pem() + &self.certificate.pem())
    }
}

/// From the general to the particular, the order that people expect.
fn subject(organization: &str, common_name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if !organization.is_empty() {
        subject.push(DnType::OrganizationName, organization);
    }
    subject.push(DnType::CommonName, common_name);
    subject
}

/// `below`: how many CAs may stand between this one and a leaf.
fn ca_params(
    subject: DistinguishedName,
    hosts: &[Host],
    not_before: i64,
    not_after: i64,
    below: u8,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.serial_number = Some(random_serial()?);
    params.not_before = moment(not_before)?;
    params.not_after = moment(not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.custom_extensions = vec![name_constraints(hosts)];
    Ok(params)
}

fn distinct_hosts(names: &[HostPort]) -> Vec<Host> {
    let mut seen = BTreeSet::new();
    names.iter().map(|name| &name.host).filter(|host| seen.insert(*host)).cloned().collect()
}

fn ca_common_name(service: &str, generation: u32) -> Result<String, AuthorityError> {
    let tail = format!(" CA {generation} {}", hex(&random::<3>()?));
    let service: String = service.chars().take(MAX_COMMON_NAME - tail.len()).collect();
    Ok(service + &tail)
}

/// The first host, if the leaf has a DNS name as well.
///
/// OpenSSL holds a common name that looks like a DNS name, as an address does, against the CA's DNS constraints when the
/// leaf has no DNS name of its own, and would refuse it (crypto/x509/v3_ncons.c, `NAME_CONSTRAINTS_check_CN`).
fn leaf_common_name(hosts: &[Host]) -> String {
    let has_dns_name = hosts.iter().any(|host| matches!(host, Host::Dns(_)));
    let first = hosts.first().map(Host::to_string).filter(|name| has_dns_name && name.len() <= MAX_COMMON_NAME);
    first.unwrap_or_else(|| "private-registry".to_string())
}

/// Sixteen digits that nobody else has.
pub(crate) fn unique() -> Result<String, AuthorityError> {
    Ok(hex(&random::<8>()?))
}

fn random<const N: usize>() -> Result<[u8; N], AuthorityError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| AuthorityError::Random)?;
    Ok(bytes)
}

/// Positive, 16 bytes: RFC 5280 allows 20 and wants no zero.
fn random_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn moment(unix: i64) -> Result<OffsetDateTime, AuthorityError> {
    let moment = OffsetDateTime::from_unix_timestamp(unix).map_err(|_| AuthorityError::Lifetime)?;
    // X.509 has four digits for the year; rcgen would panic beyond them.
    if (1950..=9999).contains(&moment.year()) { Ok(moment) } else { Err(AuthorityError::Lifetime) }
}

fn san(host: &Host) -> Result<SanType, AuthorityError> {
    Ok(match host {
        Host::Ip(address) => SanType::IpAddress(IpAddr::V4(*address)),
        Host::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
    })
}

/// Permitted subtrees, one per host (RFC 5280 section 4.2.1.10).
///
/// Written by hand because rcgen always marks this extension critical, and Go before 1.10, with which the Docker of DC/OS 1.9's age
/// was built, refuses a critical constraint that holds addresses. A list of one kind alone would leave the other kind
/// unconstrained: a set without names permits the name `invalid`, one without addresses 0.0.0.0, which nothing can have.
fn name_constraints(hosts: &[Host]) -> CustomExtension {
    let mut bases: Vec<Vec<u8>> = hosts
        .iter()
        .map(|host| match host {
            Host::Dns(name) => der::element(der::DNS_NAME_CONTEXT_2, name.as_bytes()),
            Host::Ip(address) => der::element(der::OCTET_STRING_CONTEXT_7, &[address.octets(), [255; 4]].concat()),
        })
        .collect();
    if !hosts.iter().any(|host| matches!(host, Host::Dns(_))) {
        bases.push(der::element(der::DNS_NAME_CONTEXT_2, b"invalid"));
    }
    if !hosts.iter().any(|host| matches!(host, Host::Ip(_))) {
        bases.push(der::element(der::OCTET_STRING_CONTEXT_7, &[[0; 4], [255; 4]].concat()));
    }
    let subtrees: Vec<u8> = bases.iter().flat_map(|base| der::element(der::SEQUENCE, base)).collect();
    let content = der::element(der::SEQUENCE, &der::element(der::CONSTRUCTED_CONTEXT_0, &subtrees));
    CustomExtension::from_oid_content(&NAME_CONSTRAINTS, content)
}

fn permits(base: &GeneralName<'_>, host: &Host) -> bool {
    match (base, host) {
        (GeneralName::DNSName(base), Host::Dns(name)) => name == base || name.strip_suffix(base).is_some_and(|head| head.ends_with('.')),
        (GeneralName::IPAddress(range), Host::Ip(address)) => {
            let masked = |i: usize| address.octets()[i] & range[4 + i] == range[i] & range[4 + i];
            range.len() == 8 && (0..4).all(masked)
        }
        _ => false,
    }
}

/// The public key (SPKI, DER) of a certificate request, if it is one that a certificate may be made for.
pub fn requested_public_key(csr_pem: &str) -> Result<Vec<u8>, AuthorityError> {
    Ok(requested_key(csr_pem)?.0.subject_public_key_info())
}

/// The request's public key, and whether it is RSA.
fn requested_key(csr_pem: &str) -> Result<(SubjectPublicKeyInfo, bool), AuthorityError> {
    let der = pem::decode_one(csr_pem, "CERTIFICATE REQUEST").map_err(|_| AuthorityError::BadRequest)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| AuthorityError::BadRequest)?;
    if !rest.is_empty() {
        return Err(AuthorityError::BadRequest);
    }
    let spki = &request.certification_request_info.subject_pki;
    let is_rsa = match spki.parsed().map_err(|_| AuthorityError::BadRequest)? {
        PublicKey::RSA(key) if key.key_size() >= 2048 => true,
        // Of the curves, rcgen knows P-256 and P-384 alone with the ring backend.
        PublicKey::EC(_) => false,
        _ => return Err(AuthorityError::WeakKey),
    };
    let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| AuthorityError::WeakKey)?;
    request.verify_signature().map_err(|_| AuthorityError::BadRequestSignature)?;
    Ok((key, is_rsa))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::RegistryKey;
    use std::path::Path;
    use std::process::{Command, Output};
    use std::sync::Arc;
    use std::time::{SystemTime, UNIX_EPOCH};

    fn names(list: &[&str]) -> Vec<HostPort> {
        list.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn now() -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
    }

    fn csr() -> String {
        RegistryKey::generate().unwrap().csr("private-registry").unwrap()
    }

    #[test]
    fn an_organization_stands_before_the_common_name_in_ca_link_and_leaf() {
        let create = |generation| Authority::create_in("Ärger & Söhne, Inc.", "s", generation, &names(&NAMES), now(), 3650).unwrap();
        let (old, new) = (create(1), create(2));
        let link = Certificate::parse_pem(&old.link(&new, &names(&NAMES), now()).unwrap()).unwrap();
        assert_eq!((link.subject(), link.subject_hash()), (new.certificate().subject(), new.certificate().subject_hash()));
        let key = RegistryKey::generate_as(crate::certificates::KeyType::P384).unwrap();
        let chain = new.sign_leaf(&key.csr("s").unwrap(), &names(&NAMES), now(), 90).unwrap();
        let leaf = Certificate::parse_bundle(&chain).unwrap().swap_remove(0);
        assert!(new.certificate().subject().starts_with("O=Ärger & Söhne, Inc., CN=s CA 2 "), "{}", new.certificate().subject());
        assert_eq!(leaf.subject(), "O=Ärger & Söhne, Inc., CN=192.168.0.1");
        assert_eq!(leaf.public_key_spki_der(), key.public_key_spki_der());
    }

    const NAMES: [&str; 4] =
        ["192.168.0.1:443", "registry.marathon.mesos:5000", "192.168.1.50:5000", "registry.marathon.l4lb.thisdcos.directory:443"];

    fn authority() -> Authority {
        Authority::create("private-registry", 1, &names(&NAMES), now(), 3650).unwrap()
    }

    fn run(dir: &Path, program: &str, arguments: &[&str]) -> Output {
        Command::new(program).current_dir(dir).args(arguments).output().unwrap()
    }

    /// What `openssl verify` says of a served chain.
    fn openssl_verify(authority: &Authority, chain: &str, arguments: &[&str]) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.certificate().pem()).unwrap();
        std::fs::write(dir.path().join("chain.pem"), chain).unwrap();
        let mut all = vec!["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca.pem"];
        all.extend(arguments);
        all.push("chain.pem");
        let output = run(dir.path(), "openssl", &all);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    /// What rustls says, as a client that connects to `host`.
    fn rustls_verify(authority: &Authority, chain: &str, host: &str) -> Result<(), rustls::Error> {
        use rustls::client::WebPkiServerVerifier;
        use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(authority.certificate().der().to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let chain: Vec<CertificateDer<'static>> =
            Certificate::parse_bundle(chain).unwrap().iter().map(|c| CertificateDer::from(c.der().to_vec())).collect();
        use rustls::client::danger::ServerCertVerifier;
        let name = ServerName::try_from(host.to_string()).unwrap();
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).map(|_| ())
    }

    #[test]
    fn openssl_and_rustls_accept_the_leaf_for_every_name() {
        let authority = authority();
        let chain = authority.sign_leaf(&csr(), &names(&NAMES), now(), 365).unwrap();
        for ip in ["192.168.0.1", "192.168.1.50"] {
            openssl_verify(&authority, &chain, &["-verify_ip", ip]).unwrap();
            rustls_verify(&authority, &chain, ip).unwrap();
        }
        for host in ["registry.marathon.mesos", "registry.marathon.l4lb.thisdcos.directory"] {
            openssl_verify(&authority, &chain, &["-verify_hostname", host]).unwrap();
            rustls_verify(&authority, &chain, host).unwrap();
        }
        assert!(openssl_verify(&authority, &chain, &["-verify_ip", "192.168.0.2"]).unwrap_err().contains("IP address mismatch"));
    }

    #[test]
    fn a_client_that_knows_only_the_old_ca_accepts_the_new_one_by_its_link_and_one_that_knows_only_the_new_one_as_well() {
        let old = authority();
        let new = Authority::create("private-registry", 2, &names(&NAMES), now(), 3650).unwrap();
        let link = old.link(&new, &names(&NAMES), now()).unwrap();
        let signed = new.sign_leaf(&csr(), &names(&NAMES), now(), 365).unwrap();
        let leaf = Certificate::parse_bundle(&signed).unwrap().swap_remove(0).pem();
        let served = leaf.clone() + &link;
        for known in [&old, &new] {
            // openssl verify reads only the first certificate of a file; what is served besides is given apart.
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("link.pem"), &link).unwrap();
            let path = dir.path().join("link.pem").display().to_string();
            openssl_verify(known, &leaf, &["-untrusted", &path, "-verify_ip", "192.168.0.1"]).unwrap();
            rustls_verify(known, &served, "192.168.0.1").unwrap();
            rustls_verify(known, &served, "registry.marathon.mesos").unwrap();
        }
        assert!(rustls_verify(&old, &signed, "192.168.0.1").is_err(), "without the link");
    }

    /// What a client in Go says of a server on loopback that shows this chain: skopeo, which reads its CA from a directory as docker does.
    fn go_verify(authority: &Authority, chain: &str, key: &RegistryKey) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), authority.certificate().pem()).unwrap();
        let mut certificates = Certificate::parse_bundle(chain).unwrap().into_iter().map(|c| c.der().to_vec().into());
        let key = pem::decode_one(key.to_pem().expose(), PRIVATE_KEY).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(certificates.by_ref().collect(), key.try_into().unwrap()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ends = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let asked = Arc::clone(&ends);
        let server = std::thread::spawn(move || {
            use std::io::{Read, Write};
            for stream in listener.incoming() {
                if asked.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let connection = rustls::ServerConnection::new(Arc::new(config.clone())).unwrap();
                let mut tls = rustls::StreamOwned::new(connection, stream.unwrap());
                // A client that refuses the certificate asks nothing.
                if tls.read(&mut [0; 4096]).is_ok() {
                    let _ = tls.write_all(b"HTTP/1.1 418 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    tls.conn.send_close_notify();
                    let _ = tls.flush();
                }
            }
        });
        let image = format!("docker://{address}/x:1");
        let output = run(dir.path(), "skopeo", &["inspect", "--cert-dir", ".", &image]);
        ends.store(true, std::sync::atomic::Ordering::SeqCst);
        drop(std::net::TcpStream::connect(address));
        server.join().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    #[test]
    fn a_client_in_go_refuses_what_the_constraints_exclude_and_accepts_what_they_permit() {
        for (permitted, is_accepted) in
            [(&["127.0.0.1:443"], true), (&["192.168.0.1:443"], false), (&["registry.marathon.mesos:443"], false)]
        {
            let authority = Authority::create("private-registry", 1, &names(permitted), now(), 3650).unwrap();
            let key = RegistryKey::generate().unwrap();
            let chain = authority.issue(&key.csr("s").unwrap(), &["127.0.0.1".parse().unwrap()], now(), 365).unwrap();
            let said = go_verify(&authority, &chain, &key);
            let expected = if is_accepted { "418" } else { "not permitted by any constraint" };
            assert!(said.contains(expected), "{permitted:?}: {said}");
        }
    }

    #[test]
    fn clients_refuse_what_the_constraints_exclude_even_when_the_ca_has_signed_it() {
        let sets: [&[&str]; 3] = [&NAMES, &["192.168.0.1:443"], &["registry.marathon.mesos:443"]];
        for set in sets {
            let authority = Authority::create("private-registry", 1, &names(set), now(), 3650).unwrap();
            for outside in ["bank.example.com", "10.0.0.1", "192.168.0.2", "mesos"] {
                // Past the check that sign_leaf makes: the constraint has to hold without our good will.
                let chain = authority.issue(&csr(), &[outside.parse().unwrap()], now(), 365).unwrap();
                let refusal = openssl_verify(&authority, &chain, &[]).unwrap_err();
                assert!(refusal.contains("permitted subtree violation"), "{outside}: {refusal}");
                assert!(rustls_verify(&authority, &chain, outside).is_err(), "rustls accepted {outside}");
                let asked = names(&[&format!("{outside}:443")]);
                let refused = authority.sign_leaf(&csr(), &asked, now(), 365);
                assert!(matches!(refused, Err(AuthorityError::OutsideConstraints(_))), "{refused:?}");
            }
        }
    }

    #[test]
    fn a_leaf_for_addresses_alone_is_accepted_under_dns_constraints() {
        let authority = authority();
        let chain = authority.sign_leaf(&csr(), &names(&["192.168.0.1:443"]), now(), 365).unwrap();
        openssl_verify(&authority, &chain, &["-verify_ip", "192.168.0.1"]).unwrap();
        rustls_verify(&authority, &chain, "192.168.0.1").unwrap();
    }

    #[test]
    fn the_ca_is_constrained_but_not_critically() {
        let authority = authority();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.certificate().pem()).unwrap();
        let text = String::from_utf8(run(dir.path(), "openssl", &["x509", "-in", "ca.pem", "-noout", "-text"]).stdout).unwrap();
        for expected in [
            "X509v3 Name Constraints: \n",
            "DNS:registry.marathon.mesos",
            "IP:192.168.0.1/255.255.255.255",
            "CA:TRUE, pathlen:1",
            "Certificate Sign, CRL Sign",
        ] {
            assert!(text.contains(expected), "{expected:?} is missing in {text}");
        }
        // In the DER: object id, then the octets at once; a critical one has the boolean 01 01 FF between them. Go before 1.10, which
        // the dockers of DC/OS 1.9's age are built with, cannot judge constraints of addresses: it passes over an extension that is
        // not critical, and refuses a certificate with a critical one (moby#35152).
        let der = authority.certificate().der();
        let oid = [0x06, 0x03, 0x55, 0x1d, 0x1e];
        let at = der.windows(oid.len()).position(|window| window == oid).unwrap();
        assert_eq!(der[at + oid.len()], 0x04, "the extension must not be critical");
        assert!(authority.certificate().subject().starts_with("CN=private-registry CA 1 "));
        assert_ne!(authority.certificate().subject_hash(), self::authority().certificate().subject_hash());
    }

    #[test]
    fn the_leaf_carries_the_requests_key_and_the_controllers_names_only() {
        let authority = authority();
        let key = RegistryKey::generate().unwrap();
        let wanted = names(&["registry.marathon.mesos:5000", "192.168.0.1:443", "192.168.0.1:5000"]);
        let chain =
            Certificate::parse_bundle(&authority.sign_leaf(&key.csr("evil.example").unwrap(), &wanted, now(), 365).unwrap()).unwrap();
        assert_eq!(chain[0].public_key_spki_der(), key.public_key_spki_der());
        assert_eq!(chain[0].san_names(), ["registry.marathon.mesos", "192.168.0.1"]);
        assert_eq!(chain[0].subject(), "CN=registry.marathon.mesos");
        assert!(!chain[0].is_ca());
        assert_eq!(chain[1..], [authority.certificate().clone()]);
    }

    #[test]
    fn the_clock_of_the_controller_or_of_a_client_may_be_a_day_off() {
        let verified = |signed_at: i64, looked_at: i64| {
            let authority = Authority::create("private-registry", 1, &names(&NAMES), signed_at, 3650).unwrap();
            let chain = authority.sign_leaf(&csr(), &names(&NAMES), signed_at, 90).unwrap();
            openssl_verify(&authority, &chain, &["-attime", &looked_at.to_string()])
        };
        let now = now();
        for off in [-DAY, 0, DAY] {
            verified(now + off, now).unwrap();
            verified(now, now + off).unwrap();
        }
        assert!(verified(now + 2 * DAY, now).unwrap_err().contains("not yet valid"));
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let authority = Authority::create("s", 1, &names(&NAMES), now(), 10).unwrap();
        let sign = |at| authority.sign_leaf(&csr(), &names(&NAMES), at, 365);
        let leaf = Certificate::parse_bundle(&sign(now()).unwrap()).unwrap().remove(0);
        assert_eq!(leaf.not_after(), authority.certificate().not_after());
        assert!(leaf.not_before() >= authority.certificate().not_before());
        assert!(matches!(sign(authority.certificate().not_after()), Err(AuthorityError::Expired)));
        assert!(matches!(Authority::create("s", 1, &names(&NAMES), i64::MAX / 2, 1), Err(AuthorityError::Lifetime)));
        assert!(matches!(Authority::create("s", 1, &[], now(), 1), Err(AuthorityError::NoNames)));
    }

    #[test]
    fn a_stored_authority_signs_for_the_same_ca() {
        let authority = authority();
        let again = Authority::from_pem(&authority.certificate().pem(), &authority.key_pem()).unwrap();
        let chain = again.sign_leaf(&csr(), &names(&NAMES), now(), 365).unwrap();
        openssl_verify(&authority, &chain, &[]).unwrap();

        let other = self::authority();
        assert!(matches!(Authority::from_pem(&authority.certificate().pem(), &other.key_pem()), Err(AuthorityError::KeyMismatch)));
        let leaf = Certificate::parse_bundle(&chain).unwrap()[0].pem();
        assert!(matches!(Authority::from_pem(&leaf, &authority.key_pem()), Err(AuthorityError::NotCa)));
    }

    #[test]
    fn keys_of_other_programs_are_accepted_when_strong_enough() {
        let authority = authority();
        let dir = tempfile::tempdir().unwrap();
        let request = |algorithm: &[&str]| {
            let mut arguments = vec!["req", "-new", "-nodes", "-keyout", "key.pem", "-subj", "/CN=x", "-newkey"];
            arguments.extend(algorithm);
            let output = run(dir.path(), "openssl", &arguments);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let ec = |curve| request(&["ec", "-pkeyopt", curve]);
        for good in [ec("ec_paramgen_curve:P-256"), ec("ec_paramgen_curve:P-384"), request(&["rsa:2048"])] {
            let chain = authority.sign_leaf(&good, &names(&NAMES), now(), 365).unwrap();
            openssl_verify(&authority, &chain, &["-verify_ip", "192.168.0.1"]).unwrap();
            rustls_verify(&authority, &chain, "192.168.0.1").unwrap();
        }
        for weak in [request(&["rsa:1024"]), ec("ec_paramgen_curve:P-521"), request(&["ed25519"])] {
            let refused = authority.sign_leaf(&weak, &names(&NAMES), now(), 365);
            assert!(matches!(refused, Err(AuthorityError::WeakKey)), "{refused:?}");
        }
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let mut der = pem::decode_one(&csr(), "CERTIFICATE REQUEST").unwrap();
        *der.last_mut().unwrap() ^= 1;
        let forged = pem::encode("CERTIFICATE REQUEST", &der);
        let refused = authority().sign_leaf(&forged, &names(&NAMES), now(), 365);
        assert!(matches!(refused, Err(AuthorityError::BadRequestSignature | AuthorityError::BadRequest)), "{refused:?}");
        assert!(matches!(authority().sign_leaf("hello", &names(&NAMES), now(), 365), Err(AuthorityError::BadRequest)));
    }

    #[test]
    fn an_authority_never_prints_its_key() {
        let authority = authority();
        let expected = format!("Authority {{ subject: {:?}, .. }} <redacted>", authority.certificate().subject());
        assert_eq!(format!("{authority:?} {}", authority.key_pem()), expected);
    }
}
