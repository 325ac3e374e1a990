//! What the controller and its tasks say to each other.
//!
//! The controller sends a [`SignedOrder`] by `PUT /order`; a node or registry task answers `GET /status` with a [`NodeStatus`]
//! or a [`RegistryStatus`]. Orders carry no secret that others could read: they are public certificates and names, and users that are
//! sealed for the registry. What makes them binding is the signature. A task takes an order only if the signature verifies, the service is its own, and the version is not
//! older than the last one it took.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::certificates::KeyType;
use crate::names::HostPort;

/// The largest order or status that either side reads, in bytes. A bundle of ten CAs is about 10 kB.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Port of the registry's API inside its container (TLS).
pub const REGISTRY_PORT: u16 = 5000;
/// Port of the registry role's `/status` inside its container.
pub const REGISTRY_STATUS_PORT: u16 = 5001;
/// Name of the endpoint in the node pod; Marathon hands its port to the task as `ENDPOINT_STATUS`.
pub const NODE_ENDPOINT: &str = "status";

/// Environment variables that the controller's templates set and the roles read.
pub mod env {
    /// Name of the service this task belongs to.
    pub const SERVICE: &str = "PRIVATE_REGISTRY_SERVICE";
    /// Ed25519 public key, base64, that orders must be signed with.
    pub const ORDER_KEY: &str = "PRIVATE_REGISTRY_ORDER_KEY";
    /// The first trust order, a [`SignedOrder`](super::SignedOrder) as JSON.
    pub const FIRST_ORDER: &str = "PRIVATE_REGISTRY_FIRST_ORDER";
    /// Enrolment key, base64 of 32 bytes: authenticates the registry's certificate request and derives the HTTP secret.
    pub const ENROLMENT_KEY: &str = "PRIVATE_REGISTRY_ENROLMENT_KEY";
    /// [`RegistrySettings`](super::RegistrySettings) as JSON.
    pub const REGISTRY_SETTINGS: &str = "PRIVATE_REGISTRY_SETTINGS";
    /// SHA-256 (hex) of this program.
    pub const SHA256: &str = "PRIVATE_REGISTRY_SHA256";
    /// Where this program was fetched from.
    pub const URI: &str = "PRIVATE_REGISTRY_URI";
    /// Id of the controller's app, for the job that removes what it has left.
    pub const APP_ID: &str = "PRIVATE_REGISTRY_APP_ID";
    /// Base URL of the controller, for the job runs.
    pub const CONTROLLER_URL: &str = "PRIVATE_REGISTRY_CONTROLLER_URL";
}

/// An order as it travels: the exact bytes that were signed, and the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOrder {
    /// Base64 of the JSON of an [`Order`].
    pub payload: String,
    /// Base64 of the Ed25519 signature over the decoded payload.
    pub signature: String,
}

/// What the controller tells a task to do. Versions grow by one with every order of a service, whatever its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Name of the service that gives the order.
    pub service: String,
    /// Grows with every change; a task refuses an older one.
    pub version: u64,
    /// What to do.
    #[serde(flatten)]
    pub kind: OrderKind,
}

/// The kinds of [`Order`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum OrderKind {
    /// To nodes: trust these certificates for these names.
    Trust(TrustBundle),
    /// To nodes: put the host back as it was.
    Restore,
    /// To the node on the registry's agent, beside the order in force: copy these images into the registry.
    Preload(PreloadOrder),
    /// To the registry: serve with this certificate chain (PEM, leaf first). It must match the registry's own key.
    Certificate {
        /// PEM, leaf first.
        chain: String,
    },
    /// To the registry: one step of a garbage collection. Given again it says that the controller is still there.
    Collect {
        /// Metronome's id of the run that asks for it.
        run: String,
        /// What to do now.
        step: CollectStep,
        /// Delete nothing, only say what would be deleted. The registry stays writable.
        dry_run: bool,
        /// Whether manifests without a tag go as well.
        delete_untagged: bool,
    },
    /// To the registry: copy its images. Given again it changes nothing.
    Copy {
        /// Metronome's id of the run that asks for it.
        run: String,
        /// From where to where.
        kind: CopyKind,
        /// Whether nobody asks for it any more.
        stop: bool,
    },
    /// To the registry: let these users in. The text is sealed for the holder of the enrolment key, as orders travel by plain HTTP.
    Users {
        /// See [`EnrolmentKey::seal`](crate::certificates::EnrolmentKey::seal).
        sealed: String,
    },
    /// To the registry: it is your turn to restart, as you have said that you have to.
    Restart,
    /// To the registry: stop serving, remove key and certificate, and the images too if `delete_data`.
    Retire {
        /// Whether the stored images go as well.
        delete_data: bool,
    },
}

