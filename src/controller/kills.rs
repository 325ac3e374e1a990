//! A whole rotation, killed at every change of its store and failing at every call that makes one: whoever opens the state anew goes on,
//! and ends with one CA by which everybody verifies what is served.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::state::{OwnCa, Reason, Stage, State, StateError};
use super::store::Store;
use crate::certificates::{Certificate, OrderKey, RegistryKey};
use crate::host_paths::HostRoot;
use crate::interrupted::{Fault, asked, at_every_call, work};
use crate::names::HostPort;
use crate::protocol::{CertificateRequest, OrderKind, RegistryStatus, SignedOrder, TrustBundle, TrustedName};
use crate::secret::Secret;

const TEST: &str = "controller::kills::the_work_itself";
/// The work of a controller that is killed.
const ONCE: &str = "once";
const SERVICE: &str = "private-registry";
const NOW: i64 = 1_800_000_000;

fn names() -> Vec<HostPort> {
    vec!["192.168.0.1:443".parse().unwrap()]
}

fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// The controller's state, and the registry that it certifies.
struct Controller {
    state: State,
    key: RegistryKey,
    /// Where orders that have left the controller are written down.
    sent: std::path::PathBuf,
}

impl Controller {
    fn open(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("host")).unwrap();
        let store = Store::on_host(&HostRoot::at(dir.join("host")), SERVICE).unwrap();
        let state = now(State::open(store, Some(OwnCa { organization: "", names: &names(), days: 365 }), NOW)).unwrap();
        let key = match fs::read_to_string(dir.join("registry.key")) {
            Ok(pem) => RegistryKey::from_pem(&Secret::new(pem)).unwrap(),
            Err(_) => RegistryKey::generate().unwrap(),
        };
        fs::write(dir.join("registry.key"), key.to_pem().expose()).unwrap();
        Self { state, key, sent: dir.join("sent") }
    }

    fn status(&self) -> RegistryStatus {
        let csr = self.key.csr(SERVICE).unwrap();
        let mac = self.state.enrolment_key().mac(&csr);
        RegistryStatus { request: Some(CertificateRequest { csr, mac }), ..RegistryStatus::first(SERVICE, "", "") }
    }

    fn send(&self, order: &SignedOrder) {
        let line = serde_json::to_string(order).unwrap() + "\n";
        let file = OpenOptions::new().create(true).append(true).open(&self.sent);
        // One that is lost on the way has been sent none the less.
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }

    /// What is trusted and what is served are brought to what the state says.
    async fn tell(&mut self) -> Result<(), StateError> {
        let bundle = TrustBundle {
            names: names().into_iter().map(|name| TrustedName { name, inside: true }).collect(),
            certificates: self.state.trusted_certificates(),
            ..TrustBundle::default()
        };
        let trust = self.state.trust_order(bundle).await?;
        self.send(&trust);
        let status = self.status();
        let leaf = self.state.certify(&status, &names(), NOW, 90).await?;
        self.send(&leaf);
        Ok(())
    }

    /// What the loop does for a run of the job, step by step.
    async fn rotate(&mut self, run: &str) -> Result<(), StateError> {
        loop {
            self.tell().await?;
            match self.state.rotation().map(|rotation| rotation.stage) {
                None if self.state.rotated_for() == Some(run) => return Ok(()),
                None => self.state.begin_rotation(Reason::Order, &names(), Some(run), 365, NOW).await?,
                Some(Stage::Published) => self.state.switch(NOW).await?,
                Some(Stage::Switched) => self.state.retire_earlier().await?,
            }
        }
    }

    /// Whoever trusts what was last ordered accepts what was last signed.
    fn assert_all_verify(&self, point: &str) {
        let status = self.status();
        // After the switch and before the next look there is none of the new CA yet; the registry serves the earlier one's.
        let Some(order) = self.state.leaf(&status, &names()).filter(|leaf| NOW < leaf.renew_at).map(super::state::LeafRecord::carried_by)
        else {
            return;
        };
        let OrderKind::Certificate { chain } = self.opened(order).kind else { panic!("{point}: not a certificate") };
        let chain: Vec<CertificateDer<'static>> =
            Certificate::parse_bundle(&chain).unwrap().iter().map(|c| CertificateDer::from(c.der().to_vec())).collect();
        let mut roots = rustls::RootCertStore::empty();
        for pem in self.state.certificates_in_force() {
            roots.add(CertificateDer::from(Certificate::parse_pem(&pem).unwrap().der().to_vec())).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW as u64));
        let name = ServerName::try_from("192.168.0.1").unwrap();
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], at).unwrap_or_else(|error| panic!("{point}: {error}"));
    }

    fn opened(&self, order: &SignedOrder) -> crate::protocol::Order {
        OrderKey::from_base64(&self.state.order_key()).unwrap().open(order).unwrap()
    }

    /// No version has ever stood for two orders.
    fn assert_versions_are_unique(&self, point: &str) {
        let mut sent = BTreeMap::new();
        for line in fs::read_to_string(&self.sent).unwrap().lines() {
            // The last line of somebody who was killed.
            let Ok(order) = crate::json::of_text::<SignedOrder>(line) else { continue };
            let version = self.opened(&order).version;
            let before = sent.insert(version, order.payload.clone());
            assert!(before.is_none_or(|before| before == order.payload), "{point}: version {version} came twice");
        }
    }
}

