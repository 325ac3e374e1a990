//! For every kind of input from outside a function that takes any bytes. It must neither panic nor hang, and its assertions say what must
//! hold whatever the bytes are. The fuzzers in `tests/fuzz` call them, and a test replays the seeds and whatever has failed once.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::LazyLock;

use serde_json::Value;

use crate::certificates::{Authority, Certificate, EnrolmentKey, OrderKey, OrderSigner, ProvidedKey, RegistryKey, requested_public_key};
use crate::dcos::{ca, marathon, mesos, metronome};
use crate::names::{Host, HostPort};
use crate::options::{Fault, Options};
use crate::protocol::SignedOrder;
use crate::secret::Secret;
use crate::users::{self, Users};
use crate::{controller, dcos, documents, node, operator, preload, registry, settings};

/// What takes bytes.
type Target = fn(&[u8]);

/// All of them by name.
pub const TARGETS: [(&str, Target); 17] = [
    ("options-json", options_json),
    ("options-environment", options_environment),
    ("names", names),
    ("images", images),
    ("certificate", certificate),
    ("request", request),
    ("keys", keys),
    ("order", order),
    ("mesos", |data| drop(mesos::read_anything(data))),
    ("marathon", |data| drop(marathon::read_anything(data))),
    ("metronome", |data| drop(metronome::read_anything(data))),
    ("services", services),
    ("registry", registry::read_anything),
    ("status", controller::fuzzed::status),
    ("page", controller::fuzzed::page),
    ("host", host),
    ("users", users),
];

/// Feeds a target.
///
/// # Panics
/// When something does not hold, or there is no such target.
pub fn run(target: &str, data: &[u8]) {
    let (_, feed) = TARGETS.iter().find(|(name, _)| *name == target).unwrap_or_else(|| panic!("there is no target {target}"));
    feed(data);
}

fn text(data: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(data)
}

fn options_json(data: &[u8]) {
    if let Ok(given) = serde_json::from_slice::<Value>(data) {
        judged(Options::from_json(&given).map_err(|faults| faults.0));
    }
}

fn options_environment(data: &[u8]) {
    let text = text(data);
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let vars: BTreeMap<String, String> = lines.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    judged(Options::from_env(&vars).map_err(|faults| faults.0));
    let _ = Options::for_removal(&vars, "/private-registry");
}

