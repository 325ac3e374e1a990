//! For tests: servers that do anything but answer, and clients that do anything but ask.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// What the kernel takes from a sender before anybody reads it.
const IN_SOCKETS: usize = 16 * 1024 * 1024;

/// How a server misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malice {
    /// Its answer does not end.
    Endless,
    /// A byte of the body every half a second.
    Trickle,
    /// A byte of the head every half a second.
    SlowHead,
    /// It takes the request and says nothing.
    Silent,
    /// It promises more than any memory has, and sends a little.
    HugeLength,
    /// It sends clients elsewhere.
    Redirect,
    /// Headers without an end.
    HeaderFlood,
    /// It hangs up in the middle of the body.
    HangsUp,
    /// What it sends is said to be compressed: a megabyte for every kilobyte.
    Bomb,
    /// It speaks no HTTP.
    Garbage,
    /// Valid JSON, nested so deep that reading it could take all of the stack.
    Nested,
}

/// All of it, first what takes no time.
pub(crate) const ALL: [Malice; 11] = [
    Malice::Endless,
    Malice::Redirect,
    Malice::HeaderFlood,
    Malice::HangsUp,
    Malice::Bomb,
    Malice::Garbage,
    Malice::Nested,
    Malice::Trickle,
    Malice::SlowHead,
    Malice::Silent,
    Malice::HugeLength,
];

/// Those for which a client has to wait until its patience ends.
pub(crate) const SLOW: [Malice; 4] = [Malice::Trickle, Malice::SlowHead, Malice::Silent, Malice::HugeLength];

/// A hostile server on loopback.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    sent: Arc<AtomicUsize>,
    elsewhere: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    /// Starts one.
    pub(crate) async fn start(malice: Malice) -> Self {
        let (listener, other) = (bind().await, bind().await);
        let address = listener.local_addr().unwrap();
        let (sent, elsewhere) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (counted, target) = (Arc::clone(&elsewhere), other.local_addr().unwrap());
        tokio::spawn(async move {
            while other.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let (counted, asked) = (Arc::clone(&sent), Arc::<AtomicUsize>::default());
        let connections = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(misbehave(stream, malice, target, Arc::clone(&counted)));
            }
        });
        Self { address, sent, elsewhere, asked }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bytes that anybody has taken from it.
    pub(crate) fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// How often anybody went where it had sent him.
    pub(crate) fn elsewhere(&self) -> usize {
        self.elsewhere.load(Ordering::SeqCst)
    }
}

