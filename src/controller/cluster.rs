//! The way into the cluster: where its services are, by whose CA they are known, and who logs in.

use std::path::PathBuf;
use std::sync::Arc;

use super::serve::Shared;
use super::state::StateError;
use super::store::Store;
use super::{CALM, ControllerError, Report, Setting};
use crate::dcos::ca::Ca;
use crate::dcos::cosmos::Cosmos;
use crate::dcos::grants::Door;
use crate::dcos::login::{self, Credential, CredentialError, Login};
use crate::dcos::marathon::Marathon;
use crate::dcos::mesos::Mesos;
use crate::dcos::metronome::Metronome;
use crate::dcos::secrets::Secrets;
use crate::dcos::{Api, chain, to_the_leader};
use crate::distribution::{Distribution, InDefinitions, InSecretStore};
use crate::host_paths::HostRoot;
use crate::options::Options;

/// The services of the cluster.
pub(crate) struct Cluster {
    pub(crate) mesos: Mesos,
    pub(crate) marathon: Marathon,
    pub(crate) metronome: Metronome,
    /// The CA of DC/OS Enterprise.
    pub(crate) ca: Ca,
    pub(crate) cosmos: Cosmos,
    /// The secret store, where there is a service account.
    pub(crate) secrets: Option<Secrets>,
    /// For tasks' own addresses.
    pub(crate) http: reqwest::Client,
    /// The same for very many of them: no connection is kept for the next question.
    fleeting: reqwest::Client,
}

/// With more nodes than this no connections are kept.
const KEPT: usize = 500;

impl Cluster {
    /// Clients for where the options say the services are; with a service account they log in.
    pub(super) fn try_enter(setting: &Setting, options: &Options, shared: &Shared) -> Result<Self, ControllerError> {
        let urls = options.endpoints();
        let client = trusting(setting, options)?;
        let login = match options.has_account() {
            true => Some(Arc::new(Login::new(credential(setting, options)?, client.clone()))),
            false => None,
        };
        let api = |url: &str, door| Api::new(client.clone(), url).entered(door, login.clone()).counted(&shared.metrics.calls);
        Ok(Self {
            mesos: Mesos(api(&urls.mesos, Door::Mesos)),
            marathon: Marathon(api(&urls.marathon, Door::Marathon)),
            metronome: Metronome(api(&urls.metronome, Door::Metronome)),
            ca: Ca(api(&urls.ca, Door::Ca)),
            cosmos: Cosmos(Api::new(client.clone(), &urls.cosmos)),
            secrets: login.is_some().then(|| Secrets(api(&urls.secrets, Door::Secrets))),
            http: Api::client()?,
            fleeting: Api::fleeting_client()?,
        })
    }

    /// The client for so many nodes.
    pub(super) fn http_for(&self, nodes: usize) -> &reqwest::Client {
        if nodes > KEPT { &self.fleeting } else { &self.http }
    }

    /// Where the controller keeps its keys.
    pub(crate) fn store(&self, service: &str) -> Result<Store, StateError> {
        match &self.secrets {
            Some(secrets) => Ok(Store::in_secrets(secrets.clone(), service)),
            None => Store::on_host(&HostRoot::default(), service),
        }
    }

    /// How texts reach tasks.
    pub(super) fn distribution(&self) -> Box<dyn Distribution> {
        match &self.secrets {
            Some(secrets) => Box::new(InSecretStore::new(secrets.clone())),
            None => Box::new(InDefinitions),
        }
    }
}

/// Enters the cluster as soon as that can be done. What is missing may come: a mounted secret, a CA file.
pub(super) async fn enter(setting: &Setting, options: &Options, shared: &Shared) -> Cluster {
    loop {
        match Cluster::try_enter(setting, options, shared) {
            Ok(cluster) => return cluster,
            Err(error) => {
                tracing::error!(error = chain(&error), "the cluster cannot be entered; trying again");
                shared.publish(Report::starting(options, "the way into the cluster"));
                shared.trouble(chain(&error));
            }
        }
        shared.beat();
        tokio::time::sleep(CALM).await;
    }
}

fn credential(setting: &Setting, options: &Options) -> Result<Credential, ControllerError> {
    let stored = setting.credential.as_ref().ok_or(ControllerError::Environment(login::CREDENTIAL_VARIABLE))?;
    let credential = Credential::find(stored.expose(), &setting.sandbox())?;
    let expected = &options.service.service_account;
    if !expected.is_empty() && credential.uid() != expected {
        return Err(CredentialError::Account { found: credential.uid().into(), expected: expected.clone() }.into());
    }
    Ok(match options.endpoints().login {
        Some(url) => credential.with_login_url(&url),
        None => credential,
    })
}

/// Where DC/OS Enterprise puts the certificates of its CA on an agent.
pub(super) const CLUSTER_CA: &str = "/run/dcos/pki/CA/ca-bundle.crt";
/// The same in a task's sandbox: from 1.10 on, and in 1.9.
const CLUSTER_CA_IN_SANDBOX: [&str; 2] = [".ssl/ca-bundle.crt", ".ssl/ca.crt"];

/// A client that trusts the cluster's CA. It is never fetched: whoever stands in between could give his own.
fn trusting(setting: &Setting, options: &Options) -> Result<reqwest::Client, ControllerError> {
    let urls = options.endpoints();
    let needs_ca = [&urls.mesos, &urls.marathon, &urls.metronome].iter().any(|url| url.starts_with("https:"))
        || (options.has_account() && urls.login.as_ref().is_none_or(|url| url.starts_with("https:")));
    let path = cluster_ca_file(setting, options);
    let mut builder = Api::builder().redirect(to_the_leader());
    match path {
        Some(path) => {
            let unreadable = |reason: String| ControllerError::ClusterCa(path.display().to_string(), reason);
            let pem = std::fs::read(&path).map_err(|error| unreadable(error.to_string()))?;
            for certificate in reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unreadable(error.to_string()))? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        None if needs_ca => return Err(ControllerError::ClusterCa(CLUSTER_CA.into(), "there is no such file".into())),
        None => {}
    }
    Ok(builder.build()?)
}

/// Where the certificates of the cluster's CA are on this agent, if they are anywhere.
pub(super) fn cluster_ca_file(setting: &Setting, options: &Options) -> Option<PathBuf> {
    let given = (!options.dcos.ca_file.is_empty()).then(|| PathBuf::from(&options.dcos.ca_file));
    let usual = CLUSTER_CA_IN_SANDBOX.iter().map(|name| setting.sandbox().join(name)).chain([PathBuf::from(CLUSTER_CA)]);
    given.or_else(|| usual.into_iter().find(|path| path.exists()))
}
