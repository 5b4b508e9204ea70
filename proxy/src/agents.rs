//! Connections to agents: kept alive between requests, so that a cursor image costs no handshake, and made
//! anew where none is left. One pool per worker; a connection is lent to one request at a time. One that a client has
//! logged in on is that client's alone, and never pooled.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::task::Context;
use std::time::{Duration, Instant};

use crate::head::{self, Header};
use crate::net::Stream;
use crate::peer::{Fault, Peer, Scratch};

/// Limits of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// How long an idle connection is kept.
    pub idle: Duration,
    /// How many idle connections are kept per agent.
    pub per_agent: usize,
}

/// Idle connections by agent, the one used last at the end.
pub struct Pool<S> {
    idle: BTreeMap<SocketAddr, Vec<Idle<S>>>,
    limits: PoolLimits,
}

/// A connection to an agent that waits for its next request.
struct Idle<S> {
    peer: Box<Peer<S>>,
    since: Instant,
    promise: Promise,
}

/// An agent counts from when it has sent its answer, and the next request takes its time too: of the time that an agent
/// promises so much is not used, but half of it at the most.
const WAY: Duration = Duration::from_secs(1);

/// How long and for how many requests an agent means to keep its connection: `Keep-Alive: timeout=5, max=100`
/// (RFC 2068 19.7.1.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Promise {
    idle: Duration,
    requests: u32,
}

impl Default for Promise {
    /// Of an agent that has said nothing.
    fn default() -> Self {
        Self { idle: Duration::MAX, requests: u32::MAX }
    }
}

impl Promise {
    /// What is left of it after another request.
    #[must_use]
    pub fn after_one(self) -> Self {
        Self { requests: self.requests.saturating_sub(1), ..self }
    }

    /// Takes in what the agent says of it now.
    pub fn update(&mut self, headers: &[Header<'_>]) {
        for value in head::values(headers, "keep-alive") {
            // White space, quotes and separators of any kind mean nothing.
            let mut words = value.split(|byte| !byte.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            while let Some(name) = words.next() {
                if name.eq_ignore_ascii_case(b"timeout") {
                    self.idle = number(words.next()).map_or(self.idle, usable);
                } else if name.eq_ignore_ascii_case(b"max") {
                    self.requests = number(words.next()).unwrap_or(self.requests);
                }
            }
        }
    }
}

fn number(word: Option<&[u8]>) -> Option<u32> {
    std::str::from_utf8(word?).ok()?.parse().ok()
}

fn usable(seconds: u32) -> Duration {
    let promised = Duration::from_secs(seconds.into());
    promised.saturating_sub(WAY.min(promised / 2))
}

/// Why an agent can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// It refused, or there is no way to it.
    #[error("can't be reached: {0}")]
    Refused(io::Error),
    /// It said nothing in time.
    #[error("did not answer in time")]
    TimedOut,
    /// The TLS handshake failed.
    #[error("failed in the TLS handshake: {0}")]
    Handshake(Fault),
}

impl ReachError {
    /// A word for it, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::TimedOut => "timed out",
            Self::Handshake(_) => "handshake",
        }
    }

    /// The status that the client is given.
    pub fn status(&self) -> u16 {
        match self {
            Self::TimedOut => 504,
            Self::Refused(error) if error.kind() == io::ErrorKind::TimedOut => 504,
            Self::Refused(_) | Self::Handshake(_) => 502,
        }
    }
}

impl<S: Stream> Pool<S> {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Self {
        Self { idle: BTreeMap::new(), limits }
    }

    /// The connection to `agent` that was used last and is still good; bad ones are dropped on the way.
    pub fn take(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        agent: SocketAddr,
        now: Instant,
    ) -> Option<(Box<Peer<S>>, Promise)> {
        let idle = self.idle.get_mut(&agent)?;
        while let Some(mut candidate) = idle.pop() {
            if candidate.is_good(cx, scratch, now, &self.limits) == Some(true) {
                return Some((candidate.peer, candidate.promise));
            }
        }
        None
    }

    /// Keeps `peer` for the next request, if there is room and the agent takes another one.
    pub fn put(&mut self, agent: SocketAddr, peer: Box<Peer<S>>, promise: Promise, now: Instant) {
        let idle = self.idle.entry(agent).or_default();
        if promise.requests > 0 && idle.len() < self.limits.per_agent {
            idle.push(Idle { peer, since: now, promise });
        }
    }

    /// Drops what has been idle for too long or was ended by its agent.
    pub fn reap(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch, now: Instant) {
        for idle in self.idle.values_mut() {
            idle.retain_mut(|candidate| candidate.is_good(cx, scratch, now, &self.limits) != Some(false));
        }
        self.idle.retain(|_, idle| !idle.is_empty());
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.idle.clear();
    }
}

/// The connection that a client has logged in on at an agent, at most one: it serves this client and is closed with it.
pub struct Bound<S>(Option<(SocketAddr, Idle<S>)>);

impl<S: Stream> Bound<S> {
    /// None yet.
    pub fn none() -> Self {
        Self(None)
    }

    /// The connection, if it leads to `agent` and is still good. One to another agent stays for as long as it may be idle.
    pub fn take(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        agent: SocketAddr,
        now: Instant,
        limits: &PoolLimits,
    ) -> Option<(Box<Peer<S>>, Promise)> {
        self.0.take_if(|(_, idle)| idle.is_over(now, limits));
        let (_, mut idle) = self.0.take_if(|(bound_to, _)| *bound_to == agent)?;
        (idle.is_good(cx, scratch, now, limits) == Some(true)).then_some((idle.peer, idle.promise))
    }

    /// Keeps `peer` in place of what was kept before, if the agent takes another request.
    pub fn put(&mut self, agent: SocketAddr, peer: Box<Peer<S>>, promise: Promise, now: Instant) {
        self.0 = (promise.requests > 0).then_some((agent, Idle { peer, since: now, promise }));
    }

    /// Closes it.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

impl<S: Stream> Idle<S> {
    fn is_good(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        now: Instant,
        limits: &PoolLimits,
    ) -> Option<bool> {
        if self.is_over(now, limits) { Some(false) } else { self.peer.is_quiet(cx, scratch) }
    }

    fn is_over(&self, now: Instant, limits: &PoolLimits) -> bool {
        now.duration_since(self.since) >= limits.idle.min(self.promise.idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_read_in_any_writing_and_what_is_none_is_left_out() {
        let none = Promise::default();
        let idle = |millis| Promise { idle: Duration::from_millis(millis), ..none };
        let cases = [
            ("timeout=5, max=100", Promise { requests: 100, ..idle(4000) }),
            ("max=0;TIMEOUT = \"1\"", Promise { requests: 0, ..idle(500) }),
            ("timeout=2 max=1", Promise { requests: 1, ..idle(1000) }),
            ("timeout=0", idle(0)),
            ("timeout=4294967295", idle(4_294_967_294_000)),
            ("timeout=99999999999999999999, max=-1x", none),
            ("timeout", none),
            ("timeout=, max=", none),
            ("x-timeout5, maximum=1", none),
            ("", none),
        ];
        for (value, promised) in cases {
            let mut promise = none;
            promise.update(&[Header { name: "keep-alive", value: value.as_bytes() }]);
            assert_eq!(promise, promised, "{value}");
        }
    }
}
