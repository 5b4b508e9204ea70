//! The supervisor: carries signals and an operator's wishes to the workers and the helper, changes the settings of new
//! connections, and sees to an orderly end. It serves no connection itself; a worker that ends before its time ends all.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::{AccessLogTo, Settings};
use crate::control::admin::{self, Sources};
use crate::control::helper::{Answer, HelperClient, MessageKind, Payload, STATS, TRUNCATED};
use crate::control::socket::{ControlCommand, ControlRequest, HEARD_MAX, Outcome};
use crate::control::validation::{Prepared, open_log};
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::ProcessStatus;
use crate::observe::stats::KernelStats;
use crate::os::files::{Files, PassedFiles};
use crate::os::log::{Finish, Log, Target};
use crate::os::seccomp;
use crate::os::systemd;
use crate::runtime::drain::Phase;
use crate::transport::own_addresses::Own;
use crate::worker::context::Shared;
use crate::worker::listeners::{self, Listener};
use crate::worker::load_balancer::WorkerInbox;
use crate::worker::thread::{self, WorkerCommand};

/// Questions that may wait for the helper, which a slow disk may keep; further ones are refused. Fewer than commands that
/// are heard at a time, so that `status` is always answered.
const QUESTIONS_MAX: usize = HEARD_MAX - 2;
/// What it does before it stops.
const SERVING: &str = "serving";

/// How it is with a worker.
#[derive(Debug)]
enum Report {
    /// It serves.
    Started,
    /// It has ended.
    Ended(io::Result<()>),
}

/// What runs, and what it runs by.
pub struct Supervisor {
    settings: Settings,
    helper: HelperClient,
    /// The helper has ended.
    alone: bool,
    /// Who waits for an answer of the helper, and to which question, in their order.
    waiting: VecDeque<(MessageKind, Option<oneshot::Sender<Outcome>>)>,
    /// Who waits for the kernel's stats, while the one question for them is under way.
    lookers: Option<Vec<oneshot::Sender<Outcome>>>,
    /// Another process is about to serve.
    upgrading: bool,
    state: &'static str,
    /// The kernel counts too.
    counting: bool,
    /// What new connections go by.
    shared: Shared,
    /// The access log.
    log: Finish,
    /// The program's own log.
    own_log: Log,
    orders: watch::Sender<WorkerCommand>,
    reports: mpsc::UnboundedReceiver<Report>,
    /// Listening sockets, for the next process.
    sockets: Vec<TcpListener>,
    since: Instant,
    reloads: u64,
    reload_failures: u64,
    /// What shows stats, until another process does.
    admin: Option<JoinHandle<()>>,
}

/// Why it stops.
enum Stop {
    Signal,
    Upgraded(String),
}

impl Supervisor {
    /// Starts the workers, and waits until every one of them could serve.
    pub async fn start(
        settings: Settings,
        helper: HelperClient,
        prepared: Prepared,
        listeners: Vec<Listener>,
        own: &Own,
        counting: bool,
        own_log: Log,
    ) -> io::Result<Self> {
        let log = Finish(Log::to(Target::Off)?);
        let sockets = listeners.iter().map(Listener::try_clone).collect::<io::Result<_>>()?;
        let (shared, desks, lines) = prepared.share(&AccessLog::to(log.0.clone()))?;
        log.0.change(lines);
        let (orders, told) =
            watch::channel(WorkerCommand { open: false, phase: Phase::Running, shared: shared.clone() });
        let reports = start_workers(&told, desks, listeners, own)?;
        seccomp::forbid_rings();
        let (waiting, since) = (VecDeque::new(), Instant::now());
        let mut supervisor = Self {
            settings,
            helper,
            alone: false,
            waiting,
            lookers: None,
            upgrading: false,
            state: SERVING,
            counting,
            shared,
            log,
            own_log,
            orders,
            reports,
            sockets,
            since,
            reloads: 0,
            reload_failures: 0,
            admin: None,
        };
        supervisor.started().await?;
        supervisor.helper.ask(MessageKind::Applied).await?;
        Ok(supervisor)
    }

    /// Shows stats there.
    pub fn show(&mut self, listener: TcpListener, sources: Sources) -> io::Result<()> {
        self.sockets.push(listener.try_clone()?);
        self.admin = Some(tokio::spawn(admin::serve(listener, sources)));
        Ok(())
    }

