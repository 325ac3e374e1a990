//! From a definition to tasks on an agent.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::instances::{occupied, safe};
use super::{Goal, Instance, Kind, volumes};
use crate::server::Host;
use crate::server::clock::now;
use crate::server::scheduler::{self, Constraint, Demand, NewTask, Placement, Reject};
use crate::server::state::{Framework, Resources, State};
use crate::task::{Artifact, Command, Docker, HealthCheck, HealthKind, PortMapping, SecretPlace, SecretUse, TaskSpec, Volume};
use crate::ucr::Image;

/// Starts what is scheduled, as far as there is room, a token, and no delay.
pub(crate) fn launch_scheduled(state: &mut State, host: &dyn Host) {
    let scheduled: Vec<Instance> =
        state.marathon.instances.values().filter(|i| i.goal == Goal::Running && i.tasks.is_empty()).cloned().collect();
    for instance in scheduled {
        let Some(spec) = state.marathon.specs.get(&instance.spec) else { continue };
        if state.marathon.tokens == 0 || spec.backoff.until > now() || spec.refused.is_some() {
            continue;
        }
        if let Some(why) = cannot_run(&instance) {
            let id = instance.spec.clone();
            state.violate("marathon", &id, format!("the lab cannot run this: {why}"));
            if let Some(spec) = state.marathon.specs.get_mut(&id) {
                spec.refused = Some(why);
            }
            continue;
        }
        if let Ok(placement) = scheduler::place(state, &demand(state, &instance), &occupied(state, &instance)) {
            launch(state, host, &instance, &placement);
        }
    }
}

/// Why no agent does for a scheduled instance, agent by agent.
pub(crate) fn rejects(state: &State, instance: &Instance) -> Vec<Reject> {
    scheduler::place(state, &demand(state, instance), &occupied(state, instance)).err().unwrap_or_default()
}

fn launch(state: &mut State, host: &dyn Host, scheduled: &Instance, placement: &Placement) {
    let Some(agent_id) = state.agents.get(&placement.agent).map(|agent| agent.id.clone()) else { return };
    let mut instance = scheduled.clone();
    instance.incarnation += 1;
    let own = volumes::disk(&instance.definition);
    let mut needs = resources(&instance.definition, placement.ports.clone());
    needs.disk += own;
    volumes::reserve(&mut instance, placement, &agent_id, needs);
    if let Err(error) = volumes::make(&instance, host) {
        tracing::error!(%error, instance = instance.id, "persistent volumes not made");
        return;
    }
    let tasks = match instance.kind {
        Kind::App => vec![app_task(state, &instance, placement)],
        Kind::Pod => pod_tasks(state, &instance, placement),
    };
    instance.tasks = tasks.iter().map(|task| task.spec.id.clone()).collect();
    instance.agent = Some((placement.agent, agent_id.clone()));
    instance.condition = "Provisioned".to_owned();
    instance.since = now();
    instance.token_returned = false;
    state.marathon.tokens -= 1;
    let event = json!({
        "instanceId": instance.id, "condition": "Provisioned", "runSpecId": instance.spec, "agentId": agent_id,
        "host": placement.agent, "runSpecVersion": instance.version(),
    });
    state.event("instance_changed_event", event);
    scheduler::launch(state, host, tasks);
    state.marathon.instances.insert(instance.id.clone(), instance);
    state.touch();
}

