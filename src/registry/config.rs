//! What the registry role is told by its environment, and what it tells the registry in `config.yml`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use handlebars::{Handlebars, handlebars_helper};
use serde_json::{Value, json};

use super::{RegistryError, provided};
use crate::certificates::{EnrolmentKey, OrderKey};
use crate::host_paths::ACCOUNT;
use crate::protocol::{AuthBy, HeldAt, REGISTRY_PORT, REGISTRY_STATUS_PORT, RegistrySettings, StorageAt, env};
use crate::secret::Secret;
use crate::settings;

/// Port of the registry's metrics inside its container.
const DEBUG_PORT: u16 = 5002;

/// Marathon starts a controller that has died anew within a minute or two.
const PATIENCE: Duration = Duration::from_secs(600);

/// Levels that distribution 2.8 knows.
const LOG_LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];

/// Everything that the role needs. In production it comes [from the environment](Self::from_env).
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Name of the service.
    pub service: String,
    /// What orders must be signed with.
    pub order_key: OrderKey,
    /// Authenticates the request and derives the HTTP secret.
    pub enrolment_key: EnrolmentKey,
    /// Settings of the registry.
    pub settings: RegistrySettings,
    /// Host name of the agent.
    pub host: String,
    /// Task id, for the status.
    pub task: String,
    /// Directory of key, certificate and `config.yml`: a directory of the host, mounted into the container.
    pub state: PathBuf,
    /// The registry's root directory; the images lie in `docker` below it.
    pub data: PathBuf,
    /// Directory of backups, if there is one.
    pub backup: Option<PathBuf>,
    /// Where the registry listens (TLS).
    pub listen: SocketAddr,
    /// Where this role listens (HTTP).
    pub status_listen: SocketAddr,
    /// Where the registry shows metrics and its innards (HTTP): on loopback, for this role alone.
    pub debug_listen: SocketAddr,
    /// So long the controller may say nothing while this registry is read-only for a garbage collection.
    pub patience: Duration,
    /// The registry's program; it is run as `<program> serve <config.yml>`.
    pub program: PathBuf,
}

