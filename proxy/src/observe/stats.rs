//! Statistics of each agent and of clients. A worker counts in cells of its own and publishes them once a second, so that
//! nothing is shared while bytes move; a snapshot is up to a second old. Knows no socket.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::observe::access_log::{AccessRecord, EndReason, Side};
use crate::observe::agent::AgentId;

/// Agents that are counted each by itself; the others are counted together, as [`AgentId::OTHERS`].
const AGENTS_MAX: usize = 4096;

/// Upper bounds of the buckets of a histogram, but for the last, which has none.
pub type Bounds = [u64; 11];

/// Those of times, in microseconds.
pub const TIMES_US: Bounds =
    [1000, 2000, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000];

/// Those of what stands in a queue, in bytes.
pub const QUEUE_BYTES: Bounds = {
    let (mut bounds, mut power) = ([1024; 11], 0);
    while power < bounds.len() {
        bounds[power] <<= power;
        power += 1;
    }
    bounds
};

/// How often values lay between bounds that whoever counts them has chosen.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Histogram {
    /// How many were no more than each bound and more than the one before; then how many were more than all.
    pub counts: [u64; 12],
    /// All together.
    #[serde(alias = "sum_us")]
    pub sum: u64,
}

impl Histogram {
    /// Counts a value.
    pub fn note(&mut self, bounds: &Bounds, value: u64) {
        let bucket = bounds.iter().take_while(|bound| value > **bound).count();
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Counts a time, by [`TIMES_US`].
    pub fn note_time(&mut self, time: Duration) {
        self.note(&TIMES_US, time.as_micros().try_into().unwrap_or(u64::MAX));
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum = self.sum.saturating_add(other.sum);
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

/// What stands in the proxy and its sockets for a side that takes less than the other says. Sampled every 20 ms, and only
/// while that side holds back.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct QueueStats {
    /// Bytes that stood, by [`QUEUE_BYTES`].
    pub bytes: Histogram,
    /// How long the side needs to take them, by [`TIMES_US`].
    pub time: Histogram,
    /// Bytes that stand now, in all sessions.
    pub standing: u64,
}

impl QueueStats {
    fn add(&mut self, other: &Self) {
        self.bytes.add(&other.bytes);
        self.time.add(&other.time);
        self.standing += other.standing;
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
    /// What stands for it.
    pub queue_to_agent: QueueStats,
    /// What stands for its clients.
    pub queue_to_client: QueueStats,
}

impl AgentStats {
    fn queue(&mut self, to: Side) -> &mut QueueStats {
        match to {
            Side::Agent => &mut self.queue_to_agent,
            Side::Client => &mut self.queue_to_client,
        }
    }

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
        self.queue_to_agent.add(&other.queue_to_agent);
        self.queue_to_client.add(&other.queue_to_client);
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
#[derive(Debug)]
pub struct OpenSession {
    counters: Rc<AgentCounters>,
    /// Bytes that stand for the agent, and for the client.
    standing: [Cell<u64>; 2],
}

impl OpenSession {
    /// Counts what stands for a side that holds back, and how long it needs to take it.
    pub fn note_queue(&self, to: Side, bytes: u64, time: Duration) {
        self.stands(to, bytes);
        let mut stats = self.counters.stats.borrow_mut();
        let queue = stats.queue(to);
        queue.bytes.note(&QUEUE_BYTES, bytes);
        queue.time.note_time(time);
    }

    /// Nothing stands for a side any more.
    pub fn end_queue(&self, to: Side) {
        self.stands(to, 0);
    }

    fn stands(&self, to: Side, bytes: u64) {
        let before = self.standing[usize::from(to == Side::Client)].replace(bytes);
        let mut stats = self.counters.stats.borrow_mut();
        let queue = stats.queue(to);
        queue.standing = queue.standing - before + bytes;
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        for side in [Side::Agent, Side::Client] {
            self.end_queue(side);
        }
        self.counters.stats.borrow_mut().sessions -= 1;
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
        self.agent(agent).stats.borrow_mut().connect.note_time(took);
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
        OpenSession { counters, standing: <[Cell<u64>; 2]>::default() }
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
            stats.request.note_time(record.duration);
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
            times.note_time(Duration::from_millis(ms));
        }
        assert_eq!(times.counts, [2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!((times.count(), times.sum), (7, 1_005_007_000));
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
        let old: Histogram = serde_json::from_str("{\"sum_us\":5}").expect("times");
        assert_eq!(old.sum, 5);
    }

    #[test]
    fn what_stands_for_the_sides_of_sessions_is_added_up_until_it_is_taken() {
        let worker = WorkerStats::default();
        let (one, other) = (worker.begin_session(agent()), worker.begin_session(agent()));
        let standing = || {
            let stats = worker.read().agents.remove(&agent()).unwrap_or_default();
            (stats.queue_to_agent.standing, stats.queue_to_client.standing)
        };
        one.note_queue(Side::Client, 5000, Duration::from_millis(10));
        other.note_queue(Side::Client, 300, Duration::from_millis(1));
        one.note_queue(Side::Client, 2000, Duration::from_millis(4));
        one.note_queue(Side::Agent, 1, Duration::ZERO);
        assert_eq!(standing(), (1, 2300));
        other.end_queue(Side::Client);
        assert_eq!(standing(), (1, 2000));
        drop(one);
        assert_eq!(standing(), (0, 0));
        let queue = worker.read().agents.remove(&agent()).unwrap_or_default().queue_to_client;
        assert_eq!((queue.bytes.count(), queue.bytes.sum, queue.time.sum), (3, 7300, 15_000));
        assert_eq!(queue.bytes.counts[..4], [1, 1, 0, 1]);
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
