//! Cosmos 0.6.3: repositories, the catalog, install, update and uninstall of packages.
//!
//! Not posed: package managers (packaging version 5's `manager`), the one-minute cache of repositories (each call fetches
//! anew), and the wait of 5 s between attempts (1 s here). Everything else answers as recorded.

mod error;
mod media;
mod mustache;
mod options;
mod package;
mod repository;
mod uninstall;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use reqwest::redirect::Policy;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use error::Error;
use media::{CALLS, Call};
use repository::{Package, Repository};

use super::Security;
use crate::host::MASTER;

/// A request's body is at most this long.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// Where the servers are that Cosmos itself calls.
#[derive(Debug, Clone)]
pub struct Upstreams {
    /// Base URL of Marathon, without a slash at the end.
    pub marathon: String,
    /// Of Mesos.
    pub mesos: String,
    /// Of Metronome; only Admin Router forwards there.
    pub metronome: String,
    /// Of Admin Router.
    pub admin_router: String,
    /// PEM of the authority that Admin Router's certificate is of; none when it is asked without TLS.
    pub ca: Option<String>,
}

impl Upstreams {
    /// On the lab's master. In Enterprise, `ca` is the cluster's; in strict mode the servers hear only their neighbours without TLS.
    pub fn master(security: Security, ca: Option<String>) -> Self {
        let host = if security == Security::Strict { Ipv4Addr::LOCALHOST } else { MASTER };
        let at = |port: u16| format!("http://{host}:{port}");
        let scheme = if ca.is_some() { "https" } else { "http" };
        Self { marathon: at(8080), mesos: at(5050), metronome: at(9000), admin_router: format!("{scheme}://{MASTER}"), ca }
    }
}

/// What survives a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    repositories: Vec<Repository>,
    /// Apps that are being uninstalled with clean-up. The real one forgets them when it restarts.
    uninstalling: Vec<String>,
}

/// The server.
pub struct Cosmos {
    upstreams: Upstreams,
    client: reqwest::Client,
    file: PathBuf,
    kept: Mutex<Kept>,
}

/// An app id as Marathon writes it.
fn absolute(app_id: &str) -> String {
    format!("/{}", app_id.trim_start_matches('/'))
}