#[test]
#[ignore = "the work that the other test interrupts"]
fn the_work_itself() {
    let (what, dir) = asked();
    let mut controller = Controller::open(&dir);
    work(|| {
        let once = |controller: &mut Controller, run: &str| now(controller.rotate(run)).err().map(|error| error.to_string());
        if what == ONCE {
            return once(&mut controller, "first").unwrap_or_default();
        }
        // What fails is tried again by the next pass, on what is remembered.
        let failed: Vec<String> = (0..3).map_while(|_| once(&mut controller, "first")).collect();
        // It lives on, and has forgotten it by the time of the next rotation.
        let begun = now(controller.state.begin_rotation(Reason::Order, &names(), Some("later"), 365, NOW));
        failed.into_iter().chain(begun.err().map(|error| error.to_string())).collect::<Vec<_>>().join("\n")
    });
}

#[test]
fn a_rotation_goes_on_after_every_kill_and_every_fault_of_its_store() {
    let prepare = |dir: &Path| {
        let mut controller = Controller::open(dir);
        now(controller.tell()).unwrap();
        dir.to_owned()
    };
    let check = |at: usize, dir: std::path::PathBuf, words: Option<String>| {
        let point = format!("at {at} ({words:?})");
        assert!(words.is_none_or(|words| words.is_empty() || words.contains("/controller/")), "{point}");
        let next = dir.join("host/var/lib/private-registry/private-registry/controller/next-ca.pem");
        let mut controller = Controller::open(&dir);
        controller.assert_all_verify(&point);
        now(controller.rotate("first")).unwrap_or_else(|error| panic!("{point}: {error}"));
        assert_eq!(controller.state.trusted_certificates(), [controller.state.ca().unwrap().pem()], "{point}");
        controller.assert_all_verify(&point);
        assert!(!next.exists(), "{point}: the key of the next CA lies where nobody needs it");

        // And the next rotation finds all in order, even by a controller that knows nothing but what is stored.
        let old = controller.state.ca().unwrap().pem();
        now(controller.state.begin_rotation(Reason::Order, &names(), Some("second"), 365, NOW)).unwrap();
        let mut controller = Controller::open(&dir);
        assert_eq!(controller.state.trusted_certificates().len(), 2, "{point}");
        assert_eq!(controller.state.ca().unwrap().pem(), old, "{point}");
        now(controller.rotate("second")).unwrap();
        assert_ne!(controller.state.ca().unwrap().pem(), old, "{point}");
        controller.assert_all_verify(&point);
        controller.assert_versions_are_unique(&point);
    };
    // A write that fails leaves on the disk what a kill before it leaves; what differs is that the controller lives on.
    let kills = at_every_call(TEST, ONCE, Fault::KillAfterChange, prepare, check);
    let faults = at_every_call(TEST, "until it succeeds", Fault::Fail(Errno::ENOSPC), prepare, check);
    println!("killed at {kills} changes, failed at {faults} calls");
    assert!(kills > 60 && faults > 60, "{kills} {faults}");
}
