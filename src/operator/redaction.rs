//! Takes secrets out of texts that leave the cluster.
//!
//! What is known to be secret is taken out however it is spelled: as it is, in base64 and in hex. What is not known is told by its
//! form: private keys, hashes of passwords, tokens, and passwords in URLs.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use regex_lite::Regex;
use serde_json::Value;

use crate::forecast::{REDACTED, names_a_secret};
use crate::protocol::env;

/// Forms of what must not be shown. A line's end in JSON is two characters.
const FORMS: [&str; 8] = [
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(-----END [A-Z ]*PRIVATE KEY-----)?",
    // The same in base64 and in hex, and private keys in base64 without their first line (PKCS #8 and PKCS #1).
    r"LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]+",
    r"(?i)2d2d2d2d2d424547494e20[0-9a-f]+",
    r"\b(MC4CAQAw|MFECAQEw|MFMCAQEw|MIGHAgEA|MIG2AgEA|MHcCAQEE|MII[A-Za-z0-9+/]{2}(IBAD|gIBA|AIBA|QIBA))[A-Za-z0-9+/=_-]*",
    r"\$2[abxy]?\$[0-9]{2}\$[./A-Za-z0-9]{10,}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+",
    r"(?i)\b(token=|bearer |basic )[A-Za-z0-9+/=_.-]{8,}",
    r"://[^/\s:@]+:[^/\s@]+@",
];
/// Words in names of variables and fields whose texts are secret.
const WORDS: [&str; 7] = ["PASSWORD", "SECRET", "CREDENTIAL", "TOKEN", "HTPASSWD", "PRIVATE_KEY", "ACCESS_KEY"];
/// Shorter texts would take out what has nothing to do with them.
const SHORTEST: usize = 6;

/// Knows what is secret.
pub(super) struct Redaction {
    known: BTreeSet<String>,
    forms: Vec<Regex>,
}

impl Redaction {
    pub(super) fn new() -> Self {
        let forms = FORMS.iter().map(|form| Regex::new(form).expect("the forms are part of the program and compiled by a test"));
        Self { known: BTreeSet::new(), forms: forms.collect() }
    }

    /// From now on this text is taken out.
    pub(super) fn learn(&mut self, secret: &str) {
        if secret.len() < SHORTEST || secret == REDACTED {
            return;
        }
        let mut bytes = vec![secret.as_bytes().to_vec()];
        bytes.extend(STANDARD.decode(secret).ok().filter(|bytes| bytes.len() >= SHORTEST));
        self.known.insert(secret.to_string());
        for bytes in bytes {
            for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
                self.known.insert(engine.encode(&bytes));
            }
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            self.known.extend([hex.to_ascii_uppercase(), hex]);
        }
    }

    /// Learns what a document shows by the names of its fields.
    pub(super) fn learn_from(&mut self, document: &Value) {
        match document {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.as_str() {
                        Some(text) if is_secret(name) => self.learn(text),
                        _ => self.learn_from(value),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.learn_from(item)),
            _ => {}
        }
    }

    /// The text without secrets.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut text = text.to_string();
        // The longest first: another may be a part of it.
        let mut known: Vec<&String> = self.known.iter().collect();
        crate::in_order::sort_by(&mut known, |one, other| other.len().cmp(&one.len()));
        for secret in known {
            text = text.replace(secret.as_str(), REDACTED);
            // As JSON spells it.
            let spelled = Value::from(secret.as_str()).to_string();
            text = text.replace(spelled.trim_matches('"'), REDACTED);
        }
        for form in &self.forms {
            text = form.replace_all(&text, REDACTED).into_owned();
        }
        text
    }
}

fn is_secret(name: &str) -> bool {
    if name.starts_with("OPTION_") {
        return names_a_secret(name);
    }
    let name = name.to_ascii_uppercase();
    // Names of secrets are references, and stand in objects of these names.
    name == env::ENROLMENT_KEY || (WORDS.iter().any(|word| name.contains(word)) && name != "SECRET")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_known_is_taken_out_in_every_spelling() {
        let mut redaction = Redaction::new();
        let key = STANDARD.encode([7u8; 32]);
        redaction.learn_from(&json!({ "env": { "PRIVATE_REGISTRY_ENROLMENT_KEY": key, "AWS_SECRET": "pass/\"word", "RUST_LOG": "info" } }));
        let hex = "07".repeat(32);
        let twice = STANDARD.encode(&key);
        let text = format!("{key} {hex} {twice} pass/\"word pass/\\\"word info");
        assert_eq!(redaction.clean(&text), "<redacted> <redacted> <redacted> <redacted> <redacted> info");
    }

    #[test]
    fn what_has_the_form_of_a_secret_is_taken_out_and_certificates_stay() {
        let redaction = Redaction::new();
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQ\n-----END PRIVATE KEY-----";
        let escaped = Value::from(pem).to_string();
        let hex: String = pem.bytes().map(|byte| format!("{byte:02x}")).collect();
        for secret in [
            pem,
            &escaped,
            &STANDARD.encode(pem),
            &hex,
            "$2y$05$abcdefghijklmnopqrstuv",
            "token=abcdefgh.ij",
            "eyJhbGciOiJSUzI1NiJ9.eyJ1aWQ.x-y",
            "https://me:pw@host",
        ] {
            let cleaned = redaction.clean(secret);
            assert!(cleaned.contains(REDACTED) && !cleaned.contains("MC4") && !cleaned.contains("pw"), "{secret}: {cleaned}");
        }
        let public = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmg\n-----END CERTIFICATE-----\nsha256:00ff https://host/path";
        assert_eq!(redaction.clean(public), public);
    }
}
