//! Looks all the time for private keys where they do not belong: on every agent's disk, in what lies in memory there, and in
//! arguments and environments of the lab's processes.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;

use crate::support::Cluster;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Where a service keeps its keys: below this, in these two directories.
const STATE: &str = "var/lib/private-registry/private-registry";
/// Images and what dockerd runs them on. What a container is started with lies in `containers` beside them, and is looked at.
const SKIPPED: [&str; 2] = ["var/lib/docker/overlay2", "var/lib/docker/image"];
/// Larger files are programs and images.
const LARGEST: u64 = 1024 * 1024;
/// Of every machine, what lies in memory.
const IN_MEMORY: [&str; 3] = ["run", "tmp", "dev/shm"];

/// What has been found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Keys outside their places, and places that others than root may enter.
    pub(crate) outside: BTreeSet<String>,
    /// Keys in their places.
    pub(crate) inside: BTreeSet<String>,
    /// How often everything was looked at.
    pub(crate) looks: usize,
}

/// A thread that looks until it is told to end.
pub(crate) struct KeyWatch {
    ends: Arc<AtomicBool>,
    found: Arc<Mutex<Found>>,
    /// What every key that was seen in its place begins with, in base64.
    needles: Arc<Mutex<BTreeSet<String>>>,
    thread: JoinHandle<()>,
}

impl KeyWatch {
    /// Looks at this lab from now on. `homes`: agent and directory in which there may be keys.
    pub(crate) fn start(cluster: &Cluster, homes: &[(&str, &str)]) -> Self {
        let homes =
            homes.iter().map(|(agent, dir)| (PathBuf::from(agent).join("root").join(STATE).join(dir), *dir == "registry")).collect();
        let (ends, found, needles) = (Arc::default(), Arc::<Mutex<Found>>::default(), Arc::default());
        let mut look = Look {
            lab: cluster.lab.path().to_owned(),
            homes,
            seen: HashMap::new(),
            found: Arc::clone(&found),
            needles: Arc::clone(&needles),
        };
        let asked = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            while !AtomicBool::load(&asked, Ordering::Relaxed) {
                look.everywhere();
                std::thread::sleep(PAUSE);
            }
        });
        Self { ends, found, needles, thread }
    }

    /// How often everything has been looked at.
    pub(crate) fn looks(&self) -> usize {
        self.found.lock().unwrap().looks
    }

    /// Takes out what has been found outside so far.
    pub(crate) fn take_outside(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.found.lock().unwrap().outside)
    }

    /// Whether there is a private key in it: any in PEM, or one that was seen in its place, in base64 or as it is.
    pub(crate) fn holds_key(&self, bytes: &[u8]) -> bool {
        holds_key(bytes, &self.needles.lock().unwrap())
    }

    /// Ends the looking.
    pub(crate) fn stop(self) -> Found {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.found.lock().unwrap())
    }
}

struct Look {
    lab: PathBuf,
    /// Below the lab's `agents`; whether it is the registry's.
    homes: Vec<(PathBuf, bool)>,
    /// Device, inode and change of files that have been read, with what is known of them.
    seen: HashMap<(u64, u64), (i64, i64, usize)>,
    found: Arc<Mutex<Found>>,
    needles: Arc<Mutex<BTreeSet<String>>>,
}

impl Look {
    fn everywhere(&mut self) {
        let agents = self.lab.join("agents");
        // The places of keys first: what is in them is then looked for everywhere.
        for (home, _) in self.homes.clone() {
            self.below(&agents.join(&home), &agents);
        }
        for agent in fs::read_dir(&agents).into_iter().flatten().flatten() {
            for part in ["etc", "var", "root", "opt", "home", "srv"] {
                self.below(&agent.path().join("root").join(part), &agents);
            }
        }
        let mut spaces = HashSet::new();
        for pid in processes_of(&self.lab) {
            let process = Path::new("/proc").join(pid.to_string());
            for part in ["cmdline", "environ"] {
                self.judge(&process.join(part), &fs::read(process.join(part)).unwrap_or_default());
            }
            if fs::read_link(process.join("ns/mnt")).is_ok_and(|space| spaces.insert(space)) {
                for part in IN_MEMORY {
                    let dir = process.join("root").join(part);
                    // The lab's own processes see what the machine has of its own.
                    if same(&dir, &Path::new("/").join(part)) != Some(true) {
                        self.below(&dir, &agents);
                    }
                }
            }
        }
        self.found.lock().unwrap().looks += 1;
    }

