//! What we speak TLS with, to the registry and to the cluster.

use std::sync::Arc;

use ring::rand::SecureRandom as _;
use rustls::SignatureScheme;
use rustls::crypto::ring::{DEFAULT_KX_GROUPS, cipher_suite, sign};
use rustls::crypto::{CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use webpki::ring as algorithms;

/// `rustls`' own provider on `ring`, but with AES-GCM alone: every server with TLS 1.3 has it (RFC 8446, 9.1), and of TLS 1.2 all that DC/OS'
/// masters and a registry offer. ChaCha20-Poly1305, for processors without AES, would be 50 KB more on every agent; and it is in the program
/// as soon as that provider is named. A test holds that nothing else differs.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        kx_groups: DEFAULT_KX_GROUPS.to_vec(),
        signature_verification_algorithms: SIGNATURES,
        secure_random: &Ring,
        key_provider: &Ring,
    })
}

/// Has `reqwest` speak with it; to be called before a client of it is built.
pub(crate) fn for_clients() {
    // An error says that this has been done.
    let _ = Arc::unwrap_or_clone(provider()).install_default();
}

/// Signatures that are accepted, and by which names TLS knows them: in TLS 1.2 the curve is not told by the name.
static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: webpki::ALL_VERIFICATION_ALGS,
    mapping: &[
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[algorithms::ECDSA_P384_SHA384, algorithms::ECDSA_P256_SHA384]),
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[algorithms::ECDSA_P256_SHA256, algorithms::ECDSA_P384_SHA256]),
        (SignatureScheme::ED25519, &[algorithms::ED25519]),
        (SignatureScheme::RSA_PSS_SHA512, &[algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA384, &[algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA256, &[algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (SignatureScheme::RSA_PKCS1_SHA512, &[algorithms::RSA_PKCS1_2048_8192_SHA512]),
        (SignatureScheme::RSA_PKCS1_SHA384, &[algorithms::RSA_PKCS1_2048_8192_SHA384]),
        (SignatureScheme::RSA_PKCS1_SHA256, &[algorithms::RSA_PKCS1_2048_8192_SHA256]),
    ],
};

#[derive(Debug)]
struct Ring;

impl SecureRandom for Ring {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        ring::rand::SystemRandom::new().fill(bytes).map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for Ring {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        sign::any_supported_type(&key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::SignatureVerificationAlgorithm;

    use super::*;

    #[test]
    fn our_provider_is_that_of_rustls_without_chacha20() {
        let (ours, theirs) = (provider(), default_provider());
        let suites =
            |provider: &CryptoProvider| provider.cipher_suites.iter().map(|suite| format!("{:?}", suite.suite())).collect::<Vec<_>>();
        let mut expected = suites(&theirs);
        expected.retain(|suite| !suite.contains("CHACHA20"));
        assert!(expected.len() < theirs.cipher_suites.len());
        assert_eq!(suites(&ours), expected);
        let groups = |provider: &CryptoProvider| provider.kx_groups.iter().map(|group| group.name()).collect::<Vec<_>>();
        assert_eq!(groups(&ours), groups(&theirs));
        let ids = |algorithm: &&dyn SignatureVerificationAlgorithm| {
            format!("{:?}", (algorithm.public_key_alg_id(), algorithm.signature_alg_id()))
        };
        let all = |provider: &CryptoProvider| provider.signature_verification_algorithms.all.iter().map(ids).collect::<BTreeSet<_>>();
        assert_eq!(all(&ours), all(&theirs));
        let one = |algorithm: &&dyn SignatureVerificationAlgorithm| format!("{algorithm:?} {}", ids(algorithm));
        let named = |provider: &CryptoProvider| {
            let mapping = provider.signature_verification_algorithms.mapping.iter();
            mapping.map(|(scheme, of)| (*scheme, of.iter().map(one).collect::<Vec<_>>())).collect::<Vec<_>>()
        };
        assert_eq!(named(&ours), named(&theirs));
        let mut random = [[0; 32]; 2];
        random.iter_mut().for_each(|bytes| ours.secure_random.fill(bytes).unwrap());
        assert!(random[0] != random[1] && random[0] != [0; 32]);
    }
}
