//! Login of a service account: DC/OS Enterprise, and open DC/OS from 1.13 on.
//!
//! The credential is what `dcos security secrets create-sa-secret` stores: `{"scheme":"RS256","uid","private_key","login_endpoint"}`.
//! A token lasts five days; it is renewed when a service answers 401.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{ApiError, chain};
use crate::secret::Secret;

/// Variable that holds the credential, or the path (also as `file://`) of a file that does; as SDK services have it.
pub const CREDENTIAL_VARIABLE: &str = "DCOS_SERVICE_ACCOUNT_CREDENTIAL";

/// Life of the signed request for a token, in seconds: long enough for clocks that are a little apart.
const REQUEST_LIFE: u64 = 300;
/// No credential is larger.
const MAX_CREDENTIAL_BYTES: u64 = 64 * 1024;

/// No token is larger.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why a credential cannot be used. No variant carries any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The file of a file secret.
    #[error(
        "the service account's credential cannot be read from {0}: {1}; is service.service_account_secret the path of a secret that this service may see?"
    )]
    File(String, String),
    /// Another form.
    #[error("the service account's credential is not what `dcos security secrets create-sa-secret` stores: {0}")]
    Form(&'static str),
    /// Another way of signing.
    #[error("the service account's credential has the scheme {0:?}; only RS256 is known")]
    Scheme(String),
    /// The key.
    #[error("the private key in the service account's credential is not an RSA key of at least 2048 bits in PEM")]
    Key,
    /// Somebody else's.
    #[error("the credential is of the account {found:?}, but service.service_account is {expected:?}; give the secret of that account")]
    Account {
        /// From the credential.
        found: String,
        /// From the options.
        expected: String,
    },
}

#[derive(Deserialize)]
struct Stored {
    scheme: String,
    uid: String,
    private_key: String,
    login_endpoint: String,
}

/// A service account that can prove who it is.
pub struct Credential {
    uid: String,
    login_url: String,
    key: RsaKeyPair,
}

impl Credential {
    /// Reads what [`CREDENTIAL_VARIABLE`] says; relative paths are below `sandbox`.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn find(variable: &str, sandbox: &Path) -> Result<Self, CredentialError> {
        if variable.trim_start().starts_with('{') {
            return Self::parse(&Secret::new(variable.to_string()));
        }
        let path = sandbox.join(variable.strip_prefix("file://").unwrap_or(variable));
        let unreadable = |reason: String| CredentialError::File(path.display().to_string(), reason);
        let size = std::fs::metadata(&path).map_err(|error| unreadable(error.to_string()))?.len();
        if size > MAX_CREDENTIAL_BYTES {
            return Err(unreadable(format!("it has {size} bytes")));
        }
        Self::parse(&Secret::new(std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?))
    }

    /// Reads the JSON of a credential.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &Secret<String>) -> Result<Self, CredentialError> {
        // The message of the JSON parser may quote what it read.
        let stored: Stored = crate::json::of_text(text.expose())
            .map_err(|_| CredentialError::Form("it is not JSON with scheme, uid, private_key and login_endpoint"))?;
        if stored.scheme != "RS256" {
            return Err(CredentialError::Scheme(stored.scheme.chars().take(20).collect()));
        }
        let key = key_from_pem(&stored.private_key).ok_or(CredentialError::Key)?;
        Ok(Self { uid: stored.uid, login_url: stored.login_endpoint, key })
    }

    /// Name of the account.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Another place to log in.
    #[must_use]
    pub fn with_login_url(mut self, url: &str) -> Self {
        self.login_url = url.to_string();
        self
    }

    /// A request that proves the account: a JWT that lasts until `expires` (Unix time).
    fn request(&self, expires: u64) -> Option<Secret<String>> {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(json!({ "alg": "RS256", "typ": "JWT" })), part(json!({ "uid": self.uid, "exp": expires })));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).ok()?;
        Some(Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
    }
}

/// PKCS #8 as the DC/OS CLI makes it, or PKCS #1 as older OpenSSL does.
fn key_from_pem(pem: &str) -> Option<RsaKeyPair> {
    let body = |label: &str| {
        let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
        let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
        STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
    };
    match body("PRIVATE KEY") {
        Some(der) => RsaKeyPair::from_pkcs8(&der).ok(),
        None => RsaKeyPair::from_der(&body("RSA PRIVATE KEY")?).ok(),
    }
}

/// A login and the token that it gave.
pub struct Login {
    credential: Credential,
    client: reqwest::Client,
    token: Mutex<Option<Secret<String>>>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({})", self.credential.uid)
    }
}

