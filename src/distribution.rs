//! How the certificates that tasks start with reach them.
//!
//! A definition never says how: it takes what [`Distribution::publish`] gives it for its environment. Open DC/OS has no secret
//! store, so there the text itself stands in the definition. It is nothing private: public certificates, signed, and the
//! enrolment key, which lets its holder ask for a certificate but not sign one.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::dcos::ApiError;
use crate::dcos::secrets::{Secrets, path_for};
use crate::digest::sha256_hex;
use crate::secret::{REDACTED, Secret};

/// What a definition holds for a published text.
#[derive(Clone, PartialEq)]
pub struct Published {
    /// Value of the environment variable: the text, or `{"secret": <key>}`.
    pub variable: Value,
    /// Entry of the definition's `secrets`: key and path in the store.
    pub secret: Option<(String, String)>,
}

impl std::fmt::Debug for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Published").field("variable", &REDACTED).field("secret", &self.secret).finish()
    }
}

/// The answer of [`Distribution::publish`].
pub type Publishing<'a> = Pin<Box<dyn Future<Output = Result<Published, ApiError>> + Send + 'a>>;

/// A way to hand texts to tasks.
pub trait Distribution: Send + Sync {
    /// Makes `text` available to the tasks of `reader` (id of an app or pod) under `name` (lower case, dashes).
    ///
    /// # Errors
    /// A store that does not answer or refuses.
    fn publish<'a>(&'a self, reader: &'a str, name: &'a str, text: &'a str) -> Publishing<'a>;
}

/// Open DC/OS: the definition itself carries the text.
#[derive(Debug, Clone, Copy)]
pub struct InDefinitions;

impl Distribution for InDefinitions {
    fn publish<'a>(&'a self, _reader: &'a str, _name: &'a str, text: &'a str) -> Publishing<'a> {
        let published = Published { variable: Value::from(text), secret: None };
        Box::pin(async { Ok(published) })
    }
}

/// DC/OS Enterprise: the secret store, which gives a text to the tasks that may see its path, when they start.
#[derive(Debug)]
pub struct InSecretStore {
    store: Secrets,
    /// What the store is known to hold: digests by path. Asked again after a restart only.
    held: Mutex<BTreeMap<String, String>>,
}

impl InSecretStore {
    /// A distribution by this store.
    pub fn new(store: Secrets) -> Self {
        Self { store, held: Mutex::default() }
    }

    async fn hold(&self, path: &str, text: &str) -> Result<(), ApiError> {
        let mut held = self.held.lock().await;
        let digest = sha256_hex(text.as_bytes());
        if held.get(path) == Some(&digest) {
            return Ok(());
        }
        let present = self.store.get(path).await?;
        if present.is_none_or(|present| present.expose() != text) {
            self.store.put(path, &Secret::new(text.to_string())).await?;
        }
        held.insert(path.to_string(), digest);
        Ok(())
    }
}

impl Distribution for InSecretStore {
    fn publish<'a>(&'a self, reader: &'a str, name: &'a str, text: &'a str) -> Publishing<'a> {
        Box::pin(async move {
            let path = path_for(reader, name);
            self.hold(&path, text).await?;
            Ok(Published { variable: json!({ "secret": name }), secret: Some((name.to_string(), path)) })
        })
    }
}

/// The `secrets` of a definition that uses these; an empty object if none comes from a store.
pub fn secrets<'a>(published: impl IntoIterator<Item = &'a Published>) -> Value {
    let entries = published.into_iter().filter_map(|published| published.secret.clone());
    entries.map(|(key, source)| (key, json!({ "source": source }))).collect::<serde_json::Map<_, _>>().into()
}