/// The steps of a garbage collection. Where several registries share a store, all of them prepare before one collects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollectStep {
    /// Become read-only.
    Prepare,
    /// Collect.
    Collect,
    /// Stop whatever is being done, and become writable again.
    Finish,
}

/// How far a registry is with a garbage collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollectPhase {
    /// It drains, and becomes read-only.
    Preparing,
    /// It is read-only, and nobody collects here.
    ReadOnly,
    /// It collects.
    Collecting,
    /// It has collected and is still read-only.
    Collected,
    /// It becomes writable.
    Reopening,
    /// It is as it was before.
    Done,
}

/// The last garbage collection that a registry's task took part in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    /// Metronome's id of the run.
    pub run: String,
    /// Whether nothing is deleted.
    pub dry_run: bool,
    /// How far it is.
    pub phase: CollectPhase,
    /// Blobs that are in use, as far as they are known.
    pub marked: u64,
    /// Blobs that were deleted, or would be.
    pub blobs: u64,
    /// Manifests that were deleted, or would be.
    pub manifests: u64,
    /// Bytes by which the store has shrunk, or would; none where the store is no directory.
    pub freed_bytes: Option<u64>,
    /// Seconds that it took to collect.
    pub seconds: u64,
    /// Seconds for which this registry was read-only.
    pub read_only_seconds: u64,
    /// Why it has failed, if it has.
    pub error: Option<String>,
}

impl Collection {
    /// Whether it is under way.
    pub fn is_active(&self) -> bool {
        self.phase != CollectPhase::Done
    }
}

/// Images to be copied into the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreloadOrder {
    /// The registry as docker is to spell it.
    pub registry: String,
    /// Whether docker has to log in there, with the account that the registry leaves on its host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub login: bool,
    /// In this order.
    pub images: Vec<PreloadImage>,
}

/// An image to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreloadImage {
    /// The image with its registry and tag.
    pub from: String,
    /// Path and tag in our registry.
    pub to: String,
    /// What was copied before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<Copied>,
}

/// Digests of an image there and here. They differ where docker has compressed the layers anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Copied {
    pub source: String,
    pub target: String,
}

/// How a node stands with a [`PreloadOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreloadStatus {
    /// Version of the order.
    pub version: u64,
    /// Every image of it.
    pub images: Vec<PreloadedImage>,
}

/// How an image of a [`PreloadOrder`] stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreloadedImage {
    /// The image with its registry and tag.
    pub image: String,
    /// In one word.
    pub state: PreloadState,
    /// Its size on the host, where it was copied.
    pub bytes: Option<u64>,
    /// Its digests, where they are known.
    pub copied: Option<Copied>,
    /// How far it is, or what went wrong and the remedy.
    pub detail: String,
}

/// See [`PreloadedImage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum PreloadState {
    Waiting,
    Copying,
    Done,
    /// It is tried again.
    Failed,
}

/// What is copied from where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyKind {
    /// Into the backup, what is not there yet.
    Backup,
    /// The same, and what is there already is read again.
    VerifiedBackup,
    /// Out of the backup. What the registry has beside it is gone afterwards.
    Restore,
    /// What a registry that has no directory makes of a restore: what it has beside the backup stays. Never ordered.
    Addition,
}

/// How far a registry is with copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyPhase {
    /// It drains, and becomes read-only for a restore.
    Preparing,
    /// It copies.
    Copying,
    /// It stops, and changes to what was restored.
    Switching,
    /// It is started as it was before.
    Reopening,
    /// It has come to its end.
    Done,
}

/// What was copied, or has been so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyCounts {
    /// Tags.
    pub images: u64,
    /// Blobs that the copy has.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that were not there before.
    pub blobs_copied: u64,
    /// Bytes that were read and written.
    pub bytes_copied: u64,
    /// Images that the registry itself cannot give any more.
    pub damaged: u64,
    /// The first of them, and what is wrong.
    pub damaged_images: Vec<String>,
    /// Whether both ends lie on one disk.
    pub same_disk: bool,
}