    async fn started(&mut self) -> io::Result<()> {
        for _ in 0..self.shared.config.workers {
            match self.reports.recv().await {
                Some(Report::Started) => {}
                report => return ended(report).and(Err(io::Error::other("a worker has ended"))),
            }
        }
        Ok(())
    }

    /// Lets the workers accept connections: this process serves.
    pub async fn open(&mut self) {
        self.orders.send_modify(|orders| orders.open = true);
        if let Err(error) = self.helper.ask(MessageKind::Serving).await {
            self.abandon(&error);
        }
    }

    /// Lets operators find this process by its control socket.
    pub async fn announce(&mut self) -> io::Result<()> {
        self.settle(MessageKind::Announce).await
    }

    /// Lets them find the process before again.
    pub async fn withdraw(&mut self) -> io::Result<()> {
        self.settle(MessageKind::Withdraw).await
    }

    async fn settle(&mut self, kind: MessageKind) -> io::Result<()> {
        if self.shared.config.control.is_none() {
            return Ok(());
        }
        self.helper.ask(kind).await?;
        self.waiting.push_back((kind, None));
        while !self.waiting.is_empty() {
            let answer = self.helper.next().await;
            self.take(answer).await;
        }
        Ok(())
    }

    /// Supervises until everything has ended.
    pub async fn run(
        self,
        mut signals: Signals,
        mut wishes: mpsc::Receiver<ControlRequest>,
    ) -> io::Result<()> {
        let rejections = self.shared.rejections.clone();
        let ended = self.serve(&mut signals, &mut wishes).await;
        tracing::info!("rejected connections: {rejections}");
        ended
    }

