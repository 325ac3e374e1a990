//! For tests: the documents in `docs/` say what the program and the package say.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The document that explains a section, and how it is called there.
const EXPLAINED: [(&str, &str, &str); 15] = [
    ("service", "enterprise.md", "The service account"),
    ("names", "names-and-exposure.md", "Names and exposure"),
    ("security", "choosing.md#whose-certificate", "Whose certificate"),
    ("other_registries", "other-registries.md", "Registries that this package has not installed"),
    ("exposure", "names-and-exposure.md", "Names and exposure"),
    ("registry", "registry.md", "The registry"),
    ("storage", "storage.md", "Where the images lie"),
    ("auth", "authentication.md", "Who may pull and push"),
    ("garbage_collection", "registry.md#garbage-collection", "Garbage collection"),
    ("proxy", "cache.md", "A cache of another registry"),
    ("backup", "backup-and-migrate.md", "Backup and restore"),
    ("preload", "images.md", "How images get into the registry"),
    ("trust", "other-registries.md#further-stores", "Further stores"),
    ("takeover", "migrate-from-the-tutorial.md", "From the tutorial's registry"),
    ("uninstall", "uninstall.md", "Uninstall"),
];

/// `docs/options.md`, as it should be.
fn options() -> String {
    let schema: Value = serde_json::from_str(private_registry::options::CONFIG_SCHEMA).unwrap();
    let mut text = String::from(
        "# Options\n\nEvery option of the package, made from `universe/config.json`; a test keeps it as it is. All have a default. Give the others in a file, for\n\
         `dcos package install private-registry --options=options.json`:\n\n\
         ```json\n{ \"registry\": { \"host\": \"192.168.1.80\" }, \"names\": { \"external_host\": \"192.168.1.50\" } }\n```\n\n\
         `dcos private-registry check --options options.json` says what is wrong with the file. How options are changed later:\n\
         [install.md](install.md#other-options-later).\n",
    );
    for (section, described) in described(&schema) {
        text += &format!("\n## {section}\n\n{}", described["description"].as_str().unwrap());
        if let Some((_, file, title)) = EXPLAINED.iter().find(|(name, ..)| name == section) {
            text += &format!(" More: [{title}]({file}).");
        }
        text += "\n\n| option | value | default | what |\n|---|---|---|---|\n";
        for (option, described) in self::described(described) {
            let what = described["description"].as_str().unwrap().replace('|', "\\|");
            text += &format!("| `{section}.{option}` | {} | {} | {what} |\n", value(described), default(described));
        }
    }
    text
}

fn described(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().unwrap().iter()
}

/// What may be given.
fn value(option: &Value) -> String {
    if let Some(choices) = option["enum"].as_array() {
        return choices.iter().map(|choice| format!("`{}`", choice.as_str().unwrap())).collect::<Vec<_>>().join(", ");
    }
    let kind = match option["type"].as_str().unwrap() {
        "boolean" => return "`true`, `false`".into(),
        "string" => return option["maxLength"].as_u64().map_or("text".into(), |most| format!("text of at most {most} characters")),
        "integer" => "whole number",
        other => other,
    };
    match (&option["minimum"], &option["maximum"]) {
        (Value::Null, Value::Null) => kind.into(),
        (least, Value::Null) => format!("{kind} from {least}"),
        (least, most) => format!("{kind} from {least} to {most}"),
    }
}

fn default(option: &Value) -> String {
    match &option["default"] {
        Value::String(text) if text.is_empty() => "empty".into(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

#[test]
fn the_document_of_the_options_is_the_packages_schema() {
    let path = Path::new(ROOT).join("docs/options.md");
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::write(&path, options()).unwrap();
    }
    assert!(
        fs::read_to_string(path).unwrap_or_default() == options(),
        "docs/options.md is not config.json: run this test once with WRITE_DOCS=1"
    );
}

fn below(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files
}

/// Every text in the program's sources, as it is printed but for the values in it; without those of tests.
fn texts() -> Vec<String> {
    let mut texts = Vec::new();
    for path in below(&Path::new(ROOT).join("src"), "rs") {
        let source = fs::read_to_string(&path).unwrap();
        let source = source.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default().replace("\\\"", "\u{201d}");
        for piece in source.split('"') {
            texts.push(piece.split("\\\n").enumerate().map(|(line, part)| if line == 0 { part } else { part.trim_start() }).collect());
        }
    }
    texts
}

/// What stands between backquotes in the first column of the tables whose first column is called so.
fn quotes<'a>(document: &'a str, column: &str) -> Vec<&'a str> {
    let (mut quotes, mut wanted) = (Vec::new(), false);
    for line in document.lines() {
        let cell = line.trim_start_matches('|').split('|').next().unwrap_or_default();
        wanted = line.starts_with('|') && (wanted || cell.trim() == column);
        if wanted {
            quotes.extend(cell.split('`').skip(1).step_by(2));
        }
    }
    quotes
}

/// Whether the parts of the quote stand in this text in their order; `…` is anything.
fn says(text: &str, quote: &str) -> bool {
    let mut rest = text;
    quote.split('…').map(str::trim).all(|part| {
        let found = rest.split_once(part);
        found.inspect(|(_, after)| rest = after).is_some()
    })
}

