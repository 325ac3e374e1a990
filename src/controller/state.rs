//! What the controller must not forget, in its [`Store`].
//!
//! Keys are entries of their own; the record holds nothing secret. Every change is kept before an order that depends on it leaves
//! the controller, so a kill at any point never makes a version number come twice.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::certificates::{
    Authority, AuthorityError, Certificate, CertificateError, EnrolmentKey, EnrolmentKeyError, OrderSigner, SigningKeyError,
};
use crate::dcos::ApiError;
use crate::names::{Host, HostPort};
use crate::node::files::FileError;
use crate::protocol::{Order, OrderKind, RegistryStatus, SignedOrder, TrustBundle};
use crate::secret::Secret;

use super::store::{Entry, Store};

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StateError {
    #[error("the controller's state cannot be kept: {0}")]
    File(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0} is damaged: {1}; move it away and restart the controller, which then makes new keys")]
    Damaged(String, String),
    #[error("the controller's state cannot be kept in the secret store")]
    Secrets(#[from] ApiError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    SigningKey(#[from] SigningKeyError),
    #[error(transparent)]
    EnrolmentKey(#[from] EnrolmentKeyError),
    #[error("the registry's certificate request is not from our registry: its authentication code is wrong")]
    ForeignRequest,
}

impl From<FileError> for StateError {
    fn from(error: FileError) -> Self {
        Self::File(Box::new(error))
    }
}

/// The part that is no secret.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Record {
    /// Version of the last order of any kind.
    version: u64,
    /// Generation of the CA.
    generation: u32,
    /// Names that the CA is constrained to.
    ca_names: Vec<HostPort>,
    /// Earlier CA certificates that are still to be trusted.
    earlier: Vec<String>,
    /// The trust order in force.
    trust: Option<(TrustBundle, SignedOrder)>,
    /// The registry's certificate in force.
    leaf: Option<LeafRecord>,
    /// Agents that a node has run on: they have files of ours.
    #[serde(default)]
    covered: BTreeSet<Host>,
}

/// The certificate that was signed last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeafRecord {
    /// SHA-256 (hex) of its DER.
    pub fingerprint: String,
    /// Unix time of its end.
    pub not_after: i64,
    /// Unix time from which it is to be renewed: two thirds of its life.
    pub renew_at: i64,
    /// SHA-256 (hex) of the public key (SPKI) it was signed for.
    key: String,
    /// Names in it.
    names: Vec<HostPort>,
    /// Fingerprint of the CA that signed it.
    ca: String,
    /// The order that carries it.
    order: SignedOrder,
}

/// The controller's keys and record.
pub struct State {
    store: Store,
    signer: OrderSigner,
    enrolment: EnrolmentKey,
    authority: Authority,
    record: Record,
}

impl State {
    /// Reads the state, making what is missing: a lost key is replaced, an existing one never.
    ///
    /// # Errors
    /// When the directory cannot be written, or a file in it is damaged.
    pub async fn open(store: Store, names: &[HostPort], ca_days: u32, now: i64) -> Result<Self, StateError> {
        let damaged = |entry: Entry, reason: String| StateError::Damaged(store.place(entry), reason);
        let mut record: Record = match store.read(Entry::Record).await? {
            Some(text) => serde_json::from_str(text.expose()).map_err(|error| damaged(Entry::Record, error.to_string()))?,
            None => Record::default(),
        };
        let signer = match store.read(Entry::OrderKey).await? {
            Some(pem) => OrderSigner::from_pkcs8_pem(&pem)?,
            None => {
                let signer = OrderSigner::generate()?;
                store.write(Entry::OrderKey, &signer.to_pkcs8_pem()).await?;
                // An order signed with a lost key binds nobody.
                (record.trust, record.leaf) = (None, None);
                signer
            }
        };
        let enrolment = match store.read(Entry::EnrolmentKey).await? {
            Some(text) => EnrolmentKey::from_base64(&Secret::new(text.expose().trim().to_string()))?,
            None => {
                let key = EnrolmentKey::generate()?;
                store.write(Entry::EnrolmentKey, &key.to_base64()).await?;
                key
            }
        };
        let present = match store.read(Entry::Ca).await? {
            Some(text) => {
                Some(parse_ca(text.expose()).ok_or_else(|| damaged(Entry::Ca, "it does not hold a certificate and a key".into()))??)
            }
            None => None,
        };
        let mut covered = record.ca_names.clone();
        let uncovered: Vec<_> = names.iter().filter(|name| !covered.iter().any(|c| c.host == name.host)).cloned().collect();
        let authority = match present {
            Some(authority) if uncovered.is_empty() => authority,
            earlier => {
                // The new CA may speak for the earlier names too, so that nothing breaks while nodes take the new bundle.
                covered.extend(uncovered);
                let authority = Authority::create(store.service(), record.generation + 1, &covered, now, ca_days)?;
                record.generation += 1;
                record.ca_names = covered;
                record.earlier.extend(earlier.map(|ca| ca.certificate().pem()));
                let both = Secret::new(authority.certificate().pem() + authority.key_pem().expose());
                store.write(Entry::Ca, &both).await?;
                authority
            }
        };
        let state = Self { store, signer, enrolment, authority, record };
        state.save().await?;
        Ok(state)
    }

