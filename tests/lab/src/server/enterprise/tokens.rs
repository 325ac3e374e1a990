//! Authentication tokens: JWTs that name an account, and the proofs by which services get one.

use std::fmt;

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hmac, signature};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, Pem};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::Enterprise;
use crate::server::clock::now;

/// Where browsers keep their token.
pub(crate) const COOKIE: &str = "dcos-acs-auth-cookie";
/// Seconds that a token is good for.
pub(crate) const LIFETIME: f64 = 5.0 * 24.0 * 3600.0;

/// A token was shown, but it is none of this cluster, or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invalid;

/// A key for tokens.
pub(crate) fn new_key() -> Vec<u8> {
    let mut key = vec![0; 32];
    SystemRandom::new().fill(&mut key).expect("the system has random numbers");
    key
}

/// The token of a request: `Authorization: token=…` or `Bearer …`, or the cookie.
pub(crate) fn shown(headers: &HeaderMap) -> Option<String> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(value) = authorization {
        let token = value.strip_prefix("token=").or_else(|| value.strip_prefix("Bearer "));
        return Some(token.unwrap_or_default().trim().to_owned());
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let mut pairs = cookies.filter_map(|cookie| cookie.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, token)| token.to_owned())
}

impl Enterprise {
    /// A fresh token for an account.
    ///
    /// The real ones are signed with RSA (RS256); nobody but the IAM itself checks them here.
    pub(crate) fn issue(&self, uid: &str) -> String {
        self.issue_until(uid, now() + LIFETIME)
    }

    pub(super) fn issue_until(&self, uid: &str, end: f64) -> String {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        // Truncation is what a JWT's whole seconds want.
        #[allow(clippy::cast_possible_truncation)]
        let signed = format!("{}.{}", part(json!({ "alg": "HS256", "typ": "JWT" })), part(json!({ "uid": uid, "exp": end as i64 })));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.key), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// All tokens are void from now on.
    pub(crate) fn expire_tokens(&mut self) {
        self.key = new_key();
    }

    /// Whose token it is.
    pub(crate) fn account_of(&self, token: &str) -> Result<String, Invalid> {
        let jwt = Jwt::read(token).ok_or(Invalid)?;
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &self.key), jwt.signed.as_bytes(), &jwt.signature).map_err(|_| Invalid)?;
        let uid = jwt.unexpired_uid().ok_or(Invalid)?;
        if self.accounts.contains_key(uid) { Ok(uid.to_owned()) } else { Err(Invalid) }
    }

    /// Whether a service has signed this proof for itself: a JWT with its uid and an end that has not come.
    pub(crate) fn is_proof(&self, uid: &str, token: &str) -> bool {
        let key = self.accounts.get(uid).and_then(|account| account.public_key.as_deref()).and_then(|pem| rsa_key(pem).ok());
        let (Some(key), Some(jwt)) = (key, Jwt::read(token)) else { return false };
        let key = signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, key);
        jwt.header["alg"] == "RS256"
            && key.verify(jwt.signed.as_bytes(), &jwt.signature).is_ok()
            && jwt.unexpired_uid().is_some_and(|named| named == uid)
    }
}

/// Why a public key cannot be an account's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadKey(&'static str);

impl fmt::Display for BadKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Invalid public key: {}", self.0)
    }
}

/// The key of a PEM `PUBLIC KEY`, as PKCS#1.
pub(crate) fn rsa_key(pem: &str) -> Result<Vec<u8>, BadKey> {
    let unreadable = BadKey("it must be RSA, PEM-encoded in X.509 SubjectPublicKeyInfo format");
    let Some(Ok(block)) = Pem::iter_from_buffer(pem.as_bytes()).next() else { return Err(unreadable) };
    if block.label != "PUBLIC KEY" {
        return Err(unreadable);
    }
    let Ok((_, info)) = SubjectPublicKeyInfo::from_der(&block.contents) else { return Err(unreadable) };
    match info.parsed() {
        Ok(PublicKey::RSA(_)) => Ok(info.subject_public_key.data.to_vec()),
        _ => Err(BadKey("it must be of type RSA")),
    }
}

