//! The start of the process that serves: binds, gives up the privileges that serving does not need, starts the workers, and
//! leaves the rest to the supervisor.

use std::io;
use std::mem;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;

use crate::config::{EbpfMode, SessionTls, Settings};
use crate::control::admin::Sources;
use crate::control::agent_states::AgentStates;
use crate::control::exit::{Failure, failed, unusable};
use crate::control::fleet::{self, FormerAnswer};
use crate::control::helper::{Answer, HelperClient, MessageKind, Payload, Predecessor, STATES};
use crate::control::logging::Logging;
use crate::control::runtime::ControlRuntime;
use crate::control::signals::Signals;
use crate::control::socket::{self, ControlCommand, ControlRequest, ControlServer};
use crate::control::supervisor::{Accounts, Supervisor};
use crate::control::validation::Prepared;
use crate::os::cgroup::Cgroup;
use crate::os::files::{DryRun, Files, PassedFiles};
use crate::os::log::LogWriters;
use crate::os::process_usage::UsageReader;
use crate::os::sandbox::confine;
use crate::os::systemd;
use crate::session::queue::UNREAD_MAX;
use crate::transport::kernel_tls::{KernelTls, KernelTlsTrial};
use crate::transport::own_addresses::OwnAddresses;
use crate::worker::listeners::{self, Inherited, Listener, Listeners};

/// Commands that wait to be handled; more are not read yet.
const COMMANDS_MAX: usize = 16;

/// Serves until it is told to stop.
pub(super) fn run(settings: Settings) -> Result<(), Failure> {
    // Before there are threads: it changes the environment.
    let inherited = Inherited::from_env().map_err(|error| {
        unusable(format!(
            "LISTEN_FDS: {error}; only TCP sockets are served (ListenStream= of the socket unit)"
        ))
    })?;
    // What is wrong with the configuration is said once the helper has read it.
    let wanted = settings.examine(&DryRun).0.map(|resolved| resolved.config.io_backend);
    let runtime = ControlRuntime::new(wanted.unwrap_or_default())?;
    let logs = LogWriters::new(runtime.write_backend());
    let served = catch_unwind(AssertUnwindSafe(|| runtime.block_on(serve(settings, inherited, &logs))));
    runtime.block_on(logs.finish());
    // To end it would wait for a write that is blocked.
    mem::forget(runtime);
    served.unwrap_or_else(|panic| resume_unwind(panic))
}

/// A disk that does not answer keeps it from serving, not from being stopped.
async fn serve(settings: Settings, inherited: Inherited, logs: &LogWriters) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let Started { supervisor, requests, control_server } = tokio::select! {
        started = Box::pin(start(settings, inherited, logs)) => started?,
        () = signals.stop() => return Ok(()),
    };
    let served = supervisor.run(signals, requests).await;
    if let Some(control_server) = control_server {
        control_server.end().await;
    }
    Ok(served?)
}

/// The serving process, and the ways for an operator to reach it.
struct Started {
    supervisor: Supervisor,
    requests: mpsc::Receiver<ControlRequest>,
    control_server: Option<ControlServer>,
}

/// Everything until it serves.
async fn start(settings: Settings, inherited: Inherited, logs: &LogWriters) -> Result<Started, Failure> {
    let predecessor = Predecessor::from_env()?;
    let helper = HelperClient::start(&settings)?;
    let files = first_files(&helper).await?;
    let mut prepared = Prepared::new(&settings, &files).map_err(unusable)?;
    let (kernel_tls, told_of_kernel_tls) = try_kernel_tls(prepared.config().session_tls)?;
    prepared.kernel_tls = kernel_tls;
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
    let own = OwnAddresses::new(front.iter().map(|listener| &listener.socket).chain(&admin))?;
    let reached_at = prepared.config().control.clone();
    let control = reached_at.as_deref().map(|path| {
        socket::bind(path, predecessor.is_some())
            .map_err(|error| failed(&format!("--control {}: {error}", path.display())))
    });
    let control = control.transpose()?;
    let receive_max = listeners::receive_buffer_max();
    let usage = UsageReader::open();
    // Threads that were started before would not be confined.
    let confined = confine(&prepared.config().agent_ports);
    let log = Logging::start(logs, &prepared.config().log, prepared.config().log_format)?;
    announce(&front, admin.as_ref())?;
    tracing::info!("sandbox: {confined}");
    match &account {
        Some(Ok(cgroup)) => tracing::info!(cgroup = %cgroup.display(), "eBPF statistics enabled"),
        Some(Err(reason)) => tracing::info!(reason, "eBPF statistics disabled"),
        None => {}
    }
    if let Some(told) = told_of_kernel_tls {
        tracing::info!("kernel TLS: {told}");
    }
    warn(&prepared);
    tell_of_windows(receive_max);
    let accounts = Accounts { kernel: matches!(account, Some(Ok(_))), usage: readable(usage) };
    let former: Vec<_> = predecessor.iter().flat_map(|it| &it.processes).copied().collect();
    let former = reached_at.iter().flat_map(|path| former.iter().map(|it| socket::of_process(path, *it)));
    let former: Vec<_> = former.collect();
    let states = agent_states(&helper, former.first()).await?;
    let mut supervisor = Supervisor::start(settings, helper, prepared, front, &own, accounts, &log).await?;
    know_agents(&mut supervisor, states, former.first()).await;
    supervisor.follow(&former).await;
    let (commands, requests) = mpsc::channel(COMMANDS_MAX);
    if let Some(listener) = admin {
        let (own_commands, readiness) = (commands.clone(), supervisor.readiness());
        let sources = Sources { own: own_commands, former: former.into(), readiness, listeners: own };
        supervisor.show(listener, sources)?;
    }
    let control_server = control.map(|listener| ControlServer::begin(listener, commands)).transpose()?;
    take_over(&mut supervisor, predecessor).await?;
    supervisor.open().await;
    systemd::ready("serving");
    Ok(Started { supervisor, requests, control_server })
}

