//! Copies the images between their directory and a backup, with nothing but files; `copy` says when.
//!
//! A backup is a directory with `blobs`, each under its digest, and `index`, which says which repositories, tags and blobs the backup
//! has, with its own digest. The index is written last and replaced as a whole, and blobs that the last two indexes name are kept, so
//! whatever is killed, the last complete backup is still good.
//!
//! The registry goes on taking pushes meanwhile. Clients push blobs, then manifests, then tags; so reading in the opposite order, tags
//! first and blobs last, finds everything that is named. Nothing but a garbage collection removes blobs, and the two are never done at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{hex, sha256_hex};
use crate::in_order::InOrder as _;
use crate::protocol::CopyCounts;

/// Where the stock registry keeps its files below its root directory.
const STORE: &str = "docker/registry/v2";
/// The registry takes no larger manifest.
pub(super) const MAX_MANIFEST: u64 = 4 * 1024 * 1024;
/// Damaged images that are named.
pub(super) const NAMED: usize = 5;

/// Why there is no new backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(super) enum CopyError {
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("it was called off")]
    CalledOff,
    #[error("{0} is a backup of the service {1}, which is left as it is; give this service another backup.path")]
    Foreign(PathBuf, String),
    #[error("the registry holds no image, and the last backup has {0}: it stays as it is. Restore it, or move {1} away to begin anew")]
    Empty(u64, PathBuf),
    #[error("there is no backup in {0}: no backup has been completed there, or another directory is mounted")]
    None(PathBuf),
    #[error("{0} is damaged: {1}; the registry is as it was. Where {2} is good, put it in its place")]
    Index(PathBuf, String, PathBuf),
    #[error(
        "the blob sha256:{0} of the backup is damaged ({1}); the registry is as it was. A new backup with --verify mends it, if the registry still has the blob"
    )]
    Blob(String, String),
    #[error(
        "the blob sha256:{0} of the backup is damaged ({1}); what the registry had stays, and what was restored before it. A backup with --verify mends it, where the former registry still has the blob"
    )]
    Damaged(String, String),
    #[error(
        "the registry does not take the images: {0}; what it had stays, and what was restored before. Start it again: it goes on where this one ended"
    )]
    Registry(String),
}

pub(super) type Result<T> = std::result::Result<T, CopyError>;

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_path_buf();
    move |source| CopyError::Io { doing, path, source }
}

/// Hears how it goes on, and may call it off.
pub(super) trait Watcher {
    fn told(&self, counts: &CopyCounts);
}

impl<F: Fn(&CopyCounts)> Watcher for F {
    fn told(&self, counts: &CopyCounts) {
        self(counts);
    }
}

/// What a backup has.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) service: String,
    /// Unix time.
    pub(super) made: u64,
    pub(super) repositories: BTreeMap<String, Repository>,
    /// Sizes by the SHA-256 in hex.
    pub(super) blobs: BTreeMap<String, u64>,
}

/// Links of a repository; digests are SHA-256 in hex.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Repository {
    pub(super) tags: BTreeMap<String, Tag>,
    pub(super) revisions: BTreeSet<String>,
    pub(super) layers: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tag {
    pub(super) current: String,
    /// All that it has been, as the registry notes it.
    pub(super) index: BTreeSet<String>,
}

impl Index {
    fn images(&self) -> u64 {
        self.repositories.values().map(|repository| repository.tags.len() as u64).sum()
    }

    /// Reads the index of a backup that is to be restored, and looks at all that can be seen without reading blobs.
    pub(super) fn open(backup: &Path) -> Result<Self> {
        let index = Self::read(backup)?.ok_or_else(|| CopyError::None(backup.to_path_buf()))?;
        for (digest, size) in &index.blobs {
            match size_of(&blob_of(backup, digest)) {
                Some(found) if found == *size => {}
                Some(found) => return Err(CopyError::Blob(digest.clone(), format!("it has {found} bytes instead of {size}"))),
                None => return Err(CopyError::Blob(digest.clone(), "it is missing".into())),
            }
        }
        Ok(index)
    }

