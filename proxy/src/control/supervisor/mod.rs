//! The supervisor: carries signals and an operator's commands to the workers and the helper, changes the settings of new
//! connections, and sees to an orderly end. It never serves a connection itself; a worker that ends before its time ends all.
//! Uses all folders.

mod status;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::agents::directory::{AgentState, Directory};
use crate::agents::health::HealthMap;
use crate::agents::known::KnownAgents;
use crate::agents::session_resolver::{ResolveQuestion, SessionResolver};
use crate::config::{AccessLogTo, SessionFilter, Settings};
use crate::control::admin::{self, Sources};
use crate::control::agent_monitor::{AgentMonitor, MonitorEvent, resolution};
use crate::control::agent_sources::AgentSources;
use crate::control::agent_states::AgentStates;
use crate::control::expiry_watch::ExpiryWatch;
use crate::control::fleet;
use crate::control::helper::{Answer, HelperClient, LIST, MessageKind, Payload, TRUNCATED};
use crate::control::logging::{LogFilter, Logging};
use crate::control::network_helper::FoundSession;
use crate::control::shutdown::{Shutdown, StopReason};
use crate::control::signals::Signals;
use crate::control::socket::{CONCURRENT_MAX, ControlCommand, ControlRequest, Outcome};
use crate::control::validation::{Prepared, open_log};
use crate::control::workers::{WorkerReport, ended, start_workers};
use crate::observe::access_log::EndReason;
use crate::observe::readiness::Readiness;
use crate::os::files::{Files, PassedFiles};
use crate::os::log::Log;
use crate::os::process_usage::UsageReader;
use crate::os::seccomp;
use crate::os::systemd;
use crate::runtime::drain::Phase;
use crate::transport::own_addresses::OwnAddresses;
use crate::worker::context::SharedState;
use crate::worker::listeners::Listener;
use crate::worker::thread::WorkerCommand;

/// Questions that may wait for the helper, which a slow disk may keep; further ones are refused. Fewer than commands that
/// are heard at a time, so that `status` is always answered.
const REQUESTS_MAX: usize = CONCURRENT_MAX - 2;
/// How long sources of agents may take for their first list before it is served without it.
const FIRST_LISTS: Duration = Duration::from_secs(10);
/// How often it is looked for sessions whose user or client is no longer let in, and for certificates that expire.
const LOOK: Duration = Duration::from_secs(5);
/// What is told to who asks for a session then.
const STOPPING: &str = "the process is stopping: try again";
/// The state before it stops.
const SERVING: &str = "serving";

/// Who counts beside the workers.
pub(super) struct Accounts {
    /// The kernel does.
    pub(super) kernel: bool,
    /// What the process uses, where that can be read.
    pub(super) usage: Option<UsageReader>,
}

