//! Who verifies what, by the TLS library that the product has.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificates::{Authority, Certificate, RegistryKey};
use crate::digest::sha256_hex;
use crate::names::HostPort;
use crate::node::orders::Accepted;
use crate::node::trust::Bundle;

/// The name that every client asks for.
pub(super) const VIP: &str = "192.168.0.1";
/// Certificates are valid for days: what verifies now does so in this many seconds.
const BUCKET: i64 = 6 * 3600;

/// What a host trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trusted {
    /// Digest of the order that says so.
    pub(super) order: String,
    /// Certificates, PEM.
    pub(super) roots: Vec<String>,
    /// Docker asks without TLS.
    pub(super) insecure: bool,
}

impl Trusted {
    pub(super) fn by(order: &Accepted, bundle: &Bundle) -> Self {
        let roots = bundle.certificates.iter().map(Certificate::pem).collect();
        Self { order: order.digest.clone(), roots, insecure: bundle.insecure }
    }
}

/// What a registry serves with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) pem: String,
    /// Digest of the PEM.
    pub(super) id: String,
    pub(super) fingerprint: String,
    pub(super) not_after: i64,
    pub(super) names: Vec<String>,
    /// Digest of the key that it is for (SPKI).
    pub(super) spki: Vec<u8>,
    /// Key of the CA (SPKI).
    pub(super) issuer: Vec<u8>,
}

impl Chain {
    pub(super) fn parse(pem: &str) -> Option<Self> {
        let certificates = Certificate::parse_bundle(pem).ok()?;
        let (leaf, ca) = (certificates.first()?, certificates.get(1)?);
        Some(Self {
            id: sha256_hex(pem.as_bytes()),
            pem: pem.into(),
            fingerprint: leaf.fingerprint(),
            not_after: leaf.not_after(),
            names: leaf.san_names().to_vec(),
            spki: leaf.public_key_spki_der().to_vec(),
            issuer: ca.public_key_spki_der().to_vec(),
        })
    }
}

impl Chain {
    /// What it consists of, and until when each is valid.
    pub(super) fn certificates(&self) -> Vec<(String, i64)> {
        let certificates = Certificate::parse_bundle(&self.pem).unwrap();
        certificates.iter().map(|certificate| (certificate.subject().to_string(), certificate.not_after())).collect()
    }
}

/// Remembers what has been verified: it is the dearest part of the model.
#[derive(Default)]
pub(super) struct Verifier {
    known: HashMap<(u64, u64, i64), bool>,
}

impl Verifier {
    /// Whether a client that trusts `trusted` accepts the chain at that time.
    pub(super) fn accepts(&mut self, trusted: &Trusted, chain: &Chain, at: i64) -> bool {
        let key = (short(&trusted.order), short(&chain.id), at.div_euclid(BUCKET));
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let accepted = verify(&trusted.roots, &chain.pem, at);
        // What is not valid yet may be in a moment.
        if accepted {
            self.known.insert(key, true);
        }
        accepted
    }
}

fn short(digest: &str) -> u64 {
    digest.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

fn verify(roots: &[String], chain: &str, at: i64) -> bool {
    let der = |certificate: &Certificate| CertificateDer::from(certificate.der().to_vec());
    let chain: Vec<CertificateDer<'static>> = Certificate::parse_bundle(chain).unwrap().iter().map(der).collect();
    let mut store = rustls::RootCertStore::empty();
    for pem in roots {
        store.add(der(&Certificate::parse_pem(pem).unwrap())).unwrap();
    }
    if store.is_empty() {
        return false;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at.unsigned_abs()));
    verifier.verify_server_cert(&chain[0], &chain[1..], &ServerName::try_from(VIP).unwrap(), &[], at).is_ok()
}

/// A CA of somebody else's, and certificates of it.
pub(super) struct Foreign {
    pub(super) ca: String,
    pub(super) chains: Vec<Chain>,
}

impl Foreign {
    pub(super) fn new(now: i64) -> Self {
        let names: Vec<HostPort> = vec![format!("{VIP}:443").parse().unwrap()];
        let ca = Authority::create("somebody else", 1, &names, now, 36_500).unwrap();
        let chain = |_| {
            let csr = RegistryKey::generate().unwrap().csr("somebody else").unwrap();
            Chain::parse(&ca.sign_leaf(&csr, &names, now, 36_000).unwrap()).unwrap()
        };
        Self { chains: (0..2).map(chain).collect(), ca: ca.certificate().pem() }
    }
}
