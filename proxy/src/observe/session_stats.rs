//! The statistics of one open session: counted by its worker in cells, sampled once a second, and kept for five minutes where
//! anybody may read them. Knows no socket: it is given a way to ask the kernel.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::observe::agent_stats::AgentCounters;
use crate::observe::histogram::micros;
use crate::observe::lag::{Answers, Lag, TcpSample};
use crate::observe::side::Side;

/// Seconds that one point of the history stands for.
const POINT_S: u32 = 5;
/// Points of the history: five minutes.
const HISTORY_MAX: usize = 60;
/// Residences are counted by powers of two of microseconds; what is longer than the last counts as that.
const POWERS: usize = 24;

/// What a session is like now. Rates are bytes a second, times microseconds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct SessionSample {
    /// Bytes to the agent and to the client so far, as plaintext.
    pub to_agent: u64,
    /// The same to the client.
    pub to_client: u64,
    /// Bytes a second to the agent, since the sample before.
    pub rate_to_agent: u64,
    /// The same to the client.
    pub rate_to_client: u64,
    /// The client's connection, where the kernel tells.
    pub client_tcp: Option<TcpSample>,
    /// The agent's connection.
    pub agent_tcp: Option<TcpSample>,
    /// Bytes that stand for the agent.
    pub queue_to_agent: u64,
    /// Bytes that stand for the client.
    pub queue_to_client: u64,
    /// How long bytes have stayed in the proxy: what 99 of 100 keep to, both ways, since the session began.
    pub residence_p99_us: u64,
    /// Where its time goes.
    pub lag: Lag,
}

/// A few seconds of a session: the largest of each.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct HistoryPoint {
    /// When they began, in seconds since the session did.
    pub at_s: u32,
    /// Round-trip time to the client, in microseconds.
    pub client_rtt_us: u32,
    /// Bytes that stood, both ways.
    pub queue: u32,
    /// Bytes a second, both ways.
    pub rate: u32,
    /// Mean time in the proxy, in microseconds.
    pub residence_us: u32,
}

impl HistoryPoint {
    fn join(&mut self, other: Self) {
        self.client_rtt_us = self.client_rtt_us.max(other.client_rtt_us);
        self.queue = self.queue.max(other.queue);
        self.rate = self.rate.max(other.rate);
        self.residence_us = self.residence_us.max(other.residence_us);
    }
}

/// What others may read of a session. Written by its worker once a second, while it moves bytes.
#[derive(Clone, Debug, Default)]
pub struct LiveSession(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    sample: SessionSample,
    history: VecDeque<HistoryPoint>,
}

impl LiveSession {
    /// The latest sample.
    pub fn sample(&self) -> SessionSample {
        self.lock().sample.clone()
    }

    /// The last five minutes in which it moved bytes.
    pub fn history(&self) -> Vec<HistoryPoint> {
        self.lock().history.iter().copied().collect()
    }

