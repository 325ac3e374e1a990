//! Follows the documents: runs what they tell an operator to type, and holds what they show against what comes.
//!
//! A block ```` ```console ```` has commands and what they print. The prompt says where a command runs:
//!
//! | prompt | machine |
//! |---|---|
//! | `$` | the operator's, with the dcos CLI |
//! | `agent$`, `registry$`, `public$` | an agent, the registry's agent, a public agent |
//! | `outside$`, `master$` | a machine outside, a master |
//!
//! A line without a prompt is printed by the command above it, in this order but with others between; `…` stands for anything, and
//! numbers, sizes and digests may be others. Every command must end well. A block ```` ```json FILE ```` is the content of a file.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Cluster, made};

/// Prompts and machines; the operator's is where the CLI runs.
const PLACES: [(&str, &str); 6] = [
    ("$ ", OPERATOR),
    ("agent$ ", "192.168.1.81"),
    ("registry$ ", "192.168.1.80"),
    ("public$ ", "192.168.1.50"),
    ("outside$ ", "outside"),
    ("master$ ", "master"),
];
pub(crate) const OPERATOR: &str = "operator";
/// Address of the machine outside.
const OUTSIDE: &str = "192.168.1.200";

/// A fenced block of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// The heading above it; the document's title where there is none.
    pub(crate) section: String,
    /// What stands behind the fence.
    pub(crate) info: String,
    pub(crate) lines: Vec<String>,
}

/// A command and what the document says that it prints.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    place: &'static str,
    pub(crate) line: String,
    shown: Vec<String>,
}

/// The blocks of a document.
pub(crate) fn blocks(file: &str) -> Vec<Block> {
    let text = fs::read_to_string(made(file)).unwrap();
    let (mut found, mut section, mut open) = (Vec::new(), String::new(), None::<(usize, Block)>);
    for line in text.lines() {
        let content = line.trim_start();
        let fence = content.strip_prefix("```");
        open = match (open, fence) {
            (None, Some(info)) => {
                let block = Block { section: section.clone(), info: info.to_owned(), lines: Vec::new() };
                Some((line.len() - content.len(), block))
            }
            (Some((_, block)), Some("")) => {
                found.push(block);
                None
            }
            (Some((indent, mut block)), _) => {
                block.lines.push(line.get(indent..).unwrap_or_default().to_owned());
                Some((indent, block))
            }
            (None, None) => {
                if let Some(heading) = content.strip_prefix('#') {
                    section = heading.trim_start_matches('#').trim().to_owned();
                }
                None
            }
        };
    }
    assert!(open.is_none(), "{file}: a block has no end");
    found
}

impl Block {
    /// Its commands, if it is a console.
    pub(crate) fn commands(&self) -> Vec<Typed> {
        let mut commands: Vec<Typed> = Vec::new();
        let mut goes_on = false;
        for line in self.lines.iter().filter(|_| self.info == "console") {
            let prompt = PLACES.iter().find_map(|(prompt, place)| Some((*place, line.strip_prefix(prompt)?)));
            match (prompt, commands.last_mut()) {
                (_, Some(command)) if goes_on => command.line += &format!("\n{line}"),
                (Some((place, line)), _) => commands.push(Typed { place, line: line.to_owned(), shown: Vec::new() }),
                (None, Some(command)) => command.shown.push(line.clone()),
                (None, None) => panic!("{}: {line}: there is no command above it", self.section),
            }
            goes_on = line.ends_with('\\');
        }
        commands
    }

    /// The file that it is the content of.
    fn file(&self) -> Option<&str> {
        self.info.strip_prefix("json ")
    }
}

