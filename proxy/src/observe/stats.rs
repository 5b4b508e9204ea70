//! What is counted, of each agent and of clients. A worker counts in cells of its own and publishes them once a second,
//! so that nothing is shared while bytes move; what is read elsewhere is up to a second old. Knows no socket.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::observe::access_log::{AccessRecord, EndReason};

/// Agents that are counted each by itself; the others are counted together, as [`OTHERS`].
const AGENTS_MAX: usize = 4096;
/// Agents that were never reached, and those beyond [`AGENTS_MAX`].
pub const OTHERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Upper bounds of the times that are told apart, in milliseconds; longer ones have a bucket more.
pub const TIMES_MS: [u64; 11] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500];

/// How long something took.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Times {
    /// How often it took no longer than each of [`TIMES_MS`] and longer than the one before; then how often longer.
    pub counts: [u64; TIMES_MS.len() + 1],
    /// All together, in microseconds.
    pub sum_us: u64,
}

impl Times {
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

/// What went over sockets, TLS and all.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Wire {
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

impl Wire {
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
    /// So many bytes were received.
    pub fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// So many bytes were sent.
    pub fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    fn read(&self) -> Wire {
        Wire { received: self.received.get(), sent: self.sent.get() }
    }
}

/// What is counted of an agent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct AgentFigures {
    /// Requests by the first digit of the status that the client was given; first those that were given none.
    pub answers: [u64; 6],
    /// `WebSockets` that are open.
    pub sessions: u64,
    /// How many there were.
    pub sessions_begun: u64,
    /// Body and session bytes to it, of what has ended.
    pub to_agent: u64,
    /// Body and session bytes from it, of what has ended.
    pub to_client: u64,
    /// Connections that could not be made.
    pub unreachable: u64,
    /// How long connecting took, with TLS.
    pub connect: Times,
    /// How long requests took, from their head to their end; sessions apart.
    pub request: Times,
    /// What went over its sockets.
    pub wire: Wire,
}

impl AgentFigures {
    fn add(&mut self, other: &Self) {
        self.answers.iter_mut().zip(other.answers).for_each(|(count, more)| *count += more);
        self.sessions += other.sessions;
        self.sessions_begun += other.sessions_begun;
        self.to_agent += other.to_agent;
        self.to_client += other.to_client;
        self.unreachable += other.unreachable;
        self.connect.add(&other.connect);
        self.request.add(&other.request);
        self.wire.add(other.wire);
    }
}

/// What a worker counts of one agent.
#[derive(Debug, Default)]
pub struct AgentCounters {
    figures: RefCell<AgentFigures>,
    /// Of its sockets.
    pub meter: ByteCounter,
}

impl AgentCounters {
    fn read(&self) -> AgentFigures {
        AgentFigures { wire: self.meter.read(), ..self.figures.borrow().clone() }
    }
}

/// A session, which is counted as open until it is dropped.
pub struct OpenSession(Rc<AgentCounters>);

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.figures.borrow_mut().sessions -= 1;
    }
}

/// What a worker counts.
#[derive(Debug, Default)]
pub struct WorkerStats {
    agents: RefCell<BTreeMap<IpAddr, Rc<AgentCounters>>>,
    /// Of clients' sockets.
    pub clients: Rc<ByteCounter>,
}

impl WorkerStats {
    /// The book of an agent that was reached.
    pub fn agent(&self, agent: IpAddr) -> Rc<AgentCounters> {
        let mut agents = self.agents.borrow_mut();
        let key = if agents.len() < AGENTS_MAX || agents.contains_key(&agent) { agent } else { OTHERS };
        agents.entry(key).or_default().clone()
    }

    /// The book of an agent, or of the others where it was never reached.
    fn known(&self, agent: IpAddr) -> Rc<AgentCounters> {
        let found = self.agents.borrow().get(&agent).cloned();
        found.unwrap_or_else(|| self.agents.borrow_mut().entry(OTHERS).or_default().clone())
    }

    /// An agent was connected to, which took so long.
    pub fn reached(&self, agent: IpAddr, took: Duration) {
        self.agent(agent).figures.borrow_mut().connect.note(took);
    }

    /// An agent could not be connected to.
    pub fn missed(&self, agent: IpAddr) {
        self.known(agent).figures.borrow_mut().unreachable += 1;
    }

    /// A session has begun.
    pub fn begin_session(&self, agent: IpAddr) -> OpenSession {
        let book = self.agent(agent);
        let mut figures = book.figures.borrow_mut();
        figures.sessions += 1;
        figures.sessions_begun += 1;
        drop(figures);
        OpenSession(book)
    }

    /// A request or session is over.
    pub fn close(&self, record: &AccessRecord) {
        let Some(agent) = record.agent else { return };
        let book = self.known(agent.ip());
        let mut figures = book.figures.borrow_mut();
        let class = usize::from(record.status / 100).min(figures.answers.len() - 1);
        figures.answers[class] += 1;
        figures.to_agent += record.to_agent;
        // What the proxy says itself comes from no agent.
        figures.to_client += if matches!(record.ending, EndReason::Answered | EndReason::Refused) {
            0
        } else {
            record.to_client
        };
        if record.status != 101 {
            figures.request.note(record.duration);
        }
    }