/// What real Marathon would run and the lab does not.
fn cannot_run(instance: &Instance) -> Option<String> {
    let definition = &instance.definition;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    match instance.kind {
        Kind::App => {
            let container = &definition["container"];
            let is_docker = container["type"] == "DOCKER";
            let is_known = |v: &Value| if is_docker { !v["secret"].is_string() } else { v["secret"].is_string() };
            if !list(&container["volumes"]).iter().all(is_known) {
                return Some(if is_docker { "a secret that is a file, in docker" } else { "a volume that is no secret" }.to_owned());
            }
            if list(&definition["networks"]).iter().any(|n| n["mode"] == "container") {
                return Some("a container network".to_owned());
            }
            let checks = list(&definition["healthChecks"]);
            if checks.len() > 1 || checks.iter().any(|c| health_check(c, &[]).is_none()) {
                return Some("health checks made by Marathon itself: only one MESOS_TCP, MESOS_HTTP(S) or COMMAND".to_owned());
            }
            None
        }
        Kind::Pod => {
            let containers = list(&definition["containers"]);
            if containers.iter().any(|c| c["image"].is_object()) {
                return Some("an image in a pod".to_owned());
            }
            if list(&definition["volumes"]).iter().any(|v| !v["secret"].is_string()) {
                return Some("a volume in a pod that is no secret".to_owned());
            }
            if !list(&definition["networks"]).iter().all(|n| n["mode"] == "host") {
                return Some("a pod with a network of its own".to_owned());
            }
            None
        }
    }
}

fn demand(state: &State, instance: &Instance) -> Demand {
    let definition = &instance.definition;
    let amount = |of: &Value, name: &str| of[name].as_f64().unwrap_or(0.0);
    let (roles, constraints, resources, ports) = match instance.kind {
        Kind::App => (
            &definition["acceptedResourceRoles"],
            definition["constraints"].as_array().into_iter().flatten().map(app_constraint).collect(),
            vec![definition],
            app_ports(definition),
        ),
        Kind::Pod => {
            let placement = &definition["scheduling"]["placement"];
            let containers = definition["containers"].as_array().into_iter().flatten();
            let mut resources: Vec<&Value> = containers.clone().map(|c| &c["resources"]).collect();
            resources.push(&definition["executorResources"]);
            let ports = containers.flat_map(endpoints).map(|endpoint| port(&endpoint["hostPort"])).collect();
            let constraints = placement["constraints"].as_array().into_iter().flatten().map(pod_constraint).collect();
            (&placement["acceptedResourceRoles"], constraints, resources, ports)
        }
    };
    let roles: Vec<String> = roles.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    Demand {
        cpus: resources.iter().map(|of| amount(of, "cpus")).sum(),
        mem: resources.iter().map(|of| amount(of, "mem")).sum(),
        disk: resources.iter().map(|of| amount(of, "disk")).sum::<f64>() + volumes::disk(definition),
        gpus: resources.iter().map(|of| amount(of, "gpus")).sum(),
        unrestricted: definition["labels"]["GPU_SCHEDULING_BEHAVIOR"] == "unrestricted",
        // Host ports are a part of what is reserved.
        ports: instance.reservation.as_ref().map_or(ports, |reservation| reservation.resources.ports.clone()),
        // Without a word about roles: unreserved resources only.
        roles: if roles.is_empty() { vec!["*".to_owned()] } else { roles },
        constraints,
        reservation: instance.reservation.as_ref().map(|reservation| (instance.id.clone(), reservation.agent_id.clone())),
        pack: instance.kind == Kind::Pod && state.pose.pods_forget_unique_when_scaled(),
    }
}

fn app_constraint(constraint: &Value) -> Constraint {
    let part = |index: usize| constraint[index].as_str().map(str::to_owned);
    Constraint { field: part(0).unwrap_or_default(), operator: part(1).unwrap_or_default(), value: part(2) }
}

fn pod_constraint(constraint: &Value) -> Constraint {
    let part = |name: &str| constraint[name].as_str().map(str::to_owned);
    Constraint { field: part("fieldName").unwrap_or_default(), operator: part("operator").unwrap_or_default(), value: part("value") }
}

fn endpoints(container: &Value) -> impl Iterator<Item = &Value> {
    container["endpoints"].as_array().into_iter().flatten()
}

fn port(value: &Value) -> u16 {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(0)
}

/// Port mappings or definitions of an app, whichever its network has.
pub(crate) fn port_list(definition: &Value) -> Vec<&Value> {
    let mappings = definition["container"]["portMappings"].as_array();
    mappings.or(definition["portDefinitions"].as_array()).into_iter().flatten().collect()
}

