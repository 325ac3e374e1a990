//! The secret store of DC/OS Enterprise (`/secrets/v1`, store `default`).

use serde_json::{Value, json};

use super::marathon::absent_is_none;
use super::{Api, ApiError};
use crate::secret::Secret;

/// Client of the secret store.
#[derive(Debug, Clone)]
pub struct Secrets(pub Api);

impl Secrets {
    /// A secret's text; `None` if there is none of that path.
    ///
    /// # Errors
    /// When the store does not answer, refuses, or is sealed.
    pub async fn get(&self, path: &str) -> Result<Option<Secret<String>>, ApiError> {
        let url = url(path);
        // Not read into a type of its own: the error of a failed reading could quote the secret.
        let answer: Option<Value> = absent_is_none(self.0.get(&url).await)?;
        let Some(answer) = answer else { return Ok(None) };
        text_in(&answer).map(Some).ok_or_else(|| ApiError::Unexpected { url, reason: "there is no text in `value`".into() })
    }

    /// Creates a secret; false: there is one of that path already, which stays as it is.
    ///
    /// # Errors
    /// As [`Secrets::get`].
    pub async fn create(&self, path: &str, text: &Secret<String>) -> Result<bool, ApiError> {
        let body = json!({ "value": text.expose() });
        match self.0.call::<Value>("PUT", &url(path), Some(&body)).await {
            Err(error) if error.is_conflict() => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// Creates a secret or replaces it. There is no single call for both.
    ///
    /// # Errors
    /// As [`Secrets::get`].
    pub async fn put(&self, path: &str, text: &Secret<String>) -> Result<(), ApiError> {
        if self.create(path, text).await? {
            return Ok(());
        }
        self.0.call::<Value>("PATCH", &url(path), Some(&json!({ "value": text.expose() }))).await.map(drop)
    }

    /// Deletes a secret; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// As [`Secrets::get`].
    pub async fn delete(&self, path: &str) -> Result<(), ApiError> {
        absent_is_none(self.0.call::<Value>("DELETE", &url(path), None).await).map(drop)
    }
}

/// The secret in an answer.
pub(super) fn text_in(answer: &Value) -> Option<Secret<String>> {
    answer["value"].as_str().map(|text| Secret::new(text.to_string()))
}

fn url(path: &str) -> String {
    format!("/secret/default/{path}")
}

/// Where a text for the tasks of `reader` (id of an app or pod) has to lie so that they may see it: in the folder of that name.
///
/// A path must not have a dot, which the id of a pod of a service in a group has, and pods whose ids only begin alike (`<id>-*`) have no
/// folder in common. What such pods read lies in no folder, where every task may see it: it is their first order, which holds public
/// certificates only.
pub fn path_for(reader: &str, name: &str) -> String {
    let reader = reader.trim_matches('/');
    let one = reader.trim_end_matches("-*");
    if one != reader || reader.contains('.') { format!("{}_{name}", one.replace('.', "_")) } else { format!("{reader}/{name}") }
}

/// Whether the tasks of an app may see a secret (vendor documentation, "spaces"): it lies in no folder, in the folder of the app's
/// name, or in a folder that the app's groups begin with.
pub fn may_see(reader: &str, path: &str) -> bool {
    let Some((folder, _)) = path.trim_matches('/').rsplit_once('/') else { return true };
    let reader = reader.trim_matches('/');
    reader == folder || reader.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_for_a_task_lies_where_it_may_see_it() {
        assert_eq!(path_for("/private-registry-node", "first-order"), "private-registry-node/first-order");
        assert_eq!(path_for("/infra.images-node", "first-order"), "infra_images-node_first-order");
        assert_eq!(path_for("/private-registry-node-*", "first-order"), "private-registry-node_first-order");
        for reader in ["/private-registry-node", "/infra.images-node", "/registry"] {
            assert!(may_see(reader, &path_for(reader, "first-order")), "{reader}");
        }
        assert!(!may_see("/registry", "private-registry/ca"));
        assert!(may_see("/infra/images", "infra/account") && !may_see("/infra", "infra/images/account"));
    }
}