    fn put(&self, sample: SessionSample, point: HistoryPoint) {
        let mut shared = self.lock();
        shared.sample = sample;
        match shared.history.back_mut() {
            Some(last) if point.at_s < last.at_s + POINT_S => last.join(point),
            _ => {
                if shared.history.len() == HISTORY_MAX {
                    shared.history.pop_front();
                }
                shared.history.push_back(point);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A way to ask the kernel of a connection, as long as it is there.
pub type TcpProbe = Box<dyn Fn() -> Option<TcpSample>>;

/// The same, for several that share a connection.
pub type SharedProbe = Rc<dyn Fn() -> Option<TcpSample>>;

/// A session, counted by its worker.
pub struct SessionStats {
    pub(super) agent: Rc<AgentCounters>,
    live: LiveSession,
    /// Of the client's connection, and the agent's.
    probes: [Option<TcpProbe>; 2],
    began: Instant,
    /// By direction: bytes moved so far.
    moved: [Cell<u64>; 2],
    /// By direction: bytes that stand, and the time that the receiver needs to take them.
    standing: [Cell<(u64, Duration)>; 2],
    /// Of both directions, by powers of two.
    residences: RefCell<[u32; POWERS]>,
    /// By direction, since the last sample: times in the proxy of what the receiver took at once, together, and their number.
    handed_on: [Cell<(u64, u32)>; 2],
    /// When the client's oldest question reached the agent that has no answer yet.
    asked: Cell<Option<Instant>>,
    is_agent_speaking: Cell<bool>,
    answers: Cell<Answers>,
    /// Of the sample before.
    sampled: Cell<Sampled>,
}

#[derive(Clone, Copy, Debug)]
struct Sampled {
    at: Instant,
    moved: [u64; 2],
    proxy_us: Option<u64>,
    /// It moved something, or had something to move.
    was_busy: bool,
}

impl fmt::Debug for SessionStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionStats").field("moved", &self.moved).finish_non_exhaustive()
    }
}

fn index(to: Side) -> usize {
    usize::from(to == Side::Client)
}

impl SessionStats {
    pub(super) fn new(
        agent: Rc<AgentCounters>,
        live: LiveSession,
        probes: [Option<TcpProbe>; 2],
        now: Instant,
    ) -> Self {
        let sampled = Sampled { at: now, moved: [0; 2], proxy_us: None, was_busy: false };
        Self {
            agent,
            live,
            probes,
            began: now,
            moved: Default::default(),
            standing: Default::default(),
            residences: RefCell::default(),
            handed_on: Default::default(),
            asked: Cell::new(None),
            is_agent_speaking: Cell::new(false),
            answers: Cell::default(),
            sampled: Cell::new(sampled),
        }
    }

    /// Notes how many bytes have moved in all.
    pub fn note_moved(&self, to: Side, bytes: u64) {
        self.moved[index(to)].set(bytes);
    }

    /// Counts what stands for a side that holds back, and how long it needs to take it.
    pub fn note_queue(&self, to: Side, bytes: u64, time: Duration) {
        self.stands(to, bytes, time);
        self.agent.count(|stats| {
            let queue = stats.queue(to);
            queue.bytes.note(bytes);
            queue.time.note_time(time);
        });
    }

    /// Nothing stands for a side any more.
    pub fn end_queue(&self, to: Side) {
        self.stands(to, 0, Duration::ZERO);
    }

    fn stands(&self, to: Side, bytes: u64, time: Duration) {
        let (before, _) = self.standing[index(to)].replace((bytes, time));
        self.agent.count(|stats| {
            let queue = stats.queue(to);
            queue.standing = queue.standing - before + bytes;
        });
    }

    /// The agent says something, after it had nothing to say.
    pub fn agent_speaks(&self, now: Instant) {
        let mut answers = self.answers.get();
        self.is_agent_speaking.set(true);
        match self.asked.get().map(|asked| now.checked_duration_since(asked)) {
            // It may have begun before it was asked.
            Some(None) | None => answers.note_unasked(),
            Some(Some(took)) => {
                self.asked.set(None);
                answers.note_answer(micros(took));
            }
        }
        self.answers.set(answers);
    }

    /// It has nothing more to say for now.
    pub fn agent_pauses(&self) {
        self.is_agent_speaking.set(false);
    }

    /// What reaches it now need not be what it answers next.
    pub fn is_agent_speaking(&self) -> bool {
        self.is_agent_speaking.get()
    }

    /// Bytes have reached the side that they were for, at a time of the clock; they could be read since `since`.
    pub(super) fn arrived(&self, to: Side, since: Instant, handed_on: HandedOn, now: Instant) {
        let time = now.saturating_duration_since(since);
        self.agent.count(|stats| stats.residence(to).note_time(time));
        let us = micros(time);
        let power = (u64::BITS - us.leading_zeros()) as usize;
        let counts = &mut self.residences.borrow_mut()[power.min(POWERS - 1)];
        *counts = counts.saturating_add(1);
        if handed_on != HandedOn::AfterAWait {
            let (sum, count) = self.handed_on[index(to)].get();
            self.handed_on[index(to)].set((sum.saturating_add(us), count.saturating_add(1)));
        }
        if handed_on == HandedOn::Question && self.asked.get().is_none() {
            self.asked.set(Some(now));
        }
    }

    /// Below what 99 of 100 residences lie, both ways.
    fn residence_p99_us(&self) -> u64 {
        let counts = self.residences.borrow();
        let all: u64 = counts.iter().copied().map(u64::from).sum();
        let (wanted, mut seen) = ((all * 99).div_ceil(100), 0);
        let power = counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted
        });
        power.filter(|_| all > 0).map_or(0, |power| 1 << power)
    }

