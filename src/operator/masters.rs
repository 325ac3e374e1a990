//! A script for machines where no node can run: masters, and what lies outside the cluster.

use handlebars::Handlebars;
use serde_json::json;

use crate::controller::Report;
use crate::digest::sha256_hex;
use crate::names::HostPort;

/// The script that lets docker on such a machine trust the registry, with checks. None while there is no CA, or none is needed.
pub fn masters_script(report: &Report) -> Option<String> {
    let parsed = report.names.iter().filter_map(|name| name.parse::<HostPort>().ok());
    // Host names and ports hold nothing that a shell would take for its own.
    let names = parsed.flat_map(|name| name.spellings()).collect::<Vec<_>>().join(" ");
    if report.ca.is_empty() || names.is_empty() {
        return None;
    }
    let mut engine = Handlebars::new();
    engine.register_escape_fn(handlebars::no_escape);
    engine.set_strict_mode(true);
    let values = json!({
        "service": report.service,
        "names": names,
        "ca": report.ca,
        "digest": sha256_hex(report.ca.as_bytes()),
        "fingerprint": report.ca_fingerprint.clone().unwrap_or_default(),
    });
    // The template is part of the program; a test renders it.
    engine.render_template(include_str!("../templates/masters.sh.hbs"), &values).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::{Command, Output};

    use super::*;

    fn report(ca: &str) -> Report {
        let names = vec!["192.0.2.1:443".into(), "registry.example.com:5000".into()];
        Report { service: "private-registry".into(), ca: ca.into(), names, ..Report::default() }
    }

    /// Runs the script on a root of its own, without a network.
    fn run(root: &Path, ca: &str, arguments: &[&str]) -> Output {
        run_script(root, &masters_script(&report(ca)).unwrap(), arguments)
    }

    fn run_script(root: &Path, script: &str, arguments: &[&str]) -> Output {
        let file = root.join("script.sh");
        fs::write(&file, script).unwrap();
        // A curl that finds nobody.
        for (program, exit) in [("curl", 7), ("docker", 0)] {
            fs::write(root.join(program), format!("#!/bin/sh\nexit {exit}\n")).unwrap();
            Command::new("chmod").arg("+x").arg(root.join(program)).status().unwrap();
        }
        let path = format!("{}:/usr/bin:/bin", root.display());
        Command::new("sh").arg(&file).args(arguments).env("ROOT", root).env("PATH", path).output().unwrap()
    }

    #[test]
    fn the_script_writes_follows_a_rotation_leaves_foreign_files_and_takes_its_own_back() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("etc/docker/certs.d");
        let foreign = certs.join("registry.example.com:5000");
        fs::create_dir_all(&foreign).unwrap();
        fs::write(foreign.join("ca.crt"), "somebody's").unwrap();

        let first = run(dir.path(), "first\n", &[]);
        let said = String::from_utf8_lossy(&first.stdout).into_owned();
        assert!(said.contains("192.0.2.1:443: trusted; not reachable from here"), "{said}");
        assert_eq!(first.status.code(), Some(1), "a name that could not be covered is told");
        assert_eq!(fs::read_to_string(certs.join("192.0.2.1/ca.crt")).unwrap(), "first\n");
        assert_eq!(fs::read_to_string(certs.join("192.0.2.1:443/ca.crt")).unwrap(), "first\n");
        assert_eq!(fs::read_to_string(foreign.join("ca.crt")).unwrap(), "somebody's");

        run(dir.path(), "second\n", &[]);
        assert_eq!(fs::read_to_string(certs.join("192.0.2.1/ca.crt")).unwrap(), "second\n");
        // Killed between its note and the file.
        fs::write(certs.join("192.0.2.1/ca.crt"), "first\n").unwrap();
        let sum = |text: &str| format!("{}  -\n", crate::digest::sha256_hex(text.as_bytes()));
        fs::write(certs.join("192.0.2.1/private-registry.sum"), sum("first\n") + &sum("second\n")).unwrap();
        run(dir.path(), "second\n", &[]);
        assert_eq!(fs::read_to_string(certs.join("192.0.2.1/ca.crt")).unwrap(), "second\n");
        run(dir.path(), "second\n", &["--remove"]);
        let left: Vec<_> = fs::read_dir(&certs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["registry.example.com:5000"]);
    }

    #[test]
    fn what_was_copied_badly_or_is_asked_wrongly_changes_nothing_and_a_second_run_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("etc/docker/certs.d");
        let script = masters_script(&report("first\nsecond\n")).unwrap();
        let cut = run_script(dir.path(), &script.replace("second\n", ""), &[]);
        let said = String::from_utf8_lossy(&cut.stderr).into_owned();
        assert!(cut.status.code() == Some(1) && said.contains("is damaged"), "{said}");
        assert_eq!(run_script(dir.path(), &script, &["--undo"]).status.code(), Some(1));
        assert!(!certs.exists());

        let ca = certs.join("192.0.2.1/ca.crt");
        assert_eq!(run_script(dir.path(), &script, &[]).status.code(), Some(0));
        let written = fs::metadata(&ca).unwrap().modified().unwrap();
        assert_eq!(run_script(dir.path(), &script, &[]).status.code(), Some(0));
        assert_eq!(fs::metadata(&ca).unwrap().modified().unwrap(), written);
        assert_eq!(run_script(dir.path(), &script, &["--remove"]).status.code(), Some(0));
        assert!(!certs.exists());
    }

    #[test]
    fn where_there_is_nothing_to_trust_there_is_no_script() {
        assert_eq!(masters_script(&report("")), None);
        assert_eq!(masters_script(&Report { names: vec![], ..report("x") }), None);
    }
}
