//! One role per subcommand; what they do stands in the library.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use std::error::Error;

use clap::{Parser, Subcommand};
use private_registry::controller::{self, Setting};
use private_registry::host_paths::HostRoot;
use private_registry::node::{self, NodeConfig};
use private_registry::options::Options;
use private_registry::registry::{self, RegistryConfig};
use private_registry::{dcos, init};

/// A private container registry for DC/OS that every agent trusts.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Watch the cluster and act (the Marathon app).
    Controller,
    /// Order convergence, wait for it, and print a row per agent (the Metronome job).
    Init,
    /// Make this host trust the registry, and prove it (the pod on every agent).
    Node,
    /// Keep the registry's key and certificate, and run the registry (in the registry's container).
    Registry,
    /// Put this host back as it was: for an agent that was away while the package was uninstalled.
    Restore {
        /// Name of the service, as it was installed.
        #[arg(long, default_value = "private-registry")]
        service: String,
    },
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
        Role::Controller => forever(async { controller::run(Setting::from_env()?).await }),
        Role::Init => forever(init::run()),
        Role::Node => forever(async { node::run(NodeConfig::from_env()?).await }),
        Role::Registry => forever(async { registry::run(RegistryConfig::from_env()?).await }),
        Role::Restore { service } => restore(&service),
        Role::Check { options } => check(&options),
    }
}

/// Runs a role on one thread: all of them wait most of the time, and a node should be small.
fn forever<E: Error + 'static>(role: impl Future<Output = Result<(), E>>) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("private-registry: the kernel gives no event queue: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("private-registry: {}", dcos::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn restore(service: &str) -> ExitCode {
    match node::restore(HostRoot::default(), service) {
        Ok(notes) => {
            notes.iter().for_each(|note| println!("{note}"));
            println!("this host is as it was before {service}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("private-registry: {}", dcos::chain(&error));
            ExitCode::FAILURE
        }
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
