//! What the controller must not forget, in its [`Store`].
//!
//! Keys are entries of their own; the record holds nothing secret. Every change is kept before an order that depends on it leaves
//! the controller, so a kill at any point never makes a version number come twice.
//!
//! Two controllers may have one store for a while, as in a partition, and the store has no way to write only what nobody else has changed.
//! So the record says who has written it last, which is looked at before each write and after it: whoever is not the one has lost,
//! gives no order, and reads it anew ([`StateError::Outdated`]). What is left are two who both look and then both write and look, one after
//! the other, within the time of one call. Then two orders have one version; a node takes the first and refuses the second, which shows
//! in its status, and the next order is given a version above all that tasks have taken ([`State::note_taken`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::certificates::{
    Authority, AuthorityError, Certificate, CertificateError, EnrolmentKey, EnrolmentKeyError, OrderSigner, SigningKeyError,
    requested_public_key, unique,
};
use crate::dcos::ApiError;
use crate::digest::sha256_hex;
use crate::names::{Host, HostPort};
use crate::node::files::FileError;
use crate::protocol::{Copied, Order, OrderKind, RegistryStatus, SignedOrder, TrustBundle, TrustedName};
use crate::secret::Secret;
use crate::shards::Layout;

use super::others::Fetched;
use super::store::{Entry, Store};

/// How far versions go up at once because of what a status says, which anybody between could have written: enough for every store that was
/// ever restored from a backup, and so little that two leaps a second need thousands of years to use the numbers up.
const LEAP: u64 = 1 << 20;

/// Certificates that are remembered: several times as many as there can be replicas.
const LEAVES: usize = 64;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StateError {
    #[error("the controller's state cannot be kept: {0}")]
    File(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{0} is damaged: {1}; move it away and restart the controller, which then makes new keys")]
    Damaged(String, String),
    #[error("another controller of this service has changed its state; it is read anew")]
    Outdated,
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
    #[error("the users: {0}")]
    Seal(#[from] crate::certificates::SealError),
    #[error("the registry's certificate request is not from our registry: its authentication code is wrong")]
    ForeignRequest,
    #[error("the CA's key is lost, so nothing can be signed until its successor is known everywhere")]
    KeyLost,
}

impl StateError {
    /// Whether it is the store's, or says that the state is another one: what depends on it must not go on. Any other error belongs to
    /// what was to be signed, and has changed nothing.
    pub(crate) fn is_of_store(&self) -> bool {
        matches!(self, Self::File(_) | Self::Secrets(_) | Self::Damaged(..) | Self::Outdated)
    }
}

impl From<FileError> for StateError {
    fn from(error: FileError) -> Self {
        Self::File(Box::new(error))
    }
}

/// The part that is no secret.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Record {
    /// See [`Stamp`].
    #[serde(default)]
    writer: String,
    #[serde(default)]
    revision: u64,
    /// Version of the last order of any kind.
    version: u64,
    /// The public key that orders are signed with, base64.
    #[serde(default)]
    order_key: Option<String>,
    /// Version of the order by which the registry was last told to retire; 0: it has a certificate since, or never was.
    #[serde(default)]
    retirement: u64,
    /// Generation of the newest CA.
    generation: u32,
    /// Certificate of the CA that signs, PEM: known even when its key is lost.
    #[serde(default)]
    signing: Option<String>,
    /// Names that the newest CA is constrained to.
    ca_names: Vec<HostPort>,
    /// The signing CA's certificate by its predecessor, PEM.
    #[serde(default)]
    link: Option<String>,
    /// Earlier CA certificates that are still to be trusted.
    earlier: Vec<String>,
    /// The rotation under way.
    #[serde(default)]
    rotation: Option<Rotation>,
    /// The run of the job that the last rotation was made for.
    #[serde(default)]
    rotated_for: Option<String>,
    /// The trust order in force.
    trust: Option<(TrustBundle, SignedOrder)>,
    /// The certificates of the registry's tasks, by the SHA-256 (hex) of the public key (SPKI) that each was signed for.
    #[serde(default)]
    leaves: BTreeMap<String, LeafRecord>,
    /// How the agents are divided among node pods.
    #[serde(default)]
    layout: Option<Layout>,
    /// Agents that a node has run on: they have files of ours.
    #[serde(default)]
    covered: BTreeSet<Host>,
    /// CAs of other registries that were not given in the options themselves.
    #[serde(default)]
    others: Vec<Fetched>,
    /// Images that were copied in, by where they are from.
    #[serde(default)]
    preloaded: BTreeMap<String, Copied>,
}

/// Tells one writing of the record from every other one.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
struct Stamp {
    /// The controller that has written it; each makes a name of its own when it reads the state.
    #[serde(default)]
    writer: String,
    #[serde(default)]
    revision: u64,
}

/// A change from one CA to the next. At every moment all that is served is trusted by every agent that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// How far it is.
    pub stage: Stage,
    /// Why.
    pub reason: Reason,
    /// Unix time at which this stage began.
    pub since: i64,
    /// The next CA's certificate by the present one; none where the present one's key is lost.
    link: Option<String>,
}

impl Rotation {
    /// A rotation at a stage, where nothing is signed: for forecasts, and tests of the planner.
    pub(crate) fn at(stage: Stage, reason: Reason, since: i64) -> Self {
        Self { stage, reason, since, link: None }
    }
}

/// See [`Rotation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The next CA is made known beside the present one, which still signs.
    Published,
    /// The next CA signs; the earlier one is still trusted.
    Switched,
}

/// Why a CA is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It has reached two thirds of its life.
    Age,
    /// Its key is lost.
    LostKey,
    /// It may not speak for the names that the options ask for.
    Names,
    /// A run of the job `….rotate`.
    Order,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Age => "the CA has reached two thirds of its life",
            Self::LostKey => "the CA's key is lost",
            Self::Names => "the CA may not speak for all names",
            Self::Order => "a run of the job asks for it",
        })
    }
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
    /// Names in it.
    names: Vec<HostPort>,
    /// Fingerprint of the CA that signed it.
    ca: String,
    /// The order that carries it, and its version.
    order: SignedOrder,
    version: u64,
}

/// What a CA of this service's own is made with.
#[derive(Debug, Clone, Copy)]
pub struct OwnCa<'a> {
    /// Organization in its subject; none if empty.
    pub organization: &'a str,
    /// Names that it may speak for.
    pub names: &'a [HostPort],
    /// Days that it lives.
    pub days: u32,
}

impl LeafRecord {
    /// The chain that its order carries.
    fn chain(&self) -> Option<String> {
        use base64::Engine as _;
        let payload = base64::engine::general_purpose::STANDARD.decode(&self.order.payload).ok()?;
        match crate::json::of_bytes::<Order>(&payload).ok()?.kind {
            OrderKind::Certificate { chain } => Some(chain),
            _ => None,
        }
    }
}

#[cfg(test)]
impl LeafRecord {
    /// The order that carries it.
    pub(super) fn carried_by(&self) -> &SignedOrder {
        &self.order
    }
}

