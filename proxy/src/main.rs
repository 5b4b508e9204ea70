//! The program: reads the flags, binds, gives up what serving does not need, starts the workers, and leaves the rest to
//! the supervisor; or asks the one that runs.

use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use dcv_splice::config::{Command, CommandLine, EbpfMode, Resolved, Settings};
use dcv_splice::control::admin::Sources;
use dcv_splice::control::helper::{self, Answer, HelperClient, Payload, Predecessor};
use dcv_splice::control::logging::Logging;
use dcv_splice::control::service_account;
use dcv_splice::control::socket::{self, ControlCommand, ControlRequest, ControlServer};
use dcv_splice::control::supervisor::{Signals, Supervisor};
use dcv_splice::control::validation::Prepared;
use dcv_splice::os::cgroup::Cgroup;
use dcv_splice::os::files::{DryRun, PassedFiles};
use dcv_splice::os::sandbox::confine;
use dcv_splice::os::systemd;
use dcv_splice::tls::Pin;
use dcv_splice::transport::own_addresses::Own;
use dcv_splice::worker::listeners::{self, Inherited, Listener, Listeners};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;

/// Stopped cleanly.
const STOPPED: u8 = 0;
/// Failed while running.
const FAILED: u8 = 1;
/// Unusable flags or configuration; nothing was bound.
const UNUSABLE: u8 = 2;
/// How long the reason of a failure has to be written.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Wishes that wait to be requests; more are not listened to yet.
const COMMANDS_MAX: usize = 16;

fn main() -> ExitCode {
    match parse().and_then(run_command) {
        Ok(()) => STOPPED.into(),
        Err(Failure { code, reason }) => {
            say(reason.lines().map(|line| format!("dcv-splice: {line}")).collect::<Vec<_>>().join("\n"));
            code.into()
        }
    }
}

fn run_command(line: CommandLine) -> Result<(), Failure> {
    let settings = Settings::of(std::env::args_os());
    match line.command {
        None | Some(Command::Run(_)) => run(settings),
        Some(Command::Check(_)) => check(&settings),
        Some(Command::Pin { agent }) => pin(agent),
        Some(Command::Reload(at)) => ask(&at.control, ControlCommand::Reload),
        Some(Command::Upgrade(at)) => ask(&at.control, ControlCommand::Upgrade),
        Some(Command::Reopen(at)) => send_to_all(&at.control, ControlCommand::Reopen),
        Some(Command::Status(at)) => send_to_all(&at.control, ControlCommand::Status),
        Some(Command::Helper(_)) => helper::serve(settings).map_err(Failure::from),
        Some(Command::Exec { program }) => helper::exec(&program).map_err(Failure::from),
    }
}

/// Says the last word, which an output that is blocked does not keep waiting for long.
fn say(reason: String) {
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        eprintln!("{reason}");
        said.send(())
    });
    let _ = heard.recv_timeout(LAST_WORD);
}

/// Why the program ends, a line for each reason, and its exit code.
struct Failure {
    code: u8,
    reason: String,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        failed(&error)
    }
}

fn failed(reason: &dyn fmt::Display) -> Failure {
    Failure { code: FAILED, reason: reason.to_string() }
}

fn unusable(reason: String) -> Failure {
    Failure { code: UNUSABLE, reason }
}

/// Flags whose values can't be meant are told of all together, and with what the file says; clap tells of the first.
fn parse() -> Result<CommandLine, Failure> {
    if std::env::args_os().len() == 1 {
        // Whoever only looks what this is would not want a port opened to the world.
        eprintln!("{}", CommandLine::command().render_help());
        return Err(unusable("no flags are given: nothing is served".to_owned()));
    }
    let error = match CommandLine::try_parse() {
        Ok(line) => return Ok(line),
        Err(error) => error,
    };
    let runs = |word: std::ffi::OsString| ["run", "check"].iter().any(|name| word == *name);
    let asks = std::env::args_os()
        .nth(1)
        .is_some_and(|word| !word.as_encoded_bytes().starts_with(b"-") && !runs(word));
    let settings = Settings::of(std::env::args_os());
    let is_told_here = matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue)
        || settings.has_renamed_flags();
    if asks || !is_told_here {
        error.exit();
    }
    match Prepared::new(&settings, &DryRun) {
        Err(reason) => Err(unusable(reason)),
        Ok(_) => error.exit(),
    }
}