impl Cosmos {
    /// Reads the list of repositories from `file`, or begins with an empty one.
    ///
    /// # Errors
    /// The file is there but not readable.
    pub fn open(file: &Path, upstreams: Upstreams) -> std::io::Result<Arc<Self>> {
        let kept = match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error),
        };
        // Java's client follows redirects as long as the scheme stays.
        let policy = Policy::custom(|attempt| match attempt.previous().last() {
            Some(previous) if previous.scheme() == attempt.url().scheme() && attempt.previous().len() < 10 => attempt.follow(),
            _ => attempt.stop(),
        });
        let mut client = reqwest::Client::builder().redirect(policy).no_proxy();
        if let Some(ca) = &upstreams.ca {
            client = client.add_root_certificate(reqwest::Certificate::from_pem(ca.as_bytes()).map_err(std::io::Error::other)?);
        }
        let client = client.build().map_err(std::io::Error::other)?;
        Ok(Arc::new(Self { upstreams, client, file: file.to_owned(), kept: Mutex::new(kept) }))
    }

    /// Goes on with uninstalls that an earlier process began. Call it within a runtime.
    pub fn resume(self: &Arc<Self>) {
        for app in self.kept().uninstalling.clone() {
            tokio::spawn(uninstall::finish(self.clone(), app, HeaderMap::new()));
        }
    }

    /// Answers a request below `/package` or `/service`; None when there is no such call.
    pub async fn handle(self: &Arc<Self>, request: Request) -> Option<Response> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let headers = &head.headers;
        if path == "/package/resource" && head.method == Method::GET {
            return Some(self.resource(head.uri.query().unwrap_or_default()).await.unwrap_or_else(Error::into_response));
        }
        let call = CALLS.iter().find(|call| call.path == path && head.method == Method::POST)?;
        Some(match self.answer(call, headers, body).await {
            Ok((version, answer)) => ([(header::CONTENT_TYPE, call.answer(version))], answer.to_string()).into_response(),
            Err(error) => error.into_response(),
        })
    }

    async fn answer(self: &Arc<Self>, call: &Call, headers: &HeaderMap, body: Body) -> Result<(&'static str, Value), Error> {
        let version = call.negotiate(headers)?;
        let body = to_bytes(body, BODY_LIMIT).await.map_err(|error| not_parsed(&error.to_string()))?;
        let request = Asked::parse(&body, headers)?;
        let answer = match call.path {
            "/package/search" => self.search(&request).await,
            "/package/describe" => self.describe(&request, version).await,
            "/package/list-versions" => self.list_versions(&request).await,
            "/package/render" => self.render(&request).await,
            "/package/install" => self.install(&request, version).await,
            "/package/uninstall" => self.uninstall(&request).await,
            "/package/list" => self.list(&request).await,
            "/package/repository/add" => self.repository_add(&request).await,
            "/package/repository/delete" => self.repository_delete(&request),
            "/service/describe" => self.service_describe(&request).await,
            "/service/update" => self.service_update(&request).await,
            _ => Ok(self.repository_list()),
        };
        answer.map(|answer| (version, answer))
    }

    async fn search(&self, request: &Asked) -> Result<Value, Error> {
        let packages = self.packages().await?;
        let matches = matcher(request.text("query").unwrap_or_default());
        let newest = packages.iter().enumerate().filter(|(index, package)| first_of_name(&packages, *index) && matches(package));
        let mut newest: Vec<&Package> = newest.map(|(_, package)| package).collect();
        newest.sort_by_key(|package| (!package.json["selected"].as_bool().unwrap_or(false), package.text("name").to_owned()));
        let found = newest
            .iter()
            .map(|package| package.found(versions(&packages, package.text("name"), |release| json!(release)), &request.origin));
        Ok(json!({ "packages": found.collect::<Vec<_>>() }))
    }

    async fn describe(&self, request: &Asked, version: &str) -> Result<Value, Error> {
        let package = self.package(request.required("packageName")?, request.text("packageVersion")).await?;
        match version {
            "v2" => package.described_v2(&request.origin),
            _ => Ok(json!({ "package": package.described(&request.origin) })),
        }
    }

    async fn list_versions(&self, request: &Asked) -> Result<Value, Error> {
        let name = request.required("packageName")?;
        let packages = self.packages().await?;
        find(&packages, name, None)?;
        Ok(json!({ "results": versions(&packages, name, |release| json!(release.to_string())) }))
    }

    async fn render(&self, request: &Asked) -> Result<Value, Error> {
        let package = self.package(request.required("packageName")?, request.text("packageVersion")).await?;
        let app = package.render(&request.options(), request.text("appId"))?;
        let Some(app) = app else { return Err(no_template(&package)) };
        Ok(json!({ "marathonJson": app }))
    }

    async fn install(&self, request: &Asked, version: &str) -> Result<Value, Error> {
        let package = self.package(request.required("packageName")?, request.text("packageVersion")).await?;
        let app = package.render(&request.options(), request.text("appId"))?;
        let mut answer = json!({ "packageName": package.json["name"], "packageVersion": package.json["version"] });
        match app {
            None if version == "v1" => return Err(no_template(&package)),
            None => {}
            Some(app) => {
                let (status, body) = self.marathon(Method::POST, "/v2/apps", Some(&app), &request.authorization).await?;
                if status == StatusCode::CONFLICT {
                    return Err(Error::new("PackageAlreadyInstalled", "Package is already installed").status(StatusCode::CONFLICT));
                }
                answer["appId"] = success(status, body)?["id"].take();
            }
        }
        if version == "v2" {
            let described = package.described(&request.origin);
            for (field, value) in [("cli", described.pointer("/resource/cli")), ("postInstallNotes", described.get("postInstallNotes"))] {
                if let Some(value) = value {
                    answer[field] = value.clone();
                }
            }
        }
        Ok(answer)
    }

    async fn list(&self, request: &Asked) -> Result<Value, Error> {
        let (name, app_id) = (request.text("packageName"), request.text("appId").map(absolute));
        let installed = self.installed(&request.authorization).await?;
        let wanted = installed.iter().filter(|(app, package)| {
            name.is_none_or(|name| package.text("name") == name) && app_id.as_deref().is_none_or(|id| app["id"] == id)
        });
        let shown = wanted.map(|(app, package)| json!({ "appId": app["id"], "packageInformation": package.information(&request.origin) }));
        Ok(json!({ "packages": shown.collect::<Vec<_>>() }))
    }

    /// Apps that were made of packages, by package name and app id.
    async fn installed(&self, authorization: &HeaderMap) -> Result<Vec<(Value, Package)>, Error> {
        let (status, mut body) = self.marathon(Method::GET, "/v2/apps", None, authorization).await?;
        if !status.is_success() {
            return Err(package::marathon_error(status, &body));
        }
        let apps = body["apps"].take();
        let apps = apps.as_array().into_iter().flatten();
        let mut installed: Vec<_> = apps.filter_map(|app| Some((app.clone(), Package::of_app(app)?))).collect();
        installed.sort_by_key(|(app, package)| (package.text("name").to_owned(), app["id"].as_str().unwrap_or_default().to_owned()));
        Ok(installed)
    }

    async fn uninstall(self: &Arc<Self>, request: &Asked) -> Result<Value, Error> {
        let name = request.required("packageName")?;
        let mut installed = self.installed(&request.authorization).await?;
        installed.retain(|(_, package)| package.text("name") == name);
        if let Some(app_id) = request.text("appId").map(absolute) {
            installed.retain(|(app, _)| app["id"] == app_id);
            if installed.is_empty() {
                let message = format!("Package [{name}] with id [{app_id}] is not installed");
                return Err(Error::new("UninstallNonExistentAppForPackage", message).data(json!({ "packageName": name, "appId": app_id })));
            }
        }
        if installed.is_empty() {
            return Err(
                Error::new("PackageNotInstalled", format!("Package [{name}] is not installed")).data(json!({ "packageName": name }))
            );
        }
        if installed.len() > 1 && request.body["all"] != true {
            let ids: Vec<&str> = installed.iter().filter_map(|(app, _)| app["id"].as_str()).collect();
            let message = format!("Multiple apps named [{name}] are installed: [{}]", ids.join(", "));
            return Err(Error::new("AmbiguousAppId", message).data(json!({ "packageName": name, "appIds": ids })));
        }
        let mut results = Vec::new();
        for (app, package) in &installed {
            uninstall::begin(self, app, &request.authorization).await?;
            let mut result = json!({ "packageName": package.json["name"], "appId": app["id"], "packageVersion": package.json["version"] });
            if let Some(notes) = package.definition().get("postUninstallNotes") {
                result["postUninstallNotes"] = notes.clone();
            }
            results.push(result);
        }
        Ok(json!({ "results": results }))
    }

    async fn service_describe(&self, request: &Asked) -> Result<Value, Error> {
        let (app, package) = self.service(request).await?;
        let packages = self.packages().await?;
        let (name, version) = (package.text("name"), package.text("version"));
        let takes = |list: &Value, wanted: &str| list.as_array().into_iter().flatten().any(|entry| entry == "*" || entry == wanted);
        let others = || packages.iter().filter(|other| other.text("name") == name && other.text("version") != version);
        let upgrades: Vec<&str> =
            others().filter(|other| takes(&other.json["upgradesFrom"], version)).map(|other| other.text("version")).collect();
        let downgrades: Vec<&str> = others()
            .filter(|other| takes(&package.json["downgradesTo"], other.text("version")))
            .map(|other| other.text("version"))
            .collect();
        let given = package::options_of_app(&app);
        Ok(json!({
            "package": package.described(&request.origin),
            "upgradesTo": upgrades,
            "downgradesTo": downgrades,
            "resolvedOptions": options::resolve(package.json.get("config").filter(|config| !config.is_null()), &given)?,
            "userProvidedOptions": given,
        }))
    }

    async fn service_update(&self, request: &Asked) -> Result<Value, Error> {
        let (app, package) = self.service(request).await?;
        let replace = request.body.get("replace").and_then(Value::as_bool).ok_or_else(|| missing("replace"))?;
        let installed = package.text("version");
        if let Some(requested) = request.text("packageVersion").filter(|requested| *requested != installed) {
            let message = "Version Upgrades are an Enterprise DC/OS feature only";
            return Err(
                Error::new("VersionUpgradeNotSupportedInOpen", message).data(json!({ "requested": requested, "actual": installed }))
            );
        }
        let given = if replace { request.options() } else { options::merge(package::options_of_app(&app), &request.options()) };
        let new = package.render(&given, None)?.ok_or_else(|| no_template(&package))?;
        let (old_id, new_id) = (app["id"].as_str().unwrap_or_default(), absolute(new["id"].as_str().unwrap_or_default()));
        if old_id != new_id {
            let message = format!("The new appId {new_id} must be equal to the old appId {old_id}");
            return Err(Error::new("AppIdChanged", message).data(json!({ "newAppId": new_id, "oldAppId": old_id })));
        }
        let path = format!("/v2/apps/{old_id}?force=true&partialUpdate=false");
        let (status, body) = self.marathon(Method::PUT, &path, Some(&new), &request.authorization).await?;
        let mut deployment = success(status, body)?;
        Ok(json!({
            "package": package.described(&request.origin),
            "resolvedOptions": options::resolve(package.json.get("config").filter(|config| !config.is_null()), &given)?,
            "marathonDeploymentId": deployment["deploymentId"].take(),
        }))
    }

    /// The app that a `/service/…` call is about and the package it was made of.
    async fn service(&self, request: &Asked) -> Result<(Value, Package), Error> {
        let app_id = absolute(request.required("appId")?);
        let absent = || {
            let message = format!("Unable to locate service with marathon appId: '{app_id}'");
            Error::new("MarathonAppNotFound", message).data(json!({ "appId": app_id }))
        };
        let (status, body) = self.marathon(Method::GET, &format!("/v2/apps/{app_id}"), None, &request.authorization).await?;
        if status == StatusCode::NOT_FOUND {
            return Err(absent());
        }
        let mut body = success(status, body)?;
        let app = body["app"].take();
        let package = Package::of_app(&app).ok_or_else(absent)?;
        Ok((app, package))
    }

    fn repository_list(&self) -> Value {
        json!({ "repositories": self.kept().repositories })
    }

    async fn repository_add(&self, request: &Asked) -> Result<Value, Error> {
        let new = Repository { name: request.required("name")?.to_owned(), uri: request.required("uri")?.to_owned() };
        let present = |kept: &Kept| {
            let (name, uri) = (&new.name, &new.uri);
            let has_name = kept.repositories.iter().any(|known| known.name == *name);
            let has_uri = kept.repositories.iter().any(|known| known.uri == *uri);
            let (message, data) = match (has_name, has_uri) {
                (true, true) => (
                    format!("Repository name [{name}] and URI [{uri}] are both already present in the list"),
                    json!({ "name": name, "uri": uri }),
                ),
                (true, false) => (format!("Repository name [{name}] is already present in the list"), json!({ "name": name })),
                (false, true) => (format!("Repository URI [{uri}] is already present in the list"), json!({ "uri": uri })),
                (false, false) => return Ok(()),
            };
            Err(Error::new("RepositoryAlreadyPresent", message).data(data))
        };
        present(&self.kept())?;
        repository::fetch(&self.client, &new).await?;
        let mut kept = self.kept();
        // Another request may have added it meanwhile.
        present(&kept)?;
        let end = kept.repositories.len();
        let index = request.body.get("index").and_then(Value::as_u64).map_or(end, |index| usize::try_from(index).unwrap_or(end));
        if index > end {
            let message = format!("Index out of range: {index}");
            return Err(
                Error::new("RepositoryAddIndexOutOfBounds", message).data(json!({ "attempted": index, "max": end.saturating_sub(1) }))
            );
        }
        kept.repositories.insert(index, new.clone());
        self.save(&kept);
        Ok(json!({ "repositories": kept.repositories }))
    }

    fn repository_delete(&self, request: &Asked) -> Result<Value, Error> {
        let (name, uri) = (request.text("name"), request.text("uri"));
        let mut kept = self.kept();
        let position = kept
            .repositories
            .iter()
            .position(|known| name.is_some_and(|name| known.name == name) || uri.is_some_and(|uri| known.uri == uri));
        let Some(position) = position else {
            let (message, data) = match (name, uri) {
                (Some(name), _) => (format!("Repository name [{name}] is not present in the list"), json!({ "name": name })),
                (None, Some(uri)) => (format!("Repository URI [{uri}] is not present in the list"), json!({ "uri": uri })),
                (None, None) => return Err(not_parsed("Attempt to decode value on failed cursor: DownField(name)")),
            };
            return Err(Error::new("RepositoryNotPresent", message).data(data));
        };
        kept.repositories.remove(position);
        self.save(&kept);
        Ok(json!({ "repositories": kept.repositories }))
    }

    /// `GET /package/resource?url=…`: fetches a URL that some listed package names.
    async fn resource(&self, query: &str) -> Result<Response, Error> {
        let url = query.strip_prefix("url=").map(unescape).unwrap_or_default();
        let packages = self.packages().await?;
        if !packages.iter().any(|package| package::resource_urls(&package.json).contains(&url)) {
            return Err(Error::new("GenericHttpError", format!("Forbidden: GET {url}")).status(StatusCode::FORBIDDEN));
        }
        let bad_gateway = |what: &str| Error::new("GenericHttpError", format!("{what}: GET {url}")).status(StatusCode::BAD_GATEWAY);
        let upstream = self.client.get(&url).send().await.map_err(|error| bad_gateway(&error.to_string()))?;
        if !upstream.status().is_success() {
            return Err(bad_gateway(upstream.status().as_str()));
        }
        let length = upstream.content_length().filter(|length| *length > 0).ok_or_else(|| bad_gateway("no length"))?;
        let octets = HeaderValue::from_static("application/octet-stream");
        let kind = upstream.headers().get(header::CONTENT_TYPE).cloned().unwrap_or(octets);
        let body = Body::from_stream(upstream.bytes_stream());
        Ok(([(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, length.into())], body).into_response())
    }

    async fn packages(&self) -> Result<Vec<Package>, Error> {
        let repositories = self.kept().repositories.clone();
        repository::packages(&self.client, &repositories).await
    }

    async fn package(&self, name: &str, version: Option<&str>) -> Result<Package, Error> {
        let packages = self.packages().await?;
        find(&packages, name, version).cloned()
    }

    /// Status and JSON body of a call to Marathon, with the caller's token.
    async fn marathon(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        authorization: &HeaderMap,
    ) -> Result<(StatusCode, Value), Error> {
        let url = format!("{}{path}", self.upstreams.marathon);
        let mut request = self.client.request(method, &url).headers(authorization.clone()).header(header::ACCEPT, "application/json");
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |error: reqwest::Error| {
            let message = format!("Unable to connect to URI: {url}: {error}");
            Error::new("EndpointUriConnection", message).status(StatusCode::BAD_GATEWAY)
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(unreachable)?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, kept: &Kept) {
        let write = || -> std::io::Result<()> {
            let new = self.file.with_extension("json.new");
            std::fs::write(&new, serde_json::to_vec(kept)?)?;
            std::fs::rename(&new, &self.file)
        };
        if let Err(error) = write() {
            tracing::error!(%error, file = %self.file.display(), "Cosmos' state not written");
        }
    }
}

