//! A private key that the operator has made, in whichever of the usual forms it comes.

use rustls::SignatureAlgorithm;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::{Certificate, pem};
use crate::secret::Secret;

/// Why a text is no key that can be served with. Nothing of the text is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvidedKeyError {
    /// A passphrase, which nobody could type.
    #[error("the private key is encrypted; store it without a passphrase")]
    Encrypted,
    /// No key at all.
    #[error("there is no private key in PEM")]
    Missing,
    /// More than one key.
    #[error("there is more than one private key; leave the one that belongs to the certificate")]
    TooMany,
    /// A kind that not every client of the registry knows, or one that is too weak.
    #[error("the private key is none of P-256, P-384, and RSA of at least 2048 bits; make one of these and have it certified")]
    Unsupported,
}

/// A private key of the operator's: P-256, P-384, or RSA of at least 2048 bits.
pub struct ProvidedKey {
    der: PrivateKeyDer<'static>,
    spki: Vec<u8>,
}

impl std::fmt::Debug for ProvidedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProvidedKey(<redacted>)")
    }
}

impl ProvidedKey {
    /// Reads PKCS#8, PKCS#1 or SEC1 in PEM. What openssl writes beside the key, as the parameters of the curve, does no harm.
    pub fn from_pem(text: &Secret<String>) -> Result<Self, ProvidedKeyError> {
        let text = text.expose();
        // In the label, or in a header line of old.
        if text.contains("ENCRYPTED") {
            return Err(ProvidedKeyError::Encrypted);
        }
        let mut keys = PrivateKeyDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok);
        let der = keys.next().ok_or(ProvidedKeyError::Missing)?;
        if keys.next().is_some() {
            return Err(ProvidedKeyError::TooMany);
        }
        // Of RSA, ring takes no fewer bits than 2048; of curves, P-256 and P-384.
        let key = any_supported_type(&der).map_err(|_| ProvidedKeyError::Unsupported)?;
        if !matches!(key.algorithm(), SignatureAlgorithm::RSA | SignatureAlgorithm::ECDSA) {
            return Err(ProvidedKeyError::Unsupported);
        }
        let spki = key.public_key().ok_or(ProvidedKeyError::Unsupported)?.to_vec();
        Ok(Self { der, spki })
    }

    /// Whether a certificate is for this key.
    pub fn belongs_to(&self, certificate: &Certificate) -> bool {
        self.spki == certificate.public_key_spki_der()
    }

    /// The key alone, in PEM.
    pub fn to_pem(&self) -> Secret<String> {
        let label = match &self.der {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        Secret::new(pem::encode(label, self.der.secret_der()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    fn openssl(dir: &Path, arguments: &str) -> String {
        let output = Command::new("openssl").current_dir(dir).args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn read(text: String) -> Result<ProvidedKey, ProvidedKeyError> {
        ProvidedKey::from_pem(&Secret::new(text))
    }

    #[test]
    fn every_form_in_which_openssl_writes_a_key_is_read_and_belongs_to_its_certificate() {
        let dir = tempfile::tempdir().unwrap();
        for make in [
            "ecparam -name prime256v1 -genkey",
            "ecparam -name secp384r1 -genkey -noout",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
            "genrsa -traditional 2048",
            "genrsa 2048",
        ] {
            let text = openssl(dir.path(), make);
            std::fs::write(dir.path().join("key"), &text).unwrap();
            let key = read(text).unwrap();
            let certificate = Certificate::parse_pem(&openssl(dir.path(), "req -x509 -key key -subj /CN=x -days 1")).unwrap();
            assert!(key.belongs_to(&certificate), "{make}");
            assert!(read(key.to_pem().expose().clone()).unwrap().belongs_to(&certificate), "{make}");
            assert_eq!(format!("{key:?}"), "ProvidedKey(<redacted>)");
            let other = read(openssl(dir.path(), "ecparam -name prime256v1 -genkey")).unwrap();
            assert!(!other.belongs_to(&certificate));
        }
    }

    #[test]
    fn a_key_that_cannot_be_served_with_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        for (make, reason) in [
            ("genrsa 1024", ProvidedKeyError::Unsupported),
            ("ecparam -name secp521r1 -genkey", ProvidedKeyError::Unsupported),
            ("genpkey -algorithm ed25519", ProvidedKeyError::Unsupported),
            ("genrsa -aes128 -passout pass:secret 2048", ProvidedKeyError::Encrypted),
            ("genrsa -traditional -aes128 -passout pass:secret 2048", ProvidedKeyError::Encrypted),
            ("version", ProvidedKeyError::Missing),
        ] {
            assert_eq!(read(openssl(dir.path(), make)).unwrap_err(), reason, "{make}");
        }
        let two = openssl(dir.path(), "genrsa 2048") + &openssl(dir.path(), "genrsa 2048");
        assert_eq!(read(two).unwrap_err(), ProvidedKeyError::TooMany);
    }
}