fn app_ports(definition: &Value) -> Vec<u16> {
    if definition["container"]["portMappings"].is_array() {
        return port_list(definition).iter().map(|mapping| port(&mapping["hostPort"])).collect();
    }
    // A definition's port is a service port; it is the host's only on request.
    let fixed = definition["requirePorts"] == true;
    port_list(definition).iter().map(|definition| if fixed { port(&definition["port"]) } else { 0 }).collect()
}

fn resources(of: &Value, ports: Vec<u16>) -> Resources {
    let amount = |name: &str| of[name].as_f64().unwrap_or(0.0);
    Resources { cpus: amount("cpus"), mem: amount("mem"), disk: amount("disk"), gpus: amount("gpus"), ports }
}

fn labels(definition: &Value) -> BTreeMap<String, String> {
    strings(&definition["labels"])
}

fn strings(object: &Value) -> BTreeMap<String, String> {
    object.as_object().into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Adds a definition's variables, which win over those that are there, and what it takes from secrets.
fn take_environment(definition: &Value, of: &Value, env: &mut BTreeMap<String, String>, secrets: &mut Vec<SecretUse>) {
    for (name, value) in of.as_object().into_iter().flatten() {
        env.remove(name);
        secrets.retain(|secret| secret.place != SecretPlace::Env(name.clone()));
        match value.as_str() {
            Some(text) => drop(env.insert(name.clone(), text.to_owned())),
            None => secrets.push(secret(definition, &value["secret"], SecretPlace::Env(name.clone()))),
        }
    }
}

/// A declared secret; that it is declared was checked when the definition came.
fn secret(definition: &Value, name: &Value, place: SecretPlace) -> SecretUse {
    let source = definition["secrets"][name.as_str().unwrap_or_default()]["source"].as_str().unwrap_or_default();
    SecretUse { source: source.to_owned(), place }
}

/// Variables that tasks of apps and pods have in common.
fn common_env(instance: &Instance, task: &str, executor: &str, agent: Ipv4Addr, of: &Value) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("HOST".to_owned(), agent.to_string()),
        ("MARATHON_APP_ID".to_owned(), instance.spec.clone()),
        ("MARATHON_APP_VERSION".to_owned(), instance.version().to_owned()),
        ("MESOS_TASK_ID".to_owned(), task.to_owned()),
        ("MESOS_EXECUTOR_ID".to_owned(), executor.to_owned()),
        ("MESOS_ALLOCATION_ROLE".to_owned(), instance.definition["role"].as_str().unwrap_or("*").to_owned()),
        ("MARATHON_APP_ENFORCE_GROUP_ROLE".to_owned(), "false".to_owned()),
    ]);
    let kind = if instance.kind == Kind::App { "APP" } else { "CONTAINER" };
    for name in ["cpus", "mem", "disk", "gpus"] {
        let amount = of[name].as_f64().unwrap_or(0.0);
        env.insert(format!("MARATHON_{kind}_RESOURCE_{}", name.to_uppercase()), format!("{amount:?}"));
    }
    let labels = labels(&instance.definition);
    env.insert("MARATHON_APP_LABELS".to_owned(), labels.keys().map(|key| variable(key)).collect::<Vec<_>>().join(" "));
    env.extend(labels.into_iter().map(|(key, value)| (format!("MARATHON_APP_LABEL_{}", variable(&key)), value)));
    env
}

