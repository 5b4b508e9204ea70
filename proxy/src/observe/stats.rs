//! Statistics of each agent and of clients. A worker counts in cells of its own and publishes them once a second, so that
//! nothing is shared while bytes move; a snapshot is up to a second old. Knows no socket.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::observe::access_log::{AccessRecord, EndReason};
use crate::observe::agent::AgentId;

/// Agents that are counted each by itself; the others are counted together, as [`AgentId::OTHERS`].
const AGENTS_MAX: usize = 4096;

/// Upper bounds of the times that are told apart, in milliseconds; longer ones have a bucket more.
pub const TIMES_MS: [u64; 11] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500];

/// A histogram of durations.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Histogram {
    /// How often it took no longer than each of [`TIMES_MS`] and longer than the one before; then how often longer.
    pub counts: [u64; TIMES_MS.len() + 1],
    /// All together, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Counts one.
    pub fn note(&mut self, time: Duration) {
        let fits = |bound: &&u64| time <= Duration::from_millis(**bound);
        let bucket = TIMES_MS.iter().take_while(|bound| !fits(bound)).count();
        self.counts[bucket] += 1;
        self.sum_us = self.sum_us.saturating_add(time.as_micros().try_into().unwrap_or(u64::MAX));
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum_us += other.sum_us;
    }
}

/// Bytes received and sent on sockets, TLS included.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct SocketBytes {
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

impl SocketBytes {
    fn add(&mut self, other: Self) {
        self.received += other.received;
        self.sent += other.sent;
    }
}

/// Counts what goes over sockets.
#[derive(Debug, Default)]
pub struct ByteCounter {
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl ByteCounter {
    /// Counts received bytes.
    pub fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// Counts sent bytes.
    pub fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    fn read(&self) -> SocketBytes {
        SocketBytes { received: self.received.get(), sent: self.sent.get() }
    }
}

/// The statistics of one agent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct AgentStats {
    /// Requests by the first digit of the status that the client was given; first those that were given none.
    pub answers: [u64; 6],
    /// `WebSockets` that are open.
    pub sessions: u64,
    /// `WebSockets` that were opened.
    pub sessions_opened: u64,
    /// Body and session bytes to it, of what has ended.
    pub to_agent: u64,
    /// Body and session bytes from it, of what has ended.
    pub to_client: u64,
    /// Connections that could not be made.
    pub connect_failures: u64,
    /// How long connecting took, with TLS.
    pub connect: Histogram,
    /// How long requests took, from their head to their end; sessions apart.
    pub request: Histogram,
    /// Bytes on its sockets.
    pub sockets: SocketBytes,
}

impl AgentStats {
    fn add(&mut self, other: &Self) {
        self.answers.iter_mut().zip(other.answers).for_each(|(count, more)| *count += more);
        self.sessions += other.sessions;
        self.sessions_opened += other.sessions_opened;
        self.to_agent += other.to_agent;
        self.to_client += other.to_client;
        self.connect_failures += other.connect_failures;
        self.connect.add(&other.connect);
        self.request.add(&other.request);
        self.sockets.add(other.sockets);
    }
}

/// A worker's counters of one agent.
#[derive(Debug, Default)]
pub struct AgentCounters {
    stats: RefCell<AgentStats>,
    /// Of its sockets.
    pub sockets: ByteCounter,
}

impl AgentCounters {
    fn read(&self) -> AgentStats {
        AgentStats { sockets: self.sockets.read(), ..self.stats.borrow().clone() }
    }
}

/// A session, which is counted as open until it is dropped.
pub struct OpenSession(Rc<AgentCounters>);

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.stats.borrow_mut().sessions -= 1;
    }
}

/// The counters of a worker.
#[derive(Debug, Default)]
pub struct WorkerStats {
    agents: RefCell<BTreeMap<AgentId, Rc<AgentCounters>>>,
    /// Of clients' sockets.
    pub clients: Rc<ByteCounter>,
}

