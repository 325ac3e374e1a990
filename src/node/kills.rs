//! Every way in which this program changes files of a host, killed at every system call, torn at every write, and failing at every
//! call that changes something: each file has its old or its new content, and the next run ends as if nothing had happened.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::files::{FileError, HostFiles, Item, Removal};
use super::pass::Host;
use super::trust::Bundle;
use crate::certificates::{Authority, Certificate};
use crate::host_paths::HostRoot;
use crate::interrupted::{Fault, Outcome, asked, at_every_call, directory, run, work};
use crate::protocol::{OtherTrust, SignedOrder, TrustBundle, TrustedName};

/// The work, in a process of its own.
const TEST: &str = "node::kills::the_work_itself";
/// Beside the host: what its tests have agreed on.
const BUNDLES: &str = "bundles.json";

/// Every path below the host with kind, mode and content.
type Picture = BTreeMap<PathBuf, (u32, Vec<u8>)>;

fn host(dir: &Path) -> PathBuf {
    dir.join("host")
}

fn picture(dir: &Path) -> Picture {
    let (root, mut picture) = (host(dir), Picture::new());
    let mut rest = vec![root.clone()];
    while let Some(at) = rest.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else if meta.is_dir() {
                rest.push(path.clone());
                Vec::new()
            } else if is_record(&path) {
                // It names files by their whole path, and every host of a test lies elsewhere.
                fs::read_to_string(&path).unwrap().replace(&root.display().to_string(), "").into_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            picture.insert(path.strip_prefix(&root).unwrap().to_owned(), (meta.permissions().mode(), content));
        }
    }
    picture
}

fn write(dir: &Path, below: &str, text: &str) {
    let path = host(dir).join(below);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Our own record, which changes on the way from the old to the new.
fn is_record(path: &Path) -> bool {
    path.ends_with("manifest.json") || path.ends_with("host.json")
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".private-registry."))
        && path.extension() == Some("tmp".as_ref())
}

/// What lies there is old or new, and nothing else lies there but what the next run knows to be its own.
fn assert_old_or_new(what: &str, now: &Picture, old: &Picture, new: &Picture) {
    for (path, found) in now {
        let known = [old.get(path), new.get(path)].contains(&Some(found));
        let record = is_record(path) && serde_json::from_slice::<serde_json::Value>(&found.1).is_ok();
        // A directory on the way to something that goes again, or that is made before its mode is set.
        let directory = found.0 & 0o170_000 == 0o040_000;
        assert!(known || record || directory || is_temporary(path), "{what}: {} is neither old nor new", path.display());
    }
    for path in old.keys().filter(|path| new.contains_key(*path)) {
        assert!(now.contains_key(path), "{what}: {} is gone", path.display());
    }
}

fn assert_same(what: &str, now: &Picture, wanted: &Picture) {
    let differs: BTreeSet<_> = now.keys().chain(wanted.keys()).filter(|path| now.get(*path) != wanted.get(*path)).collect();
    assert!(differs.is_empty(), "{what}: {differs:?}");
}

#[test]
#[ignore = "the work that the other tests interrupt"]
fn the_work_itself() {
    let (what, dir) = asked();
    work(|| does(&what, &dir));
}

/// Does one of the works, and says what went wrong.
fn does(what: &str, dir: &Path) -> String {
    if what == "files" {
        return every_kind_of_change(dir).err().map(|error| error.to_string()).unwrap_or_default();
    }
    let bundles: [TrustBundle; 2] = serde_json::from_slice(&fs::read(dir.join(BUNDLES)).unwrap()).unwrap();
    let host = Host::new(HostRoot::at(host(dir)), "infra/images".into());
    let order = SignedOrder { payload: what.into(), signature: String::new() };
    let report = match what {
        "first" => host.apply(&order, &Bundle::parse(&bundles[0]).unwrap()),
        "second" => host.apply(&order, &Bundle::parse(&bundles[1]).unwrap()),
        _ => host.restore(&order),
    };
    report.errors.join("\n")
}

/// Each call of [`HostFiles`] that changes something.
fn every_kind_of_change(dir: &Path) -> Result<(), FileError> {
    let root = host(dir);
    let files = HostFiles::open(&HostRoot::at(&root), "test")?;
    let at = |name: &str| root.join("dir").join(name);
    files.put(&at("new"), &Item::File(b"new file".to_vec()))?;
    files.put(&at("replaced"), &Item::File(b"second content, a longer one".to_vec()))?;
    files.put(&at("private"), &Item::PrivateFile(b"second secret".to_vec()))?;
    files.put(&at("new-link"), &Item::Link("replaced".into()))?;
    files.put(&at("replaced-link"), &Item::Link("replaced".into()))?;
    match files.rewrite(&at("shared"), Some(b"first of all"), b"second of all") {
        // What an interrupted run had done already.
        Err(FileError::Changed(_)) if fs::read(at("shared")).unwrap() == b"second of all" => {}
        other => drop(other?),
    }
    let removal = files.remove(&at("removed"), &[Item::File(b"ours".to_vec()).digest()])?;
    assert_eq!(removal, Removal::Gone);
    files.create_dirs(&at("a/b"), 0o700)?;
    files.set_kernel_value(&at("kernel"), "1")?;
    assert!(files.remove_empty_dir(&at("empty"))?);
    Ok(())
}