    /// Reads an index, if there is one.
    fn read(backup: &Path) -> Result<Option<Self>> {
        let path = backup.join("index");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(failed("read", &path))?,
        };
        let damaged = |reason: &str| CopyError::Index(path.clone(), reason.into(), backup.join("index.previous"));
        let (json, rest) = text.split_once('\n').ok_or_else(|| damaged("it is not complete"))?;
        if rest.trim_end() != sha256_hex(json.as_bytes()) {
            return Err(damaged("it does not have the digest that it says"));
        }
        let index: Self = crate::json::of_text(json).map_err(|error| damaged(&error.to_string()))?;
        index.check().map_err(|reason| damaged(&reason))?;
        Ok(Some(index))
    }

    /// Whether everything has a name that can be a file's, and is there: whoever wrote it meant well, but files are made of it.
    fn check(&self) -> std::result::Result<(), String> {
        for (name, repository) in &self.repositories {
            let Repository { tags, revisions, layers } = repository;
            if !name.split('/').all(is_component) || !tags.keys().all(|tag| is_file_name(tag)) {
                return Err(format!("{name:?} or a tag of it has a name that no image has"));
            }
            let known = |digest: &String| is_digest(digest) && self.blobs.contains_key(digest);
            if !revisions.iter().chain(layers).chain(tags.values().map(|tag| &tag.current)).all(known) {
                return Err(format!("{name} names a blob that the backup does not have"));
            }
            if !tags.values().flat_map(|tag| &tag.index).all(|digest| is_digest(digest)) {
                return Err(format!("a tag of {name} has been something that is no digest"));
            }
        }
        if self.blobs.keys().all(|digest| is_digest(digest)) { Ok(()) } else { Err("a blob has no digest".into()) }
    }

    pub(super) fn text(&self) -> String {
        let json = serde_json::to_string(self).expect("all keys are strings");
        let digest = sha256_hex(json.as_bytes());
        format!("{json}\n{digest}\n")
    }
}

pub(super) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Part of the name of a repository. The registry's own directories begin with an underscore.
fn is_component(text: &str) -> bool {
    is_file_name(text) && !text.starts_with('_')
}

fn is_file_name(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty() && text.len() <= 255 && !text.starts_with(['.', '-']) && text.chars().all(inside)
}

/// File of a blob in the registry.
fn blob_in(data: &Path, digest: &str) -> PathBuf {
    data.join(STORE).join("blobs/sha256").join(&digest[..2]).join(digest).join("data")
}

/// File of a blob in the backup.
pub(super) fn blob_of(backup: &Path, digest: &str) -> PathBuf {
    backup.join("blobs/sha256").join(&digest[..2]).join(digest)
}

fn size_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|found| found.len())
}

/// Names in a directory; none if it is not there.
fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("read", directory))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // Other names are none of the registry's.
        names.extend(entry.map_err(failed("read", directory))?.file_name().into_string());
    }
    Ok(names)
}

/// The digest that a link holds; none if it has been deleted meanwhile.
fn link(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().strip_prefix("sha256:").filter(|digest| is_digest(digest)).map(String::from)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Digests for which a directory has a link.
fn links(directory: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for digest in names(directory)?.into_iter().filter(|name| is_digest(name)) {
        found.extend(link(&directory.join(&digest).join("link"))?.filter(|linked| *linked == digest));
    }
    Ok(found)
}

/// All repositories, each with tags, then manifests, then layers.
fn read_links(data: &Path) -> Result<BTreeMap<String, Repository>> {
    let root = data.join(STORE).join("repositories");
    let (mut found, mut ahead) = (BTreeMap::new(), vec![String::new()]);
    while let Some(name) = ahead.pop() {
        let directory = root.join(&name);
        let inside = names(&directory)?;
        if inside.iter().any(|entry| entry == "_manifests") {
            found.insert(name.clone(), read_repository(&directory)?);
        }
        for entry in inside.iter().filter(|entry| is_component(entry) && directory.join(entry).is_dir()) {
            ahead.push(if name.is_empty() { entry.clone() } else { format!("{name}/{entry}") });
        }
    }
    Ok(found)
}

fn read_repository(directory: &Path) -> Result<Repository> {
    let manifests = directory.join("_manifests");
    let mut tags = BTreeMap::new();
    for tag in names(&manifests.join("tags"))?.into_iter().filter(|tag| is_file_name(tag)) {
        let of_tag = manifests.join("tags").join(&tag);
        if let Some(current) = link(&of_tag.join("current/link"))? {
            tags.insert(tag, Tag { current, index: links(&of_tag.join("index/sha256"))? });
        }
    }
    let revisions = links(&manifests.join("revisions/sha256"))?;
    // Deleted between the two looks.
    tags.retain(|_, tag| revisions.contains(&tag.current));
    Ok(Repository { tags, revisions, layers: links(&directory.join("_layers/sha256"))? })
}

/// Blobs without which a manifest is of no use. Images of an index may be absent, and foreign layers lie elsewhere.
pub(super) fn needs(manifest: &[u8]) -> BTreeSet<String> {
    let manifest: Value = crate::json::of_bytes(manifest).unwrap_or_default();
    let list = |key: &str| manifest[key].as_array().into_iter().flatten();
    let is_own = |part: &&Value| part["urls"].as_array().is_none_or(Vec::is_empty);
    let layers = list("layers").chain(list("blobs")).filter(is_own).map(|part| &part["digest"]);
    let of_schema_1 = list("fsLayers").map(|part| &part["blobSum"]);
    let digests = layers.chain(of_schema_1).chain([&manifest["config"]["digest"]]).filter_map(Value::as_str);
    digests.filter_map(|digest| digest.strip_prefix("sha256:")).filter(|digest| is_digest(digest)).map(String::from).in_order()
}

/// Work in progress.
struct Work<'a> {
    called_off: &'a AtomicBool,
    watcher: &'a dyn Watcher,
    counts: CopyCounts,
}