/// The controller's keys and record.
pub struct State {
    store: Store,
    signer: OrderSigner,
    enrolment: EnrolmentKey,
    /// Certificate of the CA that signs; none where the certificate is not from a CA of this service's own.
    signing: Option<Certificate>,
    /// Organization in the subject of a new CA.
    organization: String,
    /// That CA, unless its key is lost.
    authority: Option<Authority>,
    /// The CA that is made known beside it.
    next: Option<Authority>,
    record: Record,
    /// The record as it was read or written last.
    text: Secret<String>,
    /// See [`Stamp::writer`].
    writer: String,
    /// The newest version that a task says it has taken.
    taken: u64,
    /// The trust order in force is to be given anew.
    is_surpassed: bool,
}

impl State {
    /// Reads the state, making what is missing: a lost key is replaced, an existing one never. Without `own` no CA is made.
    ///
    /// # Errors
    /// When the directory cannot be written, or a file in it is damaged.
    pub async fn open(store: Store, own: Option<OwnCa<'_>>, now: i64) -> Result<Self, StateError> {
        let damaged = |entry: Entry, reason: String| StateError::Damaged(store.place(entry), reason);
        let text = store.read(Entry::Record).await?;
        let mut record: Record = match &text {
            Some(text) => crate::json::of_text(text.expose()).map_err(|error| damaged(Entry::Record, error.to_string()))?,
            None => Record::default(),
        };
        let signer = match store.read(Entry::OrderKey).await? {
            Some(pem) => OrderSigner::from_pkcs8_pem(&pem)?,
            None => {
                let signer = OrderSigner::generate()?;
                store.create(Entry::OrderKey, &signer.to_pkcs8_pem()).await?;
                record.order_key = Some(String::new());
                signer
            }
        };
        let order_key = Some(signer.verifying_key_base64());
        if record.order_key.is_some() && record.order_key != order_key {
            // An order signed with a lost key binds nobody.
            record.trust = None;
            record.leaves.clear();
        }
        record.order_key = order_key;
        let enrolment = match store.read(Entry::EnrolmentKey).await? {
            Some(text) => EnrolmentKey::from_base64(&Secret::new(text.expose().trim().to_string()))?,
            None => {
                let key = EnrolmentKey::generate()?;
                store.create(Entry::EnrolmentKey, &key.to_base64()).await?;
                key
            }
        };
        let mut authority = read_authority(&store, Entry::Ca).await?;
        let mut next = read_authority(&store, Entry::NextCa).await?;
        let signs = |ca: &Authority| record.signing.as_ref().is_none_or(|pem| *pem == ca.certificate().pem());
        if next.as_ref().is_some_and(|next| record.signing.is_some() && signs(next)) {
            // The controller was killed in the middle of a switch, which the record says has taken place.
            authority = next.take();
        } else if authority.as_ref().is_some_and(|authority| !signs(authority)) {
            return Err(damaged(Entry::Ca, "it is not the CA that the record names".into()));
        }
        let published = |record: &Record| record.rotation.as_ref().is_some_and(|rotation| rotation.stage == Stage::Published);
        // Killed while a rotation was begun or given up: it has not taken place.
        match (&next, published(&record)) {
            (Some(_), false) => next = None,
            (None, true) => record.rotation = None,
            // Another controller has begun one on the same store, and has not come to write it down.
            (Some(made), true) if !is_link_for(&record, made)? => (next, record.rotation) = (None, None),
            _ => {}
        }
        let signing = match (&authority, &record.signing) {
            (Some(authority), _) => Some(authority.certificate().clone()),
            (None, Some(pem)) => Some(Certificate::parse_pem(pem)?),
            (None, None) => match own {
                Some(own) => {
                    record.generation += 1;
                    record.ca_names = own.names.to_vec();
                    let first = Authority::create_in(own.organization, store.service(), record.generation, own.names, now, own.days)?;
                    store.create(Entry::Ca, &certificate_and_key(&first)).await?;
                    Some(authority.insert(first).certificate().clone())
                }
                None => None,
            },
        };
        record.signing = signing.as_ref().map(Certificate::pem);
        let organization = own.map(|own| own.organization.to_string()).unwrap_or_default();
        let (writer, text) = (unique()?, text.unwrap_or_else(|| Secret::new(String::new())));
        let (taken, is_surpassed) = (0, false);
        let mut state =
            Self { store, signer, enrolment, signing, organization, authority, next, record, text, writer, taken, is_surpassed };
        state.save().await?;
        state.tidy().await?;
        Ok(state)
    }

    /// Completes on the store what the record says: the CA that signs lies in its place, and a next one only during a rotation.
    async fn tidy(&self) -> Result<(), StateError> {
        if let Some(authority) = &self.authority {
            let stored = self.store.read(Entry::Ca).await?;
            let wanted = certificate_and_key(authority);
            if stored.as_ref() != Some(&wanted) {
                self.store.write(Entry::Ca, &wanted).await?;
            }
        }
        if self.next.is_none() { self.store.remove(Entry::NextCa).await } else { Ok(()) }
    }