    async fn serve(
        mut self,
        signals: &mut Signals,
        wishes: &mut mpsc::Receiver<ControlRequest>,
    ) -> io::Result<()> {
        let mut watchdog = systemd::Watchdog::new();
        let stop = loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    None => break Stop::Signal,
                    Some(wish) => self.grant(wish, None).await,
                },
                Some((wish, answer)) = wishes.recv() => self.grant(wish, Some(answer)).await,
                answer = self.helper.next(), if !self.alone => {
                    if let Some(stop) = self.take(answer).await {
                        break stop;
                    }
                }
                report = self.reports.recv() => return ended(report),
                () = watchdog.due() => watchdog.look(&self.shared.balance.beats()),
            }
        };
        self.stop(stop, signals, wishes).await
    }

    /// Does what was wished, or asks the helper to.
    async fn grant(&mut self, wish: ControlCommand, answer: Option<oneshot::Sender<Outcome>>) {
        let asked = match wish {
            ControlCommand::Status | ControlCommand::Stats | ControlCommand::OwnStats => {
                return self.look(wish, answer).await;
            }
            _ if self.alone => Err(io::Error::other("the helper has ended: only a restart helps")),
            _ if self.waiting.len() >= QUESTIONS_MAX => {
                Err(io::Error::other("the helper has not answered what it was asked before: is a disk slow?"))
            }
            ControlCommand::Reload | ControlCommand::Upgrade if self.upgrading => {
                Err(io::Error::other("an upgrade is under way: ask the process that serves then"))
            }
            ControlCommand::Reload => {
                self.helper.ask(MessageKind::Reload).await.map(|()| MessageKind::Reload)
            }
            ControlCommand::Reopen => {
                self.helper.ask(MessageKind::Reopen).await.map(|()| MessageKind::Reopen)
            }
            ControlCommand::Upgrade => {
                let sockets = self.sockets.iter().map(AsFd::as_fd);
                self.helper.ask_upgrade(sockets).await.map(|()| MessageKind::Upgrade)
            }
        };
        match asked {
            Ok(kind) => {
                if wish == ControlCommand::Reload {
                    systemd::reloading();
                }
                self.upgrading |= wish == ControlCommand::Upgrade;
                self.waiting.push_back((kind, answer));
            }
            Err(error) => {
                tracing::error!("{wish:?}: {error}");
                tell(answer, Err(error.to_string()));
            }
        }
    }

    /// Takes an answer of the helper; an upgrade that came off is a reason to stop.
    async fn take(&mut self, answer: io::Result<Answer>) -> Option<Stop> {
        let Answer { kind, outcome } = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.abandon(&error);
                return None;
            }
        };
        if kind == MessageKind::Stats {
            let stats = self.stats(outcome.ok().and_then(kernel_stats));
            self.lookers.take().into_iter().flatten().for_each(|looker| tell(Some(looker), stats.clone()));
            return None;
        }
        if kind == MessageKind::Unfit {
            if let Ok(Payload::Text(reason)) = outcome {
                tracing::info!(
                    "files have changed and do not fit together yet, they are waited for: {reason}"
                );
            }
            return None;
        }
        // Nobody asks for changes.
        let place = self.waiting.iter().position(|(asked, _)| *asked == kind);
        let answer = place.and_then(|place| self.waiting.remove(place)).and_then(|(_, answer)| answer);
        let outcome = outcome.and_then(|found| match (kind, found) {
            (MessageKind::Reload | MessageKind::Changed, Payload::Files(files)) => self.replace(&files),
            (MessageKind::Reopen, Payload::Files(files)) => self.reopen(&files),
            (_, Payload::Text(text)) => Ok(text),
            (_, Payload::Files(_)) => Err("files that nobody asked for".to_owned()),
        });
        // What has not arrived will come again; of a configuration the helper has to know whether it is gone by.
        let follow_up = match (kind, &outcome) {
            (MessageKind::Changed, Err(reason)) if reason == TRUNCATED => {
                self.helper.ask(MessageKind::Changed).await
            }
            (MessageKind::Reload, Ok(_)) => self.helper.ask(MessageKind::Applied).await,
            (MessageKind::Reload, Err(_)) => self.helper.ask(MessageKind::Rejected).await,
            _ => Ok(()),
        };
        if let Err(error) = follow_up {
            self.abandon(&error);
        }
        self.upgrading &= kind != MessageKind::Upgrade;
        if matches!(kind, MessageKind::Reload | MessageKind::Changed) {
            *(if outcome.is_ok() { &mut self.reloads } else { &mut self.reload_failures }) += 1;
        }
        let (done, failed) = words(kind);
        match &outcome {
            Ok(_) => tracing::info!("{done}"),
            Err(reason) => tracing::error!("{failed}: {}", reason.replace('\n', "; ")),
        }
        if kind == MessageKind::Reload && self.state == SERVING {
            systemd::ready(outcome.as_ref().map_or(failed, |_| done));
        }
        let stop = match (&outcome, kind) {
            (Ok(process), MessageKind::Upgrade) => Some(Stop::Upgraded(process.clone())),
            _ => None,
        };
        tell(answer, outcome.map(|_| done.to_owned()));
        stop
    }

    /// Without the helper desktops are served on, and that is all.
    fn abandon(&mut self, error: &io::Error) {
        tracing::error!("{error}: nothing can be reloaded any more, and there is no upgrade");
        self.alone = true;
        self.waiting.clear();
        self.lookers = None;
    }

    fn replace(&mut self, files: &PassedFiles) -> Outcome {
        let prepared = Prepared::new(&self.settings, files)?;
        let log = AccessLog::to(self.log.0.clone());
        let (shared, lines) = prepared.replace(&self.shared, &log).map_err(|error| error.to_string())?;
        self.log.0.change(lines);
        self.shared = shared.clone();
        self.orders.send_modify(|orders| orders.shared = shared);
        Ok(String::new())
    }

    fn reopen(&mut self, files: &PassedFiles) -> Outcome {
        let to = &self.shared.config.access_log;
        if matches!(to, AccessLogTo::File(_)) {
            self.log.0.change(open_log(to, files).map_err(|(_, error)| error.to_string())?);
        }
        Ok(String::new())
    }

    /// Tells how it stands, people or programs; the kernel's account is the helper's to read.
    async fn look(&mut self, wish: ControlCommand, answer: Option<oneshot::Sender<Outcome>>) {
        match (wish, answer) {
            (ControlCommand::Stats, Some(looker)) if self.ask_stats().await => {
                let lookers = self.lookers.get_or_insert_default();
                // Some of a helper that does not answer have gone.
                lookers.retain(|looker| !looker.is_closed());
                lookers.push(looker);
            }
            (ControlCommand::Status, answer) => tell(answer, Ok(self.status_line())),
            (_, answer) => tell(answer, self.stats(None)),
        }
    }

    /// Whether the kernel's stats are on their way.
    async fn ask_stats(&self) -> bool {
        let can_ask = self.counting && !self.alone;
        can_ask && (self.lookers.is_some() || self.helper.ask(MessageKind::Stats).await.is_ok())
    }

    fn stats(&self, kernel: Option<KernelStats>) -> Outcome {
        let status = ProcessStatus { kernel, ..self.status() };
        serde_json::to_string(&status).map_err(|error| error.to_string())
    }

    fn status_line(&self) -> String {
        let ProcessStatus { pid, version, state, seconds, connections, .. } = self.status();
        let alone = if self.alone { ", without its helper: restart it to reload" } else { "" };
        format!(
            "process {pid}, version {version}, {state}, for {seconds} s, connections {connections}{alone}"
        )
    }

    fn status(&self) -> ProcessStatus {
        let Shared { balance, rejections, published, config, .. } = &self.shared;
        ProcessStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.state.to_owned(),
            seconds: self.since.elapsed().as_secs(),
            connections: balance.connections() as u64,
            workers: config.workers as u64,
            reloads: self.reloads,
            reload_failures: self.reload_failures,
            log_lines_dropped: self.own_log.dropped(),
            access_log_lines_dropped: self.log.0.dropped(),
            rejected: rejections.counts(),
            stats: published.sum(),
            kernel: None,
        }
    }

    /// Lets what runs come to its end, for as long as it may take.
    async fn stop(
        mut self,
        why: Stop,
        signals: &mut Signals,
        wishes: &mut mpsc::Receiver<ControlRequest>,
    ) -> io::Result<()> {
        self.sockets.clear();
        if self.upgrading
            && let Err(error) = self.helper.stop_asking()
        {
            tracing::warn!("the upgrade goes on: {error}");
        }
        let mut end = End::begin(&why, &self.shared);
        self.state = end.state();
        if let Some(admin) = self.admin.take_if(|_| end.is_upgrade) {
            admin.abort();
        }
        self.enter(Phase::Draining);
        let mut left = self.shared.config.workers;
        let mut result = Ok(());
        while left > 0 {
            tokio::select! {
                report = self.reports.recv() => {
                    result = result.and(ended(report));
                    left -= 1;
                }
                signal = signals.next() => match signal {
                    None if end.phase == Phase::EndReason => return result,
                    None => {
                        end.hurry();
                        self.state = end.state();
                    }
                    Some(ControlCommand::Reopen) => self.grant(ControlCommand::Reopen, None).await,
                    Some(wish) => tracing::warn!("{wish:?}: it is stopping"),
                },
                Some((wish, answer)) = wishes.recv() => match wish {
                    ControlCommand::Status | ControlCommand::Stats | ControlCommand::OwnStats => self.look(wish, Some(answer)).await,
                    ControlCommand::Reopen => self.grant(wish, Some(answer)).await,
                    ControlCommand::Reload | ControlCommand::Upgrade => tell(Some(answer), Err("it is stopping".to_owned())),
                },
                answer = self.helper.next(), if !self.alone => drop(self.take(answer).await),
                () = tokio::time::sleep_until(end.at.into()), if end.phase == Phase::Draining => {
                    tracing::info!("the drain time is over");
                    end.phase = Phase::EndReason;
                }
            }
            self.enter(end.phase);
        }
        result
    }

    fn enter(&self, phase: Phase) {
        self.orders.send_if_modified(|orders| std::mem::replace(&mut orders.phase, phase) != phase);
    }
}