fn prepare_files(dir: &Path) {
    for (name, text) in [
        ("replaced", "first content"),
        ("private", "first secret"),
        ("shared", "first of all"),
        ("removed", "ours"),
        ("kernel", "0\n"),
        ("foreign", "somebody's"),
        ("new.crt", "somebody's too"),
    ] {
        write(dir, &format!("dir/{name}"), text);
    }
    let at = |name: &str| host(dir).join("dir").join(name);
    fs::set_permissions(at("private"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(at("shared"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("foreign", at("replaced-link")).unwrap();
    fs::create_dir(at("empty")).unwrap();
}

/// Interrupts a work everywhere and in every way. `prepare` makes the host as it is before it. Returns the number of points.
fn interrupt(what: &'static str, kill: Fault, errors: &[Errno], prepare: &(impl Fn(&Path) + Sync)) -> usize {
    let clean = directory();
    prepare(clean.path());
    let old = picture(clean.path());
    assert_eq!(does(what, clean.path()), "");
    let new = picture(clean.path());
    assert_ne!(old, new);
    let prepare = |dir: &Path| {
        prepare(dir);
        dir.to_owned()
    };
    let killed = |fault: Fault| {
        at_every_call(TEST, what, fault, prepare, |at, dir, _| {
            let point = format!("{what}, {fault:?} at call {at}");
            assert_old_or_new(&point, &picture(&dir), &old, &new);
            assert_eq!(does(what, &dir), "", "{point}");
            assert_same(&point, &picture(&dir), &new);
        })
    };
    let (kills, tears) = (killed(kill), killed(Fault::Tear));
    let failed = |errno: Errno| {
        at_every_call(TEST, what, Fault::Fail(errno), prepare, |at, dir, words| {
            let (point, words) = (format!("{what}, {errno} at call {at}"), words.unwrap());
            let named = host(&dir).display().to_string();
            assert!(words.contains(&named) && words.contains(errno.desc()), "{point}: {words:?}");
            assert_old_or_new(&point, &picture(&dir), &old, &new);
            assert_eq!(does(what, &dir), "", "{point}");
            assert_same(&point, &picture(&dir), &new);
        })
    };
    let failures: usize = errors.iter().copied().map(failed).sum();
    println!("{what}: killed at {kills} system calls, torn at {tears} writes, failed {failures} times");
    kills + tears + failures
}

#[test]
fn a_kill_or_an_error_at_any_system_call_leaves_every_file_old_or_new() {
    let points = interrupt("files", Fault::Kill, &[Errno::ENOSPC, Errno::EIO, Errno::EROFS], &prepare_files);
    assert!(points > 300, "{points}");
}

fn ca(generation: u32) -> Certificate {
    let names = ["192.168.0.1:443".parse().unwrap()];
    Authority::create("test", generation, &names, 1_700_000_000, 3650).unwrap().certificate().clone()
}

/// Two bundles between which a CA and names come and go.
fn bundles() -> [TrustBundle; 2] {
    let (old, new, theirs) = (ca(1).pem(), ca(2).pem(), ca(3).pem());
    let bundle = |names: &[&str], certificates: &[&String], others: Vec<OtherTrust>| TrustBundle {
        names: names.iter().map(|name| TrustedName { name: name.parse().unwrap(), inside: true }).collect(),
        certificates: certificates.iter().map(|pem| (*pem).clone()).collect(),
        others,
        conntrack_be_liberal: true,
        ..TrustBundle::default()
    };
    let other = OtherTrust { name: "nexus.example.com:8443".parse().unwrap(), certificates: vec![theirs] };
    [bundle(&["10.0.0.1:5000"], &[&old], vec![other]), bundle(&["10.0.0.1:5000", "10.0.0.3:5000"], &[&old, &new], vec![])]
}

#[test]
fn a_node_killed_or_failing_at_any_system_call_of_a_pass_goes_on_as_if_nothing_had_happened() {
    let bundles = bundles();
    let virgin = |dir: &Path| {
        fs::write(dir.join(BUNDLES), serde_json::to_vec(&bundles).unwrap()).unwrap();
        for (path, text) in [
            ("etc/docker/certs.d/10.0.0.1:5000/ca.crt", "somebody's"),
            ("etc/docker/certs.d/other.example:5000/ca.crt", "somebody's"),
            ("var/lib/dcos/pki/tls/certs/theirs.crt", "somebody's"),
            ("etc/sysctl.d/10-theirs.conf", "# somebody's"),
            ("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "0\n"),
        ] {
            write(dir, path, text);
        }
    };
    let after_first = |dir: &Path| {
        virgin(dir);
        assert_eq!(does("first", dir), "");
    };
    let clean = directory();
    virgin(clean.path());
    let untouched = picture(clean.path());
    let kill = Fault::KillAfterChange;
    let mut points = interrupt("first", kill, &[Errno::ENOSPC], &virgin);
    points += interrupt("second", kill, &[Errno::EIO], &after_first);
    points += interrupt("restore", kill, &[Errno::EROFS], &after_first);
    println!("{points} points in all");
    assert!(points > 250, "{points}");
    after_first(clean.path());
    assert_eq!(does("restore", clean.path()), "");
    assert_same("restored", &picture(clean.path()), &untouched);
    // It can be seen that nothing was done: then there is no point at which it could be killed.
    assert!(matches!(run(TEST, "restore", clean.path(), usize::MAX, Fault::Kill), Outcome::Ended(words) if words.is_empty()));
}