/// Letters in upper case, anything else than letters and digits as `_`.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn app_task(state: &State, instance: &Instance, placement: &Placement) -> NewTask {
    let definition = &instance.definition;
    let id = format!("{}._app.{}", instance.id, instance.incarnation);
    let mut env = common_env(instance, &id, &id, placement.agent, definition);
    let container = &definition["container"];
    if let Some(image) = container["docker"]["image"].as_str() {
        env.insert("MARATHON_APP_DOCKER_IMAGE".to_owned(), image.to_owned());
    }
    env.extend(port_env(definition, &placement.ports));
    let mut secrets = Vec::new();
    take_environment(definition, &definition["env"], &mut env, &mut secrets);
    for volume in container["volumes"].as_array().into_iter().flatten().filter(|volume| volume["secret"].is_string()) {
        let path = volume["containerPath"].as_str().unwrap_or_default().to_owned();
        secrets.push(secret(definition, &volume["secret"], SecretPlace::File(path)));
    }
    let pull_config = &container["docker"]["pullConfig"]["secret"];
    if pull_config.is_string() {
        secrets.push(secret(definition, pull_config, SecretPlace::PullConfig));
    }
    let mut segments: Vec<&str> = instance.spec.trim_start_matches('/').split('/').collect();
    segments.reverse();
    let command = match (&definition["cmd"], &definition["args"]) {
        (Value::String(line), _) => Some(Command::Shell(line.clone())),
        (_, Value::Array(args)) => Some(Command::Argv(args.iter().filter_map(Value::as_str).map(str::to_owned).collect())),
        _ => None,
    };
    let grace = definition["taskKillGracePeriodSeconds"].as_f64().unwrap_or(3.0);
    NewTask {
        name: segments.join("."),
        framework: Framework::Marathon,
        owner: instance.id.clone(),
        container: None,
        executor_id: id.clone(),
        resources: Resources {
            disk: definition["disk"].as_f64().unwrap_or(0.0) + volumes::disk(definition),
            ..resources(definition, placement.ports.clone())
        },
        executor_resources: None,
        placement: placement.clone(),
        labels: labels(definition),
        spec: TaskSpec {
            id,
            agent: placement.agent.to_string(),
            user: definition["user"].as_str().unwrap_or(scheduler::default_user(state)).to_owned(),
            command,
            env,
            artifacts: artifacts(&definition["fetch"]),
            docker: (container["type"] == "DOCKER").then(|| docker(instance, &placement.ports)),
            image: (container["type"] == "MESOS")
                .then(|| container["docker"]["image"].as_str())
                .flatten()
                .map(|reference| Image { reference: reference.to_owned(), schema_2: state.pose.pulls_schema_2() }),
            health: definition["healthChecks"].get(0).and_then(|check| health_check(check, &placement.ports)),
            grace_seconds: grace as u64,
        },
        reader: instance.spec.clone(),
        secrets,
    }
}