impl WorkerStats {
    /// The stats of an agent that was reached.
    pub fn agent(&self, agent: AgentId) -> Rc<AgentCounters> {
        let mut agents = self.agents.borrow_mut();
        let key =
            if agents.len() < AGENTS_MAX || agents.contains_key(&agent) { agent } else { AgentId::OTHERS };
        agents.entry(key).or_default().clone()
    }

    /// The stats of an agent, or of the others where it was never reached.
    fn known(&self, agent: AgentId) -> Rc<AgentCounters> {
        let found = self.agents.borrow().get(&agent).cloned();
        found.unwrap_or_else(|| self.agents.borrow_mut().entry(AgentId::OTHERS).or_default().clone())
    }

    /// Counts a connection to an agent, and how long connecting took.
    pub fn connected(&self, agent: AgentId, took: Duration) {
        self.agent(agent).stats.borrow_mut().connect.note(took);
    }

    /// Counts a failed connection to an agent.
    pub fn connect_failed(&self, agent: AgentId) {
        self.known(agent).stats.borrow_mut().connect_failures += 1;
    }

    /// Counts a session, which is open until the value is dropped.
    pub fn begin_session(&self, agent: AgentId) -> OpenSession {
        let counters = self.agent(agent);
        {
            let mut stats = counters.stats.borrow_mut();
            stats.sessions += 1;
            stats.sessions_opened += 1;
        }
        OpenSession(counters)
    }

    /// Counts a request or session that is over.
    pub fn close(&self, record: &AccessRecord) {
        let Some(agent) = record.agent else { return };
        let counters = self.known(agent.id);
        let mut stats = counters.stats.borrow_mut();
        let class = usize::from(record.status / 100).min(stats.answers.len() - 1);
        stats.answers[class] += 1;
        stats.to_agent += record.to_agent;
        // What the proxy says itself comes from no agent.
        stats.to_client += if matches!(record.end_reason, EndReason::Answered | EndReason::Rejected) {
            0
        } else {
            record.to_client
        };
        if record.status != 101 {
            stats.request.note(record.duration);
        }
    }

    /// The current values.
    pub fn read(&self) -> Stats {
        let agents = self.agents.borrow();
        let agents = agents.iter().map(|(agent, stats)| (*agent, stats.read())).collect();
        Stats { agents, clients: self.clients.read() }
    }
}

/// The statistics of one worker, or of all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Stats {
    /// By agent.
    pub agents: BTreeMap<AgentId, AgentStats>,
    /// Bytes on clients' sockets.
    pub clients: SocketBytes,
}

impl Stats {
    /// Bytes on an agent's sockets.
    pub fn sockets(&self, agent: AgentId) -> SocketBytes {
        self.agents.get(&agent).map(|stats| stats.sockets).unwrap_or_default()
    }

    fn add(&mut self, other: &Self) {
        for (agent, stats) in &other.agents {
            self.agents.entry(*agent).or_default().add(stats);
        }
        self.clients.add(other.clients);
    }
}

/// The kernel's TCP statistics of one agent's connections, or of one listener's.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct TcpStats {
    /// Bytes of payload that came in order, each once.
    pub received: u64,
    /// Bytes of payload that the other side has acknowledged.
    pub acknowledged: u64,
    /// Connections that were tried.
    pub tried: u64,
    /// Connections that were made.
    pub opened: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// Connections that have ended.
    pub closed: u64,
    /// Segments that were sent again.
    pub retransmitted_segments: u64,
    /// The smoothed round-trip time of the connection that spoke last.
    pub rtt_us: u64,
    /// Times to connect: the n-th number is of those of 2^n us and more, below 2^(n+1).
    pub connect_times: Vec<u64>,
    /// Smoothed round-trip times, likewise.
    pub rtts: Vec<u64>,
}

impl TcpStats {
    /// Bytes that are in this account and not in the proxy's own, received and sent: they are on their way, or were never
    /// read. Fewer than none where the kernel has still to tell of some.
    pub fn beyond(&self, own: SocketBytes) -> (i64, i64) {
        let differ = |kernel: u64, own: u64| kernel.wrapping_sub(own).cast_signed();
        (differ(self.received, own.received), differ(self.acknowledged, own.sent))
    }

