//! Admin Router: one door to everything else, and the cluster's metadata. Open DC/OS is without authentication here; in Enterprise all
//! but the log-in and what leads there needs a token, and most of it a permission.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::cosmos::{Cosmos, Upstreams};
use super::enterprise::{self, ADMIN_ROUTER, SUPERUSER, ca, iam, secrets, tokens};
use super::{Security, SharedState, http};
use crate::journal::unknown;

/// How old the table of services may be. The real one is up to 30 s behind.
const SERVICES_TTL: Duration = Duration::from_secs(1);
/// How long Marathon is waited for; the real one asks it beside its requests.
const SERVICES_PATIENCE: Duration = Duration::from_secs(2);
/// How long a service is given to take a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// A name may be a path, as `group/app`.
const NAME_SEGMENTS: usize = 10;
/// Never passed on: they are about one connection only.
const HOP_HEADERS: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// What the router says about the cluster, and where the servers behind it are.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Behind `/service/marathon`, `/mesos` and so on.
    pub upstreams: Upstreams,
    /// DC/OS version.
    pub version: String,
    /// A UUID.
    pub id: String,
}

struct AdminRouter {
    cluster: Cluster,
    /// Of Enterprise, which asks for tokens.
    enterprise: Option<SharedState>,
    cosmos: Arc<Cosmos>,
    client: Client<HttpConnector, Body>,
    services: Mutex<Services>,
}

#[derive(Default)]
struct Services {
    read: Option<Instant>,
    /// `DCOS_SERVICE_NAME` to what leads there.
    by_name: BTreeMap<String, Service>,
}

#[derive(Debug, Clone, PartialEq)]
struct Service {
    base: String,
    keep_prefix: bool,
}

/// Admin Router with Cosmos behind it, on the lab's own addresses. Within a runtime.
///
/// # Errors
/// Cosmos' state file is there but not readable.
pub fn router(state: SharedState) -> std::io::Result<Router> {
    let (version, id, security) = state.read(|state| (state.pose.dcos.clone(), state.cluster_id.clone(), state.pose.security));
    let enterprise = security != Security::Open;
    let ca = enterprise.then(|| std::fs::read_to_string(enterprise::certificates::ca_file(&state.dir))).transpose()?;
    let upstreams = Upstreams::master(security, ca);
    let cosmos = Cosmos::open(&state.dir.join("state/cosmos.json"), upstreams.clone())?;
    let mut files = super::files::router(state.clone());
    if enterprise {
        files = files.layer(axum::middleware::from_fn_with_state(state.clone(), admit_to_agents));
    }
    Ok(files.merge(serve(Cluster { upstreams, version, id }, cosmos, enterprise.then_some(state))))
}

/// The same for any addresses. Cosmos goes on with the uninstalls it had begun. With a state it is the Admin Router of Enterprise.
pub fn serve(cluster: Cluster, cosmos: Arc<Cosmos>, enterprise: Option<SharedState>) -> Router {
    cosmos.resume();
    let mut connector = HttpConnector::new();
    // Behind the address of a service may be an agent that has just died.
    connector.set_connect_timeout(Some(CONNECT_PATIENCE));
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let router = AdminRouter { cluster, enterprise, cosmos, client, services: Mutex::default() };
    Router::new().fallback(dispatch).with_state(Arc::new(router))
}

