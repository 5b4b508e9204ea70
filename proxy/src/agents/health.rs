//! Whether agents live: what probes find, and connections that fail, come to a state of each. Pure: probes nobody and reads no
//! clock.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Failures of connections that wait to be looked at; further ones are forgotten, since a few say as much as many.
const MARKS_MAX: usize = 256;
/// The last second that can be written as a date (RFC 3339 has years of four digits).
const LAST_S: u64 = 253_402_300_799;
/// How much sooner an agent is probed again whose state may be about to change.
const HURRY: u32 = 4;

/// What a probe has to get as far as.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// A TCP connection.
    Tcp,
    /// A TLS handshake, whatever the certificate.
    Tls,
    /// Any answer to a request by HTTP.
    Http,
}

/// How agents are probed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProbeRules {
    /// What it has to get as far as.
    pub kind: ProbeKind,
    /// From one probe to the next.
    pub interval: Duration,
    /// By which that varies, so that agents are not all probed at once.
    pub jitter: Duration,
    /// For one probe.
    pub timeout: Duration,
    /// Probes in a row that succeed before an agent that was down is up.
    pub rise: u32,
    /// Probes in a row that fail before an agent that was up is down.
    pub fall: u32,
}

impl ProbeRules {
    /// Seconds after which it is worth asking again for an agent that is down.
    fn retry_after_s(&self) -> u64 {
        let time = self.interval.saturating_mul(self.rise);
        time.as_secs() + u64::from(time.subsec_nanos() > 0)
    }
}

/// In what an agent fails.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// It refuses connections.
    Refused,
    /// It does not answer in time.
    Timeout,
    /// There is no way to it.
    Unreachable,
    /// It begins no TLS.
    Handshake,
    /// It speaks no HTTP.
    Http,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Handshake => "handshake",
            Self::Http => "http",
        })
    }
}

/// A probe or connection that has failed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// In what.
    pub kind: FailureKind,
    /// What was tried, and what came of it.
    pub detail: String,
}

/// An agent that is down.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Down {
    /// What failed last before it was.
    pub failure: Failure,
    /// Since when, in seconds since 1970.
    pub since_s: u64,
    /// Seconds after which it is worth asking again.
    pub retry_after_s: u64,
}

impl Down {
    /// Since when, by the system's clock; a time that can be written, whatever was told.
    pub fn since(&self) -> SystemTime {
        date(self.since_s)
    }
}

/// A time that can be written as a date, of seconds since 1970.
pub fn date(since_s: u64) -> SystemTime {
    let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since_s.min(LAST_S)));
    since.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The state of an agent that was probed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It lives.
    Up {
        /// Desktops in use, where the agent tells of them.
        desktops: Option<u32>,
    },
    /// It does not.
    Down(Down),
}

/// A state that has changed; none of an agent that is no longer probed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HealthChange {
    /// The agent.
    pub agent: SocketAddr,
    /// Its state from now on.
    pub health: Option<Health>,
}

/// The states of all agents that were probed. A clone is another handle of the same.
#[derive(Clone, Debug, Default)]
pub struct HealthMap(Arc<HashMap<SocketAddr, Health>>);

impl HealthMap {
    /// That of an agent; nothing where it was not probed.
    pub fn of(&self, agent: SocketAddr) -> Option<&Health> {
        self.0.get(&agent)
    }

    /// Why an agent is down, if it is.
    pub fn down(&self, agent: SocketAddr) -> Option<&Down> {
        match self.of(agent) {
            Some(Health::Down(down)) => Some(down),
            _ => None,
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Health)> {
        self.0.iter().map(|(agent, health)| (*agent, health))
    }

    /// The same with changes.
    #[must_use]
    pub fn with(&self, changes: impl IntoIterator<Item = HealthChange>) -> Self {
        let mut all = HashMap::clone(&self.0);
        for HealthChange { agent, health } in changes {
            match health {
                Some(health) => drop(all.insert(agent, health)),
                None => drop(all.remove(&agent)),
            }
        }
        Self(Arc::new(all))
    }
}

/// Follows one agent.
#[derive(Debug, Default)]
pub struct HealthTracker {
    health: Option<Health>,
    /// Results in a row that say otherwise.
    streak: u32,
    /// A connection has failed since the last probe.
    is_marked: bool,
}

impl HealthTracker {
    /// Of an agent that has served until now.
    pub fn up() -> Self {
        Self { health: Some(Health::Up { desktops: None }), ..Self::default() }
    }

