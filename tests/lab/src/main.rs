//! The lab's command line.

#![forbid(unsafe_code)]

use std::{
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use lab::{
    Error, Result, agent, enter, executor, init, marathon_lb,
    outer::{self, UpOptions},
    process::ProcessId,
    server, systemctl,
};

/// The smallest DC/OS that runs the package for real on one machine.
#[derive(Parser)]
#[command(name = "lab")]
struct Cli {
    /// Where everything of the lab lies
    #[arg(long, global = true, default_value = "/var/tmp/private-registry-lab")]
    dir: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a lab and stay until it ends
    Up {
        #[command(flatten)]
        size: Size,
        /// Archive of images (docker save) that every machine loads; repeatable
        #[arg(long = "image-tar", value_name = "FILE")]
        images: Vec<PathBuf>,
        /// Folder made by ci/package; its repository is http://universe.lab:8000/repo.json
        #[arg(long, value_name = "DIR")]
        package: Option<PathBuf>,
        /// Run no Marathon-LB; its package is in http://universe.lab:8000/marathon-lb.json
        #[arg(long)]
        no_marathon_lb: bool,
        /// Version of DC/OS to pretend to be
        #[arg(long, default_value = server::NEWEST)]
        dcos: String,
        /// Open DC/OS, or Enterprise in a security mode
        #[arg(long, value_enum, default_value_t = server::Security::Open)]
        security: server::Security,
        /// End the lab when this process ends
        #[arg(long, value_name = "PID")]
        owner_pid: Option<u32>,
        /// Return when the lab is ready
        #[arg(long)]
        detach: bool,
        /// Keep logs, journal and disks at the end
        #[arg(long)]
        keep: bool,
    },
    /// End the lab and remove all of it
    Down,
    /// Run a command on a machine: master, outside, or an agent's address
    Exec {
        /// Which machine
        machine: String,
        /// What to run
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Agents join, leave, die and come back
    Agent {
        #[command(subcommand)]
        verb: AgentVerb,
    },
    /// Print what tasks wrote whose id contains a text
    Logs {
        /// Part of a task id
        part: String,
    },
    /// End the server process; the lab starts it again
    RestartServer,
    #[command(hide = true)]
    Init {
        #[command(flatten)]
        size: Size,
    },
    #[command(hide = true)]
    Build {
        #[command(flatten)]
        size: Size,
    },
    #[command(hide = true)]
    Server,
    #[command(hide = true, name = "machine")]
    Machine {
        #[arg(long)]
        ip: Ipv4Addr,
        #[arg(long)]
        kind: Kind,
    },
    #[command(hide = true)]
    Executor { sandbox: PathBuf },
    #[command(hide = true)]
    Systemctl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    #[command(hide = true)]
    MarathonLb,
    #[command(hide = true)]
    Janitor {
        #[arg(long)]
        pid: u32,
        #[arg(long)]
        start: u64,
        #[arg(long)]
        keep: bool,
    },
}

#[derive(Args)]
struct Size {
    /// Number of private agents
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=20))]
    agents: u8,
    /// Number of public agents
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=10))]
    public: u8,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Private,
    Public,
    Outside,
}

#[derive(Subcommand)]
enum AgentVerb {
    /// Start a new agent and print its address
    Add {
        /// GPUs that it has
        #[arg(long, default_value_t = 0)]
        gpus: u32,
        /// Region that it is in, if not the master's
        #[arg(long)]
        region: Option<String>,
        /// A public one
        #[arg(long)]
        public: bool,
    },
    /// Shut an agent down in good order
    Leave { ip: Ipv4Addr },
    /// Kill everything on an agent
    Die { ip: Ipv4Addr },
    /// Start a dead agent again
    Revive {
        ip: Ipv4Addr,
        /// With an empty disk
        #[arg(long)]
        fresh: bool,
    },
    /// Leave no room for further tasks
    Fill { ip: Ipv4Addr },
    /// Make room again
    Empty { ip: Ipv4Addr },
    /// Print what Mesos knows of the agents
    List,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match perform(&cli.dir, cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perform(dir: &Path, verb: Verb) -> Result<()> {
    match verb {
        Verb::Up { size, images, package, no_marathon_lb, dcos, security, owner_pid, detach, keep } => {
            let pose = server::Pose::of(&dcos, security).ok_or_else(|| {
                Error::Refused(format!("there is no pose of DC/OS {dcos}; there are {}", server::Pose::versions().join(", ")))
            })?;
            let (dir, marathon_lb) = (dir.to_owned(), !no_marathon_lb);
            let options = UpOptions { dir, agents: size.agents, public: size.public, images, package, marathon_lb, pose, owner_pid, keep };
            if detach { outer::up_detached(&options) } else { outer::up(&options) }
        }
        Verb::Down => outer::down(dir),
        Verb::Exec { machine, command } => {
            let failed = enter::command(dir, &machine, &command)?.exec();
            Err(Error::Io { what: "starting nsenter".to_owned(), source: failed })
        }
        Verb::Agent { verb } => on_agents(dir, &verb),
        Verb::Logs { part } => lab::print_logs(dir, &part),
        Verb::RestartServer => lab::restart_server(dir),
        Verb::Init { size } => init::run_init(dir, size.agents, size.public),
        Verb::Build { size } => init::build_machines(dir, size.agents, size.public),
        Verb::Server => serve(dir),
        Verb::Machine { ip, kind } => agent::run_agent(dir, ip, kind.into()),
        Verb::Executor { sandbox } => executor::run(&sandbox),
        Verb::Systemctl { arguments } => systemctl::run(&arguments),
        Verb::MarathonLb => marathon_lb::run(),
        Verb::Janitor { pid, start, keep } => outer::janitor(dir, ProcessId { pid, start }, keep),
    }
}

impl From<Kind> for agent::MachineKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Private => Self::Private,
            Kind::Public => Self::Public,
            Kind::Outside => Self::Outside,
        }
    }
}

fn on_agents(dir: &Path, verb: &AgentVerb) -> Result<()> {
    let (method, path, body) = match verb {
        AgentVerb::Add { public, gpus, region } => {
            let role = if *public { "public" } else { "private" };
            ("POST", "/agents".to_owned(), Some(serde_json::json!({ "role": role, "gpus": gpus, "region": region })))
        }
        AgentVerb::Leave { ip } => ("POST", format!("/agents/{ip}/leave"), None),
        AgentVerb::Die { ip } => ("POST", format!("/agents/{ip}/die"), None),
        AgentVerb::Revive { ip, fresh } => ("POST", format!("/agents/{ip}/revive?fresh={fresh}"), None),
        AgentVerb::Fill { ip } => ("POST", format!("/agents/{ip}/fill"), None),
        AgentVerb::Empty { ip } => ("POST", format!("/agents/{ip}/empty"), None),
        AgentVerb::List => ("GET", "/agents".to_owned(), None),
    };
    let answer = lab::control(dir, method, &path, body.as_ref())?;
    match answer.as_array() {
        Some(agents) => agents.iter().for_each(|agent| println!("{agent}")),
        None => answer["ip"].as_str().into_iter().for_each(|ip| println!("{ip}")),
    }
    Ok(())
}

fn serve(dir: &Path) -> Result<()> {
    let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt().with_max_level(level.unwrap_or(tracing::level_filters::LevelFilter::INFO)).with_ansi(false).init();
    let failed = |source| Error::Io { what: "the server".to_owned(), source };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(server::serve(dir, server::Options::default())).map_err(failed)
}
