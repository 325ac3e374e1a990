//! Text to be pasted where something is told to use the registry, with the service's own names.

use serde_json::{Value, json};

use crate::controller::Report;
use crate::names::HostPort;

/// Docker's trust on every host. Mounted as a folder: a file that is mounted alone stays the old one when it is replaced.
const TRUST: &str = "/etc/docker/certs.d";

/// Where a snippet is pasted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Snippet {
    MarathonApp,
    /// A docker image that takes a login, with docker's `config.json` from an archive.
    MarathonAppLogin,
    /// The same for the Mesos containerizer, with `config.json` from a secret (DC/OS Enterprise).
    MarathonAppSecret,
    Jenkins,
    GitlabRunner,
    DockerInDocker,
}

/// How images of this registry begin inside the cluster; none as long as its names are not known.
pub(crate) fn prefix(report: &Report) -> Option<String> {
    let name: HostPort = report.names.first()?.parse().ok()?;
    name.spellings().into_iter().next()
}

/// The mount, as docker's `--volume` takes it.
pub(crate) fn mount() -> String {
    format!("{TRUST}:{TRUST}:ro")
}

/// The snippet; none as long as the registry's names are not known.
pub fn snippet(what: Snippet, report: &Report) -> Option<String> {
    let registry = prefix(report)?;
    let pretty = |app: Value| format!("{app:#}\n");
    Some(match what {
        Snippet::MarathonApp => pretty(marathon_app(&registry)),
        Snippet::MarathonAppLogin => pretty(marathon_app_login(&registry)),
        Snippet::MarathonAppSecret => pretty(marathon_app_secret(&registry)),
        Snippet::DockerInDocker => pretty(docker_in_docker(&registry)),
        Snippet::Jenkins => jenkins(&registry),
        Snippet::GitlabRunner => gitlab_runner(&registry),
    })
}

/// An app takes its image from the registry; nothing else has to be said, as the agent trusts it.
fn marathon_app(registry: &str) -> Value {
    json!({
        "id": "/app",
        "instances": 1,
        "cpus": 0.1,
        "mem": 64,
        "container": { "type": "DOCKER", "docker": { "image": format!("{registry}/team/app:1"), "network": "HOST" } },
    })
}

/// Mesos has docker pull with the sandbox as its home, in which the fetcher unpacks the archive: `.docker/config.json`.
fn marathon_app_login(registry: &str) -> Value {
    let mut app = marathon_app(registry);
    app["fetch"] = json!([{ "uri": "file:///etc/docker.tar.gz", "extract": true }]);
    app
}

/// Marathon takes a `pullConfig` for the Mesos containerizer alone.
fn marathon_app_secret(registry: &str) -> Value {
    let mut app = marathon_app(registry);
    let docker = json!({ "image": app["container"]["docker"]["image"], "pullConfig": { "secret": "pull-config" } });
    app["container"] = json!({ "type": "MESOS", "docker": docker });
    app["secrets"] = json!({ "pull-config": { "source": "docker-config" } });
    app
}

/// An app in which a dockerd of its own runs (`docker/docker-in-docker`).
fn docker_in_docker(registry: &str) -> Value {
    json!({
        "id": "/docker-in-docker",
        "instances": 1,
        "cpus": 0.5,
        "mem": 1024,
        "container": {
            "type": "DOCKER",
            "docker": { "image": format!("{registry}/docker-in-docker:1"), "network": "BRIDGE", "privileged": true },
            "volumes": [{ "containerPath": TRUST, "hostPath": TRUST, "mode": "RO" }],
        },
    })
}

/// For Jenkins' Configuration as Code: the agents of the Mesos plugin 2 and of the docker plugin.
fn jenkins(registry: &str) -> String {
    format!(
        "# Into the template of agents that the Mesos plugin starts (mesosAgentSpecTemplates):\n\
         containerInfo:\n\
         \x20 type: \"DOCKER\"\n\
         \x20 dockerImage: \"{registry}/jenkins-agent:1\"\n\
         \x20 dockerPrivilegedMode: true\n\
         \x20 volumes:\n\
         \x20   - hostPath: \"{TRUST}\"\n\
         \x20     containerPath: \"{TRUST}\"\n\
         \x20     readOnly: true\n\
         # Into the template of agents that the docker plugin starts (clouds, docker, templates):\n\
         dockerTemplateBase:\n\
         \x20 image: \"{registry}/jenkins-agent:1\"\n\
         \x20 privileged: true\n\
         \x20 mounts:\n\
         \x20   - \"type=bind,source={TRUST},destination={TRUST},readonly\"\n"
    )
}

