//! Clocks that are a day off, as the cluster's own clients see it: OpenSSL on an agent, which is told another time. The program itself is shown
//! another time by whoever traces it: a node and a registry in `tests/role_points.rs`, the controller in `tests/crash_points.rs`. The rest is
//! tested at the functions that are given a time (`src/certificates/authority.rs`).

use serde_json::json;

use crate::support::Cluster;

pub(super) const FAULTS: &[&str] = &["the clock of an agent is a day off", "the clock of the controller's agent is a day off"];

const DAY: i64 = 24 * 60 * 60;

/// What is served and what is trusted, held against each other by an agent's OpenSSL as of another day.
#[test]
#[ignore = "half a minute; ci/faults runs it"]
fn what_is_served_is_valid_on_agents_whose_clock_is_a_day_off() {
    let cluster = Cluster::start(2, 0);
    cluster.install_and_wait(&json!({ "exposure": { "marathon_lb": false } }));
    let agent = "192.168.1.81";
    cluster.sh_ok(agent, "openssl s_client -connect 192.168.0.1:443 </dev/null 2>/dev/null | openssl x509 >/tmp/leaf.pem");
    let now: i64 = cluster.sh_ok(agent, "date +%s").parse().unwrap();
    let verified = |at: i64| {
        let line = format!("openssl verify -attime {at} -CAfile /etc/docker/certs.d/192.168.0.1/ca.crt /tmp/leaf.pem 2>&1");
        cluster.sh(agent, &line)
    };
    for off in [-DAY, 0, DAY] {
        let said = verified(now + off);
        assert!(said.status.success(), "{off}: {}", said.stdout);
    }
    let early = verified(now - 2 * DAY);
    assert!(!early.status.success() && early.stdout.contains("not yet valid"), "{}", early.stdout);
}