impl Work<'_> {
    fn go_on(&self) -> Result<()> {
        if self.called_off.load(Ordering::Relaxed) { Err(CopyError::CalledOff) } else { Ok(()) }
    }

    /// The SHA-256 of a file, which is also written to `to` if there is one. An error of reading is the inner one.
    fn pass(&mut self, from: &Path, mut to: Option<(&mut File, &Path)>) -> Result<io::Result<String>> {
        let mut file = match File::open(from) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; 1024 * 1024]);
        loop {
            self.go_on()?;
            let read = match file.read(&mut buffer) {
                Ok(0) => return Ok(Ok(hex(context.finish().as_ref()))),
                Ok(read) => &buffer[..read],
                Err(error) => return Ok(Err(error)),
            };
            context.update(read);
            if let Some((file, path)) = &mut to {
                file.write_all(read).map_err(failed("write", path))?;
                self.counts.bytes_copied += read.len() as u64;
                self.watcher.told(&self.counts);
            }
        }
    }

    /// Copies a blob if it has its digest; else says what is wrong with it. Nobody sees a part of it.
    fn copy(&mut self, from: &Path, to: &Path, digest: &str) -> Result<std::result::Result<(), String>> {
        let directory = to.parent().unwrap_or(to);
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
        let temporary = to.with_extension("tmp");
        let mut file = File::create(&temporary).map_err(failed("write", &temporary))?;
        let done = self.pass(from, Some((&mut file, &temporary)));
        let good = match &done {
            Ok(Ok(found)) if found == digest => Ok(()),
            Ok(Ok(found)) => Err(format!("its content has the digest sha256:{found}")),
            Ok(Err(error)) => Err(format!("{}: {error}", from.display())),
            Err(_) => Err(String::new()),
        };
        if good.is_ok() {
            file.sync_all().map_err(failed("write", &temporary))?;
            fs::rename(&temporary, to).map_err(failed("write", to))?;
            sync_directory(directory)?;
            self.counts.blobs_copied += 1;
        } else {
            // A disk that is full needs the room; what cannot be removed is removed next time.
            let _ = fs::remove_file(&temporary);
            done?.ok();
        }
        Ok(good)
    }
}

fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(failed("sync", directory))
}

/// Puts a complete, synced file in place.
fn replace(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(failed("write", &temporary))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("write", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("write", path))?;
    sync_directory(path.parent().unwrap_or(path))
}

/// What an order to copy is about.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) service: String,
    /// Root directory of the registry.
    pub(super) data: PathBuf,
    pub(super) backup: PathBuf,
    /// Unix time.
    pub(super) now: u64,
}

