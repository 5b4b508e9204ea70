//! What connections use and count in, by how long it lives: the process, a configuration, a worker, and a worker under one
//! configuration. Does nothing itself.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::access::admission::Admission;
use crate::access::passwords::Passwords;
use crate::access::pool_cookie::PoolCookies;
use crate::access::rejections::RejectCounters;
use crate::agents::health::FailureMarks;
use crate::agents::known::KnownAgents;
use crate::agents::placement::Placements;
use crate::agents::pool::Pool;
use crate::agents::session_resolver::SessionResolver;
use crate::config::Config;
use crate::observe::access_log::AccessLog;
use crate::observe::client::ConnectionIds;
use crate::observe::failures::Failures;
use crate::observe::readiness::Readiness;
use crate::observe::recent::RecentEnds;
use crate::observe::request_id::RequestIds;
use crate::observe::stats::{StatsSnapshot, WorkerStats};
use crate::runtime::drain::{Drain, Phase};
use crate::session::open_sessions::OpenSessions;
use crate::tls::Acceptor;
use crate::transport::endpoint::WorkerBuffers;
use crate::transport::kernel_tls::KernelTls;
use crate::transport::net::Runtime;
use crate::transport::pipes::Pipes;
use crate::worker::eviction::EvictionQueue;
use crate::worker::handshake_slots::Handshakes;
use crate::worker::load_balancer::LoadBalancer;
use crate::worker::session_slots::SessionSlots;

/// How long a client that was let in before a stop or a reload has to say what it wants.
const DRAIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client that is to be left has to take its last bytes.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// State of the process, which all workers share.
#[derive(Clone, Debug)]
pub struct ProcessState {
    /// Client connections of all workers.
    pub balance: LoadBalancer,
    /// Rejected connections and requests.
    pub rejections: Arc<RejectCounters>,
    /// Gives each client connection its number.
    pub connection_ids: ConnectionIds,
    /// Failures with agents.
    pub failures: Arc<Failures>,
    /// The open sessions of the workers.
    pub sessions: OpenSessions,
    /// Whether new users are welcome.
    pub readiness: Readiness,
    /// What is over, for those who look.
    pub recent_ends: RecentEnds,
    /// Which agents have sessions, as the session resolver says.
    pub session_resolver: SessionResolver,
    /// Who was sent to which agent of a pool.
    pub placements: Placements,
    /// What signs cookies of pools where there is no key for it.
    pub pool_cookies: PoolCookies,
    /// Where connections to agents are told of that fail.
    pub marks: FailureMarks,
    /// The statistics of the workers.
    pub published: StatsSnapshot,
    /// What the kernel may do of sessions' TLS.
    pub kernel_tls: KernelTls,
}

impl ProcessState {
    /// Of a process that begins.
    pub fn new(balance: LoadBalancer, marks: FailureMarks, session_resolver: SessionResolver) -> Self {
        let published = StatsSnapshot::new(balance.workers());
        Self {
            balance,
            published,
            rejections: Arc::default(),
            connection_ids: ConnectionIds::default(),
            failures: Arc::default(),
            sessions: OpenSessions::default(),
            readiness: Readiness::default(),
            recent_ends: RecentEnds::default(),
            kernel_tls: KernelTls::NONE,
            session_resolver,
            placements: Placements::default(),
            pool_cookies: PoolCookies::new(),
            marks,
        }
    }
}

/// State of one configuration, which all workers share.
#[derive(Clone, Debug)]
pub struct SharedState {
    /// The configuration.
    pub config: Arc<Config>,
    /// TLS to clients.
    pub acceptor: Acceptor,
    /// The access log.
    pub log: AccessLog,
    /// Which clients are admitted.
    pub admission: Admission,
    /// The users; everybody may ask where there is none.
    pub passwords: Option<Passwords>,
    /// What a session resolver is verified with (PEM).
    pub resolver_ca: Option<Arc<str>>,
    /// What signs cookies of pools.
    pub pool_cookies: PoolCookies,
    /// The agents. Workers go by the latest ([`Worker::agents`]), whatever the configuration.
    pub agents: KnownAgents,
    /// State that outlives the configuration.
    pub process: ProcessState,
}

/// State of one worker, which all of its connections share.
#[derive(Default)]
pub struct Worker {
    /// Buffers for the connection whose turn it is.
    pub buffers: RefCell<WorkerBuffers>,
    /// Spare pipes.
    pub pipes: RefCell<Pipes>,
    /// Clients without a request.
    pub waiting: EvictionQueue,
    /// Makes the ids of requests.
    pub(super) request_ids: RequestIds,
    /// Its statistics.
    pub stats: Rc<WorkerStats>,
    /// Its sessions.
    pub(super) sessions: SessionSlots,
    agents: RefCell<Rc<KnownAgents>>,
}

impl Worker {
    /// A worker that counts there.
    pub(super) fn new(stats: Rc<WorkerStats>) -> Self {
        Self { stats, ..Self::default() }
    }

    /// The agents, as they are known now.
    pub fn agents(&self) -> Rc<KnownAgents> {
        self.agents.borrow().clone()
    }

    /// Requests go by these from now on.
    pub(super) fn set_agents(&self, agents: KnownAgents) {
        self.agents.replace(Rc::new(agents));
    }
}

/// State of one worker under one configuration, which the connections share that came under it.
pub struct Generation<N: Runtime> {
    /// The outside world: streams, time.
    pub net: N,
    /// State of the configuration.
    pub shared: SharedState,
    /// State of the worker.
    pub worker: Rc<Worker>,
    /// Idle connections to agents.
    pub pool: RefCell<Pool<N::Stream>>,
    /// Clients' TLS handshakes in flight.
    pub handshakes: Handshakes,
    /// How far stopping has come.
    pub drain: Drain,
}

impl<N: Runtime> Generation<N> {
    /// A generation without connections. Its worker goes by the agents of this configuration from now on.
    pub fn new(net: N, shared: SharedState, worker: Rc<Worker>) -> Self {
        worker.set_agents(shared.agents.clone());
        let pool = RefCell::new(Pool::new(shared.config.pool));
        let handshakes = Handshakes::new(shared.config.limits.handshakes_max);
        Self { net, shared, worker, pool, handshakes, drain: Drain::default() }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The counters of rejections.
    pub fn rejections(&self) -> &RejectCounters {
        &self.shared.process.rejections
    }

    /// Ready once a client that has not sent a request yet is waited for no longer.
    pub async fn drain_request_timeout(&self) {
        self.drain.reached(Phase::Draining).await;
        self.net.sleep(DRAIN_REQUEST_TIMEOUT).await;
    }
}