/// The last copying that a registry's task was told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copying {
    /// Metronome's id of the run.
    pub run: String,
    /// From where to where.
    pub kind: CopyKind,
    /// How far it is.
    pub phase: CopyPhase,
    /// What has been copied.
    pub counts: CopyCounts,
    /// Seconds that it took.
    pub seconds: u64,
    /// Why it has failed, if it has.
    pub error: Option<String>,
}

impl Copying {
    /// Whether it is under way.
    pub fn is_active(&self) -> bool {
        self.phase != CopyPhase::Done
    }
}

/// Public certificates and the registry's names: all that a host needs in order to trust.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// Every name that clients may use.
    pub names: Vec<TrustedName>,
    /// CA certificates, PEM, one each. None where a public CA is used, which hosts trust already.
    pub certificates: Vec<String>,
    /// Registries that this package has not installed.
    #[serde(default)]
    pub others: Vec<OtherTrust>,
    /// Stores beyond docker's and Mesos'.
    #[serde(default)]
    pub stores: Stores,
    /// Plain HTTP: docker is told not to ask for TLS at `names`.
    #[serde(default)]
    pub insecure: bool,
    /// Whether to set `net.netfilter.nf_conntrack_tcp_be_liberal=1`.
    pub conntrack_be_liberal: bool,
    /// Whether to remove the key and the certificate of a registry made by hand. Only once the registry serves with another one.
    #[serde(default)]
    pub clean_agents: bool,
}

/// Another registry and its CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherTrust {
    /// Where it is.
    pub name: HostPort,
    /// Its CA certificates, PEM, one each; or the one certificate that was pinned.
    pub certificates: Vec<String>,
}

/// Which stores beyond docker's and Mesos' a host writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Stores {
    pub containerd: bool,
    pub podman: bool,
    pub system: bool,
}

/// One of the registry's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedName {
    /// The name.
    pub name: HostPort,
    /// Whether every agent must be able to reach it, so that a proof is asked for. False for names of the outside.
    pub inside: bool,
}

/// How far a task has come. The words are what people read on the page and in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodePhase {
    /// Files and sysctl are in place and the real clients have proven it.
    Trusted,
    /// In place, but not yet proven, or waiting for something that comes by itself.
    Pending,
    /// Something on this host prevents it; `errors` says what.
    Failed,
    /// The host is as it was before.
    Restored,
}

/// A node's answer to `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name of the service.
    pub service: String,
    /// `MESOS_EXECUTOR_ID` of the task: Marathon must know an instance with the same UUID, else this is a stranger.
    pub executor: String,
    /// Host name of the agent.
    pub host: String,
    /// Version of the last order taken.
    pub order_version: u64,
    /// SHA-256 (hex) of the payload of the last order taken.
    pub order_digest: String,
    /// State in one word.
    pub phase: NodePhase,
    /// Files that this service owns on the host.
    pub files: Vec<OwnedFile>,
    /// The sysctl.
    pub sysctl: SysctlStatus,
    /// Last proof per name and client.
    pub proofs: Vec<Proof>,
    /// What went wrong, for people, with the remedy.
    pub errors: Vec<String>,
    /// Counts the passes over the host that have proven anew; those that only look at files are not counted.
    pub passes: u64,
    /// Whether the files of the order in force are written; what is left then is proof.
    #[serde(default)]
    pub in_place: bool,
    /// Path of the private key of a registry made by hand, if it lies here.
    #[serde(default)]
    pub exposed_key: Option<String>,
    /// What this node has removed of such a registry.
    #[serde(default)]
    pub cleaned: Vec<String>,
    /// Images that it copies into the registry, if it was told to.
    #[serde(default)]
    pub preload: Option<PreloadStatus>,
}

/// A file of the host and its content's digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedFile {
    /// Absolute path.
    pub path: String,
    /// SHA-256 of the content, hex; of the target for a symbolic link.
    pub sha256: String,
}

/// State of `net.netfilter.nf_conntrack_tcp_be_liberal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysctlStatus {
    /// In one word.
    pub state: SysctlState,
    /// Value now, if it can be read.
    pub value: Option<String>,
    /// Value found before the first service of ours changed it.
    pub found: Option<String>,
}

/// See [`SysctlStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SysctlState {
    /// We set it.
    Set,
    /// It was 1 before us; nothing to do, nothing to restore.
    AlreadySet,
    /// The key is absent: the module `nf_conntrack` is not loaded. Tried again on every pass.
    Pending,
    /// Writing failed; see the errors.
    Failed,
    /// The options say not to touch it.
    Unmanaged,
}