/// Makes a backup. `verify`: what the backup has already is read again.
pub(super) fn back_up(place: &Place, verify: bool, called_off: &AtomicBool, watcher: &dyn Watcher) -> Result<CopyCounts> {
    let Place { service, data, backup, now } = place;
    let last = match Index::read(backup) {
        // A backup is the remedy for a damaged one; its blobs are looked at below.
        Err(CopyError::Index(path, reason, _)) => {
            tracing::warn!("{} is damaged ({reason}) and is replaced", path.display());
            None
        }
        last => last?,
    };
    if let Some(last) = last.as_ref().filter(|last| last.service != *service) {
        return Err(CopyError::Foreign(backup.clone(), last.service.clone()));
    }
    let mut work = Work { called_off, watcher, counts: CopyCounts::default() };
    let mut repositories = read_links(data)?;
    let has_none = repositories.values().all(|repository| repository.tags.is_empty());
    if let Some(last) = last.as_ref().filter(|last| has_none && last.images() > 0) {
        return Err(CopyError::Empty(last.images(), backup.clone()));
    }
    let mut kept = Kept { data, backup, verify, blobs: BTreeMap::new(), bad: BTreeMap::new() };
    for (name, repository) in &mut repositories {
        kept.keep_repository(name, repository, &mut work)?;
    }
    repositories.retain(|_, repository| !repository.revisions.is_empty() || !repository.layers.is_empty());
    let index = Index { service: service.clone(), made: *now, repositories, blobs: kept.blobs };
    work.counts.images = index.images();
    work.counts.blobs = index.blobs.len() as u64;
    work.counts.bytes = index.blobs.values().sum();
    fs::create_dir_all(backup).map_err(failed("make", backup))?;
    if let Some(last) = &last {
        replace(&backup.join("index.previous"), &last.text())?;
    }
    replace(&backup.join("index"), &index.text())?;
    prune(backup, [Some(&index), last.as_ref()])?;
    work.watcher.told(&work.counts);
    Ok(work.counts)
}

/// What is in the backup that is being made.
struct Kept<'a> {
    data: &'a Path,
    backup: &'a Path,
    verify: bool,
    blobs: BTreeMap<String, u64>,
    /// What is wrong with those that cannot be had.
    bad: BTreeMap<String, String>,
}

impl Kept<'_> {
    fn keep_repository(&mut self, name: &str, repository: &mut Repository, work: &mut Work<'_>) -> Result<()> {
        for revision in std::mem::take(&mut repository.revisions) {
            match self.keep_image(&revision, work)? {
                Ok(()) => drop(repository.revisions.insert(revision)),
                Err(reason) => {
                    let tags = repository.tags.iter().filter(|(_, tag)| tag.current == revision).map(|(tag, _)| format!("{name}:{tag}"));
                    let mut named: Vec<String> = tags.collect();
                    if named.is_empty() {
                        named.push(format!("{name}@sha256:{revision}"));
                    }
                    let said = format!("{}: {reason}", named.join(", "));
                    tracing::error!("the registry holds a damaged image, which is not in the backup: {said}");
                    work.counts.damaged += 1;
                    if work.counts.damaged_images.len() < NAMED {
                        work.counts.damaged_images.push(said);
                    }
                }
            }
        }
        let revisions = &repository.revisions;
        repository.tags.retain(|_, tag| revisions.contains(&tag.current));
        work.counts.images += repository.tags.len() as u64;
        for layer in std::mem::take(&mut repository.layers) {
            // What a garbage collection of generation 2 has deleted leaves its link behind.
            if self.keep(&layer, work)?.is_ok() {
                repository.layers.insert(layer);
            }
        }
        Ok(())
    }

    /// Has a manifest and all that it needs in the backup, or says why that cannot be.
    fn keep_image(&mut self, revision: &str, work: &mut Work<'_>) -> Result<std::result::Result<(), String>> {
        if let Err(reason) = self.keep(revision, work)? {
            return Ok(Err(reason));
        }
        let path = blob_of(self.backup, revision);
        if size_of(&path).is_some_and(|size| size > MAX_MANIFEST) {
            return Ok(Err(format!("the manifest sha256:{revision} is longer than any manifest is")));
        }
        for digest in needs(&fs::read(&path).map_err(failed("read", &path))?) {
            if let Err(reason) = self.keep(&digest, work)? {
                return Ok(Err(reason));
            }
        }
        Ok(Ok(()))
    }

    /// Has a blob in the backup. One that is there with the right size is not read again, unless that is asked for.
    fn keep(&mut self, digest: &str, work: &mut Work<'_>) -> Result<std::result::Result<(), String>> {
        work.go_on()?;
        if self.blobs.contains_key(digest) {
            return Ok(Ok(()));
        }
        if let Some(reason) = self.bad.get(digest) {
            return Ok(Err(reason.clone()));
        }
        let (from, to) = (blob_in(self.data, digest), blob_of(self.backup, digest));
        let (size, kept) = (size_of(&from), size_of(&to));
        // What the registry has lost may still be here.
        let same_size = kept.is_some() && (size.is_none() || size == kept);
        let is_kept = same_size && (!(self.verify || size.is_none()) || work.pass(&to, None)?.is_ok_and(|found| found == digest));
        let result = match size {
            _ if is_kept => Ok(()),
            Some(_) => work.copy(&from, &to, digest)?.map_err(|reason| format!("the blob sha256:{digest} is damaged: {reason}")),
            None => Err(format!("the blob sha256:{digest} is missing")),
        };
        match &result {
            Ok(()) => {
                let size = size_of(&to).unwrap_or_default();
                self.blobs.insert(digest.into(), size);
                work.counts.blobs += 1;
                work.counts.bytes += size;
                work.watcher.told(&work.counts);
            }
            Err(reason) => drop(self.bad.insert(digest.into(), reason.clone())),
        }
        Ok(result)
    }
}

