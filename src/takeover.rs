//! Taking over a registry that somebody has made by hand, as in the tutorial for DC/OS 1.9: which one it is, and whether it can be done.
//!
//! Pure, as the planner. The app is left running until the agents know the new CA ([`awaited`]); then our definition replaces it, on the
//! same agent and over the same directory of images.

use serde_json::Value;

use crate::dcos::marathon::App;
use crate::documents;
use crate::host_paths::HostRoot;
use crate::names::{Host, HostPort};
use crate::options::{Fault, Options};
use crate::plan::{self, Observed, Wanted};

/// Where the registry stores its images unless it is told otherwise.
const STORAGE: &str = "/var/lib/registry";
/// The variable that tells it otherwise.
const STORAGE_VARIABLE: &str = "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY";
/// Where the registry's image has its configuration file: up to 2.8, and since 3.0.
const CONFIGURATION: [&str; 2] = ["/etc/docker/registry", "/etc/distribution"];

/// A registry made by hand that is about to be taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takeover {
    /// The agent that has its images.
    pub host: Host,
    /// Where they lie there.
    pub images: String,
    /// For how many seconds agents have been waited for.
    pub waited: i64,
}

impl Takeover {
    /// The one that these options ask for. Only after [`faults`] has found nothing.
    pub fn of(options: &Options, observed: &Observed, waited: i64) -> Option<Self> {
        let app = hand_made(options, observed).filter(|_| options.takeover.adopt)?;
        Some(Self { host: host_of(app).or(options.registry.host.clone())?, images: images_of(&app.spec).ok()?, waited })
    }
}

/// What has the registry's name and was not made by this service.
fn hand_made<'a>(options: &Options, observed: &'a Observed) -> Option<&'a App> {
    observed.registry.as_ref().filter(|app| options.registry.enabled && !documents::is_made_by(&app.spec, options))
}

/// The agent on which an app is: where it runs, else the one that its constraints name.
pub fn host_of(app: &App) -> Option<Host> {
    let runs = app.tasks.first().map(|task| task.host.clone());
    let constraints = app.spec["constraints"].as_array().into_iter().flatten();
    let mut named = constraints.filter(|c| c[0] == "hostname" && ["LIKE", "CLUSTER", "IS"].iter().any(|operator| c[1] == *operator));
    runs.or_else(|| named.find_map(|c| plan::matched_host(c[2].as_str()?)))
}

/// Which agents the takeover waits for: those that answer and have not yet written the new trust, and those that do not answer.
pub struct Awaited {
    /// For as long as it takes: they would lose the registry.
    pub answering: Vec<Host>,
    /// Until the deadline.
    pub silent: Vec<Host>,
}

/// See [`Awaited`].
pub fn awaited(wanted: &Wanted, observed: &Observed) -> Awaited {
    let digest = plan::order_digest(&wanted.trust);
    let mut awaited = Awaited { answering: Vec::new(), silent: Vec::new() };
    for agent in &observed.agents {
        match observed.nodes.get(&agent.host) {
            Some(status) if status.order_digest == digest && status.in_place => {}
            Some(_) => awaited.answering.push(agent.host.clone()),
            None => awaited.silent.push(agent.host.clone()),
        }
    }
    awaited
}

/// Why the section `takeover`, or what it is for, cannot work in this cluster.
pub fn faults(options: &Options, observed: &Observed) -> Vec<Fault> {
    let mut faults = Vec::new();
    match hand_made(options, observed) {
        Some(app) if options.takeover.adopt => cannot_adopt(options, observed, app, &mut faults),
        Some(app) => faults.push(name_is_taken(options, app)),
        None => {}
    }
    if options.takeover.clean_agents {
        cannot_clean(options, observed, &mut faults);
    }
    faults
}

fn fault(field: &str, value: impl ToString, reason: String, remedy: String) -> Fault {
    Fault { field: field.into(), value: value.to_string(), reason, remedy }
}