struct Jwt<'a> {
    header: Value,
    payload: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jwt<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (signed, tail) = text.rsplit_once('.')?;
        let (head, body) = signed.split_once('.')?;
        let part = |text: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok();
        Some(Self { header: part(head)?, payload: part(body)?, signed, signature: URL_SAFE_NO_PAD.decode(tail).ok()? })
    }

    fn unexpired_uid(&self) -> Option<&str> {
        let end = self.payload["exp"].as_f64()?;
        (end > now()).then(|| self.payload["uid"].as_str())?
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::server::Security;
    use crate::server::enterprise::Account;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child =
            Command::new("openssl").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    /// A service's two keys in PEM, as its operator makes them.
    pub(in crate::server) fn service_keys() -> (String, String) {
        let private = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], b"");
        let public = openssl(&["pkey", "-pubout"], &private);
        (String::from_utf8(private).unwrap(), String::from_utf8(public).unwrap())
    }

    /// What a service sends to log in.
    pub(in crate::server) fn proof(private: &str, payload: &Value) -> String {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key.pem");
        std::fs::write(&key, private).unwrap();
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "RS256", "typ": "JWT" })), part(payload));
        let signature = openssl(&["dgst", "-sha256", "-sign", key.to_str().unwrap()], signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn showing(name: &str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap());
        headers
    }

    #[test]
    fn a_token_is_shown_in_one_of_three_ways() {
        for (name, value) in [("authorization", "token=a.b"), ("authorization", "Bearer a.b"), ("cookie", "x=y; dcos-acs-auth-cookie=a.b")]
        {
            assert_eq!(shown(&showing(name, value)).as_deref(), Some("a.b"));
        }
        assert_eq!(shown(&HeaderMap::new()), None);
        assert_eq!(shown(&showing("authorization", "Basic eDp5")).as_deref(), Some(""));
    }

    #[test]
    fn a_token_is_good_until_it_ends_or_its_account_or_all_tokens_do() {
        let mut enterprise = Enterprise::new(Security::Strict);
        let token = enterprise.issue("bootstrapuser");
        assert_eq!(enterprise.account_of(&token).as_deref(), Ok("bootstrapuser"));
        assert_eq!(enterprise.account_of(&enterprise.issue_until("bootstrapuser", now() - 1.0)), Err(Invalid));
        assert_eq!(enterprise.account_of(&format!("{token}A")), Err(Invalid));
        assert_eq!(enterprise.account_of(&enterprise.issue("stranger")), Err(Invalid));
        enterprise.expire_tokens();
        assert_eq!(enterprise.account_of(&token), Err(Invalid));
        assert!(enterprise.account_of(&enterprise.issue("bootstrapuser")).is_ok());
    }

    #[test]
    fn a_service_proves_itself_with_its_own_key_only() {
        let (private, public) = service_keys();
        let (other, _) = service_keys();
        let mut enterprise = Enterprise::new(Security::Strict);
        enterprise.accounts.insert("registry".to_owned(), Account { public_key: Some(public), ..Account::default() });
        let soon = json!({ "uid": "registry", "exp": now() + 300.0 });
        assert!(enterprise.is_proof("registry", &proof(&private, &soon)));
        assert!(!enterprise.is_proof("registry", &proof(&other, &soon)));
        assert!(!enterprise.is_proof("registry", &proof(&private, &json!({ "uid": "registry", "exp": now() - 1.0 }))));
        assert!(!enterprise.is_proof("registry", &proof(&private, &json!({ "uid": "registry" }))));
        assert!(!enterprise.is_proof("registry", &proof(&private, &json!({ "uid": "someone", "exp": now() + 300.0 }))));
        assert!(!enterprise.is_proof("bootstrapuser", &proof(&private, &soon)));
    }

    #[test]
    fn only_an_rsa_key_in_its_usual_wrapping_is_a_services() {
        let (_, public) = service_keys();
        assert!(rsa_key(&public).is_ok());
        assert!(rsa_key(&public.replace("PUBLIC KEY", "RSA PUBLIC KEY")).is_err() && rsa_key("nonsense").is_err());
    }
}