/// What one client found when it contacted one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// `docker`, `curl` or `handshake` (our own TLS client, where the other two are absent).
    pub client: String,
    /// The name as a client spells it.
    pub name: String,
    /// What came out.
    pub outcome: ProofOutcome,
    /// The client's own words, when it failed.
    pub detail: Option<String>,
    /// Unix time in seconds.
    pub at: u64,
}

/// See [`Proof`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProofOutcome {
    /// The client connected and accepted the certificate.
    Trusted,
    /// The client refused the certificate.
    Untrusted,
    /// Nobody answered, so nothing is proven either way.
    Unreachable,
}

/// What the registry role needs beside the key and the order, as JSON in its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrySettings {
    /// Log level of the registry: error, warn, info or debug.
    pub log_level: String,
    /// Whether images may be deleted through the API.
    pub delete_enabled: bool,
    /// Seconds that open requests get to finish at a stop.
    pub drain_seconds: u64,
    /// Plain HTTP: no key, no certificate, no request for one.
    #[serde(default)]
    pub insecure: bool,
    /// Kind of the key that the registry makes for itself.
    #[serde(default)]
    pub key_type: KeyType,
    /// Whose key and certificate it serves with, if not with its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provided: Option<Provided>,
    /// Refuse pushes and deletions.
    #[serde(default)]
    pub read_only: bool,
    /// Log every request.
    #[serde(default)]
    pub access_log: bool,
    /// Age in hours at which an upload that nobody goes on with is deleted; 0: never.
    #[serde(default)]
    pub upload_purge_hours: u32,
    /// Where the images lie.
    #[serde(default)]
    pub storage: StorageAt,
    /// Who may pull and push.
    #[serde(default)]
    pub auth: AuthBy,
    /// The registry that this one is a cache of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyOf>,
    /// Whether a directory for backups is mounted.
    #[serde(default)]
    pub backup: bool,
    /// Whether others serve the same images, so that this one leaves the VIP before it restarts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replicated: bool,
}

/// Where the images lie, as the registry's container sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
#[allow(missing_docs)]
pub enum StorageAt {
    /// The directory that is mounted for it.
    #[default]
    Directory,
    /// A directory of the sandbox: Marathon's persistent volumes have no other place in a docker container.
    Sandbox {
        directory: String,
    },
    S3 {
        bucket: String,
        root: String,
        region: String,
        /// Empty: that of the public cloud.
        endpoint: String,
        access_key: Option<HeldAt>,
        secret_key: Option<HeldAt>,
        redirect: bool,
    },
    Gcs {
        bucket: String,
        root: String,
        credentials: Option<HeldAt>,
        redirect: bool,
    },
    Azure {
        account: String,
        container: String,
        root: String,
        realm: String,
        account_key: Option<HeldAt>,
        redirect: bool,
    },
}

/// Who may pull and push.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
#[allow(missing_docs)]
pub enum AuthBy {
    /// Everybody.
    #[default]
    Nobody,
    /// Users of the operator's file, or if there is none those whom the service keeps.
    Htpasswd { file: Option<HeldAt> },
    /// An authorisation server. The certificates are PEM.
    Token { realm: String, service: String, issuer: String, certificates: String },
}

/// The registry that a cache is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ProxyOf {
    pub url: String,
    pub username: String,
    pub password: Option<HeldAt>,
    /// PEM of the CAs that its certificate is from, beside those that the image brings.
    #[serde(default)]
    pub certificates: String,
}

/// Where the operator's certificate and key are, as the registry's container sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provided {
    /// Chain in PEM, leaf first.
    pub certificate: HeldAt,
    /// Private key in PEM.
    pub key: HeldAt,
}

/// Where the registry's container finds something that the operator keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldAt {
    /// A file.
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
}

/// How far the registry task has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RegistryPhase {
    /// It has a key and a request, and waits for a certificate.
    AwaitingCertificate,
    /// The registry process runs, with a certificate that matches the key or, without a request and a leaf, over plain HTTP.
    Serving,
    /// The registry process is being restarted or has just ended by itself.
    Restarting,
    /// Key and certificate are gone.
    Retired,
    /// Something prevents it; `errors` says what.
    Failed,
}

