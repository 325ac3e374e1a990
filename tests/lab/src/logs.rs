//! What tasks wrote.

use std::{
    fs,
    io::{Write as _, stdout},
    path::Path,
};

use crate::{Error, Result, task::TaskSpec};

/// Prints standard output and error of every task whose id contains the text, on all agents.
///
/// # Errors
/// No such task.
pub fn print_logs(lab_dir: &Path, part: &str) -> Result<()> {
    let mut found = false;
    for agent in fs::read_dir(lab_dir.join("agents")).into_iter().flatten().flatten() {
        let address = agent.file_name().to_string_lossy().into_owned();
        for_each_sandbox(&agent.path().join("root/var/lib/mesos"), &mut |sandbox| {
            let spec = fs::read(sandbox.join("task.json")).ok().and_then(|spec| serde_json::from_slice::<TaskSpec>(&spec).ok());
            if let Some(spec) = spec.filter(|spec| spec.id.contains(part)) {
                found = true;
                print_sandbox(sandbox, &spec.id, &address);
            }
        });
    }
    if found { Ok(()) } else { Err(Error::Refused(format!("no task in {} has an id with {part}", lab_dir.display()))) }
}

fn for_each_sandbox(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    if folder.join("task.json").is_file() {
        return visit(folder);
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // Links are Mesos' own (runs/latest and the like): each sandbox is printed once.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            for_each_sandbox(&entry.path(), visit);
        }
    }
}

fn print_sandbox(sandbox: &Path, task: &str, agent: &str) {
    for name in ["stdout", "stderr"] {
        if let Ok(content) = fs::read(sandbox.join(name)) {
            // A reader that had enough, as `head`, is no failure.
            let _ = writeln!(stdout(), "=== {task} on {agent}: {name}").and_then(|()| stdout().write_all(&content));
        }
    }
}