    /// Remembers agents that have files of ours, so that an uninstall can name those that are away by then.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn note_covered<'a>(&mut self, hosts: impl IntoIterator<Item = &'a Host>) -> Result<(), StateError> {
        let before = self.record.covered.len();
        self.record.covered.extend(hosts.into_iter().cloned());
        if self.record.covered.len() == before { Ok(()) } else { self.save().await }
    }

    /// See [`State::note_covered`].
    pub fn covered(&self) -> &BTreeSet<Host> {
        &self.record.covered
    }

    /// The public key that tasks verify orders with, base64.
    pub fn order_key(&self) -> String {
        self.signer.verifying_key_base64()
    }

    /// The key that authenticates the registry's request.
    pub fn enrolment_key(&self) -> &EnrolmentKey {
        &self.enrolment
    }

    /// The CA's certificate.
    pub fn ca(&self) -> &Certificate {
        self.authority.certificate()
    }

    /// CA certificates that everybody should trust, newest first, PEM.
    pub fn trusted_certificates(&self) -> Vec<String> {
        std::iter::once(self.ca().pem()).chain(self.record.earlier.iter().rev().cloned()).collect()
    }

    /// The certificate in force, unless the names or the CA have changed since.
    pub fn leaf(&self, names: &[HostPort]) -> Option<&LeafRecord> {
        self.record.leaf.as_ref().filter(|leaf| leaf.names == names && leaf.ca == self.ca().fingerprint())
    }

    /// The order to trust `bundle`: the one in force if it says the same, else a new one.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn trust_order(&mut self, bundle: TrustBundle) -> Result<SignedOrder, StateError> {
        if let Some((in_force, order)) = &self.record.trust
            && *in_force == bundle
        {
            return Ok(order.clone());
        }
        let order = self.order(OrderKind::Trust(bundle.clone())).await?;
        self.record.trust = Some((bundle, order.clone()));
        self.save().await?;
        Ok(order)
    }

    /// The order that carries a certificate for the registry's request. The certificate in force is given again, unless it
    /// was for another key, other names or another CA, or is due for renewal.
    ///
    /// # Errors
    /// When the request is not authentic or not acceptable, or the state cannot be written.
    pub async fn certify(
        &mut self,
        status: &RegistryStatus,
        names: &[HostPort],
        now: i64,
        leaf_days: u32,
    ) -> Result<SignedOrder, StateError> {
        let request = status.request.as_ref().filter(|r| self.enrolment.verify(&r.csr, &r.mac)).ok_or(StateError::ForeignRequest)?;
        let chain = self.authority.sign_leaf(&request.csr, names, now, leaf_days)?;
        let leaf = Certificate::parse_bundle(&chain)?.swap_remove(0);
        let key = crate::digest::sha256_hex(leaf.public_key_spki_der());
        if let Some(present) = self.leaf(names)
            && present.key == key
            && now < present.renew_at
        {
            return Ok(present.order.clone());
        }
        let order = self.order(OrderKind::Certificate { chain }).await?;
        self.record.leaf = Some(LeafRecord {
            fingerprint: leaf.fingerprint(),
            not_after: leaf.not_after(),
            renew_at: now + (leaf.not_after() - now) * 2 / 3,
            key,
            names: names.to_vec(),
            ca: self.ca().fingerprint(),
            order: order.clone(),
        });
        self.save().await?;
        Ok(order)
    }

    /// Signs an order of the next version.
    ///
    /// # Errors
    /// When the state cannot be written: then the order is not given.
    pub async fn order(&mut self, kind: OrderKind) -> Result<SignedOrder, StateError> {
        self.record.version += 1;
        self.save().await?;
        Ok(self.signer.sign(&Order { service: self.store.service().to_string(), version: self.record.version, kind }))
    }

    async fn save(&self) -> Result<(), StateError> {
        let text = serde_json::to_string_pretty(&self.record).map_err(|error| StateError::File(Box::new(error)))?;
        self.store.write(Entry::Record, &Secret::new(text)).await
    }
}