fn check(settings: &Settings) -> Result<(), Failure> {
    let prepared = Prepared::new(settings, &DryRun);
    let mut problems: Vec<_> =
        prepared.as_ref().err().iter().flat_map(|text| text.lines().map(str::to_owned)).collect();
    if let (Some(resolved), _) = settings.examine(&DryRun) {
        problems.extend(control_problem(&resolved));
        let look = || Prepared::new(settings, &DryRun).err();
        match service_account::as_account(resolved.config.file.as_deref(), look) {
            Ok(found) => {
                let found = found.flatten().unwrap_or_default();
                let more: Vec<_> =
                    found.lines().filter(|line| !problems.iter().any(|it| it == line)).collect();
                problems.extend(more.iter().map(|line| format!("{line} {}", service_account::advice())));
            }
            Err(error) => problems.push(format!("what the service's account may read is not known: {error}")),
        }
    }
    match prepared {
        Ok(prepared) if problems.is_empty() => {
            prepared.doubts.iter().for_each(|doubt| eprintln!("dcv-splice: warning: {doubt}"));
            Ok(io::stdout().write_all(prepared.resolved.show().as_bytes())?)
        }
        _ => Err(unusable(problems.join("\n"))),
    }
}

/// Why `--control` could not be listened on. What lies below /run is made at the start (`RuntimeDirectory=`).
fn control_problem(resolved: &Resolved) -> Option<String> {
    let path = resolved.config.control.as_deref()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let checked = match std::fs::metadata(folder) {
        Err(_) if folder.starts_with("/run") => Ok(()),
        Err(error) => Err(error),
        Ok(_) => socket::check(path),
    };
    let error = checked.err()?;
    Some(resolved.blame(Some(path), &format!("--control {}: {error}", path.display())))
}

fn pin(agent: SocketAddr) -> Result<(), Failure> {
    let pin = Pin::shown_by(agent).map_err(|error| failed(&error))?;
    println!("{pin}");
    Ok(())
}

fn ask(control: &Path, command: ControlCommand) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let said = runtime.block_on(socket::ask(control, command)).map_err(|reason| failed(&reason))?;
    Ok(io::stdout().write_all(format!("{said}\n").as_bytes())?)
}

/// Asks those that drain too; where one can't do it, the first such reason is the result.
fn send_to_all(control: &Path, command: ControlCommand) -> Result<(), Failure> {
    let all = socket::all(control);
    if all.is_empty() {
        return ask(control, command);
    }
    all.iter().map(|process| ask(process, command)).fold(Ok(()), Result::and)
}

fn run(settings: Settings) -> Result<(), Failure> {
    // Before there are threads: it changes the environment.
    let inherited = Inherited::from_env().map_err(|error| {
        unusable(format!(
            "LISTEN_FDS: {error}; only TCP sockets are served (ListenStream= of the socket unit)"
        ))
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(settings, inherited))
}

/// A disk that does not answer keeps it from serving, not from being stopped.
async fn serve(settings: Settings, inherited: Inherited) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let Started { supervisor, requests, hearing, log: _log } = tokio::select! {
        started = Box::pin(start(settings, inherited)) => started?,
        () = signals.stop() => return Ok(()),
    };
    let served = supervisor.run(signals, requests).await;
    if let Some(hearing) = hearing {
        hearing.end().await;
    }
    Ok(served?)
}

/// What serves, and what an operator reaches it by.
struct Started {
    supervisor: Supervisor,
    requests: mpsc::Receiver<ControlRequest>,
    hearing: Option<ControlServer>,
    /// Comes to its end when all has ended.
    log: Logging,
}

/// Everything until it serves.
async fn start(settings: Settings, inherited: Inherited) -> Result<Started, Failure> {
    let predecessor = Predecessor::from_env()?;
    let helper = HelperClient::start(&settings)?;
    let files = first_files(&helper).await?;
    let prepared = Prepared::new(&settings, &files).map_err(unusable)?;
    // A socket stays in the cgroup that it was made in.
    let account = match prepared.config().ebpf {
        EbpfMode::Off => None,
        EbpfMode::Auto => Some(count(&helper).await),
        EbpfMode::Require => {
            Some(Ok(count(&helper).await.map_err(|why| unusable(format!("--ebpf: {why}")))?))
        }
    };
    let Listeners { front, admin, unwanted } = listeners::listen(prepared.config(), inherited)?;
    if let (Some(socket), None) = (unwanted.first(), &predecessor) {
        let address = socket.local_addr()?;
        return Err(unusable(format!(
            "a socket on {address} was handed over that no --listen names: name it"
        )));
    }
    drop(unwanted);
    let own = Own::new(front.iter().map(|listener| &listener.socket).chain(&admin))?;
    let reached_at = prepared.config().control.clone();
    let control = reached_at.as_deref().map(|path| {
        socket::bind(path, predecessor.is_some())
            .map_err(|error| failed(&format!("--control {}: {error}", path.display())))
    });
    let control = control.transpose()?;
    // Threads that were started before would not be confined, those of the logs among them.
    let confined = confine(prepared.config().policy.agent_port);
    let log = Logging::start(&prepared.config().log, prepared.config().log_format)?;
    announce(&front, admin.as_ref())?;
    tracing::info!("sandbox: {confined}");
    match &account {
        Some(Ok(cgroup)) => tracing::info!(cgroup = %cgroup.display(), "eBPF statistics enabled"),
        Some(Err(reason)) => tracing::info!(reason, "eBPF statistics disabled"),
        None => {}
    }
    warn(&prepared);
    let counting = matches!(account, Some(Ok(_)));
    let mut supervisor = Supervisor::start(settings, helper, prepared, front, &own, counting, &log).await?;
    let (commands, requests) = mpsc::channel(COMMANDS_MAX);
    if let Some(listener) = admin {
        let processes = predecessor.iter().flat_map(|it| &it.processes);
        let former = reached_at
            .iter()
            .flat_map(|path| processes.clone().map(|process| socket::of_process(path, *process)));
        supervisor
            .show(listener, Sources { own: commands.clone(), former: former.collect(), listeners: own })?;
    }
    let hearing = control.map(|listener| ControlServer::begin(listener, commands)).transpose()?;
    take_over(&mut supervisor, predecessor).await?;
    supervisor.open().await;
    systemd::ready("serving");
    Ok(Started { supervisor, requests, hearing, log })
}