fn name_is_taken(options: &Options, app: &App) -> Fault {
    let id = documents::registry_id(options);
    let reason = format!("there is something called {id} already, which this service has not made");
    match images_of(&app.spec) {
        Ok(images) if is_registry(&app.spec) => {
            let place = host_of(app).map(|host| format!(" on {host}")).unwrap_or_default();
            let reason = format!("{reason}: a registry made by hand that has its images in {images}{place}");
            let remedy = "Set takeover.adopt to true to take it over together with these images, or choose another name.".into();
            fault("registry.name", id, reason, remedy)
        }
        _ => fault("registry.name", id, reason, "Choose another name, or remove what has this one if nobody needs it.".into()),
    }
}

/// Whether an app runs the registry's image, from wherever it is pulled.
fn is_registry(app: &Value) -> bool {
    let image = app["container"]["docker"]["image"].as_str().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    name.split([':', '@']).next() == Some("registry")
}

/// The directory of the agent that an app stores its images in, or why there is none.
fn images_of(app: &Value) -> Result<String, String> {
    let container = &app["container"];
    if container["type"] != "DOCKER" {
        return Err("it is no docker app".into());
    }
    if let Some(driver) = app["env"]["REGISTRY_STORAGE"].as_str().filter(|driver| *driver != "filesystem") {
        return Err(format!("it stores its images with {driver}"));
    }
    let volumes = || container["volumes"].as_array().into_iter().flatten();
    let paths = |volume: &Value, key: &str| volume[key].as_str().map(|path| path.trim_end_matches('/').to_string());
    let inside = |path: &str, dir: &str| path == dir || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
    let configured =
        volumes().filter_map(|volume| paths(volume, "containerPath")).find(|path| CONFIGURATION.iter().any(|dir| inside(path, dir)));
    if let Some(path) = configured {
        return Err(format!("it has a configuration file in {path}, so where its images are cannot be seen in its definition"));
    }
    let storage = app["env"][STORAGE_VARIABLE].as_str().unwrap_or(STORAGE).trim_end_matches('/');
    let mounts = volumes().filter_map(|volume| Some((paths(volume, "containerPath")?, paths(volume, "hostPath")?)));
    let mount = mounts.filter(|(dir, host)| inside(storage, dir) && host.starts_with('/')).max_by_key(|(dir, _)| dir.len());
    let (dir, host) = mount.ok_or_else(|| format!("no directory of its agent is mounted at {storage}"))?;
    Ok(host + &storage[dir.len()..])
}

fn cannot_adopt(options: &Options, observed: &Observed, app: &App, faults: &mut Vec<Fault>) {
    const ADOPT: &str = "takeover.adopt";
    let (id, spec) = (documents::registry_id(options), &app.spec);
    let images = match images_of(spec) {
        Ok(images) => images,
        Err(why) => {
            let reason = format!("{id} cannot be taken over with its images: {why}");
            let remedy = "Choose another registry.name, and copy the images to the new registry.".into();
            return faults.push(fault(ADOPT, true, reason, remedy));
        }
    };
    if spec["instances"].as_u64().is_some_and(|instances| instances > 1) {
        let reason = format!("{id} has {} instances, and the images of one only can be gone on with", spec["instances"]);
        faults.push(fault(ADOPT, true, reason, "Scale it to the one that has the images.".into()));
    }
    let passwords = spec["env"].as_object().into_iter().flatten().map(|(name, _)| name).find(|name| name.starts_with("REGISTRY_AUTH"));
    if let Some(variable) = passwords {
        let reason = format!("{id} asks who may use it ({variable}); the new registry would serve everybody in the cluster");
        faults.push(fault(ADOPT, true, reason, "Take that out of the app first if it is meant to be so.".into()));
    }
    let storage = options.registry.storage_path.trim_end_matches('/');
    if storage != images {
        let reason = format!("{id} has its images in {images}");
        faults.push(fault("registry.storage_path", &options.registry.storage_path, reason, format!("Set it to {images}.")));
    }
    cannot_host(options, observed, app, &images, faults);
    let known: Vec<(&str, String, String)> = claims(spec).into_iter().filter_map(|claim| claim.lacking(options)).collect();
    for (field, given, old) in known {
        let reason = format!("clients know {id} by {old}, which the new registry would not have");
        faults.push(fault(field, given, reason, format!("Set it to {old}, or take {old} out of the app if nobody uses it.")));
    }
}

