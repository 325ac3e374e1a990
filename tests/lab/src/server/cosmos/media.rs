//! Media types: which a call takes and gives, and how strictly Cosmos reads the headers.

use axum::http::{HeaderMap, header};

use super::error::Error;

/// The media types of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Below the root, for example `/package/search`.
    pub(crate) path: &'static str,
    /// As in `application/vnd.dcos.<name>-request+json;charset=utf-8;version=v1`.
    pub(crate) name: &'static str,
    /// Versions of the answer that it can give, newest last.
    pub(crate) versions: &'static [&'static str],
}

/// All calls that take a JSON body.
pub(crate) const CALLS: &[Call] = &[
    Call { path: "/package/search", name: "package.search", versions: &["v1"] },
    Call { path: "/package/describe", name: "package.describe", versions: &["v2", "v3"] },
    Call { path: "/package/list-versions", name: "package.list-versions", versions: &["v1"] },
    Call { path: "/package/render", name: "package.render", versions: &["v1"] },
    Call { path: "/package/install", name: "package.install", versions: &["v1", "v2"] },
    Call { path: "/package/uninstall", name: "package.uninstall", versions: &["v1"] },
    Call { path: "/package/list", name: "package.list", versions: &["v1"] },
    Call { path: "/package/repository/list", name: "package.repository.list", versions: &["v1"] },
    Call { path: "/package/repository/add", name: "package.repository.add", versions: &["v1"] },
    Call { path: "/package/repository/delete", name: "package.repository.delete", versions: &["v1"] },
    Call { path: "/service/describe", name: "service.describe", versions: &["v1"] },
    Call { path: "/service/update", name: "service.update", versions: &["v1"] },
];

impl Call {
    /// The version that the caller wants.
    ///
    /// # Errors
    /// A `Content-Type` or `Accept` that names anything but this call's media types; `*/*` does not do.
    pub(crate) fn negotiate(&self, headers: &HeaderMap) -> Result<&'static str, Error> {
        let accept = required(headers, header::ACCEPT, "Accept")?;
        let version = accept.split(',').find_map(|wanted| {
            let wanted = MediaType::parse(wanted)?;
            self.versions.iter().find(|version| MediaType::parse(&self.answer(version)).is_some_and(|offer| offer == wanted))
        });
        let Some(version) = version else {
            let offers: Vec<String> = self.versions.iter().rev().map(|version| self.answer(version)).collect();
            let rule = format!("Media type was [{accept}] but should be one of [{}]", offers.join(", "));
            return Err(not_valid("Accept", &rule));
        };
        let sent = required(headers, header::CONTENT_TYPE, "Content-Type")?;
        let due = format!("application/vnd.dcos.{}-request+json;charset=utf-8;version=v1", self.name);
        if MediaType::parse(&sent) != MediaType::parse(&due) {
            return Err(not_valid("Content-Type", &format!("should match one of {due}")));
        }
        Ok(version)
    }

    /// Media type of the answer.
    pub(crate) fn answer(&self, version: &str) -> String {
        format!("application/vnd.dcos.{}-response+json;charset=utf-8;version={version}", self.name)
    }
}

fn required(headers: &HeaderMap, name: header::HeaderName, label: &str) -> Result<String, Error> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.map(str::to_owned).ok_or_else(|| Error::new("not_present", format!("Item header '{label}' not present but required")))
}

fn not_valid(label: &str, rule: &str) -> Error {
    Error::new("not_valid", format!("Item header '{label}' deemed invalid by rule: {rule}"))
}

/// A media type, its parameters in lower case and sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MediaType {
    /// `type/subtype`.
    pub(crate) essence: String,
    /// Without `q`.
    pub(crate) parameters: Vec<(String, String)>,
}

impl MediaType {
    /// None for what is not `type/subtype[;name=value]…`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(|part| part.trim().to_lowercase());
        let essence =
            parts.next().filter(|essence| essence.split_once('/').is_some_and(|(kind, sub)| !kind.is_empty() && !sub.is_empty()))?;
        let mut parameters = Vec::new();
        for part in parts.filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=')?;
            if name.trim() != "q" {
                parameters.push((name.trim().to_owned(), value.trim().trim_matches('"').to_owned()));
            }
        }
        parameters.sort();
        Some(Self { essence, parameters })
    }

    /// Value of a parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}