#[test]
fn what_the_document_of_troubles_quotes_of_the_program_is_in_the_program() {
    let document = fs::read_to_string(Path::new(ROOT).join("docs/troubleshooting.md")).unwrap();
    let (quotes, texts) = (quotes(&document, "the program says"), texts());
    assert!(quotes.len() > 40, "the tables are not found: {quotes:?}");
    let unsaid: Vec<&str> = quotes.into_iter().filter(|quote| !texts.iter().any(|text| says(text, quote))).collect();
    assert!(unsaid.is_empty(), "nothing says: {unsaid:#?}");
}

/// What the links of a document lead to.
fn links(document: &str) -> Vec<&str> {
    document.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).collect()
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || c == ' ' || c == '-' || c == '_';
    heading.trim_start_matches('#').trim().to_lowercase().chars().filter(|c| kept(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_between_documents_leads_to_a_file_and_a_heading_that_are_there() {
    let root = Path::new(ROOT);
    let mut documents = below(&root.join("docs"), "md");
    documents.extend(["README.md", "README.zh-CN.md", "ARCHITECTURE.md", "docker/README.md"].map(|name| root.join(name)));
    let mut broken = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            let headings = || fs::read_to_string(&target).unwrap_or_default();
            let has = |text: &str| text.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
            if !target.exists() || !(heading.is_empty() || has(&headings())) {
                broken.push(format!("{}: {link}", document.strip_prefix(root).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "these lead nowhere: {broken:#?}");
}

#[test]
fn every_option_that_a_document_names_is_one() {
    let schema: Value = serde_json::from_str(private_registry::options::CONFIG_SCHEMA).unwrap();
    let root = Path::new(ROOT);
    let mut wrong = Vec::new();
    for document in below(&root.join("docs"), "md").into_iter().chain(["README.md", "README.zh-CN.md"].map(|name| root.join(name))) {
        let text = fs::read_to_string(&document).unwrap();
        for (section, option) in text.split('`').filter_map(|word| word.split_once('.')) {
            let options = &schema["properties"][section]["properties"];
            // Not `dcos.*_url`, and no names of files.
            let is_name = option.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if options.is_object() && is_name && options[option].is_null() {
                wrong.push(format!("{}: {section}.{option}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "there are no such options: {wrong:#?}");
}

#[test]
fn every_test_that_the_document_of_security_names_is_one() {
    let root = Path::new(ROOT);
    let document = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let mut tests = std::collections::BTreeSet::new();
    for path in below(&root.join("src"), "rs").into_iter().chain(below(&root.join("tests"), "rs")) {
        let source = fs::read_to_string(path).unwrap();
        // Attributes stand between the first one and the name.
        for rest in source.split("#[test]").skip(1).chain(source.split("#[tokio::test").skip(1)) {
            let name = rest.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).map(|(name, _)| name.to_string());
            tests.extend(name);
        }
    }
    let table = document.split("## Attackers").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attacker")).collect();
    let mut missing = Vec::new();
    for row in &rows {
        let column = row.trim_matches('|').rsplit(" | ").next().unwrap();
        let named: Vec<&str> = column.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test tries this: {row}");
        missing.extend(named.into_iter().filter(|name| !tests.contains(*name)));
    }
    assert!(rows.len() > 20, "the table is not found");
    assert!(missing.is_empty(), "there are no such tests: {missing:#?}");
}

/// Names below a heading of a Cargo.toml.
fn listed(manifest: &str, heading: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(ROOT).join(manifest)).unwrap();
    let (_, section) = text.split_once(&format!("\n[{heading}]\n")).unwrap_or_else(|| panic!("{manifest} has no {heading}"));
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| Some(line.split_once(['.', ' ', '='])?.0.to_string())).filter(|name| name != "#").collect()
}

#[test]
fn every_direct_dependency_has_its_row_and_no_row_is_without_one() {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/dependencies.md")).unwrap();
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names.dedup();
        names
    };
    let rows = |text: &str| {
        let rows: Vec<Vec<&str>> = text.lines().filter(|line| line.starts_with("| `")).map(|line| line.split(" | ").collect()).collect();
        assert!(rows.iter().flatten().all(|cell| !cell.trim_matches(['|', ' ']).is_empty()), "an empty cell: {rows:#?}");
        sorted(rows.iter().map(|row| row[0].trim_matches(['|', ' ', '`']).to_string()).collect())
    };
    let (program, tests) = text.split_once("\n## For tests and the lab\n").unwrap();
    let of_program = sorted(listed("Cargo.toml", "dependencies"));
    assert!(of_program.len() > 10, "{of_program:?}");
    assert_eq!(rows(program), of_program);
    let mut of_tests = listed("Cargo.toml", "dev-dependencies");
    of_tests.extend(listed("tests/lab/Cargo.toml", "dependencies"));
    of_tests.extend(listed("tests/lab/Cargo.toml", "dev-dependencies"));
    of_tests.retain(|name| !of_program.contains(name));
    assert_eq!(rows(tests), sorted(of_tests));
}
