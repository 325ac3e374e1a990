//! A registry outside the cluster, as Docker Hub is: with TLS of its own CA, and with or without an authorisation server.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::Cluster;
use crate::token_server::Issuer;

/// Where it is.
pub(crate) const UPSTREAM: &str = "192.168.1.200:5443";
const TOKEN_PORT: u16 = 5080;

pub(crate) struct Upstream {
    dir: PathBuf,
}

impl Upstream {
    /// A registry with the image `base/hello:1`. `asks`: it lets in `alice` with the password `wonderland` only.
    pub(crate) fn start(cluster: &Cluster, asks: bool) -> Self {
        let upstream = Self { dir: cluster.lab.path().join("agents/192.168.1.200/root/tmp/upstream") };
        fs::create_dir_all(&upstream.dir).unwrap();
        upstream.openssl("-keyout ca.key -out ca.pem -subj /CN=upstream-CA");
        upstream.openssl("-CA ca.pem -CAkey ca.key -keyout tls.key -out tls.crt -subj /CN=upstream -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:192.168.1.200");
        let mut config = "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /tmp/upstream\nhttp:\n  addr: 0.0.0.0:5443\n  tls:\n    certificate: /tmp/upstream/tls.crt\n    key: /tmp/upstream/tls.key\n".to_owned();
        if asks {
            let issuer = Issuer::new("hub", "hub-registry");
            fs::write(upstream.dir.join("issuer.pem"), issuer.certificate()).unwrap();
            config += &format!(
                "auth:\n  token:\n    realm: http://192.168.1.200:{TOKEN_PORT}/token\n    service: hub-registry\n    issuer: hub\n    rootcertbundle: /tmp/upstream/issuer.pem\n"
            );
            fs::write(upstream.dir.join("token-server.json"), issuer.for_server(TOKEN_PORT)).unwrap();
            fs::copy(std::env::current_exe().unwrap(), upstream.dir.join("token-server")).unwrap();
            cluster.sh_ok("outside", &Issuer::start_server("/tmp/upstream/token-server", "/tmp/upstream/token-server.json"));
        }
        fs::write(upstream.dir.join("config.yml"), config).unwrap();
        upstream.resume(cluster);
        if asks {
            let login = "mkdir -p /tmp/home; echo wonderland | HOME=/tmp/home docker login -u alice --password-stdin 127.0.0.1:5443";
            cluster.wait("the upstream", 30, || cluster.sh("outside", login).status.success());
        }
        upstream.push(cluster, "base/hello:1");
        upstream
    }

    /// Pushes the canary under a name.
    pub(crate) fn push(&self, cluster: &Cluster, name: &str) {
        let push = format!("docker tag canary:1 127.0.0.1:5443/{name} && HOME=/tmp/home docker push -q 127.0.0.1:5443/{name}");
        cluster.wait("a push to the upstream", 30, || cluster.sh("outside", &push).status.success());
    }

    /// Lets in `alice` by htpasswd from its next start on, without an authorisation server.
    pub(crate) fn ask_by_htpasswd(&self) {
        let hash = private_registry::users::hash(&private_registry::secret::Secret::new("wonderland".to_owned())).unwrap();
        fs::write(self.dir.join("htpasswd"), format!("alice:{hash}\n")).unwrap();
        let config = fs::read_to_string(self.dir.join("config.yml")).unwrap();
        let (before, _) = config.split_once("auth:").unwrap();
        let auth = "auth:\n  htpasswd:\n    realm: hub\n    path: /tmp/upstream/htpasswd\n";
        fs::write(self.dir.join("config.yml"), before.to_owned() + auth).unwrap();
    }

    /// Starts it.
    pub(crate) fn resume(&self, cluster: &Cluster) {
        let serve = "setsid sh -c 'echo $$ >/tmp/upstream/pid; exec docker-registry serve /tmp/upstream/config.yml' >/tmp/upstream/log 2>&1 </dev/null &";
        cluster.sh_ok("outside", serve);
    }

    /// Stops it.
    pub(crate) fn stop(&self, cluster: &Cluster) {
        cluster.sh_ok("outside", "kill $(cat /tmp/upstream/pid)");
        cluster
            .wait("the upstream's end", 20, || !cluster.sh("outside", "curl -sk -o /dev/null https://127.0.0.1:5443/v2/").status.success());
    }

    /// PEM of its CA.
    pub(crate) fn ca(&self) -> String {
        fs::read_to_string(self.dir.join("ca.pem")).unwrap()
    }

    fn openssl(&self, arguments: &str) {
        let common = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30";
        let output = Command::new("openssl").current_dir(&self.dir).args(common.split(' ')).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
