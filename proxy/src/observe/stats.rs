//! Statistics of each agent and of clients. A worker counts in cells of its own and publishes what has changed once a second,
//! so that nothing is shared while bytes move; a snapshot is up to a second old. Knows no socket.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::observe::access_log::{AccessRecord, EndReason};
use crate::observe::agent::AgentId;
use crate::observe::agent_stats::{AgentCounters, AgentStats, ByteCounter, SocketBytes};
use crate::observe::handshakes::{self, HandshakeCount, HandshakeCounters, HandshakeOutcome};
use crate::observe::histogram::{Counts, Distribution, micros};
use crate::observe::session_stats::{HandedOn, LiveSession, SessionStats, TcpProbe};
use crate::observe::side::Side;
use crate::runtime::executor::RoundObserver;

/// Agents that are counted each by itself; the others are counted together, as [`AgentId::OTHERS`].
const AGENTS_MAX: usize = 4096;
/// Agents of those that were never reached: who asks for addresses at which nothing is must not take the places of others.
const UNREACHED_MAX: usize = 256;
/// How late the kernel may make a timer (prctl(2), `PR_SET_TIMERSLACK`), and what firing it takes.
const TIMER_SLACK: Duration = Duration::from_micros(100);
/// Wake-ups that their mean is taken of: two seconds of them.
const WAKE_UPS: u64 = 20;
/// Bytes handed on in one round that are counted; sessions of a worker times two would be needed for more.
const ARRIVALS_MAX: usize = 16_384;

/// Bytes that have reached the side that they were for in this round.
#[derive(Debug)]
struct Arrival {
    session: Rc<SessionStats>,
    to: Side,
    since: Instant,
    handed_on: HandedOn,
}

/// The counters of a worker.
#[derive(Debug, Default)]
pub struct WorkerStats {
    agents: RefCell<BTreeMap<AgentId, Rc<AgentCounters>>>,
    unreached: Cell<usize>,
    /// Of clients' sockets.
    pub clients: Rc<ByteCounter>,
    arrivals: Rc<RefCell<Vec<Arrival>>>,
    sessions: RefCell<Slab<Weak<SessionStats>>>,
    wake_up_us: Cell<u64>,
    /// Processor time, and the time in which it was used.
    cpu_time: Cell<(Duration, Duration)>,
    own_responses: RefCell<BTreeMap<u16, u64>>,
    session_ends: RefCell<BTreeMap<String, u64>>,
    accepted: Cell<u64>,
    handshakes: RefCell<HandshakeCounters>,
    client_handshake: RefCell<Counts>,
}

/// A session, which is counted as open until it is dropped.
#[derive(Debug)]
pub struct OpenSession {
    stats: Rc<SessionStats>,
    arrivals: Rc<RefCell<Vec<Arrival>>>,
}

impl OpenSession {
    /// Bytes have reached the side that they were for, in this round; they could be read since `since`.
    pub fn arrived(&self, to: Side, since: Instant, handed_on: HandedOn) {
        let mut arrivals = self.arrivals.borrow_mut();
        if arrivals.len() < ARRIVALS_MAX {
            arrivals.push(Arrival { session: self.stats.clone(), to, since, handed_on });
        }
    }
}

impl std::ops::Deref for OpenSession {
    type Target = SessionStats;

    fn deref(&self) -> &SessionStats {
        &self.stats
    }
}

/// A round is no longer than what it has done: its end is when what was handed on in it was.
impl RoundObserver for WorkerStats {
    fn wants_end(&self) -> bool {
        !self.arrivals.borrow().is_empty()
    }

    fn round_ended(&self, now: Instant) {
        // Its memory is used again.
        let mut arrivals = std::mem::take(&mut *self.arrivals.borrow_mut());
        for Arrival { session, to, since, handed_on } in arrivals.drain(..) {
            session.arrived(to, since, handed_on, now);
        }
        *self.arrivals.borrow_mut() = arrivals;
    }
}

impl WorkerStats {
    /// The counters of an agent that was reached.
    pub fn agent(&self, agent: AgentId) -> Rc<AgentCounters> {
        let counters = self.entry(agent);
        if !counters.is_reached.replace(true) {
            self.unreached.update(|count| count.saturating_sub(1));
        }
        counters
    }