fn cannot_host(options: &Options, observed: &Observed, app: &App, images: &str, faults: &mut Vec<Fault>) {
    const FIELD: &str = "registry.host";
    let id = documents::registry_id(options);
    match (&options.registry.host, host_of(app)) {
        (Some(given), Some(found)) if *given != found => {
            let reason = format!("{id} has its images on {found}");
            faults.push(fault(FIELD, given, reason, format!("Set it to {found}, or leave it empty.")));
        }
        (None, None) => {
            let reason =
                format!("{id} does not run, and no constraint of it names one agent, so it cannot be seen which one has its images");
            faults.push(fault(FIELD, "", reason, format!("Start {id}, or name the agent that has {images}.")));
        }
        // Those that are named in the options are looked at with the other options.
        (None, Some(found)) => match observed.agents.iter().find(|agent| agent.host == found) {
            Some(agent) if !agent.public => {}
            Some(_) => {
                let reason = format!("{id} has its images on {found}, which is a public agent");
                faults.push(fault(FIELD, "", reason, "Move app and images to a private agent first.".into()));
            }
            None => {
                let reason = format!("{id} has its images on {found}, which Mesos does not have now");
                faults.push(fault(FIELD, "", reason, "Bring that agent back, or move app and images to another one.".into()));
            }
        },
        _ => {}
    }
}

/// One way in which clients find the old registry.
enum Claim {
    Vip(String),
    HostPort(u64),
    ServicePort(u64),
}

/// What a definition says of ports: Marathon up to 1.4 has them in `container.docker`, later ones in `container`.
fn claims(app: &Value) -> Vec<Claim> {
    let container = &app["container"];
    let of = |mappings: &Value| mappings.as_array().cloned().unwrap_or_default();
    let mappings = [of(&container["portMappings"]), of(&container["docker"]["portMappings"])].concat();
    let is_balanced = app["labels"]["HAPROXY_GROUP"].is_string();
    let given = |value: &Value| value.as_u64().filter(|port| *port > 0);
    let mut claims = Vec::new();
    for mapping in &mappings {
        let labels = mapping["labels"].as_object().into_iter().flatten();
        let vips = labels.filter(|(key, _)| key.to_ascii_uppercase().starts_with("VIP"));
        claims.extend(vips.filter_map(|(_, vip)| Some(Claim::Vip(vip.as_str()?.trim_start_matches('/').to_string()))));
        claims.extend(given(&mapping["hostPort"]).map(Claim::HostPort));
        claims.extend(given(&mapping["servicePort"]).filter(|_| is_balanced).map(Claim::ServicePort));
    }
    claims
}

impl Claim {
    /// The option that would have to say so, what it says, and what it should, unless that is the same.
    fn lacking(self, options: &Options) -> Option<(&'static str, String, String)> {
        let (field, given, old) = match self {
            Self::Vip(vip) if matches!(vip.parse(), Ok(HostPort { host: Host::Ip(_), .. })) => {
                ("names.vip", options.vip.as_ref().map(ToString::to_string).unwrap_or_default(), vip)
            }
            Self::Vip(vip) => {
                let given = options.named_vip.as_ref().map(|(name, port)| format!("{name}:{port}")).unwrap_or_default();
                ("names.named_vip", given, vip)
            }
            Self::HostPort(port) => ("exposure.host_port", options.exposure.host_port.to_string(), port.to_string()),
            Self::ServicePort(_) if !options.exposure.marathon_lb => return None,
            Self::ServicePort(port) => ("exposure.service_port", options.exposure.service_port.to_string(), port.to_string()),
        };
        (given != old).then_some((field, given, old))
    }
}