/// What a request asks, once its headers are in order.
struct Asked {
    body: Value,
    /// Scheme and host by which the caller knows the cluster.
    origin: String,
    /// `Authorization` only: it is passed on.
    authorization: HeaderMap,
}

impl Asked {
    fn parse(body: &[u8], headers: &HeaderMap) -> Result<Self, Error> {
        // The CLI lists repositories without a body.
        let body = if body.is_empty() { b"{}" } else { body };
        let text = String::from_utf8_lossy(body);
        let parsed = repository::parse(&text).map_err(|error| not_parsed(&error.parsing_message()))?;
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("leader.mesos");
        let scheme = headers.get("x-forwarded-proto").and_then(|scheme| scheme.to_str().ok()).unwrap_or("http");
        let mut authorization = HeaderMap::new();
        if let Some(token) = headers.get(header::AUTHORIZATION) {
            authorization.insert(header::AUTHORIZATION, token.clone());
        }
        Ok(Self { body: parsed, origin: format!("{scheme}://{host}"), authorization })
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.body.get(field).and_then(Value::as_str)
    }

    fn required(&self, field: &str) -> Result<&str, Error> {
        self.text(field).ok_or_else(|| missing(field))
    }

    fn options(&self) -> Value {
        self.body.get("options").filter(|options| options.is_object()).cloned().unwrap_or_else(|| json!({}))
    }
}