    /// Adds what is counted at another port of the same address.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.acknowledged += other.acknowledged;
        self.tried += other.tried;
        self.opened += other.opened;
        self.failed += other.failed;
        self.closed += other.closed;
        self.retransmitted_segments += other.retransmitted_segments;
        self.rtt_us = self.rtt_us.max(other.rtt_us);
        add_each(&mut self.connect_times, &other.connect_times);
        add_each(&mut self.rtts, &other.rtts);
    }
}

fn add_each(sum: &mut Vec<u64>, more: &[u64]) {
    sum.resize(sum.len().max(more.len()), 0);
    sum.iter_mut().zip(more).for_each(|(count, more)| *count += more);
}

/// The kernel's TCP statistics of a process's connections.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct KernelStats {
    /// By agent.
    pub agents: BTreeMap<AgentId, TcpStats>,
    /// By the port that clients come to.
    pub listeners: BTreeMap<u32, TcpStats>,
}

/// The statistics that workers have published. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StatsSnapshot(Arc<[Mutex<Stats>]>);

impl StatsSnapshot {
    /// Nothing yet.
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Mutex::default()).collect())
    }

    /// Publishes a worker's statistics.
    pub fn put(&self, worker: usize, stats: Stats) {
        if let Some(place) = self.0.get(worker) {
            *lock(place) = stats;
        }
    }

    /// The sum over all workers.
    pub fn sum(&self) -> Stats {
        self.0.iter().fold(Stats::default(), |mut sum, stats| {
            sum.add(&lock(stats));
            sum
        })
    }
}

fn lock(stats: &Mutex<Stats>) -> MutexGuard<'_, Stats> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn agent() -> AgentId {
        IpAddr::from([10, 0, 0, 5]).into()
    }

    #[test]
    fn times_fall_into_their_buckets() {
        let mut times = Histogram::default();
        for ms in [0, 1, 2, 3, 2500, 2501, 1_000_000] {
            times.note(Duration::from_millis(ms));
        }
        assert_eq!(times.counts, [2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!((times.count(), times.sum_us), (7, 1_005_007_000));
    }

    #[test]
    fn what_workers_count_is_summed_up_and_survives_being_written_down() {
        let published = StatsSnapshot::new(2);
        for worker in 0..2 {
            let stats = WorkerStats::default();
            stats.connected(agent(), Duration::from_millis(3));
            stats.agent(agent()).sockets.sent(10);
            stats.clients.received(7);
            let open = stats.begin_session(agent());
            drop(stats.begin_session(agent()));
            published.put(worker, stats.read());
            drop(open);
        }
        let sum = published.sum();
        let stats = &sum.agents[&agent()];
        assert_eq!((stats.sessions, stats.sessions_opened, stats.connect.count()), (2, 4, 2));
        assert_eq!((stats.sockets.sent, sum.clients.received), (20, 14));
        let written = serde_json::to_string(&sum).expect("text");
        assert_eq!(serde_json::from_str::<Stats>(&written).expect("stats"), sum);
        // An older or newer program may not know all of them.
        assert_eq!(serde_json::from_str::<Stats>("{\"x\":1}").expect("stats"), Stats::default());
    }

    #[test]
    fn agents_that_were_never_reached_share_one_entry() {
        let worker = WorkerStats::default();
        for last in 0..=255 {
            worker.connect_failed(IpAddr::from([10, 0, 0, last]).into());
        }
        let stats = worker.read();
        assert_eq!(stats.agents.len(), 1);
        assert_eq!(stats.agents[&AgentId::OTHERS].connect_failures, 256);
        for agent in (0x0b00_0000_u32..).take(AGENTS_MAX + 10) {
            worker.agent(IpAddr::from(agent.to_be_bytes()).into());
        }
        assert_eq!(worker.read().agents.len(), AGENTS_MAX);
    }
}
