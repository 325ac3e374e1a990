//! The CAs of registries that this package has not installed: from the options, from a secret, or from what the registry shows.
//!
//! What was fetched once is kept in the record, so that a registry or a secret store that does not answer takes no trust from any
//! agent. One that cannot be had is a problem in the report and holds up none of the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, JoinSet};

use super::shown;
use super::state::{State, StateError};
use crate::certificates::Certificate;
use crate::dcos::chain;
use crate::dcos::secrets::Secrets;
use crate::names::HostPort;
use crate::options::{CaSource, OtherRegistry};
use crate::protocol::OtherTrust;

/// Between two looks at secrets, which may change, and at registries that have not shown what was asked for.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The first order stands in the environment of every node, and Linux passes on at most 128 KiB in one variable, base64 included.
const MAX_BYTES: usize = 64 * 1024;

/// A CA that was fetched, as the record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    name: HostPort,
    source: String,
    certificates: Vec<String>,
}

/// What came of fetching one: certificates, or why there are none.
type Outcome = (HostPort, String, Result<Vec<String>, String>);

/// The other registries and where their CAs stand.
#[derive(Default)]
pub(super) struct Others {
    asking: Option<JoinHandle<Vec<Outcome>>>,
    asked_at: Option<Instant>,
    problems: BTreeMap<HostPort, String>,
    /// Those whose certificates would be too much.
    left_out: BTreeSet<HostPort>,
    /// What the last [`Others::resolve`] has found.
    trusted: Vec<OtherTrust>,
}

impl Others {
    /// What is known now, sorted by name. The first time it waits for the answers; later ones come into the pass after them.
    pub(super) async fn resolve(
        &mut self,
        registries: &[OtherRegistry],
        secrets: Option<&Secrets>,
        state: &mut State,
    ) -> Result<Vec<OtherTrust>, StateError> {
        let first = self.asked_at.is_none();
        if self.asking.is_none() && self.asked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.asked_at = Some(Instant::now());
            let due: Vec<OtherRegistry> = registries.iter().filter(|other| is_due(other, state.fetched())).cloned().collect();
            if !due.is_empty() {
                self.asking = Some(tokio::spawn(fetch(due, secrets.cloned())));
            }
        }
        if let Some(asking) = self.asking.take_if(|asking| first || asking.is_finished()) {
            // It neither panics nor is ended; if it were, the next look repeats it.
            self.note(asking.await.unwrap_or_default(), registries, state).await?;
        }
        self.trusted = self.known(registries, state.fetched());
        Ok(self.trusted.clone())
    }

    /// What the last [`Others::resolve`] has found.
    pub(super) fn trusted(&self) -> &[OtherTrust] {
        &self.trusted
    }

    /// Why a registry is not trusted as it should be.
    pub(super) fn problem(&self, name: &HostPort) -> Option<String> {
        let too_much = "the CA certificates of all other registries together are too much for an order; leave some out";
        if self.left_out.contains(name) { Some(too_much.into()) } else { self.problems.get(name).cloned() }
    }

    async fn note(&mut self, outcomes: Vec<Outcome>, registries: &[OtherRegistry], state: &mut State) -> Result<(), StateError> {
        let mut kept = state.fetched().to_vec();
        kept.retain(|fetched| registries.iter().any(|other| other.name == fetched.name));
        for (name, source, outcome) in outcomes {
            match outcome {
                Ok(certificates) => {
                    self.problems.remove(&name);
                    kept.retain(|fetched| fetched.name != name);
                    kept.push(Fetched { name, source, certificates });
                }
                Err(problem) => {
                    if self.problems.get(&name) != Some(&problem) {
                        tracing::warn!(registry = %name, problem, "the CA of this registry cannot be had; trying again");
                    }
                    self.problems.insert(name, problem);
                }
            }
        }
        crate::in_order::sort_by(&mut kept, |a, b| a.name.cmp(&b.name));
        state.keep_fetched(kept).await
    }

    fn known(&mut self, registries: &[OtherRegistry], fetched: &[Fetched]) -> Vec<OtherTrust> {
        let mut known = Vec::new();
        let mut bytes = 0;
        self.left_out.clear();
        let mut sorted: Vec<&OtherRegistry> = registries.iter().collect();
        crate::in_order::sort_by(&mut sorted, |a, b| a.name.cmp(&b.name));
        for other in sorted {
            let certificates = match &other.ca {
                // The options were refused if it could not be read.
                CaSource::Pem(pem) => read(pem).unwrap_or_default(),
                fetched_from => match find(&other.name, fetched_from, fetched) {
                    Some(found) => found.certificates.clone(),
                    None => continue,
                },
            };
            bytes += certificates.iter().map(String::len).sum::<usize>();
            if bytes > MAX_BYTES {
                self.left_out.insert(other.name.clone());
                continue;
            }
            known.push(OtherTrust { name: other.name.clone(), certificates });
        }
        known
    }
}

