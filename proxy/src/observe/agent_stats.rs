//! The statistics of one agent. A worker counts in cells of its own; what is read of them is handed on. Knows no socket.

use std::cell::{Cell, RefCell};

use serde::{Deserialize, Serialize};

use crate::observe::histogram::{Counts, Distribution};
use crate::observe::side::Side;

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
    pub(super) fn add(&mut self, other: Self) {
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

    pub(super) fn read(&self) -> SocketBytes {
        SocketBytes { received: self.received.get(), sent: self.sent.get() }
    }
}

/// What stands in the proxy and its sockets for a side that takes less than the other says. Sampled every 20 ms, and only
/// while that side holds back.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, bound(deserialize = "H: Default + Deserialize<'de>"))]
pub struct QueueStats<H = Distribution> {
    /// Bytes that stood.
    pub bytes: H,
    /// How long the side needs to take them, in microseconds.
    pub time: H,
    /// Bytes that stand now, in all sessions.
    pub standing: u64,
}

impl QueueStats<Counts> {
    fn read(&mut self) -> QueueStats {
        QueueStats { bytes: self.bytes.read(), time: self.time.read(), standing: self.standing }
    }
}

impl QueueStats {
    fn add(&mut self, other: &Self) {
        self.bytes.add(&other.bytes);
        self.time.add(&other.time);
        self.standing += other.standing;
    }
}

/// The statistics of one agent; a worker counts in [`Counts`]. Times are in microseconds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, bound(deserialize = "H: Default + Deserialize<'de>"))]
pub struct AgentStats<H = Distribution> {
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
    pub connect: H,
    /// How long its TLS handshakes took.
    pub handshake: H,
    /// From a request's head to the first byte of the response.
    pub first_byte: H,
    /// How long requests took, from their head to their end; sessions apart.
    pub request: H,
    /// How long sessions lasted that have ended, in seconds.
    pub session: H,
    /// From when bytes could be read on one side to when the other had taken them.
    pub residence_to_agent: H,
    /// The same of those to the client.
    pub residence_to_client: H,
    /// Bytes on its sockets.
    pub sockets: SocketBytes,
    /// What stands for it.
    pub queue_to_agent: QueueStats<H>,
    /// What stands for its clients.
    pub queue_to_client: QueueStats<H>,
}

impl<H> AgentStats<H> {
    /// What stands for a side.
    pub(super) fn queue(&mut self, to: Side) -> &mut QueueStats<H> {
        match to {
            Side::Agent => &mut self.queue_to_agent,
            Side::Client => &mut self.queue_to_client,
        }
    }

    /// The residence of bytes to a side.
    pub(super) fn residence(&mut self, to: Side) -> &mut H {
        match to {
            Side::Agent => &mut self.residence_to_agent,
            Side::Client => &mut self.residence_to_client,
        }
    }
}

impl AgentStats {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.answers.iter_mut().zip(other.answers).for_each(|(count, more)| *count += more);
        self.sessions += other.sessions;
        self.sessions_opened += other.sessions_opened;
        self.to_agent += other.to_agent;
        self.to_client += other.to_client;
        self.connect_failures += other.connect_failures;
        self.connect.add(&other.connect);
        self.handshake.add(&other.handshake);
        self.first_byte.add(&other.first_byte);
        self.request.add(&other.request);
        self.session.add(&other.session);
        self.residence_to_agent.add(&other.residence_to_agent);
        self.residence_to_client.add(&other.residence_to_client);
        self.sockets.add(other.sockets);
        self.queue_to_agent.add(&other.queue_to_agent);
        self.queue_to_client.add(&other.queue_to_client);
    }
}

/// A worker's counters of one agent.
#[derive(Debug, Default)]
pub struct AgentCounters {
    stats: RefCell<AgentStats<Counts>>,
    /// Something but bytes was counted since it was read last.
    has_changed: Cell<bool>,
    read_bytes: Cell<SocketBytes>,
    /// It was reached.
    pub(super) is_reached: Cell<bool>,
    /// Of its sockets.
    pub sockets: ByteCounter,
}

impl AgentCounters {
    /// Counts something.
    pub(super) fn count<T>(&self, change: impl FnOnce(&mut AgentStats<Counts>) -> T) -> T {
        self.has_changed.set(true);
        change(&mut self.stats.borrow_mut())
    }

    /// Whether it says other things than when it was read last.
    pub(super) fn has_changed(&self) -> bool {
        self.has_changed.get() || self.sockets.read() != self.read_bytes.get()
    }

    /// The current values.
    pub(super) fn read(&self) -> AgentStats {
        let sockets = self.sockets.read();
        self.has_changed.set(false);
        self.read_bytes.set(sockets);
        let mut stats = self.stats.borrow_mut();
        AgentStats {
            answers: stats.answers,
            sessions: stats.sessions,
            sessions_opened: stats.sessions_opened,
            to_agent: stats.to_agent,
            to_client: stats.to_client,
            connect_failures: stats.connect_failures,
            connect: stats.connect.read(),
            handshake: stats.handshake.read(),
            first_byte: stats.first_byte.read(),
            request: stats.request.read(),
            session: stats.session.read(),
            residence_to_agent: stats.residence_to_agent.read(),
            residence_to_client: stats.residence_to_client.read(),
            sockets,
            queue_to_agent: stats.queue_to_agent.read(),
            queue_to_client: stats.queue_to_client.read(),
        }
    }
}