/// `PORT0`, `PORTS`, `PORT_<containerPort or port>`, `PORT_<NAME>`: all of them host ports.
fn port_env(definition: &Value, ports: &[u16]) -> Vec<(String, String)> {
    let mut env = Vec::new();
    for (index, (declared, port)) in port_list(definition).into_iter().zip(ports).enumerate() {
        let number = declared["containerPort"].as_u64().or_else(|| declared["port"].as_u64()).filter(|number| *number > 0);
        env.push((format!("PORT{index}"), port.to_string()));
        env.push((format!("PORT_{}", number.unwrap_or(u64::from(*port))), port.to_string()));
        if let Some(name) = declared["name"].as_str() {
            env.push((format!("PORT_{}", variable(name)), port.to_string()));
        }
    }
    if let Some(first) = ports.first() {
        env.push(("PORT".to_owned(), first.to_string()));
        env.push(("PORTS".to_owned(), ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")));
    }
    env
}

fn docker(instance: &Instance, ports: &[u16]) -> Docker {
    let definition = &instance.definition;
    let container = &definition["container"];
    let docker = &container["docker"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mappings = container["portMappings"].as_array().into_iter().flatten().zip(ports);
    let volumes = container["volumes"].as_array().into_iter().flatten();
    let externals = volumes.clone().filter(|volume| volume["external"].is_object());
    let driver = externals.clone().map(|volume| ("volume-driver".to_owned(), text(&volume["external"]["options"]["dvdi/driver"]))).next();
    let parameters = docker["parameters"].as_array().into_iter().flatten();
    Docker {
        image: text(&docker["image"]),
        force_pull: docker["forcePullImage"] == true,
        privileged: docker["privileged"] == true,
        bridge: definition["networks"][0]["mode"] == "container/bridge",
        port_mappings: mappings
            .map(|(mapping, host)| PortMapping {
                container_port: match port(&mapping["containerPort"]) {
                    0 => *host,
                    given => given,
                },
                host_port: *host,
                protocol: text(&mapping["protocol"]),
            })
            .collect(),
        volumes: volumes
            .filter(|volume| volume["persistent"].is_null())
            .map(|volume| Volume {
                container_path: text(&volume["containerPath"]),
                // The name of a volume stands where the path of a directory would.
                host_path: text(if volume["external"].is_object() { &volume["external"]["name"] } else { &volume["hostPath"] }),
                read_only: volume["mode"] == "RO",
            })
            .chain(instance.mounts())
            .collect(),
        // Mesos hands docker one driver for all volumes of a container, and none of the driver's options.
        parameters: parameters.map(|parameter| (text(&parameter["key"]), text(&parameter["value"]))).chain(driver).collect(),
    }
}

fn artifacts(list: &Value) -> Vec<Artifact> {
    let flag = |value: &Value, default| value.as_bool().unwrap_or(default);
    let list = list.as_array().into_iter().flatten();
    list.map(|artifact| Artifact {
        uri: artifact["uri"].as_str().unwrap_or_default().to_owned(),
        extract: flag(&artifact["extract"], true),
        executable: flag(&artifact["executable"], false),
        dest: artifact["destPath"].as_str().map(str::to_owned),
    })
    .collect()
}

/// None for a check that Mesos does not make.
fn health_check(check: &Value, ports: &[u16]) -> Option<HealthCheck> {
    let port = || port_of_check(check, ports);
    let path = || check["path"].as_str().unwrap_or("/").to_owned();
    let kind = match check["protocol"].as_str()? {
        "MESOS_TCP" => HealthKind::Tcp { port: port() },
        "MESOS_HTTP" => HealthKind::Http { port: port(), path: path(), tls: false },
        "MESOS_HTTPS" => HealthKind::Http { port: port(), path: path(), tls: true },
        "COMMAND" => HealthKind::Command(check["command"]["value"].as_str()?.to_owned()),
        _ => return None,
    };
    Some(timed(check, kind))
}

fn port_of_check(check: &Value, ports: &[u16]) -> u16 {
    let index = check["portIndex"].as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(0);
    match port(&check["port"]) {
        0 => ports.get(index).copied().unwrap_or(0),
        given => given,
    }
}

fn timed(check: &Value, kind: HealthKind) -> HealthCheck {
    let seconds = |name: &str, default: f64| check[name].as_f64().unwrap_or(default);
    HealthCheck {
        kind,
        delay_seconds: seconds("delaySeconds", 15.0),
        grace_seconds: seconds("gracePeriodSeconds", 300.0),
        interval_seconds: seconds("intervalSeconds", 60.0),
        timeout_seconds: seconds("timeoutSeconds", 20.0),
        max_consecutive_failures: check["maxConsecutiveFailures"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(3),
    }
}

fn pod_tasks(state: &State, instance: &Instance, placement: &Placement) -> Vec<NewTask> {
    let definition = &instance.definition;
    let containers: Vec<&Value> = definition["containers"].as_array().into_iter().flatten().collect();
    let executor_id = format!("instance-{}.{}", safe(&instance.spec), instance.uuid());
    // Every container sees every endpoint of the pod.
    let mut endpoint_env = BTreeMap::new();
    let mut ports = placement.ports.iter().copied();
    let mut ports_of: Vec<Vec<(String, u16)>> = Vec::new();
    for container in &containers {
        let mut own = Vec::new();
        for (endpoint, port) in endpoints(container).zip(&mut ports) {
            let name = endpoint["name"].as_str().unwrap_or_default();
            endpoint_env.insert(format!("ENDPOINT_{}", variable(name)), port.to_string());
            endpoint_env.insert(format!("EP_HOST_{}", variable(name)), port.to_string());
            own.push((name.to_owned(), port));
        }
        ports_of.push(own);
    }
    let sigkill = state.options.sigkill_pods;
    containers
        .iter()
        .zip(ports_of)
        .enumerate()
        .map(|(index, (container, ports))| {
            let name = container["name"].as_str().unwrap_or_default();
            let id = format!("{}.{name}.{}", instance.id, instance.incarnation);
            let mut env = common_env(instance, &id, &executor_id, placement.agent, &container["resources"]);
            env.insert("MARATHON_CONTAINER_ID".to_owned(), name.to_owned());
            env.insert("MESOS_CONTAINER_IP".to_owned(), placement.agent.to_string());
            env.extend(endpoint_env.clone());
            let mut secrets = Vec::new();
            take_environment(definition, &definition["environment"], &mut env, &mut secrets);
            take_environment(definition, &container["environment"], &mut env, &mut secrets);
            secrets.extend(secret_files(definition, container));
            let user = container["user"].as_str().or(definition["user"].as_str()).unwrap_or(scheduler::default_user(state)).to_owned();
            let grace = container["lifecycle"]["killGracePeriodSeconds"].as_f64().unwrap_or(3.0);
            NewTask {
                name: name.to_owned(),
                framework: Framework::Marathon,
                owner: instance.id.clone(),
                container: Some(name.to_owned()),
                executor_id: executor_id.clone(),
                resources: resources(&container["resources"], ports.iter().map(|(_, port)| *port).collect()),
                executor_resources: (index == 0).then(|| resources(&definition["executorResources"], Vec::new())),
                placement: placement.clone(),
                labels: labels(definition),
                spec: TaskSpec {
                    id,
                    agent: placement.agent.to_string(),
                    user,
                    command: pod_command(&container["exec"]["command"]),
                    env,
                    artifacts: artifacts(&container["artifacts"]),
                    docker: None,
                    image: None,
                    health: pod_check(&container["healthCheck"], &ports),
                    grace_seconds: if sigkill { 0 } else { grace as u64 },
                },
                reader: instance.spec.clone(),
                secrets,
            }
        })
        .collect()
}

/// What a container of a pod mounts of the pod's volumes, which are secrets all.
fn secret_files(definition: &Value, container: &Value) -> Vec<SecretUse> {
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let volumes = list(&definition["volumes"]);
    let file = |mount: &Value| {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"])?;
        let path = mount["mountPath"].as_str().unwrap_or_default().to_owned();
        Some(secret(definition, &volume["secret"], SecretPlace::File(path)))
    };
    list(&container["volumeMounts"]).iter().filter_map(file).collect()
}

fn pod_command(command: &Value) -> Option<Command> {
    match (&command["shell"], &command["argv"]) {
        (Value::String(line), _) => Some(Command::Shell(line.clone())),
        (_, Value::Array(argv)) => Some(Command::Argv(argv.iter().filter_map(Value::as_str).map(str::to_owned).collect())),
        _ => None,
    }
}

fn pod_check(check: &Value, ports: &[(String, u16)]) -> Option<HealthCheck> {
    let port = |of: &Value| ports.iter().find(|(name, _)| of["endpoint"] == *name).map_or(0, |(_, port)| *port);
    let kind = if check["http"].is_object() {
        let http = &check["http"];
        let path = http["path"].as_str().unwrap_or("/").to_owned();
        HealthKind::Http { port: port(http), path, tls: http["scheme"] == "HTTPS" }
    } else if check["tcp"].is_object() {
        HealthKind::Tcp { port: port(&check["tcp"]) }
    } else {
        HealthKind::Command(check["exec"]["command"]["shell"].as_str()?.to_owned())
    };
    Some(timed(check, kind))
}