    /// Goes on trusting the CAs of an earlier controller whose keys are lost, until the registry serves with a certificate of the new CA
    /// and every agent has proven that. Only a state that has given no order yet inherits.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn inherit(&mut self, certificates: Vec<String>, now: i64) -> Result<(), StateError> {
        let Some(own) = self.signing.as_ref().map(Certificate::pem).filter(|_| self.record.version == 0) else { return Ok(()) };
        let is_other_ca = |pem: &String| *pem != own && Certificate::parse_pem(pem).is_ok_and(|certificate| certificate.is_ca());
        let earlier: Vec<String> = certificates.into_iter().filter(is_other_ca).collect();
        if earlier.is_empty() || self.record.rotation.is_some() {
            return Ok(());
        }
        tracing::warn!("this service runs already and its keys are not here: its CA stays trusted until the new one is proven everywhere");
        self.record.earlier = earlier;
        self.record.rotation = Some(Rotation { stage: Stage::Switched, reason: Reason::LostKey, since: now, link: None });
        self.save().await
    }

    /// How the agents are divided among node pods, where that has been decided.
    pub fn layout(&self) -> Option<Layout> {
        self.record.layout
    }

    /// See [`State::layout`].
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn note_layout(&mut self, layout: Layout) -> Result<(), StateError> {
        if self.record.layout.replace(layout) == Some(layout) { Ok(()) } else { self.save().await }
    }

    /// The same where nothing else of a state is needed.
    ///
    /// # Errors
    /// When it cannot be read. One that is damaged has none.
    pub async fn layout_in(store: &Store) -> Result<Option<Layout>, StateError> {
        let record = store.read(Entry::Record).await?;
        Ok(record.and_then(|text| crate::json::of_text::<Record>(text.expose()).ok()).and_then(|record| record.layout))
    }

    /// Remembers agents that have files of ours, so that an uninstall can name those that are away by then.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn note_covered<'a>(&mut self, hosts: impl IntoIterator<Item = &'a Host>) -> Result<(), StateError> {
        let before = self.record.covered.len();
        for host in hosts {
            if !self.record.covered.contains(host) {
                self.record.covered.insert(host.clone());
            }
        }
        if self.record.covered.len() == before { Ok(()) } else { self.save().await }
    }

    /// Agents that are as they were before us.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn note_restored(&mut self, hosts: &BTreeSet<Host>) -> Result<(), StateError> {
        let before = self.record.covered.len();
        self.record.covered.retain(|host| !hosts.contains(host));
        if self.record.covered.len() == before { Ok(()) } else { self.save().await }
    }

    /// See [`State::note_covered`].
    pub fn covered(&self) -> &BTreeSet<Host> {
        &self.record.covered
    }

    /// Remembers images that were copied in, and their digests.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn note_preloaded(&mut self, images: impl IntoIterator<Item = (String, Copied)>) -> Result<(), StateError> {
        let mut changed = false;
        for (image, copied) in images {
            changed |= self.record.preloaded.insert(image, copied.clone()) != Some(copied);
        }
        if changed { self.save().await } else { Ok(()) }
    }

    /// See [`State::note_preloaded`].
    pub fn preloaded(&self, image: &str) -> Option<&Copied> {
        self.record.preloaded.get(image)
    }

    /// CAs of other registries that were fetched.
    pub fn fetched(&self) -> &[Fetched] {
        &self.record.others
    }

    /// See [`State::fetched`].
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn keep_fetched(&mut self, fetched: Vec<Fetched>) -> Result<(), StateError> {
        if self.record.others == fetched {
            return Ok(());
        }
        self.record.others = fetched;
        self.save().await
    }

    /// Version of the last order.
    pub fn version(&self) -> u64 {
        self.record.version
    }

    /// Version of the order by which the registry was first told to retire; 0 if it has a certificate since.
    pub fn retirement(&self) -> u64 {
        self.record.retirement
    }

    /// The public key that tasks verify orders with, base64.
    pub fn order_key(&self) -> String {
        self.signer.verifying_key_base64()
    }

    /// The key that authenticates the registry's request.
    pub fn enrolment_key(&self) -> &EnrolmentKey {
        &self.enrolment
    }

    /// Certificate of the service's own CA that signs, if there is one.
    pub fn ca(&self) -> Option<&Certificate> {
        self.signing.as_ref()
    }

    /// Lets go of the service's own CA and of a rotation under way: the registry serves with a certificate of another.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn drop_ca(&mut self) -> Result<(), StateError> {
        (self.signing, self.authority, self.next) = (None, None, None);
        let record = &mut self.record;
        (record.signing, record.link, record.rotation) = (None, None, None);
        record.earlier.clear();
        record.ca_names.clear();
        self.save().await?;
        self.store.remove(Entry::NextCa).await?;
        self.store.remove(Entry::Ca).await
    }

    /// Whether the leaf of this fingerprint came by an order of this service, whoever has signed it.
    pub fn has_given(&self, fingerprint: &str) -> bool {
        self.record.leaves.values().any(|leaf| leaf.fingerprint == fingerprint)
    }

    /// The rotation under way.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.record.rotation.as_ref()
    }

    /// The run of the job that the last rotation was made for.
    pub fn rotated_for(&self) -> Option<&str> {
        self.record.rotated_for.as_deref()
    }

    /// CA certificates that everybody should trust, newest first, PEM.
    pub fn trusted_certificates(&self) -> Vec<String> {
        let next = self.next.iter().map(|next| next.certificate().pem());
        next.chain(self.signing.as_ref().map(Certificate::pem)).chain(self.record.earlier.iter().rev().cloned()).collect()
    }

    /// Whether the CA that signs may speak for all these names. Without its key nothing can be said, and nothing signed.
    ///
    /// # Errors
    /// When its certificate cannot be read.
    pub fn speaks_for(&self, names: &[HostPort]) -> Result<bool, StateError> {
        Ok(match &self.authority {
            Some(authority) => authority.covers(names)?,
            None => self.record.leaves.values().max_by_key(|leaf| leaf.version).is_some_and(|leaf| leaf.names == names),
        })
    }

    /// Those of these names that the CA that signs may speak for; all, where its key is lost or that were none.
    ///
    /// # Errors
    /// When its certificate cannot be read.
    pub fn spoken_for(&self, names: Vec<TrustedName>) -> Result<Vec<TrustedName>, StateError> {
        let Some(authority) = &self.authority else { return Ok(names) };
        let mut spoken_for = Vec::new();
        for name in &names {
            if authority.covers(std::slice::from_ref(&name.name))? {
                spoken_for.push(name.clone());
            }
        }
        Ok(if spoken_for.is_empty() { names } else { spoken_for })
    }

    /// The names that nodes trust now.
    pub fn trusted_names(&self) -> Option<Vec<TrustedName>> {
        self.record.trust.as_ref().map(|(bundle, _)| bundle.names.clone())
    }

    /// Whether the order in force has nodes remove what a registry made by hand has left.
    pub fn cleans_agents(&self) -> bool {
        self.record.trust.as_ref().is_some_and(|(bundle, _)| bundle.clean_agents)
    }

    /// The CA certificates that nodes trust now, PEM.
    pub fn certificates_in_force(&self) -> Vec<String> {
        self.record.trust.as_ref().map(|(bundle, _)| bundle.certificates.clone()).unwrap_or_default()
    }

    /// Whether the CA that should sign has lost its key.
    pub fn key_is_lost(&self) -> bool {
        self.signing.is_some() && self.authority.is_none()
    }

    /// Why the CA is to be replaced, if it is. `run` is the active run of the job that orders it.
    ///
    /// # Errors
    /// When its certificate cannot be read.
    pub fn rotation_due(&self, names: &[HostPort], run: Option<&str>, now: i64) -> Result<Option<Reason>, StateError> {
        if let Some(rotation) = self.rotation() {
            // One that was begun for other names is begun anew; what a run asks for after the switch comes after this rotation.
            let suits = match &self.next {
                Some(next) => next.covers(names)?,
                None => true,
            };
            return Ok(match rotation.stage {
                Stage::Published => (!suits).then_some(Reason::Names),
                // What it has not yet signed it never will.
                Stage::Switched => self.key_is_lost().then_some(Reason::LostKey),
            });
        }
        let Some(signing) = &self.signing else { return Ok(None) };
        let life = signing.not_after() - signing.not_before();
        Ok(match () {
            () if self.key_is_lost() => Some(Reason::LostKey),
            () if !self.speaks_for(names)? => Some(Reason::Names),
            () if now >= signing.not_after() - life / 3 => Some(Reason::Age),
            () if run.is_some() && run != self.record.rotated_for.as_deref() => Some(Reason::Order),
            () => None,
        })
    }

    /// Whether the rotation under way has lost its reason: the names that it was begun for are not asked for any more.
    ///
    /// # Errors
    /// When the CA's certificate cannot be read.
    pub fn rotation_is_void(&self, names: &[HostPort]) -> Result<bool, StateError> {
        let published = self.rotation().is_some_and(|rotation| rotation.stage == Stage::Published && rotation.reason == Reason::Names);
        Ok(published && self.speaks_for(names)?)
    }

    /// Begins a rotation: makes the next CA, to be made known beside the present one.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn begin_rotation(
        &mut self,
        reason: Reason,
        names: &[HostPort],
        run: Option<&str>,
        ca_days: u32,
        now: i64,
    ) -> Result<(), StateError> {
        let generation = self.record.generation + 1;
        // For the earlier names too, so that it can also take over where those stay in use for a while.
        let mut all = names.to_vec();
        all.extend(self.trusted_names().into_iter().flatten().map(|trusted| trusted.name).filter(|name| !names.contains(name)));
        let next = Authority::create_in(&self.organization, self.store.service(), generation, &all, now, ca_days)?;
        // One that has ended could vouch for nobody.
        let link = match self.authority.as_ref().filter(|authority| authority.certificate().not_after() > now) {
            Some(authority) => Some(authority.link(&next, &all, now)?),
            None => None,
        };
        self.is_newest().await?;
        // After a switch that could not be completed on the store the place of the next CA holds the only copy of the present one's key.
        self.tidy().await?;
        // The key first: a next CA without its record is dropped by the next start. Nothing has begun before it is kept.
        self.store.write(Entry::NextCa, &certificate_and_key(&next)).await?;
        self.record.generation = generation;
        self.record.ca_names = all;
        self.record.rotation = Some(Rotation { stage: Stage::Published, reason, since: now, link });
        self.record.rotated_for = run.map(String::from).or(self.record.rotated_for.take());
        self.next = Some(next);
        self.save().await
    }

    /// Takes a run of the job for a leaf of a CA that is not this service's own: the next look asks that CA for another.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn let_go_of_leaf(&mut self, run: &str) -> Result<(), StateError> {
        self.record.leaves.clear();
        self.record.rotated_for = Some(run.to_string());
        self.save().await
    }

    /// Gives a rotation up before its switch.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn drop_rotation(&mut self) -> Result<(), StateError> {
        self.record.rotation = None;
        self.next = None;
        self.save().await?;
        self.store.remove(Entry::NextCa).await
    }

    /// The next CA signs from now on. Does nothing when none has been made known.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn switch(&mut self, now: i64) -> Result<(), StateError> {
        let (Some(rotation), Some(next)) = (&mut self.record.rotation, self.next.take()) else { return Ok(()) };
        (rotation.stage, rotation.since) = (Stage::Switched, now);
        self.record.link = rotation.link.take();
        self.record.earlier.extend(self.signing.as_ref().map(Certificate::pem));
        self.record.signing = Some(next.certificate().pem());
        self.signing = Some(next.certificate().clone());
        self.authority = Some(next);
        // The record decides; a kill after this line is completed by the next start.
        self.save().await?;
        self.tidy().await
    }

    /// Ends a rotation: earlier CAs are trusted no more. The link is served until it ends, for agents that were away.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn retire_earlier(&mut self) -> Result<(), StateError> {
        self.record.earlier.clear();
        self.record.rotation = None;
        self.save().await
    }

    /// The certificate in force of a registry's task, unless the names or the CA have changed since.
    pub fn leaf(&self, status: &RegistryStatus, names: &[HostPort]) -> Option<&LeafRecord> {
        // Where the key is lost, the last one is the best there is.
        let from_ca = |leaf: &LeafRecord| match (&self.authority, &self.signing) {
            (Some(authority), _) => leaf.ca == authority.certificate().fingerprint(),
            (None, signing) => signing.is_some(),
        };
        self.leaf_for(status).filter(|leaf| leaf.names == names && from_ca(leaf))
    }

    /// The certificate in force of a registry's task, if it is for these names and from the CA of this fingerprint.
    pub fn leaf_of(&self, status: &RegistryStatus, names: &[HostPort], ca: &str) -> Option<&LeafRecord> {
        self.leaf_for(status).filter(|leaf| leaf.names == names && leaf.ca == ca)
    }

    fn leaf_for(&self, status: &RegistryStatus) -> Option<&LeafRecord> {
        let key = requested_public_key(&status.request.as_ref()?.csr).ok()?;
        self.record.leaves.get(&sha256_hex(&key))
    }

    /// The registry's request, if it is authentic.
    ///
    /// # Errors
    /// When it is not.
    pub fn request<'a>(&self, status: &'a RegistryStatus) -> Result<&'a str, StateError> {
        let authentic = status.request.as_ref().filter(|request| self.enrolment.verify(&request.csr, &request.mac));
        authentic.map(|request| request.csr.as_str()).ok_or(StateError::ForeignRequest)
    }

    /// The order that carries a chain which the CA of this fingerprint has signed.
    ///
    /// # Errors
    /// When the chain cannot be read, or the state not be written.
    pub async fn keep_leaf(&mut self, chain: String, names: &[HostPort], ca: String, now: i64) -> Result<SignedOrder, StateError> {
        let leaf = Certificate::parse_bundle(&chain)?.swap_remove(0);
        let order = self.order(OrderKind::Certificate { chain }).await?;
        let record = LeafRecord {
            fingerprint: leaf.fingerprint(),
            not_after: leaf.not_after(),
            renew_at: now + (leaf.not_after() - now) * 2 / 3,
            names: names.to_vec(),
            ca,
            order: order.clone(),
            version: self.record.version,
        };
        self.record.retirement = 0;
        let leaves = &mut self.record.leaves;
        leaves.insert(sha256_hex(leaf.public_key_spki_der()), record);
        // Replicas make a key whenever they start; what has served its time is not kept for ever.
        while leaves.len() > LEAVES {
            let oldest = leaves.iter().min_by_key(|(_, leaf)| leaf.version).map(|(key, _)| key.clone());
            oldest.and_then(|key| leaves.remove(&key));
        }
        self.save().await?;
        Ok(order)
    }

    /// The order to trust `bundle`: the one in force if it says the same, else a new one.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn trust_order(&mut self, bundle: TrustBundle) -> Result<SignedOrder, StateError> {
        if let Some(order) = self.trust_in_force(&bundle) {
            return Ok(order.clone());
        }
        let order = self.order(OrderKind::Trust(bundle.clone())).await?;
        self.record.trust = Some((bundle, order.clone()));
        self.save().await?;
        self.is_surpassed = false;
        Ok(order)
    }

    /// The order in force, if that is to trust this.
    pub fn trust_in_force(&self, bundle: &TrustBundle) -> Option<&SignedOrder> {
        let (in_force, order) = self.record.trust.as_ref()?;
        (in_force == bundle && !self.is_surpassed).then_some(order)
    }

    /// Notes the newest version that a task says it has taken: the next order goes above it.
    pub fn note_taken(&mut self, version: u64) {
        self.taken = self.taken.max(version);
    }

    /// Has the trust order in force given anew: a node has taken another one that is not older, and refuses it.
    pub fn surpass_trust(&mut self) {
        self.is_surpassed = true;
    }

    /// The order that carries the certificate in force of a registry's task, if that is for these names and from the CA of this
    /// fingerprint (`None`: the service's own), and not due for renewal. A task that has taken another order since gets it as a new one.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn leaf_order(
        &mut self,
        status: &RegistryStatus,
        names: &[HostPort],
        ca: Option<&str>,
        now: i64,
    ) -> Result<Option<SignedOrder>, StateError> {
        let found = match ca {
            Some(ca) => self.leaf_of(status, names, ca),
            None => self.leaf(status, names),
        };
        let Some(leaf) = found.filter(|leaf| now < leaf.renew_at) else { return Ok(None) };
        if status.order_version <= leaf.version {
            return Ok(Some(leaf.order.clone()));
        }
        let fingerprint = leaf.fingerprint.clone();
        let Some(chain) = leaf.chain() else { return Ok(None) };
        let order = self.order(OrderKind::Certificate { chain }).await?;
        let version = self.record.version;
        for leaf in self.record.leaves.values_mut().filter(|leaf| leaf.fingerprint == fingerprint) {
            (leaf.order, leaf.version) = (order.clone(), version);
        }
        self.save().await?;
        Ok(Some(order))
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
        let csr = self.request(status)?;
        let authority = self.authority.as_ref().ok_or(StateError::KeyLost)?;
        let signed = authority.sign_leaf(csr, names, now, leaf_days)?;
        let leaf = Certificate::parse_bundle(&signed)?.swap_remove(0);
        if let Some(order) = self.leaf_order(status, names, None, now).await? {
            return Ok(order);
        }
        let authority = self.authority.as_ref().ok_or(StateError::KeyLost)?;
        let chain = match self.link(now)? {
            Some(link) => leaf.pem() + &link,
            None => signed,
        };
        let ca = authority.certificate().fingerprint();
        self.keep_leaf(chain, names, ca, now).await
    }

    /// What is served behind a leaf in place of the CA itself, as long as it is valid.
    fn link(&self, now: i64) -> Result<Option<String>, StateError> {
        let Some(pem) = &self.record.link else { return Ok(None) };
        Ok((Certificate::parse_pem(pem)?.not_after() > now).then(|| pem.clone()))
    }

    /// The users whom this service keeps, as they are stored.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn users(&self) -> Result<Option<Secret<String>>, StateError> {
        self.store.read(Entry::Users).await
    }

    /// The order to let these users in, sealed for the registry.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn users_order(&mut self, users: &Secret<String>) -> Result<SignedOrder, StateError> {
        let sealed = self.enrolment.seal(users, self.store.service(), self.next_version())?;
        self.order(OrderKind::Users { sealed }).await
    }

    /// Signs an order of the next version.
    ///
    /// # Errors
    /// When the state cannot be written: then the order is not given.
    pub async fn order(&mut self, kind: OrderKind) -> Result<SignedOrder, StateError> {
        self.record.version = self.next_version();
        // Whoever has taken the first of several, as of a controller before this one, has retired as well.
        if matches!(kind, OrderKind::Retire { .. }) && self.record.retirement == 0 {
            self.record.retirement = self.record.version;
        }
        self.save().await?;
        Ok(self.signer.sign(&Order { service: self.store.service().to_string(), version: self.record.version, kind }))
    }

    fn next_version(&self) -> u64 {
        let last = self.record.version;
        last.max(self.taken.min(last.saturating_add(LEAP))).saturating_add(1)
    }

    async fn save(&mut self) -> Result<(), StateError> {
        self.is_newest().await?;
        self.record.writer.clone_from(&self.writer);
        self.record.revision += 1;
        let text = serde_json::to_string_pretty(&self.record).map_err(|error| StateError::File(Box::new(error)))?;
        self.text = Secret::new(text);
        self.store.write(Entry::Record, &self.text).await?;
        self.is_newest().await
    }

    /// Whether the record is still as this controller has read or written it last. One that was removed is written again.
    async fn is_newest(&self) -> Result<(), StateError> {
        let Some(text) = self.store.read(Entry::Record).await? else { return Ok(()) };
        let ours = |stamp: Stamp| stamp.writer == self.record.writer && stamp.revision == self.record.revision;
        // Mostly it is the same text, and that of a large cluster is long.
        let is_ours = text == self.text || crate::json::of_text(text.expose()).is_ok_and(ours);
        if is_ours { Ok(()) } else { Err(StateError::Outdated) }
    }
}

