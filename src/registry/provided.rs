//! The operator's own certificate and key: read, checked against each other, and looked at again and again, because whoever renews
//! them replaces the files and tells nobody.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::state::{Chain, ChainError};
use crate::certificates::{ProvidedKey, ProvidedKeyError};
use crate::digest::sha256_hex;
use crate::protocol::{HeldAt, Provided};
use crate::secret::Secret;

/// Between two looks at the files.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Larger files are neither a chain nor a key.
const MAX_BYTES: u64 = 256 * 1024;

/// Why the operator's certificate cannot be served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ProvidedError {
    #[error(
        "cannot read {0}: {1}; the file must lie on this agent, in the directory that the option names, and a symbolic link must not lead out of it"
    )]
    File(PathBuf, std::io::Error),
    #[error("{0} is no regular file of at most {MAX_BYTES} bytes")]
    NoFile(PathBuf),
    #[error("{0} is not set: the secret is not handed to this task")]
    Variable(String),
    #[error("security.certificate: {0}")]
    Chain(#[from] ChainError),
    #[error("security.certificate: the leaf is not valid before Unix time {0}; is the clock of this agent right?")]
    NotYet(i64),
    #[error("security.key: {0}")]
    Key(#[from] ProvidedKeyError),
}

/// What the operator has stored, checked.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) chain: Chain,
    pub(super) key: Secret<String>,
}

/// Looks for what the operator has stored.
#[derive(Debug)]
pub(super) struct Watch {
    provided: Provided,
    /// Digest of what was there at the last look.
    seen: Option<String>,
    /// Why that cannot be served.
    pub(super) error: Option<String>,
}

impl Watch {
    pub(super) fn new(provided: Provided) -> Self {
        Self { provided, seen: None, error: None }
    }

    /// What there is now, if it has changed since the last look and can be served.
    pub(super) fn look(&mut self, now: i64) -> Option<Pair> {
        let texts = read(&self.provided.certificate).and_then(|certificate| Ok((certificate, read(&self.provided.key)?)));
        let looked = texts.and_then(|(certificate, key)| {
            let digest = sha256_hex(format!("{}\0{}", certificate.expose(), key.expose()).as_bytes());
            // What was refused may be good by now: a certificate that was not valid yet.
            if self.error.is_none() && self.seen.as_ref() == Some(&digest) {
                return Ok(None);
            }
            let pair = check(&certificate, &key, now)?;
            self.seen = Some(digest);
            Ok(Some(pair))
        });
        match looked {
            Ok(found) => {
                self.error = None;
                found
            }
            Err(error) => {
                let error = error.to_string();
                if self.error.as_ref() != Some(&error) {
                    tracing::error!("the certificate that was provided is not used: {error}");
                }
                self.error = Some(error);
                None
            }
        }
    }

    /// Has the next look report what there is though it has not changed: it could not be put to use.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }
}

fn check(certificate: &Secret<String>, key: &Secret<String>, now: i64) -> Result<Pair, ProvidedError> {
    let key = ProvidedKey::from_pem(key)?;
    let chain = Chain::checked(certificate.expose(), |leaf| key.belongs_to(leaf), now)?;
    if chain.leaf_not_before > now {
        return Err(ProvidedError::NotYet(chain.leaf_not_before));
    }
    Ok(Pair { chain, key: key.to_pem() })
}

pub(super) fn read(at: &HeldAt) -> Result<Secret<String>, ProvidedError> {
    match at {
        HeldAt::Variable(name) => std::env::var(name).map(Secret::new).map_err(|_| ProvidedError::Variable(name.clone())),
        HeldAt::File(path) => read_file(path),
    }
}

fn read_file(path: &Path) -> Result<Secret<String>, ProvidedError> {
    let unreadable = |error| ProvidedError::File(path.to_path_buf(), error);
    // A pipe would block the opening.
    let found = std::fs::metadata(path).map_err(unreadable)?;
    if !found.is_file() || found.len() > MAX_BYTES {
        return Err(ProvidedError::NoFile(path.to_path_buf()));
    }
    let mut text = String::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)).map_err(unreadable)?;
    Ok(Secret::new(text))
}