    /// Reads what has changed below a directory.
    fn below(&mut self, top: &Path, agents: &Path) {
        let mut rest = vec![top.to_owned()];
        while let Some(dir) = rest.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                // What ends while we look is as good as not there.
                let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
                if meta.is_dir() {
                    // Behind the agent's address and the word root.
                    let on_disk: PathBuf = path.strip_prefix(agents).unwrap_or(Path::new("")).iter().skip(2).collect();
                    if !SKIPPED.iter().any(|skipped| on_disk == Path::new(skipped)) {
                        rest.push(path);
                    }
                } else if meta.is_file() && meta.len() <= LARGEST {
                    // A needle that was not known then makes a file new.
                    let known = (meta.ctime(), meta.ctime_nsec(), self.needles.lock().unwrap().len());
                    if self.seen.insert((meta.dev(), meta.ino()), known) != Some(known) {
                        let bytes = fs::read(&path).unwrap_or_default();
                        match self.home_of(path.strip_prefix(agents).unwrap_or(&path)) {
                            Some(registrys) => self.at_home(&path, &bytes, meta.permissions().mode(), registrys),
                            None => self.judge(&path, &bytes),
                        }
                    }
                }
            }
        }
    }

    /// Whether a file lies where keys may be, and if so whether that is the registry's place.
    fn home_of(&self, below: &Path) -> Option<bool> {
        self.homes.iter().find(|(home, _)| below.parent() == Some(home)).map(|(_, registrys)| *registrys)
    }

    /// A key in its place: for root alone, and its beginning is looked for elsewhere.
    fn at_home(&mut self, path: &Path, bytes: &[u8], mode: u32, registrys: bool) {
        let Some(base64) = first_line_of_key(&String::from_utf8_lossy(bytes)) else { return };
        let text = path.display().to_string();
        let parent = path.parent().and_then(|dir| fs::metadata(dir).ok()).map_or(0, |dir| dir.permissions().mode() & 0o7777);
        let mut found = self.found.lock().unwrap();
        if mode & 0o7777 != 0o600 || parent != 0o700 {
            found.outside.insert(format!("{text} has mode {:o} in a directory of mode {parent:o}", mode & 0o7777));
        }
        if registrys && !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tls.key")) {
            found.outside.insert(format!("{text} is no key of the registry's own"));
        }
        found.inside.insert(text);
        self.needles.lock().unwrap().insert(base64);
    }

    fn judge(&self, path: &Path, bytes: &[u8]) {
        if holds_key(bytes, &self.needles.lock().unwrap()) {
            self.found.lock().unwrap().outside.insert(path.display().to_string());
        }
    }
}

fn same(one: &Path, other: &Path) -> Option<bool> {
    let [one, other] = [fs::metadata(one).ok()?, fs::metadata(other).ok()?];
    Some((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

const BEGIN: &str = "PRIVATE KEY-----";

/// The first line of a key in PEM. Programs have the words alone.
fn first_line_of_key(text: &str) -> Option<String> {
    text.match_indices(BEGIN).find_map(|(at, begin)| {
        let rest = &text[at + begin.len()..];
        let rest = ["\r\n", "\n", "\\n", " "].iter().find_map(|end| rest.strip_prefix(end))?;
        let line: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "+/=".contains(*c)).take(64).collect();
        // Every key is a DER sequence.
        (line.starts_with('M') && line.len() == 64).then_some(line)
    })
}

fn holds_key(bytes: &[u8], needles: &BTreeSet<String>) -> bool {
    let text = String::from_utf8_lossy(bytes);
    first_line_of_key(&text).is_some() || needles.iter().any(|needle| text.contains(needle) || holds_raw(bytes, needle))
}

/// The same as it is, which is looked for in small files: a key is one.
fn holds_raw(bytes: &[u8], base64: &str) -> bool {
    let raw = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
    bytes.len() < 4096 && bytes.windows(raw.len()).any(|window| window == raw)
}

/// The processes of a lab: those that were started with its directory, and all below them.
pub(crate) fn processes_of(lab: &Path) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut rest = Vec::new();
    let needle = lab.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name, which may hold anything, is in brackets; then state and parent.
        let parent = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        children.entry(parent).or_default().push(pid);
        let argv = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if argv.windows(needle.len()).any(|window| window == needle) {
            rest.push(pid);
        }
    }
    let mut all = BTreeSet::new();
    while let Some(pid) = rest.pop() {
        if all.insert(pid) {
            rest.extend(children.remove(&pid).unwrap_or_default());
        }
    }
    all
}