/// Certificates in the order of the text, each as PEM of its own.
fn read(pem: &str) -> Result<Vec<String>, String> {
    Certificate::parse_bundle(pem).map(|all| all.iter().map(Certificate::pem).collect()).map_err(|error| error.to_string())
}

/// Where a CA comes from, in the words of the options.
pub(super) fn source(ca: &CaSource) -> String {
    match ca {
        CaSource::Pem(_) => "other_registries.ca".into(),
        CaSource::Secret(path) => format!("secret:{path}"),
        CaSource::Pinned(fingerprint) => format!("sha256:{fingerprint}"),
    }
}

fn find<'a>(name: &HostPort, ca: &CaSource, fetched: &'a [Fetched]) -> Option<&'a Fetched> {
    let source = source(ca);
    fetched.iter().find(|fetched| fetched.name == *name && fetched.source == source)
}

/// A pinned certificate never changes; a secret may.
fn is_due(other: &OtherRegistry, fetched: &[Fetched]) -> bool {
    match &other.ca {
        CaSource::Pem(_) => false,
        CaSource::Secret(_) => true,
        CaSource::Pinned(_) => find(&other.name, &other.ca, fetched).is_none(),
    }
}

async fn fetch(registries: Vec<OtherRegistry>, secrets: Option<Secrets>) -> Vec<Outcome> {
    let mut asked = JoinSet::new();
    for other in registries {
        let secrets = secrets.clone();
        asked.spawn(async move {
            let outcome = match &other.ca {
                CaSource::Pem(pem) => read(pem),
                CaSource::Secret(path) => from_secret(path, secrets.as_ref()).await,
                CaSource::Pinned(fingerprint) => from_chain(&other.name, fingerprint).await,
            };
            (other.name, source(&other.ca), outcome)
        });
    }
    asked.join_all().await
}

async fn from_secret(path: &str, secrets: Option<&Secrets>) -> Result<Vec<String>, String> {
    let Some(secrets) = secrets else {
        return Err(format!(
            "its CA is to come from the secret {path}, but there is no service account to read it with; set service.service_account_secret, or give the CA in other_registries.ca"
        ));
    };
    match secrets.get(path).await {
        Ok(Some(text)) => read(text.expose()).map_err(|reason| format!("the secret {path} does not hold CA certificates: {reason}")),
        Ok(None) => Err(format!("there is no secret {path}; make it with: dcos security secrets create --file=ca.pem {path}")),
        Err(error) => Err(format!("the secret {path} cannot be read: {}", chain(&error))),
    }
}

