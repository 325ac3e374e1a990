//! For fuzzing: what a node reads that others have written.

use std::path::Path;

use super::files::HostFiles;
use super::insecure::DaemonJson;
use super::manifest::{HostState, Manifest};
use super::trust::{self, Bundle};
use crate::host_paths::HostRoot;
use crate::protocol::{Order, OrderKind};

/// A bundle that was rightly signed, whatever it says: it writes below the directories of trust only, and a directory for each name.
pub(crate) fn order(payload: &[u8]) {
    let Ok(Order { kind: OrderKind::Trust(bundle), .. }) = serde_json::from_slice(payload) else { return };
    let Ok(bundle) = Bundle::parse(&bundle) else { return };
    let _ = bundle.insecure_entries();
    // Nothing lies there, so nothing is in the way.
    let root = HostRoot::at(std::env::temp_dir());
    let Ok(files) = HostFiles::open(&root, "fuzzed") else { return };
    let wanted = trust::wanted(&files, &root, "fuzzed", &Manifest::default(), &bundle);
    let stores = [root.docker_certs(), root.podman_certs(), root.containerd_certs(), root.mesos_certs()];
    let system = root.system_stores().map(|(dir, _)| dir);
    for path in wanted.items.keys() {
        let below = stores.iter().chain(&system).find_map(|store| path.strip_prefix(store).ok());
        let parts = below.map_or(0, |rest| rest.components().filter(|part| matches!(part, std::path::Component::Normal(_))).count());
        assert!(matches!(parts, 1 | 2) && parts == below.map_or(0, |rest| rest.components().count()), "{}", path.display());
    }
}

/// The record on the host.
pub(crate) fn manifest(content: &[u8]) {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(content) {
        let _ = manifest.owned();
        let found = super::files::Found::File(content.to_vec());
        let _ = manifest.files.keys().filter(|path| manifest.owns(path, &found)).count();
        let again = serde_json::to_vec(&manifest).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Manifest>(&again).ok(), Some(manifest));
    }
    if let Ok(state) = serde_json::from_slice::<HostState>(content) {
        let again = serde_json::to_vec(&state).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<HostState>(&again).ok(), Some(state));
    }
    // Whatever paths it names, none outside of the root is touched.
    let root = HostRoot::at("/proc/self/fd");
    let Ok(files) = HostFiles::open(&root, "fuzzed") else { return };
    let text = String::from_utf8_lossy(content);
    for line in text.lines().take(8).filter(|line| !line.contains('\0')) {
        let path = Path::new(line);
        if !path.starts_with(root.path()) || path.components().any(|part| part == std::path::Component::ParentDir) {
            assert!(files.look(path).is_err(), "{line}");
        }
    }
}

/// Docker's own settings: an entry comes and goes, and every other byte stays.
pub(crate) fn daemon_json(content: &[u8]) {
    let Ok(old) = DaemonJson::parse(Some(content)) else { return };
    let entry = "192.168.0.1:443";
    let mut new = old.clone();
    new.add(entry);
    let value: serde_json::Value = crate::json::of_text(new.text()).expect("what was JSON is JSON");
    assert!(value["insecure-registries"].as_array().is_some_and(|list| list.iter().any(|listed| listed == entry)), "{}", new.text());
    new.add(entry);
    if old.entries().iter().any(|listed| listed == entry) {
        assert_eq!(old, new);
        return;
    }
    let mut back = new.clone();
    back.remove(entry);
    if !old.has_list() {
        back.remove_empty_list();
    }
    assert_eq!(old.text(), back.text());
    // Those of others, too.
    let mut without = old.clone();
    old.entries().iter().for_each(|listed| without.remove(listed));
    assert!(without.entries().is_empty());
    assert!(crate::json::of_text::<serde_json::Value>(without.text()).is_ok(), "{}", without.text());
}
