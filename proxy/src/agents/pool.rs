//! Connections to agents: kept alive between requests, so that a cursor image costs no handshake, and made
//! anew where none is left. One pool per worker; a connection is lent to one request at a time. One that a client has
//! logged in on is that client's alone, and never pooled.

use std::collections::BTreeMap;
use std::io;
use std::task::Context;
use std::time::{Duration, Instant};

use crate::http::h1::keep_alive::KeepAliveLimits;
use crate::observe::agent::Agent;
use crate::transport::endpoint::{Endpoint, EndpointError, WorkerBuffers};
use crate::transport::stream::Stream;

/// Limits of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// How many idle connections are kept per agent.
    pub per_agent: usize,
}

/// Idle connections by agent, the one used last at the end.
pub struct Pool<S> {
    idle: BTreeMap<Agent, Vec<Idle<S>>>,
    limits: PoolLimits,
}

/// A connection to an agent that waits for its next request.
struct Idle<S> {
    endpoint: Box<Endpoint<S>>,
    since: Instant,
    keep_alive_limits: KeepAliveLimits,
}

/// Why an agent can't be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// It refused, or there is no way to it.
    #[error("can't be reached: {0}")]
    Refused(io::Error),
    /// It said nothing in time.
    #[error("did not answer in time")]
    TimedOut,
    /// The TLS handshake failed.
    #[error("failed in the TLS handshake: {0}")]
    Handshake(EndpointError),
}

impl ConnectError {
    /// A word for it, for counting.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::TimedOut => "timeout",
            Self::Handshake(_) => "handshake",
        }
    }

    /// The status that the client is given.
    pub(crate) fn status(&self) -> u16 {
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
        buffers: &mut WorkerBuffers,
        agent: Agent,
        now: Instant,
    ) -> Option<(Box<Endpoint<S>>, KeepAliveLimits)> {
        let idle = self.idle.get_mut(&agent)?;
        while let Some(mut candidate) = idle.pop() {
            if candidate.is_good(cx, buffers, now, &self.limits) == Some(true) {
                return Some((candidate.endpoint, candidate.keep_alive_limits));
            }
        }
        None
    }

    /// Keeps `endpoint` for the next request, if there is room and the agent takes another one.
    pub fn put(
        &mut self,
        agent: Agent,
        endpoint: Box<Endpoint<S>>,
        keep_alive_limits: KeepAliveLimits,
        now: Instant,
    ) {
        let idle = self.idle.entry(agent).or_default();
        if keep_alive_limits.requests > 0 && idle.len() < self.limits.per_agent {
            idle.push(Idle { endpoint, since: now, keep_alive_limits });
        }
    }

    /// Drops what has been idle for too long or was ended by its agent.
    pub fn reap(&mut self, cx: &mut Context<'_>, buffers: &mut WorkerBuffers, now: Instant) {
        for idle in self.idle.values_mut() {
            idle.retain_mut(|candidate| candidate.is_good(cx, buffers, now, &self.limits) != Some(false));
        }
        self.idle.retain(|_, idle| !idle.is_empty());
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.idle.clear();
    }
}

/// The connection that a client has logged in on at an agent, at most one: it serves this client and is closed with it.
pub(crate) struct PinnedConnection<S>(Option<(Agent, Idle<S>)>);

impl<S: Stream> PinnedConnection<S> {
    /// None yet.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// The connection, if it leads to `agent` and is still good. One to another agent stays for as long as it may be idle.
    pub(crate) fn take(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut WorkerBuffers,
        agent: Agent,
        now: Instant,
        limits: &PoolLimits,
    ) -> Option<(Box<Endpoint<S>>, KeepAliveLimits)> {
        self.0.take_if(|(_, idle)| idle.is_over(now, limits));
        let (_, mut idle) = self.0.take_if(|(bound_to, _)| *bound_to == agent)?;
        (idle.is_good(cx, buffers, now, limits) == Some(true))
            .then_some((idle.endpoint, idle.keep_alive_limits))
    }

    /// Keeps `endpoint` in place of what was kept before, if the agent takes another request.
    pub(crate) fn put(
        &mut self,
        agent: Agent,
        endpoint: Box<Endpoint<S>>,
        keep_alive_limits: KeepAliveLimits,
        now: Instant,
    ) {
        self.0 = (keep_alive_limits.requests > 0)
            .then_some((agent, Idle { endpoint, since: now, keep_alive_limits }));
    }

    /// Closes it.
    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }
}

impl<S: Stream> Idle<S> {
    fn is_good(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut WorkerBuffers,
        now: Instant,
        limits: &PoolLimits,
    ) -> Option<bool> {
        if self.is_over(now, limits) { Some(false) } else { self.endpoint.is_reusable(cx, buffers) }
    }

    fn is_over(&self, now: Instant, limits: &PoolLimits) -> bool {
        now.duration_since(self.since) >= limits.idle_timeout.min(self.keep_alive_limits.idle)
    }
}
