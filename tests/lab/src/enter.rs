//! From outside into a machine of a running lab.

use std::{
    ffi::{OsStr, OsString},
    net::Ipv4Addr,
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::{
    Error, Result,
    host::{MASTER, Machine, OUTSIDE, PATH},
    outer::init_of,
    process::spawn_error,
};

/// The namespaces of a machine, for nsenter.
const NAMESPACES: [&str; 5] = ["--pid", "--mount", "--net", "--uts", "--ipc"];

/// A command on a machine: `master`, `outside`, or an agent's address. On the master it sees the caller's files and environment (but for
/// proxies and docker's variables); on the others a clean environment.
///
/// # Errors
/// The lab or the machine is not up.
pub fn command<S: AsRef<OsStr>>(dir: &Path, machine: &str, argv: &[S]) -> Result<Command> {
    let init = init_of(dir).ok_or_else(|| Error::Refused(format!("no lab is up in {}", dir.display())))?;
    let mut command = Command::new("nsenter");
    command.args(["--target", &init.pid.to_string()]).args(NAMESPACES);
    match address(machine)? {
        MASTER => {
            let here = std::env::current_dir().map_err(Error::io("finding", Path::new(".")))?;
            let mut folder = OsString::from("--wdns=");
            folder.push(here);
            command.arg(folder).arg("--");
            for variable in OUTER_VARIABLES {
                command.env_remove(variable);
            }
        }
        ip => {
            // The recorded pid is that of the lab's namespace, in which the second nsenter runs.
            let holder = Machine::new(dir).holder_record(ip).ok_or_else(|| Error::NoMachine(machine.to_owned()))?;
            command.args(["--", "nsenter", "--target", &holder.pid.to_string()]).args(NAMESPACES).arg("--");
            let terminal = std::env::var_os("TERM");
            command.env_clear().env("PATH", PATH).env("HOME", "/root");
            command.envs(terminal.map(|terminal| ("TERM", terminal)));
        }
    }
    command.args(argv);
    Ok(command)
}

/// Runs a command on a machine to its end, without standard input.
///
/// # Errors
/// The lab or the machine is not up. A command that fails is no error.
pub fn output<S: AsRef<OsStr>>(dir: &Path, machine: &str, argv: &[S]) -> Result<Output> {
    let mut command = command(dir, machine, argv)?;
    command.stdin(Stdio::null()).output().map_err(|source| spawn_error("nsenter", source))
}

/// What would lead a program on the master out of the lab.
const OUTER_VARIABLES: [&str; 9] =
    ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "DOCKER_HOST", "DOCKER_CONTEXT"];

fn address(machine: &str) -> Result<Ipv4Addr> {
    match machine {
        "master" => Ok(MASTER),
        "outside" => Ok(OUTSIDE),
        ip => ip.parse().map_err(|_| Error::NoMachine(machine.to_owned())),
    }
}