fn kernel_stats(found: Payload) -> Option<KernelStats> {
    let Payload::Files(files) = found else { return None };
    serde_json::from_slice(&files.read(STATS.as_ref()).ok()?).ok()
}

fn start_workers(
    orders: &watch::Receiver<WorkerCommand>,
    desks: Vec<WorkerInbox>,
    listeners: Vec<Listener>,
    own: &Own,
) -> io::Result<mpsc::UnboundedReceiver<Report>> {
    let shares = listeners::deal(listeners, desks.len());
    let (reports, reported) = mpsc::unbounded_channel();
    for (desk, share) in desks.into_iter().zip(shares) {
        let (number, orders, own, reports) = (desk.worker, orders.clone(), own.clone(), reports.clone());
        let start = reports.clone();
        let work = move || thread::run(desk, share, orders, own, move || drop(start.send(Report::Started)));
        let telling = Reporter::new(reports);
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || telling.on(work))?;
    }
    Ok(reported)
}

/// Tells how a worker ended when it has, also by a panic.
struct Reporter {
    to: mpsc::UnboundedSender<Report>,
    result: io::Result<()>,
}

impl Reporter {
    fn new(to: mpsc::UnboundedSender<Report>) -> Self {
        Self { to, result: Err(io::Error::other("a worker panicked")) }
    }

    fn on(mut self, work: impl FnOnce() -> io::Result<()>) {
        self.result = work();
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        // Nobody listens any more once the program is on its way out.
        let _ = self.to.send(Report::Ended(std::mem::replace(&mut self.result, Ok(()))));
    }
}

