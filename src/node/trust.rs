//! Which files make docker and DC/OS' own curl trust the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::{FileError, Found, HostFiles, Item};
use super::manifest::Manifest;
use crate::certificates::{Certificate, CertificateError};
use crate::host_paths::HostRoot;
use crate::names::HostPort;
use crate::protocol::{TrustBundle, TrustedName};

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
    /// Whether to set the sysctl.
    pub(crate) conntrack_be_liberal: bool,
}

impl Bundle {
    /// What docker has to be told to do without TLS for.
    pub(crate) fn insecure_entries(&self) -> BTreeSet<String> {
        if !self.insecure {
            return BTreeSet::new();
        }
        self.names.iter().flat_map(|trusted| trusted.name.plain_spellings()).collect()
    }

    /// How clients may spell a name.
    pub(crate) fn spellings(&self, name: &HostPort) -> Vec<String> {
        if self.insecure { name.plain_spellings() } else { name.spellings() }
    }

    /// Takes all of a bundle or nothing.
    pub(crate) fn parse(bundle: &TrustBundle) -> Result<Self, BundleError> {
        if bundle.names.is_empty() {
            return Err(BundleError::NoName);
        }
        let mut certificates = BTreeMap::new();
        for (index, pem) in bundle.certificates.iter().enumerate() {
            let certificate = Certificate::parse_pem(pem).map_err(|error| BundleError::Certificate(index + 1, error))?;
            if !certificate.is_ca() {
                return Err(BundleError::NotACa(index + 1, certificate.subject().to_string()));
            }
            certificates.insert(certificate.fingerprint(), certificate);
        }
        let certificates = certificates.into_values().collect();
        Ok(Self { names: bundle.names.clone(), certificates, insecure: bundle.insecure, conntrack_be_liberal: bundle.conntrack_be_liberal })
    }

    /// All certificates in one file.
    fn concatenated(&self) -> Vec<u8> {
        self.certificates.iter().map(Certificate::pem).collect::<String>().into_bytes()
    }
}

/// The files that a host needs, and what stands in the way of the others.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// What should lie where.
    pub(crate) items: BTreeMap<PathBuf, Item>,
    /// Places where nothing can be put.
    pub(crate) errors: Vec<FileError>,
}

/// Looks at the host and says which files the bundle needs there.
pub(crate) fn wanted(files: &HostFiles, root: &HostRoot, service: &str, manifest: &Manifest, bundle: &Bundle) -> Wanted {
    let place = Place { files, manifest, service };
    let mut wanted = Wanted::default();
    if bundle.insecure {
        return wanted;
    }
    let spellings: BTreeSet<String> = bundle.names.iter().flat_map(|trusted| trusted.name.spellings()).collect();
    for spelling in spellings.into_iter().filter(|_| !bundle.certificates.is_empty()) {
        match place.docker_file(&root.docker_certs().join(spelling)) {
            Ok(path) => drop(wanted.items.insert(path, Item::File(bundle.concatenated()))),
            Err(error) => wanted.errors.push(error),
        }
    }
    for certificate in &bundle.certificates {
        match place.mesos_files(&root.mesos_certs(), certificate, &wanted.items) {
            Ok(items) => wanted.items.extend(items),
            Err(error) => wanted.errors.push(error),
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
    /// Docker takes every `.crt` of the directory (moby `loadTLSConfig`), so beside somebody else's `ca.crt` there is room.
    fn docker_file(&self, dir: &Path) -> Result<PathBuf, FileError> {
        let usual = dir.join("ca.crt");
        if self.is_free(&usual)? {
            return Ok(usual);
        }
        let beside = dir.join(format!("{}.crt", self.service));
        if self.is_free(&beside)? { Ok(beside) } else { Err(FileError::InTheWay(beside)) }
    }

    /// The certificate and the link by which OpenSSL finds it.
    fn mesos_files(
        &self,
        dir: &Path,
        certificate: &Certificate,
        taken: &BTreeMap<PathBuf, Item>,
    ) -> Result<[(PathBuf, Item); 2], FileError> {
        let name = format!("{}-{}.crt", self.service, &certificate.fingerprint()[..8]);
        let file = dir.join(&name);
        if !self.is_free(&file)? {
            return Err(FileError::InTheWay(file));
        }
        // OpenSSL tries .0, .1, .2 … and stops at the first number that is missing, so ours is the first free one.
        for number in 0_u32.. {
            let link = dir.join(format!("{:08x}.{number}", certificate.subject_hash()));
            if !taken.contains_key(&link) && self.is_free(&link)? {
                return Ok([(file, Item::File(certificate.pem().into_bytes())), (link, Item::Link(name))]);
            }
        }
        Err(FileError::InTheWay(file))
    }

    fn is_free(&self, path: &Path) -> Result<bool, FileError> {
        let found = self.files.look(path)?;
        Ok(found == Found::Absent || self.manifest.owns(path, &found))
    }
}