/// What port 80 says in strict mode: everything but the CA is to be had with TLS only.
pub(crate) fn only_with_tls(router: Router) -> Router {
    let to_tls = async |request: Request, next: Next| {
        if request.uri().path() == CA_PATH {
            return next.run(request).await;
        }
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("master.mesos");
        let host = host.split(':').next().unwrap_or(host);
        let location = format!("https://{host}{}", request.uri().path_and_query().map_or("/", PathAndQuery::as_str));
        (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response()
    };
    router.layer(from_fn(to_tls))
}

/// Tells those behind that the client came with TLS.
pub(crate) fn with_tls(router: Router) -> Router {
    router.layer(from_fn(async |mut request: Request, next: Next| {
        request.headers_mut().insert("x-forwarded-proto", HeaderValue::from_static("https"));
        next.run(request).await
    }))
}

/// What agents answer through the master is for operators of the cluster.
async fn admit_to_agents(State(shared): State<SharedState>, request: Request, next: axum::middleware::Next) -> Response {
    let Ok(Some(account)) = shared.read(|state| state.enterprise.caller(request.headers())) else { return unauthorized() };
    match shared.read(|state| state.enterprise.allows(&account, "dcos:adminrouter:ops:slave", "full")) {
        true => next.run(request).await,
        false => forbidden(),
    }
}

/// Where whoever has no CA yet gets it.
const CA_PATH: &str = "/ca/dcos-ca.crt";
/// A secret in JSON may be twice its size, and a little.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

async fn dispatch(State(router): State<Arc<AdminRouter>>, mut request: Request) -> Response {
    let path = merge_slashes(request.uri().path());
    if let Some(shared) = &router.enterprise {
        match router.admit(shared, &path, request).await {
            Ok(admitted) => request = admitted,
            Err(answer) => return answer,
        }
    }
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let upstreams = &router.cluster.upstreams;
    match path.as_str() {
        "/" if reading => ([(header::CONTENT_TYPE, "text/html")], "DC/OS").into_response(),
        "/dcos-metadata/dcos-version.json" if reading => {
            let commit = "0000000000000000000000000000000000000000";
            let variant = if router.enterprise.is_some() { "enterprise" } else { "open" };
            let version =
                json!({ "version": router.cluster.version, "dcos-image-commit": commit, "bootstrap-id": commit, "dcos-variant": variant });
            axum::Json(version).into_response()
        }
        "/metadata" if reading => axum::Json(json!({ "PUBLIC_IPV4": null, "CLUSTER_ID": router.cluster.id })).into_response(),
        // In open DC/OS, answering without a token says that none is needed.
        "/pkgpanda/active.buildinfo.full.json" if reading => axum::Json(json!({})).into_response(),
        // Open DC/OS has no certificate authority.
        CA_PATH if reading => match &router.cluster.upstreams.ca {
            Some(ca) => ([(header::CONTENT_TYPE, "application/x-x509-ca-cert")], ca.clone()).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        "/capabilities" if reading => capabilities(router.enterprise.is_some()),
        _ => {
            if let Some(rest) = below(&path, "/service/marathon") {
                return router.forward(request, &upstreams.marathon, rest).await;
            }
            if let Some(rest) = below(&path, "/service/metronome") {
                return router.forward(request, &upstreams.metronome, rest).await;
            }
            if let Some(rest) = below(&path, "/mesos") {
                return router.forward(request, &upstreams.mesos, rest).await;
            }
            if let Some(rest) = below(&path, "/service") {
                return router.service(request, rest).await;
            }
            let inner = if path.starts_with("/package/") { Some(path.as_str()) } else { path.strip_prefix("/cosmos") };
            let Some(inner) = inner.filter(|inner| inner.starts_with("/package/") || inner.starts_with("/service/")) else {
                return unknown().await;
            };
            match with_path(request.uri(), inner) {
                Some(uri) => *request.uri_mut() = uri,
                None => return StatusCode::BAD_REQUEST.into_response(),
            }
            // A path that Cosmos does not know has an empty 404, as recorded; the journal flags what the lab lacks.
            match router.cosmos.handle(request).await {
                Some(response) => response,
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
    }
}

fn capabilities(enterprise: bool) -> Response {
    let media_type = "application/vnd.dcos.capabilities+json;charset=utf-8;version=v1";
    let mut names = vec!["PACKAGE_MANAGEMENT", "SUPPORT_CLUSTER_REPORT", "METRONOME", "LOGGING"];
    if enterprise {
        names.push("SECRETS");
    }
    let body = json!({ "capabilities": names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>() });
    ([(header::CONTENT_TYPE, media_type)], body.to_string()).into_response()
}

/// What follows `prefix`, with its slash; None when the path is not below it.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// nginx does so before it looks for a location.
fn merge_slashes(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !merged.ends_with('/') {
            merged.push(character);
        }
    }
    merged
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let full = uri.query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    full.parse::<PathAndQuery>().ok().map(Uri::from)
}

/// The permission that a location needs; none when a token is enough. Services that apps offer are looked up first.
fn permission(path: &str) -> Option<&'static str> {
    const LOCATIONS: [(&str, &str); 7] = [
        (iam::PREFIX, SUPERUSER),
        (ca::PREFIX, "dcos:adminrouter:ops:ca:rw"),
        ("/service/marathon", "dcos:adminrouter:service:marathon"),
        ("/service/metronome", "dcos:adminrouter:service:metronome"),
        ("/mesos", "dcos:adminrouter:ops:mesos"),
        ("/package", "dcos:adminrouter:package"),
        ("/cosmos", "dcos:adminrouter:package"),
    ];
    LOCATIONS.iter().find(|(prefix, _)| below(path, prefix).is_some()).map(|(_, resource)| *resource)
}

/// As nginx says it.
fn page(status: StatusCode, text: &'static str) -> Response {
    let page = format!("<!DOCTYPE html>\n<html><head><title>{text}</title></head><body><h1>{text}</h1></body></html>\n");
    (status, [(header::CONTENT_TYPE, "text/html; charset=UTF-8")], page).into_response()
}

fn unauthorized() -> Response {
    let mut response = page(StatusCode::UNAUTHORIZED, "401 Unauthorized");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("acsjwt"));
    response
}

fn forbidden() -> Response {
    page(StatusCode::FORBIDDEN, "403 Forbidden")
}

impl AdminRouter {
    /// The request as it is passed on, or the answer if it is refused or one of Enterprise's own.
    async fn admit(&self, shared: &SharedState, path: &str, mut request: Request) -> Result<Request, Response> {
        let reading = matches!(*request.method(), Method::GET | Method::HEAD);
        if reading && matches!(path, "/" | CA_PATH | "/dcos-metadata/dcos-version.json") {
            return Ok(request);
        }
        if iam::is_open(path) {
            return Err(own(shared, request, |shared, request| iam::answer(shared, request).into_response()).await);
        }
        let Ok(Some(account)) = shared.read(|state| state.enterprise.caller(request.headers())) else { return Err(unauthorized()) };
        let may = |resource: &str| shared.read(|state| state.enterprise.allows(&account, resource, "full"));
        if permission(path).is_some_and(|resource| !may(resource)) {
            return Err(forbidden());
        }
        if below(path, iam::PREFIX).is_some() {
            return Err(own(shared, request, |shared, request| iam::answer(shared, request).into_response()).await);
        }
        if below(path, ca::PREFIX).is_some() {
            return Err(own(shared, request, |shared, request| ca::answer(shared, request).into_response()).await);
        }
        if below(path, secrets::PREFIX).is_some() {
            return Err(own(shared, request, |shared, request| secrets::answer(shared, &account, request)).await);
        }
        if path == "/dcos-metadata/bootstrap-config.json" && reading {
            let security = shared.read(|state| state.pose.security);
            return Err(axum::Json(json!({ "security": security.word() })).into_response());
        }
        if permission(path).is_none()
            && let Some(rest) = below(path, "/service")
            && let Some((name, ..)) = self.named(rest).await
            && !may(&format!("dcos:adminrouter:service:{name}"))
        {
            return Err(forbidden());
        }
        // What is behind sees the token as a header, never the cookies.
        let headers = request.headers_mut();
        if let Some(token) = tokens::shown(headers).and_then(|token| HeaderValue::from_str(&format!("token={token}")).ok()) {
            headers.insert(header::AUTHORIZATION, token);
        }
        without_own_cookies(headers);
        Ok(request)
    }

    /// `/service/<name>/…`: the longest name that is known.
    async fn service(&self, request: Request, rest: &str) -> Response {
        let Some((name, service, inner)) = self.named(rest).await else {
            return (StatusCode::NOT_FOUND, "404 Not Found: service not found.").into_response();
        };
        let path = if service.keep_prefix { format!("/service/{name}{inner}") } else { inner };
        self.forward(request, &service.base, &path).await
    }

    /// Name, address and the path inside of a service.
    async fn named(&self, rest: &str) -> Option<(String, Service, String)> {
        let segments: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
        for length in (1..=segments.len().min(NAME_SEGMENTS)).rev() {
            let name = segments[..length].join("/");
            if let Some(service) = self.find(&name).await {
                return Some((name, service, format!("/{}", segments[length..].join("/"))));
            }
        }
        None
    }

    async fn find(&self, name: &str) -> Option<Service> {
        let mut services = self.services.lock().await;
        if services.read.is_none_or(|read| read.elapsed() > SERVICES_TTL) {
            match self.running_services().await {
                Ok(by_name) => *services = Services { read: Some(Instant::now()), by_name },
                // As the real one: the old table serves on while Marathon is away.
                Err(error) => {
                    tracing::warn!(error, "services not read");
                    services.read = Some(Instant::now());
                }
            }
        }
        services.by_name.get(name).cloned()
    }

    async fn running_services(&self) -> Result<BTreeMap<String, Service>, String> {
        let url = format!("{}/v2/apps?embed=apps.tasks&label=DCOS_SERVICE_NAME", self.cluster.upstreams.marathon);
        let answer = reqwest::Client::builder().no_proxy().timeout(SERVICES_PATIENCE).build().map_err(|error| error.to_string())?;
        let mut request = answer.get(url);
        if let Some(shared) = &self.enterprise {
            let token = shared.read(|state| state.enterprise.issue(ADMIN_ROUTER));
            request = request.header(header::AUTHORIZATION, format!("token={token}"));
        }
        let answer = request.send().await.and_then(reqwest::Response::error_for_status).map_err(|error| error.to_string())?;
        let answer: Value = answer.json().await.map_err(|error| error.to_string())?;
        let apps = answer["apps"].as_array().into_iter().flatten();
        Ok(apps.filter_map(service_of).collect())
    }

    /// Passes request and answer on as they come; streams stay streams.
    async fn forward(&self, mut request: Request, base: &str, path: &str) -> Response {
        let target = with_path(request.uri(), path).and_then(|uri| format!("{base}{uri}").parse::<Uri>().ok());
        let Some(target) = target else { return StatusCode::BAD_REQUEST.into_response() };
        let headers = request.headers_mut();
        strip_hop_headers(headers);
        if let Some(host) = target.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
            headers.insert(header::HOST, host);
        }
        *request.uri_mut() = target;
        match self.client.request(request).await {
            Ok(mut response) => {
                strip_hop_headers(response.headers_mut());
                response.map(Body::new)
            }
            Err(error) => {
                tracing::warn!(%error, base, path, "not forwarded");
                (StatusCode::BAD_GATEWAY, [(header::CONTENT_TYPE, "text/html")], "<h1>502 Bad Gateway</h1>").into_response()
            }
        }
    }
}