impl RegistryConfig {
    /// Reads the environment that Marathon and the app's definition give to the task.
    ///
    /// # Errors
    /// Names the variable that is missing or wrong, without its value.
    pub fn from_env() -> Result<Self, RegistryError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, RegistryError> {
        let required = |name: &'static str| {
            let missing = || RegistryError::Environment { name, reason: "it is not set".into() };
            variable(name).filter(|value| !value.is_empty()).ok_or_else(missing)
        };
        let wrong = |name: &'static str| move |reason: String| RegistryError::Environment { name, reason };
        let order_key = OrderKey::from_base64(&required(env::ORDER_KEY)?).map_err(|e| wrong(env::ORDER_KEY)(e.to_string()))?;
        let enrolment_key = EnrolmentKey::from_base64(&Secret::new(required(env::ENROLMENT_KEY)?));
        let settings = parse_settings(&required(env::REGISTRY_SETTINGS)?).map_err(wrong(env::REGISTRY_SETTINGS))?;
        let data = match &settings.storage {
            StorageAt::Sandbox { directory } => PathBuf::from(required("MESOS_SANDBOX")?).join(directory),
            _ => PathBuf::from(settings::IMAGES),
        };
        Ok(Self {
            service: required(env::SERVICE)?,
            order_key,
            enrolment_key: enrolment_key.map_err(|e| wrong(env::ENROLMENT_KEY)(e.to_string()))?,
            backup: settings.backup.then(|| PathBuf::from(settings::BACKUP)),
            settings,
            host: required("HOST")?,
            // The docker containerizer sets the container's name where the executor does not hand on the task id.
            task: variable("MESOS_TASK_ID").or_else(|| variable("MESOS_CONTAINER_NAME")).unwrap_or_default(),
            state: PathBuf::from(settings::STATE),
            data,
            debug_listen: (Ipv4Addr::LOCALHOST, DEBUG_PORT).into(),
            listen: (Ipv4Addr::UNSPECIFIED, REGISTRY_PORT).into(),
            status_listen: (Ipv4Addr::UNSPECIFIED, REGISTRY_STATUS_PORT).into(),
            patience: PATIENCE,
            program: PathBuf::from("registry"),
        })
    }

    /// Whether the images lie in a directory, and not in a store behind an API.
    pub(super) fn is_directory(&self) -> bool {
        matches!(self.settings.storage, StorageAt::Directory | StorageAt::Sandbox { .. })
    }

    /// Where this role itself asks the registry.
    pub(super) fn own_url(&self) -> String {
        let ip = if self.listen.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { self.listen.ip() };
        let scheme = if self.settings.insecure { "http" } else { "https" };
        format!("{scheme}://{ip}:{}", self.listen.port())
    }

    /// The key that is served with.
    pub(super) fn key_file(&self) -> PathBuf {
        if self.settings.provided.is_some() { self.provided_files()[0].clone() } else { self.own_files()[0].clone() }
    }

    /// The chain that is served.
    pub(super) fn chain_file(&self) -> PathBuf {
        if self.settings.provided.is_some() { self.provided_files()[1].clone() } else { self.own_files()[1].clone() }
    }

    /// The key that this role has made, and its chain.
    pub(super) fn own_files(&self) -> [PathBuf; 2] {
        ["tls.key", "tls.crt"].map(|name| self.state.join(name))
    }

    /// Copies of the operator's key and chain: a pair that belongs together even while the operator replaces his.
    pub(super) fn provided_files(&self) -> [PathBuf; 2] {
        ["provided.key", "provided.crt"].map(|name| self.state.join(name))
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.state.join("config.yml")
    }

    pub(super) fn order_file(&self) -> PathBuf {
        self.state.join("order.json")
    }

    /// The configuration and all that it may name.
    pub(super) fn written_files(&self) -> [PathBuf; 6] {
        let [gcs, token] = ["gcs.json", "token.pem"].map(|name| self.state.join(name));
        [self.config_file(), self.users_file(), self.service_users_file(), self.account_file(), gcs, token]
    }

    /// Directory of CA certificates that the registry is to know beside those of its image, and of nothing else.
    pub(super) fn upstream_ca_directory(&self) -> PathBuf {
        self.state.join("upstream-ca")
    }

    /// The same, if the options give any.
    pub(super) fn further_cas(&self) -> Option<PathBuf> {
        let proxy = self.settings.proxy.as_ref().filter(|proxy| !proxy.certificates.is_empty());
        proxy.map(|_| self.upstream_ca_directory())
    }

    /// Users whom the service keeps, as the last order has said.
    pub(super) fn service_users_file(&self) -> PathBuf {
        self.state.join("users")
    }

    /// Users and their hashes. The registry reads it again whenever it has changed.
    pub(super) fn users_file(&self) -> PathBuf {
        self.state.join("htpasswd")
    }

    /// Name and password of this role's own account, for the node on this host.
    pub(super) fn account_file(&self) -> PathBuf {
        self.state.join(ACCOUNT)
    }

    /// The registry's `config.yml` and what it refers to. It holds secrets, so it is written for root alone. `read_only`: whatever the
    /// options say.
    pub(super) fn render(&self, read_only: bool) -> Result<Rendered, RegistryError> {
        handlebars_helper!(json_text: |value: Value| value.to_string());
        let mut engine = Handlebars::new();
        engine.register_escape_fn(handlebars::no_escape);
        engine.set_strict_mode(true);
        // Every JSON text is YAML too, so no value can break out of its place.
        engine.register_helper("json", Box::new(json_text));
        let mut files = Vec::new();
        let (driver, parameters, redirect) = self.storage(&mut files)?;
        let values = json!({
            "log_level": self.settings.log_level,
            "no_access_log": !self.settings.access_log,
            "driver": driver,
            "parameters": parameters,
            "no_redirect": !redirect,
            "delete_enabled": self.settings.delete_enabled,
            "purges": self.settings.upload_purge_hours > 0,
            "purge_age": format!("{}h", self.settings.upload_purge_hours),
            "read_only": read_only || self.settings.read_only,
            "auth": self.auth(&mut files)?,
            "proxy": self.proxy(&mut files)?,
            "listen": self.listen.to_string(),
            "http_secret": self.enrolment_key.http_secret().expose(),
            "drain_timeout": format!("{}s", self.settings.drain_seconds),
            "certificate": self.chain_file(),
            "key": self.key_file(),
            "insecure": self.settings.insecure,
            "debug": self.debug_listen.to_string(),
        });
        let text = engine.render_template(include_str!("../templates/config.yml.hbs"), &values);
        let config = text.map(Secret::new).map_err(|error| RegistryError::Template(error.to_string()))?;
        Ok(Rendered { config, files })
    }

    /// The storage driver, its parameters, and whether it may send clients elsewhere.
    fn storage(&self, files: &mut Vec<(PathBuf, Secret<String>)>) -> Result<(&'static str, Value, bool), RegistryError> {
        Ok(match &self.settings.storage {
            StorageAt::Directory | StorageAt::Sandbox { .. } => ("filesystem", json!({ "rootdirectory": self.data }), false),
            StorageAt::S3 { bucket, root, region, endpoint, access_key, secret_key, redirect } => {
                let mut parameters = json!({ "bucket": bucket, "region": region, "rootdirectory": root });
                if !endpoint.is_empty() {
                    parameters["regionendpoint"] = json!(endpoint);
                    // 3.x has to be told; 2.8 does it wherever there is an endpoint.
                    parameters["forcepathstyle"] = json!(true);
                    parameters["secure"] = json!(!endpoint.starts_with("http://"));
                }
                for (key, held) in [("accesskey", access_key), ("secretkey", secret_key)] {
                    if let Some(held) = held {
                        parameters[key] = json!(line(held)?.expose());
                    }
                }
                ("s3", parameters, *redirect)
            }
            StorageAt::Gcs { bucket, root, credentials, redirect } => {
                let mut parameters = json!({ "bucket": bucket, "rootdirectory": root });
                if let Some(held) = credentials {
                    let path = self.state.join("gcs.json");
                    files.push((path.clone(), provided::read(held)?));
                    parameters["keyfile"] = json!(path);
                }
                ("gcs", parameters, *redirect)
            }
            StorageAt::Azure { account, container, root, realm, account_key, redirect } => {
                let mut parameters = json!({ "accountname": account, "container": container, "rootdirectory": root });
                if !realm.is_empty() {
                    parameters["realm"] = json!(realm);
                }
                if let Some(held) = account_key {
                    parameters["accountkey"] = json!(line(held)?.expose());
                    // 3.x has to be told; 2.8 knows nothing else.
                    parameters["credentials"] = json!({ "type": "shared_key" });
                }
                ("azure", parameters, *redirect)
            }
        })
    }

    fn auth(&self, files: &mut Vec<(PathBuf, Secret<String>)>) -> Result<Value, RegistryError> {
        Ok(match &self.settings.auth {
            AuthBy::Nobody => Value::Null,
            AuthBy::Htpasswd { .. } => json!({ "htpasswd": { "realm": self.service, "path": self.users_file() } }),
            AuthBy::Token { realm, service, issuer, certificates } => {
                let path = self.state.join("token.pem");
                files.push((path.clone(), Secret::new(certificates.clone())));
                json!({ "token": { "realm": realm, "service": service, "issuer": issuer, "rootcertbundle": path } })
            }
        })
    }

    fn proxy(&self, files: &mut Vec<(PathBuf, Secret<String>)>) -> Result<Value, RegistryError> {
        let Some(proxy) = &self.settings.proxy else { return Ok(Value::Null) };
        if !proxy.certificates.is_empty() {
            files.push((self.upstream_ca_directory().join("ca.pem"), Secret::new(proxy.certificates.clone())));
        }
        let mut values = json!({ "remoteurl": proxy.url });
        if let Some(held) = &proxy.password {
            values["username"] = json!(proxy.username);
            values["password"] = json!(line(held)?.expose());
        }
        Ok(values)
    }
}