fn parse_ca(text: &str) -> Option<Result<Authority, AuthorityError>> {
    let key_at = text.find("-----BEGIN PRIVATE KEY-----")?;
    let (certificate, key) = text.split_at(key_at);
    Some(Authority::from_pem(certificate, &Secret::new(key.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{OrderKey, RegistryKey};
    use crate::host_paths::HostRoot;
    use crate::protocol::{CertificateRequest, RegistryPhase};
    use std::os::unix::fs::PermissionsExt;

    const NOW: i64 = 1_800_000_000;

    fn names(text: &str) -> Vec<HostPort> {
        text.split(' ').map(|name| name.parse().unwrap()).collect()
    }

    async fn open(root: &HostRoot, names_: &str) -> State {
        let store = Store::on_host(root, "private-registry").unwrap();
        State::open(store, &names(names_), 365, NOW).await.unwrap()
    }

    fn status(state: &State, key: &RegistryKey) -> RegistryStatus {
        let csr = key.csr("private-registry").unwrap();
        let mac = state.enrolment_key().mac(&csr);
        RegistryStatus {
            service: "private-registry".into(),
            task: "t".into(),
            host: "h".into(),
            phase: RegistryPhase::AwaitingCertificate,
            request: Some(CertificateRequest { csr, mac }),
            leaf_fingerprint: None,
            leaf_not_after: None,
            order_version: 0,
            starts: 0,
            errors: vec![],
        }
    }

    #[tokio::test]
    async fn a_restart_finds_the_same_keys_and_the_same_orders() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let mut first = open(&root, "192.168.0.1:443").await;
        let bundle = TrustBundle { names: vec![], certificates: first.trusted_certificates(), conntrack_be_liberal: true };
        let order = first.trust_order(bundle.clone()).await.unwrap();
        let mut second = open(&root, "192.168.0.1:443").await;
        assert_eq!(second.order_key(), first.order_key());
        assert_eq!(second.ca().fingerprint(), first.ca().fingerprint());
        assert_eq!(second.trust_order(bundle).await.unwrap(), order);
    }

    #[tokio::test]
    async fn versions_grow_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let version = async || {
            let mut state = open(&root, "a.example.com:443").await;
            let key = OrderKey::from_base64(&state.order_key()).unwrap();
            key.open(&state.order(OrderKind::Restore).await.unwrap()).unwrap().version
        };
        let (first, second) = (version().await, version().await);
        assert!(second > first, "{second} is not above {first}");
    }

    #[tokio::test]
    async fn every_key_is_readable_by_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        open(&root, "a.example.com:443").await;
        let state = root.controller_state("private-registry");
        assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
        for name in ["ca.pem", "order.key", "enrolment.key"] {
            assert_eq!(std::fs::metadata(state.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        assert!(!std::fs::read_to_string(state.join("state.json")).unwrap().contains("PRIVATE KEY"));
    }

    #[tokio::test]
    async fn the_same_key_and_names_get_the_same_certificate_until_it_is_due() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = open(&HostRoot::at(dir.path()), "192.168.0.1:443").await;
        let status = status(&state, &RegistryKey::generate().unwrap());
        let names = names("192.168.0.1:443");
        let first = state.certify(&status, &names, NOW, 90).await.unwrap();
        assert_eq!(state.certify(&status, &names, NOW + 86_400, 90).await.unwrap(), first);
        assert_ne!(state.certify(&status, &names, NOW + 61 * 86_400, 90).await.unwrap(), first);
    }

    #[tokio::test]
    async fn a_request_without_the_enrolment_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = open(&HostRoot::at(dir.path()), "192.168.0.1:443").await;
        let mut status = status(&state, &RegistryKey::generate().unwrap());
        status.request.as_mut().unwrap().mac = "00".repeat(32);
        let refused = state.certify(&status, &names("192.168.0.1:443"), NOW, 90).await;
        assert!(matches!(refused, Err(StateError::ForeignRequest)), "{refused:?}");
    }

    #[tokio::test]
    async fn a_new_name_makes_a_new_ca_beside_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let old = open(&root, "192.168.0.1:443").await.ca().pem();
        let state = open(&root, "192.168.0.1:443 registry.example.com:5000").await;
        assert_eq!(state.trusted_certificates().len(), 2);
        assert_eq!(state.trusted_certificates()[1], old);
    }

    #[tokio::test]
    async fn nothing_is_left_after_forgetting() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        open(&root, "192.168.0.1:443").await;
        Store::on_host(&root, "private-registry").unwrap().forget().await.unwrap();
        assert!(!root.shared_state().exists());
        Store::on_host(&root, "private-registry").unwrap().forget().await.unwrap();
    }
}
