//! What an open page is told: `GET /v1/events`, a stream of server-sent events.
//!
//! The first event carries everything; those that follow carry the parts of the page and the agents that are otherwise than before. Of
//! ten thousand agents that are all well a listener therefore hears little.

use crate::in_order::InOrder as _;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::report::AgentReport;
use super::unix_now;

/// So many pages may be open at a time; others ask again and again instead.
pub(super) const SEATS: usize = 64;
/// The page takes a stream that is silent for three times as long for dead.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Between two events.
const PAUSE: Duration = Duration::from_secs(1);
/// A listener that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a request asks for.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    /// End after the first event: for pages behind a proxy that holds an answer back until it ends.
    #[serde(default)]
    once: bool,
}

/// All that the page shows, as it is sent.
#[derive(Debug, Default, PartialEq)]
pub(super) struct View {
    /// HTML by the id of the element that it is the inside of.
    pub(super) parts: BTreeMap<&'static str, String>,
    /// By host.
    pub(super) agents: BTreeMap<String, Value>,
}

impl View {
    pub(super) fn row(agent: &AgentReport) -> Value {
        let AgentReport { host, role, state, detail, sysctl, proven_at, .. } = agent;
        json!({ "host": host, "role": role, "state": state, "detail": detail, "sysctl": sysctl, "proven": proven_at })
    }

    /// The event for somebody who has been told `before`; none if there is nothing to tell.
    pub(super) fn event(&self, before: Option<&Self>) -> Option<String> {
        let parts: BTreeMap<_, _> = self.parts.iter().filter(|(id, html)| before.is_none_or(|b| b.parts.get(*id) != Some(html))).in_order();
        let agents: Vec<&Value> =
            self.agents.iter().filter(|(host, row)| before.is_none_or(|b| b.agents.get(*host) != Some(row))).map(|(_, row)| row).collect();
        let gone: Vec<&String> = before.iter().flat_map(|b| b.agents.keys()).filter(|host| !self.agents.contains_key(*host)).collect();
        if before.is_some() && parts.is_empty() && agents.is_empty() && gone.is_empty() {
            return None;
        }
        let data = json!({ "now": unix_now(), "whole": before.is_none(), "parts": parts, "agents": agents, "gone": gone });
        // JSON has no line breaks, which would end the event.
        Some(format!("data: {data}\n\n"))
    }
}

/// Who listens.
pub(super) struct Listeners {
    changed: watch::Sender<()>,
    seats: Arc<Semaphore>,
    /// What was made for the last one who asked; none when it is out of date.
    made: Mutex<Option<Arc<View>>>,
    /// The event with everything in it, what it was made of, and when.
    whole: Mutex<Option<(Arc<View>, Instant, Bytes)>>,
}

impl Default for Listeners {
    fn default() -> Self {
        Self { changed: watch::Sender::new(()), seats: Arc::new(Semaphore::new(SEATS)), made: Mutex::default(), whole: Mutex::default() }
    }
}

impl Listeners {
    /// To be called after what the page shows has changed, by somebody who does not hold it locked any more: `make` locks it.
    pub(super) fn changed(&self) {
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.changed.send_replace(());
    }

    /// What there is to see, made by `make` once for all who ask before it changes.
    pub(super) fn view(&self, make: impl FnOnce() -> View) -> Arc<View> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(made.get_or_insert_with(|| Arc::new(make())))
    }

    /// One text for all who ask at about the same time: of a large cluster it is large.
    fn whole(&self, view: &Arc<View>) -> Bytes {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        match &*whole {
            // It tells the time.
            Some((of, at, text)) if Arc::ptr_eq(of, view) && at.elapsed() < PAUSE => text.clone(),
            _ => {
                let text = Bytes::from(view.event(None).unwrap_or_default());
                *whole = Some((Arc::clone(view), Instant::now(), text.clone()));
                text
            }
        }
    }

    /// The answer; `look` gives what there is to see.
    pub(super) fn answer(&self, asked: &Asked, look: impl Fn() -> Arc<View> + Send + 'static) -> Response {
        let headers = [
            (header::CONTENT_TYPE.as_str(), "text/event-stream"),
            (header::CACHE_CONTROL.as_str(), "no-store"),
            // For nginx, which Admin Router is.
            ("x-accel-buffering", "no"),
        ];
        if asked.once {
            return (headers, self.whole(&look())).into_response();
        }
        let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() else {
            return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open; this one has to ask again and again\n").into_response();
        };
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(tell(sender, self.changed.subscribe(), look, seat));
        (headers, Body::new(Stream(receiver))).into_response()
    }
}