/// What the registry is started with.
pub(super) struct Rendered {
    pub(super) config: Secret<String>,
    /// Files that the configuration names.
    pub(super) files: Vec<(PathBuf, Secret<String>)>,
}

/// A key or password: editors end the last line of a file, which is no part of it.
fn line(held: &HeldAt) -> Result<Secret<String>, RegistryError> {
    Ok(Secret::new(provided::read(held)?.expose().trim_end_matches(['\r', '\n']).to_string()))
}

fn parse_settings(text: &str) -> Result<RegistrySettings, String> {
    let settings: RegistrySettings = crate::json::of_text(text).map_err(|error| error.to_string())?;
    if LOG_LEVELS.contains(&settings.log_level.as_str()) {
        Ok(settings)
    } else {
        Err(format!("log_level must be one of {}", LOG_LEVELS.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::OrderSigner;
    use crate::host_paths::REGISTRY_FILES;
    use crate::protocol::ProxyOf;
    use std::collections::{BTreeSet, HashMap};

    fn variables() -> HashMap<&'static str, String> {
        HashMap::from([
            (env::SERVICE, "private-registry".to_string()),
            (env::ORDER_KEY, OrderSigner::generate().unwrap().verifying_key_base64()),
            (env::ENROLMENT_KEY, EnrolmentKey::generate().unwrap().to_base64().expose().clone()),
            (env::REGISTRY_SETTINGS, r#"{"log_level":"info","delete_enabled":true,"drain_seconds":30}"#.to_string()),
            ("HOST", "192.168.1.80".to_string()),
            ("MESOS_CONTAINER_NAME", "mesos-1".to_string()),
        ])
    }

    fn read(variables: &HashMap<&'static str, String>) -> Result<RegistryConfig, RegistryError> {
        RegistryConfig::from_variables(|name| variables.get(name).cloned())
    }

    #[test]
    fn the_environment_is_read() {
        let config = read(&variables()).unwrap();
        assert_eq!((config.task.as_str(), config.host.as_str()), ("mesos-1", "192.168.1.80"));
        let with_task = HashMap::from_iter(variables().into_iter().chain([("MESOS_TASK_ID", "registry.1".to_string())]));
        assert_eq!(read(&with_task).unwrap().task, "registry.1");
    }

    #[test]
    fn a_missing_or_wrong_variable_is_named_and_no_secret_shown() {
        for name in [env::SERVICE, env::ORDER_KEY, env::ENROLMENT_KEY, env::REGISTRY_SETTINGS, "HOST"] {
            let mut variables = variables();
            variables.remove(name);
            assert!(read(&variables).unwrap_err().to_string().contains(name), "{name}");
        }
        for name in [env::ORDER_KEY, env::ENROLMENT_KEY, env::REGISTRY_SETTINGS] {
            let mut variables = variables();
            variables.insert(name, "hunter2".into());
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains("hunter2"), "{error}");
        }
        let mut variables = variables();
        variables.insert(env::REGISTRY_SETTINGS, r#"{"log_level":"loud","delete_enabled":true,"drain_seconds":30}"#.into());
        assert!(read(&variables).unwrap_err().to_string().contains("error, warn, info, debug"));
    }

    #[test]
    fn every_file_of_the_state_is_known_to_whoever_removes_what_a_registry_has_left() {
        let config = read(&variables()).unwrap();
        let files = config.own_files().into_iter().chain(config.provided_files()).chain(config.written_files());
        let files = files.chain([config.order_file(), config.upstream_ca_directory().join("ca.pem")]);
        let written: BTreeSet<_> = files.map(|path| path.strip_prefix(&config.state).unwrap().display().to_string()).collect();
        assert_eq!(written, REGISTRY_FILES.map(String::from).into());
    }

    #[test]
    fn without_tls_the_configuration_names_neither_key_nor_certificate() {
        let mut config = read(&variables()).unwrap();
        assert!(config.render(false).unwrap().config.expose().contains("\n  tls:\n    certificate: "));
        config.settings.insecure = true;
        let text = config.render(false).unwrap().config;
        assert!(!text.expose().contains("tls") && text.expose().contains("\n  headers:\n"), "{}", text.expose());
    }

    #[test]
    fn no_value_breaks_out_of_its_place_in_the_configuration() {
        let mut config = read(&variables()).unwrap();
        config.data = PathBuf::from("/data \"x\": {{json http_secret}}\nhttp: oops");
        let text = config.render(false).unwrap().config;
        assert!(text.expose().contains(r#"{"rootdirectory":"/data \"x\": {{json http_secret}}\nhttp: oops"}"#), "{}", text.expose());
        assert_eq!(text.expose().matches("\nhttp:").count(), 1);
        assert!(!format!("{config:?}").contains(config.enrolment_key.to_base64().expose()));
    }

    #[test]
    fn every_store_and_every_authentication_has_its_place_in_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "s3cret\n").unwrap();
        let key = Some(HeldAt::File(dir.path().join("key")));
        let mut config = read(&variables()).unwrap();
        let mut rendered = |storage, auth, proxy| {
            (config.settings.storage, config.settings.auth, config.settings.proxy) = (storage, auth, proxy);
            config.render(false).unwrap()
        };
        let s3 = StorageAt::S3 {
            bucket: "b".into(),
            root: String::new(),
            region: "r".into(),
            endpoint: "http://store:9000".into(),
            access_key: key.clone(),
            secret_key: key.clone(),
            redirect: false,
        };
        let text = rendered(s3, AuthBy::Nobody, None).config;
        for part in [r#"  s3: {"bucket":"b""#, r#""secretkey":"s3cret""#, r#""secure":false"#, "    disable: true"] {
            assert!(text.expose().contains(part), "{part} in {}", text.expose());
        }
        let gcs = StorageAt::Gcs { bucket: "b".into(), root: "r".into(), credentials: key.clone(), redirect: true };
        let token = AuthBy::Token { realm: "https://a".into(), service: "s".into(), issuer: "i".into(), certificates: "PEM".into() };
        let Rendered { config: text, files } = rendered(gcs, token, None);
        let names: Vec<_> =
            files.iter().map(|(path, text)| (path.file_name().unwrap().to_str().unwrap(), text.expose().as_str())).collect();
        assert_eq!(names, [("gcs.json", "s3cret\n"), ("token.pem", "PEM")]);
        assert!(text.expose().contains(r#"auth: {"token":{"realm":"https://a""#), "{}", text.expose());
        let proxy = ProxyOf { url: "https://other".into(), username: "u".into(), password: key.clone(), certificates: String::new() };
        let users = AuthBy::Htpasswd { file: None };
        let text = rendered(StorageAt::Directory, users, Some(proxy)).config;
        assert!(text.expose().contains(r#"proxy: {"remoteurl":"https://other","username":"u","password":"s3cret"}"#), "{}", text.expose());
        assert!(text.expose().contains(r#""path":"/var/lib/private-registry/htpasswd""#), "{}", text.expose());
        config.settings.proxy = Some(ProxyOf {
            url: "https://other".into(),
            username: "u".into(),
            password: Some(HeldAt::Variable("NOT_SET".into())),
            certificates: String::new(),
        });
        assert!(config.render(false).err().unwrap().to_string().contains("NOT_SET is not set"));
    }
}