/// Has a client ask hostile servers, all at a time: in the end, and before `patience` is over, it has failed, has taken no more than `most`
/// bytes and what lies in the sockets, and has gone nowhere else.
pub(crate) async fn withstands<T, E, F>(kinds: &[Malice], most: usize, patience: Duration, ask: impl Fn(String) -> F)
where
    T: std::fmt::Debug + Send + 'static,
    E: std::fmt::Display + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut asked = JoinSet::new();
    for malice in kinds.iter().copied() {
        let server = Server::start(malice).await;
        let answer = ask(server.url());
        asked.spawn(async move {
            let began = Instant::now();
            let answer = timeout(patience, answer).await;
            let took = began.elapsed();
            match answer {
                Err(_) => panic!("{malice:?}: still waiting after {took:?}"),
                Ok(Ok(answer)) => panic!("{malice:?} was taken for an answer: {answer:?}"),
                Ok(Err(error)) => assert!(error.to_string().len() < 2000, "{malice:?}: {error}"),
            }
            assert!(server.sent() <= most + IN_SOCKETS, "{malice:?}: {} bytes were taken", server.sent());
            assert_eq!(server.elsewhere(), 0, "{malice:?}");
        });
    }
    while let Some(done) = asked.join_next().await {
        if let Err(error) = done {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn misbehave(mut stream: TcpStream, malice: Malice, elsewhere: SocketAddr, sent: Arc<AtomicUsize>) {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await;
    let ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let head = match malice {
        Malice::Endless | Malice::Trickle => format!("{ok}\r\n"),
        Malice::Nested => format!("{ok}Connection: close\r\n\r\n{}", "[".repeat(200_000)),
        Malice::HugeLength => format!("{ok}Content-Length: 1000000000000000\r\n\r\n[1,"),
        Malice::Redirect => {
            let path = String::from_utf8_lossy(&request).split(' ').nth(1).unwrap_or("/").to_string();
            format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{elsewhere}{path}\r\nContent-Length: 0\r\n\r\n")
        }
        Malice::HeaderFlood | Malice::SlowHead => ok.into(),
        Malice::HangsUp => format!("{ok}Content-Length: 100000\r\n\r\n{{\"slaves\":["),
        Malice::Bomb => format!("{ok}Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n\x1f\x08bomb-bomb-bomb-bomb"),
        Malice::Garbage => "\0\u{1}\u{2}SSH-2.0-x\r\n\r\n".into(),
        Malice::Silent => String::new(),
    };
    let mut next = head.into_bytes();
    loop {
        if stream.write_all(&next).await.is_err() {
            return;
        }
        sent.fetch_add(next.len(), Ordering::SeqCst);
        next = match malice {
            Malice::Endless => vec![b'['; 64 * 1024],
            Malice::HeaderFlood => format!("X-{}: {}\r\n", sent.load(Ordering::SeqCst), "x".repeat(1000)).into_bytes(),
            Malice::Trickle | Malice::SlowHead => {
                sleep(Duration::from_millis(500)).await;
                b"x".to_vec()
            }
            Malice::Silent | Malice::HugeLength => {
                sleep(Duration::from_secs(300)).await;
                return;
            }
            _ => return,
        };
    }
}

/// Keeps a server of `places` places busy in every way for some seconds, while somebody else, by the same address, asks for `path` and is
/// answered with 200 each time.
pub(crate) async fn besiege(address: SocketAddr, places: usize, path: &str) {
    let connect = || async move { TcpStream::connect(address).await.unwrap() };
    // Idle ones, and heads that never end.
    let mut held = Vec::new();
    for number in 0..3 * places {
        let mut stream = connect().await;
        if number % 2 == 0 {
            let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Slow: ").as_bytes()).await;
        }
        held.push(stream);
        if number % (places / 4).max(1) == 0 {
            assert_eq!(ask(address, path).await, Some(200), "with {number} connections that say nothing");
        }
    }
    let mut open = 0;
    for stream in &mut held {
        let mut byte = [0];
        if timeout(Duration::from_millis(5), stream.read(&mut byte)).await.is_err() {
            open += 1;
        }
    }
    assert!(open <= places, "{open} of {} connections are open, and there is room for {places}", held.len());
    // Others that ask for what there is not, or in a way that there is not.
    let long = "x".repeat(100_000);
    let many: String = (0..500).map(|number| format!("X-{number}: 1\r\n")).collect();
    let requests = [
        format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET {path}?{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nX: {long}{long}{long}{long}{long}{long}\r\n\r\n"),
        format!("gEt {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("DELETE {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("TRACE {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
        "CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_string(),
        format!("GET http://example.com{path} HTTP/1.1\r\nHost: x\r\n\r\n"),
        "GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n".to_string(),
        "GET /%2e%2e/%00 HTTP/1.1\r\nHost: x\r\n\r\n".to_string(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_string(),
        "\0\0\0\0\r\n\r\n".to_string(),
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(200),
    ];
    for request in requests {
        let mut stream = connect().await;
        // It may hang up before it has taken all of it.
        let _ = timeout(Duration::from_secs(2), stream.write_all(request.as_bytes())).await;
        let mut answer = vec![0; 4096];
        // A connection that is cut off is an answer, too; a hang is none.
        let read = timeout(Duration::from_secs(2), stream.read(&mut answer)).await;
        assert!(read.is_ok(), "no answer to {:?}", request.chars().take(60).collect::<String>());
        assert!(!String::from_utf8_lossy(&answer).contains("root:"), "{request}");
        held.push(stream);
    }
    // Bodies without an end, by as many as there are places.
    for _ in 0..places {
        let mut stream = connect().await;
        tokio::spawn(async move {
            let _ = stream.write_all(b"PUT /order HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            for _ in 0..200 {
                let chunk = format!("{:x}\r\n{}\r\n", 4096, "x".repeat(4096));
                if stream.write_all(chunk.as_bytes()).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
    }
    for _ in 0..10 {
        assert_eq!(ask(address, path).await, Some(200), "while others send bodies without an end");
        sleep(Duration::from_millis(100)).await;
    }
}

/// The status of an honest question; none if it is not answered soon.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> Option<u16> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
    };
    timeout(Duration::from_secs(5), exchange).await.ok()?
}
