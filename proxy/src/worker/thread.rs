//! A worker: one thread, one loop, its own listeners, pool and buffers. It accepts connections, serves each
//! as a task, and stops in order. Workers share nothing but the settings and how many connections each has. When the
//! settings change, connections that are there keep theirs.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::{mpsc, watch};

use crate::access::rejections::RejectReason;
use crate::config::IoBackend;
use crate::observe::agent::AgentId;
use crate::observe::client::ClientConnection;
use crate::observe::stats::WorkerStats;
use crate::os::process_usage::thread_cpu_time;
use crate::os::seccomp;
use crate::runtime::drain::{Drain, Phase};
use crate::runtime::executor::Executor;
use crate::runtime::poller::Poller;
use crate::transport::net::{Acceptor, OsRuntime, Runtime, SELF_CONNECTION};
use crate::transport::own_addresses::OwnAddresses;
use crate::worker::connection;
use crate::worker::context::{Generation, SharedState, Worker};
use crate::worker::listeners::Listener;
use crate::worker::load_balancer::{Accepting, Connection, WorkerInbox};

/// Connections that are closed at once for want of descriptors.
const SHED_MAX: usize = 4096;
/// How often idle agent connections are looked after.
const REAP: Duration = Duration::from_secs(1);
/// Agents whose statistics are published before others have their turn: some 10 us each.
const PUBLISHED_AT_ONCE: usize = 8;
/// Parts of a second in which sessions are sampled.
const SAMPLE_TURNS: usize = 10;
/// The time from one part to the next.
const SAMPLE_PAUSE: Duration = Duration::from_millis(100);
/// How long a worker leaves a failing listener alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections beyond `--connections-max` that look for one that gives way to them; more are rejected at once.
const PENDING_EVICTIONS_MAX: usize = 64;
/// How long connections have to say goodbye once the drain time is over.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The supervisor's commands to a worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerCommand {
    /// Whether connections are accepted; once they are, `phase` says until when.
    pub open: bool,
    /// How far stopping is to come.
    pub phase: Phase,
    /// The settings for new connections.
    pub shared: SharedState,
}

/// A worker under its settings, and under former ones for as long as connections go by them.
struct ConfigGenerations {
    executor: Executor,
    number: usize,
    own: OwnAddresses,
    /// Where it accepts, until it stops.
    acceptors: RefCell<Vec<Weak<Acceptor>>>,
    current: RefCell<Rc<Generation<OsRuntime>>>,
    former: RefCell<Vec<Weak<Generation<OsRuntime>>>>,
    began: Instant,
    /// How far the worker itself has come.
    drain: Drain,
}

impl ConfigGenerations {
    fn new(executor: Executor, number: usize, own: OwnAddresses, shared: SharedState) -> Self {
        let stats = Rc::new(WorkerStats::default());
        let net = OsRuntime::new(executor.clone(), shared.config.agent_tcp(), own.clone(), stats.clone())
            .with_kernel_tls(shared.process.kernel_tls);
        executor.observe(stats.clone());
        let worker = Rc::new(Worker::new(stats));
        let current = Generation::new(net, shared, worker);
        Self {
            began: executor.now(),
            executor,
            number,
            own,
            acceptors: RefCell::default(),
            current: RefCell::new(Rc::new(current)),
            former: RefCell::default(),
            drain: Drain::default(),
        }
    }

    fn current(&self) -> Rc<Generation<OsRuntime>> {
        self.current.borrow().clone()
    }

    /// New connections go by `shared`. Those that are there get the answer they wait for, and sessions go on. Nothing ends where
    /// the configuration is the same and only the agents are others.
    fn renew(&self, shared: SharedState) {
        self.current().worker.set_agents(shared.agents.clone());
        self.end_sessions();
        if Arc::ptr_eq(&shared.config, &self.current().shared.config) {
            return;
        }
        let (clients, agents) = (shared.config.client_tcp(), shared.config.agent_tcp());
        for acceptor in self.acceptors.borrow().iter().filter_map(Weak::upgrade) {
            if let Err(error) = acceptor.renew_options(&clients) {
                tracing::error!(
                    reason = &*error.to_string(),
                    "--tcp-user-timeout or --client-congestion can't be set on a listener"
                );
            }
        }
        let current = self.current();
        let net =
            OsRuntime::new(self.executor.clone(), agents, self.own.clone(), current.worker.stats.clone())
                .with_kernel_tls(shared.process.kernel_tls);
        let renewed = Rc::new(Generation::new(net, shared, current.worker.clone()));
        let former = self.current.replace(renewed);
        retire(&former, Phase::Draining);
        let mut all = self.former.borrow_mut();
        all.retain(|generation| generation.strong_count() > 0);
        all.push(Rc::downgrade(&former));
    }