    /// Those of an agent that need not have been reached.
    fn entry(&self, agent: AgentId) -> Rc<AgentCounters> {
        let mut agents = self.agents.borrow_mut();
        let key =
            if agents.len() < AGENTS_MAX || agents.contains_key(&agent) { agent } else { AgentId::OTHERS };
        let is_new = !agents.contains_key(&key);
        let counters = agents.entry(key).or_default().clone();
        if is_new {
            counters.is_reached.set(key == AgentId::OTHERS);
            self.unreached.update(|count| count + usize::from(key != AgentId::OTHERS));
        }
        counters
    }

    /// Those of an agent, or of the others where too many were never reached.
    fn known(&self, agent: AgentId) -> Rc<AgentCounters> {
        let is_known = self.agents.borrow().contains_key(&agent);
        self.entry(if is_known || self.unreached.get() < UNREACHED_MAX { agent } else { AgentId::OTHERS })
    }

    /// Counts a connection to an agent: how long connecting took, and the TLS handshake of it, if there was one.
    pub fn connected(&self, agent: AgentId, took: Duration, handshake: Option<Duration>) {
        self.agent(agent).count(|stats| {
            stats.connect.note_time(took);
            if let Some(time) = handshake {
                stats.handshake.note_time(time);
            }
        });
    }

    /// Counts a client's connection that was accepted.
    pub fn accepted(&self) {
        self.accepted.update(|count| count + 1);
    }

    /// Counts a TLS handshake that is over; `took`: where it succeeded with a client.
    pub fn handshake(&self, outcome: HandshakeOutcome, took: Option<Duration>) {
        self.handshakes.borrow_mut().note(outcome);
        if let Some(time) = took {
            self.client_handshake.borrow_mut().note_time(time);
        }
    }

    /// Counts a failed connection to an agent.
    pub fn connect_failed(&self, agent: AgentId) {
        self.known(agent).count(|stats| stats.connect_failures += 1);
    }

    /// Counts a session, which is open until the value is dropped. `probes`: of the client's connection, and the agent's.
    pub fn begin_session(
        &self,
        agent: AgentId,
        live: LiveSession,
        probes: [Option<TcpProbe>; 2],
        now: Instant,
    ) -> OpenSession {
        let counters = self.agent(agent);
        counters.count(|stats| {
            stats.sessions += 1;
            stats.sessions_opened += 1;
        });
        let stats = Rc::new(SessionStats::new(counters, live, probes, now));
        self.sessions.borrow_mut().insert(Rc::downgrade(&stats));
        OpenSession { stats, arrivals: self.arrivals.clone() }
    }

    /// Whether there may be sessions to sample.
    pub fn has_sessions(&self) -> bool {
        !self.sessions.borrow().is_empty()
    }

    /// Notes how late the worker was woken: a timer tells of a machine without a free core, which sockets don't.
    pub fn note_wake_up(&self, late: Duration) {
        let us = micros(late.saturating_sub(TIMER_SLACK));
        self.wake_up_us.update(|mean| (mean * (WAKE_UPS - 1) + us) / WAKE_UPS);
    }

    /// Notes how much processor time the worker has used, of the time since it began.
    pub fn note_cpu_time(&self, used: Duration, alive: Duration) {
        self.cpu_time.set((used, alive));
    }

    /// How late the worker is woken, in the mean.
    pub fn wake_up_us(&self) -> u64 {
        self.wake_up_us.get()
    }

    /// Samples those sessions whose turn it is: every `turns`-th, from the one of this number on.
    pub fn sample_sessions(&self, turn: usize, turns: usize, now: Instant) {
        self.sessions.borrow_mut().retain(|key, session| match session.upgrade() {
            Some(session) if key % turns == turn => {
                session.sample(now, self.wake_up_us.get());
                true
            }
            session => session.is_some(),
        });
    }

    /// Counts a response that no agent gave.
    pub fn answered_itself(&self, status: u16) {
        *self.own_responses.borrow_mut().entry(status).or_default() += 1;
    }

    /// Counts a request or session that is over.
    pub fn close(&self, record: &AccessRecord) {
        if record.status == 101 {
            *self.session_ends.borrow_mut().entry(record.end_reason.to_string()).or_default() += 1;
        }
        let Some(agent) = record.agent else { return };
        self.known(agent.id).count(|stats| {
            let class = usize::from(record.status / 100).min(stats.answers.len() - 1);
            stats.answers[class] += 1;
            stats.to_agent += record.to_agent;
            // What the proxy says itself comes from no agent.
            stats.to_client += if matches!(record.end_reason, EndReason::Answered | EndReason::Rejected) {
                0
            } else {
                record.to_client
            };
            if record.status == 101 {
                stats.session.note(record.duration.as_secs());
            } else {
                stats.request.note_time(record.duration);
            }
            if let Some(time) = record.first_byte {
                stats.first_byte.note_time(time);
            }
        });
    }

