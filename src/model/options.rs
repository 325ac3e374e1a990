//! Sets of options that a service may be given one after another, and their documents.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use serde_json::{Value, json};

use super::trust::Foreign;
use crate::digest::sha256_hex;
use crate::distribution::Published;
use crate::documents::{self, Documents, Facts};
use crate::names::Host;
use crate::options::Options;
use crate::protocol::env;
use crate::shards::Layout;

/// What does not change in the life of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Base {
    pub(super) registries: Registries,
    /// Whether there is a service account, and so a secret store.
    pub(super) secrets: bool,
    /// Whether the agents are divided among several node pods.
    pub(super) divided: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Registries {
    /// One, on one host.
    One,
    /// Two on one store.
    Two,
    /// One that takes over from a registry made by hand.
    Adopting,
}

impl Base {
    pub(super) fn keeps_state_on_host(self) -> bool {
        !self.secrets
    }
}

/// One set of options.
pub(super) struct Variant {
    pub(super) options: Options,
    /// Whether changing to or from it changes whose certificate is served, so that nobody is promised to verify meanwhile.
    pub(super) own_ca: bool,
}

/// Number of sets for each base.
pub(super) const VARIANTS: usize = 12;

const PLAIN: usize = 0;

fn given(base: Base, variant: usize, foreign: &Foreign) -> Value {
    let mut given = match base.registries {
        Registries::One => json!({}),
        Registries::Two => json!({ "registry": { "replicas": 2 }, "storage": { "kind": "s3", "bucket": "images" } }),
        Registries::Adopting => json!({ "takeover": { "adopt": true } }),
    };
    if base.secrets {
        given["service"] = json!({ "service_account": "registry", "service_account_secret": "registry-account" });
    }
    given["trust"] = json!({ "ca_days": 365, "leaf_days": 90, "shards": if base.divided { "10" } else { "auto" } });
    match variant {
        1 => given["names"] = json!({ "extra": "registry.example.com:443" }),
        2 => given["names"] = json!({ "extra": "registry.example.com:443, other.example.com:5000" }),
        3 => given["registry"]["cpus"] = json!(1.5),
        4 => given["garbage_collection"] = json!({ "schedule": "0 3 * * *" }),
        5 => given["auth"] = json!({ "kind": "htpasswd" }),
        6 => given["registry"]["enabled"] = json!(false),
        7 => {
            let file = |name: &str| if base.secrets { name.to_string() } else { format!("/etc/operator/{name}") };
            given["security"] = json!({
                "mode": "provided", "certificate": file("tls.crt"), "key": file("tls.key"), "ca": foreign.ca,
            });
        }
        8 => given["security"] = json!({ "mode": "insecure" }),
        9 => given["service"]["log_level"] = json!("debug"),
        10 => given["trust"]["conntrack_be_liberal"] = json!(false),
        // Mesos has no such agent: refused, and nothing changes.
        11 => given["service"]["host"] = json!("10.9.9.9"),
        _ => {}
    }
    given
}

/// What documents differ by beside keys: base, number, host of the registry, host of the controller, how agents are divided.
type Rendered = (Base, usize, Host, Host, Layout);

thread_local! {
    static KNOWN: RefCell<HashMap<(Base, usize), Rc<Variant>>> = RefCell::default();
    static RENDERED: RefCell<HashMap<Rendered, Rc<Documents>>> = RefCell::default();
}

/// A set of options.
pub(super) fn variant(base: Base, number: usize, foreign: &Foreign) -> Rc<Variant> {
    let make = || {
        let options = Options::from_json(&given(base, number, foreign)).unwrap_or_else(|faults| panic!("{base:?} {number}: {faults}"));
        Rc::new(Variant { options, own_ca: !matches!(number, 6..=8) })
    };
    KNOWN.with_borrow_mut(|known| known.entry((base, number)).or_insert_with(make).clone())
}

/// Whether the controller refuses these options.
pub(super) fn is_refused(number: usize) -> bool {
    number == 11
}

/// What a healed cluster may be left with instead.
pub(super) const USABLE: usize = PLAIN;

/// What the documents need of the controller.
pub(super) struct Given<'a> {
    pub(super) registry_host: &'a Host,
    pub(super) home: &'a Host,
    pub(super) order_key: String,
    pub(super) first_order: Published,
    pub(super) enrolment_key: Published,
    pub(super) enrolment_id: String,
    pub(super) layout: Layout,
}

/// The documents as the controller renders them. Rendering is slow, so keys are put into what was rendered once.
pub(super) fn documents(base: Base, number: usize, options: &Options, given: &Given<'_>) -> Documents {
    let key = (base, number, given.registry_host.clone(), given.home.clone(), given.layout);
    let render = || {
        let facts = Facts {
            registry_host: given.registry_host.clone(),
            home: given.home.clone(),
            binary_sha256: "00".into(),
            registry_image: "registry:2.8.3".into(),
            upstream_certificates: String::new(),
            order_key: String::new(),
            first_order: given.first_order.clone(),
            layout: given.layout,
            package_uri: "http://universe.example.com/private-registry".into(),
            options: BTreeMap::new(),
            jobs_have_secrets: true,
            enrolment_key: given.enrolment_key.clone(),
            enrolment_id: String::new(),
        };
        Rc::new(documents::render(options, &facts).unwrap())
    };
    let mut documents = RENDERED.with_borrow_mut(|rendered| Documents::clone(rendered.entry(key).or_insert_with(render)));
    put(
        &mut documents.pod,
        "environment",
        &[(env::ORDER_KEY, given.order_key.clone().into()), (env::FIRST_ORDER, given.first_order.variable.clone())],
    );
    let enrolment_key = given.enrolment_key.variable.clone();
    put(&mut documents.registry, "env", &[(env::ORDER_KEY, given.order_key.clone().into()), (env::ENROLMENT_KEY, enrolment_key)]);
    put(&mut documents.registry, "labels", &[(documents::ENROLMENT_LABEL, given.enrolment_id.clone().into())]);
    documents
}

fn put(document: &mut Value, section: &str, variables: &[(&str, Value)]) {
    // The label is what tells one document from another.
    let mut digest = document["labels"]["PRIVATE_REGISTRY_DOCUMENT"].as_str().unwrap_or_default().to_string();
    for (name, value) in variables {
        document[section][*name] = value.clone();
        digest = sha256_hex(format!("{digest}{value}").as_bytes());
    }
    document["labels"]["PRIVATE_REGISTRY_DOCUMENT"] = digest.into();
}
