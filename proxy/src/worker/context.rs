//! What connections go by and count in: of all workers, and of one of them under one configuration. Does nothing itself.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::access::admission::Admission;
use crate::access::passwords::Passwords;
use crate::access::rejections::RejectCounters;
use crate::agents::pool::Pool;
use crate::config::Config;
use crate::observe::access_log::AccessLog;
use crate::observe::client::ConnectionIds;
use crate::observe::failures::Failures;
use crate::observe::stats::{StatsSnapshot, WorkerStats};
use crate::runtime::drain::{Drain, Phase};
use crate::tls::{Acceptor, Connector};
use crate::transport::endpoint::WorkerBuffers;
use crate::transport::net::Runtime;
use crate::transport::pipes::Pipes;
use crate::worker::eviction::Waiting;
use crate::worker::handshake_slots::Handshakes;
use crate::worker::load_balancer::LoadBalancer;

/// How long a client that was let in before a stop or a reload has to say what it wants.
const LAST_CALL: Duration = Duration::from_secs(5);

/// What all workers share.
#[derive(Clone, Debug)]
pub struct SharedState {
    /// The configuration.
    pub config: Arc<Config>,
    /// TLS to clients.
    pub acceptor: Acceptor,
    /// TLS to agents; none where they speak plain HTTP.
    pub connector: Option<Connector>,
    /// The access log.
    pub log: AccessLog,
    /// Which clients may come in.
    pub admission: Admission,
    /// Who may ask; everybody where there is none.
    pub passwords: Option<Passwords>,
    /// Client connections of all workers.
    pub balance: LoadBalancer,
    /// Rejected connections and requests.
    pub rejections: Arc<RejectCounters>,
    /// Gives each client connection its number.
    pub connection_ids: ConnectionIds,
    /// What has failed with agents.
    pub failures: Arc<Failures>,
    /// What workers have counted.
    pub published: StatsSnapshot,
}

/// What the connections of one worker share that came under the same settings.
pub struct Worker<N: Runtime> {
    /// Where streams to agents come from.
    pub net: N,
    /// What all workers share.
    pub shared: SharedState,
    /// Idle connections to agents.
    pub pool: RefCell<Pool<N::Stream>>,
    /// Buffers for whose turn it is.
    pub scratch: Rc<RefCell<WorkerBuffers>>,
    /// Spare pipes.
    pub pipes: Rc<RefCell<Pipes>>,
    /// Clients' TLS handshakes in flight.
    pub handshakes: Handshakes,
    /// Clients that ask for nothing.
    pub waiting: Rc<Waiting>,
    /// What it counts.
    pub stats: Rc<WorkerStats>,
    /// How far stopping has come.
    pub drain: Drain,
}

impl<N: Runtime> Worker<N> {
    /// A worker that has not accepted anything yet.
    pub fn new(net: N, shared: SharedState) -> Self {
        let pool = Pool::new(shared.config.pool);
        let handshakes = Handshakes::new(shared.config.limits.handshakes_max);
        Self {
            net,
            shared,
            pool: RefCell::new(pool),
            scratch: Rc::default(),
            pipes: Rc::default(),
            handshakes,
            waiting: Rc::default(),
            stats: Rc::default(),
            drain: Drain::default(),
        }
    }

    /// Ready once a client that has not said yet what it wants is waited for no longer.
    pub async fn last_call(&self) {
        self.drain.reached(Phase::Draining).await;
        self.net.sleep(LAST_CALL).await;
    }

    /// The same worker under other settings, with the same buffers.
    #[must_use]
    pub fn renewed(&self, net: N, shared: SharedState) -> Self {
        let (scratch, pipes, stats) = (self.scratch.clone(), self.pipes.clone(), self.stats.clone());
        let waiting = self.waiting.clone();
        Self { scratch, pipes, waiting, stats, ..Self::new(net, shared) }
    }
}