/// Removes what neither index names, and what a kill left behind.
fn prune(backup: &Path, indexes: [Option<&Index>; 2]) -> Result<()> {
    let root = backup.join("blobs/sha256");
    for first in names(&root)? {
        for name in names(&root.join(&first))? {
            if !indexes.iter().flatten().any(|index| index.blobs.contains_key(&name)) {
                let path = root.join(&first).join(&name);
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
    }
    Ok(())
}

/// The restored registry while it is put together, the same once it is complete, and the one that it replaces.
fn stages(data: &Path) -> [PathBuf; 3] {
    [".restoring", ".restored", ".replaced"].map(|name| data.join(name))
}

/// Puts together what the backup has, beside what the registry serves. Every blob is read: what the registry has already is linked, not
/// copied. [`switch`] brings it into force.
pub(super) fn prepare_restore(place: &Place, called_off: &AtomicBool, watcher: &dyn Watcher) -> Result<CopyCounts> {
    let Place { data, backup, .. } = place;
    let index = Index::open(backup)?;
    recover(data)?;
    let [building, complete, _] = stages(data);
    let done = put_together(place, &index, &building, called_off, watcher);
    if done.is_err() {
        remove(&building)?;
    }
    let counts = done?;
    nix::unistd::sync();
    fs::rename(&building, &complete).map_err(failed("rename", &building))?;
    sync_directory(data)?;
    Ok(counts)
}

fn put_together(place: &Place, index: &Index, building: &Path, called_off: &AtomicBool, watcher: &dyn Watcher) -> Result<CopyCounts> {
    let Place { data, backup, .. } = place;
    let mut work = Work { called_off, watcher, counts: CopyCounts { images: index.images(), ..CopyCounts::default() } };
    for (digest, size) in &index.blobs {
        work.go_on()?;
        let (present, to) = (blob_in(data, digest), blob_in(building, digest));
        let is_present = size_of(&present) == Some(*size) && work.pass(&present, None)?.is_ok_and(|found| found == *digest);
        if is_present {
            let directory = to.parent().unwrap_or(&to);
            fs::create_dir_all(directory).map_err(failed("make", directory))?;
        }
        if !is_present || fs::hard_link(&present, &to).is_err() {
            let copied = work.copy(&blob_of(backup, digest), &to, digest)?;
            copied.map_err(|reason| CopyError::Blob(digest.clone(), reason))?;
        }
        work.counts.blobs += 1;
        work.counts.bytes += size;
        work.watcher.told(&work.counts);
    }
    // Also where the backup has no repository at all.
    let root = building.join(STORE).join("repositories");
    fs::create_dir_all(&root).map_err(failed("make", &root))?;
    for (name, repository) in &index.repositories {
        work.go_on()?;
        let (layers, manifests) = (root.join(name).join("_layers/sha256"), root.join(name).join("_manifests"));
        for layer in &repository.layers {
            write_link(&layers.join(layer), layer)?;
        }
        for revision in &repository.revisions {
            write_link(&manifests.join("revisions/sha256").join(revision), revision)?;
        }
        for (tag, Tag { current, index }) in &repository.tags {
            let of_tag = manifests.join("tags").join(tag);
            for digest in index {
                write_link(&of_tag.join("index/sha256").join(digest), digest)?;
            }
            write_link(&of_tag.join("current"), current)?;
        }
    }
    Ok(work.counts)
}

fn write_link(directory: &Path, digest: &str) -> Result<()> {
    fs::create_dir_all(directory).map_err(failed("make", directory))?;
    let path = directory.join("link");
    fs::write(&path, format!("sha256:{digest}")).map_err(failed("write", &path))
}

/// Brings into force what [`prepare_restore`] has put together. The registry does not run meanwhile.
pub(super) fn switch(data: &Path) -> Result<()> {
    let [_, complete, replaced] = stages(data);
    let (store, restored) = (data.join("docker"), complete.join("docker"));
    // The images keep the owner and the mode of the directory that the operator has made, which is above both.
    if store.exists() {
        fs::rename(&store, &replaced).map_err(failed("rename", &store))?;
    }
    let switched = fs::rename(&restored, &store).map_err(failed("rename", &restored));
    if switched.is_err() && replaced.exists() {
        fs::rename(&replaced, &store).map_err(failed("rename", &replaced))?;
    }
    switched?;
    sync_directory(data)
}

/// Removes what a restore has left, and puts the old images back where one was killed in between. The registry serves the old state or
/// the restored one.
pub(super) fn recover(data: &Path) -> Result<()> {
    let [building, complete, replaced] = stages(data);
    let store = data.join("docker");
    if replaced.exists() && !store.exists() {
        fs::rename(&replaced, &store).map_err(failed("rename", &replaced))?;
        sync_directory(data)?;
    }
    // Not in the other order: as long as the old images are there, it is known which ones are in force.
    [building, complete, replaced].iter().try_for_each(|path| remove(path))
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", directory)(error)),
        _ => Ok(()),
    }
}

/// Whether two directories lie on the same disk.
pub(super) fn same_disk(one: &Path, other: &Path) -> bool {
    let disk = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    disk(one).is_some() && disk(one) == disk(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    /// A host with a registry and a backup.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            fs::create_dir(host.data()).unwrap();
            host
        }

        fn data(&self) -> PathBuf {
            self.0.path().join("data")
        }

        fn place(&self) -> Place {
            Place { service: "s".into(), data: self.data(), backup: self.0.path().join("backup"), now: 7 }
        }

        fn blob(&self, content: &str) -> String {
            let digest = sha256_hex(content.as_bytes());
            let path = blob_in(&self.data(), &digest);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            digest
        }

        /// Pushes an image of one layer, as a registry stores it.
        fn push(&self, name: &str, tag: &str, layer: &str) -> [String; 3] {
            let (layer, config) = (self.blob(layer), self.blob(&format!("config of {layer}")));
            let manifest = format!(
                r#"{{"config":{{"digest":"sha256:{config}"}},"layers":[{{"digest":"sha256:{layer}"}},{{"digest":"sha256:{}","urls":["https://elsewhere"]}}]}}"#,
                "ff".repeat(32)
            );
            let manifest = self.blob(&manifest);
            let root = self.data().join(STORE).join("repositories").join(name);
            for digest in [&layer, &config] {
                write_link(&root.join("_layers/sha256").join(digest), digest).unwrap();
            }
            write_link(&root.join("_manifests/revisions/sha256").join(&manifest), &manifest).unwrap();
            let of_tag = root.join("_manifests/tags").join(tag);
            write_link(&of_tag.join("index/sha256").join(&manifest), &manifest).unwrap();
            write_link(&of_tag.join("current"), &manifest).unwrap();
            [layer, config, manifest]
        }

        fn back_up(&self, verify: bool) -> Result<CopyCounts> {
            back_up(&self.place(), verify, &NEVER, &|_: &CopyCounts| {})
        }

        fn prepare(&self) -> Result<CopyCounts> {
            prepare_restore(&self.place(), &NEVER, &|_: &CopyCounts| {})
        }

        fn restore(&self) {
            self.prepare().unwrap();
            switch(&self.data()).unwrap();
            recover(&self.data()).unwrap();
        }

        /// All files of the registry.
        fn picture(&self) -> BTreeMap<PathBuf, String> {
            let (mut picture, mut ahead) = (BTreeMap::new(), vec![self.data()]);
            while let Some(directory) = ahead.pop() {
                for entry in fs::read_dir(directory).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        ahead.push(path);
                    } else {
                        picture.insert(path.strip_prefix(self.data()).unwrap().into(), fs::read_to_string(&path).unwrap());
                    }
                }
            }
            picture
        }
    }

    #[test]
    fn what_is_backed_up_comes_back_into_an_empty_directory_and_into_one_that_has_gone_on() {
        let host = Host::new();
        host.push("team/app", "1", "layer one");
        host.push("team/app/deeper", "2", "layer two");
        let before = host.picture();
        let counts = host.back_up(false).unwrap();
        assert_eq!((counts.images, counts.blobs, counts.blobs_copied), (2, 6, 6));

        host.push("team/app", "1", "something else");
        fs::create_dir_all(host.data().join("docker/registry/v2/repositories/team/app/_uploads/u")).unwrap();
        host.restore();
        assert_eq!(host.picture(), before);
        fs::remove_dir_all(host.data().join("docker")).unwrap();
        host.restore();
        assert_eq!(host.picture(), before);
    }

    #[test]
    fn only_what_is_new_is_copied_and_what_is_not_used_any_more_stays_for_one_more_backup() {
        let host = Host::new();
        let [old, ..] = host.push("a", "1", "old");
        host.back_up(false).unwrap();
        fs::remove_dir_all(host.data().join(STORE).join("repositories/a")).unwrap();
        host.push("b", "1", "new");
        let counts = host.back_up(false).unwrap();
        assert_eq!((counts.images, counts.blobs, counts.blobs_copied), (1, 3, 3));
        let old = blob_of(&host.place().backup, &old);
        assert!(old.exists(), "the last backup but one still has it");
        assert_eq!(host.back_up(false).unwrap().blobs_copied, 0);
        assert!(!old.exists());
        // The one before can be put in its place.
        assert_eq!(fs::read_to_string(host.place().backup.join("index.previous")).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_damaged_blob_of_the_backup_is_named_before_anything_changes_and_a_verified_backup_mends_it() {
        let host = Host::new();
        let [layer, ..] = host.push("a", "1", "layer");
        host.back_up(false).unwrap();
        fs::write(blob_of(&host.place().backup, &layer), "reyal").unwrap();
        assert_eq!(host.back_up(false).unwrap().blobs_copied, 0, "the size is right");
        host.push("b", "1", "of today");
        fs::remove_file(blob_in(&host.data(), &layer)).unwrap();
        let before = host.picture();
        let error = host.prepare().unwrap_err().to_string();
        assert!(error.contains(&layer) && error.contains("--verify"), "{error}");
        assert_eq!(host.picture(), before);
        host.blob("layer");
        assert_eq!(host.back_up(true).unwrap().blobs_copied, 4, "three new ones, and the damaged one");
        host.restore();

        fs::write(blob_of(&host.place().backup, &layer), "short").unwrap();
        fs::OpenOptions::new().write(true).open(blob_of(&host.place().backup, &layer)).unwrap().set_len(2).unwrap();
        assert!(host.prepare().unwrap_err().to_string().contains("it has 2 bytes instead of 5"));
        let index = host.place().backup.join("index");
        let text = fs::read_to_string(&index).unwrap().replace("\"1\"", "\"2\"");
        fs::write(&index, text).unwrap();
        let error = host.prepare().unwrap_err().to_string();
        assert!(error.contains("index is damaged") && error.contains("index.previous"), "{error}");
    }

    #[test]
    fn an_image_that_the_registry_itself_has_lost_is_named_and_does_not_keep_the_others_out() {
        let host = Host::new();
        let [layer, ..] = host.push("a", "1", "lost");
        host.push("b", "1", "good");
        fs::remove_file(blob_in(&host.data(), &layer)).unwrap();
        let counts = host.back_up(false).unwrap();
        assert_eq!((counts.images, counts.damaged), (1, 1));
        assert!(counts.damaged_images[0].starts_with("a:1: the blob sha256:"), "{counts:?}");

        // What the backup has got before, it keeps.
        host.blob("lost");
        assert_eq!(host.back_up(false).unwrap().images, 2);
        fs::remove_file(blob_in(&host.data(), &layer)).unwrap();
        let counts = host.back_up(false).unwrap();
        assert_eq!((counts.images, counts.damaged), (2, 0));
        host.restore();
        assert!(blob_in(&host.data(), &layer).exists(), "and gives back");
    }

    #[test]
    fn what_is_deleted_or_left_by_a_garbage_collection_is_no_damage() {
        let host = Host::new();
        let [_, _, manifest] = host.push("a", "1", "x");
        host.push("a", "2", "y");
        let root = host.data().join(STORE).join("repositories/a");
        // A manifest deleted through the API, whose tag a generation leaves, and a layer that was collected, whose link it leaves.
        fs::remove_dir_all(root.join("_manifests/revisions/sha256").join(manifest)).unwrap();
        write_link(&root.join("_layers/sha256").join("ab".repeat(32)), &"ab".repeat(32)).unwrap();
        let counts = host.back_up(false).unwrap();
        assert_eq!((counts.images, counts.damaged), (1, 0));
        host.restore();
    }

    #[test]
    fn an_empty_registry_and_another_service_leave_the_backup_as_it_is() {
        let host = Host::new();
        host.push("a", "1", "x");
        host.back_up(false).unwrap();
        let other = Place { service: "other".into(), ..host.place() };
        let error = back_up(&other, false, &NEVER, &|_: &CopyCounts| {}).unwrap_err().to_string();
        assert!(error.contains("of the service s") && error.contains("backup.path"), "{error}");
        fs::remove_dir_all(host.data().join("docker")).unwrap();
        assert!(host.back_up(false).unwrap_err().to_string().contains("the registry holds no image"));
        host.restore();
        assert_eq!(host.back_up(false).unwrap().blobs_copied, 0);
        assert!(matches!(Host::new().prepare(), Err(CopyError::None(_))));
    }

    #[test]
    fn what_is_killed_leaves_the_last_backup_and_the_old_or_the_new_state() {
        let host = Host::new();
        host.push("a", "1", "x");
        host.back_up(false).unwrap();
        let first = host.picture();
        host.push("a", "2", "y");
        let second = host.picture();
        // Called off after the first blob.
        let stop = AtomicBool::new(false);
        let watcher = |_: &CopyCounts| stop.store(true, Ordering::Relaxed);
        assert!(matches!(back_up(&host.place(), true, &stop, &watcher), Err(CopyError::CalledOff)));
        stop.store(false, Ordering::Relaxed);
        assert!(matches!(prepare_restore(&host.place(), &stop, &watcher), Err(CopyError::CalledOff)));
        assert_eq!(host.picture(), second);
        // Killed between the two halves of the change.
        host.prepare().unwrap();
        fs::rename(host.data().join("docker"), host.data().join(".replaced")).unwrap();
        recover(&host.data()).unwrap();
        assert_eq!(host.picture(), second);
        // Killed after it.
        host.prepare().unwrap();
        switch(&host.data()).unwrap();
        recover(&host.data()).unwrap();
        assert_eq!(host.picture(), first);
    }

    #[test]
    fn an_index_leads_to_no_file_outside() {
        let digest = "ab".repeat(32);
        let index = |name: &str, tag: &str, digest: &str| {
            let repository = Repository {
                tags: BTreeMap::from([(tag.into(), Tag { current: digest.into(), index: BTreeSet::new() })]),
                ..Repository::default()
            };
            let blobs = BTreeMap::from([(digest.to_string(), 1)]);
            Index { repositories: BTreeMap::from([(name.to_string(), repository)]), blobs, ..Index::default() }
        };
        assert_eq!(index("team/app", "v1.0_x", &digest).check(), Ok(()));
        for (name, tag, digest) in
            [("../x", "1", &digest), ("a//b", "1", &digest), ("a/_layers", "1", &digest), ("a", "..", &digest), ("a", "1", &"../x".into())]
        {
            assert!(index(name, tag, digest).check().is_err(), "{name} {tag} {digest}");
        }
    }
}
