//! Which files make docker and DC/OS' own curl trust the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::{FileError, Found, HostFiles, Item};
use super::manifest::Manifest;
use super::system_store::SystemStore;
use crate::certificates::{Certificate, CertificateError};
use crate::host_paths::HostRoot;
use crate::in_order::InOrder as _;
use crate::names::HostPort;
use crate::protocol::{OtherTrust, Stores, TrustBundle, TrustedName};

/// Why a bundle is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// Nothing to trust it for.
    #[error("the bundle holds no name")]
    NoName,
    /// One of the certificates is none.
    #[error("certificate {0} of the bundle: {1}")]
    Certificate(usize, #[source] CertificateError),
    /// One of the certificates is not a CA's.
    #[error("certificate {0} of the bundle ({1}) is no CA certificate; hosts trust only a CA")]
    NotACa(usize, String),
}

/// A bundle whose every part has been looked at.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// The registry's names.
    pub(crate) names: Vec<TrustedName>,
    /// CA certificates, in the order of their fingerprints, each once. None where a public CA is used, which the host trusts already.
    pub(crate) certificates: Vec<Certificate>,
    /// Plain HTTP: no certificate, and docker is to know.
    pub(crate) insecure: bool,
    /// Registries of others.
    pub(crate) others: Vec<Other>,
    /// Stores beyond docker's and Mesos'.
    pub(crate) stores: Stores,
    /// Whether to set the sysctl.
    pub(crate) conntrack_be_liberal: bool,
    /// Whether to remove what a registry made by hand has left.
    pub(crate) clean_agents: bool,
}

/// A registry that is not ours.
#[derive(Debug)]
pub(crate) struct Other {
    /// Where it is.
    pub(crate) name: HostPort,
    /// What it is trusted by: CA certificates, or the one that it serves with.
    pub(crate) certificates: Vec<Certificate>,
}

impl Bundle {
    /// What docker has to be told to do without TLS for.
    pub(crate) fn insecure_entries(&self) -> BTreeSet<String> {
        if !self.insecure {
            return BTreeSet::new();
        }
        self.names.iter().flat_map(|trusted| trusted.name.plain_spellings()).in_order()
    }

    /// How clients may spell a name.
    pub(crate) fn spellings(&self, name: &HostPort) -> Vec<String> {
        if self.insecure { name.plain_spellings() } else { name.spellings() }
    }

    /// Takes all of a bundle or nothing.
    pub(crate) fn parse(bundle: &TrustBundle) -> Result<Self, BundleError> {
        let certificates = each_once(&bundle.certificates)?;
        if bundle.names.is_empty() && !certificates.is_empty() {
            return Err(BundleError::NoName);
        }
        if let Some((index, other)) = certificates.iter().enumerate().find(|(_, certificate)| !certificate.is_ca()) {
            return Err(BundleError::NotACa(index + 1, other.subject().to_string()));
        }
        let other = |other: &OtherTrust| Ok(Other { name: other.name.clone(), certificates: each_once(&other.certificates)? });
        Ok(Self {
            names: bundle.names.clone(),
            certificates,
            insecure: bundle.insecure,
            others: bundle.others.iter().map(other).collect::<Result<_, BundleError>>()?,
            stores: bundle.stores,
            conntrack_be_liberal: bundle.conntrack_be_liberal,
            clean_agents: bundle.clean_agents,
        })
    }

    /// What is to be trusted for each name that a client may spell. Another registry may share a name with ours.
    fn by_spelling(&self) -> BTreeMap<String, Trusted<'_>> {
        let mut by_spelling: BTreeMap<String, Trusted<'_>> = BTreeMap::new();
        // Neither plain HTTP nor a public CA needs a file.
        let own = self.names.iter().filter(|_| !self.certificates.is_empty()).map(|trusted| (&trusted.name, &self.certificates));
        for (name, certificates) in own.chain(self.others.iter().map(|other| (&other.name, &other.certificates))) {
            for spelling in name.spellings() {
                by_spelling.entry(spelling).or_default().extend(certificates.iter().map(|c| (c.fingerprint(), c)));
            }
        }
        by_spelling
    }

    /// Every certificate of the bundle, once.
    pub(crate) fn all_certificates(&self) -> Trusted<'_> {
        self.certificates.iter().chain(self.others.iter().flat_map(|other| &other.certificates)).map(|c| (c.fingerprint(), c)).in_order()
    }

    /// Whether a spelling is one of our own registry.
    pub(crate) fn is_own(&self, spelling: &str) -> bool {
        self.names.iter().any(|trusted| trusted.name.spellings().iter().any(|own| own == spelling))
    }
}

/// Certificates by fingerprint.
pub(crate) type Trusted<'a> = BTreeMap<String, &'a Certificate>;

fn each_once(texts: &[String]) -> Result<Vec<Certificate>, BundleError> {
    let mut certificates = BTreeMap::new();
    for (index, pem) in texts.iter().enumerate() {
        let certificate = Certificate::parse_pem(pem).map_err(|error| BundleError::Certificate(index + 1, error))?;
        certificates.insert(certificate.fingerprint(), certificate);
    }
    Ok(certificates.into_values().collect())
}