/// Name and address of an app's service: labels, and a running task, healthy or not.
fn service_of(app: &Value) -> Option<(String, Service)> {
    let label = |name: &str| app.pointer(&format!("/labels/{name}")).and_then(Value::as_str);
    let name = label("DCOS_SERVICE_NAME")?.trim_start_matches('/').to_owned();
    let scheme = label("DCOS_SERVICE_SCHEME")?;
    let index: usize = label("DCOS_SERVICE_PORT_INDEX")?.parse().ok()?;
    let task = app["tasks"].as_array()?.iter().find(|task| task["state"] == "TASK_RUNNING")?;
    let (host, port) = (task["host"].as_str()?, task["ports"].get(index)?.as_u64()?);
    let keep_prefix = label("DCOS_SERVICE_REWRITE_REQUEST_URLS") == Some("false");
    Some((name, Service { base: format!("{scheme}://{host}:{port}"), keep_prefix }))
}

/// A call that Enterprise's own servers answer.
async fn own(shared: &SharedState, request: Request, answer: impl FnOnce(&SharedState, &http::Request) -> Response) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_LIMIT).await else { return page(StatusCode::PAYLOAD_TOO_LARGE, "413 Request Entity Too Large") };
    answer(shared, &http::Request::new(head.method, &head.uri, head.headers, body))
}

