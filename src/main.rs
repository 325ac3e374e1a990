//! One role per subcommand; what they do stands in the library.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use private_registry::options::Options;

/// A private container registry for DC/OS that every agent trusts.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Say everything that is wrong with an options file, before it is installed.
    Check {
        /// The file given to `dcos package install --options=`.
        #[arg(long)]
        options: PathBuf,
    },
}

/// Exit code for unusable input, as in sysexits.h (EX_USAGE).
const BAD_INPUT: u8 = 64;

fn main() -> ExitCode {
    match Cli::parse().role {
        Role::Check { options } => check(&options),
    }
}

fn check(path: &std::path::Path) -> ExitCode {
    let read = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let json = read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| format!("{} is not JSON: {error}", path.display())));
    match json.map(|json| Options::from_json(&json)) {
        Ok(Ok(_)) => {
            println!("{}: no faults", path.display());
            ExitCode::SUCCESS
        }
        Ok(Err(faults)) => {
            eprintln!("{faults}");
            ExitCode::from(BAD_INPUT)
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(BAD_INPUT)
        }
    }
}
