//! Services of the cluster that do anything but answer, or whoever stands in between where they are asked by plain HTTP.

use std::time::Duration;

use serde_json::{Value, json};

use super::cosmos::Cosmos;
use super::login::{Credential, Login};
use super::marathon::Marathon;
use super::mesos::Mesos;
use super::metronome::Metronome;
use super::secrets::Secrets;
use super::{Api, MAX_ANSWER_BYTES, TIMEOUT, ca, to_the_leader};
use crate::hostile::{ALL, Malice, SLOW, Server, withstands};
use crate::secret::Secret;

/// Longer than any answer may take.
const PATIENCE: Duration = TIMEOUT.saturating_add(Duration::from_secs(5));

/// A client as the controller has it.
fn api(url: &str) -> Api {
    Api::new(Api::builder().redirect(to_the_leader()).build().unwrap(), url)
}

fn login(url: &str) -> Login {
    let key = include_str!("../../tests/fixtures/service-account/private-key.pem");
    let stored = json!({ "scheme": "RS256", "uid": "account", "private_key": key, "login_endpoint": format!("{url}/login") });
    Login::new(Credential::parse(&Secret::new(stored.to_string())).unwrap(), Api::builder().redirect(to_the_leader()).build().unwrap())
}

#[tokio::test]
async fn no_answer_of_a_service_of_the_cluster_takes_more_memory_or_time_than_it_may_or_leads_elsewhere() {
    // One after the other what could take memory; what takes time, at the same time.
    let quick: Vec<Malice> = ALL.into_iter().filter(|malice| !SLOW.contains(malice)).collect();
    let most = MAX_ANSWER_BYTES;
    withstands(&quick, most, PATIENCE, |url| async move { Mesos(api(&url)).agents().await }).await;
    withstands(&quick, most, PATIENCE, |url| async move { Marathon(api(&url)).claims().await }).await;
    // Kinds that are read in another way.
    let ended = [Malice::Redirect, Malice::HangsUp, Malice::Bomb, Malice::Garbage, Malice::Nested];
    withstands(&ended, most, PATIENCE, |url| async move { Marathon(api(&url)).pod("/x").await.map(|pod| pod.is_some()) }).await;
    withstands(&ended, most, PATIENCE, |url| async move { Marathon(api(&url)).pods(|_| true).await }).await;
    withstands(&ended, most, PATIENCE, |url| async move { Metronome(api(&url)).job("x").await.map(|job| job.is_some()) }).await;
    withstands(&ended, most, PATIENCE, |url| async move { Secrets(api(&url)).get("x").await.map(|secret| secret.is_some()) }).await;
    withstands(&ended, most, PATIENCE, |url| async move { ca::Ca(api(&url)).certificate().await }).await;
    withstands(&ended, most, PATIENCE, |url| async move { login(&url).token(None).await }).await;
    let slow = async |what: usize| {
        withstands(&SLOW, most, PATIENCE, |url| async move {
            match what {
                0 => Mesos(api(&url)).agents().await.map(drop),
                1 => login(&url).token(None).await.map(drop),
                _ => api(&url).call::<Value>("PUT", "/v2/apps/x", Some(&json!({}))).await.map(drop),
            }
        })
        .await;
    };
    tokio::join!(slow(0), slow(1), slow(2));
}

#[tokio::test]
async fn cosmos_is_believed_only_when_it_says_that_it_has_installed() {
    let (most, soon) = (4 * 1024 * 1024, Duration::from_secs(3));
    let quick: Vec<Malice> = ALL.into_iter().filter(|malice| !SLOW.contains(malice)).collect();
    withstands(&quick, most, PATIENCE, |url| async move { Cosmos(api(&url)).install("marathon-lb").await }).await;
    // It has two minutes; how many is the same to whoever does not answer.
    let patience = soon + Duration::from_secs(5);
    withstands(&SLOW, most, patience, |url| async move { Cosmos(api(&url)).install_within("marathon-lb", soon).await }).await;
}

#[tokio::test]
async fn a_stream_of_events_that_never_ends_is_read_in_bounded_memory_until_it_is_left() {
    let server = Server::start(Malice::Endless).await;
    let mesos = Mesos(api(&server.url()));
    let mut added = 0;
    let watched = tokio::time::timeout(Duration::from_secs(1), mesos.watch(|_| added += 1)).await;
    assert!(watched.is_err() && added == 0 && server.sent() > 1024 * 1024, "{watched:?}");
}

#[tokio::test]
async fn a_master_that_does_not_lead_names_the_one_that_does_and_nobody_else_can_send_a_client_away() {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::response::IntoResponse as _;
    use axum::routing::get;
    // Two masters on one port, as they are on two machines.
    let leader = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = leader.local_addr().unwrap().port();
    let other = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let answer = || async { axum::Json(json!({ "slaves": [] })) };
    tokio::spawn(async move { axum::serve(leader, Router::new().route("/slaves", get(answer)).route("/else", get(answer))).await });
    let to = move |path: &'static str| {
        let location = format!("//127.0.0.2:{port}{path}");
        async move { (StatusCode::TEMPORARY_REDIRECT, [("location", location)]).into_response() }
    };
    let router = Router::new().route("/slaves", get(move || to("/slaves"))).route("/moved", get(move || to("/else")));
    tokio::spawn(async move { axum::serve(other, router).await });
    let url = format!("http://127.0.0.1:{port}");
    assert!(Mesos(api(&url)).agents().await.unwrap().is_empty());
    assert!(api(&url).get::<Value>("/moved").await.is_err());
    // A task's own address leads nowhere else at all.
    assert!(Mesos(Api::new(Api::client().unwrap(), &url)).agents().await.is_err());
}
