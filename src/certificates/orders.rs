//! Orders: signed by the controller, opened by its tasks.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::pem;
use crate::protocol::{MAX_MESSAGE_BYTES, Order, SignedOrder};
use crate::secret::Secret;

const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers for the order key")]
    Random,
    /// The stored text is no PEM block of a private key.
    #[error("the stored order key is not one PEM block of a private key: {0}")]
    Pem(#[from] pem::PemError),
    /// The block is no Ed25519 key in PKCS#8.
    #[error("the stored order key is not an Ed25519 key in PKCS#8")]
    NotEd25519,
}

/// The controller's Ed25519 key: what it signs binds every node and registry task of its service.
pub struct OrderSigner {
    pair: Ed25519KeyPair,
    pkcs8: Secret<Vec<u8>>,
}

impl std::fmt::Debug for OrderSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrderSigner").field("verifying_key", &self.verifying_key_base64()).finish_non_exhaustive()
    }
}

impl OrderSigner {
    /// A new key.
    pub fn generate() -> Result<Self, SigningKeyError> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| SigningKeyError::Random)?;
        Self::from_pkcs8_der(&Secret::new(pkcs8.as_ref().to_vec()))
    }

    /// The key to store, PEM.
    pub fn to_pkcs8_pem(&self) -> Secret<String> {
        Secret::new(pem::encode(PRIVATE_KEY, self.pkcs8.expose()))
    }

    /// Reads what [`to_pkcs8_pem`](Self::to_pkcs8_pem) gave.
    pub fn from_pkcs8_pem(text: &Secret<String>) -> Result<Self, SigningKeyError> {
        Self::from_pkcs8_der(&Secret::new(pem::decode_one(text.expose(), PRIVATE_KEY)?))
    }

    fn from_pkcs8_der(der: &Secret<Vec<u8>>) -> Result<Self, SigningKeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(der.expose()).map_err(|_| SigningKeyError::NotEd25519)?;
        Ok(Self { pair, pkcs8: der.clone() })
    }

    /// The public half, base64 of its 32 bytes; tasks get it in their environment.
    pub fn verifying_key_base64(&self) -> String {
        STANDARD.encode(self.pair.public_key().as_ref())
    }

    /// Signs the JSON of an order.
    pub fn sign(&self, order: &Order) -> SignedOrder {
        let payload = serde_json::to_vec(order).expect("an order is made of strings, numbers and lists");
        SignedOrder { signature: STANDARD.encode(self.pair.sign(&payload).as_ref()), payload: STANDARD.encode(payload) }
    }
}

/// Why an order was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The verifying key is no base64 of 32 bytes.
    #[error("the order key must be the base64 of 32 bytes")]
    BadKey,
    /// Larger than any order is.
    #[error("an order has at most {MAX_MESSAGE_BYTES} bytes")]
    TooLarge,
    /// Payload or signature is no base64.
    #[error("payload or signature is not base64")]
    NotBase64,
    /// Somebody else signed it, or it was changed on the way.
    #[error("the signature does not match: the order is not from this service's controller")]
    BadSignature,
    /// Rightly signed, but of a kind this version does not know.
    #[error("the order is rightly signed but cannot be read: {0}; is this task older than its controller?")]
    Unreadable(String),
}

/// The public key that orders must be signed with.
#[derive(Debug, Clone)]
pub struct OrderKey(UnparsedPublicKey<[u8; 32]>);

impl OrderKey {
    /// Reads what [`OrderSigner::verifying_key_base64`] gave.
    pub fn from_base64(text: &str) -> Result<Self, OrderError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| OrderError::BadKey)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| OrderError::BadKey)?;
        Ok(Self(UnparsedPublicKey::new(&ED25519, bytes)))
    }

    /// The order, if this key signed it. Nothing of the payload is parsed before the signature has been verified.
    pub fn open(&self, signed: &SignedOrder) -> Result<Order, OrderError> {
        if signed.payload.len() + signed.signature.len() > MAX_MESSAGE_BYTES {
            return Err(OrderError::TooLarge);
        }
        let payload = STANDARD.decode(&signed.payload).map_err(|_| OrderError::NotBase64)?;
        let signature = STANDARD.decode(&signed.signature).map_err(|_| OrderError::NotBase64)?;
        self.0.verify(&payload, &signature).map_err(|_| OrderError::BadSignature)?;
        crate::json::of_bytes(&payload).map_err(|error| OrderError::Unreadable(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::OrderKind;

    fn order() -> Order {
        Order { service: "private-registry".into(), version: 7, kind: OrderKind::Retire { delete_data: true } }
    }

    #[test]
    fn an_order_is_opened_with_the_key_of_its_signer() {
        let signer = OrderSigner::generate().unwrap();
        let key = OrderKey::from_base64(&signer.verifying_key_base64()).unwrap();
        assert_eq!(key.open(&signer.sign(&order())), Ok(order()));
    }

    #[test]
    fn a_stored_signer_signs_as_before() {
        let signer = OrderSigner::generate().unwrap();
        let again = OrderSigner::from_pkcs8_pem(&signer.to_pkcs8_pem()).unwrap();
        assert_eq!(again.sign(&order()), signer.sign(&order()));
    }

    #[test]
    fn another_signers_order_and_a_changed_order_are_refused() {
        let signer = OrderSigner::generate().unwrap();
        let key = OrderKey::from_base64(&signer.verifying_key_base64()).unwrap();
        let other = OrderSigner::generate().unwrap().sign(&order());
        assert_eq!(key.open(&other), Err(OrderError::BadSignature));

        let signed = signer.sign(&order());
        let changed = STANDARD.encode(String::from_utf8(STANDARD.decode(&signed.payload).unwrap()).unwrap().replace('7', "8"));
        assert_eq!(key.open(&SignedOrder { payload: changed, ..signed.clone() }), Err(OrderError::BadSignature));
        assert_eq!(key.open(&SignedOrder { signature: String::new(), ..signed.clone() }), Err(OrderError::BadSignature));
        assert_eq!(key.open(&SignedOrder { payload: "?".into(), ..signed }), Err(OrderError::NotBase64));
    }

    #[test]
    fn an_oversized_order_is_refused_unread() {
        let signer = OrderSigner::generate().unwrap();
        let key = OrderKey::from_base64(&signer.verifying_key_base64()).unwrap();
        let huge = SignedOrder { payload: "A".repeat(MAX_MESSAGE_BYTES + 1), signature: String::new() };
        assert_eq!(key.open(&huge), Err(OrderError::TooLarge));
    }

    #[test]
    fn a_signed_order_of_an_unknown_kind_is_unreadable_not_trusted() {
        let signer = OrderSigner::generate().unwrap();
        let key = OrderKey::from_base64(&signer.verifying_key_base64()).unwrap();
        let payload = br#"{"service":"s","version":1,"order":"explode"}"#;
        let signed = SignedOrder { payload: STANDARD.encode(payload), signature: STANDARD.encode(signer.pair.sign(payload).as_ref()) };
        assert!(matches!(key.open(&signed), Err(OrderError::Unreadable(_))));
    }

    #[test]
    fn a_signer_never_prints_its_key() {
        let signer = OrderSigner::generate().unwrap();
        let expected = format!("OrderSigner {{ verifying_key: {:?}, .. }} <redacted>", signer.verifying_key_base64());
        assert_eq!(format!("{signer:?} {}", signer.to_pkcs8_pem()), expected);
    }
}
