//! The program: reads the flags, binds, starts the workers, and carries the signals to them.

use std::fmt;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use dcv_splice::account::AccessLog;
use dcv_splice::balance::{Balance, Desk};
use dcv_splice::config::{AccessLogTo, Command, CommandLine, Config};
use dcv_splice::stop::Phase;
use dcv_splice::tls::{Acceptor, Connector};
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
    let (log, _flushed_at_exit) = tracing_appender::non_blocking(io::stderr());
    tracing_subscriber::fmt().with_writer(log).with_target(false).with_ansi(false).init();
    let code = match command {
        Some(Command::Check(flags)) => check(flags),
        Some(Command::Run(flags)) => run(flags),
        None => run(flags),
    };
    ExitCode::from(code)
}

type Ready = (Shared, Vec<Desk>, WorkerGuard);

/// Everything that can be found wrong without binding.
fn prepare(flags: dcv_splice::config::Flags) -> Result<Ready, String> {
    let config = flags.resolve().map_err(|error| error.to_string())?;
    let acceptor = Acceptor::new(&config.certificates).map_err(|error| error.to_string())?;
    let connector =
        config.agent_trust.as_ref().map(Connector::new).transpose().map_err(|error| error.to_string())?;
    let (log, guard) = open_log(&config.access_log)?;
    let (balance, desks) = Balance::new(config.workers);
    let shared =
        Shared { config: Arc::new(config), acceptor, connector, log, balance, forbidden: Arc::default() };
    Ok((shared, desks, guard))
}

fn open_log(to: &AccessLogTo) -> Result<(AccessLog, WorkerGuard), String> {
    let writer: Box<dyn io::Write + Send> = match to {
        AccessLogTo::Off => Box::new(io::sink()),
        AccessLogTo::Stdout => Box::new(io::stdout()),
        AccessLogTo::File(path) => {
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
            Box::new(opened.map_err(|error| format!("--access-log {}: {error}", path.display()))?)
        }
    };
    let (lines, guard) = tracing_appender::non_blocking(writer);
    let lines = (*to != AccessLogTo::Off).then_some(lines);
    Ok((AccessLog::new(lines), guard))
}

fn check(flags: dcv_splice::config::Flags) -> u8 {
    match prepare(flags) {
        Ok((shared, ..)) => {
            println!("{:#?}", shared.config);
            STOPPED
        }
        Err(reason) => unusable(&reason),
    }
}

fn unusable(reason: &dyn fmt::Display) -> u8 {
    eprintln!("dcv-splice: {reason}");
    UNUSABLE
}

fn run(flags: dcv_splice::config::Flags) -> u8 {
    let (shared, desks, _flushed_at_exit) = match prepare(flags) {
        Ok(ready) => ready,
        Err(reason) => return unusable(&reason),
    };
    warn(&shared.config);
    let served = bind(&shared.config).and_then(|listeners| serve(&shared, desks, listeners));
    match served {
        Ok(()) => STOPPED,
        Err(error) => {
            tracing::error!("{error}");
            FAILED
        }
    }
}

fn warn(config: &Config) {
    if config.certificates.is_empty() && !config.listen.is_empty() {
        tracing::warn!(
            "no --cert and --key: a self-signed certificate was made, which browsers will warn of"
        );
    }
    if config.agents.is_empty() {
        tracing::warn!("no --agents: no agent may be dialled, every desktop is answered with 403");
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
        let scheme = if secure { "https" } else { "http" };
        tracing::info!("listening on {scheme}://{}", listeners[0].socket.local_addr()?);
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
