//! An authorisation server for registries, as small as tests need it: it signs tokens (ES256) for whoever knows the password.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

/// The file that the server takes its key, certificate and names from.
const FILE: &str = "TEST_TOKEN_SERVER_FILE";

/// Who signs, and for which registry.
pub(crate) struct Issuer {
    name: String,
    service: String,
    certificate: String,
    certificate_der: Vec<u8>,
    key: Vec<u8>,
}

impl Issuer {
    pub(crate) fn new(name: &str, service: &str) -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        let (name, service) = (name.to_owned(), service.to_owned());
        Self { name, service, certificate: certificate.pem(), certificate_der: certificate.der().to_vec(), key: key.serialize_der() }
    }

    /// PEM, for the option `auth.token_certificates`.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A token that lets somebody do this with these repositories.
    pub(crate) fn token(&self, user: &str, access: &[(&str, &[&str])]) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let access: Vec<Value> =
            access.iter().map(|(name, actions)| json!({ "type": "repository", "name": name, "actions": actions })).collect();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate_der)] });
        let claims = json!({
            "iss": self.name, "sub": user, "aud": self.service, "exp": now + 600, "nbf": now - 60, "iat": now - 60, "jti": now.to_string(),
            "access": access,
        });
        let text = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.key, &random).unwrap();
        let signature = key.sign(&random, text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    /// What [`the_server_itself`] reads.
    pub(crate) fn for_server(&self, port: u16) -> String {
        json!({
            "name": self.name, "service": self.service, "certificate": STANDARD.encode(&self.certificate_der),
            "key": STANDARD.encode(&self.key), "port": port,
        })
        .to_string()
    }

    /// The shell line that starts it with that file, from a copy of the program of the tests.
    pub(crate) fn start_server(program: &str, file: &str) -> String {
        let arguments = "--ignored --exact token_server::the_server_itself --nocapture";
        format!("{FILE}={file} setsid {program} {arguments} >{file}.log 2>&1 </dev/null &")
    }

    fn read(file: &str) -> (Self, u16) {
        let text: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let (word, bytes) =
            (|key: &str| text[key].as_str().unwrap().to_owned(), |key: &str| STANDARD.decode(text[key].as_str().unwrap()).unwrap());
        let port = u16::try_from(text["port"].as_u64().unwrap()).unwrap();
        let issuer = Self {
            name: word("name"),
            service: word("service"),
            certificate: String::new(),
            certificate_der: bytes("certificate"),
            key: bytes("key"),
        };
        (issuer, port)
    }

    /// What a request is answered with. `alice` with the password `wonderland` may do everything.
    fn answer(&self, path: &str, authorization: Option<&str>) -> (u16, String) {
        let login = authorization.and_then(|value| STANDARD.decode(value.strip_prefix("Basic ")?).ok());
        if login.as_deref() != Some(b"alice:wonderland") {
            return (401, json!({ "details": "incorrect username or password" }).to_string());
        }
        let query = path.split_once('?').map_or("", |(_, query)| query).replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let scopes: Vec<&str> = query.split('&').filter_map(|part| part.strip_prefix("scope=repository:")).collect();
        let access: Vec<(&str, Vec<&str>)> =
            scopes.iter().filter_map(|scope| scope.rsplit_once(':')).map(|(name, actions)| (name, actions.split(',').collect())).collect();
        let access: Vec<(&str, &[&str])> = access.iter().map(|(name, actions)| (*name, actions.as_slice())).collect();
        let token = self.token("alice", &access);
        (200, json!({ "token": token, "access_token": token, "expires_in": 600 }).to_string())
    }
}

#[test]
#[ignore = "the server; a test starts it"]
fn the_server_itself() {
    let (issuer, port) = Issuer::read(&std::env::var(FILE).unwrap());
    for stream in TcpListener::bind(("0.0.0.0", port)).unwrap().incoming() {
        let mut stream = stream.unwrap();
        let lines: Vec<String> = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        let authorization =
            lines.iter().filter_map(|line| line.split_once(": ")).find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        let (code, body) = issuer.answer(path, authorization.map(|(_, value)| value));
        let head =
            format!("HTTP/1.1 {code} -\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        // A client that has gone away is no fault.
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
    }
}