async fn from_chain(name: &HostPort, fingerprint: &str) -> Result<Vec<String>, String> {
    let shown = shown::by(name).await.map_err(|reason| format!("it cannot be asked for its certificates: {reason}"))?;
    if let Some(found) = shown.iter().find(|certificate| certificate.fingerprint() == fingerprint) {
        return Ok(vec![found.pem()]);
    }
    let seen: Vec<String> = shown.iter().map(|certificate| format!("{} ({})", certificate.fingerprint(), certificate.subject())).collect();
    Err(format!(
        "it shows no certificate with the fingerprint {fingerprint}, but {}; compare them with what its administrator says",
        if seen.is_empty() { "none at all".into() } else { seen.join(" and ") }
    ))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::net::TcpListener;

    use super::*;
    use crate::controller::store::Store;
    use crate::dcos::Api;
    use crate::host_paths::HostRoot;

    /// A self-signed certificate (PEM, DER) and its key (DER), as many a registry has.
    fn self_signed(subject: &str) -> (String, Vec<u8>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            let output = Command::new("openssl").current_dir(dir.path()).args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let subject = format!("/CN={subject}");
        run(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "k",
            "-out",
            "c",
            "-days",
            "2",
            "-subj",
            &subject,
        ]);
        run(&["x509", "-in", "c", "-outform", "DER", "-out", "c.der"]);
        run(&["pkcs8", "-topk8", "-nocrypt", "-in", "k", "-outform", "DER", "-out", "k.der"]);
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        (String::from_utf8(read("c")).unwrap(), read("c.der"), read("k.der"))
    }

    /// A TLS server that shows this; its port.
    async fn server(certificate: Vec<u8>, key: Vec<u8>) -> u16 {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![CertificateDer::from(certificate)], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        port
    }

    /// The secret store with this text for every path but `absent`, or sealed when there is none.
    async fn secret_store(text: Arc<std::sync::Mutex<Option<String>>>) -> Secrets {
        use axum::extract::Path;
        use axum::http::StatusCode;
        let answer = move |Path(path): Path<String>| {
            let text = text.lock().unwrap().clone();
            async move {
                match text {
                    _ if path == "absent" => (StatusCode::NOT_FOUND, "{}".to_string()),
                    Some(text) => (StatusCode::OK, serde_json::json!({ "value": text }).to_string()),
                    None => (StatusCode::SERVICE_UNAVAILABLE, "sealed".to_string()),
                }
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().route("/secret/default/{path}", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Secrets(Api::new(reqwest::Client::new(), &url))
    }

    async fn state(dir: &tempfile::TempDir) -> State {
        State::open(Store::on_host(&HostRoot::at(dir.path()), "private-registry").unwrap(), None, 1_800_000_000).await.unwrap()
    }

    fn registry(name: &str, ca: CaSource) -> OtherRegistry {
        OtherRegistry { name: name.parse().unwrap(), ca }
    }

    #[tokio::test]
    async fn a_pinned_certificate_is_fetched_once_and_a_wrong_fingerprint_is_told_with_what_was_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = state(&dir).await;
        let (pem, der, key) = self_signed("nexus");
        let port = server(der.clone(), key).await;
        let fingerprint = crate::digest::sha256_hex(&der);
        let name = format!("127.0.0.1:{port}");
        let wrong = [registry(&name, CaSource::Pinned("ab".repeat(32))), registry("10.0.0.1:443", CaSource::Pem(pem.clone()))];
        let mut others = Others::default();
        let known = others.resolve(&wrong, None, &mut state).await.unwrap();
        assert_eq!(known.iter().map(|other| other.name.to_string()).collect::<Vec<_>>(), ["10.0.0.1:443"], "one does not stop the rest");
        let problem = others.problem(&name.parse().unwrap()).unwrap();
        assert!(problem.contains(&fingerprint) && problem.contains("CN=nexus"), "{problem}");

        let right = [registry(&name, CaSource::Pinned(fingerprint))];
        let known = Others::default().resolve(&right, None, &mut state).await.unwrap();
        assert_eq!(known[0].certificates, [pem]);
        // Another controller finds it in the record and asks nobody.
        let mut state = self::state(&dir).await;
        let mut others = Others::default();
        assert_eq!(others.resolve(&right, None, &mut state).await.unwrap(), known);
        assert!(others.asking.is_none() && others.problems.is_empty());
    }

    #[tokio::test]
    async fn a_changed_secret_is_seen_and_one_that_cannot_be_read_takes_no_trust_away() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = state(&dir).await;
        let (old, new) = (self_signed("old").0, self_signed("new").0);
        let text = Arc::new(std::sync::Mutex::new(Some(old.clone())));
        let secrets = secret_store(Arc::clone(&text)).await;
        let list = [
            registry("gitlab.example.com:5050", CaSource::Secret("gitlab-ca".into())),
            registry("a.example.com:443", CaSource::Secret("absent".into())),
        ];
        let mut others = Others::default();
        let look = async |others: &mut Others, state: &mut State| {
            others.asked_at = None;
            others.resolve(&list, Some(&secrets), state).await.unwrap()
        };
        assert_eq!(look(&mut others, &mut state).await[0].certificates, [old]);
        let problem = others.problem(&list[1].name).unwrap();
        assert!(problem.contains("there is no secret absent"), "{problem}");

        *text.lock().unwrap() = Some(new.clone());
        assert_eq!(look(&mut others, &mut state).await[0].certificates, std::slice::from_ref(&new));
        for (broken, said) in [(None, "cannot be read"), (Some("-----BEGIN PRIVATE KEY-----".to_string()), "private key")] {
            *text.lock().unwrap() = broken;
            assert_eq!(look(&mut others, &mut state).await[0].certificates, std::slice::from_ref(&new));
            let problem = others.problem(&list[0].name).unwrap();
            assert!(problem.contains(said), "{problem}");
        }
        assert!(from_secret("x", None).await.unwrap_err().contains("service.service_account_secret"));
    }
}
