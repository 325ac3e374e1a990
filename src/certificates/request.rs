//! The registry's own key, its request, and the key that says whose request it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData,
    SignatureAlgorithm,
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::certificate::hex;
use super::pem;
use crate::secret::Secret;

const PRIVATE_KEY: &str = "PRIVATE KEY";
/// Longest common name that X.509 allows (RFC 5280 appendix A, `ub-common-name`).
pub(super) const MAX_COMMON_NAME: usize = 64;

/// Why there is no registry key or no request.
#[derive(Debug, thiserror::Error)]
pub enum RegistryKeyError {
    /// The stored text is no PEM block of a private key.
    #[error("it is not one PEM block of a private key: {0}")]
    Pem(#[from] pem::PemError),
    /// The block is no key of a kind that we make.
    #[error("it is neither a P-256 nor a P-384 key in PKCS#8")]
    OtherKind,
    /// Making a key or a request failed.
    #[error("making a key or a request failed: {0}")]
    Making(#[from] rcgen::Error),
}

/// Kind of a key that we make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum KeyType {
    #[default]
    P256,
    P384,
}

impl KeyType {
    fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            Self::P256 => &PKCS_ECDSA_P256_SHA256,
            Self::P384 => &PKCS_ECDSA_P384_SHA384,
        }
    }
}

/// The registry's TLS key. It is made where it is used and never leaves that host.
pub struct RegistryKey {
    pair: KeyPair,
    kind: KeyType,
}

impl std::fmt::Debug for RegistryKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryKey(<redacted>)")
    }
}

impl RegistryKey {
    /// A new key of the usual kind.
    pub fn generate() -> Result<Self, RegistryKeyError> {
        Self::generate_as(KeyType::default())
    }

    /// A new key.
    pub fn generate_as(kind: KeyType) -> Result<Self, RegistryKeyError> {
        Ok(Self { pair: KeyPair::generate_for(kind.algorithm())?, kind })
    }

    /// Its kind.
    pub fn kind(&self) -> KeyType {
        self.kind
    }

    /// Reads what [`to_pem`](Self::to_pem) gave.
    pub fn from_pem(text: &Secret<String>) -> Result<Self, RegistryKeyError> {
        let der = pem::decode_one(text.expose(), PRIVATE_KEY)?;
        let read = |kind: KeyType| {
            let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), kind.algorithm()).ok()?;
            Some(Self { pair, kind })
        };
        read(KeyType::P256).or_else(|| read(KeyType::P384)).ok_or(RegistryKeyError::OtherKind)
    }

    /// The key to store, PKCS#8 in PEM.
    pub fn to_pem(&self) -> Secret<String> {
        Secret::new(pem::encode(PRIVATE_KEY, self.pair.serialized_der()))
    }

    /// The SubjectPublicKeyInfo, DER; compare it with [`Certificate::public_key_spki_der`](super::Certificate::public_key_spki_der).
    pub fn public_key_spki_der(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// A request (PKCS#10, PEM) for this key. It names the service for people; a signer takes only the public key from it.
    pub fn csr(&self, service: &str) -> Result<String, RegistryKeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, service.chars().take(MAX_COMMON_NAME).collect::<String>());
        Ok(pem::encode("CERTIFICATE REQUEST", params.serialize_request(&self.pair)?.der()))
    }
}

/// Why a text is no enrolment key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentKeyError {
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers for the enrolment key")]
    Random,
    /// No base64 of 32 bytes.
    #[error("the enrolment key must be the base64 of 32 bytes")]
    BadKey,
}

/// A text could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be sealed or opened with this service's enrolment key")]
pub struct SealError;

/// What a sealed text belongs to.
fn bound_to(service: &str, version: u64) -> Aad<Vec<u8>> {
    Aad::from(format!("{version}\0{service}").into_bytes())
}

/// Shared by the controller and the registry task: a request with its MAC comes from the registry, and what is sealed with it is for
/// the registry. It opens nothing else.
#[derive(Debug, Clone)]
pub struct EnrolmentKey(Secret<[u8; 32]>);