/// Takes Admin Router's own cookies away; others are the service's.
fn without_own_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&str> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .map(str::trim)
        .filter(|cookie| !cookie.starts_with("dcos-acs-"))
        .collect();
    let kept = HeaderValue::from_str(&cookies.join("; ")).ok().filter(|value| !value.is_empty());
    headers.remove(header::COOKIE);
    if let Some(kept) = kept {
        headers.insert(header::COOKIE, kept);
    }
}

fn strip_hop_headers(headers: &mut HeaderMap) {
    for name in HOP_HEADERS {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_slashes_count_as_one() {
        assert_eq!(merge_slashes("/service//sdk//v1/plans/deploy"), "/service/sdk/v1/plans/deploy");
    }

    #[test]
    fn a_service_is_routed_to_the_port_that_its_label_names() {
        let app = json!({
            "labels": {"DCOS_SERVICE_NAME": "/infra/registry", "DCOS_SERVICE_SCHEME": "http", "DCOS_SERVICE_PORT_INDEX": "1"},
            "tasks": [
                {"state": "TASK_KILLING", "host": "192.168.1.80", "ports": [1, 2]},
                {"state": "TASK_RUNNING", "host": "192.168.1.81", "ports": [10001, 10002]},
            ],
        });
        let expected = Service { base: "http://192.168.1.81:10002".to_owned(), keep_prefix: false };
        assert_eq!(service_of(&app), Some(("infra/registry".to_owned(), expected)));
    }

    #[test]
    fn an_app_without_a_running_task_is_not_routed() {
        let app = json!({
            "labels": {"DCOS_SERVICE_NAME": "a", "DCOS_SERVICE_SCHEME": "http", "DCOS_SERVICE_PORT_INDEX": "0"},
            "tasks": [{"state": "TASK_STAGING", "host": "192.168.1.80", "ports": [1]}],
        });
        assert_eq!(service_of(&app), None);
    }
}
