//! How every server of ours takes connections: bounded in number, time and memory, and so that whoever holds many, or says nothing,
//! keeps nobody else out.
//!
//! Where all places are taken, the peer that has most of them gives one back, the oldest. Peers with one connection each lose it only if
//! they have asked for nothing yet; else the newcomer has to come again.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep, timeout};

/// A peer that takes nothing of its answer for so long is gone.
const STALLED: Duration = Duration::from_secs(60);
/// The head of a request, and what is read ahead of its body. A name of an image and its tag have 400 characters at most.
const BUFFER: usize = 16 * 1024;

/// Who is answered while he still sends, as with a body that is too large, gets such a time and amount to come to the answer. A connection
/// that is closed with something unread takes the answer back (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// What a server has room and time for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Time in which the head of a request must have arrived, and in which a connection may be without one.
    pub(crate) head: Duration,
    /// Time for one exchange, the only one of its connection. Without it, a connection lasts as long as its peer takes what it is sent.
    pub(crate) exchange: Option<Duration>,
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Answers what comes in on a listener, for ever.
pub(crate) async fn serve<S, B>(listener: TcpListener, service: S, limits: Limits)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Fault>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Fault>,
{
    let places = Places::default();
    let mut number = 0;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, peer)) => (stream, peer.ip()),
            // Out of descriptors, or a peer that went away: the next one may do better.
            Err(error) => {
                tracing::debug!(%error, "no connection could be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !places.make_room(limits.connections) {
            continue;
        }
        number += 1;
        let asked = Arc::new(AtomicBool::new(false));
        let service = Noted { inner: service.clone(), asked: Arc::clone(&asked) };
        let place = Place { number, places: places.clone() };
        // Locked until it is noted, lest it ends before.
        let mut held = places.lock();
        let task = tokio::spawn(async move {
            // An error is the peer's affair: it hung up, was too slow, or sent no HTTP.
            let _ = connection(stream, service, limits).await;
            drop(place);
        });
        held.push(Held { number, peer, asked, task: task.abort_handle() });
    }
}

async fn connection<S, B>(stream: TcpStream, service: S, limits: Limits) -> Result<(), Fault>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Fault>,
    B: Body + 'static,
    B::Error: Into<Fault>,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(BUFFER).keep_alive(limits.exchange.is_none());
    let mut stream = Patient::new(stream);
    let exchange = http.serve_connection(TokioIo::new(&mut stream), service);
    let exchanged = match limits.exchange {
        Some(time) => timeout(time, exchange).await?,
        None => exchange.await,
    };
    linger(&mut stream.stream).await;
    Ok(exchanged?)
}

/// Reads what still comes, and forgets it.
async fn linger(stream: &mut TcpStream) {
    let (mut buffer, mut left) = (vec![0; BUFFER], LINGER_BYTES);
    let all = async {
        while let Ok(read @ 1..) = stream.read(&mut buffer).await
            && read < left
        {
            left -= read;
        }
    };
    let _ = timeout(LINGER, all).await;
}

/// A connection that is open.
struct Held {
    number: u64,
    peer: IpAddr,
    /// Whether a whole request has come in on it.
    asked: Arc<AtomicBool>,
    task: AbortHandle,
}

/// All of them, oldest first.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<Vec<Held>>>);

impl Places {
    fn lock(&self) -> MutexGuard<'_, Vec<Held>> {
        // Only whole entries come and go.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a place for one more now.
    fn make_room(&self, most: usize) -> bool {
        let mut held = self.lock();
        if held.len() < most {
            return true;
        }
        let Some(index) = gives_way(&held) else { return false };
        held.remove(index).task.abort();
        true
    }
}

/// Who gives way, if anybody has to: the oldest of the peer that has most.
fn gives_way(held: &[Held]) -> Option<usize> {
    let mut of_peer: HashMap<IpAddr, usize> = HashMap::new();
    held.iter().for_each(|one| *of_peer.entry(one.peer).or_default() += 1);
    let (mut best, mut most) = (None, 0);
    for (index, one) in held.iter().enumerate() {
        let count = of_peer[&one.peer];
        if count > most && (count > 1 || !one.asked.load(Ordering::Relaxed)) {
            (best, most) = (Some(index), count);
        }
    }
    best
}

/// Gives the place back, however the connection ends.
struct Place {
    number: u64,
    places: Places,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().retain(|held| held.number != self.number);
    }
}

/// Notes that something was asked.
struct Noted<S> {
    inner: S,
    asked: Arc<AtomicBool>,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Noted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.asked.store(true, Ordering::Relaxed);
        self.inner.call(request)
    }
}

/// A stream whose writing fails when the peer has taken nothing for long.
struct Patient {
    stream: TcpStream,
    /// Runs while a write is waiting.
    ends: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream) -> Self {
        Self { stream, ends: None }
    }

    fn within_time<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.ends = None;
            return written;
        }
        let ends = self.ends.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + STALLED)));
        ends.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.within_time(written, cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.within_time(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.within_time(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn held(peers: &[(u8, bool)]) -> Vec<Held> {
        let one = |(number, (peer, asked)): (usize, &(u8, bool))| Held {
            number: number as u64,
            peer: IpAddr::from([10, 0, 0, *peer]),
            asked: Arc::new(AtomicBool::new(*asked)),
            task: tokio::spawn(std::future::pending::<()>()).abort_handle(),
        };
        peers.iter().enumerate().map(one).collect()
    }

    /// A server that answers everything with 400 and reads no body.
    async fn refusing() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = hyper::service::service_fn(|_| async {
            let mut response = Response::new("no".to_string());
            *response.status_mut() = hyper::StatusCode::BAD_REQUEST;
            Ok::<_, std::convert::Infallible>(response)
        });
        let limits = Limits { connections: 8, head: Duration::from_secs(5), exchange: Some(Duration::from_secs(5)) };
        tokio::spawn(serve(listener, service, limits));
        address
    }

    #[tokio::test]
    async fn who_is_answered_while_he_still_sends_comes_to_read_the_answer() {
        let address = refusing().await;
        for _ in 0..20 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 600000\r\n\r\n").await.unwrap();
            for _ in 0..100 {
                stream.write_all(&[b'x'; 6000]).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        }
    }

    #[tokio::test]
    async fn who_never_stops_sending_is_cut_off() {
        let mut stream = TcpStream::connect(refusing().await).await.unwrap();
        stream.write_all(b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let sends = async { while stream.write_all(b"1\r\nx\r\n").await.is_ok() {} };
        assert!(timeout(2 * LINGER, sends).await.is_ok());
    }

    #[tokio::test]
    async fn whoever_has_most_connections_gives_way_and_nobody_who_has_one_that_is_being_answered() {
        for (peers, gives) in [
            (vec![(1, true), (2, true), (2, true), (3, false)], Some(1)),
            (vec![(1, true), (3, false), (2, true)], Some(1)),
            (vec![(1, true), (2, true), (3, true)], None),
            (vec![(1, false), (2, true), (2, false), (1, true), (2, true)], Some(1)),
        ] {
            assert_eq!(gives_way(&held(&peers)), gives, "{peers:?}");
        }
    }
}