/// Tells one listener until it is gone.
async fn tell(sender: mpsc::Sender<Bytes>, mut changed: watch::Receiver<()>, look: impl Fn() -> Arc<View>, _seat: OwnedSemaphorePermit) {
    let send = async |text: String| matches!(timeout(PATIENCE, sender.send(text.into())).await, Ok(Ok(())));
    let mut told: Option<Arc<View>> = None;
    let mut silent_since = Instant::now();
    loop {
        changed.mark_unchanged();
        let view = look();
        if let Some(event) = view.event(told.as_deref()) {
            if !send(event).await {
                return;
            }
            silent_since = Instant::now();
            sleep(PAUSE).await;
        }
        told = Some(view);
        // Passes that change nothing wake us as well; they must not put off the sign of life.
        tokio::select! {
            _ = changed.changed() => {}
            () = sleep_until(silent_since + HEARTBEAT) => {
                if !send("event: beat\ndata:\n\n".into()).await {
                    return;
                }
                silent_since = Instant::now();
            }
            () = sender.closed() => return,
        }
    }
}

struct Stream(mpsc::Receiver<Bytes>);

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn view(rows: &[(&str, &str)], top: &str) -> View {
        let agents = rows.iter().map(|(host, state)| (host.to_string(), json!({ "host": host, "state": state }))).collect();
        View { parts: BTreeMap::from([("top", top.to_string()), ("bottom", "same".into())]), agents }
    }

    fn data(event: &str) -> Value {
        crate::json::of_text(event.strip_prefix("data: ").unwrap().trim_end()).unwrap()
    }

    #[test]
    fn the_first_event_has_everything_and_the_others_what_is_otherwise_than_before() {
        let before = view(&[("a", "pending"), ("b", "trusted"), ("c", "trusted")], "one\ntwo");
        let first = before.event(None).unwrap();
        assert!(first.ends_with("\n\n") && first.trim_end().lines().count() == 1, "{first}");
        assert_eq!((data(&first)["whole"].clone(), data(&first)["agents"].as_array().unwrap().len()), (json!(true), 3));
        assert_eq!(before.event(Some(&before)), None);
        let event = data(&view(&[("a", "trusted"), ("b", "trusted"), ("d", "pending")], "three").event(Some(&before)).unwrap());
        assert_eq!(event["agents"], json!([{ "host": "a", "state": "trusted" }, { "host": "d", "state": "pending" }]));
        assert_eq!((&event["gone"], &event["parts"], &event["whole"]), (&json!(["c"]), &json!({ "top": "three" }), &json!(false)));
    }

    #[tokio::test(start_paused = true)]
    async fn listeners_hear_changes_and_signs_of_life_and_have_a_limited_number_of_seats() {
        let listeners = Arc::new(Listeners::default());
        let now = Arc::new(Mutex::new("one"));
        let answer = |once| {
            let (looking, now) = (Arc::clone(&listeners), Arc::clone(&now));
            listeners.answer(&Asked { once }, move || looking.view(|| view(&[], *now.lock().unwrap())))
        };
        let mut body = answer(false).into_body();
        let mut heard = async || String::from_utf8(body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap();
        assert_eq!(data(&heard().await)["parts"]["top"], "one");
        *now.lock().unwrap() = "two";
        listeners.changed();
        assert_eq!(data(&heard().await)["parts"], json!({ "top": "two" }));
        // Passes that change nothing come more often than signs of life, and do not put them off.
        let passes = Arc::clone(&listeners);
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_secs(3)).await;
                passes.changed();
            }
        });
        let since = Instant::now();
        assert_eq!(heard().await, "event: beat\ndata:\n\n");
        assert!(since.elapsed() <= HEARTBEAT + Duration::from_secs(1));

        let mut others: Vec<Response> = (1..SEATS).map(|_| answer(false)).collect();
        assert_eq!(answer(false).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer(true).status(), StatusCode::OK);
        others.pop();
        // The place of one that is gone is free.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(answer(false).status(), StatusCode::OK);
    }
}
