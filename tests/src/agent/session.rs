//! Sessions: made by `/auth`, alive while one of their channels is open.
use super::desktop::Desktop;
use super::response::query_value;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a session waits for its first channel.
pub(super) const UNUSED: Duration = Duration::from_secs(30);

/// All sessions of an agent by connection id.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<u64, Arc<Session>>>);

impl Sessions {
    pub(super) fn create(&self, name: &str) -> Arc<Session> {
        let mut sessions = self.all();
        let mut session = Session::new(name);
        while sessions.contains_key(&session.connection) {
            session = Session::new(name);
        }
        let session = Arc::new(session);
        sessions.insert(session.connection, session.clone());
        session
    }

    pub(super) fn find(&self, connection: u64) -> Option<Arc<Session>> {
        self.all().get(&connection).cloned()
    }

    /// The session whose token a query carries.
    pub(super) fn holding(&self, query: &str) -> Option<Arc<Session>> {
        self.all().values().find(|session| session.holds(query)).cloned()
    }

    /// Counts a channel of the session, open until the answer is dropped.
    pub(super) fn join<'a>(&'a self, session: &'a Session) -> Joined<'a> {
        session.channels.fetch_add(1, Relaxed);
        Joined(self, session)
    }

    pub(super) fn forget_unused(&self, session: &Session) {
        if session.channels.load(Relaxed) == 0 {
            self.all().remove(&session.connection);
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's session.
pub(super) struct Session {
    pub(super) connection: u64,
    /// Sent and compared as it stands, never decoded.
    pub(super) token: String,
    channels: AtomicUsize,
    desktop: Mutex<Desktop>,
}

impl Session {
    /// Domain and session of a resource's path. A proxy that decodes paths makes one segment more of it.
    pub(super) const PLACE: &str = "dcv/con%2Fsole/";

    fn new(name: &str) -> Self {
        // A new `RandomState` has keys of its own: random enough for a stand-in.
        let random = || RandomState::new().hash_one(name);
        // Escapes that a proxy may decode, and a sign that it may take for a space.
        let token = format!("{:016x}%2F+{:08x}%3D", random(), random() >> 32);
        let channels = AtomicUsize::new(0);
        Self { connection: random() >> 40, token, channels, desktop: Mutex::new(Desktop::new(name)) }
    }

    /// Whether a raw query carries the session's token.
    pub(super) fn holds(&self, query: &str) -> bool {
        query_value(query, "token") == Some(&self.token)
    }

    pub(super) fn desktop(&self) -> MutexGuard<'_, Desktop> {
        self.desktop.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open channel of a session.
pub(super) struct Joined<'a>(&'a Sessions, &'a Session);

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.1.channels.fetch_sub(1, Relaxed);
        self.0.forget_unused(self.1);
    }
}