/// What is still in use must not go.
fn cannot_clean(options: &Options, observed: &Observed, faults: &mut Vec<Fault>) {
    const CLEAN: &str = "takeover.clean_agents";
    let root = HostRoot::default();
    let certs = root.tutorial_certs();
    let dir = certs.parent().unwrap_or(&certs);
    let own = documents::registry_id(options);
    for other in observed.claims.iter().filter(|claim| claim.id != own) {
        if let Some(mount) = other.mounts.iter().find(|path| std::path::Path::new(path).starts_with(dir)) {
            let reason = format!("the app {} uses {mount}", other.id);
            faults.push(fault(CLEAN, true, reason, "Remove that app first, or give it a key and a certificate of its own.".into()));
        }
    }
    let security = &options.security;
    for (field, path) in [("security.certificate", &security.certificate), ("security.key", &security.key)] {
        if std::path::Path::new(path).starts_with(dir) {
            let reason = format!("{field} is {path}, which would go");
            faults.push(fault(CLEAN, true, reason, "Use another key and certificate: this key has been on every agent.".into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dcos::marathon::{AppClaims, AppTask};
    use crate::dcos::mesos::{Agent, Resources};

    /// The tutorial's app, as Marathon up to 1.4 stores it.
    fn tutorial() -> Value {
        json!({
            "id": "/registry", "instances": 1,
            "constraints": [["hostname", "LIKE", "192.168.1.80"]],
            "container": {
                "type": "DOCKER",
                "docker": {
                    "image": "registry",
                    "network": "BRIDGE",
                    "portMappings": [
                        { "containerPort": 5000, "hostPort": 0, "servicePort": 5000, "labels": { "VIP_0": "192.168.0.1:443" } },
                    ],
                },
                "volumes": [
                    { "containerPath": "/certs/", "hostPath": "/etc/privateregistry/certs/", "mode": "RO" },
                    { "containerPath": "/var/lib/registry", "hostPath": "/data/docker-registry", "mode": "RW" },
                ],
            },
            "labels": { "HAPROXY_GROUP": "external" },
            "env": { "REGISTRY_HTTP_TLS_CERTIFICATE": "/certs/domain.crt", "REGISTRY_HTTP_TLS_KEY": "/certs/domain.key" },
        })
    }

    /// The same as later ones do.
    fn tutorial_of_today() -> Value {
        let mut app = tutorial();
        let mappings = app["container"]["docker"]["portMappings"].take();
        app["container"]["portMappings"] = mappings;
        app["networks"] = json!([{ "mode": "container/bridge" }]);
        app
    }

    fn observed(spec: Value, runs_on: Option<&str>) -> Observed {
        let task = |host: &str| AppTask { id: "t".into(), host: host.parse().unwrap(), ports: vec![31000], healthy: true };
        let agent = |host: &str, public| Agent {
            id: host.into(),
            host: host.parse().unwrap(),
            public,
            active: true,
            recovered: false,
            free: Resources { cpus: 1.0, mem: 1000.0, disk: 1000.0 },
            ports: crate::dcos::mesos::Ports::default(),
        };
        Observed {
            agents: vec![agent("192.168.1.80", false), agent("192.168.1.81", false), agent("192.168.1.50", true)],
            registry: Some(App { spec, tasks: runs_on.map(task).into_iter().collect() }),
            ..Observed::default()
        }
    }

    fn options(mut given: Value) -> Options {
        given["takeover"]["adopt"] = json!(true);
        Options::from_json(&given).unwrap()
    }

    /// What stands in the way: fields, and all texts.
    fn refused(given: Value, spec: Value, runs_on: Option<&str>) -> (Vec<String>, String) {
        let faults = faults(&options(given), &observed(spec, runs_on));
        (faults.iter().map(|fault| fault.field.clone()).collect(), faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn the_tutorials_registry_is_taken_over_where_it_is() {
        for spec in [tutorial(), tutorial_of_today()] {
            let (options, observed) = (options(json!({})), observed(spec, Some("192.168.1.80")));
            assert_eq!(faults(&options, &observed), []);
            let takeover = Takeover { host: "192.168.1.80".parse().unwrap(), images: "/data/docker-registry".into(), waited: 7 };
            assert_eq!(Takeover::of(&options, &observed, 7), Some(takeover));
            assert_eq!(plan::registry_host(&observed, &options).to_string(), "192.168.1.80");
        }
    }

    #[test]
    fn where_it_runs_counts_more_than_what_its_constraints_allow() {
        let mut spec = tutorial();
        spec["constraints"] = json!([["hostname", "LIKE", "192.168.1.(80|81)"]]);
        let on = |runs_on| plan::registry_host(&observed(spec.clone(), runs_on), &options(json!({}))).to_string();
        assert_eq!(on(Some("192.168.1.81")), "192.168.1.81");
        let (fields, text) = refused(json!({}), spec.clone(), None);
        assert_eq!(fields, ["registry.host"]);
        assert!(text.ends_with("Start /registry, or name the agent that has /data/docker-registry."), "{text}");
        assert_eq!(refused(json!({ "registry": { "host": "192.168.1.81" } }), spec.clone(), None).0, [""; 0]);
        for (operator, found) in [("CLUSTER", "192.168.1.81"), ("IS", "192.168.1.81"), ("UNLIKE", "0.0.0.0")] {
            spec["constraints"] = json!([["rack", "LIKE", "1"], ["hostname", operator, "192.168.1.81"]]);
            let host = plan::registry_host(&observed(spec.clone(), None), &options(json!({}))).to_string();
            assert_eq!(host, found, "{operator}");
        }
    }

    #[test]
    fn without_adopt_the_remedy_names_it_and_says_where_the_images_are() {
        let refused = |spec| faults(&Options::from_json(&json!({})).unwrap(), &observed(spec, Some("192.168.1.80")))[0].to_string();
        assert_eq!(
            refused(tutorial()),
            "registry.name = /registry: there is something called /registry already, which this service has not made: a registry made by hand \
             that has its images in /data/docker-registry on 192.168.1.80. Set takeover.adopt to true to take it over together with these \
             images, or choose another name."
        );
        for image in ["registry:2.8.3", "mirror.example.com:5000/library/registry@sha256:00"] {
            let mut spec = tutorial();
            spec["container"]["docker"]["image"] = json!(image);
            assert!(refused(spec).contains("takeover.adopt"), "{image}");
        }
        let mut spec = tutorial();
        spec["container"]["docker"]["image"] = json!("nginx");
        assert!(!refused(spec).contains("takeover.adopt"));
        assert_eq!(Takeover::of(&Options::from_json(&json!({})).unwrap(), &observed(tutorial(), None), 0), None);
    }

    #[test]
    fn what_would_lose_images_or_clients_is_refused_with_field_and_remedy() {
        let on = Some("192.168.1.80");
        let with = |pointer: &str, value: Value| {
            let mut spec = tutorial();
            match spec.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => spec["env"][pointer] = value,
            }
            spec
        };
        let mappings = "/container/docker/portMappings/0";
        for (given, spec, runs_on, field, words) in [
            (
                json!({ "registry": { "storage_path": "/data/other" } }),
                tutorial(),
                on,
                "registry.storage_path",
                "Set it to /data/docker-registry.",
            ),
            (
                json!({ "registry": { "host": "192.168.1.81" } }),
                tutorial(),
                on,
                "registry.host",
                "Set it to 192.168.1.80, or leave it empty.",
            ),
            (json!({}), tutorial(), Some("192.168.1.50"), "registry.host", "public agent"),
            (json!({}), tutorial(), Some("192.168.1.99"), "registry.host", "Bring that agent back"),
            (json!({ "names": { "vip": "192.168.0.2:443" } }), tutorial(), on, "names.vip", "Set it to 192.168.0.1:443"),
            (json!({}), with(&format!("{mappings}/labels/VIP_0"), json!("/images:5000")), on, "names.named_vip", "Set it to images:5000"),
            (json!({}), with(&format!("{mappings}/hostPort"), json!(5500)), on, "exposure.host_port", "Set it to 5500"),
            (json!({}), with(&format!("{mappings}/servicePort"), json!(10000)), on, "exposure.service_port", "Set it to 10000"),
            (json!({}), with("/instances", json!(2)), on, "takeover.adopt", "Scale it to the one"),
            (json!({}), with("/container/type", json!("MESOS")), on, "takeover.adopt", "no docker app"),
            (
                json!({}),
                with("/container/volumes", json!([])),
                on,
                "takeover.adopt",
                "no directory of its agent is mounted at /var/lib/registry",
            ),
            (json!({}), with("/container/volumes/1/hostPath", json!("images")), on, "takeover.adopt", "no directory"),
            (
                json!({}),
                with("/container/volumes/0/containerPath", json!("/etc/docker/registry/")),
                on,
                "takeover.adopt",
                "configuration file",
            ),
            (json!({}), with("REGISTRY_STORAGE", json!("s3")), on, "takeover.adopt", "it stores its images with s3"),
            (json!({}), with("REGISTRY_AUTH_HTPASSWD_PATH", json!("/auth")), on, "takeover.adopt", "would serve everybody"),
        ] {
            let (fields, text) = refused(given.clone(), spec, runs_on);
            assert_eq!(fields, [field], "{given}: {text}");
            assert!(text.contains(words), "{text}");
        }
        let without_lb = json!({ "exposure": { "marathon_lb": false } });
        assert_eq!(refused(without_lb, with(&format!("{mappings}/servicePort"), json!(10000)), on).0, [""; 0]);
        assert_eq!(refused(json!({}), with(&format!("{mappings}/labels/VIP_0"), json!("/registry:5000")), on).0, [""; 0]);
    }

    #[test]
    fn images_may_lie_below_a_mounted_directory() {
        let mut spec = tutorial();
        spec["env"]["REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY"] = json!("/mnt/store/images/");
        spec["container"]["volumes"] = json!([
            { "containerPath": "/mnt", "hostPath": "/other" },
            { "containerPath": "/mnt/store/", "hostPath": "/data/store/" },
            { "containerPath": "/mnt/sto", "hostPath": "/wrong" },
        ]);
        assert_eq!(images_of(&spec), Ok("/data/store/images".into()));
    }

    #[test]
    fn what_others_still_use_is_not_cleaned() {
        let clean = |given: Value, mounts: &[&str]| {
            let mut given = given;
            given["takeover"]["clean_agents"] = json!(true);
            let mounts: Vec<String> = mounts.iter().map(ToString::to_string).collect();
            let claim = |id: &str| AppClaims { id: id.into(), mounts: mounts.clone(), ..AppClaims::default() };
            let observed = Observed { claims: vec![claim("/registry"), claim("/web")], ..Observed::default() };
            faults(&Options::from_json(&given).unwrap(), &observed).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(clean(json!({}), &["/etc/ssl", "/etc/privateregistry-2"]), [""; 0]);
        let used = clean(json!({}), &["/etc/privateregistry/certs/"]);
        assert_eq!(used.len(), 1);
        assert!(used[0].starts_with("takeover.clean_agents = true: the app /web uses /etc/privateregistry/certs/."), "{used:?}");
        let key = "/etc/privateregistry/certs/domain.key";
        let given = json!({ "security": { "mode": "provided", "certificate": "/etc/tls/tls.crt", "key": key } });
        assert!(clean(given, &[])[0].contains("security.key is /etc/privateregistry/certs/domain.key, which would go"));
    }
}