/// All certificates in one file.
fn concatenated(certificates: &Trusted<'_>) -> Item {
    Item::File(certificates.values().map(|certificate| certificate.pem()).collect::<String>().into_bytes())
}

/// The files that a host needs, and what stands in the way of the others.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// What should lie where.
    pub(crate) items: BTreeMap<PathBuf, Item>,
    /// Places where nothing can be put.
    pub(crate) errors: Vec<FileError>,
}

impl Wanted {
    fn take(&mut self, found: Result<impl IntoIterator<Item = (PathBuf, Item)>, FileError>) {
        match found {
            Ok(items) => self.items.extend(items),
            Err(error) => self.errors.push(error),
        }
    }
}

/// Looks at the host and says which files the bundle needs there.
pub(crate) fn wanted(files: &HostFiles, root: &HostRoot, service: &str, manifest: &Manifest, bundle: &Bundle) -> Wanted {
    let place = Place { files, manifest, service };
    let mut wanted = Wanted::default();
    for (spelling, certificates) in bundle.by_spelling() {
        wanted.take(place.docker_files(&root.docker_certs().join(&spelling), &certificates));
        if bundle.stores.podman {
            wanted.take(place.docker_files(&root.podman_certs().join(&spelling), &certificates));
        }
        if bundle.stores.containerd {
            wanted.take(place.containerd_files(&root.containerd_certs().join(&spelling), &spelling, &certificates));
        }
    }
    for certificate in bundle.all_certificates().into_values() {
        wanted.take(place.mesos_files(&root.mesos_certs(), certificate, &wanted.items));
        if bundle.stores.system {
            match SystemStore::on(root) {
                Some(store) => wanted.take(place.own_file(&store.dir, certificate)),
                // Once is enough.
                None => {
                    wanted.errors.retain(|error| !matches!(error, FileError::NoSystemStore));
                    wanted.errors.push(FileError::NoSystemStore);
                }
            }
        }
    }
    wanted
}

struct Place<'a> {
    files: &'a HostFiles,
    manifest: &'a Manifest,
    /// File-name-safe name of the service.
    service: &'a str,
}

impl Place<'_> {
    /// Docker takes every `.crt` of the directory (moby `loadTLSConfig`), so beside somebody else's `ca.crt` there is room. Podman,
    /// skopeo and buildah read theirs in the same way (containers/image `SetupCertificates`).
    fn docker_files(&self, dir: &Path, certificates: &Trusted<'_>) -> Result<Vec<(PathBuf, Item)>, FileError> {
        let usual = dir.join("ca.crt");
        if self.is_free(&usual)? {
            return Ok(vec![(usual, concatenated(certificates))]);
        }
        let beside = dir.join(format!("{}.crt", self.service));
        if self.is_free(&beside)? { Ok(vec![(beside, concatenated(certificates))]) } else { Err(FileError::InTheWay(beside)) }
    }

    /// With a `hosts.toml` containerd reads what that names and nothing else of the directory; without one it reads every `.crt`, as
    /// docker does. So where somebody else's `.crt` is, a `hosts.toml` of ours would take it out of use.
    fn containerd_files(&self, dir: &Path, name: &str, certificates: &Trusted<'_>) -> Result<Vec<(PathBuf, Item)>, FileError> {
        let hosts = dir.join("hosts.toml");
        if !self.is_free(&hosts)? {
            return Err(FileError::InTheWay(hosts));
        }
        let files = self.docker_files(dir, certificates)?;
        if !files.iter().any(|(path, _)| path.ends_with("ca.crt")) {
            return Ok(files);
        }
        let text = format!("server = \"https://{name}\"\n\n[host.\"https://{name}\"]\n  ca = \"ca.crt\"\n");
        Ok(files.into_iter().chain([(hosts, Item::File(text.into_bytes()))]).collect())
    }

    /// The certificate in a file of our own name.
    fn own_file(&self, dir: &Path, certificate: &Certificate) -> Result<Option<(PathBuf, Item)>, FileError> {
        let file = dir.join(self.own_name(certificate));
        if self.is_free(&file)? { Ok(Some((file, Item::File(certificate.pem().into_bytes())))) } else { Err(FileError::InTheWay(file)) }
    }

    fn own_name(&self, certificate: &Certificate) -> String {
        format!("{}-{}.crt", self.service, &certificate.fingerprint()[..8])
    }

    /// The certificate and the link by which OpenSSL finds it.
    fn mesos_files(
        &self,
        dir: &Path,
        certificate: &Certificate,
        taken: &BTreeMap<PathBuf, Item>,
    ) -> Result<Vec<(PathBuf, Item)>, FileError> {
        let mut items: Vec<(PathBuf, Item)> = self.own_file(dir, certificate)?.into_iter().collect();
        // OpenSSL tries .0, .1, .2 … and stops at the first number that is missing, so ours is the first free one.
        for number in 0_u32.. {
            let link = dir.join(format!("{:08x}.{number}", certificate.subject_hash()));
            if !taken.contains_key(&link) && self.is_free(&link)? {
                items.push((link, Item::Link(self.own_name(certificate))));
                break;
            }
        }
        Ok(items)
    }

    fn is_free(&self, path: &Path) -> Result<bool, FileError> {
        let found = self.files.look(path)?;
        Ok(found == Found::Absent || self.manifest.owns(path, &found))
    }
}