impl EnrolmentKey {
    /// A new key.
    pub fn generate() -> Result<Self, EnrolmentKeyError> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| EnrolmentKeyError::Random)?;
        Ok(Self(Secret::new(bytes)))
    }

    /// Reads what [`to_base64`](Self::to_base64) gave.
    pub fn from_base64(text: &Secret<String>) -> Result<Self, EnrolmentKeyError> {
        let bytes = STANDARD.decode(text.expose().trim()).map_err(|_| EnrolmentKeyError::BadKey)?;
        Ok(Self(Secret::new(bytes.try_into().map_err(|_| EnrolmentKeyError::BadKey)?)))
    }

    /// The key to store and to hand to the registry task.
    pub fn to_base64(&self) -> Secret<String> {
        Secret::new(STANDARD.encode(self.0.expose()))
    }

    /// HMAC-SHA-256 over the request's PEM text, hex.
    pub fn mac(&self, csr_pem: &str) -> String {
        hex(hmac::sign(&self.hmac_key(), csr_pem.as_bytes()).as_ref())
    }

    /// Whether `mac` belongs to the request; takes equally long wherever they differ.
    pub fn verify(&self, csr_pem: &str, mac: &str) -> bool {
        let tag: Option<Vec<u8>> = (mac.len() == 64 && mac.is_ascii())
            .then(|| (0..64).step_by(2).map(|i| u8::from_str_radix(&mac[i..i + 2], 16).ok()).collect())
            .flatten();
        tag.is_some_and(|tag| hmac::verify(&self.hmac_key(), csr_pem.as_bytes(), &tag).is_ok())
    }

    /// The registry's HTTP secret, derived so that it is the same after every restart and in every instance.
    pub fn http_secret(&self) -> Secret<String> {
        // No request can ask for this MAC: a request is PEM and starts with five hyphens.
        Secret::new(hex(hmac::sign(&self.hmac_key(), b"private-registry: http secret").as_ref()))
    }

    /// Says of a text that the holder of this key has it, to nobody else: hex of an HMAC.
    pub fn digest(&self, text: &Secret<String>) -> String {
        hex(hmac::sign(&self.hmac_key(), [b"private-registry: digest\0", text.expose().as_bytes()].concat().as_slice()).as_ref())
    }

    /// Seals a text for the holder of this key, and for this service and version of an order only: base64.
    pub fn seal(&self, text: &Secret<String>, service: &str, version: u64) -> Result<String, SealError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError)?;
        let mut sealed = text.expose().clone().into_bytes();
        let tag =
            self.sealing_key()?.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), bound_to(service, version), &mut sealed);
        let tag = tag.map_err(|_| SealError)?;
        Ok(STANDARD.encode([&nonce, sealed.as_slice(), tag.as_ref()].concat()))
    }

    /// Opens what [`seal`](Self::seal) gave.
    pub fn open(&self, sealed: &str, service: &str, version: u64) -> Result<Secret<String>, SealError> {
        let bytes = STANDARD.decode(sealed).map_err(|_| SealError)?;
        let (nonce, rest) = bytes.split_at_checked(NONCE_LEN).ok_or(SealError)?;
        let mut rest = rest.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError)?;
        let text = self.sealing_key()?.open_in_place(nonce, bound_to(service, version), &mut rest).map_err(|_| SealError)?;
        String::from_utf8(text.to_vec()).map(Secret::new).map_err(|_| SealError)
    }

    fn sealing_key(&self) -> Result<LessSafeKey, SealError> {
        let bytes = hmac::sign(&self.hmac_key(), b"private-registry: sealing key");
        UnboundKey::new(&AES_256_GCM, bytes.as_ref()).map(LessSafeKey::new).map_err(|_| SealError)
    }

    fn hmac_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.expose())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_with_the_same_key_for_the_same_service_and_version_only() {
        let key = EnrolmentKey::generate().unwrap();
        let text = Secret::new("alice:hash\n".to_string());
        let sealed = key.seal(&text, "private-registry", 7).unwrap();
        assert!(key.open(&sealed, "private-registry", 7) == Ok(text.clone()));
        assert_ne!(sealed, key.seal(&text, "private-registry", 7).unwrap());
        let other = EnrolmentKey::generate().unwrap();
        for opened in [
            key.open(&sealed, "private-registry", 8),
            key.open(&sealed, "other", 7),
            other.open(&sealed, "private-registry", 7),
            key.open("", "private-registry", 7),
            key.open(&sealed[..8], "private-registry", 7),
        ] {
            assert!(opened == Err(SealError));
        }
        assert!(key.digest(&text) == key.digest(&text) && key.digest(&text) != other.digest(&text));
    }

    #[test]
    fn a_stored_registry_key_is_the_same_key() {
        for kind in [KeyType::P256, KeyType::P384] {
            let key = RegistryKey::generate_as(kind).unwrap();
            let again = RegistryKey::from_pem(&key.to_pem()).unwrap();
            assert_eq!((key.public_key_spki_der(), again.kind()), (again.public_key_spki_der(), kind));
            assert_eq!(key.to_pem(), again.to_pem());
        }
    }

    #[test]
    fn what_is_no_key_of_a_kind_that_we_make_is_no_registry_key() {
        let signer = crate::certificates::OrderSigner::generate().unwrap();
        assert!(matches!(RegistryKey::from_pem(&signer.to_pkcs8_pem()), Err(RegistryKeyError::OtherKind)));
        assert!(matches!(RegistryKey::from_pem(&Secret::new("hello".into())), Err(RegistryKeyError::Pem(_))));
    }

    #[test]
    fn keys_are_never_printed() {
        let key = RegistryKey::generate().unwrap();
        assert_eq!(format!("{key:?} {:?} {}", key.to_pem(), key.to_pem()), "RegistryKey(<redacted>) <redacted> <redacted>");
        let enrolment = EnrolmentKey::generate().unwrap();
        let printed = format!("{enrolment:?} {:?} {}", enrolment.http_secret(), enrolment.to_base64());
        assert_eq!(printed, "EnrolmentKey(<redacted>) <redacted> <redacted>");
    }

    #[test]
    fn a_request_is_known_by_its_mac_alone() {
        let key = EnrolmentKey::from_base64(&EnrolmentKey::generate().unwrap().to_base64()).unwrap();
        let csr = RegistryKey::generate().unwrap().csr("private-registry").unwrap();
        let mac = key.mac(&csr);
        assert!(key.verify(&csr, &mac));
        assert!(!key.verify(&format!("{csr} "), &mac));
        assert!(!EnrolmentKey::generate().unwrap().verify(&csr, &mac));
        for bad in ["", "00", "é", &"+1".repeat(32), &mac[..62]] {
            assert!(!key.verify(&csr, bad), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_http_secret_depends_on_the_key_alone() {
        let key = EnrolmentKey::generate().unwrap();
        let again = EnrolmentKey::from_base64(&key.to_base64()).unwrap();
        assert_eq!(key.http_secret(), again.http_secret());
        assert_ne!(key.http_secret(), EnrolmentKey::generate().unwrap().http_secret());
        assert!(EnrolmentKey::from_base64(&Secret::new("AAAA".into())).is_err());
    }
}
