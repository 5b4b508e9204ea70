//! The sessions that are open in the process, of all workers: who is on which agent. Touched when a session begins and ends,
//! and never for a byte of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::observe::access_log::EndReason;
use crate::observe::session_stats::LiveSession;

/// All sessions of one client address and user on one agent. A DCV client opens several: a channel each.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Desktop {
    /// The agent.
    pub agent: SocketAddr,
    /// The client.
    pub client: IpAddr,
    /// The user whose password was given; empty where none is asked for.
    pub user: String,
}

/// A session that is open.
#[derive(Clone, Debug)]
pub struct ListedSession {
    /// Its number in the process, from 1.
    pub number: u64,
    /// Whose it is.
    pub desktop: Desktop,
    /// When it began.
    pub since: Instant,
    /// What it is like.
    pub live: LiveSession,
}

/// The open sessions.
#[derive(Clone, Debug, Default)]
pub struct OpenSessions(Arc<Mutex<Lists>>);

#[derive(Debug, Default)]
struct Lists {
    last: u64,
    sessions: BTreeMap<u64, ListedSession>,
    /// How many each desktop has.
    desktops: HashMap<Desktop, usize>,
    /// The desktops of each agent.
    agents: HashMap<SocketAddr, Vec<Desktop>>,
    /// Those that have sessions in processes that drain, and which of them are at each agent.
    former: HashSet<Desktop>,
    former_agents: HashMap<SocketAddr, Vec<Desktop>>,
    /// Sessions that are to end, and why.
    ending: BTreeMap<u64, EndReason>,
}

impl OpenSessions {
    /// Lists a session that begins, for as long as the result is kept.
    pub fn open(&self, desktop: Desktop, live: LiveSession, now: Instant) -> ListEntry {
        let number = self.with(|lists| {
            lists.last += 1;
            let count = lists.desktops.entry(desktop.clone()).or_default();
            *count += 1;
            if *count == 1 {
                lists.agents.entry(desktop.agent).or_default().push(desktop.clone());
            }
            let number = lists.last;
            lists.sessions.insert(number, ListedSession { number, desktop, since: now, live });
            number
        });
        ListEntry { sessions: self.clone(), number }
    }

    /// Whether a desktop has a session, here or in a process that drains.
    pub fn has(&self, desktop: &Desktop) -> bool {
        self.with(|lists| lists.desktops.contains_key(desktop) || lists.former.contains(desktop))
    }

    /// The clients that have desktops at an agent, here or in processes that drain: one for each.
    pub fn clients_at(&self, agent: SocketAddr) -> Vec<IpAddr> {
        self.with(|lists| {
            let own = lists.agents.get(&agent).into_iter().flatten();
            let former = lists.former_agents.get(&agent).into_iter().flatten();
            let former = former.filter(|it| !lists.desktops.contains_key(*it));
            own.chain(former).map(|desktop| desktop.client).collect()
        })
    }

    /// Notes the desktops that have sessions in processes that drain, in place of those noted before.
    pub fn note_former(&self, desktops: HashSet<Desktop>) {
        let mut agents: HashMap<_, Vec<_>> = HashMap::new();
        for desktop in &desktops {
            agents.entry(desktop.agent).or_default().push(desktop.clone());
        }
        self.with(|lists| (lists.former, lists.former_agents) = (desktops, agents));
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> Vec<ListedSession> {
        self.with(|lists| lists.sessions.values().cloned().collect())
    }

    /// Notes that a session is to end, for its worker to see.
    pub fn end(&self, number: u64, reason: EndReason) {
        self.with(|lists| {
            if lists.sessions.contains_key(&number) {
                lists.ending.entry(number).or_insert(reason);
            }
        });
    }

    /// Those that are to end.
    pub fn ending(&self) -> Vec<(u64, EndReason)> {
        self.with(|lists| lists.ending.iter().map(|(number, reason)| (*number, *reason)).collect())
    }

    fn with<T>(&self, change: impl FnOnce(&mut Lists) -> T) -> T {
        // Nothing in here is left half done by a panic.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Lists {
    /// A desktop has ended.
    fn leave(&mut self, desktop: &Desktop) {
        let Some(at_agent) = self.agents.get_mut(&desktop.agent) else { return };
        at_agent.retain(|other| other != desktop);
        if at_agent.is_empty() {
            self.agents.remove(&desktop.agent);
        }
    }
}

/// The entry of one of them, which leaves the list when it is dropped.
#[derive(Debug)]
pub struct ListEntry {
    sessions: OpenSessions,
    number: u64,
}

impl ListEntry {
    /// The number of the session.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for ListEntry {
    fn drop(&mut self) {
        self.sessions.with(|lists| {
            lists.ending.remove(&self.number);
            let Some(ListedSession { desktop, .. }) = lists.sessions.remove(&self.number) else { return };
            if let Some(count) = lists.desktops.get_mut(&desktop) {
                *count -= 1;
                if *count == 0 {
                    lists.desktops.remove(&desktop);
                    lists.leave(&desktop);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_desktop_is_there_until_its_last_session_ends() {
        let desktop = |user: &str| Desktop {
            agent: "10.0.0.5:8443".parse().expect("an address"),
            client: [192, 0, 2, 1].into(),
            user: user.to_owned(),
        };
        let (sessions, now) = (OpenSessions::default(), Instant::now());
        let open = |user: &str| sessions.open(desktop(user), LiveSession::default(), now);
        let (one, other) = (open("ann"), open("ann"));
        assert!(sessions.has(&desktop("ann")) && !sessions.has(&desktop("")));
        let bob = open("bob");
        assert_eq!(sessions.clients_at(desktop("").agent).len(), 2);
        drop((one, bob));
        assert!(sessions.has(&desktop("ann")));
        assert_eq!(sessions.clients_at(desktop("").agent), [desktop("").client]);
        assert_eq!(sessions.list().iter().map(|listed| listed.number).collect::<Vec<_>>(), [2]);
        sessions.end(2, EndReason::EndedByOperator);
        sessions.end(7, EndReason::EndedByOperator);
        assert_eq!(sessions.ending(), [(2, EndReason::EndedByOperator)]);
        drop(other);
        assert!(!sessions.has(&desktop("ann")) && sessions.list().is_empty() && sessions.ending().is_empty());
        assert!(sessions.with(|lists| lists.desktops.is_empty() && lists.agents.is_empty()));
        sessions.note_former(HashSet::from([desktop("ann")]));
        assert!(
            sessions.has(&desktop("ann")) && !sessions.has(&desktop("bob")) && sessions.list().is_empty()
        );
    }
}