    /// The agents that have been counted since they were read last.
    pub fn changed(&self) -> Vec<(AgentId, Rc<AgentCounters>)> {
        let agents = self.agents.borrow();
        let changed = agents.iter().filter(|(_, counters)| counters.has_changed());
        changed.map(|(agent, counters)| (*agent, counters.clone())).collect()
    }

    /// The current values.
    pub fn read(&self) -> Stats {
        let agents = self.agents.borrow();
        let agents = agents.iter().map(|(agent, counters)| (*agent, counters.read())).collect();
        Stats { agents, ..self.read_clients() }
    }

    /// The same without agents.
    fn read_clients(&self) -> Stats {
        Stats {
            agents: BTreeMap::new(),
            clients: self.clients.read(),
            accepted: self.accepted.get(),
            handshakes: self.handshakes.borrow().read(),
            client_handshake: self.client_handshake.borrow_mut().read(),
            wake_up_us: self.wake_up_us.get(),
            cpu_us: micros(self.cpu_time.get().0),
            alive_us: micros(self.cpu_time.get().1),
            own_responses: self.own_responses.borrow().clone(),
            session_ends: self.session_ends.borrow().clone(),
        }
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
    /// Connections of clients that were accepted.
    pub accepted: u64,
    /// TLS handshakes that are over.
    pub handshakes: Vec<HandshakeCount>,
    /// How long clients' TLS handshakes took, in microseconds.
    pub client_handshake: Distribution,
    /// How late a worker is woken, in the mean of the last seconds, in microseconds; of several, the latest.
    pub wake_up_us: u64,
    /// Processor time that workers have used, in microseconds.
    pub cpu_us: u64,
    /// The time in which they have, in microseconds.
    pub alive_us: u64,
    /// Responses that no agent gave, by status.
    pub own_responses: BTreeMap<u16, u64>,
    /// Sessions that have ended, by reason.
    pub session_ends: BTreeMap<String, u64>,
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
        self.accepted += other.accepted;
        handshakes::add(&mut self.handshakes, &other.handshakes);
        self.client_handshake.add(&other.client_handshake);
        self.wake_up_us = self.wake_up_us.max(other.wake_up_us);
        self.cpu_us += other.cpu_us;
        self.alive_us += other.alive_us;
        for (status, count) in &other.own_responses {
            *self.own_responses.entry(*status).or_default() += count;
        }
        for (reason, count) in &other.session_ends {
            *self.session_ends.entry(reason.clone()).or_default() += count;
        }
    }
}

/// A worker.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// Client connections that are open.
    pub connections: u64,
    /// Sessions that are open.
    pub sessions: u64,
    /// Bytes on clients' sockets.
    pub clients: SocketBytes,
    /// How late it is woken, in microseconds, in the mean of the last seconds.
    pub wake_up_us: u64,
    /// Processor time that it has used, in microseconds.
    pub cpu_us: u64,
    /// The time in which it has, in microseconds.
    pub alive_us: u64,
}

/// The statistics that workers have published. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StatsSnapshot(Arc<[Mutex<Published>]>);

/// What a worker has published: its agents one by one, so that nobody holds it up for longer than it takes to count them.
#[derive(Clone, Debug, Default)]
struct Published {
    agents: BTreeMap<AgentId, Arc<AgentStats>>,
    clients: Stats,
}

impl StatsSnapshot {
    /// Nothing yet.
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Mutex::default()).collect())
    }

    /// Publishes what a worker has counted of an agent.
    pub fn put_agent(&self, worker: usize, agent: AgentId, counters: &AgentCounters) {
        if let Some(place) = self.0.get(worker) {
            let stats = counters.read();
            lock(place).agents.insert(agent, Arc::new(stats));
        }
    }

    /// Publishes what a worker has counted of no agent.
    pub fn put_clients(&self, worker: usize, stats: &WorkerStats) {
        if let Some(place) = self.0.get(worker) {
            let clients = stats.read_clients();
            lock(place).clients = clients;
        }
    }

    /// The status of each worker; `connections`: those that it has now.
    pub fn workers(&self, connections: &[usize]) -> Vec<WorkerStatus> {
        let status = |(place, connections): (&Mutex<Published>, &usize)| {
            let published = lock(place);
            let Stats { clients, wake_up_us, cpu_us, alive_us, .. } = published.clients;
            let sessions = published.agents.values().map(|agent| agent.sessions).sum();
            WorkerStatus { connections: *connections as u64, sessions, clients, wake_up_us, cpu_us, alive_us }
        };
        self.0.iter().zip(connections).map(status).collect()
    }

    /// The sum over all workers.
    pub fn sum(&self) -> Stats {
        self.0.iter().fold(Stats::default(), |mut sum, place| {
            let Published { agents, clients } = lock(place).clone();
            for (agent, stats) in agents {
                sum.agents.entry(agent).or_default().add(&stats);
            }
            sum.add(&clients);
            sum
        })
    }
}