    /// Looks at it, where it has moved bytes since the last time or still has some to move, and once more when that is over. `wake_up_us`: how long its worker
    /// waits for a core, in the mean.
    pub fn sample(&self, now: Instant, wake_up_us: u64) {
        let before = self.sampled.get();
        let moved = [0, 1].map(|it: usize| self.moved[it].get());
        let standing = [0, 1].map(|it: usize| self.standing[it].get());
        let has_standing = standing.iter().any(|(bytes, _)| *bytes > 0);
        let is_at_rest = moved == before.moved && !has_standing;
        if is_at_rest && !before.was_busy {
            // What moves next, moves from now on.
            self.sampled.set(Sampled { at: now, ..before });
            return;
        }
        let time = micros(now.saturating_duration_since(before.at)).max(1);
        let rates = [0, 1].map(|it| {
            let bytes = u128::from(moved[it].saturating_sub(before.moved[it]));
            u64::try_from(bytes * 1_000_000 / u128::from(time)).unwrap_or(u64::MAX)
        });
        let [client, agent] = [0, 1].map(|it: usize| self.probes[it].as_ref().and_then(|probe| probe()));
        let mean = |(sum, count): (u64, u32)| (count > 0).then(|| sum / u64::from(count));
        let [up, down] = [0, 1].map(|it: usize| mean(self.handed_on[it].take()));
        let proxy_us = match (up, down) {
            (None, None) => before.proxy_us,
            (up, down) => Some([up, down].into_iter().flatten().map(|us| us + wake_up_us).sum()),
        };
        let network = |sample: Option<TcpSample>, (_, time): (u64, Duration)| {
            sample.map(|sample| u64::from(sample.rtt_us) + micros(time))
        };
        let [to_agent, to_client] = standing;
        let lag = Lag {
            client_network_us: network(client, to_client),
            proxy_us,
            agent_network_us: network(agent, to_agent),
            agent_us: self
                .answers
                .get()
                .mean_us()
                .map(|us| us.saturating_sub(agent.map_or(0, |sample| sample.rtt_us.into()) + wake_up_us)),
        };
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let point = HistoryPoint {
            at_s: narrow(now.saturating_duration_since(self.began).as_secs()),
            client_rtt_us: client.map_or(0, |sample| sample.rtt_us),
            queue: narrow(to_agent.0 + to_client.0),
            rate: narrow(rates[0] + rates[1]),
            residence_us: narrow(proxy_us.unwrap_or(0)),
        };
        let sample = SessionSample {
            to_agent: moved[0],
            to_client: moved[1],
            rate_to_agent: rates[0],
            rate_to_client: rates[1],
            client_tcp: client,
            agent_tcp: agent,
            queue_to_agent: to_agent.0,
            queue_to_client: to_client.0,
            residence_p99_us: self.residence_p99_us(),
            lag,
        };
        self.live.put(sample, point);
        self.sampled.set(Sampled { at: now, moved, proxy_us, was_busy: !is_at_rest });
    }

    /// The latest sample.
    pub fn latest(&self) -> SessionSample {
        self.live.sample()
    }
}

impl Drop for SessionStats {
    fn drop(&mut self) {
        for side in [Side::Agent, Side::Client] {
            self.end_queue(side);
        }
        self.agent.count(|stats| stats.sessions -= 1);
    }
}