    /// Whether it lives, as far as is known.
    pub fn is_up(&self) -> bool {
        matches!(self.health, Some(Health::Up { .. }))
    }

    /// Whether it lives, and nothing says otherwise.
    pub fn is_well(&self) -> bool {
        self.is_up() && self.streak == 0
    }

    /// The state, where there has been a probe.
    pub fn health(&self) -> Option<&Health> {
        self.health.as_ref()
    }

    /// Takes what a probe has found: how many desktops the agent tells of, or why it failed. The first probe decides alone.
    /// True where the state is another one now.
    pub fn probed(
        &mut self,
        result: Result<Option<u32>, Failure>,
        now: SystemTime,
        rules: &ProbeRules,
    ) -> bool {
        self.is_marked = false;
        self.take(result, now, rules)
    }

    /// Takes a connection that has failed. It counts as a probe that fails; of several between two probes only the first
    /// does, which may all be of one moment. True where the state is another one now.
    pub fn marked(&mut self, failure: Failure, now: SystemTime, rules: &ProbeRules) -> bool {
        if std::mem::replace(&mut self.is_marked, true) || self.health.is_none() {
            return false;
        }
        self.take(Err(failure), now, rules)
    }

    /// How long to wait for the next probe, without the jitter.
    pub fn pause(&self, rules: &ProbeRules) -> Duration {
        if self.streak > 0 { rules.interval / HURRY } else { rules.interval }
    }

    fn take(&mut self, result: Result<Option<u32>, Failure>, now: SystemTime, rules: &ProbeRules) -> bool {
        let was_up = match &self.health {
            None => None,
            Some(Health::Up { .. }) => Some(true),
            Some(Health::Down(_)) => Some(false),
        };
        let wanted = match (was_up, result.is_ok()) {
            (None, _) => 1,
            (Some(false), true) => rules.rise,
            (Some(true), false) => rules.fall,
            (Some(true), true) | (Some(false), false) => {
                self.streak = 0;
                return self.refresh(result);
            }
        };
        self.streak += 1;
        if self.streak < wanted {
            return false;
        }
        self.streak = 0;
        let since_s = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let retry_after_s = rules.retry_after_s();
        self.health = Some(match result {
            Ok(desktops) => Health::Up { desktops },
            Err(failure) => Health::Down(Down { failure, since_s, retry_after_s }),
        });
        true
    }

    /// The state is the same; what is known of it may be another.
    fn refresh(&mut self, result: Result<Option<u32>, Failure>) -> bool {
        match (&mut self.health, result) {
            (Some(Health::Up { desktops }), Ok(told)) => std::mem::replace(desktops, told) != told,
            (Some(Health::Down(down)), Err(failure)) if down.failure != failure => {
                down.failure = failure;
                true
            }
            _ => false,
        }
    }
}

/// Where workers tell of connections that failed. Never waits.
#[derive(Clone, Debug)]
pub struct FailureMarks(mpsc::Sender<(SocketAddr, Failure)>);

impl FailureMarks {
    /// With where they come out.
    pub fn new() -> (Self, mpsc::Receiver<(SocketAddr, Failure)>) {
        let (sender, receiver) = mpsc::channel(MARKS_MAX);
        (Self(sender), receiver)
    }

