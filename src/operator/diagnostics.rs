//! `diagnostics`: everything that helps to find a fault, in a directory that can be looked through before it is sent to somebody.
//!
//! What cannot be had is noted in it and keeps nothing else away. Every text goes through the [`Redaction`] once all documents have
//! been read, so that what one of them shows to be secret is taken out of all.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::redaction::Redaction;
use super::{OperatorError, Service, Target};
use crate::dcos::{Api, ApiError, chain};
use crate::documents;
use crate::in_order::InOrder as _;
use crate::options::{self, Options};

/// Lines from the end of each file of a log.
const LINES: usize = 1000;
/// So many agents' logs; those come first that are not well.
const AGENTS: usize = 10;

/// What was written.
#[derive(Debug, serde::Serialize)]
pub struct Diagnostics {
    /// The directory.
    pub directory: PathBuf,
    /// Files in it.
    pub files: Vec<String>,
    /// What could not be had.
    pub missing: Vec<String>,
}

/// What was gathered so far.
#[derive(Default)]
struct Gathered {
    texts: Vec<(String, String)>,
    missing: Vec<String>,
}

impl Gathered {
    fn put(&mut self, name: &str, text: String) {
        self.texts.push((name.into(), text));
    }

    fn put_json(&mut self, name: &str, value: &Value) {
        self.put(name, serde_json::to_string_pretty(value).unwrap_or_default() + "\n");
    }

    fn note(&mut self, name: &str, error: &dyn std::error::Error) {
        self.missing.push(format!("{name}: {}", chain(error)));
    }

    /// The node pods, one document each; what else the list holds is nobody's business.
    async fn pods(&mut self, redaction: &mut Redaction, marathon: &Api, options: &Options) {
        tracing::info!("GET /v2/pods/::status");
        let read: Result<Vec<Value>, ApiError> = marathon.get("/v2/pods/::status").await;
        let pods = match read {
            Ok(pods) => pods,
            Err(error) => return self.note("pod.json", &error),
        };
        let before = self.texts.len();
        for pod in &pods {
            let shard = pod["spec"]["id"].as_str().and_then(|id| documents::shard_of(options, id));
            if let Some(shard) = shard {
                redaction.learn_from(pod);
                self.put_json(&format!("pod{}.json", shard.suffix()), pod);
            }
        }
        if self.texts.len() == before {
            self.missing.push(format!("pod.json: Marathon has no pod {}", documents::pod_id(options)));
        }
    }

    /// A document, once it is there; what its fields show to be secret is learnt.
    async fn document(&mut self, redaction: &mut Redaction, name: &str, api: &Api, path: &str) -> Option<Value> {
        tracing::info!("GET {path}");
        let read: Result<Value, ApiError> = api.get(path).await;
        match read {
            Ok(document) => {
                redaction.learn_from(&document);
                self.put_json(name, &document);
                Some(document)
            }
            Err(error) => {
                self.note(name, &error);
                None
            }
        }
    }
}

