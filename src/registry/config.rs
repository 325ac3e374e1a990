//! What the registry role is told by its environment, and what it tells the registry in `config.yml`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use handlebars::{Handlebars, handlebars_helper};
use serde_json::{Value, json};

use super::RegistryError;
use crate::certificates::{EnrolmentKey, OrderKey};
use crate::protocol::{REGISTRY_PORT, REGISTRY_STATUS_PORT, RegistrySettings, env};
use crate::secret::Secret;

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
    /// Where the registry listens (TLS).
    pub listen: SocketAddr,
    /// Where this role listens (HTTP).
    pub status_listen: SocketAddr,
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
        Ok(Self {
            service: required(env::SERVICE)?,
            order_key,
            enrolment_key: enrolment_key.map_err(|e| wrong(env::ENROLMENT_KEY)(e.to_string()))?,
            settings,
            host: required("HOST")?,
            // The docker containerizer sets the container's name where the executor does not hand on the task id.
            task: variable("MESOS_TASK_ID").or_else(|| variable("MESOS_CONTAINER_NAME")).unwrap_or_default(),
            state: PathBuf::from("/var/lib/private-registry"),
            data: PathBuf::from("/var/lib/registry"),
            listen: (Ipv4Addr::UNSPECIFIED, REGISTRY_PORT).into(),
            status_listen: (Ipv4Addr::UNSPECIFIED, REGISTRY_STATUS_PORT).into(),
            program: PathBuf::from("registry"),
        })
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

    /// The registry's `config.yml`. It holds the HTTP secret, so it is written for root alone.
    pub(super) fn render(&self) -> Result<Secret<String>, RegistryError> {
        handlebars_helper!(json_text: |value: Value| value.to_string());
        let mut engine = Handlebars::new();
        engine.register_escape_fn(handlebars::no_escape);
        engine.set_strict_mode(true);
        // Every JSON text is YAML too, so no value can break out of its place.
        engine.register_helper("json", Box::new(json_text));
        let values = json!({
            "log_level": self.settings.log_level,
            "data": self.data,
            "delete_enabled": self.settings.delete_enabled,
            "listen": self.listen.to_string(),
            "http_secret": self.enrolment_key.http_secret().expose(),
            "drain_timeout": format!("{}s", self.settings.drain_seconds),
            "certificate": self.chain_file(),
            "key": self.key_file(),
            "insecure": self.settings.insecure,
        });
        let text = engine.render_template(include_str!("../templates/config.yml.hbs"), &values);
        text.map(Secret::new).map_err(|error| RegistryError::Template(error.to_string()))
    }
}

fn parse_settings(text: &str) -> Result<RegistrySettings, String> {
    let settings: RegistrySettings = serde_json::from_str(text).map_err(|error| error.to_string())?;
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
    use std::collections::HashMap;

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
    fn without_tls_the_configuration_names_neither_key_nor_certificate() {
        let mut config = read(&variables()).unwrap();
        assert!(config.render().unwrap().expose().contains("\n  tls:\n    certificate: "));
        config.settings.insecure = true;
        let text = config.render().unwrap();
        assert!(!text.expose().contains("tls") && text.expose().contains("\n  headers:\n"), "{}", text.expose());
    }

    #[test]
    fn no_value_breaks_out_of_its_place_in_the_configuration() {
        let mut config = read(&variables()).unwrap();
        config.data = PathBuf::from("/data \"x\": {{json http_secret}}\nhttp: oops");
        let text = config.render().unwrap();
        assert!(text.expose().contains(r#"rootdirectory: "/data \"x\": {{json http_secret}}\nhttp: oops""#), "{}", text.expose());
        assert_eq!(text.expose().matches("\nhttp:").count(), 1);
        assert!(!format!("{config:?}").contains(config.enrolment_key.to_base64().expose()));
    }
}