    /// Tells of one that may be down; it is forgotten where too many are.
    pub fn note(&self, agent: SocketAddr, failure: Failure) {
        let _ = self.0.try_send((agent, failure));
    }
}

impl Default for FailureMarks {
    /// One that nobody listens to.
    fn default() -> Self {
        Self::new().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: ProbeRules = ProbeRules {
        kind: ProbeKind::Tcp,
        interval: Duration::from_millis(1500),
        jitter: Duration::ZERO,
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
    };

    fn failure(kind: FailureKind) -> Failure {
        Failure { kind, detail: format!("connect: {kind}") }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// What becomes of an agent by results, a letter each: `+` a probe that succeeds, `-` one that fails, `m` a connection
    /// that fails.
    fn states(results: &str) -> String {
        let mut tracker = HealthTracker::default();
        let state = |result| {
            match result {
                '+' => tracker.probed(Ok(None), at(1), &RULES),
                '-' => tracker.probed(Err(failure(FailureKind::Refused)), at(1), &RULES),
                _ => tracker.marked(failure(FailureKind::Refused), at(1), &RULES),
            };
            match tracker.health() {
                None => '?',
                Some(Health::Up { .. }) => 'u',
                Some(Health::Down(_)) => 'd',
            }
        };
        results.chars().map(state).collect()
    }

    #[test]
    fn it_takes_some_results_in_a_row_to_change_a_state_and_one_to_have_the_first() {
        assert_eq!(states("+--+---+-++"), "uuuuuudddd".to_owned() + "u");
        assert_eq!(states("-+"), "dd");
        assert_eq!(states("-++"), "ddu");
    }

    #[test]
    fn a_connection_that_fails_counts_once_between_two_probes_and_never_alone() {
        assert_eq!(states("m+mmmmmm"), "?uuuuuuu");
        assert_eq!(states("+m-m"), "uuud");
        assert_eq!(states("+m-+m-m"), "uuuuuud");
        // Of one that is down it says nothing new.
        assert_eq!(states("-m+m+"), "ddddd");
    }

    #[test]
    fn the_reason_is_the_latest_and_the_time_that_of_the_change() {
        let mut tracker = HealthTracker::default();
        assert!(tracker.probed(Err(failure(FailureKind::Refused)), at(5), &RULES));
        assert!(!tracker.probed(Err(failure(FailureKind::Refused)), at(6), &RULES));
        assert!(tracker.probed(Err(failure(FailureKind::Timeout)), at(7), &RULES));
        let Some(Health::Down(down)) = tracker.health() else { panic!("it is down") };
        assert_eq!((down.failure.kind, down.since(), down.retry_after_s), (FailureKind::Timeout, at(5), 3));
        for told in [0, LAST_S, LAST_S + 1, u64::MAX] {
            assert!(humantime::format_rfc3339_seconds(date(told)).to_string().ends_with('Z'));
        }
    }

    #[test]
    fn a_state_that_may_be_about_to_change_is_looked_at_sooner() {
        let mut tracker = HealthTracker::default();
        tracker.probed(Ok(None), at(1), &RULES);
        assert_eq!(tracker.pause(&RULES), RULES.interval);
        tracker.probed(Err(failure(FailureKind::Refused)), at(1), &RULES);
        assert_eq!(tracker.pause(&RULES), RULES.interval / 4);
    }

    #[test]
    fn what_an_agent_tells_of_its_desktops_is_known_as_soon_as_it_changes() {
        let mut tracker = HealthTracker::default();
        let told = [None, Some(1), Some(1), Some(3)].map(|told| tracker.probed(Ok(told), at(1), &RULES));
        assert_eq!(told, [true, true, false, true]);
        assert_eq!(tracker.health(), Some(&Health::Up { desktops: Some(3) }));
    }

    #[test]
    fn a_map_has_what_changed_last() {
        let [one, other] = [1, 2].map(|port| SocketAddr::from(([10, 0, 0, 5], port)));
        let up = Health::Up { desktops: None };
        let change = |agent, health| HealthChange { agent, health };
        let map = HealthMap::default().with([change(one, Some(up.clone())), change(other, Some(up.clone()))]);
        let later = map.with([change(one, None)]);
        assert_eq!((map.of(one), later.of(one), later.of(other)), (Some(&up), None, Some(&up)));
    }
}