    /// How it stands.
    pub fn read(&self) -> Figures {
        let agents = self.agents.borrow();
        let agents = agents.iter().map(|(agent, book)| (*agent, book.read())).collect();
        Figures { agents, clients: self.clients.read() }
    }
}

/// How it stands with one worker, or with all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Figures {
    /// By agent.
    pub agents: BTreeMap<IpAddr, AgentFigures>,
    /// What went over clients' sockets.
    pub clients: Wire,
}

impl Figures {
    /// What went over an agent's sockets.
    pub fn wire(&self, agent: IpAddr) -> Wire {
        self.agents.get(&agent).map(|figures| figures.wire).unwrap_or_default()
    }

    fn add(&mut self, other: &Self) {
        for (agent, figures) in &other.agents {
            self.agents.entry(*agent).or_default().add(figures);
        }
        self.clients.add(other.clients);
    }
}

/// What the kernel has counted of one agent's connections, or of one listener's.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct KernelFigures {
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
    pub retransmitted: u64,
    /// The smoothed round-trip time of the connection that spoke last.
    pub round_trip_us: u64,
    /// Times to connect: the n-th number is of those of 2^n us and more, below 2^(n+1).
    pub connect_times: Vec<u64>,
    /// Smoothed round-trip times, likewise.
    pub round_trips: Vec<u64>,
}

impl KernelFigures {
    /// Bytes that are in this account and not in the proxy's own, received and sent: they are on their way, or were never
    /// read. Fewer than none where the kernel has still to tell of some.
    pub fn beyond(&self, own: Wire) -> (i64, i64) {
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
        self.retransmitted += other.retransmitted;
        self.round_trip_us = self.round_trip_us.max(other.round_trip_us);
        add_each(&mut self.connect_times, &other.connect_times);
        add_each(&mut self.round_trips, &other.round_trips);
    }
}

fn add_each(sum: &mut Vec<u64>, more: &[u64]) {
    sum.resize(sum.len().max(more.len()), 0);
    sum.iter_mut().zip(more).for_each(|(count, more)| *count += more);
}

/// The kernel's own account of a process's connections.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct KernelAccount {
    /// By agent.
    pub agents: BTreeMap<IpAddr, KernelFigures>,
    /// By the port that clients come to.
    pub listeners: BTreeMap<u32, KernelFigures>,
}

/// What workers have published. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StatsSnapshot(Arc<[Mutex<Figures>]>);

impl StatsSnapshot {
    /// Nothing yet.
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Mutex::default()).collect())
    }

    /// Publishes how it stands with a worker.
    pub fn put(&self, worker: usize, figures: Figures) {
        if let Some(place) = self.0.get(worker) {
            *lock(place) = figures;
        }
    }

    /// How it stands with all workers.
    pub fn sum(&self) -> Figures {
        self.0.iter().fold(Figures::default(), |mut sum, figures| {
            sum.add(&lock(figures));
            sum
        })
    }
}

fn lock(figures: &Mutex<Figures>) -> MutexGuard<'_, Figures> {
    figures.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));

    #[test]
    fn times_fall_into_their_buckets() {
        let mut times = Times::default();
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
            let books = WorkerStats::default();
            books.reached(AGENT, Duration::from_millis(3));
            books.agent(AGENT).meter.sent(10);
            books.clients.received(7);
            let open = books.begin_session(AGENT);
            drop(books.begin_session(AGENT));
            published.put(worker, books.read());
            drop(open);
        }
        let sum = published.sum();
        let figures = &sum.agents[&AGENT];
        assert_eq!((figures.sessions, figures.sessions_begun, figures.connect.count()), (2, 4, 2));
        assert_eq!((figures.wire.sent, sum.clients.received), (20, 14));
        let written = serde_json::to_string(&sum).expect("text");
        assert_eq!(serde_json::from_str::<Figures>(&written).expect("figures"), sum);
        // An older or newer program may not know all of them.
        assert_eq!(serde_json::from_str::<Figures>("{\"x\":1}").expect("figures"), Figures::default());
    }

    #[test]
    fn who_asks_for_strangers_makes_no_new_books() {
        let books = WorkerStats::default();
        for last in 0..=255 {
            books.missed(IpAddr::from([10, 0, 0, last]));
        }
        let figures = books.read();
        assert_eq!(figures.agents.len(), 1);
        assert_eq!(figures.agents[&OTHERS].unreachable, 256);
        for agent in (0x0b00_0000_u32..).take(AGENTS_MAX + 10) {
            books.agent(IpAddr::from(agent.to_be_bytes()));
        }
        assert_eq!(books.read().agents.len(), AGENTS_MAX);
    }
}