/// For the config.toml of a GitLab runner on an agent: `volumes` go to the job's container and to its services.
fn gitlab_runner(registry: &str) -> String {
    format!(
        "[[runners]]\n\
         executor = \"docker\"\n\
         environment = [\"DOCKER_HOST=tcp://docker:2375\", \"DOCKER_FLAGS=--host tcp://0.0.0.0:2375 --tls=false\"]\n\
         [runners.docker]\n\
         image = \"{registry}/team/build:1\"\n\
         privileged = true\n\
         volumes = [\"{}\", \"/cache\"]\n\
         [[runners.docker.services]]\n\
         name = \"{registry}/docker-in-docker:1\"\n\
         alias = \"docker\"\n",
        mount()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn report() -> Report {
        Report { names: vec!["192.168.0.1:443".into(), "registry.marathon.mesos:5000".into()], ..Report::default() }
    }

    #[test]
    fn images_begin_with_the_first_name_as_docker_spells_it() {
        assert_eq!(prefix(&report()).as_deref(), Some("192.168.0.1"));
        let other = Report { names: vec!["images.example.com:5000".into()], ..Report::default() };
        assert_eq!(prefix(&other).as_deref(), Some("images.example.com:5000"));
        assert_eq!(snippet(Snippet::Jenkins, &Report::default()), None);
    }

    #[test]
    fn apps_are_json_that_marathon_takes_and_the_trust_is_read_only() {
        let app: Value = crate::json::of_text(&snippet(Snippet::MarathonApp, &report()).unwrap()).unwrap();
        assert_eq!(app["container"]["docker"]["image"], "192.168.0.1/team/app:1");
        let app: Value = crate::json::of_text(&snippet(Snippet::DockerInDocker, &report()).unwrap()).unwrap();
        assert_eq!(app["container"]["volumes"][0], json!({ "containerPath": TRUST, "hostPath": TRUST, "mode": "RO" }));
    }

    /// The subset of TOML that the snippet is written in: tables, arrays of tables, and values that are JSON too.
    fn toml(text: &str) -> BTreeMap<(String, String), Value> {
        let (mut table, mut values) = (String::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('[') {
                table = name.trim_matches(['[', ']']).to_owned();
            } else {
                let (key, value) = line.split_once(" = ").unwrap();
                let value = crate::json::of_text(value).unwrap_or_else(|error| panic!("{line}: {error}"));
                assert!(values.insert((table.clone(), key.to_owned()), value).is_none(), "{line}");
            }
        }
        values
    }

    #[test]
    fn a_runners_services_get_the_mount_too() {
        let config = toml(&snippet(Snippet::GitlabRunner, &report()).unwrap());
        let value = |table: &str, key: &str| config[&(table.to_owned(), key.to_owned())].clone();
        assert_eq!(value("runners.docker", "volumes"), json!(["/etc/docker/certs.d:/etc/docker/certs.d:ro", "/cache"]));
        assert_eq!(value("runners.docker", "privileged"), true);
        assert_eq!(value("runners.docker.services", "name"), "192.168.0.1/docker-in-docker:1");
    }

    /// docker/README.md shows the snippets of a service with the usual names.
    #[test]
    fn the_documentation_shows_what_is_printed() {
        let text = include_str!("../../docker/README.md");
        let block = |language: &str| text.split_once(&format!("```{language}\n")).unwrap().1.split_once("```").unwrap().0;
        let json = |text: &str| crate::json::of_text::<Value>(text).unwrap();
        assert_eq!(json(block("json")), json(&snippet(Snippet::DockerInDocker, &report()).unwrap()));
        assert_eq!(block("toml"), snippet(Snippet::GitlabRunner, &report()).unwrap());
        let uncommented = |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(uncommented(block("yaml")), uncommented(&snippet(Snippet::Jenkins, &report()).unwrap()));
    }

    #[test]
    fn apps_that_log_in_say_with_what() {
        let app = |place| crate::json::of_text::<Value>(&snippet(place, &report()).unwrap()).unwrap();
        let text = include_str!("../../docs/authentication.md");
        let shown = text.split("```json\n").find(|block| block.contains("\"/app\"")).unwrap().split_once("```").unwrap().0;
        assert_eq!(crate::json::of_text::<Value>(shown).unwrap(), app(Snippet::MarathonAppLogin));
        let secret = app(Snippet::MarathonAppSecret);
        let name = secret["container"]["docker"]["pullConfig"]["secret"].as_str().unwrap();
        assert!(secret["container"]["type"] == "MESOS" && secret["secrets"][name]["source"].is_string(), "{secret}");
    }

    #[test]
    fn jenkins_gets_the_mount_in_both_plugins() {
        let text = snippet(Snippet::Jenkins, &report()).unwrap();
        assert!(text.contains("readOnly: true") && text.contains("destination=/etc/docker/certs.d,readonly"), "{text}");
        assert!(text.lines().all(|line| !line.contains('\t') && (line.len() - line.trim_start().len()).is_multiple_of(2)), "{text}");
    }
}