#[derive(Deserialize)]
struct Token {
    token: String,
}

/// The token in an answer. The message of the JSON parser could quote it.
pub(super) fn token_in(text: &str) -> Option<Secret<String>> {
    crate::json::of_text::<Token>(text).ok().map(|answer| Secret::new(answer.token))
}

impl Login {
    /// A login that has not taken place yet.
    pub fn new(credential: Credential, client: reqwest::Client) -> Self {
        Self { credential, client, token: Mutex::new(None) }
    }

    /// Name of the account.
    pub fn uid(&self) -> &str {
        &self.credential.uid
    }

    /// The present token; logs in when there is none, or when the present one is `refused`.
    ///
    /// # Errors
    /// The login is not answered or refused.
    pub async fn token(&self, refused: Option<&Secret<String>>) -> Result<Secret<String>, ApiError> {
        let mut token = self.token.lock().await;
        match &*token {
            // Somebody else may have renewed it meanwhile.
            Some(present) if Some(present) != refused => Ok(present.clone()),
            _ => {
                *token = None;
                let fresh = self.log_in().await?;
                tracing::info!(account = self.credential.uid, "logged in");
                *token = Some(fresh.clone());
                Ok(fresh)
            }
        }
    }

    async fn log_in(&self) -> Result<Secret<String>, ApiError> {
        let url = &self.credential.login_url;
        let unexpected = |reason: &str| ApiError::Unexpected { url: url.clone(), reason: reason.to_string() };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let request = self.credential.request(now + REQUEST_LIFE).ok_or_else(|| unexpected("the request cannot be signed"))?;
        let body = json!({ "uid": self.credential.uid, "token": request.expose() });
        let broken =
            |error: reqwest::Error| ApiError::Unreachable { method: "POST", url: url.clone(), reason: chain(&error.without_url()) };
        let answer = self.client.post(url).json(&body).send().await.map_err(broken)?;
        match answer.status().as_u16() {
            200 => {
                let text = super::read_to_end(answer, MAX_ANSWER_BYTES).await.map_err(|_| unexpected("it does not end"))?;
                token_in(&text).ok_or_else(|| unexpected("no token in the answer"))
            }
            status => Err(ApiError::LoginRefused { url: url.clone(), status, account: self.credential.uid.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    /// Made for this test alone.
    const KEY: &str = include_str!("../../tests/fixtures/service-account/private-key.pem");
    const KEY_PKCS1: &str = include_str!("../../tests/fixtures/service-account/private-key-pkcs1.pem");

    fn credential(key: &str) -> Value {
        json!({ "scheme": "RS256", "uid": "registry", "private_key": key, "login_endpoint": "https://master.mesos/acs/api/v1/auth/login" })
    }

    fn parse(value: &Value) -> Result<Credential, CredentialError> {
        Credential::parse(&Secret::new(value.to_string()))
    }

    #[test]
    fn the_request_for_a_token_is_a_signed_jwt_of_the_account() {
        for key in [KEY, KEY_PKCS1] {
            let credential = parse(&credential(key)).unwrap();
            let jwt = credential.request(1_800_000_000).unwrap().expose().clone();
            let (signed, signature) = jwt.rsplit_once('.').unwrap();
            let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, credential.key.public().as_ref());
            public.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
            let (_, claims) = signed.split_once('.').unwrap();
            let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
            assert_eq!(claims, json!({ "uid": "registry", "exp": 1_800_000_000 }));
        }
    }

    #[test]
    fn a_credential_comes_as_json_as_a_path_or_as_a_file_url() {
        let dir = tempfile::tempdir().unwrap();
        let text = credential(KEY).to_string();
        std::fs::write(dir.path().join("account.json"), &text).unwrap();
        for variable in [text.as_str(), "account.json", "file://account.json", &format!("file://{}/account.json", dir.path().display())] {
            assert_eq!(Credential::find(variable, dir.path()).unwrap().uid(), "registry");
        }
        let missing = Credential::find("other.json", dir.path()).err().unwrap();
        assert!(missing.to_string().contains("service.service_account_secret"), "{missing}");
    }

    #[test]
    fn what_is_no_credential_is_refused_without_showing_it() {
        for (key, value) in
            [("private_key", json!("hunter2")), ("scheme", json!("HS256")), ("uid", json!(7)), ("login_endpoint", Value::Null)]
        {
            let mut bad = credential(KEY);
            bad[key] = value;
            let error = parse(&bad).err().unwrap().to_string();
            assert!(!error.contains("hunter2") && !error.contains("PRIVATE KEY-"), "{error}");
        }
    }
}