/// What the kernel may do of sessions' TLS, and what there is to tell of it.
fn try_kernel_tls(wanted: SessionTls) -> Result<(KernelTls, Option<String>), Failure> {
    let why = match wanted {
        SessionTls::User => return Ok((KernelTls::NONE, None)),
        SessionTls::Kernel | SessionTls::Auto => match KernelTlsTrial::run() {
            Ok(trial) => {
                let uses = trial.use_of(wanted == SessionTls::Auto);
                if uses != KernelTls::NONE {
                    return Ok((uses, Some(trial.to_string())));
                }
                format!("it can't be used for any session ({trial})")
            }
            Err(error) => {
                format!("this kernel does not do it ({error}; modprobe tls loads it where there is a module)")
            }
        },
    };
    match wanted {
        SessionTls::Kernel => Err(unusable(format!("--session-tls kernel: kernel TLS: {why}"))),
        _ => Ok((KernelTls::NONE, Some(format!("{why}: sessions are sealed and opened by this program")))),
    }
}

/// Says where the host lets a session be slower than its network.
fn tell_of_windows(receive_max: Option<usize>) {
    if let Some(max) = receive_max.filter(|max| *max < UNREAD_MAX) {
        tracing::info!(
            max,
            "net.core.rmem_max bounds the receive window: with an agent some milliseconds away a session may be slower \
             than the network; {UNREAD_MAX} is enough"
        );
    }
}

/// Learns which agents there are, from the process that hands over and from the sources themselves.
async fn know_agents(supervisor: &mut Supervisor, states: AgentStates, former: Option<&PathBuf>) {
    if let Some(former) = former
        && let FormerAnswer::Said(lists) =
            fleet::ask_former(former, ControlCommand::Lists, fleet::FORMER_TIMEOUT).await
    {
        supervisor.adopt(&lists);
    }
    supervisor.restore(states);
    supervisor.first_lists().await;
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

/// Without it there are no `process_` metrics, and that is all.
fn readable(usage: io::Result<UsageReader>) -> Option<UsageReader> {
    usage
        .inspect_err(|error| {
            tracing::info!(reason = &*error.to_string(), "/proc can't be read: no process_ metrics");
        })
        .ok()
}

/// Has the kernel count the connections of this process, in a cgroup of its own.
async fn count(helper: &HelperClient) -> Result<PathBuf, String> {
    let cgroup = Cgroup::enter()?;
    let failed = |error: io::Error| error.to_string();
    helper.ask_ebpf(cgroup.path()).await.map_err(failed)?;
    helper.next().await.map_err(failed)?.outcome?;
    Ok(cgroup.stay())
}

/// What commands have set of agents: as the process says that hands over, or as it was saved.
async fn agent_states(helper: &HelperClient, former: Option<&PathBuf>) -> Result<AgentStates, Failure> {
    if let Some(former) = former {
        match fleet::ask_former(former, ControlCommand::States, fleet::FORMER_TIMEOUT).await {
            FormerAnswer::Said(text) => return AgentStates::parse(&text).map_err(|error| failed(&error)),
            FormerAnswer::Silent => return Err(failed(&"the process that hands over does not answer")),
            FormerAnswer::Gone => {}
        }
    }
    helper.ask(MessageKind::States).await?;
    let read = helper.next().await?.outcome.and_then(|found| match found {
        Payload::Files(files) => files.read(STATES.as_ref()).map_err(|error| error.to_string()),
        Payload::Text(text) => Err(text),
        Payload::Socket(_) => Err("a socket that nobody asked for".to_owned()),
    });
    let states = read.and_then(|text| AgentStates::parse(&String::from_utf8_lossy(&text)));
    Ok(states.unwrap_or_else(|reason| {
        tracing::error!(reason, "--state-file can't be read: agents are as --agents-file has them");
        AgentStates::default()
    }))
}

/// The configuration's files; of a configuration that can't be used, why.
async fn first_files(helper: &HelperClient) -> Result<PassedFiles, Failure> {
    let Answer { outcome, .. } = helper.next().await?;
    match outcome.map_err(unusable)? {
        Payload::Files(files) => Ok(files),
        Payload::Text(_) | Payload::Socket(_) => Err(failed(&"the helper has no files")),
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
    prepared.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
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
    if prepared.has_no_users() {
        tracing::warn!("--htpasswd has no users: all requests get 401");
    }
    if config.passwords.is_some() && !config.listen_plain.is_empty() {
        tracing::warn!(
            "--htpasswd at --listen-plain: passwords are read by whoever is on the way, and behind a balancer without \
             --proxy-protocol or --trust-forwarded wrong passwords of one client delay all clients"
        );
    }
    if config.client_demands.certificate.is_some() && !config.listen_plain.is_empty() {
        tracing::warn!("--client-ca has no effect at --listen-plain");
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
