//! Which certificates a server shows, whoever has signed them. They count for nothing before one is told by its fingerprint.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, IpAddr, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::certificates::Certificate;
use crate::names::{Host, HostPort};

const PATIENCE: Duration = Duration::from_secs(5);

/// The certificates that the server at `name` shows, its own first; what cannot be read as one is left out.
///
/// # Errors
/// Why it has shown none, for people.
pub(super) async fn by(name: &HostPort) -> Result<Vec<Certificate>, String> {
    let late = |_| format!("no answer within {} s", PATIENCE.as_secs());
    timeout(PATIENCE, ask(name)).await.map_err(late)?
}

async fn ask(name: &HostPort) -> Result<Vec<Certificate>, String> {
    let provider = crate::tls::provider();
    let recorder = Arc::new(Recorder { provider: Arc::clone(&provider), shown: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&recorder) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let server = match &name.host {
        Host::Ip(ip) => ServerName::IpAddress(IpAddr::from(std::net::IpAddr::V4(*ip))),
        Host::Dns(name) => ServerName::try_from(name.clone()).map_err(|error| error.to_string())?,
    };
    let address = crate::node::resolve(&name.host).await?;
    let stream = TcpStream::connect((address, name.port)).await.map_err(|error| error.to_string())?;
    let greeted = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(server, stream).await;
    let shown = std::mem::take(&mut *recorder.shown.lock().unwrap_or_else(PoisonError::into_inner));
    match greeted {
        // One that wants a certificate of its client ends the connection after it has shown its own.
        Err(error) if shown.is_empty() => Err(error.to_string()),
        _ => Ok(shown.into_iter().filter_map(|der| Certificate::parse_der(der).ok()).collect()),
    }
}

/// Accepts everything and writes it down. Nothing is sent over a connection that it has accepted.
#[derive(Debug)]
struct Recorder {
    provider: Arc<CryptoProvider>,
    shown: Mutex<Vec<Vec<u8>>>,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let all = std::iter::once(leaf).chain(others).map(|der| der.to_vec()).collect();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
