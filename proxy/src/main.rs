//! The program: reads the flags, binds, starts the workers, and carries the signals to them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use dcv_splice::account::AccessLog;
use dcv_splice::admission::Admission;
use dcv_splice::balance::{Balance, Desk};
use dcv_splice::config::{AccessLogTo, Command, CommandLine, Config};
use dcv_splice::confine::confine;
use dcv_splice::passwords::{PasswordFile, PasswordRules, Passwords};
use dcv_splice::stop::Phase;
use dcv_splice::syscalls;
use dcv_splice::tls::{Acceptor, Connector, Pin};
use dcv_splice::worker::{self, Listener, Shared};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing_appender::non_blocking::WorkerGuard;

/// Stopped cleanly.
const STOPPED: u8 = 0;
/// Failed while running.
const FAILED: u8 = 1;
/// Unusable flags; nothing was bound.
const UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let CommandLine { command, flags } = CommandLine::parse();
    let code = match command {
        Some(Command::Check(flags)) => check(flags),
        Some(Command::Pin { agent }) => pin(agent),
        Some(Command::Run(flags)) => run(flags),
        None => run(flags),
    };
    ExitCode::from(code)
}

/// Everything that can be found wrong without binding.
struct Prepared {
    config: Config,
    acceptor: Acceptor,
    connector: Option<Connector>,
    said: Option<PasswordFile>,
    access_log: Option<Box<dyn io::Write + Send>>,
}

fn prepare(flags: dcv_splice::config::Flags) -> Result<Prepared, String> {
    let config = flags.resolve().map_err(|error| error.to_string())?;
    let acceptor = Acceptor::demanding(&config.certificates, &config.client_demands)
        .map_err(|error| error.to_string())?;
    let connector =
        config.agent_trust.as_ref().map(Connector::new).transpose().map_err(|error| error.to_string())?;
    let said = config.passwords.as_ref().map(PasswordRules::read).transpose();
    let said = said.map_err(|error| format!("--htpasswd {error}"))?;
    let access_log = open_log(&config.access_log)?;
    Ok(Prepared { config, acceptor, connector, said, access_log })
}

fn open_log(to: &AccessLogTo) -> Result<Option<Box<dyn io::Write + Send>>, String> {
    Ok(match to {
        AccessLogTo::Off => None,
        AccessLogTo::Stdout => Some(Box::new(io::stdout())),
        AccessLogTo::File(path) => {
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
            Some(Box::new(opened.map_err(|error| format!("--access-log {}: {error}", path.display()))?))
        }
    })
}

impl Prepared {
    /// What the workers share. Starts the threads of the passwords and of the access log, which the guard lets come to
    /// its end.
    fn share(self) -> io::Result<(Shared, Vec<Desk>, Option<WorkerGuard>)> {
        let Self { config, acceptor, connector, said, access_log } = self;
        let passwords = config.passwords.clone().zip(said);
        let passwords = passwords.map(|(rules, said)| Passwords::start(rules, said)).transpose()?;
        let (lines, guard) = access_log.map(tracing_appender::non_blocking).unzip();
        let (balance, desks) = Balance::new(config.workers);
        let admission = Admission::new(config.clients.clone(), config.client_limits);
        let shared = Shared {
            config: Arc::new(config),
            acceptor,
            connector,
            log: AccessLog::new(lines),
            admission,
            passwords,
            balance,
            refusals: Arc::default(),
        };
        Ok((shared, desks, guard))
    }
}

fn check(flags: dcv_splice::config::Flags) -> u8 {
    match prepare(flags) {
        Ok(prepared) => {
            println!("{:#?}", prepared.config);
            STOPPED
        }
        Err(reason) => unusable(&reason),
    }
}

fn pin(agent: SocketAddr) -> u8 {
    match Pin::shown_by(agent) {
        Ok(pin) => {
            println!("{pin}");
            STOPPED
        }
        Err(error) => {
            eprintln!("dcv-splice: {error}");
            FAILED
        }
    }
}

fn unusable(reason: &dyn fmt::Display) -> u8 {
    eprintln!("dcv-splice: {reason}");
    UNUSABLE
}

fn run(flags: dcv_splice::config::Flags) -> u8 {
    let prepared = match prepare(flags) {
        Ok(prepared) => prepared,
        Err(reason) => return unusable(&reason),
    };
    let served = bind(&prepared.config).and_then(|listeners| {
        // Threads that were started before would not be confined, those of the logs among them.
        let read_later = prepared.config.passwords.iter().map(|rules| &*rules.file);
        let confined = confine(prepared.config.agent_port, read_later);
        let (log, _flushed_at_exit) = tracing_appender::non_blocking(io::stderr());
        tracing_subscriber::fmt().with_writer(log).with_target(false).with_ansi(false).init();
        announce(&listeners[0])?;
        tracing::info!("{confined}");
        warn(&prepared);
        let (shared, desks, _lines_flushed_at_exit) = prepared.share()?;
        let served = serve(&shared, desks, listeners);
        tracing::info!("turned away: {}", shared.refusals);
        served
    });
    match served {
        Ok(()) => STOPPED,
        Err(error) => {
            eprintln!("dcv-splice: {error}");
            FAILED
        }
    }
}

/// Where it listens.
fn announce(listeners: &[Listener]) -> io::Result<()> {
    for Listener { socket, secure } in listeners {
        let scheme = if *secure { "https" } else { "http" };
        tracing::info!("listening on {scheme}://{}", socket.local_addr()?);
    }
    Ok(())
}

