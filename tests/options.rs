//! What the controller reads is what the user wrote: through Cosmos' merging and rendering and Marathon's environment.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use crate::support::{ADMIN, Cluster};
use private_registry::options::{CONFIG_SCHEMA, Options, variable};
use serde_json::{Value, json};

/// The environment that Cosmos would give the controller for these options.
fn rendered(cluster: &Cluster, options: &Value) -> BTreeMap<String, String> {
    let body = json!({ "packageName": "private-registry", "options": options });
    let media = |kind: &str| format!("application/vnd.dcos.package.render-{kind}+json;charset=utf-8;version=v1");
    let output = cluster
        .lab
        .exec(
            "master",
            &[
                "curl",
                "--silent",
                "--header",
                &format!("Content-Type: {}", media("request")),
                "--header",
                &format!("Accept: {}", media("response")),
                "--data-binary",
                &body.to_string(),
                &format!("{ADMIN}/package/render"),
            ],
        )
        .unwrap();
    let answer: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{options}: {}", output.stdout));
    let env = answer["marathonJson"]["env"].as_object().unwrap_or_else(|| panic!("{options}: {answer}"));
    env.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn leaves() -> Vec<(String, String, Value)> {
    let schema: Value = serde_json::from_str(CONFIG_SCHEMA).unwrap();
    let mut leaves = Vec::new();
    for (section, sub) in schema["properties"].as_object().unwrap() {
        for (key, leaf) in sub["properties"].as_object().unwrap() {
            leaves.push((section.clone(), key.clone(), leaf.clone()));
        }
    }
    leaves
}

/// Values that a user could give an option, the nasty ones among them.
fn values(leaf: &Value) -> Vec<Value> {
    if let Some(words) = leaf["enum"].as_array() {
        return words.clone();
    }
    match leaf["type"].as_str().unwrap() {
        "boolean" => vec![json!(true), json!(false)],
        "integer" => [&leaf["minimum"], &leaf["maximum"], &leaf["default"]].into_iter().filter(|v| v.is_i64()).cloned().collect(),
        "number" => vec![leaf["minimum"].clone(), json!(0.25), json!(3)],
        _ => {
            let pattern = leaf["pattern"].as_str().map(|pattern| regex_lite::Regex::new(pattern).unwrap());
            let long = "x".repeat(3000);
            let nasty = [
                "",
                "plain",
                "192.168.9.9:8443",
                "a-b:1",
                "http://h:1",
                "/data",
                "/with \"quotes\"",
                "/back\\slash",
                "/new\nline",
                "/tab\tulator",
                "/{{service.name}}",
                "/{{{x}}}",
                "/}}\"},{",
                "/<b>&amp;'",
                "/\u{e9}\u{4e2d}\u{1f512}",
                "/%s $HOME `id` $(id)",
                long.as_str(),
            ];
            let fits = |text: &&str| {
                pattern.as_ref().is_none_or(|pattern| pattern.is_match(text))
                    && leaf["maxLength"].as_u64().is_none_or(|most| text.len() as u64 <= most)
            };
            nasty.into_iter().filter(fits).map(Value::from).collect()
        }
    }
}

#[test]
fn what_the_controller_reads_is_what_the_user_wrote() {
    let cluster = Cluster::start(0, 0);
    let mut tried = 0;
    for (section, key, leaf) in leaves() {
        for value in values(&leaf) {
            let options = json!({ &section: { &key: value } });
            let env = rendered(&cluster, &options);
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let read = &env[&variable(&section, &key)];
            let same_number = read.parse::<f64>().ok().zip(value.as_f64()).is_some_and(|(read, given)| read == given);
            assert!(*read == text || same_number, "{section}.{key}: {text:?} was read as {read:?}");
            // And the controller makes of it what `check` makes of the file, fault by fault.
            match (Options::from_env(&env), Options::from_json(&options)) {
                (Ok(read), Ok(given)) => assert_eq!(format!("{read:?}"), format!("{given:?}"), "{options}"),
                (Err(read), Err(given)) => assert_eq!(read, given, "{options}"),
                (read, given) => panic!("{options}: {read:?}, {given:?}"),
            }
            tried += 1;
        }
    }
    assert!(tried > 80, "only {tried} values");
    cluster.assert_servers_answered_as_the_real_ones();
}