fn lock(stats: &Mutex<Published>) -> MutexGuard<'_, Published> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn agent() -> AgentId {
        IpAddr::from([10, 0, 0, 5]).into()
    }

    fn begin_session(worker: &WorkerStats) -> OpenSession {
        worker.begin_session(agent(), LiveSession::default(), [None, None], Instant::now())
    }

    #[test]
    fn what_workers_count_is_summed_up_and_survives_being_written_down() {
        let published = StatsSnapshot::new(2);
        for worker in 0..2 {
            let stats = WorkerStats::default();
            stats.connected(agent(), Duration::from_millis(3), None);
            stats.agent(agent()).sockets.sent(10);
            stats.clients.received(7);
            let open = begin_session(&stats);
            drop(begin_session(&stats));
            published.put_clients(worker, &stats);
            for (agent, counters) in stats.changed() {
                published.put_agent(worker, agent, &counters);
            }
            assert!(stats.changed().is_empty());
            drop(open);
            assert_eq!(stats.changed().len(), 1);
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
    fn what_stands_for_the_sides_of_sessions_is_added_up_until_it_is_taken() {
        let worker = WorkerStats::default();
        let (one, other) = (begin_session(&worker), begin_session(&worker));
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
    }

    #[test]
    fn bytes_count_from_when_they_could_be_read_to_the_end_of_the_round_in_which_they_went_on() {
        let (worker, start) = (WorkerStats::default(), Instant::now());
        let open = begin_session(&worker);
        assert!(!worker.wants_end());
        open.arrived(Side::Client, start, HandedOn::AtOnce);
        open.arrived(Side::Agent, start, HandedOn::AtOnce);
        assert!(worker.wants_end());
        worker.round_ended(start + Duration::from_micros(700));
        assert!(!worker.wants_end());
        let stats = worker.read().agents.remove(&agent()).unwrap_or_default();
        assert_eq!((stats.residence_to_client.sum, stats.residence_to_agent.sum), (700, 700));
        for _ in 0..2 * ARRIVALS_MAX {
            open.arrived(Side::Client, start, HandedOn::AtOnce);
        }
        assert_eq!(worker.arrivals.borrow().len(), ARRIVALS_MAX);
    }

    #[test]
    fn sessions_are_sampled_in_turns_until_they_end() {
        let (worker, start) = (WorkerStats::default(), Instant::now());
        let sessions: Vec<_> = (0..10).map(|_| begin_session(&worker)).collect();
        for open in &sessions {
            open.note_moved(Side::Client, 100);
        }
        let sampled = || sessions.iter().filter(|open| open.latest().to_client > 0).count();
        worker.sample_sessions(3, 5, start + Duration::from_secs(1));
        assert_eq!(sampled(), 2);
        for turn in 0..5 {
            worker.sample_sessions(turn, 5, start + Duration::from_secs(1));
        }
        assert_eq!(sampled(), 10);
        drop(sessions);
        worker.sample_sessions(0, 5, start);
        assert!(!worker.has_sessions());
    }

    #[test]
    fn agents_that_were_never_reached_have_entries_of_their_own_up_to_a_limit() {
        let worker = WorkerStats::default();
        for agent in (0x0a00_0000_u32..).take(UNREACHED_MAX + 44) {
            worker.connect_failed(IpAddr::from(agent.to_be_bytes()).into());
        }
        let stats = worker.read();
        assert_eq!(stats.agents.len(), UNREACHED_MAX + 1);
        assert_eq!(stats.agents[&AgentId::OTHERS].connect_failures, 44);
        // One that is reached makes room for another.
        worker.agent(IpAddr::from([10, 0, 0, 7]).into());
        worker.connect_failed(IpAddr::from([10, 0, 9, 9]).into());
        assert_eq!(worker.read().agents.len(), UNREACHED_MAX + 2);
        for agent in (0x0b00_0000_u32..).take(AGENTS_MAX + 10) {
            worker.agent(IpAddr::from(agent.to_be_bytes()).into());
        }
        assert_eq!(worker.read().agents.len(), AGENTS_MAX);
    }
}