    /// Ends its sessions that are to end.
    fn end_sessions(&self) {
        let generation = self.current();
        for (number, reason) in generation.shared.process.sessions.ending() {
            generation.worker.sessions.end(number, reason);
        }
    }

    /// Serves a connection under the settings of now, if there is room for it or somebody gives way.
    async fn start(&self, connection: Connection) {
        let generation = self.current();
        // Whom a balancer speaks for is not known yet: nobody gives way before that client is let in.
        let is_full = connection.workers_to_try > 0
            && generation.config().clients.is_proxy_protocol_source(connection.client.ip());
        if connection.workers_to_try > 0 && !is_full && !generation.worker.waiting.evict() {
            let left = if connection.workers_to_try > 1 {
                generation.shared.process.balance.pass_on(connection).err()
            } else {
                Some(connection)
            };
            if let Some(Connection { socket, client, secure, id, .. }) = left {
                let client = ClientConnection { id, address: client.ip(), port: client.port() };
                reject(&generation, socket, client, secure, RejectReason::MaxConnections).await;
            }
            return;
        }
        let Connection { socket, client, secure, counted, id, .. } = connection;
        self.executor.spawn(async move {
            let _counted = counted;
            match generation.net.adopt(socket) {
                Ok(stream) => connection::serve(&generation, stream, client, secure, is_full, id).await,
                Err(error) => log_accept_failure(&generation, "adopt", &error),
            }
        });
    }

    /// Once a second: a sign of life, how it stands, and a look after what no event tells of.
    async fn beat(&self, generation: &Generation<OsRuntime>) {
        self.executor.look_again();
        generation.worker.sessions.end_overdue(generation.net.now());
        generation.shared.process.balance.beat(self.number);
        let published = &generation.shared.process.published;
        generation.worker.stats.note_cpu_time(thread_cpu_time(), generation.net.now() - self.began);
        published.put_clients(self.number, &generation.worker.stats);
        for (number, (agent, counters)) in generation.worker.stats.changed().into_iter().enumerate() {
            published.put_agent(self.number, agent, &counters);
            if number % PUBLISHED_AT_ONCE == PUBLISHED_AT_ONCE - 1 {
                self.executor.yield_now().await;
            }
        }
    }

    /// Samples the sessions of the worker, each once a second and not all at once.
    async fn sample_sessions(self: Rc<Self>) {
        let stats = self.current().worker.stats.clone();
        for turn in (0..SAMPLE_TURNS).cycle() {
            let wait = if stats.has_sessions() { SAMPLE_PAUSE } else { REAP };
            let due = self.executor.now() + wait;
            self.executor.sleep(wait).await;
            let now = self.executor.now();
            stats.note_wake_up(now.saturating_duration_since(due));
            stats.sample_sessions(turn, SAMPLE_TURNS, now);
        }
    }

    /// Goes on to `phase` under all settings.
    fn enter(&self, phase: Phase) {
        self.drain.enter(phase);
        let former = self.former.borrow();
        let former = former.iter().filter_map(Weak::upgrade);
        former.chain([self.current()]).for_each(|generation| retire(&generation, phase));
        if phase == Phase::Ending {
            self.current().worker.sessions.end_all();
        }
    }
}

fn retire(generation: &Generation<OsRuntime>, phase: Phase) {
    generation.drain.enter(phase);
    generation.pool.borrow_mut().clear();
}

/// Serves on `listeners` until `commands` say otherwise and every connection has ended; `started` is called once it can.
/// `own`: where any worker listens. Takes the calling thread; a panic of any connection becomes one of the worker.
pub(crate) fn run(
    inbox: WorkerInbox,
    listeners: Vec<Listener>,
    mut commands: watch::Receiver<WorkerCommand>,
    own: OwnAddresses,
    started: impl FnOnce() + 'static,
) -> io::Result<()> {
    let shared = commands.borrow_and_update().shared.clone();
    let executor = Executor::new(poller(shared.config.io_backend)?)?;
    seccomp::forbid_rings();
    let generations = Rc::new(ConfigGenerations::new(executor.clone(), inbox.worker, own, shared));
    executor.run(serve(generations, inbox, listeners, commands, started))?
}