fn missing(field: &str) -> Error {
    not_parsed(&format!("Attempt to decode value on failed cursor: DownField({field})"))
}

fn not_parsed(why: &str) -> Error {
    Error::new("not_parsed", format!("Item 'body' unable to be parsed: {why}"))
}

fn no_template(package: &Package) -> Error {
    let (name, version) = (package.text("name"), package.text("version"));
    let message = format!("Package: [{name}] version: [{version}] does not have a Marathon template defined and can not be rendered");
    Error::new("ServiceMarathonTemplateNotFound", message).data(json!({ "packageName": name, "packageVersion": version }))
}

fn success(status: StatusCode, body: Value) -> Result<Value, Error> {
    if status.is_success() { Ok(body) } else { Err(package::marathon_error(status, &body)) }
}

fn find<'a>(packages: &'a [Package], name: &str, version: Option<&str>) -> Result<&'a Package, Error> {
    let mut named = packages.iter().filter(|package| package.text("name") == name).peekable();
    if named.peek().is_none() {
        return Err(Error::new("PackageNotFound", format!("Package [{name}] not found")).data(json!({ "packageName": name })));
    }
    named.find(|package| version.is_none_or(|version| package.text("version") == version)).ok_or_else(|| {
        let version = version.unwrap_or_default();
        let data = json!({ "packageName": name, "packageVersion": version });
        Error::new("VersionNotFound", format!("Version [{version}] of package [{name}] not found")).data(data)
    })
}

fn first_of_name(packages: &[Package], index: usize) -> bool {
    !packages[..index].iter().any(|package| package.text("name") == packages[index].text("name"))
}

fn versions(packages: &[Package], name: &str, show: impl Fn(i64) -> Value) -> Map<String, Value> {
    packages
        .iter()
        .filter(|package| package.text("name") == name)
        .map(|package| (package.text("version").to_owned(), show(package.release())))
        .collect()
}

/// A query with `*` is a pattern for the whole name, description or a tag; one without may stand anywhere in them.
fn matcher(query: &str) -> impl Fn(&Package) -> bool {
    let query = query.to_lowercase();
    move |package| {
        let tags = package.json["tags"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut texts = [package.text("name"), package.text("description")].into_iter().chain(tags).map(str::to_lowercase);
        if query.contains('*') { texts.any(|text| wildcard(&query, &text)) } else { texts.any(|text| text.contains(&query)) }
    }
}

fn wildcard(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            let mut starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            starts.any(|at| wildcard(tail, &rest[at..]))
        }),
    }
}

/// Percent-decoding; what is not an escape stays.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
