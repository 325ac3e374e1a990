//! For tests: the documents in `docs/` say what the program and the package say.

use std::fs;
use std::path::Path;

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
         [README](../README.md#over-its-life).\n",
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