/// Agents that a service's record says have files of ours.
///
/// # Errors
/// When it cannot be read.
pub(crate) async fn covered_by(store: &Store) -> Result<BTreeSet<Host>, StateError> {
    let Some(text) = store.read(Entry::Record).await? else { return Ok(BTreeSet::new()) };
    let record: Record =
        crate::json::of_text(text.expose()).map_err(|error| StateError::Damaged(store.place(Entry::Record), error.to_string()))?;
    Ok(record.covered)
}

/// Whether what the rotation under way is to be served with is the certificate of this CA.
fn is_link_for(record: &Record, next: &Authority) -> Result<bool, StateError> {
    let Some(link) = record.rotation.as_ref().and_then(|rotation| rotation.link.as_ref()) else { return Ok(true) };
    Ok(Certificate::parse_pem(link)?.public_key_spki_der() == next.certificate().public_key_spki_der())
}

/// Certificate and key in one text.
fn certificate_and_key(authority: &Authority) -> Secret<String> {
    Secret::new(authority.certificate().pem() + authority.key_pem().expose())
}

async fn read_authority(store: &Store, entry: Entry) -> Result<Option<Authority>, StateError> {
    let Some(text) = store.read(entry).await? else { return Ok(None) };
    let damaged = || StateError::Damaged(store.place(entry), "it does not hold a certificate and a key".into());
    let key_at = text.expose().find("-----BEGIN PRIVATE KEY-----").ok_or_else(damaged)?;
    let (certificate, key) = text.expose().split_at(key_at);
    Ok(Some(Authority::from_pem(certificate, &Secret::new(key.to_string()))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{OrderKey, RegistryKey};
    use crate::controller::store::Shelf;
    use crate::host_paths::HostRoot;
    use crate::protocol::CertificateRequest;
    use std::os::unix::fs::PermissionsExt;

    const NOW: i64 = 1_800_000_000;

    fn names(text: &str) -> Vec<HostPort> {
        text.split(' ').map(|name| name.parse().unwrap()).collect()
    }

    async fn open(root: &HostRoot, names_: &str) -> State {
        let store = Store::on_host(root, "private-registry").unwrap();
        let own = OwnCa { organization: "", names: &names(names_), days: 365 };
        State::open(store, Some(own), NOW).await.unwrap()
    }

    fn status(state: &State, key: &RegistryKey) -> RegistryStatus {
        let csr = key.csr("private-registry").unwrap();
        let mac = state.enrolment_key().mac(&csr);
        RegistryStatus { request: Some(CertificateRequest { csr, mac }), ..RegistryStatus::first("private-registry", "t", "h") }
    }

    #[tokio::test]
    async fn a_restart_finds_the_same_keys_and_the_same_orders() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let mut first = open(&root, "192.168.0.1:443").await;
        let bundle =
            TrustBundle { names: vec![], certificates: first.trusted_certificates(), conntrack_be_liberal: true, ..TrustBundle::default() };
        let order = first.trust_order(bundle.clone()).await.unwrap();
        let mut second = open(&root, "192.168.0.1:443").await;
        assert_eq!(second.order_key(), first.order_key());
        assert_eq!(second.ca().unwrap().fingerprint(), first.ca().unwrap().fingerprint());
        assert_eq!(second.trust_order(bundle).await.unwrap(), order);
    }

    #[tokio::test]
    async fn where_no_ca_is_asked_for_none_is_made_and_one_that_is_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let open_plain = async || {
            let store = Store::on_host(&root, "private-registry").unwrap();
            State::open(store, None, NOW).await.unwrap()
        };
        let mut state = open_plain().await;
        assert!(state.ca().is_none() && state.trusted_certificates().is_empty());
        assert_eq!(state.rotation_due(&names(ONE), Some("run"), NOW).unwrap(), None);
        state.order(OrderKind::Restore).await.unwrap();
        assert!(!root.controller_state("private-registry").join("ca.pem").exists());
        let made = open(&root, ONE).await.ca().unwrap().fingerprint();
        assert_eq!(open_plain().await.ca().map(Certificate::fingerprint), Some(made.clone()));
        assert_eq!(open(&root, ONE).await.ca().unwrap().fingerprint(), made);
    }

    #[tokio::test]
    async fn a_controller_without_the_keys_of_the_one_before_trusts_its_ca_until_the_new_one_is_proven() {
        let (lost, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let before = open(&HostRoot::at(lost.path()), ONE).await.trusted_certificates();
        let root = HostRoot::at(dir.path());
        let mut state = open(&root, ONE).await;
        let own = state.trusted_certificates();
        state.inherit(own.clone(), NOW).await.unwrap();
        assert_eq!((state.trusted_certificates(), state.rotation()), (own.clone(), None), "there is nothing to inherit");
        state.inherit(before.clone(), NOW).await.unwrap();
        // Killed and started again.
        let mut state = open(&root, ONE).await;
        assert_eq!(state.trusted_certificates(), [own.clone(), before.clone()].concat());
        assert_eq!(state.rotation().map(|rotation| (rotation.stage, rotation.reason)), Some((Stage::Switched, Reason::LostKey)));
        assert_eq!(state.rotation_due(&names(ONE), Some("run"), NOW).unwrap(), None);
        assert!(state.speaks_for(&names(ONE)).unwrap(), "it can sign");
        state.retire_earlier().await.unwrap();
        assert_eq!(state.trusted_certificates(), own);
        state.order(OrderKind::Restore).await.unwrap();
        state.inherit(before, NOW).await.unwrap();
        assert_eq!(state.trusted_certificates(), own, "later there is nothing to inherit any more");
    }

    async fn on_shelf(shelf: &Shelf) -> Result<State, StateError> {
        let own = OwnCa { organization: "", names: &names(ONE), days: 365 };
        State::open(Store::on_shelf(shelf, "private-registry"), Some(own), NOW).await
    }

    fn version(state: &State, order: &SignedOrder) -> u64 {
        OrderKey::from_base64(&state.order_key()).unwrap().open(order).unwrap().version
    }

    #[tokio::test]
    async fn of_two_controllers_on_one_store_only_the_one_that_has_written_last_signs() {
        let shelf = Shelf::default();
        let mut first = on_shelf(&shelf).await.unwrap();
        first.order(OrderKind::Restart).await.unwrap();
        let mut second = on_shelf(&shelf).await.unwrap();
        assert!(matches!(first.order(OrderKind::Restart).await, Err(StateError::Outdated)), "it has read what is no longer so");
        let begun = first.begin_rotation(Reason::Order, &names(ONE), Some("run"), 365, NOW).await;
        assert!(matches!(begun, Err(StateError::Outdated)) && !shelf.look().entries.contains_key("next-ca.pem"));
        let order = second.order(OrderKind::Restore).await.unwrap();
        // As the next pass does.
        let mut first = on_shelf(&shelf).await.unwrap();
        assert_eq!(first.order_key(), second.order_key());
        let next = first.order(OrderKind::Restart).await.unwrap();
        assert!(version(&first, &next) > version(&second, &order));
        assert!(matches!(second.order(OrderKind::Restart).await, Err(StateError::Outdated)));
    }

    #[tokio::test]
    async fn of_two_controllers_that_make_a_key_at_the_same_time_one_does_and_the_other_reads_it() {
        let shelf = Shelf::default();
        let store = Store::on_shelf(&shelf, "private-registry");
        let key = |text: &str| Secret::new(text.to_string());
        store.create(Entry::EnrolmentKey, &key("first")).await.unwrap();
        assert!(matches!(store.create(Entry::EnrolmentKey, &key("second")).await, Err(StateError::Outdated)));
        assert_eq!(store.read(Entry::EnrolmentKey).await.unwrap().unwrap().expose(), "first");
    }

    #[tokio::test]
    async fn what_another_key_has_signed_is_signed_anew() {
        let (shelf, other) = (Shelf::default(), Shelf::default());
        let mut state = on_shelf(&shelf).await.unwrap();
        let bundle = TrustBundle { certificates: state.trusted_certificates(), ..TrustBundle::default() };
        let before = state.trust_order(bundle.clone()).await.unwrap();
        on_shelf(&other).await.unwrap();
        let key = other.look().entries["order.key"].clone();
        shelf.look().entries.insert("order.key".into(), key);
        let mut state = on_shelf(&shelf).await.unwrap();
        let after = state.trust_order(bundle).await.unwrap();
        assert!(after != before && version(&state, &after) > 1);
    }

    #[tokio::test]
    async fn orders_go_above_what_tasks_have_taken_however_much_somebody_says() {
        let shelf = Shelf::default();
        let mut state = on_shelf(&shelf).await.unwrap();
        let bundle = TrustBundle { certificates: state.trusted_certificates(), ..TrustBundle::default() };
        let trust = state.trust_order(bundle.clone()).await.unwrap();
        state.note_taken(700);
        assert_eq!(state.trust_order(bundle.clone()).await.unwrap(), trust, "nobody has another one");
        state.surpass_trust();
        let anew = state.trust_order(bundle.clone()).await.unwrap();
        assert_eq!(version(&state, &anew), 701);
        assert_eq!(state.trust_order(bundle).await.unwrap(), anew);
        state.note_taken(u64::MAX);
        let mut last = 701;
        for _ in 0..20 {
            let order = state.order(OrderKind::Restart).await.unwrap();
            let next = version(&state, &order);
            assert!(next > last && next <= last + LEAP + 1, "{last} {next}");
            last = next;
        }
        state.record.version = u64::MAX - 1;
        assert_eq!(state.next_version(), u64::MAX);
    }

    #[tokio::test]
    async fn users_are_sealed_for_the_version_that_the_order_gets() {
        let shelf = Shelf::default();
        let mut state = on_shelf(&shelf).await.unwrap();
        state.note_taken(90);
        let users = Secret::new("user:hash".to_string());
        let order = state.users_order(&users).await.unwrap();
        let order = OrderKey::from_base64(&state.order_key()).unwrap().open(&order).unwrap();
        let OrderKind::Users { sealed } = order.kind else { panic!("not users") };
        assert_eq!(state.enrolment_key().open(&sealed, "private-registry", order.version).unwrap().expose(), "user:hash");
    }

    #[tokio::test]
    async fn a_rotation_whose_next_ca_is_another_controllers_is_given_up() {
        let (shelf, other) = (Shelf::default(), Shelf::default());
        for shelf in [&shelf, &other] {
            let mut state = on_shelf(shelf).await.unwrap();
            state.begin_rotation(Reason::Order, &names(ONE), Some("run"), 365, NOW).await.unwrap();
        }
        assert!(on_shelf(&shelf).await.unwrap().rotation().is_some());
        let next = other.look().entries["next-ca.pem"].clone();
        shelf.look().entries.insert("next-ca.pem".into(), next);
        assert_eq!(on_shelf(&shelf).await.unwrap().rotation(), None);
        assert!(!shelf.look().entries.contains_key("next-ca.pem"));
    }

    #[tokio::test]
    async fn names_that_the_ca_may_not_speak_for_are_left_out_where_nothing_says_what_nodes_trust() {
        let state = on_shelf(&Shelf::default()).await.unwrap();
        let trusted = |text: &str| names(text).into_iter().map(|name| TrustedName { name, inside: true }).collect::<Vec<_>>();
        let asked = trusted(&format!("{ONE} new.example.com:443"));
        assert_eq!(state.spoken_for(asked).unwrap(), trusted(ONE));
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
    async fn a_task_that_has_taken_another_order_since_gets_the_same_certificate_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = open(&HostRoot::at(dir.path()), "192.168.0.1:443").await;
        let mut status = status(&state, &RegistryKey::generate().unwrap());
        let names = names("192.168.0.1:443");
        let key = OrderKey::from_base64(&state.order_key()).unwrap();
        let first = key.open(&state.certify(&status, &names, NOW, 90).await.unwrap()).unwrap();
        state.order(OrderKind::Restore).await.unwrap();
        status.order_version = state.version();
        let again = key.open(&state.certify(&status, &names, NOW, 90).await.unwrap()).unwrap();
        assert_eq!(again.kind, first.kind);
        assert!(again.version > status.order_version);
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

    async fn begin(state: &mut State, reason: Reason, names_: &str) {
        state.begin_rotation(reason, &names(names_), None, 365, NOW).await.unwrap();
    }

    const ONE: &str = "192.168.0.1:443";
    const TWO: &str = "192.168.0.1:443 registry.example.com:5000";

    #[tokio::test]
    async fn a_rotation_keeps_the_old_ca_trusted_until_its_end_and_signs_with_the_new_one_only_after_the_switch() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let mut state = open(&root, ONE).await;
        let status = status(&state, &RegistryKey::generate().unwrap());
        let old = state.ca().unwrap().pem();
        assert_eq!(state.rotation_due(&names(ONE), None, NOW).unwrap(), None);
        assert_eq!(state.rotation_due(&names(TWO), None, NOW).unwrap(), Some(Reason::Names));
        begin(&mut state, Reason::Names, TWO).await;
        let published = state.trusted_certificates();
        assert_eq!((published.len(), &published[1]), (2, &old));
        let first = state.certify(&status, &names(ONE), NOW, 90).await.unwrap();
        assert!(state.certify(&status, &names(TWO), NOW, 90).await.is_err(), "the old CA may not speak for the new name");

        state.switch(NOW).await.unwrap();
        assert_eq!(state.trusted_certificates(), published, "the switch changes nothing of what is trusted");
        assert!(state.speaks_for(&names(TWO)).unwrap());
        let second = state.certify(&status, &names(TWO), NOW, 90).await.unwrap();
        assert_ne!(first, second);
        state.retire_earlier().await.unwrap();
        assert_eq!(state.trusted_certificates(), published[..1]);
        assert_eq!(state.rotation_due(&names(TWO), None, NOW).unwrap(), None);
    }

    #[tokio::test]
    async fn a_rotation_goes_on_after_a_kill_at_every_step() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let mut state = open(&root, ONE).await;
        let folder = root.controller_state("private-registry");
        let (old_ca, alone) = (std::fs::read(folder.join("ca.pem")).unwrap(), state.trusted_certificates());
        begin(&mut state, Reason::Order, ONE).await;
        let published = state.trusted_certificates();
        // The key was written, the record not yet.
        let record = std::fs::read(folder.join("state.json")).unwrap();
        let mut before: serde_json::Value = serde_json::from_slice(&record).unwrap();
        before["rotation"] = serde_json::Value::Null;
        std::fs::write(folder.join("state.json"), before.to_string()).unwrap();
        let next_ca = std::fs::read(folder.join("next-ca.pem")).unwrap();
        assert_eq!(open(&root, ONE).await.trusted_certificates(), alone);
        assert!(!folder.join("next-ca.pem").exists());
        std::fs::write(folder.join("state.json"), &record).unwrap();
        std::fs::write(folder.join("next-ca.pem"), &next_ca).unwrap();

        let mut state = open(&root, ONE).await;
        assert_eq!((state.trusted_certificates(), state.rotation().unwrap().stage), (published.clone(), Stage::Published));
        state.switch(NOW).await.unwrap();
        // As a kill right after the record was written leaves it: the new CA not yet in its place.
        std::fs::write(folder.join("next-ca.pem"), &next_ca).unwrap();
        std::fs::write(folder.join("ca.pem"), &old_ca).unwrap();
        let mut state = open(&root, ONE).await;
        assert_eq!((state.trusted_certificates(), state.rotation().unwrap().stage), (published.clone(), Stage::Switched));
        assert_eq!(std::fs::read(folder.join("ca.pem")).unwrap(), next_ca);
        assert!(!folder.join("next-ca.pem").exists());
        state.retire_earlier().await.unwrap();
        assert_eq!(open(&root, ONE).await.trusted_certificates(), published[..1]);
    }

    #[tokio::test]
    async fn a_rotation_whose_new_key_cannot_be_kept_has_not_begun_and_one_from_a_ca_that_has_ended_needs_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let mut state = open(&root, ONE).await;
        let before = state.trusted_certificates();
        let in_the_way = root.controller_state("private-registry").join("next-ca.pem");
        std::fs::create_dir(&in_the_way).unwrap();
        assert!(state.begin_rotation(Reason::Order, &names(ONE), Some("run"), 365, NOW).await.is_err());
        assert_eq!((state.rotation(), state.rotated_for(), state.trusted_certificates()), (None, None, before));
        std::fs::remove_dir(&in_the_way).unwrap();

        let years_later = NOW + 20 * 365 * 86_400;
        assert_eq!(state.rotation_due(&names(ONE), None, years_later).unwrap(), Some(Reason::Age));
        state.begin_rotation(Reason::Age, &names(ONE), None, 365, years_later).await.unwrap();
        state.switch(years_later).await.unwrap();
        let status = status(&state, &RegistryKey::generate().unwrap());
        state.certify(&status, &names(ONE), years_later, 90).await.unwrap();
    }

    #[tokio::test]
    async fn a_rotation_for_a_name_that_is_taken_back_is_dropped_and_one_for_a_further_name_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let mut state = open(&root, ONE).await;
        let old = state.trusted_certificates();
        begin(&mut state, Reason::Names, TWO).await;
        assert!(!state.rotation_is_void(&names(TWO)).unwrap());
        assert_eq!(state.rotation_due(&names("third.example.com:443"), None, NOW).unwrap(), Some(Reason::Names));
        assert!(state.rotation_is_void(&names(ONE)).unwrap());
        state.drop_rotation().await.unwrap();
        assert_eq!(open(&root, ONE).await.trusted_certificates(), old);
    }

    #[tokio::test]
    async fn a_lost_ca_key_is_a_rotation_in_which_the_old_certificate_stays_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let mut state = open(&root, ONE).await;
        let status = status(&state, &RegistryKey::generate().unwrap());
        state.certify(&status, &names(ONE), NOW, 90).await.unwrap();
        let (leaf, old) = (state.leaf(&status, &names(ONE)).unwrap().fingerprint.clone(), state.ca().unwrap().pem());
        std::fs::remove_file(root.controller_state("private-registry").join("ca.pem")).unwrap();
        let mut state = open(&root, ONE).await;
        assert_eq!(state.rotation_due(&names(ONE), None, NOW).unwrap(), Some(Reason::LostKey));
        begin(&mut state, Reason::LostKey, ONE).await;
        assert_eq!(state.trusted_certificates()[1], old);
        assert_eq!(state.leaf(&status, &names(ONE)).map(|l| l.fingerprint.clone()), Some(leaf));
        assert!(matches!(state.certify(&status, &names(ONE), NOW, 90).await, Err(StateError::KeyLost)));
        state.switch(NOW).await.unwrap();
        state.certify(&status, &names(ONE), NOW, 90).await.unwrap();
    }

    #[tokio::test]
    async fn a_ca_that_loses_its_key_before_it_has_signed_is_replaced_in_its_own_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let lose = || std::fs::remove_file(root.controller_state("private-registry").join("ca.pem")).unwrap();
        let mut state = open(&root, ONE).await;
        let old = state.ca().unwrap().pem();
        begin(&mut state, Reason::Order, ONE).await;
        lose();
        let mut state = open(&root, ONE).await;
        assert!(state.key_is_lost());
        assert_eq!(state.rotation_due(&names(ONE), None, NOW).unwrap(), None, "its successor is on its way");
        state.switch(NOW).await.unwrap();
        assert!(!state.key_is_lost());
        lose();
        let mut state = open(&root, ONE).await;
        assert_eq!(state.rotation_due(&names(ONE), None, NOW).unwrap(), Some(Reason::LostKey));
        begin(&mut state, Reason::LostKey, ONE).await;
        assert_eq!((state.trusted_certificates().len(), state.trusted_certificates()[2].clone()), (3, old));
        state.switch(NOW).await.unwrap();
        state.retire_earlier().await.unwrap();
        assert_eq!(state.trusted_certificates(), [state.ca().unwrap().pem()]);
        let status = status(&state, &RegistryKey::generate().unwrap());
        state.certify(&status, &names(ONE), NOW, 90).await.unwrap();
    }

    #[tokio::test]
    async fn a_rotation_is_due_by_age_and_once_for_each_run_of_the_job() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = open(&HostRoot::at(dir.path()), ONE).await;
        let due = |state: &State, run, days: i64| state.rotation_due(&names(ONE), run, NOW + days * 86_400).unwrap();
        assert_eq!((due(&state, None, 240), due(&state, None, 250)), (None, Some(Reason::Age)));
        assert_eq!(due(&state, Some("run-1"), 0), Some(Reason::Order));
        state.begin_rotation(Reason::Order, &names(ONE), Some("run-1"), 365, NOW).await.unwrap();
        state.switch(NOW).await.unwrap();
        state.retire_earlier().await.unwrap();
        assert_eq!((due(&state, Some("run-1"), 0), due(&state, Some("run-2"), 0)), (None, Some(Reason::Order)));
    }

    #[tokio::test]
    async fn without_a_ca_of_its_own_there_is_none_and_one_that_there_was_is_let_go_of() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let open_without = async || State::open(Store::on_host(&root, "private-registry").unwrap(), None, NOW).await.unwrap();
        let ca = root.controller_state("private-registry").join("ca.pem");
        let state = open_without().await;
        assert!(state.ca().is_none() && state.trusted_certificates().is_empty() && !ca.exists());
        assert_eq!(state.rotation_due(&names(ONE), Some("run"), NOW).unwrap(), None);
        begin(&mut open(&root, ONE).await, Reason::Order, ONE).await;
        let mut state = open_without().await;
        assert_eq!(state.trusted_certificates().len(), 2, "until the registry serves with another certificate");
        state.drop_ca().await.unwrap();
        assert!(open_without().await.trusted_certificates().is_empty() && !ca.exists());
    }

    #[tokio::test]
    async fn a_leaf_of_another_ca_is_in_force_for_its_names_and_that_ca_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let mut state = State::open(Store::on_host(&root, "private-registry").unwrap(), None, NOW).await.unwrap();
        let status = status(&state, &RegistryKey::generate().unwrap());
        let other = Authority::create("other", 1, &names(ONE), NOW, 365).unwrap();
        let chain = other.sign_leaf(state.request(&status).unwrap(), &names(ONE), NOW, 90).unwrap();
        state.keep_leaf(chain, &names(ONE), "first".into(), NOW).await.unwrap();
        assert!(state.leaf_of(&status, &names(ONE), "first").is_some() && state.leaf(&status, &names(ONE)).is_none());
        assert!(state.leaf_of(&status, &names(ONE), "second").is_none() && state.leaf_of(&status, &names(TWO), "first").is_none());
        state.let_go_of_leaf("run").await.unwrap();
        assert!(state.leaf_of(&status, &names(ONE), "first").is_none() && state.rotated_for() == Some("run"));
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