fn warn(prepared: &Prepared) {
    let config = &prepared.config;
    if config.certificates.is_empty() && !config.listen.is_empty() {
        tracing::warn!(
            "no --cert and --key: a self-signed certificate was made, which browsers will warn of"
        );
    }
    if config.agents.is_empty() {
        tracing::warn!("no --agents: no agent may be dialled, every desktop is answered with 403");
    }
    if rustix::process::geteuid().is_root() {
        tracing::warn!("running as root is not needed: use an account of its own that can read the keys");
    }
    if prepared.said.as_ref().is_some_and(PasswordFile::is_empty) {
        tracing::warn!("--htpasswd names nobody: nobody may ask");
    }
    if config.passwords.is_some() && !config.listen_plain.is_empty() {
        tracing::warn!(
            "--htpasswd at --listen-plain: passwords are read by whoever is on the way, and behind a balancer without \
             --proxy-protocol all clients wait for who guesses"
        );
    }
    if config.client_demands.certificate.is_some() && !config.listen_plain.is_empty() {
        tracing::warn!("--client-ca asks nothing of clients at --listen-plain");
    }
    match raise_open_files() {
        // Each session is one socket of the client and one of the agent.
        Ok(Some(limit)) if limit < 2 * config.front.connections_max as u64 => {
            let max = config.front.connections_max;
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

/// The listeners of each worker.
fn bind(config: &Config) -> io::Result<Vec<Vec<Listener>>> {
    let mut workers: Vec<Vec<Listener>> = (0..config.workers).map(|_| Vec::new()).collect();
    let secure = config.listen.iter().map(|address| (*address, true));
    let plain = config.listen_plain.iter().map(|address| (*address, false));
    for (address, secure) in secure.chain(plain) {
        let listeners = worker::bind(address, secure, config.workers, config.front.stall)
            .map_err(|error| io::Error::new(error.kind(), format!("can't listen on {address}: {error}")))?;
        for (worker, listener) in workers.iter_mut().zip(listeners) {
            worker.push(listener);
        }
    }
    Ok(workers)
}

/// Runs the workers until they have stopped, or one has failed.
fn serve(shared: &Shared, desks: Vec<Desk>, listeners: Vec<Vec<Listener>>) -> io::Result<()> {
    let (phase, phases) = watch::channel(Phase::Running);
    let (reports, ended) = mpsc::unbounded_channel();
    for (desk, listeners) in desks.into_iter().zip(listeners) {
        start_worker(desk, shared, listeners, phases.clone(), reports.clone())?;
    }
    drop(reports);
    syscalls::forbid_rings();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(&phase, ended, shared.config.front.drain))
}

fn start_worker(
    desk: Desk,
    shared: &Shared,
    listeners: Vec<Listener>,
    phases: watch::Receiver<Phase>,
    reports: mpsc::UnboundedSender<io::Result<()>>,
) -> io::Result<()> {
    let shared = shared.clone();
    let report = Report::new(reports);
    std::thread::Builder::new()
        .name(format!("worker-{}", desk.worker))
        .spawn(move || report.on(|| worker::run(shared, desk, listeners, phases)))?;
    Ok(())
}

/// Tells how a worker ended when it has, also by a panic.
struct Report {
    to: mpsc::UnboundedSender<io::Result<()>>,
    result: io::Result<()>,
}

impl Report {
    fn new(to: mpsc::UnboundedSender<io::Result<()>>) -> Self {
        Self { to, result: Err(io::Error::other("a worker panicked")) }
    }

    fn on(mut self, work: impl FnOnce() -> io::Result<()>) {
        self.result = work();
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Nobody listens any more once the program is on its way out.
        let _ = self.to.send(std::mem::replace(&mut self.result, Ok(())));
    }
}

/// Carries signals to the workers. A worker that ends before it was told to ends the program.
async fn supervise(
    phase: &watch::Sender<Phase>,
    mut ended: mpsc::UnboundedReceiver<io::Result<()>>,
    drain: Duration,
) -> io::Result<()> {
    let mut signals = StopSignals::new()?;
    tokio::select! {
        () = signals.next() => {}
        report = ended.recv() => return report.unwrap_or(Ok(())),
    }
    tracing::info!("stopping: sessions may go on for {} s", drain.as_secs());
    phase.send_replace(Phase::Draining);
    tokio::select! {
        done = all_ended(&mut ended) => return done,
        () = signals.next() => tracing::info!("stopping at once"),
        () = tokio::time::sleep(drain) => tracing::info!("the drain time is over"),
    }
    phase.send_replace(Phase::Ending);
    tokio::select! {
        done = all_ended(&mut ended) => done,
        () = signals.next() => Ok(()),
    }
}

/// The first failure, once every worker has ended.
async fn all_ended(ended: &mut mpsc::UnboundedReceiver<io::Result<()>>) -> io::Result<()> {
    let mut result = Ok(());
    while let Some(report) = ended.recv().await {
        result = result.and(report);
    }
    result
}

/// SIGTERM and SIGINT. The signals that other programs send to reload or to rotate logs end nothing.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    others: [Signal; 3],
}

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            others: [
                signal(SignalKind::hangup())?,
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
            ],
        })
    }

    async fn next(&mut self) {
        let [hangup, user1, user2] = &mut self.others;
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = hangup.recv() => {}
                _ = user1.recv() => {}
                _ = user2.recv() => {}
            }
            tracing::warn!("this version can neither reload nor upgrade: the signal changes nothing");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_ends_the_program_with_an_error() {
        let (reports, ended) = mpsc::unbounded_channel();
        let report = Report::new(reports.clone());
        let worker = std::thread::spawn(move || report.on(|| panic!("on purpose")));
        assert!(worker.join().is_err());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (phase, _) = watch::channel(Phase::Running);
        let error =
            runtime.block_on(supervise(&phase, ended, Duration::from_secs(1))).expect_err("no clean end");
        assert_eq!(error.to_string(), "a worker panicked");
    }
}