/// An operator with the documents at hand. What is typed twice in one place is said once in the document.
pub(crate) struct Reader<'a> {
    cluster: &'a Cluster,
    /// What the lab has instead of what the document says: names of machines outside, images.
    words: Vec<(String, String)>,
    /// Files that somebody carries from a machine to another, where they are next used.
    carried: Vec<(&'static str, &'static str, &'static str)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, words: Vec::new(), carried: Vec::new() }
    }

    /// From now on the second takes the place of the first.
    pub(crate) fn reads(&mut self, written: &str, there: &str) {
        self.words.push((written.to_owned(), there.to_owned()));
    }

    /// Before a machine uses this file it is brought there from another one.
    pub(crate) fn carries(&mut self, file: &'static str, from: &'static str, to: &'static str) {
        self.carried.push((file, from, to));
    }

    /// Where files lie that commands name without a directory.
    fn folder(&self, place: &str) -> PathBuf {
        let address = if place == "outside" { OUTSIDE } else { place };
        if place == OPERATOR {
            self.cluster.home.path().to_owned()
        } else {
            self.cluster.lab.path().join(format!("agents/{address}/root/root"))
        }
    }

    fn here(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (written, there)| text.replace(written, there))
    }

    /// Does all that a section says.
    pub(crate) fn follow(&self, file: &str, section: &str) {
        let found = blocks(file);
        let last = found.iter().rposition(|block| block.section == section).unwrap_or_else(|| panic!("{file}: {section:?} has no blocks"));
        for block in &found[..=last] {
            // A file may have been written in a section before.
            if let Some(name) = block.file() {
                fs::write(self.cluster.home.path().join(name), self.here(&block.lines.join("\n"))).unwrap();
            }
            for typed in block.commands().iter().filter(|_| block.section == section) {
                self.run(file, typed);
            }
        }
    }

    fn run(&self, file: &str, typed: &Typed) {
        let line = self.here(&typed.line);
        for (file, from, to) in self.carried.iter().filter(|(file, _, to)| *to == typed.place && line.contains(file)) {
            fs::copy(self.folder(from).join(file), self.folder(to).join(file)).unwrap();
        }
        let line = format!("cd {} && {{ {line}\n}} 2>&1", if typed.place == OPERATOR { "~" } else { "/root" });
        let output = if typed.place == OPERATOR { self.operate(&line) } else { self.cluster.sh(typed.place, &line) };
        let said = output.stdout;
        assert!(output.status.success(), "{file}: `{line}` has failed: {said}");
        let mut lines = said.lines();
        for shown in typed.shown.iter().filter(|shown| *shown != "…") {
            let found = lines.any(|line| matches(&self.here(shown), line));
            assert!(found, "{file}: `{line}` does not print, or not in this place:\n{shown}\nbut:\n{said}");
        }
    }

    /// Runs a line where the operator sits.
    fn operate(&self, line: &str) -> lab::ExecOutput {
        let cli = made("target/dcos-cli/bin/dcos");
        let home = self.cluster.home.path().display().to_string();
        let program = Path::new(&cli).parent().unwrap().display().to_string();
        let environment = [
            format!("HOME={home}"),
            format!("DCOS_CONFIG={home}/dcos.toml"),
            format!("PATH={program}:/usr/sbin:/usr/bin:/sbin:/bin"),
            "LC_ALL=C.UTF-8".to_owned(),
            "LANG=C.UTF-8".to_owned(),
        ];
        let argv: Vec<&str> = ["env"].into_iter().chain(environment.iter().map(String::as_str)).chain(["sh", "-c", line]).collect();
        self.cluster.lab.exec("master", &argv).unwrap()
    }
}

/// Whether a line is the one that is shown.
fn matches(shown: &str, line: &str) -> bool {
    let (shown, line) = (plain(shown), plain(line));
    let Some((first, others)) = shown.split_once('…') else { return shown == line };
    let (between, last) = others.rsplit_once('…').unwrap_or(("", others));
    let Some(mut rest) = line.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
    between.split('…').all(|part| {
        let after = rest.find(part).map(|at| &rest[at + part.len()..]);
        rest = after.unwrap_or_default();
        after.is_some()
    })
}

/// A line without what differs between two runs: numbers, sizes, digests, ids, and how wide a column is.
fn plain(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let mut out = String::new();
        let is_part = |c: char| c.is_ascii_alphanumeric();
        let mut rest = word;
        while let Some(first) = rest.chars().next() {
            let end = if is_part(first) { rest.find(|c| !is_part(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
            let (piece, after) = rest.split_at(end);
            rest = after;
            let has_digit = piece.bytes().any(|b| b.is_ascii_digit());
            let digest = piece.len() >= 6 && has_digit && piece.bytes().all(|b| b.is_ascii_hexdigit());
            let number = has_digit && piece.bytes().all(|b| b.is_ascii_digit());
            out += if digest || number { "0" } else { piece };
        }
        // 3.0 is as good as 12.
        out.replace("0.0", "0")
    });
    let units = ["bytes", "kB", "MB", "GB", "KiB", "MiB", "GiB"];
    words
        .map(|word| if units.contains(&word.trim_matches(|c: char| !c.is_alphanumeric())) { "bytes".to_owned() } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_one_shown_whatever_its_numbers_and_digests_are_and_no_other() {
        assert!(matches("freed 3.0 MB in 2 blobs in 1 s", "freed 917 kB in 12 blobs in 0.7 s"));
        assert!(matches("team/oci:1  sha256:6d46edb54b50  1.2 MB  no", "team/oci:1 sha256:0012ffab1234 900 bytes no"));
        assert!(matches("up to … agents", "up to the last of the agents"));
        assert!(matches("…", "anything at all"));
        assert!(matches("proven…", "proven by curl"));
        assert!(!matches("proven", "proven by curl"));
        assert!(!matches("freed 3 bytes", "would free 3 bytes"));
        assert!(!matches("a … c", "a b d"));
        assert!(!matches("deed", "dead"));
    }

    #[test]
    fn commands_have_a_place_go_on_behind_a_backslash_and_print_what_stands_below() {
        let lines = ["$ echo a \\", "  b", "a b", "agent$ ls", "outside$ true"].map(str::to_owned).to_vec();
        let commands = Block { section: String::new(), info: "console".into(), lines }.commands();
        let typed =
            |place, line: &str, shown: &[&str]| Typed { place, line: line.into(), shown: shown.iter().map(|s| s.to_string()).collect() };
        assert_eq!(commands[0], typed(OPERATOR, "echo a \\\n  b", &["a b"]));
        assert_eq!((&commands[1], &commands[2]), (&typed("192.168.1.81", "ls", &[]), &typed("outside", "true", &[])));
    }
}
