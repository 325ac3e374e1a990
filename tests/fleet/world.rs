//! What all played tasks share: the disks of their hosts, who serves, and what must never be seen.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use private_registry::certificates::Certificate;
use private_registry::protocol::{SignedOrder, TrustBundle, TrustedName};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

/// Digests of programs by where they were fetched from.
static PROGRAMS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// See the module.
#[derive(Default)]
pub(crate) struct World(Mutex<Inner>);

#[derive(Default)]
pub(crate) struct Inner {
    /// What lies on every host. It outlives the tasks there.
    pub(crate) disks: BTreeMap<Ipv4Addr, Disk>,
    /// Chains that registries serve, by the ids of their tasks.
    serving: BTreeMap<String, String>,
    /// Every CA certificate that a node was ever told to trust.
    pub(crate) trusted_ever: Vec<String>,
    /// What must not happen, and has.
    faults: Vec<String>,
}

/// See [`Inner`].
#[derive(Default)]
pub(crate) struct Disk {
    /// What the node there has written.
    pub(crate) node: Option<NodeFiles>,
    /// What the registry there has written.
    pub(crate) registry: RegistryFiles,
}

/// A node's manifest and trust files.
#[derive(Clone)]
pub(crate) struct NodeFiles {
    /// The order that they are of.
    pub(crate) order: SignedOrder,
    pub(crate) bundle: TrustBundle,
    /// Its clients have accepted what the registry served.
    pub(crate) proven: bool,
}

/// A registry's key, chain and last order.
#[derive(Default, Clone)]
pub(crate) struct RegistryFiles {
    pub(crate) key: Option<String>,
    pub(crate) chain: Option<String>,
    pub(crate) order: Option<SignedOrder>,
}

impl World {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What must not happen, and has.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.lock().faults.clone()
    }

    /// Whether the program at `uri` is the one of this digest. The first fleet fetches it whole; whoever comes later only asks for it,
    /// for the digest is a part of where it is.
    pub(crate) async fn is_program(http: &reqwest::Client, uri: &str, sha256: &str) -> Result<(), String> {
        let programs = || PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = programs().get(uri).cloned();
        let request = if known.is_some() { http.head(uri) } else { http.get(uri) };
        let answer = request.send().await.and_then(reqwest::Response::error_for_status).map_err(|error| format!("{uri}: {error}"))?;
        let digest = match known {
            Some(digest) => digest,
            None => {
                let bytes = answer.bytes().await.map_err(|error| format!("{uri}: {error}"))?;
                let digest = private_registry::digest::sha256_hex(&bytes);
                programs().insert(uri.to_owned(), digest.clone());
                digest
            }
        };
        if digest == sha256 { Ok(()) } else { Err(format!("{uri} has the digest {digest}, and the definition names {sha256}")) }
    }
}

impl Inner {
    /// Notes what must not happen.
    pub(crate) fn fault(&mut self, what: String) {
        if !self.faults.contains(&what) {
            self.faults.push(what);
        }
    }

    pub(crate) fn disk(&mut self, host: Ipv4Addr) -> &mut Disk {
        self.disks.entry(host).or_default()
    }

    /// A registry serves with this chain from now on, or no more.
    pub(crate) fn serve(&mut self, task: &str, chain: Option<String>) {
        match chain {
            Some(chain) => drop(self.serving.insert(task.to_owned(), chain)),
            None => drop(self.serving.remove(task)),
        }
        self.look();
    }

    /// A node has written its files.
    pub(crate) fn write(&mut self, host: Ipv4Addr, order: SignedOrder, bundle: TrustBundle) {
        let proven = self.disk(host).node.as_ref().is_some_and(|files| files.proven);
        for pem in &bundle.certificates {
            if !self.trusted_ever.contains(pem) {
                self.trusted_ever.push(pem.clone());
            }
        }
        // Nobody may be left behind with nothing but a CA that others are told to forget.
        let is_left_behind = |files: &NodeFiles| !files.bundle.certificates.iter().any(|pem| bundle.certificates.contains(pem));
        let left: Vec<Ipv4Addr> =
            self.disks.iter().filter(|(_, disk)| disk.node.as_ref().is_some_and(is_left_behind)).map(|(host, _)| *host).collect();
        left.into_iter().for_each(|left| self.fault(format!("{host} is told to trust nothing of what {left} knows")));
        self.disk(host).node = Some(NodeFiles { order, bundle, proven });
        self.look();
    }

    /// What a client on a host says of every name inside: nothing as long as nobody serves.
    pub(crate) fn prove(&mut self, host: Ipv4Addr) -> Option<Result<(), String>> {
        let chain = self.serving.values().next().cloned()?;
        let files = self.disk(host).node.as_mut()?;
        let said = accepts(&files.bundle, files.bundle.names.iter().filter(|name| name.inside), &chain);
        files.proven |= said.is_ok();
        Some(said)
    }

    /// No host that has once proven its trust may ever refuse what is served. By the first name: others may still be on their way.
    fn look(&mut self) {
        let mut found = Vec::new();
        for (host, disk) in &self.disks {
            for chain in self.serving.values() {
                if let Some(files) = disk.node.as_ref().filter(|files| files.proven)
                    && let Err(why) = accepts(&files.bundle, files.bundle.names.iter().take(1), chain)
                {
                    found.push(format!("{host} had proven its trust, and refuses what is served now: {why}"));
                }
            }
        }
        found.into_iter().for_each(|what| self.fault(what));
    }
}

/// What the clients of a host with this bundle do with a chain.
fn accepts<'a>(bundle: &TrustBundle, names: impl Iterator<Item = &'a TrustedName>, chain: &str) -> Result<(), String> {
    let der = |certificate: &Certificate| CertificateDer::from(certificate.der().to_vec());
    let chain: Vec<_> = Certificate::parse_bundle(chain).map_err(|error| error.to_string())?.iter().map(der).collect();
    let mut roots = rustls::RootCertStore::empty();
    for pem in &bundle.certificates {
        roots.add(der(&Certificate::parse_pem(pem).map_err(|error| error.to_string())?)).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|error| error.to_string())?;
    let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    for name in names {
        let text = name.name.to_string();
        let host = text.rsplit_once(':').map_or(text.as_str(), |(host, _)| host).to_owned();
        let server = ServerName::try_from(host).map_err(|error| error.to_string())?;
        verifier.verify_server_cert(&chain[0], &chain[1..], &server, &[], now).map_err(|error| format!("{text}: {error}"))?;
    }
    Ok(())
}
