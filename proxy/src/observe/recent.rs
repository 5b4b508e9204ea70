//! The latest endings and rejections, for people who look at the admin page: bounded, and forgotten with the process. Written where
//! something ends or is refused, and never for a byte that moves. Knows no socket.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::observe::access_log::AccessRecord;

/// Events that are kept of each kind.
const RECENT_MAX: usize = 50;

/// A session or request that is over.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RecentEnd {
    /// When, in seconds since 1970.
    pub at_s: u64,
    /// The id of the request.
    pub id: String,
    /// The agent, if one was chosen.
    pub agent: String,
    /// The client.
    pub client: Option<IpAddr>,
    /// The user whose password was given.
    pub user: String,
    /// The status that the client was given; 101 of a session.
    pub status: u16,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// Bytes to the client.
    pub to_client: u64,
    /// Why it ended: for a request, what the client was told.
    pub reason: String,
}

/// A connection or request that was rejected.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RecentRejection {
    /// When, in seconds since 1970.
    pub at_s: u64,
    /// The client.
    pub client: Option<IpAddr>,
    /// The reason, as its counter is named.
    pub reason: Cow<'static, str>,
}

/// The latest of one kind, of all workers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recent<T>(Arc<Mutex<VecDeque<T>>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Recent<T> {
    /// Notes one, unless another worker is at it just now: nobody waits here, and of very many one more or less says nothing.
    fn note(&self, event: impl FnOnce() -> T) {
        let mut events = match self.0.try_lock() {
            Ok(events) => events,
            // Nothing in here is left half done by a panic.
            Err(TryLockError::Poisoned(events)) => events.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if events.len() == RECENT_MAX {
            events.pop_front();
        }
        events.push_back(event());
    }

    /// All of them, the latest first.
    pub fn list(&self) -> Vec<T> {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().rev().cloned().collect()
    }
}

impl Recent<RecentRejection> {
    /// Notes a rejection.
    pub fn rejected(&self, client: IpAddr, reason: &'static str) {
        self.note(|| RecentRejection { at_s: now_s(), client: Some(client), reason: reason.into() });
    }
}

/// What is over: sessions, and requests whose answer was a 5xx, apart from each other so that many of one kind leave the other.
#[derive(Clone, Debug, Default)]
pub struct RecentEnds {
    /// Sessions.
    pub sessions: Recent<RecentEnd>,
    /// Requests that failed.
    pub failures: Recent<RecentEnd>,
}

impl RecentEnds {
    /// Notes what is over, where it is of interest. `told`: to the client, by the proxy itself.
    pub fn ended(&self, record: &AccessRecord, told: &str) {
        let list = match record.status {
            101 => &self.sessions,
            500.. => &self.failures,
            _ => return,
        };
        list.note(|| RecentEnd {
            at_s: now_s(),
            id: record.id.to_string(),
            agent: record.agent.map(|agent| agent.to_string()).unwrap_or_default(),
            client: Some(record.client),
            user: record.user.clone(),
            status: record.status,
            seconds: record.duration.as_secs(),
            to_client: record.to_client,
            reason: if told.is_empty() { record.end_reason.to_string() } else { told.to_owned() },
        });
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_the_latest_comes_first() {
        let recent = Recent::<RecentRejection>::default();
        for last in 0..=u8::try_from(RECENT_MAX).expect("few") {
            recent.rejected([192, 0, 2, last].into(), "rate_limited");
        }
        let listed = recent.list();
        assert_eq!(listed.len(), RECENT_MAX);
        assert_eq!(listed[0].client, Some([192, 0, 2, 50].into()));
        assert_eq!(listed[RECENT_MAX - 1].client, Some([192, 0, 2, 1].into()));
    }

    #[test]
    fn nobody_waits_to_note_something() {
        let recent = Recent::<RecentRejection>::default();
        let held = recent.0.lock().expect("nobody has it");
        recent.rejected([192, 0, 2, 1].into(), "rate_limited");
        drop(held);
        assert_eq!(recent.list(), []);
    }
}