/// The workers, and their configuration.
pub(super) struct Supervisor {
    settings: Settings,
    helper: HelperClient,
    /// The helper has ended.
    alone: bool,
    /// The commands that wait for an answer of the helper, in their order.
    waiting: VecDeque<(MessageKind, Option<oneshot::Sender<Outcome>>)>,
    /// The commands that wait for the kernel's statistics, while one question for them is under way.
    stats_waiters: Option<Vec<oneshot::Sender<Outcome>>>,
    /// Another process is about to serve.
    upgrading: bool,
    state: &'static str,
    accounts: Accounts,
    certificates: ExpiryWatch,
    /// The state for new connections.
    shared: SharedState,
    /// Where agents are listed.
    sources: AgentSources,
    /// The agents as they are listed there.
    listed: Directory,
    /// What commands have set of them.
    states: AgentStates,
    /// Who looks whether they live.
    monitor: AgentMonitor,
    /// Where users ask for sessions whose agent is not known.
    questions: mpsc::Receiver<ResolveQuestion>,
    /// The agents as they were known before.
    retired: RefCell<KnownAgents>,
    /// The access log.
    log: Log,
    /// The program's own log.
    own_log: Log,
    log_filter: LogFilter,
    commands: watch::Sender<WorkerCommand>,
    reports: mpsc::UnboundedReceiver<WorkerReport>,
    /// Listening sockets, for the next process.
    sockets: Vec<TcpListener>,
    since: Instant,
    reloads: u64,
    reload_failures: u64,
    has_reload_failed: bool,
    /// The admin page, until another process has it.
    admin: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Starts the workers, and waits until every one of them could serve.
    pub(super) async fn start(
        settings: Settings,
        helper: HelperClient,
        prepared: Prepared,
        listeners: Vec<Listener>,
        own: &OwnAddresses,
        accounts: Accounts,
        logging: &Logging,
    ) -> io::Result<Self> {
        let log = logging.access();
        let certificates = ExpiryWatch::new(prepared.expiries.clone());
        let sockets = listeners.iter().map(Listener::try_clone).collect::<io::Result<_>>()?;
        let (monitor, marks) = AgentMonitor::new();
        let (resolver, questions) = SessionResolver::new();
        let (shared, inboxes, lines) = prepared.share(&log, marks, resolver)?;
        log.change(lines);
        let (commands, told) =
            watch::channel(WorkerCommand { open: false, phase: Phase::Running, shared: shared.clone() });
        let reports = start_workers(&told, inboxes, listeners, own)?;
        seccomp::forbid_rings();
        let (waiting, since) = (VecDeque::new(), Instant::now());
        let mut supervisor = Self {
            settings,
            helper,
            alone: false,
            waiting,
            stats_waiters: None,
            upgrading: false,
            state: SERVING,
            accounts,
            certificates,
            listed: shared.agents.directory.clone(),
            sources: AgentSources::default(),
            states: AgentStates::default(),
            monitor,
            questions,
            retired: RefCell::default(),
            shared,
            log,
            own_log: logging.lines(),
            log_filter: logging.filter(),
            commands,
            reports,
            sockets,
            since,
            reloads: 0,
            reload_failures: 0,
            has_reload_failed: false,
            admin: None,
        };
        let KnownAgents { directory, connectors, .. } = supervisor.shared.agents.clone();
        supervisor.sources.set(&supervisor.shared.config, directory, connectors);
        supervisor.started().await?;
        supervisor.helper.ask(MessageKind::Applied).await?;
        Ok(supervisor)
    }

    /// Shows stats there.
    pub(super) fn show(&mut self, listener: TcpListener, sources: Sources) -> io::Result<()> {
        self.sockets.push(listener.try_clone()?);
        self.admin = Some(tokio::spawn(admin::serve(listener, sources)));
        Ok(())
    }

    async fn started(&mut self) -> io::Result<()> {
        for _ in 0..self.shared.config.workers {
            match self.reports.recv().await {
                Some(WorkerReport::Started) => {}
                report => return ended(report).and(Err(io::Error::other("a worker has ended"))),
            }
        }
        Ok(())
    }

    /// Has agents be in the states that commands have set before.
    pub(super) fn restore(&mut self, states: AgentStates) {
        self.states = states;
        self.refresh_agents();
        self.publish();
    }

    /// Knows who has sessions in the processes that drain, which are reached there.
    pub(super) async fn follow(&self, former: &[PathBuf]) {
        fleet::follow_former(former.to_vec(), self.shared.process.sessions.clone()).await;
    }

    /// The agents that are listed, as commands have set them; they are probed, or not.
    fn refresh_agents(&mut self) {
        let (listed, connectors) = self.sources.all();
        self.shared.agents.directory = self.states.apply(&listed);
        self.shared.agents.connectors = connectors;
        self.listed = listed;
        self.monitor.set(&self.shared.config, &self.shared.agents, self.shared.resolver_ca.as_deref());
        if self.shared.config.probe.is_none() {
            self.shared.agents.health = HealthMap::default();
        }
    }

    /// Does what the monitor of agents has come up with.
    async fn take_event(&mut self, event: MonitorEvent) {
        match event {
            // Who would start one has gone.
            MonitorEvent::Wanted if self.alone => self.monitor.asked(),
            MonitorEvent::Wanted => {
                let asked = self.helper.ask(MessageKind::NetworkHelper).await;
                self.monitor.asked();
                match asked {
                    Ok(()) => self.waiting.push_back((MessageKind::NetworkHelper, None)),
                    Err(error) => self.abandon(&error),
                }
            }
            MonitorEvent::Changed(changes) => {
                let changes = fleet::accepted(changes, &self.shared);
                let known = &mut self.shared.agents;
                fleet::log_health(&changes, known);
                known.health = known.health.with(changes);
                self.publish();
            }
            MonitorEvent::Named(name, found) => {
                self.sources.take_name(&name, found, &self.shared.config);
                self.refresh_agents();
                self.publish();
            }
            MonitorEvent::Settled => {}
            MonitorEvent::Resolved(session, client, found) => self.take_resolution(&session, client, found),
            MonitorEvent::Lost(error) => {
                self.shared.process.session_resolver.fail_all("the network helper has ended");
                let reason = &*error.to_string();
                tracing::error!(
                    reason,
                    "network helper ended: all agents count as up until it is there again"
                );
                self.shared.agents.health = HealthMap::default();
                self.publish();
            }
            MonitorEvent::Failed(agent, failure) => {
                self.monitor.mark(agent, failure, &self.shared.agents.connectors);
            }
        }
    }

