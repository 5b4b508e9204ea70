//! How TLS handshakes ended, by side, version and reason. Counted by a worker for itself. Knows no socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::observe::side::Side;

/// How one ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HandshakeOutcome {
    /// With whom.
    pub side: Side,
    /// `1.2` or `1.3`; empty where none was agreed on.
    pub version: &'static str,
    /// Why it failed; empty where it did not.
    pub reason: &'static str,
}

/// How often each of them came about.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct HandshakeCount {
    /// `client` or `agent`.
    pub side: String,
    /// `1.2` or `1.3`; empty where none was agreed on.
    pub version: String,
    /// Why they failed; empty where they did not.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// The counters of a worker.
#[derive(Debug, Default)]
pub struct HandshakeCounters(BTreeMap<HandshakeOutcome, u64>);

impl HandshakeCounters {
    /// Counts one.
    pub fn note(&mut self, outcome: HandshakeOutcome) {
        *self.0.entry(outcome).or_default() += 1;
    }

    /// The counts so far.
    pub fn read(&self) -> Vec<HandshakeCount> {
        let count = |(outcome, count): (&HandshakeOutcome, &u64)| HandshakeCount {
            side: outcome.side.to_string(),
            version: outcome.version.to_owned(),
            reason: outcome.reason.to_owned(),
            count: *count,
        };
        self.0.iter().map(count).collect()
    }
}

/// Adds what another worker has counted.
pub(super) fn add(all: &mut Vec<HandshakeCount>, more: &[HandshakeCount]) {
    for it in more {
        let is_same = |known: &&mut HandshakeCount| {
            (&known.side, &known.version, &known.reason) == (&it.side, &it.version, &it.reason)
        };
        match all.iter_mut().find(is_same) {
            Some(known) => known.count += it.count,
            None => all.push(it.clone()),
        }
    }
}