/// How bytes came to the side that they were for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HandedOn {
    /// At once.
    AtOnce,
    /// At once, to an agent that had nothing more to say.
    Question,
    /// The side had to make room first: that time is its network's, and not the proxy's.
    AfterAWait,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(client: u32, agent: u32) -> (SessionStats, Instant) {
        let now = Instant::now();
        let probe = |rtt_us: u32| -> Option<TcpProbe> {
            Some(Box::new(move || Some(TcpSample { rtt_us, ..TcpSample::default() })))
        };
        let counters: Rc<AgentCounters> = Rc::default();
        counters.count(|stats| stats.sessions += 1);
        (SessionStats::new(counters, LiveSession::default(), [probe(client), probe(agent)], now), now)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_time_goes_to_the_place_that_has_taken_it() {
        let (session, start) = session(30_000, 2000);
        session.arrived(Side::Agent, start, HandedOn::Question, start + Duration::from_micros(40));
        session.agent_speaks(start + ms(9));
        session.arrived(
            Side::Client,
            start + ms(9),
            HandedOn::AtOnce,
            start + ms(9) + Duration::from_micros(60),
        );
        session.note_moved(Side::Agent, 10);
        session.note_moved(Side::Client, 500);
        session.sample(start + ms(1000), 0);
        let sample = session.latest();
        assert_eq!(
            sample.lag,
            Lag {
                client_network_us: Some(30_000),
                proxy_us: Some(100),
                agent_network_us: Some(2000),
                agent_us: Some(6960)
            }
        );
        assert_eq!((sample.rate_to_agent, sample.rate_to_client, sample.residence_p99_us), (10, 500, 64));
    }

    #[test]
    fn the_time_in_which_the_worker_waits_for_a_core_is_the_proxys() {
        let (session, start) = session(1000, 1000);
        session.arrived(Side::Agent, start, HandedOn::Question, start);
        session.agent_speaks(start + ms(21));
        session.arrived(Side::Client, start + ms(21), HandedOn::AtOnce, start + ms(21));
        session.note_moved(Side::Client, 1);
        session.sample(start + ms(1000), 15_000);
        let lag = session.latest().lag;
        assert_eq!((lag.proxy_us, lag.agent_us), (Some(30_000), Some(5000)));
    }

    #[test]
    fn what_waits_for_a_slow_client_is_its_networks_and_not_the_proxys() {
        let (session, start) = session(30_000, 2000);
        session.note_queue(Side::Client, 100_000, ms(80));
        session.arrived(Side::Client, start, HandedOn::AfterAWait, start + ms(70));
        session.note_moved(Side::Client, 100_000);
        session.sample(start + ms(1000), 0);
        let sample = session.latest();
        assert_eq!((sample.lag.client_network_us, sample.lag.proxy_us), (Some(110_000), None));
        assert_eq!((sample.queue_to_client, sample.residence_p99_us), (100_000, 1 << 17));
    }

    #[test]
    fn a_session_at_rest_is_looked_at_once_and_keeps_what_it_was_like_but_for_its_rates() {
        let (session, start) = session(1000, 1000);
        session.note_moved(Side::Client, 5);
        session.sample(start + ms(1000), 0);
        let before = session.latest();
        assert_eq!(before.rate_to_client, 5);
        session.sample(start + ms(2000), 0);
        let at_rest = SessionSample { rate_to_client: 0, ..before };
        (3..600).for_each(|second| session.sample(start + Duration::from_secs(second), 0));
        assert_eq!((session.latest(), session.live.history().len()), (at_rest, 1));
        // What moves then has moved in the last second, and not in ten minutes.
        session.note_moved(Side::Client, 1005);
        session.sample(start + Duration::from_mins(10), 0);
        assert_eq!(session.latest().rate_to_client, 1000);
    }

    #[test]
    fn the_history_has_the_largest_of_every_five_seconds_and_is_bounded() {
        let (session, start) = session(1000, 1000);
        for second in 1..=600 {
            session.note_moved(Side::Client, second * second);
            session.sample(start + Duration::from_secs(second), 0);
        }
        let history = session.live.history();
        assert_eq!(history.len(), HISTORY_MAX);
        assert!(history.windows(2).all(|two| two[1].at_s - two[0].at_s == POINT_S), "{history:?}");
        assert_eq!(history.last().map(|point| (point.at_s, point.rate)), Some((596, 1199)));
    }
}