    fn resolve(&self, question: ResolveQuestion) {
        let (session, client) = (question.session.clone(), question.client);
        if let Err(reason) = self.monitor.resolve(question) {
            self.take_resolution(&session, client, Err(reason));
        }
    }

    fn take_resolution(&self, session: &str, client: IpAddr, found: Result<Option<FoundSession>, String>) {
        let resolution = resolution(session, found, &self.shared.config);
        self.shared.process.session_resolver.answer(session, client, &resolution, Instant::now());
    }

    /// Workers go by it from their next round on. What they knew of agents before is kept until the next time: it is for this thread
    /// to give its memory back, and not for one that serves.
    fn publish(&self) {
        let shared = self.shared.clone();
        let before = self.commands.borrow().shared.agents.clone();
        self.commands.send_modify(|commands| commands.shared = shared);
        self.retired.replace(before);
    }

    /// Sets it at once; it is not saved.
    fn set_state(&mut self, agent: &str, state: AgentState) -> Outcome {
        let name = self.states.set(agent, state, &self.listed)?;
        self.refresh_agents();
        self.publish();
        tracing::info!(agent = name, %state, "agent state set");
        Ok(format!("{name} is set to {state} until this process ends (without --state-file)"))
    }

    /// Whether new users are welcome.
    pub(super) fn readiness(&self) -> Readiness {
        self.shared.process.readiness.clone()
    }

    /// Has balancers that look at `/health?ready` send new users here, or not.
    fn set_ready(&self, is_ready: bool) -> String {
        self.shared.process.readiness.set(is_ready);
        let says = if is_ready { "the proxy is ready" } else { "the proxy drains: /health?ready is 503" };
        tracing::info!("{says}");
        says.to_owned()
    }

    /// Has sessions end, and tells how many.
    fn end_sessions(&self, filter: &str) -> Outcome {
        let filter: SessionFilter = serde_json::from_str(filter).map_err(|error| error.to_string())?;
        let chosen = fleet::chosen(&self.shared, &filter);
        for number in &chosen {
            self.shared.process.sessions.end(*number, EndReason::EndedByOperator);
        }
        tracing::info!(sessions = chosen.len(), "sessions ended by an operator");
        self.publish();
        Ok(chosen.len().to_string())
    }

    /// Has those end whose user or client is no longer let in, where that is asked for. Tells whether there are any.
    fn end_revoked(&self) -> bool {
        let SharedState { config, passwords, process, .. } = &self.shared;
        if !config.end_revoked {
            return false;
        }
        let mut is_any = false;
        let is_known = |user: &str| {
            user.is_empty() || passwords.as_ref().is_none_or(|passwords| passwords.has_user(user))
        };
        for session in process.sessions.list() {
            if !is_known(&session.desktop.user) || !config.clients.allows(session.desktop.client) {
                process.sessions.end(session.number, EndReason::Revoked);
                is_any = true;
            }
        }
        is_any
    }

    /// What is saved, and where.
    fn to_save(&self) -> (AgentStates, Option<PathBuf>) {
        (self.states.clone(), self.shared.config.state_file.clone())
    }

    /// What a later word of the file has undone must not come back at the next start.
    async fn save_unless(&mut self, saved: &(AgentStates, Option<PathBuf>)) {
        if self.shared.config.state_file.is_none() || *saved == self.to_save() {
            return;
        }
        match self.save_states().await {
            Ok(()) => self.waiting.push_back((MessageKind::SaveStates, None)),
            Err(error) => self.abandon(&error),
        }
    }

    async fn save_states(&self) -> io::Result<()> {
        self.helper.ask_save_states(&self.states.text().map_err(io::Error::other)?).await
    }

    /// Lets the workers accept connections: this process serves.
    pub(super) async fn open(&mut self) {
        self.commands.send_modify(|commands| commands.open = true);
        if let Err(error) = self.helper.ask(MessageKind::Serving).await {
            self.abandon(&error);
        }
    }