fn poller(readiness: IoBackend) -> io::Result<Poller> {
    match readiness {
        IoBackend::Epoll => Poller::epoll(),
        IoBackend::IoUring => Poller::ring().map_err(|error| no_ring(&error)),
        IoBackend::Auto => Poller::ring().or_else(|error| {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| {
                let reason = no_ring(&error).to_string();
                tracing::warn!(reason, "epoll is used instead of io_uring, at a higher cost");
            });
            Poller::epoll()
        }),
    }
}

fn no_ring(error: &io::Error) -> io::Error {
    let help = "it needs Linux 6.1, kernel.io_uring_disabled = 0, and a container that allows it";
    io::Error::new(error.kind(), format!("io_uring can't be used: {error}; {help}"))
}

async fn serve(
    generations: Rc<ConfigGenerations>,
    inbox: WorkerInbox,
    listeners: Vec<Listener>,
    mut commands: watch::Receiver<WorkerCommand>,
    started: impl FnOnce(),
) -> io::Result<()> {
    started();
    let shared = commands.wait_for(|commands| commands.open).await.map_err(io::Error::other)?.shared.clone();
    generations.renew(shared);
    for Listener { socket, secure } in listeners {
        let acceptor = Rc::new(generations.current().net.listen(socket)?);
        generations.acceptors.borrow_mut().push(Rc::downgrade(&acceptor));
        let accepting = generations.current().shared.process.balance.open_acceptor();
        generations.executor.spawn(accept(generations.clone(), acceptor, secure, accepting));
    }
    generations.executor.spawn(receive(generations.clone(), inbox.arrivals));
    generations.executor.spawn(generations.clone().sample_sessions());
    let mut reap = pin!(generations.executor.sleep(REAP));
    loop {
        let generation = generations.current();
        tokio::select! {
            () = &mut reap => {
                generations.beat(&generation).await;
                reap_agents(&generation).await;
                reap.set(generations.executor.sleep(REAP));
            }
            changed = commands.changed() => {
                changed.map_err(io::Error::other)?;
                let WorkerCommand { phase, shared, .. } = commands.borrow_and_update().clone();
                if phase >= Phase::Draining {
                    break;
                }
                generations.renew(shared);
            }
        }
        // However often the commands change, connections have their turns in between.
        generations.executor.yield_now().await;
    }
    drain(&generations, commands).await;
    // What was counted last.
    generations.beat(&generations.current()).await;
    Ok(())
}

/// No connection is taken on any more; those that are there end by themselves or are ended.
async fn drain(generations: &ConfigGenerations, mut commands: watch::Receiver<WorkerCommand>) {
    let balance = generations.current().shared.process.balance.clone();
    let gone = || balance.gone(generations.number);
    generations.enter(Phase::Draining);
    let generation = generations.current();
    let beats = async {
        loop {
            generation.net.sleep(REAP).await;
            generations.beat(&generation).await;
        }
    };
    tokio::select! {
        () = gone() => return,
        () = beats => {}
        () = ending(generations, &mut commands) => {}
    }
    generations.enter(Phase::Ending);
    let _ = generations.current().net.timeout(EXIT_TIMEOUT, gone()).await;
}

/// Ready once all is to end; until then single sessions may have to.
async fn ending(generations: &ConfigGenerations, commands: &mut watch::Receiver<WorkerCommand>) {
    while commands.borrow_and_update().phase != Phase::Ending {
        generations.end_sessions();
        if commands.changed().await.is_err() {
            return;
        }
    }
}

async fn reap_agents(generation: &Generation<OsRuntime>) {
    poll_fn(|cx| {
        generation.pool.borrow_mut().reap(
            cx,
            &mut generation.worker.buffers.borrow_mut(),
            generation.net.now(),
        );
        Poll::Ready(())
    })
    .await;
}

/// Accepts at one acceptor until the worker stops.
async fn accept(
    generations: Rc<ConfigGenerations>,
    acceptor: Rc<Acceptor>,
    secure: bool,
    _accepting: Accepting,
) {
    let mut reserve = reserve();
    loop {
        let accepted = tokio::select! {
            biased;
            () = generations.drain.reached(Phase::Draining) => return,
            accepted = acceptor.accept() => accepted,
        };
        let generation = generations.current();
        match accepted {
            Ok((socket, client)) => admit(&generations, &generation, socket, client, secure).await,
            Err(error) if error.kind() == SELF_CONNECTION => {
                log_accept_failure(&generation, "itself", &error);
            }
            Err(error) if is_client_error(&error) => {}
            Err(error) => {
                log_accept_failure(&generation, "accept", &error);
                if is_out_of_descriptors(&error) {
                    reserve = shed(&generation, &acceptor, reserve).await;
                }
                generation.net.sleep(ACCEPT_PAUSE).await;
            }
        }
        // A burst of connections is one step of front work each.
        generation.net.yield_now().await;
    }
}

