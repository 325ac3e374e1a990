//! Where things lie on an agent's host. Nothing else in the program spells these paths.
//!
//! Every path starts at a [`HostRoot`], which is `/` in production and a temporary directory in tests.

use std::path::{Path, PathBuf};

/// Where Linux distributions keep the CA certificates that they trust: Debian and its kin, Red Hat and its kin, SUSE.
pub(crate) const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// The registry's own account in the directory of its state: `name:password`, for root alone and anew at every start.
pub(crate) const ACCOUNT: &str = "account";

/// All that a registry writes into the directory of its state. A registry that has moved to another agent has left it behind.
pub(crate) const REGISTRY_FILES: [&str; 12] = [
    "tls.key",
    "tls.crt",
    "provided.key",
    "provided.crt",
    "config.yml",
    "htpasswd",
    "users",
    ACCOUNT,
    "gcs.json",
    "token.pem",
    "upstream-ca/ca.pem",
    "order.json",
];

/// The root of the host's file system as this process sees it.
#[derive(Debug, Clone)]
pub struct HostRoot(PathBuf);

impl Default for HostRoot {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl HostRoot {
    /// A root elsewhere, for tests.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The root itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Docker's per-registry trust (moby `CertsDir`).
    pub fn docker_certs(&self) -> PathBuf {
        self.0.join("etc/docker/certs.d")
    }

    /// Docker's settings.
    pub fn docker_etc(&self) -> PathBuf {
        self.0.join("etc/docker")
    }

    /// What dockerd reads at its start and when it reloads.
    pub fn docker_daemon_json(&self) -> PathBuf {
        self.docker_etc().join("daemon.json")
    }

    /// The CA path of DC/OS' own curl: the Mesos image puller and fetcher (DC/OS packages/curl/build, since 1.9.0).
    pub fn mesos_certs(&self) -> PathBuf {
        self.0.join("var/lib/dcos/pki/tls/certs")
    }

    /// Containerd's per-registry trust, where its `config_path` says so.
    pub fn containerd_certs(&self) -> PathBuf {
        self.0.join("etc/containerd/certs.d")
    }

    /// The per-registry trust of podman, skopeo and buildah.
    pub fn podman_certs(&self) -> PathBuf {
        self.0.join("etc/containers/certs.d")
    }

    /// Where an operator's CAs lie for the system's own store, and the program that adds them: Debian's, then Red Hat's.
    pub fn system_stores(&self) -> [(PathBuf, PathBuf); 2] {
        let (debian, red_hat) = ("usr/local/share/ca-certificates", "etc/pki/ca-trust/source/anchors");
        [(debian, "usr/sbin/update-ca-certificates"), (red_hat, "usr/bin/update-ca-trust")]
            .map(|(dir, program)| (self.0.join(dir), self.0.join(program)))
    }

    /// Where the tutorial for DC/OS 1.9 puts key and certificate of a registry made by hand, on every agent.
    pub fn tutorial_certs(&self) -> PathBuf {
        self.0.join("etc/privateregistry/certs")
    }

    /// The private key there: whoever gets to read it on one agent can pretend to be that registry to all of them.
    pub fn exposed_key(&self) -> PathBuf {
        self.tutorial_certs().join("domain.key")
    }

    /// The certificate there.
    pub fn exposed_certificate(&self) -> PathBuf {
        self.tutorial_certs().join("domain.crt")
    }

    /// Settings that systemd applies at boot.
    pub fn sysctl_d(&self) -> PathBuf {
        self.0.join("etc/sysctl.d")
    }

    /// The sysctl `…_conntrack_tcp_be_liberal` by its key of today and by that of old kernels, some of which have both for the same
    /// value. They exist once the module nf_conntrack is loaded, and are of the network namespace of whoever opens them: the node's
    /// task has the host's.
    pub fn conntrack_be_liberal(&self) -> [(&'static str, PathBuf); 2] {
        ["net.netfilter.nf_conntrack_tcp_be_liberal", "net.ipv4.netfilter.ip_conntrack_tcp_be_liberal"]
            .map(|key| (key, self.0.join("proc/sys").join(key.replace('.', "/"))))
    }

    /// State that all our services on this host share.
    pub fn shared_state(&self) -> PathBuf {
        self.0.join("var/lib/private-registry")
    }

    /// State of one service on this host. A service name holds letters, digits, '-' and '/'; '/' becomes '.'.
    pub fn service_state(&self, service: &str) -> PathBuf {
        self.shared_state().join(service.trim_matches('/').replace('/', "."))
    }

    /// The controller's state: CA key, order key, enrolment key. Mode 0700.
    pub fn controller_state(&self, service: &str) -> PathBuf {
        self.service_state(service).join("controller")
    }

    /// The node's manifest and last order.
    pub fn node_state(&self, service: &str) -> PathBuf {
        self.service_state(service).join("node")
    }

    /// The registry's key and certificate; mounted into its container at the same path.
    pub fn registry_state(&self, service: &str) -> PathBuf {
        self.service_state(service).join("registry")
    }

    /// Name and password of the registry's own account, for the node beside it; see [`ACCOUNT`].
    pub fn registry_account(&self, service: &str) -> PathBuf {
        self.registry_state(service).join(ACCOUNT)
    }

    /// The docker daemon's socket.
    pub fn docker_socket(&self) -> PathBuf {
        self.0.join("var/run/docker.sock")
    }

    /// DC/OS' own curl, which the Mesos fetcher and image puller run.
    pub fn dcos_curl(&self) -> PathBuf {
        self.0.join("opt/mesosphere/bin/curl")
    }
}