    /// Lets operators find this process by its control socket.
    pub(super) async fn announce(&mut self) -> io::Result<()> {
        self.settle(MessageKind::Announce).await
    }

    /// Lets them find the process before again.
    pub(super) async fn withdraw(&mut self) -> io::Result<()> {
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
    pub(super) async fn run(
        self,
        mut signals: Signals,
        mut commands: mpsc::Receiver<ControlRequest>,
    ) -> io::Result<()> {
        let rejections = self.shared.process.rejections.clone();
        let ended = self.serve(&mut signals, &mut commands).await;
        tracing::info!("rejections: {rejections}");
        ended
    }

    async fn serve(
        mut self,
        signals: &mut Signals,
        commands: &mut mpsc::Receiver<ControlRequest>,
    ) -> io::Result<()> {
        let mut watchdog = systemd::Watchdog::new();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    None => break StopReason::Signal,
                    Some(command) => self.handle(command, "", None).await,
                },
                Some(request) = commands.recv() => self.handle(request.command, &request.argument, Some(request.answer)).await,
                answer = self.helper.next(), if !self.alone => {
                    if let Some(stop) = self.take(answer).await {
                        break stop;
                    }
                }
                event = self.monitor.next() => self.take_event(event).await,
                Some(question) = self.questions.recv() => self.resolve(question),
                report = self.reports.recv() => return ended(report),
                // Some were let in before the change, and have a session only now.
                _ = looks.tick() => {
                    if self.end_revoked() {
                        self.publish();
                    }
                    self.certificates.look();
                }
                () = watchdog.due() => watchdog.look(&self.shared.process.balance.beats()),
            }
        };
        self.stop(stop, signals, commands).await
    }

    /// Does what was wished, or asks the helper to.
    async fn handle(
        &mut self,
        command: ControlCommand,
        argument: &str,
        answer: Option<oneshot::Sender<Outcome>>,
    ) {
        let asked = match command {
            ControlCommand::Status
            | ControlCommand::Stats
            | ControlCommand::OwnStats
            | ControlCommand::Agents
            | ControlCommand::Sessions
            | ControlCommand::Lists
            | ControlCommand::States => return self.show_status(command, answer).await,
            ControlCommand::History => {
                return respond(answer, json(&fleet::history(&self.shared, argument)));
            }
            ControlCommand::End => return respond(answer, self.end_sessions(argument)),
            ControlCommand::DrainProxy => return respond(answer, Ok(self.set_ready(false))),
            ControlCommand::UndrainProxy => return respond(answer, Ok(self.set_ready(true))),
            _ if self.alone => Err(io::Error::other("the helper has ended: only a restart helps")),
            _ if self.waiting.len() >= REQUESTS_MAX => {
                Err(io::Error::other("the helper has not answered what it was asked before: is a disk slow?"))
            }
            ControlCommand::Reload
            | ControlCommand::Upgrade
            | ControlCommand::Drain
            | ControlCommand::Undrain
            | ControlCommand::Off
                if self.upgrading =>
            {
                Err(io::Error::other("an upgrade is under way: ask the process that serves then"))
            }
            ControlCommand::Reload => {
                self.helper.ask(MessageKind::Reload).await.map(|()| MessageKind::Reload)
            }
            ControlCommand::Drain | ControlCommand::Undrain | ControlCommand::Off => {
                let state = match command {
                    ControlCommand::Drain => AgentState::Drain,
                    ControlCommand::Off => AgentState::Off,
                    _ => AgentState::Active,
                };
                match self.set_state(argument, state) {
                    Ok(said) if self.shared.config.state_file.is_none() => return respond(answer, Ok(said)),
                    Ok(_) => self.save_states().await.map(|()| MessageKind::SaveStates),
                    Err(reason) => Err(io::Error::other(reason)),
                }
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
                if command == ControlCommand::Reload {
                    systemd::reloading();
                }
                self.upgrading |= command == ControlCommand::Upgrade;
                self.waiting.push_back((kind, answer));
            }
            Err(error) => {
                tracing::error!(command = %command, reason = &*error.to_string(), "command failed");
                respond(answer, Err(error.to_string()));
            }
        }
    }

    /// Takes an answer of the helper; an upgrade that came off is a reason to stop.
    async fn take(&mut self, answer: io::Result<Answer>) -> Option<StopReason> {
        let Answer { kind, outcome } = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.abandon(&error);
                return None;
            }
        };
        if kind == MessageKind::Stats {
            let stats = self.stats(outcome.ok().and_then(status::kernel_stats));
            let waiters = self.stats_waiters.take().into_iter().flatten();
            waiters.for_each(|waiter| respond(Some(waiter), stats.clone()));
            return None;
        }
        if kind == MessageKind::Unfit {
            if let Ok(Payload::Text(reason)) = outcome {
                tracing::info!(reason, "changed files do not fit together yet, waiting for the others");
            }
            return None;
        }
        if matches!(kind, MessageKind::AgentsCommand | MessageKind::NetworkHelper) {
            self.take_of_agents(kind, outcome).await;
            return None;
        }
        // Nobody asks for changes.
        let place = self.waiting.iter().position(|(asked, _)| *asked == kind);
        let answer = place.and_then(|place| self.waiting.remove(place)).and_then(|(_, answer)| answer);
        let saved = self.to_save();
        let outcome = outcome.and_then(|found| match (kind, found) {
            (MessageKind::Reload | MessageKind::Changed, Payload::Files(files)) => self.replace(&files),
            (MessageKind::Reopen, Payload::Files(files)) => self.reopen(&files),
            (_, Payload::Text(text)) => Ok(text),
            (_, Payload::Files(_) | Payload::Socket(_)) => Err("files that nobody asked for".to_owned()),
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
        self.save_unless(&saved).await;
        self.upgrading &= kind != MessageKind::Upgrade;
        if matches!(kind, MessageKind::Reload | MessageKind::Changed) {
            *(if outcome.is_ok() { &mut self.reloads } else { &mut self.reload_failures }) += 1;
            self.has_reload_failed = outcome.is_err();
        }
        let (done, failed) = kind.words();
        match &outcome {
            Ok(_) => tracing::info!("{done}"),
            Err(reason) => tracing::error!(reason = &*reason.replace('\n', "; "), "{failed}"),
        }
        if kind == MessageKind::Reload && self.state == SERVING {
            systemd::ready(outcome.as_ref().map_or(failed, |_| done));
        }
        let stop = match (&outcome, kind) {
            (Ok(process), MessageKind::Upgrade) => Some(StopReason::Upgraded(process.clone())),
            _ => None,
        };
        respond(answer, outcome.map(|_| done.to_owned()));
        stop
    }

    /// Takes what the helper says of where agents come from.
    async fn take_of_agents(&mut self, kind: MessageKind, outcome: Result<Payload, String>) {
        if kind == MessageKind::NetworkHelper {
            return self.take_network_helper(outcome);
        }
        let saved = self.to_save();
        self.take_list(outcome).await;
        self.save_unless(&saved).await;
    }

    async fn ask_for_list(&mut self) {
        if let Err(error) = self.helper.ask(MessageKind::AgentsCommand).await {
            self.abandon(&error);
        }
    }

    async fn take_list(&mut self, outcome: Result<Payload, String>) {
        if outcome.as_ref().is_err_and(|reason| reason == TRUNCATED) {
            return self.ask_for_list().await;
        }
        let list = outcome.and_then(|found| match found {
            Payload::Files(files) => files.read(LIST.as_ref()).map_err(|error| error.to_string()),
            Payload::Text(_) | Payload::Socket(_) => Err("it came without its list".to_owned()),
        });
        self.sources.take_list(list, &self.shared.config);
        self.refresh_agents();
        self.publish();
    }

    /// Goes by what the process before knows of agents, until the sources are heard.
    pub(super) fn adopt(&mut self, lists: &str) {
        match serde_json::from_str(lists) {
            Ok(lists) => self.sources.adopt(lists, &self.shared.config),
            Err(error) => {
                tracing::warn!(reason = &*error.to_string(), "the lists of the former process can't be read");
            }
        }
    }

    /// Waits until each source has listed its agents once, or can't, and the network helper is there; or for as long as users can be kept waiting.
    pub(super) async fn first_lists(&mut self) {
        // By now it is known what the sources are.
        self.refresh_agents();
        let limit = tokio::time::sleep(FIRST_LISTS);
        tokio::pin!(limit);
        while (self.sources.is_waiting() || self.monitor.is_waiting()) && !self.alone {
            tokio::select! {
                answer = self.helper.next() => drop(self.take(answer).await),
                event = self.monitor.next() => self.take_event(event).await,
                () = &mut limit => {
                    return tracing::warn!("not all sources of agents are there yet: serving without them");
                }
            }
        }
    }

    fn take_network_helper(&mut self, outcome: Result<Payload, String>) {
        self.waiting.retain(|(asked, _)| *asked != MessageKind::NetworkHelper);
        let socket = outcome.and_then(|found| match found {
            Payload::Socket(socket) => Ok(socket),
            Payload::Files(_) | Payload::Text(_) => Err("it came without its socket".to_owned()),
        });
        if let Err(error) = self.monitor.started(socket) {
            tracing::error!(reason = &*error.to_string(), "network helper can't be started");
        }
    }

    /// Without the helper desktops are served on, and that is all.
    fn abandon(&mut self, error: &io::Error) {
        tracing::error!(reason = &*error.to_string(), "helper ended: reload and upgrade need a restart");
        self.alone = true;
        self.waiting.clear();
        self.stats_waiters = None;
    }

    fn replace(&mut self, files: &PassedFiles) -> Outcome {
        let prepared = Prepared::new(&self.settings, files)?;
        let certificates = ExpiryWatch::new(prepared.expiries.clone());
        let (shared, lines) = prepared.replace(&self.shared, &self.log).map_err(|error| error.to_string())?;
        self.log.change(lines);
        self.log_filter.set(&shared.config.log);
        self.certificates = certificates;
        let KnownAgents { directory, connectors, .. } = shared.agents.clone();
        self.sources.set(&shared.config, directory, connectors);
        let (now, before) = (&shared.config, &self.shared.config);
        if now.session_resolver != before.session_resolver || now.policy.agents != before.policy.agents {
            shared.process.session_resolver.forget();
        }
        self.shared = shared;
        self.refresh_agents();
        self.end_revoked();
        self.publish();
        Ok(String::new())
    }

    fn reopen(&mut self, files: &PassedFiles) -> Outcome {
        let to = &self.shared.config.access_log;
        if matches!(to, AccessLogTo::File(_)) {
            self.log.change(open_log(to, files).map_err(|(_, error)| error.to_string())?);
        }
        Ok(String::new())
    }

    /// Lets what runs come to its end, for as long as it may take.
    async fn stop(
        mut self,
        reason: StopReason,
        signals: &mut Signals,
        commands: &mut mpsc::Receiver<ControlRequest>,
    ) -> io::Result<()> {
        self.sockets.clear();
        self.monitor.end();
        self.shared.process.session_resolver.fail_all(STOPPING);
        self.shared.process.readiness.set(false);
        if self.upgrading
            && let Err(error) = self.helper.stop_asking()
        {
            tracing::warn!(reason = &*error.to_string(), "the upgrade can't be cancelled");
        }
        let mut end = Shutdown::begin(&reason, &self.shared);
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
                    None if end.phase == Phase::Ending => return result,
                    None => {
                        end.shorten();
                        self.state = end.state();
                    }
                    Some(ControlCommand::Reopen) => self.handle(ControlCommand::Reopen, "", None).await,
                    Some(command) => tracing::warn!(command = %command, reason = "the process is stopping", "command ignored"),
                },
                Some(ControlRequest { command, argument, answer }) = commands.recv() => match command {
                    ControlCommand::History => respond(Some(answer), json(&fleet::history(&self.shared, &argument))),
                    ControlCommand::End => respond(Some(answer), self.end_sessions(&argument)),
                    command if command.is_question() => self.show_status(command, Some(answer)).await,
                    ControlCommand::Reopen => self.handle(command, "", Some(answer)).await,
                    _ => respond(Some(answer), Err("the process is stopping".to_owned())),
                },
                answer = self.helper.next(), if !self.alone => drop(self.take(answer).await),
                Some(ResolveQuestion { session, client }) = self.questions.recv() => {
                    self.take_resolution(&session, client, Err(STOPPING.to_owned()));
                }
                () = tokio::time::sleep_until(end.at.into()), if end.phase == Phase::Draining => {
                    tracing::info!("drain timeout reached");
                    end.phase = Phase::Ending;
                }
            }
            self.enter(end.phase);
        }
        result
    }

    fn enter(&self, phase: Phase) {
        self.commands.send_if_modified(|commands| std::mem::replace(&mut commands.phase, phase) != phase);
    }
}

fn json(report: &impl Serialize) -> Outcome {
    serde_json::to_string(report).map_err(|error| error.to_string())
}

/// Sends a result; whoever asked may have gone.
fn respond(answer: Option<oneshot::Sender<Outcome>>, outcome: Outcome) {
    if let Some(answer) = answer {
        let _ = answer.send(outcome);
    }
}
