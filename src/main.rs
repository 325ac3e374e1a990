//! One role per subcommand; what they do stands in the library.
//!
//! The dcos CLI starts the same program as its plugin, with the name of the command first: `private-registry private-registry status`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use private_registry::controller::{self, Report, Setting};
use private_registry::host_paths::HostRoot;
use private_registry::node::{self, NodeConfig};
use private_registry::operator::{self, Access, Client, OperatorError, Service};
use private_registry::registry::{self, RegistryConfig};
use private_registry::{dcos, init};

/// The command's name at the dcos CLI.
const COMMAND: &str = "private-registry";
/// What `dcos help` shows.
const ABOUT: &str = "A private container registry for DC/OS that every agent trusts.";

/// A private container registry for DC/OS that every agent trusts.
#[derive(Parser)]
#[command(version, name = COMMAND)]
struct Cli {
    /// Name of the service, as it was installed
    #[arg(long, global = true, default_value = "private-registry")]
    name: String,
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Say how things stand: a sentence, and a row per agent
    Status {
        /// Print what the controller answers, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a row per agent
    Agents,
    /// Say what is being done or waited for, and why
    Plan,
    /// Have every agent proven anew, and follow it
    Converge {
        /// Print the last report as JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Print the CA certificate, or what to do with it on a machine outside the cluster
    Ca {
        /// Print instructions for this client
        #[arg(long = "for", value_enum)]
        client: Option<Client>,
    },
    /// Say everything that is wrong with an options file, before it is installed
    Check {
        /// The file given to `dcos package install --options=`
        #[arg(long)]
        options: PathBuf,
    },
    /// Put this host back as it was: for an agent that was away while the package was uninstalled
    Restore,
    /// Watch the cluster and act (the Marathon app)
    #[command(hide = true)]
    Controller,
    /// Order convergence, wait for it, and print a row per agent (the Metronome job)
    #[command(hide = true)]
    Init,
    /// Order a new CA, wait for it, and print a row per agent (the Metronome job)
    #[command(hide = true)]
    Rotate,
    /// Order the removal, and do it where no controller is left (the Metronome job)
    #[command(hide = true)]
    Uninstall,
    /// Make this host trust the registry, and prove it (the pod on every agent)
    #[command(hide = true)]
    Node,
    /// Keep the registry's key and certificate, and run the registry (in the registry's container)
    #[command(hide = true)]
    Registry,
}

/// Exit code for unusable input, as in sysexits.h (EX_USAGE).
const BAD_INPUT: u8 = 64;
/// Exit code when the cluster does not answer (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    let arguments = without_command(std::env::args_os().collect());
    // Conventions of the dcos CLI for plugins.
    if arguments.get(1).is_some_and(|argument| argument == "--info") {
        println!("{ABOUT}");
        return ExitCode::SUCCESS;
    }
    let Cli { name, role } = Cli::parse_from(arguments);
    match role {
        Role::Status { json } => ask(&name, async move |service: Service| Ok(show(&service.report().await?, json))),
        Role::Agents => ask(&name, async move |service: Service| {
            print!("{}", service.report().await?.table());
            Ok(ExitCode::SUCCESS)
        }),
        Role::Plan => ask(&name, async move |service: Service| {
            let report = service.report().await?;
            let nothing = if report.next.is_empty() { "nothing is to be done\n" } else { "" };
            print!("{nothing}");
            report.next.iter().for_each(|line| println!("{line}"));
            Ok(ExitCode::SUCCESS)
        }),
        Role::Converge { json } => ask(&name, async move |service: Service| {
            let report = service.converge(|report| eprintln!("{}", report.summary)).await?;
            Ok(show(&report, json))
        }),
        Role::Ca { client } => ask(&name, async move |service: Service| {
            let report = service.report().await?;
            match client {
                Some(client) => print!("{}", operator::instructions(client, &report)),
                None => print!("{}", report.ca),
            }
            Ok(if report.ca.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }),
        Role::Check { options } => check(options),
        Role::Restore => restore(&name),
        Role::Controller => forever(async { controller::run(Setting::from_env()?).await }),
        // Which of the two orders it is, the controller sees by the job.
        Role::Init | Role::Rotate => forever(init::run()),
        Role::Uninstall => forever(controller::uninstall()),
        Role::Node => forever(async { node::run(NodeConfig::from_env()?).await }),
        Role::Registry => forever(async { registry::run(RegistryConfig::from_env()?).await }),
    }
}

/// The dcos CLI gives the command's own name as the first argument.
fn without_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_some_and(|argument| argument == COMMAND) {
        arguments.remove(1);
    }
    arguments
}

/// Runs a role on one thread: all of them wait most of the time, and a node should be small.
fn forever<E: Error + 'static>(role: impl Future<Output = Result<(), E>>) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    run(async { role.await.map(|()| ExitCode::SUCCESS) }, ExitCode::FAILURE)
}

/// Answers an operator's question about a service.
fn ask(name: &str, question: impl AsyncFnOnce(Service) -> Result<ExitCode, OperatorError>) -> ExitCode {
    let answer = async {
        let service = Service::new(&Access::from_env()?, name)?;
        question(service).await
    };
    run(answer, ExitCode::from(UNAVAILABLE))
}

fn run<E: Error + 'static>(task: impl Future<Output = Result<ExitCode, E>>, failure: ExitCode) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("private-registry: the kernel gives no event queue: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(task).unwrap_or_else(|error| {
        eprintln!("private-registry: {}", dcos::chain(&error));
        failure
    })
}

/// Prints a report; the exit code says whether all is well.
fn show(report: &Report, json: bool) -> ExitCode {
    match serde_json::to_string_pretty(report) {
        Ok(text) if json => println!("{text}"),
        _ => {
            println!("{}", report.summary);
            if !report.agents.is_empty() {
                print!("\n{}", report.table());
            }
            report.problems.iter().for_each(|problem| println!("{problem}"));
        }
    }
    if report.converged { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

fn check(path: PathBuf) -> ExitCode {
    let shown = path.display().to_string();
    match operator::check(path) {
        Ok(Ok(_)) => {
            println!("{shown}: no faults");
            ExitCode::SUCCESS
        }
        Ok(Err(faults)) => {
            eprintln!("{faults}");
            ExitCode::from(BAD_INPUT)
        }
        Err(error) => {
            eprintln!("private-registry: {error}");
            ExitCode::from(BAD_INPUT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_the_plugins_form_means_the_same() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let plugin = ["bin", "private-registry", "status"].map(OsString::from).to_vec();
        assert_eq!(without_command(plugin), ["bin", "status"].map(OsString::from));
    }
}