/// Every fault names the field and the remedy; what has none makes documents, and touches no more of a host than it says.
fn judged(options: Result<Options, Vec<Fault>>) {
    let options = match options {
        Ok(options) => options,
        Err(faults) => {
            assert!(!faults.is_empty());
            return assert!(faults.iter().all(|fault| !fault.field.is_empty() && !fault.reason.is_empty() && !fault.remedy.is_empty()));
        }
    };
    let home = Host::Ip([10, 0, 0, 1].into());
    for trusted in options.trusted_names(&home) {
        spelled(&trusted.name);
    }
    for path in [&options.registry.storage_path, &options.backup.path] {
        assert!(path.is_empty() || path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{path}");
    }
    let documents = documents::render(&options, &controller::fuzzed::facts()).expect("the templates take every value");
    // Only the command lines of this program are ever run.
    for (_, job) in &documents.jobs {
        let command = job["run"]["cmd"].as_str().unwrap_or_default();
        assert!(command.contains("exec ./private-registry "), "{command}");
    }
    let _ = (operator::grants(&options), options.endpoints(), options.warnings());
}

fn spelled(name: &HostPort) {
    for spelling in name.spellings().into_iter().chain(name.plain_spellings()) {
        let parts: Vec<Component> = Path::new(&spelling).components().collect();
        assert!(matches!(parts.as_slice(), [Component::Normal(part)] if *part == spelling.as_str()), "{spelling}");
    }
}

fn names(data: &[u8]) {
    let text = text(data);
    if let Ok(host) = text.parse::<Host>() {
        assert_eq!(host.to_string().parse::<Host>(), Ok(host.clone()));
        assert!(host.to_string().len() <= 253);
    }
    if let Ok(name) = text.parse::<HostPort>() {
        assert_eq!(name.to_string().parse::<HostPort>(), Ok(name.clone()));
        spelled(&name);
    }
    let _ = mesos::Ports::parse(&text).to_string();
    let _ = text.parse::<dcos::versions::Version>();
    let _ = users::check_name(&text);
}

/// What is copied in is named in paths of docker's API.
fn images(data: &[u8]) {
    let list: Vec<String> = text(data).split(',').map(|image| image.trim().to_string()).collect();
    let faults = preload::faults(&list);
    for image in &list {
        if let Ok(parsed) = preload::parse(image) {
            for name in [&parsed.from, &parsed.to] {
                assert!(!name.contains(['?', '&', '#', '%', ' ', '\\', '"']) && !name.chars().any(char::is_control), "{name}");
                assert!(name.split('/').all(|part| !part.is_empty() && part != "." && part != ".."), "{name}");
                assert!(name.rsplit_once(':').is_some(), "{name}");
            }
        } else {
            assert!(faults.iter().any(|fault| fault.value == *image));
        }
    }
}

/// A certificate or several, PEM or DER.
fn certificate(data: &[u8]) {
    let text = text(data);
    let found = Certificate::parse_bundle(&text).unwrap_or_default();
    let single = Certificate::parse_der(data.to_vec());
    for certificate in found.iter().chain(&single) {
        assert_eq!(Certificate::parse_pem(&certificate.pem()).as_ref(), Ok(certificate));
        let _ = (certificate.fingerprint(), certificate.subject().len(), certificate.subject_hash(), certificate.san_names().len());
    }
    let _ = Certificate::parse_pem(&text).map_err(|error| error.to_string());
}

static AUTHORITY: LazyLock<(Authority, Vec<HostPort>)> = LazyLock::new(|| {
    let names: Vec<HostPort> = ["192.168.0.1:443", "registry.example.com:5000"].iter().filter_map(|name| name.parse().ok()).collect();
    let authority = Authority::create("private-registry", 1, &names, 1_700_000_000, 36_500).expect("an authority can be made");
    (authority, names)
});

/// A request for a certificate: whatever it says, the certificate is for our names, and for nothing but a server.
fn request(data: &[u8]) {
    let text = text(data);
    let Ok(key) = requested_public_key(&text) else { return };
    let (authority, names) = &*AUTHORITY;
    let chain = authority.sign_leaf(&text, names, 1_800_000_000, 90).expect("the key is one that can be signed");
    let leaf = Certificate::parse_bundle(&chain).expect("what was signed can be read").swap_remove(0);
    assert_eq!((leaf.public_key_spki_der(), leaf.is_ca()), (key.as_slice(), false));
    assert_eq!(leaf.san_names(), ["192.168.0.1", "registry.example.com"]);
}

/// Private keys and what is sealed. No error shows anything of the text.
fn keys(data: &[u8]) {
    let secret = Secret::new(text(data).into_owned());
    let mut errors = Vec::new();
    errors.extend(ProvidedKey::from_pem(&secret).map(|key| key.to_pem()).err().map(|error| error.to_string()));
    errors.extend(RegistryKey::from_pem(&secret).map(|key| key.to_pem()).err().map(|error| error.to_string()));
    errors.extend(OrderSigner::from_pkcs8_pem(&secret).err().map(|error| error.to_string()));
    errors.extend(EnrolmentKey::from_base64(&secret).err().map(|error| error.to_string()));
    errors.extend(Authority::from_pem(&AUTHORITY.0.certificate().pem(), &secret).err().map(|error| error.to_string()));
    assert!(errors.iter().all(|error| error.len() < 200), "{errors:?}");
    let Some((sealed, mac)) = secret.expose().split_once('\n') else { return };
    let key = EnrolmentKey::from_base64(&Secret::new("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into())).expect("it has 32 bytes");
    assert!(key.open(sealed, "private-registry", 7).is_err(), "nobody has sealed this");
    assert!(!key.verify(sealed, mac) || key.mac(sealed) == mac.to_ascii_lowercase());
}

/// An order as it comes, and what was in it had it been rightly signed.
fn order(data: &[u8]) {
    if let Ok(signed) = serde_json::from_slice::<SignedOrder>(data) {
        let key = OrderKey::from_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=").expect("it has 32 bytes");
        assert!(key.open(&signed).is_err(), "nobody has signed this");
        let _ = crate::digest::order_digest(&signed);
    }
    node::fuzzed::order(data);
}

fn services(data: &[u8]) {
    dcos::read_anything(data);
    let _ = ca::read_anything(data);
    let _ = settings::is_image(&text(data));
}

/// What lies on a host.
fn host(data: &[u8]) {
    node::fuzzed::manifest(data);
    node::fuzzed::daemon_json(data);
}

/// htpasswd, and a change of it.
fn users(data: &[u8]) {
    let text = text(data);
    let (mut known, problems) = Users::parse(&text);
    let (again, none) = Users::parse(known.text().expose());
    assert!(again == known && none.is_empty(), "what is written can be read");
    assert!(known.names().all(|name| !name.contains([':', '\n', ' ']) && name != users::INTERNAL));
    assert!(!problems.iter().any(|problem| problem.contains("$2y$")), "{problems:?}");
    if let Ok(change) = serde_json::from_slice::<users::Change>(data) {
        assert!(!format!("{change:?}").contains("$2y$"));
        let _ = known.apply(&change);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use super::*;

    const ROOT: &str = env!("CARGO_MANIFEST_DIR");
    /// No input takes longer, with debug assertions and on a busy machine.
    const LONGEST: Duration = Duration::from_secs(5);

    /// What a target starts from: recordings of the real servers and texts of our own.
    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let recorded: &[&str] = match target {
            "options-json" => &["cosmos"],
            "mesos" => &["mesos-1.11.0", "mesos"],
            "marathon" => &["marathon", "marathon-1.11-mesos-1.11", "marathon-dcos22"],
            "metronome" => &["metronome"],
            "services" => &["cosmos", "service-account"],
            "keys" => &["service-account"],
            _ => &[],
        };
        let mut seeds: Vec<Vec<u8>> = recorded.iter().flat_map(|dir| recordings(dir)).collect();
        seeds.extend(own(target).into_iter().map(String::into_bytes));
        seeds
    }

    /// Bodies of the answers in a directory of recordings.
    fn recordings(dir: &str) -> Vec<Vec<u8>> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(Path::new(ROOT).join("tests/fixtures").join(dir)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.is_file() && !path.to_string_lossy().ends_with(".req.http"));
        files.sort();
        let body = |path: PathBuf| {
            let content = fs::read(path).unwrap();
            let head = content.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |at| at + 4);
            content[if content.starts_with(b"HTTP/") { head } else { 0 }..].to_vec()
        };
        let mut bodies: Vec<Vec<u8>> = files.into_iter().map(body).filter(|body| body.len() < 100_000).collect();
        bodies.sort();
        bodies.dedup();
        bodies
    }

    fn own(target: &str) -> Vec<String> {
        let ca = || AUTHORITY.0.certificate().pem();
        let csr = || RegistryKey::generate().unwrap().csr("private-registry").unwrap();
        let status = || crate::plan::tests::node("10.0.0.1", "d", crate::protocol::NodePhase::Trusted, 3).1;
        let bundle = || {
            let name = "192.168.0.1:443".parse().unwrap();
            crate::protocol::TrustBundle {
                names: vec![crate::protocol::TrustedName { name, inside: true }],
                certificates: vec![ca()],
                stores: crate::protocol::Stores { containerd: true, podman: true, system: true },
                ..Default::default()
            }
        };
        let of_order = || {
            let kind = crate::protocol::OrderKind::Trust(bundle());
            crate::protocol::Order { service: "private-registry".into(), version: 7, kind }
        };
        match target {
            "options-json" => vec![
                r#"{"service":{"name":"infra/registry","cpus":0.1},"names":{"vip":"10.1.2.3:443","extra":"a.example.com:5000"}}"#.into(),
                r#"{"registry":{"storage_path":"/data","replicas":2},"storage":{"kind":"s3","bucket":"b"},"auth":{"kind":"htpasswd"}}"#.into(),
                r#"{"security":{"mode":"provided","certificate":"/etc/x/c.pem","key":"/etc/x/k.pem"},"preload":{"images":"alpine:3"}}"#.into(),
                r#"{"other_registries":{"list":"a.example.com:5000=sha256:00"},"exposure":{"allowed_sources":"10.0.0.0/8"}}"#.into(),
            ],
            "options-environment" => vec![crate::options::default_variables().iter().map(|(name, value)| format!("{name}={value}\n")).collect()],
            "names" => ["192.168.0.1:443", "Registry.Example.com:5000", "a-b.c", "[1-5, 7-9]", "1.11.24", "[::1]:1", "../x:1"].map(String::from).into(),
            "images" => vec!["docker.io/library/alpine:3.20,a.example.com:5000/b/c:d".into(), "alpine:latest@sha256:00".into()],
            "certificate" => vec![ca(), ca() + &ca()],
            "request" => vec![csr()],
            "keys" => vec![RegistryKey::generate().unwrap().to_pem().expose().clone(), format!("{}\n{}", csr(), "0".repeat(64))],
            "order" => {
                let signed = OrderSigner::generate().unwrap().sign(&of_order());
                vec![serde_json::to_string(&signed).unwrap(), serde_json::to_string(&of_order()).unwrap()]
            }
            "mesos" => vec!["12\n{\"type\":\"AGENT_ADDED\"}".into()],
            "services" => vec![
                r#"{"success":true,"result":{"certificate":"pem"},"errors":[]}"#.into(),
                r#"{"token":"t"}"#.into(),
                r#"{"value":"v"}"#.into(),
            ],
            "registry" => vec![
                r#"{"repositories":["a/b","c"]}"#.into(),
                r#"{"name":"a","tags":["1","2"]}"#.into(),
                r#"{"config":{"size":3},"layers":[{"size":4}],"manifests":[{"digest":"sha256:b","platform":{"architecture":"amd64","os":"linux"}}]}"#.into(),
            ],
            "status" => {
                let mut registry = crate::protocol::RegistryStatus::first("private-registry", "t", "10.0.0.1");
                registry.phase = crate::protocol::RegistryPhase::Serving;
                registry.leaf_fingerprint = Some("leaf".into());
                let image = r#"{"images":[{"repository":"a","tag":"1","digest":"sha256:0","media_type":"m","amd64":null,"size":1}],"next":null}"#;
                vec![format!("{}\n{}\n{image}", serde_json::to_string(&status()).unwrap(), serde_json::to_string(&registry).unwrap())]
            }
            "page" => vec!["<script>alert(1)</script>\n\"onload='x'\n&amp;\n{{x}}\n\u{202e}".into(), "a\n\nb".into()],
            "host" => vec![
                r#"{"order":null,"files":{"/etc/docker/certs.d/a/ca.crt":{"digests":["00"],"written":true}}}"#.into(),
                r#"{"services":["a"],"created_dirs":["/etc/x"],"sysctl":{"found":"0","claimed_by":["a"],"drop_in":true}}"#.into(),
                "{\n  \"debug\": true,\n  \"insecure-registries\": [\"a:1\", \"b:2\"]\n}\n".into(),
                "{\"a\": \"\\\"]}\", \"insecure-registries\" : [ ] }".into(),
                "/proc/self/fd/../../etc/passwd\n/etc/passwd\nrelative".into(),
            ],
            "users" => vec![
                format!("alice:$2y$10${}\n# note\nbob\nbob:{{SHA}}x\n", "a".repeat(53)),
                r#"{"do":"add","name":"alice","hash":"x","replace":true}"#.into(),
            ],
            _ => Vec::new(),
        }
    }

    /// Inputs that failed once.
    fn regressions(target: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(ROOT).join("tests/fuzz/regressions").join(target);
        fs::read_dir(dir).into_iter().flatten().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn every_target_takes_its_seeds_what_failed_once_and_damaged_forms_of_them() {
        for (target, feed) in TARGETS {
            let mut inputs = seeds(target);
            assert!(inputs.iter().any(|seed| !seed.is_empty()) || target == "marathon", "{target} has no seeds");
            inputs.extend(regressions(target));
            inputs.push(Vec::new());
            for input in inputs {
                let began = Instant::now();
                feed(&input);
                // Cut off, and with a byte changed, in a few places each.
                for step in 1..8 {
                    let at = input.len() * step / 8;
                    feed(&input[..at]);
                    let mut changed = input.clone();
                    if let Some(byte) = changed.get_mut(at) {
                        *byte ^= 1 << (step % 7);
                        feed(&changed);
                    }
                }
                assert!(began.elapsed() < LONGEST, "{target} took {:?} for {:?}", began.elapsed(), String::from_utf8_lossy(&input));
            }
        }
    }

    #[test]
    fn there_is_a_fuzzer_for_every_target_and_no_other() {
        let listed = |dir: &str| {
            // Where nothing has failed yet, there is no directory.
            let entries = fs::read_dir(Path::new(ROOT).join("tests/fuzz").join(dir)).into_iter().flatten();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        let mut targets: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_string()).collect();
        targets.sort();
        assert_eq!(listed("fuzz_targets"), targets);
        assert!(listed("regressions").iter().all(|name| targets.contains(name)));
        let manifest = fs::read_to_string(Path::new(ROOT).join("tests/fuzz/Cargo.toml")).unwrap();
        assert!(targets.iter().all(|name| manifest.contains(&format!("name = \"{name}\""))), "{manifest}");
    }

    /// `ci/fuzz` runs it to have something to start from.
    #[test]
    #[ignore = "writes the seeds into the directory that SEEDS names"]
    fn the_seeds_are_written() {
        let dir = PathBuf::from(std::env::var_os("SEEDS").expect("SEEDS names a directory"));
        for (target, _) in TARGETS {
            let of_target = dir.join(target);
            fs::create_dir_all(&of_target).unwrap();
            for seed in seeds(target).into_iter().chain(regressions(target)) {
                fs::write(of_target.join(crate::digest::sha256_hex(&seed)), &seed).unwrap();
            }
        }
    }
}