/// Lets operators find this process, in place of the one that hands over, if there is one. That one is found until then:
/// there is always somebody to be found.
async fn take_over(supervisor: &mut Supervisor, predecessor: Option<Predecessor>) -> io::Result<()> {
    let Some(predecessor) = predecessor else { return supervisor.announce().await };
    predecessor.waits()?;
    supervisor.announce().await?;
    tracing::info!(pid = predecessor.process(), "taking over from the former process");
    // It may have been given up just now: then nobody must have come here.
    if let Err(error) = predecessor.take_over() {
        supervisor.withdraw().await?;
        return Err(error);
    }
    Ok(())
}

/// Has the kernel count the connections of this process, in a cgroup of its own.
async fn count(helper: &HelperClient) -> Result<PathBuf, String> {
    let cgroup = Cgroup::enter()?;
    let failed = |error: io::Error| error.to_string();
    helper.ask_account(cgroup.path()).await.map_err(failed)?;
    helper.next().await.map_err(failed)?.outcome?;
    Ok(cgroup.stay())
}

/// The configuration's files; of a configuration that can't be used, why.
async fn first_files(helper: &HelperClient) -> Result<PassedFiles, Failure> {
    let Answer { outcome, .. } = helper.next().await?;
    match outcome.map_err(unusable)? {
        Payload::Files(files) => Ok(files),
        Payload::Text(_) => Err(failed(&"the helper has no files")),
    }
}

/// Where it listens; an address has a socket for each worker.
fn announce(listeners: &[Listener], admin: Option<&TcpListener>) -> io::Result<()> {
    if let Some(admin) = admin {
        tracing::info!("admin page at http://{}/", admin.local_addr()?);
    }
    let mut told = Vec::new();
    for Listener { socket, secure } in listeners {
        let address = socket.local_addr()?;
        if !told.contains(&address) {
            let scheme = if *secure { "https" } else { "http" };
            tracing::info!("listening on {scheme}://{address}");
            told.push(address);
        }
    }
    Ok(())
}

fn warn(prepared: &Prepared) {
    let config = prepared.config();
    prepared.doubts.iter().for_each(|doubt| tracing::warn!("{doubt}"));
    if config.certificates.is_empty() && !config.listen.is_empty() {
        tracing::warn!(
            "no --cert and --key: a self-signed certificate was made, which browsers will warn of"
        );
    }
    if config.policy.agents.is_empty() {
        tracing::warn!("no --agents: no agent may be dialled, every desktop is answered with 403");
    }
    if rustix::process::geteuid().is_root() {
        tracing::warn!("running as root is not needed: use an account of its own that can read the keys");
    }
    if prepared.locks_everybody_out() {
        tracing::warn!("--htpasswd names nobody: nobody may ask");
    }
    if config.passwords.is_some() && !config.listen_plain.is_empty() {
        tracing::warn!(
            "--htpasswd at --listen-plain: passwords are read by whoever is on the way, and behind a balancer without \
             --proxy-protocol or --trust-forwarded all clients wait for who guesses"
        );
    }
    if config.client_demands.certificate.is_some() && !config.listen_plain.is_empty() {
        tracing::warn!("--client-ca asks nothing of clients at --listen-plain");
    }
    match raise_open_files() {
        // Each session is one socket of the client and one of the agent.
        Ok(Some(limit)) if limit < 2 * config.limits.connections_max as u64 => {
            let max = config.limits.connections_max;
            tracing::warn!(
                "{limit} open files are too few for --connections-max {max}: raise LimitNOFILE or ulimit -n"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!("the limit of open files can't be raised: {error}"),
    }
}

/// Raises the soft limit of open files to the hard one, which it returns (getrlimit(2)).
fn raise_open_files() -> io::Result<Option<u64>> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.maximum)
}
