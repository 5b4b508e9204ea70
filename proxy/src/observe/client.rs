//! Which client connection a log line or an access record is about. Knows no socket.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of a client connection: unique in a process, from 1.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// The number itself.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Gives out the numbers, to all workers.
#[derive(Clone, Debug, Default)]
pub struct ConnectionIds(Arc<AtomicU64>);

impl ConnectionIds {
    /// The next number.
    pub fn next(&self) -> ConnectionId {
        ConnectionId(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// A client connection, as logs name it.
#[derive(Clone, Copy, Debug)]
pub struct ClientConnection {
    /// Its number.
    pub id: ConnectionId,
    /// The client's address, as far as it is known: behind a load balancer it changes once the balancer has named it.
    pub address: IpAddr,
    /// The client's port.
    pub port: u16,
}
