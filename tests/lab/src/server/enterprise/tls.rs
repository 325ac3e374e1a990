//! HTTPS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A client that has not shaken hands by then is left.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be accepted: mostly the process has too many files open.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until the process ends.
///
/// # Errors
/// The address is taken.
pub(crate) async fn spawn(address: SocketAddr, router: Router, config: Arc<ServerConfig>) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let acceptor = TlsAcceptor::from(config);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(connection(acceptor.clone(), stream, router.clone()))),
                Err(error) => {
                    tracing::warn!(%error, %address, "connection not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

/// Whatever goes wrong with a connection is its client's affair.
async fn connection(acceptor: TlsAcceptor, stream: TcpStream, router: Router) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let service = TowerToHyperService::new(router);
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}
