//! Values that must never be printed.

use std::fmt;

/// What stands in the place of a secret wherever something is printed.
pub(crate) const REDACTED: &str = "<redacted>";

/// A value that shows itself as `<redacted>` in logs, errors and debug output.
///
/// It implements no `Serialize`: whoever stores or sends a secret has to call [`Secret::expose`] and thereby say so.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Every caller is a place to look at in a review.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_redacted_in_debug_and_display() {
        let secret = Secret::new("hunter2".to_string());
        assert_eq!(format!("{secret} {secret:?}"), "<redacted> <redacted>");
        assert_eq!(secret.expose(), "hunter2");
    }

    /// Fields that are called like a secret and hold none, and types that nothing prints: name of the type, of the field, why.
    const HARMLESS: [(&str, &str, &str); 20] = [
        ("Service", "service_account_secret", "an option: the name of a secret"),
        ("Security", "key", "an option: where the key is"),
        ("Storage", "access_key", "an option: where it is"),
        ("Storage", "secret_key", "an option: where it is"),
        ("Storage", "credentials", "an option: where they are"),
        ("Auth", "htpasswd", "an option: where it is"),
        ("Auth", "token_realm", "an option"),
        ("Auth", "token_service", "an option"),
        ("Auth", "token_issuer", "an option"),
        ("Auth", "token_certificates", "an option: public certificates"),
        ("Proxy", "password", "an option: where it is"),
        ("Facts", "order_key", "the public half"),
        ("Record", "order_key", "the same"),
        ("Dcos", "secrets_url", "an option: where the store is"),
        ("Endpoints", "secrets", "where the store is"),
        ("UsersReport", "secret", "the name of a secret"),
        ("Change", "hash", "it is sent to the job that applies it; what is printed is the name of the user"),
        ("Report", "exposed_key", "where a key lies that others have left"),
        ("NodeStatus", "exposed_key", "the same"),
        ("AgentReport", "exposed_key", "the same"),
    ];

    /// Types whose derived output shows a field that is called like a secret and is plain text.
    fn printing(source: &str) -> Vec<(String, String)> {
        const WORDS: [&str; 8] = ["password", "secret", "token", "private_key", "credential", "htpasswd", "hash", "_key"];
        let source = source.split("\n#[cfg(test)]\nmod tests").next().unwrap();
        let mut found = Vec::new();
        let (mut prints, mut name) = (false, String::new());
        for line in source.lines().map(str::trim) {
            if line.starts_with("#[derive(") {
                prints = ["Debug", "Serialize"].iter().any(|word| line.contains(word));
            } else if let Some((_, rest)) =
                line.split_once("struct ").or_else(|| line.split_once("enum ")).filter(|_| !line.starts_with("//"))
            {
                name = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_string();
            } else if line == "}" {
                prints = false;
            } else if prints
                && !line.starts_with("//")
                && let Some((field, kind)) = line.split_once(": ")
            {
                let field = field.rsplit(' ').next().unwrap();
                let is_plain = ["String", "Option<String>", "Vec<u8>", "Vec<String>"].contains(&kind.trim_end_matches(','));
                if is_plain && (field == "key" || WORDS.iter().any(|word| field.contains(word))) {
                    found.push((name.clone(), field.to_string()));
                }
            }
        }
        found
    }

    fn sources(dir: &std::path::Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![std::fs::read_to_string(path).unwrap_or_default()] })
            .collect()
    }

    #[test]
    fn no_type_that_holds_a_secret_prints_it() {
        let bad = "#[derive(Debug)]\npub struct Login {\n    /// For the store.\n    pub password: String,\n}\n";
        assert_eq!(printing(bad), [("Login".to_string(), "password".to_string())]);
        assert_eq!(printing(&bad.replace(": String", ": Secret<String>")), []);
        assert_eq!(printing(&bad.replace("Debug", "Clone")), []);
        let found: Vec<_> =
            sources(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))).iter().flat_map(|source| printing(source)).collect();
        assert!(found.len() > 10, "the options are among them: {found:?}");
        let is_harmless = |(name, field): &&(String, String)| HARMLESS.iter().any(|(n, f, _)| (n, f) == (&name.as_str(), &field.as_str()));
        let open: Vec<_> = found.iter().filter(|one| !is_harmless(one)).collect();
        assert!(open.is_empty(), "wrap these in Secret, or say why they are none: {open:#?}");
        let gone: Vec<_> = HARMLESS.iter().filter(|(n, f, _)| !found.iter().any(|(name, field)| name == n && field == f)).collect();
        assert!(gone.is_empty(), "there are no such fields any more: {gone:#?}");
    }

    #[test]
    fn what_holds_the_enrolment_key_or_a_password_shows_none_of_it() {
        use crate::controller::Setting;
        use crate::dcos::marathon::{App, Pod};
        use crate::distribution::Published;
        use crate::plan::Action;
        use crate::protocol::AuthBy;
        use crate::registry::{Access, Account};
        use serde_json::json;
        let spec = json!({ "id": "/registry", "env": { "PRIVATE_REGISTRY_ENROLMENT_KEY": "hunter2" } });
        let account = Account::of(&AuthBy::Htpasswd { file: None }).unwrap();
        let Access::Basic { password, .. } = account.access() else { panic!("it has a password") };
        let setting = Setting {
            host: "10.0.0.1".parse().unwrap(),
            port: 1,
            app_id: "/x".into(),
            task_id: "t".into(),
            registry_images: Default::default(),
            uninstall: false,
            credential: Some(Secret::new("hunter2".into())),
            vars: [("X".to_string(), "hunter2".to_string())].into(),
        };
        let facts = crate::documents::Facts {
            enrolment_key: Published { variable: json!("hunter2"), secret: None },
            ..crate::controller::fuzzed::facts()
        };
        let documents = crate::documents::render(&crate::options::Options::from_json(&json!({})).unwrap(), &facts).unwrap();
        assert!(documents.registry.to_string().contains("hunter2"), "there is something to be hidden");
        let shown = [
            format!("{:?}", App { spec: spec.clone(), tasks: vec![] }),
            format!("{:?}", Pod { spec: spec.clone().into(), instances: vec![] }),
            format!("{:?}", Action::PutRegistry { app: spec.clone(), reason: "why".into(), force: false }),
            format!("{facts:?} {documents:?} {setting:?} {account:?} {:?}", account.access()),
        ];
        for text in &shown {
            assert!(!text.contains("hunter2") && !text.contains(password.expose().as_str()) && !text.contains("$2y$"), "{text}");
        }
        assert!(shown[3].contains(REDACTED) && shown[2].contains("why"), "{shown:?}");
    }
}
