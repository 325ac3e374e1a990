//! How the certificates that tasks start with reach them.
//!
//! A definition never says how: it takes what [`Distribution::publish`] gives it for its environment. Open DC/OS has no secret
//! store, so there the text itself stands in the definition. It is nothing private: public certificates, signed, and the
//! enrolment key, which lets its holder ask for a certificate but not sign one.

use std::future::Future;
use std::pin::Pin;

use serde_json::{Value, json};

use crate::dcos::ApiError;

/// What a definition holds for a published text.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Value of the environment variable: the text, or `{"secret": <key>}`.
    pub variable: Value,
    /// Entry of the definition's `secrets`: key and path in the store.
    pub secret: Option<(String, String)>,
}

/// The answer of [`Distribution::publish`].
pub type Publishing<'a> = Pin<Box<dyn Future<Output = Result<Published, ApiError>> + Send + 'a>>;

/// A way to hand texts to tasks.
pub trait Distribution: Send + Sync {
    /// Makes `text` available to the tasks of the service under `name` (lower case, dashes).
    ///
    /// # Errors
    /// A store that does not answer or refuses.
    fn publish<'a>(&'a self, name: &'a str, text: &'a str) -> Publishing<'a>;
}

/// Open DC/OS: the definition itself carries the text.
#[derive(Debug, Clone, Copy)]
pub struct InDefinitions;

impl Distribution for InDefinitions {
    fn publish<'a>(&'a self, _name: &'a str, text: &'a str) -> Publishing<'a> {
        let published = Published { variable: Value::from(text), secret: None };
        Box::pin(async { Ok(published) })
    }
}

/// The `secrets` of a definition that uses these; an empty object if none comes from a store.
pub fn secrets<'a>(published: impl IntoIterator<Item = &'a Published>) -> Value {
    let entries = published.into_iter().filter_map(|published| published.secret.clone());
    entries.map(|(key, source)| (key, json!({ "source": source }))).collect::<serde_json::Map<_, _>>().into()
}
