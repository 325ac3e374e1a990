//! A registry's program that does anything but answer, and clients of the role that do anything but ask.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::config::RegistryConfig;
use super::images::Lister;
use super::server::{self, Delivery, Desk};
use super::{Access, health, role};
use crate::certificates::{EnrolmentKey, OrderKey, OrderSigner};
use crate::dcos::Api;
use crate::hostile::{ALL, Malice, SLOW, Server, ask, besiege, withstands};

/// A role whose registry is at this address.
fn config(registry: SocketAddr) -> RegistryConfig {
    RegistryConfig {
        service: "private-registry".into(),
        order_key: OrderKey::from_base64(&OrderSigner::generate().unwrap().verifying_key_base64()).unwrap(),
        enrolment_key: EnrolmentKey::generate().unwrap(),
        settings: crate::json::of_text(r#"{"log_level":"info","delete_enabled":true,"drain_seconds":1,"insecure":true}"#).unwrap(),
        host: "10.0.0.1".into(),
        task: "task".into(),
        state: PathBuf::from("/nowhere"),
        data: PathBuf::from("/nowhere"),
        backup: None,
        listen: registry,
        status_listen: (Ipv4Addr::LOCALHOST, 0).into(),
        debug_listen: registry,
        patience: Duration::from_secs(1),
        program: PathBuf::from("registry"),
    }
}

async fn serving(registry: SocketAddr) -> (SocketAddr, mpsc::Receiver<Delivery>) {
    let config = config(registry);
    let (_status, status) = watch::channel(role::first_status(&config));
    let (orders_of_desk, orders) = mpsc::channel(1);
    let desk = Desk::new(&config, Access::Open, status, orders_of_desk, watch::channel(0).0).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(server::serve(listener, desk));
    (address, orders)
}

#[tokio::test]
async fn the_registrys_own_answers_are_cut_off() {
    let list = |url: String| {
        let lister = Lister::new(&config(url.trim_start_matches("http://").parse().unwrap()), Access::Open).unwrap();
        async move { lister.page(None).await.map(|page| page.images.len()) }
    };
    let quick: Vec<Malice> = ALL.into_iter().filter(|malice| !SLOW.contains(malice)).collect();
    withstands(&quick, 4 * 1024 * 1024, Duration::from_secs(10), list).await;
    // Whatever it says of its health, a problem or nothing comes of it.
    let client = Api::client().unwrap();
    for malice in ALL {
        let server = Server::start(malice).await;
        let said = timeout(Duration::from_secs(4), health::said(&client, server.address)).await.expect("it ends");
        assert!(said.is_empty() && server.elsewhere() == 0, "{malice:?}: {said:?}");
    }
}

#[tokio::test]
async fn whoever_besieges_the_registry_role_keeps_nobody_from_its_status() {
    let (address, _orders) = serving(Server::start(Malice::Silent).await.address).await;
    besiege(address, server::LIMITS.connections, "/status").await;
    // It waits for a certificate.
    assert_eq!(ask(address, "/health").await, Some(503));
}

#[tokio::test]
async fn the_list_of_images_is_for_the_controller_alone() {
    let (address, _orders) = serving(Server::start(Malice::Silent).await.address).await;
    assert_eq!(ask(address, "/images").await, Some(403));
    assert_eq!(ask(address, "/images?last=a:1").await, Some(403));
}
