//! One role per subcommand; what they do stands in the library.
//!
//! The dcos CLI starts the same program as its plugin, with the name of the command first: `private-registry private-registry status`.

#![forbid(unsafe_code)]

#[cfg(test)]
mod documentation;

use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use private_registry::controller::{self, Report, Setting};
use private_registry::forecast::Purpose;
use private_registry::host_paths::HostRoot;
use private_registry::node::{self, NodeConfig};
use private_registry::operator::{self, Access, Client, OperatorError, Order, Progress, Service, Snippet, Target};
use private_registry::options::Fault;
use private_registry::privileges;
use private_registry::protocol::CopyKind;
use private_registry::registry::{self, RegistryConfig};
use private_registry::security::PUBLIC_CA;
use private_registry::{dcos, init};
use tracing::level_filters::LevelFilter;

/// The command's name at the dcos CLI.
const COMMAND: &str = "private-registry";
/// What `dcos help` shows.
const ABOUT: &str = "A private container registry for DC/OS that every agent trusts.";

/// Ends every help of the command.
const EXIT_CODES: &str = "\
Exit codes:
   0  done, or all is well
   1  not converged, or not ready
  64  unusable input
  69  the cluster or the service does not answer";

/// A private container registry for DC/OS that every agent trusts.
#[derive(Parser)]
#[command(version, name = COMMAND, after_help = EXIT_CODES)]
struct Cli {
    /// Name of the service, as it was installed
    #[arg(long, global = true, default_value = COMMAND)]
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
    Agents {
        /// Print an array of agents, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what is being done or waited for, and why, or what a change would do; nothing is changed
    Plan {
        /// What installing or updating with this options file would do; it is laid over the options in force
        #[arg(long, value_name = "FILE", conflicts_with_all = ["rotate", "uninstall"])]
        options: Option<PathBuf>,
        /// What replacing the CA would do
        #[arg(long, conflicts_with = "uninstall")]
        rotate: bool,
        /// What uninstalling the package would do
        #[arg(long)]
        uninstall: bool,
        /// Print {"next": […]}; of what would be done {"steps": […], "documents": […], "notes": […]} with every app, pod and job
        #[arg(long)]
        json: bool,
    },
    /// Have every agent proven anew, and follow it
    Converge {
        /// Print the last report as JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Replace the CA and the registry's certificate without a gap, and follow it
    Rotate {
        /// Print the last report as JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Delete image data that nothing uses, and follow it; meanwhile the registry is read-only
    Gc {
        /// Only say what would be deleted; the registry stays writable
        #[arg(long)]
        dry_run: bool,
        /// Print what has come of it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy the images that backup.path lacks there, and follow it; the registry takes pushes
    Backup {
        /// Read again what the backup has already
        #[arg(long)]
        verify: bool,
        /// Print what has come of it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace all that the registry has by the images of the last backup, and follow it
    RestoreImages {
        /// Yes, what was pushed since the backup may go
        #[arg(long)]
        yes: bool,
        /// Print what has come of it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a row per image, and whether this cluster's Mesos (UCR) can read it
    Images {
        /// Only those that it cannot read, with why, and what to do
        #[arg(long)]
        unreadable: bool,
        /// Print an array of images, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the CA certificate, or what to do with it on a machine outside the cluster
    Ca {
        /// Print instructions for this client
        #[arg(long = "for", value_enum)]
        client: Option<Client>,
        /// Print {"ca": …, "fingerprint": …, "names": […], "public": …}
        #[arg(long, conflicts_with = "client")]
        json: bool,
    },
    /// Print what to paste where the registry is used: in apps, or in dockers inside containers
    Snippet {
        /// Where it is pasted
        #[arg(long = "for", value_enum)]
        place: Snippet,
    },
    /// Print what tools need to know of the registry, as JSON: names, CA, login, limits
    Discovery,
    /// Add, remove or list the users who may log in to the registry (auth.kind htpasswd)
    User {
        #[command(subcommand)]
        verb: UserVerb,
    },
    /// Print a script that lets docker on a master, or on a machine outside, trust the registry
    Masters,
    /// Print what a task of the service wrote
    Logs {
        /// Whose: controller, registry, or an agent as `agents` shows it
        #[arg(value_name = "AGENT")]
        target: Target,
        /// So many lines from the end of each file
        #[arg(long, default_value_t = 100)]
        lines: usize,
        /// Go on printing what is written, until interrupted
        #[arg(long)]
        follow: bool,
        /// Print {"agent": …, "task": …, "stdout": …, "stderr": …}
        #[arg(long, conflicts_with = "follow")]
        json: bool,
    },
    /// Gather status, plan, documents and logs, without secrets, in a new directory
    Diagnostics {
        /// The directory [default: private-registry-diagnostics-<Unix time>]
        #[arg(long, value_name = "DIRECTORY")]
        out: Option<PathBuf>,
        /// Print {"directory": …, "files": […], "missing": […]}
        #[arg(long)]
        json: bool,
    },
    /// Say everything that is wrong with an options file, before it is installed
    Check {
        /// The file given to `dcos package install --options=`
        #[arg(long)]
        options: PathBuf,
        /// Print an array of faults with field, value, reason and remedy
        #[arg(long)]
        json: bool,
    },
    /// Print the commands that make a service account with all it needs (DC/OS Enterprise)
    Grants {
        /// The file given to `dcos package install --options=`; without it the defaults
        #[arg(long)]
        options: Option<PathBuf>,
        /// Print an array of account, resource and action
        #[arg(long)]
        json: bool,
    },
    /// Put this host back as it was: for an agent that was away while the package was uninstalled
    Restore,
    /// Change the users on the controller's host (the Metronome job of `user`)
    #[command(hide = true)]
    UsersApply,
    /// Watch the cluster and act (the Marathon app)
    #[command(hide = true)]
    Controller,
    /// Order convergence, wait for it, and print a row per agent (the Metronome job)
    #[command(hide = true)]
    Init,
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

#[derive(Subcommand)]
enum UserVerb {
    /// Let somebody in; the password is asked for
    Add {
        /// Name of the user
        user: String,
        /// Read the password from standard input: one line
        #[arg(long)]
        password_stdin: bool,
        /// Give a user who is there already a new password
        #[arg(long)]
        replace: bool,
        /// Print {"users": […], "settled": …}
        #[arg(long)]
        json: bool,
    },
    /// Let somebody in no more
    Remove {
        /// Name of the user
        user: String,
        /// Print {"users": […], "settled": …}
        #[arg(long)]
        json: bool,
    },
    /// Print the names
    List {
        /// Print {"users": […], "settled": …}
        #[arg(long)]
        json: bool,
    },
}

/// Exit code for unusable input, as in sysexits.h (EX_USAGE).
const BAD_INPUT: u8 = 64;
/// Exit code when the cluster does not answer (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

/// dcos CLI 0.6 passes on what a plugin says on standard error only while that runs: of what it says at its end some is lost, and on a
/// busy machine mostly all (`SubcommandProcess.run_and_capture` in its subcommand.py). So it is given time to read.
const TIME_TO_READ: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let given: Vec<OsString> = std::env::args_os().collect();
    let arguments = without_command(given.clone());
    let is_plugin = arguments.len() < given.len();
    let code = obey(arguments);
    if is_plugin {
        std::thread::sleep(TIME_TO_READ);
    }
    code
}

fn obey(arguments: Vec<OsString>) -> ExitCode {
    // Conventions of the dcos CLI for plugins.
    if arguments.get(1).is_some_and(|argument| argument == "--info") {
        say(format_args!("{ABOUT}\n"));
        return ExitCode::SUCCESS;
    }
    let Cli { name, role } = match parsed(arguments) {
        Ok(cli) => cli,
        Err(told) => {
            // Nothing is left to do if even this cannot be printed.
            drop(told.print());
            return if told.use_stderr() { ExitCode::from(BAD_INPUT) } else { ExitCode::SUCCESS };
        }
    };
    match role {
        Role::Status { json } => ask(&name, async move |service: Service| Ok(show(&service.report().await?, json))),
        Role::Agents { json } => ask(&name, async move |service: Service| {
            let report = service.report().await?;
            if json {
                print_json(&report.agents)
            } else {
                say(report.table())
            }
            Ok(ExitCode::SUCCESS)
        }),
        Role::Plan { options, rotate, uninstall, json } if options.is_some() || rotate || uninstall => {
            let purpose = match (rotate, uninstall) {
                (true, _) => Purpose::Rotation,
                (_, true) => Purpose::Removal,
                _ => Purpose::Options,
            };
            ask(&name, async move |service: Service| {
                let forecast = service.foresee(purpose, options.as_deref()).await?;
                if json {
                    print_json(&forecast);
                    return Ok(ExitCode::SUCCESS);
                }
                if forecast.steps.is_empty() {
                    say("nothing would be done\n");
                }
                forecast.steps.iter().for_each(|step| say(format_args!("{step}\n")));
                forecast.notes.iter().for_each(|note| say(format_args!("note: {note}\n")));
                Ok(ExitCode::SUCCESS)
            })
        }
        Role::Plan { json, .. } => ask(&name, async move |service: Service| {
            let report = service.report().await?;
            match (json, report.next.is_empty()) {
                (true, _) => print_json(&serde_json::json!({ "next": report.next })),
                (false, true) if report.converged => say("nothing is to be done\n"),
                // All is ordered; the agents are at it.
                (false, true) => say(format_args!("nothing but to wait for the agents: {}\n", report.summary)),
                (false, false) => report.next.iter().for_each(|line| say(format_args!("{line}\n"))),
            }
            Ok(ExitCode::SUCCESS)
        }),
        Role::Converge { json } => ask(&name, async move |service: Service| {
            let report = order(&service, Order::Converge).await?;
            Ok(show(&report, json))
        }),
        Role::Rotate { json } => ask(&name, async move |service: Service| {
            let report = order(&service, Order::Rotate).await?;
            let shown = show(&report, json);
            report.rotation.iter().filter(|_| !json).for_each(|what| say(format_args!("\n{what}\n")));
            Ok(shown)
        }),
        Role::Gc { dry_run, json } => ask(&name, async move |service: Service| work(&service, Order::Collect { dry_run }, json).await),
        Role::Backup { verify, json } => ask(&name, async move |service: Service| {
            let kind = if verify { CopyKind::VerifiedBackup } else { CopyKind::Backup };
            work(&service, Order::Copy(kind), json).await
        }),
        Role::RestoreImages { yes, json } => ask(&name, async move |service: Service| {
            if !yes {
                eprintln!(
                    "{COMMAND}: a restore puts the images of the last backup in the place of all that the registry has; what was pushed since then is \
                     gone. (Into an object store it adds them, and puts the tags where they were.) Say --yes if you mean it."
                );
                return Ok(ExitCode::from(BAD_INPUT));
            }
            work(&service, Order::Copy(CopyKind::Restore), json).await
        }),
        Role::Images { unreadable, json } => ask(&name, async move |service: Service| {
            let mut images = service.images().await?;
            images.retain(|image| !unreadable || image.unreadable.is_some());
            if json {
                print_json(&images);
            } else if images.is_empty() {
                say(if unreadable {
                    "every image can be read by the image puller of this cluster's Mesos\n"
                } else {
                    "there are no images\n"
                });
            } else {
                say(operator::images_table(&images));
            }
            Ok(ExitCode::SUCCESS)
        }),
        Role::Ca { client, json } => ask(&name, async move |service: Service| {
            let report = service.report().await?;
            if report.public_ca && report.ca.is_empty() && !json {
                eprintln!("{COMMAND}: {PUBLIC_CA}");
                return Ok(ExitCode::SUCCESS);
            }
            match client {
                Some(client) => say(operator::instructions(client, &report)),
                None if json => {
                    print_json(
                        &serde_json::json!({ "ca": report.ca, "fingerprint": report.ca_fingerprint, "names": report.names, "public": report.public_ca }),
                    );
                }
                None => say(&report.ca),
            }
            // There are instructions for plain HTTP, too.
            let lacks_ca = report.ca.is_empty() && !report.public_ca && !(report.insecure && client.is_some());
            if lacks_ca {
                let yet = if report.insecure { "" } else { " yet" };
                eprintln!("{COMMAND}: there is no CA{yet}: {}", report.summary);
            }
            Ok(if lacks_ca { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }),
        Role::Discovery => ask(&name, async move |service: Service| {
            print_json(&service.discovery().await?);
            Ok(ExitCode::SUCCESS)
        }),
        Role::Masters => ask(&name, async move |service: Service| {
            let report = service.report().await?;
            let Some(script) = operator::masters_script(&report) else {
                eprintln!("{COMMAND}: there is no CA that a machine would have to be told of: {}", report.summary);
                return Ok(ExitCode::FAILURE);
            };
            say(script);
            Ok(ExitCode::SUCCESS)
        }),
        Role::Snippet { place } => ask(&name, async move |service: Service| {
            let report = service.report().await?;
            let Some(text) = operator::snippet(place, &report) else {
                eprintln!("{COMMAND}: the registry has no names yet: {}", report.summary);
                return Ok(ExitCode::FAILURE);
            };
            say(text);
            Ok(ExitCode::SUCCESS)
        }),
        Role::Logs { target, lines, follow, json } => ask(&name, async move |service: Service| {
            let mut printer = Printer::default();
            if follow {
                match service.follow(&target, lines, |host, task, file, text| printer.print(host, task, file, text)).await? {}
            }
            let logs = service.logs(&target, lines).await?;
            if json {
                print_json(&logs);
            } else {
                printer.print(&logs.agent, &logs.task, "stdout", &logs.stdout);
                printer.print(&logs.agent, &logs.task, "stderr", &logs.stderr);
            }
            Ok(ExitCode::SUCCESS)
        }),
        Role::Diagnostics { out, json } => ask(&name, async move |service: Service| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let out = out.unwrap_or_else(|| PathBuf::from(format!("private-registry-diagnostics-{now}")));
            let done = service.diagnostics(&out).await?;
            if json {
                print_json(&done);
                return Ok(ExitCode::SUCCESS);
            }
            say(format_args!(
                "{}: {} files, without keys and passwords; look them through before you send them\n",
                out.display(),
                done.files.len()
            ));
            done.missing.iter().for_each(|line| say(format_args!("missing: {line}\n")));
            Ok(ExitCode::SUCCESS)
        }),
        Role::Check { options, json } => check(options, json),
        Role::Grants { options, json } => grants(options, json),
        Role::Restore => restore(&name),
        Role::User { verb } => user(&name, verb),
        Role::UsersApply => forever(privileges::Role::Controller, controller::apply_users()),
        Role::Controller => forever(privileges::Role::Controller, async { controller::run(Setting::from_env()?).await }),
        Role::Init => forever(privileges::Role::Controller, init::run()),
        Role::Uninstall => forever(privileges::Role::Controller, controller::uninstall()),
        Role::Node => forever(privileges::Role::Node, async { node::run(NodeConfig::from_env()?).await }),
        Role::Registry => forever(privileges::Role::Registry, async { registry::run(RegistryConfig::from_env()?).await }),
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
fn forever<E: Error + 'static>(needs: privileges::Role, role: impl Future<Output = Result<(), E>>) -> ExitCode {
    let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok());
    log_from(level.unwrap_or(LevelFilter::INFO));
    if let Err(reason) = privileges::give_up(needs) {
        tracing::warn!(reason, "this role keeps more privileges than it needs");
    }
    run(Box::pin(async { role.await.map(|()| ExitCode::SUCCESS) }), |_| ExitCode::FAILURE)
}

/// Logs what is of this level or worse, line by line, to standard error.
fn log_from(level: LevelFilter) {
    let log = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(std::io::stderr);
    // A full disk must not end a role: the line is lost, and a word about that loss could not be written either.
    log.log_internal_errors(false).init();
}

/// Reads the command line. The dcos CLI starts the program by another name than the one that its user types.
fn parsed(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let typed = if std::env::var_os("DCOS_CLI_VERSION").is_some() || std::env::var_os("DCOS_URL").is_none() {
        format!("dcos {COMMAND}")
    } else {
        COMMAND.to_string()
    };
    Cli::from_arg_matches(&Cli::command().bin_name(typed).try_get_matches_from(arguments)?)
}

/// Answers an operator's question about a service.
fn ask(name: &str, question: impl AsyncFnOnce(Service) -> Result<ExitCode, OperatorError>) -> ExitCode {
    answer(name, Box::new(|service| Box::pin(async move { question(service).await })))
}

/// What is asked of a service, whatever it is.
type Question<'a> = Box<dyn FnOnce(Service) -> Task<'a, OperatorError> + 'a>;

fn answer(name: &str, question: Question<'_>) -> ExitCode {
    // `dcos -v` and `dcos -vv`.
    let level = match std::env::var("DCOS_VERBOSITY").as_deref() {
        Err(_) | Ok("" | "0") => LevelFilter::WARN,
        Ok("1") => LevelFilter::INFO,
        Ok(_) => LevelFilter::DEBUG,
    };
    log_from(level);
    let answer = async {
        let service = Service::new(&Access::from_env()?, name)?;
        question(service).await
    };
    run(Box::pin(answer), |error| match error {
        OperatorError::NoAgent { .. }
        | OperatorError::OptionsFile { .. }
        | OperatorError::Refused(_)
        | OperatorError::Diagnostics { .. } => ExitCode::from(BAD_INPUT),
        OperatorError::Users(error) if error.is_input() => ExitCode::from(BAD_INPUT),
        OperatorError::Users(_) => ExitCode::FAILURE,
        _ => ExitCode::from(UNAVAILABLE),
    })
}

/// Users of the registry.
fn user(name: &str, verb: UserVerb) -> ExitCode {
    ask(name, async move |service: Service| {
        let (report, what, json) = match verb {
            UserVerb::Add { user, password_stdin, replace, json } => {
                (service.add_user(&user, replace, password_stdin).await?, format!("{user} may log in"), json)
            }
            UserVerb::Remove { user, json } => (service.remove_user(&user).await?, format!("{user} may not log in any more"), json),
            UserVerb::List { json } => {
                let users = service.users().await?;
                if json {
                    print_json(&serde_json::json!({ "users": users.names, "settled": users.settled }));
                } else {
                    users.names.iter().for_each(|name| say(format_args!("{name}\n")));
                }
                return Ok(ExitCode::SUCCESS);
            }
        };
        if json {
            print_json(&serde_json::json!({ "users": report.users.names, "settled": report.users.settled }));
            return Ok(ExitCode::SUCCESS);
        }
        say(format_args!("{what}; every registry knows it. Users now: {}\n", report.users.names.len()));
        Ok(ExitCode::SUCCESS)
    })
}

/// What is run, boxed: so the runtime is in the program once for each kind of error, and not for every command anew.
type Task<'a, E> = Pin<Box<dyn Future<Output = Result<ExitCode, E>> + 'a>>;

fn run<E: Error + 'static>(task: Task<'_, E>, failure: fn(&E) -> ExitCode) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("private-registry: the kernel gives no event queue: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(task).unwrap_or_else(|error| {
        eprintln!("private-registry: {}", dcos::chain(&error));
        failure(&error)
    })
}

/// Gives an order and shows how it goes on, apart from the result.
async fn order(service: &Service, order: Order) -> Result<Report, OperatorError> {
    let mut progress = Progress::default();
    service.order(order, |report| progress.report(report)).await
}

/// Prints a report; the exit code says whether all is well.
fn show(report: &Report, json: bool) -> ExitCode {
    if json {
        print_json(report);
    } else {
        say(format_args!("{}\n", report.summary));
        if !report.agents.is_empty() {
            say(format_args!("\n{}", report.table()));
        }
        for (host, room) in report.registries.iter().filter_map(|task| Some((&task.host, task.room_in_words()?))) {
            say(format_args!("\nOn {host}, {room}\n"));
        }
        let problems: Vec<String> = report.trouble.iter().chain(&report.problems).cloned().collect();
        for (title, lines) in [("Problems", &problems), ("Advice", &report.advice), ("Next", &report.next)] {
            if !lines.is_empty() {
                say(format_args!("\n{title}:\n"));
                lines.iter().for_each(|line| say(format_args!("  {line}\n")));
            }
        }
    }
    if report.converged { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a job that is waited for by itself.
async fn work(service: &Service, order: Order, json: bool) -> Result<ExitCode, OperatorError> {
    let mut progress = Progress::default();
    let work = service.work(order, |work| progress.line(&work.said)).await?;
    drop(progress);
    if json {
        print_json(&work);
    } else {
        say(format_args!("{}\n", work.said));
    }
    Ok(if work.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints at once, also through a pipe. A reader that has enough, as `head`, ends the program and is no fault.
fn say(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    if write!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn print_json(value: &impl serde::Serialize) {
    // Only maps with other keys than strings cannot be JSON; there are none.
    say(format_args!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default()));
}

/// Prints pieces of files, and above them whose they are, as `tail` does.
#[derive(Default)]
struct Printer {
    title: String,
    /// The last piece ended within a line.
    within_line: bool,
}

impl Printer {
    fn print(&mut self, host: &str, task: &str, file: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        let title = format!("==> {host}: {task}: {file} <==");
        if title != self.title {
            let gap = if self.title.is_empty() { "" } else { "\n" };
            let end = if self.within_line { "\n" } else { "" };
            say(format_args!("{end}{gap}{title}\n"));
            self.title = title;
        }
        say(text);
        self.within_line = !text.ends_with('\n');
    }
}

fn restore(service: &str) -> ExitCode {
    match node::restore(HostRoot::default(), service) {
        Ok(notes) => {
            notes.iter().for_each(|note| say(format_args!("{note}\n")));
            say(format_args!("this host is as it was before {service}\n"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("private-registry: {}", dcos::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn check(path: PathBuf, json: bool) -> ExitCode {
    let shown = path.display().to_string();
    let faults = match operator::check(path) {
        Ok(Ok(options)) => {
            options.warnings().iter().for_each(|warning| eprintln!("warning: security.mode: {warning}"));
            Vec::new()
        }
        Ok(Err(faults)) => faults.0,
        Err(error) => {
            eprintln!("private-registry: {error}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    if json {
        let fault = |fault: &Fault| serde_json::json!({ "field": fault.field, "value": fault.value, "reason": fault.reason, "remedy": fault.remedy });
        print_json(&faults.iter().map(fault).collect::<Vec<_>>());
    } else if faults.is_empty() {
        say(format_args!("{shown}: no faults\n"));
    } else {
        // They are what was asked for, so no error output, which some versions of the dcos CLI swallow.
        faults.iter().for_each(|fault| say(format_args!("{fault}\n")));
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(BAD_INPUT) }
}

fn grants(path: Option<PathBuf>, json: bool) -> ExitCode {
    match path.map_or_else(|| Ok(operator::defaults()), operator::check) {
        Ok(Ok(options)) if json => print_json(&operator::grants(&options)),
        Ok(Ok(options)) => say(operator::account_commands(&options)),
        Ok(Err(faults)) => {
            eprintln!("{faults}");
            return ExitCode::from(BAD_INPUT);
        }
        Err(error) => {
            eprintln!("private-registry: {error}");
            return ExitCode::from(BAD_INPUT);
        }
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_the_plugins_form_means_the_same() {
        Cli::command().debug_assert();
        let plugin = ["bin", "private-registry", "status"].map(OsString::from).to_vec();
        assert_eq!(without_command(plugin), ["bin", "status"].map(OsString::from));
    }

    /// `docs/cli.md`, as it should be.
    fn documentation() -> String {
        fn add(text: &mut String, command: &mut clap::Command, path: &str) {
            *text += &format!("\n## {path}\n\n```text\n{}\n```\n", command.render_long_help().to_string().trim_end());
            for verb in command.get_subcommands_mut().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
                let name = format!("{path} {}", verb.get_name());
                add(text, verb, &name);
            }
        }
        let mut command = Cli::command().bin_name(format!("dcos {COMMAND}")).version("");
        command.build();
        let mut text = String::from(
            "# The command `dcos private-registry`\n\nThe output of `--help` of every verb; a test keeps it as it is. Standard output has the answer and nothing else; how an \
             order goes on stands on standard\nerror: on a terminal in one line that is written over, elsewhere in a line per change, without control characters.\n\n\
             `--json` prints the answer for programs; `discovery` is JSON anyway, and `masters`, `snippet` and `ca` print text to be used as it is.\n",
        );
        text += "\n## Exit codes\n\n| Code | Meaning |\n|---|---|\n";
        for line in EXIT_CODES.lines().skip(1) {
            let (code, meaning) = line.trim().split_once("  ").unwrap_or_default();
            text += &format!("| {code} | {meaning} |\n");
        }
        add(&mut text, &mut command, &format!("dcos {COMMAND}"));
        text.lines().map(|line| line.trim_end().to_string() + "\n").collect()
    }

    #[test]
    fn the_documentation_of_the_command_is_its_help() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
        if std::env::var_os("WRITE_DOCS").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        let wide: Vec<String> =
            Cli::command().render_help().to_string().lines().filter(|line| line.chars().count() > 110).map(String::from).collect();
        assert!(wide.is_empty(), "too wide for a terminal: {wide:#?}");
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == documentation(), "docs/cli.md is not the help: run this test once with WRITE_DOCS=1");
    }
}