/// Logs the 1st, 2nd, 4th, ... failure of each kind to take a connection.
fn log_accept_failure(generation: &Generation<OsRuntime>, kind: &'static str, error: &io::Error) {
    if let Some(count) = generation.shared.process.failures.note(kind, AgentId::OTHERS) {
        tracing::warn!(reason = %kind, count, detail = &*error.to_string(), "accept failed");
    }
}

/// Gives a connection to the worker that has the fewest. Where there are as many as may be, one that waits gives way: of
/// this worker, or of the next one that has any.
async fn admit(
    generations: &ConfigGenerations,
    generation: &Rc<Generation<OsRuntime>>,
    socket: OwnedFd,
    client: SocketAddr,
    secure: bool,
) {
    let (balance, config) = (&generation.shared.process.balance, generation.config());
    let id = generation.shared.process.connection_ids.next();
    generation.worker.stats.accepted();
    let named = ClientConnection { id, address: client.ip(), port: client.port() };
    let place = balance.place(generations.number, config.limits.connections_max);
    if let (None, Err(why)) = (&place, may_evict(generation, client.ip())) {
        return reject(generation, socket, named, secure, why).await;
    }
    let workers_to_try = if place.is_some() { 0 } else { balance.workers() };
    let counted = place.unwrap_or_else(|| balance.place_beyond(generations.number));
    let is_own = counted.worker == generations.number;
    let connection = Connection { socket, client, secure, id, counted, workers_to_try };
    if is_own {
        generations.start(connection).await;
    } else if let Err(Connection { socket, secure, .. }) = balance.hand_over(connection) {
        // Only a worker that has failed has gone while acceptors are open.
        reject(generation, socket, named, secure, RejectReason::MaxConnections).await;
    }
}

fn may_evict(generation: &Generation<OsRuntime>, client: IpAddr) -> Result<(), RejectReason> {
    let (admission, balance, config) =
        (&generation.shared.admission, &generation.shared.process.balance, generation.config());
    if balance.connections() >= config.limits.connections_max + PENDING_EVICTIONS_MAX {
        return Err(RejectReason::MaxConnections);
    }
    // Nobody gives way to a client that is not let in itself.
    if config.clients.is_proxy_protocol_source(client) {
        // Whom a balancer speaks for is not known yet.
        return Ok(());
    }
    admission.would_admit(client, generation.net.now())
}

/// Without TLS it is told why.
async fn reject(
    generation: &Generation<OsRuntime>,
    socket: OwnedFd,
    client: ClientConnection,
    secure: bool,
    why: RejectReason,
) {
    generation.shared.process.rejections.note(why, client);
    if let (false, Ok(stream)) = (secure, generation.net.adopt(socket)) {
        connection::reject(generation, stream, why).await;
    }
}

/// Serves what other workers have accepted.
async fn receive(generations: Rc<ConfigGenerations>, mut arrivals: mpsc::UnboundedReceiver<Connection>) {
    while let Some(connection) = arrivals.recv().await {
        generations.start(connection).await;
        generations.executor.yield_now().await;
    }
}

/// A connection that died before it was accepted (accept(2)).
fn is_client_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset
    )
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    let error = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(error, Some(Errno::MFILE | Errno::NFILE))
}

fn reserve() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

/// Without a free file descriptor those who wait would wait for ever: the reserved one lets them be closed.
async fn shed(
    generation: &Generation<OsRuntime>,
    acceptor: &Acceptor,
    reserved: Option<OwnedFd>,
) -> Option<OwnedFd> {
    drop(reserved);
    for _ in 0..SHED_MAX {
        match poll_fn(|cx| Poll::Ready(acceptor.poll_accept(cx))).await {
            Poll::Ready(Ok((_, client))) => {
                let id = generation.shared.process.connection_ids.next();
                let client = ClientConnection { id, address: client.ip(), port: client.port() };
                generation.shared.process.rejections.note(RejectReason::NoFileDescriptors, client);
            }
            Poll::Pending if acceptor.is_put_off() => generation.net.yield_now().await,
            _ => break,
        }
    }
    reserve()
}