impl Service {
    /// Gathers diagnostics in a new directory.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub async fn diagnostics(&self, directory: &Path) -> Result<Diagnostics, OperatorError> {
        let fault = |path: &Path| {
            let path = path.to_path_buf();
            move |source| OperatorError::Diagnostics { path, source }
        };
        // First, so that nothing is gathered in vain.
        fs::DirBuilder::new().mode(0o700).create(directory).map_err(fault(directory))?;
        let (texts, missing) = self.gather().await;
        for (name, text) in &texts {
            let file = directory.join(name);
            fs::write(&file, text).map_err(fault(&file))?;
        }
        let files = texts.into_iter().map(|(name, _)| name).collect();
        Ok(Diagnostics { directory: directory.to_path_buf(), files, missing })
    }

    async fn gather(&self) -> (Vec<(String, String)>, Vec<String>) {
        let (mut gathered, mut redaction) = (Gathered::default(), Redaction::new());
        if let Some(token) = &self.token {
            redaction.learn(token.expose());
        }
        let marathon = self.cluster.under("/service/marathon");
        let own = gathered.document(&mut redaction, "app-controller.json", &marathon, &format!("/v2/apps/{}", self.name)).await;
        let vars = own.iter().filter_map(|answer| answer["app"]["env"].as_object()).flatten();
        let vars: std::collections::BTreeMap<String, String> = vars
            .filter(|(name, _)| options::is_variable(name))
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_string())))
            .in_order();
        gathered.put_json("options.json", &json!(vars));
        self.documents(&mut gathered, &mut redaction, &marathon, &vars).await;
        self.answers(&mut gathered, &mut redaction).await;
        self.all_logs(&mut gathered).await;
        let missing: String = gathered.missing.iter().map(|line| format!("{line}\n")).collect();
        gathered.put("missing.txt", missing);
        // Only now all is known that has to be taken out.
        let clean = |(name, text): (String, String)| (name, redaction.clean(&text));
        let missing = gathered.missing.iter().map(|line| redaction.clean(line)).collect();
        (gathered.texts.into_iter().map(clean).collect(), missing)
    }

    /// What Marathon and Metronome have of the service, and who they are.
    async fn documents(
        &self,
        gathered: &mut Gathered,
        redaction: &mut Redaction,
        marathon: &Api,
        vars: &std::collections::BTreeMap<String, String>,
    ) {
        match Options::for_removal(vars, &format!("/{}", self.name)) {
            Ok(options) => {
                gathered.document(redaction, "app-registry.json", marathon, &format!("/v2/apps{}", documents::registry_id(&options))).await;
                gathered.pods(redaction, marathon, &options).await;
                let copies = documents::copy_job_ids(&options).map(|(id, _)| id);
                let possible: Vec<String> = documents::possible_copy_jobs(&options).map(|(id, _)| id).collect();
                let made = |id: &String| !copies.contains(id) || possible.contains(id);
                for id in documents::job_ids(&options).into_iter().filter(made) {
                    let path = format!("/v1/jobs/{id}?embed=activeRuns&embed=history&embed=schedules");
                    gathered.document(redaction, &format!("job-{id}.json"), &self.metronome, &path).await;
                }
            }
            Err(faults) => gathered.note("options", &faults),
        }
        gathered.document(redaction, "deployments.json", marathon, "/v2/deployments").await;
        gathered.document(redaction, "version-dcos.json", &self.cluster, "/dcos-metadata/dcos-version.json").await;
        gathered.document(redaction, "version-marathon.json", marathon, "/v2/info").await;
        gathered.document(redaction, "version-metronome.json", &self.metronome, "/info").await;
        gathered.put("version.txt", format!("private-registry {}\n", env!("CARGO_PKG_VERSION")));
    }

    /// What the controller says.
    async fn answers(&self, gathered: &mut Gathered, redaction: &mut Redaction) {
        let status = gathered.document(redaction, "status.json", &self.controller, "/v1/status").await;
        // Not as a report: to be read of a value as well, that would be in the program twice.
        let next = status.iter().filter_map(|status| status["next"].as_array()).flatten().filter_map(Value::as_str);
        let next: String = next.map(|line| format!("{line}\n")).collect();
        gathered.put("plan.txt", next);
        gathered.document(redaction, "discovery.json", &self.controller, "/v1/discovery").await;
        match self.controller.get_text("/metrics").await {
            Ok(text) => gathered.put("metrics.txt", text),
            Err(error) => gathered.note("metrics.txt", &error),
        }
    }

    async fn all_logs(&self, gathered: &mut Gathered) {
        let mut agents = self.report().await.map(|report| report.agents).unwrap_or_default();
        let trusted = |agent: &crate::controller::AgentReport| agent.state == "trusted";
        crate::in_order::sort_by(&mut agents, |one, other| trusted(one).cmp(&trusted(other)));
        if agents.len() > AGENTS {
            gathered.missing.push(format!("logs of {} agents: {AGENTS} at most", agents.len() - AGENTS));
        }
        let agents = agents.into_iter().take(AGENTS).map(|agent| Target::Agent(agent.host.clone()));
        for target in [Target::Controller, Target::Registry].into_iter().chain(agents) {
            let name = match &target {
                Target::Controller => "log-controller".to_string(),
                Target::Registry => "log-registry".into(),
                Target::Agent(host) => format!("log-agent-{host}"),
            };
            match self.logs(&target, LINES).await {
                Ok(logs) => {
                    gathered.put(&format!("{name}.stdout.txt"), logs.stdout);
                    gathered.put(&format!("{name}.stderr.txt"), logs.stderr);
                }
                Err(error) => gathered.note(&name, &error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::http::{Method, Uri};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::certificates::{Authority, EnrolmentKey, OrderSigner};
    use crate::controller::Report;
    use crate::forecast::Purpose;
    use crate::operator::Access;
    use crate::secret::Secret;

    /// A cluster that shows secrets wherever it can: in documents, in answers and in logs.
    struct Leaky {
        url: String,
        /// Methods that were asked for.
        asked: Arc<Mutex<Vec<String>>>,
    }

    async fn leaky(enrolment: &str, said: &str) -> Leaky {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (enrolment, said, seen) = (enrolment.to_string(), said.to_string(), asked.clone());
        let answer = move |method: Method, uri: Uri| {
            seen.lock().unwrap().push(format!("{method} {uri}"));
            let labels = json!({ "PRIVATE_REGISTRY_SERVICE": "private-registry" });
            let body = match uri.path() {
                "/service/marathon/v2/apps/private-registry" => {
                    let mut env = json!(options::default_variables());
                    env["OPTION_STORAGE_SECRET_KEY"] = json!("S3-secret-key-itself");
                    json!({ "app": { "id": "/private-registry", "env": env, "labels": {}, "tasks": [] } })
                }
                "/service/marathon/v2/apps/registry" => {
                    let env = json!({ "PRIVATE_REGISTRY_ENROLMENT_KEY": enrolment, "REGISTRY_HTTP_SECRET": "http-secret-1" });
                    json!({ "app": { "id": "/registry", "env": env, "labels": labels, "tasks": [] } })
                }
                "/service/marathon/v2/pods/::status" => json!([
                    { "spec": { "id": "/private-registry-node-3", "labels": labels } },
                    { "spec": { "id": "/another", "environment": { "PASSWORD": "theirs" } } },
                ]),
                "/service/marathon/v2/apps" => json!({ "apps": [] }),
                "/service/marathon/v2/deployments" => json!([]),
                "/service/marathon/v2/info" => json!({ "version": "1.11.24" }),
                "/mesos/slaves" => json!({ "slaves": [] }),
                "/service/private-registry/v1/status" => {
                    let report = Report { problems: vec![said.clone()], ..Report::default() };
                    json!(report)
                }
                "/service/private-registry/metrics" => json!(said),
                "/mesos/master/state" => {
                    let task = json!({ "id": "private-registry.1", "slave_id": "s", "labels": [{ "key": "DCOS_SERVICE_NAME", "value": "private-registry" }] });
                    json!({ "slaves": [{ "id": "s", "hostname": "10.0.0.1" }], "frameworks": [{ "name": "marathon", "tasks": [task] }] })
                }
                "/agent/s/state" => {
                    json!({ "frameworks": [{ "executors": [{ "directory": "/d", "tasks": [{ "id": "private-registry.1" }] }] }] })
                }
                "/agent/s/files/read" => match uri.query().is_some_and(|query| query.ends_with("offset=-1")) {
                    true => json!({ "data": "", "offset": said.len() }),
                    false => json!({ "data": said, "offset": 0 }),
                },
                _ => return std::future::ready((axum::http::StatusCode::NOT_FOUND, axum::Json(json!({ "message": "absent" })))),
            };
            std::future::ready((axum::http::StatusCode::OK, axum::Json(body)))
        };
        let router = Router::new().fallback(answer);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Leaky { url, asked }
    }

    fn service(url: &str) -> Service {
        let access = Access { url: url.into(), token: Some(Secret::new("the-operators-own-token".into())), ca: None, insecure: false };
        Service::new(&access, "private-registry").unwrap()
    }

    #[tokio::test]
    async fn no_secret_that_anything_shows_gets_into_the_directory() {
        let ca = Authority::create("private-registry", 1, &["10.0.0.1:443".parse().unwrap()], 0, 10).unwrap().key_pem();
        let order = OrderSigner::generate().unwrap().to_pkcs8_pem();
        let enrolment = EnrolmentKey::generate().unwrap().to_base64();
        let account = include_str!("../../tests/fixtures/service-account/private-key.pem");
        let hash = crate::users::hash(&Secret::new("a password".into())).unwrap();
        let mut secrets: Vec<String> = [ca.expose().as_str(), order.expose(), enrolment.expose(), account, &hash].map(String::from).into();
        secrets.extend(["S3-secret-key-itself", "http-secret-1", "the-operators-own-token"].map(String::from));
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let spellings: Vec<String> = secrets
            .iter()
            .filter(|secret| **secret != hash)
            .flat_map(|s| [s.clone(), STANDARD.encode(s), hex(s.as_bytes())])
            .chain([hash.clone()])
            .collect();
        let said = spellings.join("\n") + "\nthe end";
        let cluster = leaky(enrolment.expose(), &said).await;
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let done = service(&cluster.url).diagnostics(&out).await.unwrap();
        assert!(["log-controller.stderr.txt", "pod-3.json"].iter().all(|name| done.files.iter().any(|file| file == name)), "{done:?}");
        let all: String = done.files.iter().map(|name| fs::read_to_string(out.join(name)).unwrap()).collect();
        assert!(!all.contains("theirs"), "another service's pod is in the directory");
        assert!(all.contains("the end") && all.contains("<redacted>"), "{all}");
        // Of a key in several lines each line is one.
        let lines = spellings.iter().flat_map(|text| text.lines()).filter(|line| line.len() > 20 && !line.starts_with("-----"));
        for part in lines.chain(spellings.iter().map(String::as_str).filter(|text| !text.contains('\n'))) {
            assert!(!all.contains(part), "{part} is in the directory");
        }
        assert!(cluster.asked.lock().unwrap().iter().all(|asked| asked.starts_with("GET ")));
        assert!(matches!(service(&cluster.url).diagnostics(&out).await, Err(OperatorError::Diagnostics { .. })), "it is not written twice");
    }

    #[tokio::test]
    async fn a_forecast_only_reads() {
        let cluster = leaky("key", "").await;
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), r#"{ "registry": { "cpus": 1.5 } }"#).unwrap();
        // What is in place there was not made for these options, so it is all replaced.
        for (purpose, path) in [(Purpose::Options, Some(file.path())), (Purpose::Rotation, None), (Purpose::Removal, None)] {
            match service(&cluster.url).foresee(purpose.clone(), path).await {
                Ok(forecast) => assert!(!forecast.steps.is_empty(), "{purpose:?}"),
                // The key in place of its name is refused.
                Err(OperatorError::Refused(faults)) => assert!(faults.to_string().contains("storage.secret_key"), "{faults}"),
                Err(error) => panic!("{purpose:?}: {error}"),
            }
        }
        let asked = cluster.asked.lock().unwrap();
        assert!(asked.len() > 10 && asked.iter().all(|asked| asked.starts_with("GET ")), "{asked:?}");
    }
}