/// How far the end has come.
struct End {
    phase: Phase,
    at: Instant,
    /// Whether another process serves.
    is_upgrade: bool,
    drain: Duration,
}

impl End {
    fn begin(why: &Stop, shared: &Shared) -> Self {
        let limits = &shared.config.limits;
        let (limit, is_upgrade) = match why {
            Stop::Signal => (limits.drain_timeout, false),
            Stop::Upgraded(_) => (limits.upgrade_drain_timeout, true),
        };
        match why {
            Stop::Signal => systemd::stopping("sessions come to their end"),
            Stop::Upgraded(process) => tracing::info!("process {process} serves now"),
        }
        let end = Self {
            phase: Phase::Draining,
            at: Instant::now() + limit,
            is_upgrade,
            drain: limits.drain_timeout,
        };
        tracing::info!("stopping: sessions may go on for {}", humantime::format_duration(limit));
        end
    }

    /// A stop signal while it is stopping.
    fn hurry(&mut self) {
        if self.is_upgrade {
            tracing::info!("stopping: sessions may go on for {}", humantime::format_duration(self.drain));
            self.is_upgrade = false;
            self.at = self.at.min(Instant::now() + self.drain);
        } else {
            tracing::info!("stopping at once");
            self.phase = Phase::EndReason;
        }
    }

    fn state(&self) -> &'static str {
        if self.is_upgrade { "draining" } else { "stopping" }
    }
}

/// What is said of an answer: where something came of it, and where nothing did.
fn words(kind: MessageKind) -> (&'static str, &'static str) {
    match kind {
        MessageKind::Reload => ("reloaded: new connections go by it", "not reloaded, nothing has changed"),
        MessageKind::Changed => (
            "files have changed and were read again",
            "files have changed and can't be used, the old ones still hold",
        ),
        MessageKind::Reopen => ("the access log is open again", "the access log can't be opened again"),
        MessageKind::Announce => ("reached by --control", "not reached by --control"),
        MessageKind::Withdraw => {
            ("the process before is reached by --control", "no process is reached by --control")
        }
        MessageKind::Account | MessageKind::Stats => ("the kernel counts", "the kernel does not count"),
        MessageKind::Applied
        | MessageKind::Rejected
        | MessageKind::Unfit
        | MessageKind::Serving
        | MessageKind::Sockets
        | MessageKind::Upgrade => {
            ("upgraded: the new process serves", "not upgraded, this process serves on")
        }
    }
}

/// Whoever asked may have gone.
fn tell(answer: Option<oneshot::Sender<Outcome>>, outcome: Outcome) {
    if let Some(answer) = answer {
        let _ = answer.send(outcome);
    }
}

fn ended(report: Option<Report>) -> io::Result<()> {
    match report {
        Some(Report::Ended(result)) => result,
        Some(Report::Started) | None => Ok(()),
    }
}

/// SIGTERM and SIGINT, which stop, and the signals that wish something. Those that come early wait.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    /// From now on no signal ends the program by itself.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Ready once it is to stop; other wishes are left for later.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The next wish; none where it is to stop.
    async fn next(&mut self) -> Option<ControlCommand> {
        tokio::select! {
            _ = self.terminate.recv() => None,
            _ = self.interrupt.recv() => None,
            _ = self.hangup.recv() => Some(ControlCommand::Reload),
            _ = self.user1.recv() => Some(ControlCommand::Reopen),
            _ = self.user2.recv() => Some(ControlCommand::Upgrade),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_is_told_of() {
        let (reports, mut reported) = mpsc::unbounded_channel();
        let panicking = Reporter::new(reports);
        assert!(std::thread::spawn(move || panicking.on(|| panic!("on purpose"))).join().is_err());
        let error = ended(reported.blocking_recv()).expect_err("no clean end");
        assert_eq!(error.to_string(), "a worker panicked");
    }

    #[test]
    fn a_stop_signal_shortens_the_drain_of_an_upgrade_and_the_next_one_ends_it() {
        let mut end = End {
            phase: Phase::Draining,
            at: Instant::now() + Duration::from_hours(24),
            is_upgrade: true,
            drain: Duration::from_secs(30),
        };
        end.hurry();
        assert_eq!((end.phase, end.state()), (Phase::Draining, "stopping"));
        assert!(end.at <= Instant::now() + Duration::from_secs(30));
        end.hurry();
        assert_eq!(end.phase, Phase::EndReason);
    }
}
