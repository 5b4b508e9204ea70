//! What an agent has seen: counters, and the requests as they arrived.
use hyper::Request;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The newest requests are kept up to this number, so that a benchmark does not fill the memory.
const REQUESTS_MAX: usize = 10_000;

/// Counters of one agent, and its newest requests.
#[derive(Debug, Default)]
pub struct Seen {
    connections: AtomicU64,
    handshakes: AtomicU64,
    resumed: AtomicU64,
    websockets: AtomicU64,
    websockets_open: AtomicU64,
    requests: Mutex<VecDeque<SeenRequest>>,
}

/// One request as it reached the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRequest {
    /// `GET`, `POST`, ...
    pub method: String,
    /// The request target, byte for byte.
    pub target: String,
    /// Names (in lower case) and values in the order of arrival; fields of one name stand together.
    pub headers: Vec<(String, String)>,
}

impl SeenRequest {
    /// The first field of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

impl Seen {
    /// TCP connections accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// TLS handshakes completed, resumed ones included.
    pub fn handshakes(&self) -> u64 {
        self.handshakes.load(Relaxed)
    }

    /// TLS handshakes that resumed an earlier session.
    pub fn resumed(&self) -> u64 {
        self.resumed.load(Relaxed)
    }

    /// Upgraded connections so far, `/auth` and `/echo` included.
    pub fn websockets(&self) -> u64 {
        self.websockets.load(Relaxed)
    }

    /// Upgraded connections open now.
    pub fn websockets_open(&self) -> u64 {
        self.websockets_open.load(Relaxed)
    }

    /// The requests so far, oldest first; the newest 10,000 are kept.
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(super) fn accepted(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(super) fn secured(&self, resumed: bool) {
        self.handshakes.fetch_add(1, Relaxed);
        self.resumed.fetch_add(resumed.into(), Relaxed);
    }

    /// Counts a WebSocket, open until the answer is dropped.
    pub(super) fn opened(&self) -> Open<'_> {
        self.websockets.fetch_add(1, Relaxed);
        self.websockets_open.fetch_add(1, Relaxed);
        Open(self)
    }

    pub(super) fn record<B>(&self, request: &Request<B>) {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = request.headers().iter();
        let entry = SeenRequest {
            method: request.method().to_string(),
            target: request.uri().to_string(),
            headers: headers.map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect(),
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() == REQUESTS_MAX {
            requests.pop_front();
        }
        requests.push_back(entry);
    }
}

/// An open WebSocket.
pub(super) struct Open<'a>(&'a Seen);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.websockets_open.fetch_sub(1, Relaxed);
    }
}