/// The registry role's answer to `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryStatus {
    /// Name of the service.
    pub service: String,
    /// `MESOS_TASK_ID`, or `MESOS_CONTAINER_NAME` where Mesos does not give it.
    pub task: String,
    /// Host name of the agent.
    pub host: String,
    /// State in one word.
    pub phase: RegistryPhase,
    /// The request for a certificate for the key it holds. Absent once retired, and over plain HTTP.
    pub request: Option<CertificateRequest>,
    /// SHA-256 (hex) of the leaf's DER that the running registry serves.
    pub leaf_fingerprint: Option<String>,
    /// Unix time at which that leaf ends.
    pub leaf_not_after: Option<i64>,
    /// DNS names and addresses that the leaf is for.
    #[serde(default)]
    pub leaf_names: Vec<String>,
    /// Version of the last order taken.
    pub order_version: u64,
    /// How often the registry process was started in this task.
    pub starts: u64,
    /// Version of the registry's program, as it says itself.
    #[serde(default)]
    pub version: Option<String>,
    /// The last garbage collection in this task.
    #[serde(default)]
    pub collection: Option<Collection>,
    /// The last backup or restore in this task.
    #[serde(default)]
    pub copying: Option<Copying>,
    /// What went wrong, for people, with the remedy.
    pub errors: Vec<String>,
    /// Which users of the service's it lets in: an HMAC by the enrolment key. Absent where it has none of those.
    #[serde(default)]
    pub users: Option<String>,
    /// Whether it has to restart, and waits for its turn.
    #[serde(default)]
    pub restart_due: bool,
    /// The room for images, where they lie in a directory.
    #[serde(default)]
    pub room: Option<Room>,
}

/// A disk with images on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Size of the disk.
    pub total_bytes: u64,
    /// What is free of it.
    pub free_bytes: u64,
    /// What the images take; none before they have been counted for the first time.
    pub images_bytes: Option<u64>,
}

impl RegistryStatus {
    /// What a task says that knows nothing yet.
    pub fn first(service: &str, task: &str, host: &str) -> Self {
        Self {
            service: service.into(),
            task: task.into(),
            host: host.into(),
            phase: RegistryPhase::AwaitingCertificate,
            request: None,
            leaf_fingerprint: None,
            leaf_not_after: None,
            leaf_names: Vec::new(),
            order_version: 0,
            starts: 0,
            version: None,
            collection: None,
            copying: None,
            errors: Vec::new(),
            users: None,
            restart_due: false,
            room: None,
        }
    }
}

/// A certificate request and the proof that it comes from the holder of the enrolment key.
///
/// Only the public key of the request is used: the names in the certificate come from the controller alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// PKCS#10, PEM.
    pub csr: String,
    /// Hex of HMAC-SHA-256 over the PEM text with the enrolment key.
    pub mac: String,
}

/// Header of `GET /images` with the Unix time of the request.
pub const TIME_HEADER: &str = "private-registry-time";
/// Header of `GET /images` with the authentication code: hex of HMAC-SHA-256 with the enrolment key over what [`asked`] gives.
pub const MAC_HEADER: &str = "private-registry-mac";
/// So many seconds the clocks of the two sides may differ.
pub const CLOCK_DIFFERENCE: i64 = 300;

/// What is authenticated of a request. No certificate request begins like this, so the key serves both.
pub fn asked(method: &str, path_and_query: &str, unix_time: i64) -> String {
    format!("{method} {path_and_query} {unix_time}")
}

/// A part of the registry role's answer to `GET /images`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagesPage {
    /// Tags, by repository and name.
    pub images: Vec<Image>,
    /// What to give as `last` for the next part; none after the last one.
    pub next: Option<String>,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Repository.
    pub repository: String,
    /// Tag.
    pub tag: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Media type of its manifest.
    pub media_type: String,
    /// Of a manifest list or index: media type of the manifest for linux/amd64, if it has one.
    pub amd64: Option<String>,
    /// Bytes of configuration and layers, compressed; of a list or index those for linux/amd64.
    pub size: u64,
}

/// Media types of manifests.
#[allow(missing_docs)]
pub mod media {
    pub const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
    pub const SIGNED_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    pub const SCHEMA_2: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const ALL: [&str; 6] = [SCHEMA_2, LIST, OCI, OCI_INDEX, SIGNED_SCHEMA_1, SCHEMA_1];
}
