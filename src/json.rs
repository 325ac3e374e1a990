//! JSON from texts.

use serde::de::DeserializeOwned;

/// Reads a JSON text. It goes the way of bytes: what reads both ways is in the program twice, for every type.
///
/// # Errors
/// As `serde_json` says.
pub fn of_text<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_slice(text.as_bytes())
}
