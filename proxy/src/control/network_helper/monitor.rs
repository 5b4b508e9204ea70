//! Probes agents again and again, each by a task of its own, and reports whose state has changed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::messages::Monitored;
use super::probe::Probe;
use crate::agents::health::{Failure, Health, HealthChange, HealthTracker, ProbeRules};

/// Probes under way at a time, of agents that live and of others; further ones wait for them.
const PROBES_MAX: usize = 256;
/// Agents without a name that are probed because a connection to them has failed: of addresses that clients have made up, no
/// more are followed.
pub(in crate::control) const UNNAMED_MAX: usize = 1024;
/// How long one of them is followed. It is again when a connection to it fails.
const UNNAMED_TIME: Duration = Duration::from_mins(10);
/// Failures of connections to one agent that wait.
const MARKS_MAX: usize = 4;

/// Probes that may be under way.
#[derive(Debug)]
struct Places {
    usual: Semaphore,
    /// Of agents that are down, or may be.
    slow: Semaphore,
}

/// The agents that are probed.
pub(super) struct Monitor {
    probe: Probe,
    places: Arc<Places>,
    changes: mpsc::Sender<HealthChange>,
    rules: Option<ProbeRules>,
    watched: HashMap<SocketAddr, Watched>,
    /// Those without a name, and some that have ended.
    unnamed: HashSet<SocketAddr>,
}

struct Watched {
    monitored: Monitored,
    /// Whether the serving process has named it; others are followed until they are up.
    is_named: bool,
    marks: mpsc::Sender<Failure>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Monitor {
    pub(super) fn new(changes: mpsc::Sender<HealthChange>) -> io::Result<Self> {
        Ok(Self {
            probe: Probe::new()?,
            places: Arc::new(Places { usual: Semaphore::new(PROBES_MAX), slow: Semaphore::new(PROBES_MAX) }),
            changes,
            rules: None,
            watched: HashMap::new(),
            unnamed: HashSet::new(),
        })
    }

    /// Probes these agents from now on, by these rules. What is known of agents that are probed on stays.
    pub(super) async fn set(&mut self, rules: Option<ProbeRules>, agents: Vec<Monitored>) {
        let named: HashMap<_, _> = agents.into_iter().map(|it| (it.agent, it)).collect();
        let is_kept = |watched: &Watched| {
            let is_wanted = match named.get(&watched.monitored.agent) {
                Some(wanted) => watched.is_named && *wanted == watched.monitored,
                None => !watched.is_named,
            };
            rules.is_some() && self.rules == rules && is_wanted
        };
        let gone = self.watched.extract_if(|_, watched| !is_kept(watched)).collect::<Vec<_>>();
        self.rules = rules;
        let is_probed = |agent: &SocketAddr| rules.is_some() && named.contains_key(agent);
        for (agent, _) in gone.into_iter().filter(|(agent, _)| !is_probed(agent)) {
            // Nobody listens only where everything ends.
            let _ = self.changes.send(HealthChange { agent, health: None }).await;
        }
        let Some(rules) = rules else { return };
        for (agent, monitored) in named {
            if !self.watched.contains_key(&agent) {
                self.watch(monitored, rules, None);
            }
        }
    }

    /// Takes a connection that has failed.
    pub(super) fn mark(&mut self, monitored: Monitored, failure: Failure) {
        let Some(rules) = self.rules else { return };
        match self.watched.get(&monitored.agent) {
            // Some more of the same moment say nothing more.
            Some(watched) if watched.is_named || !watched.task.is_finished() => {
                let _ = watched.marks.try_send(failure);
                return;
            }
            _ => {}
        }
        if self.unnamed.len() >= UNNAMED_MAX {
            let has_ended = |agent: &SocketAddr| {
                self.watched.get(agent).is_none_or(|watched| watched.is_named || watched.task.is_finished())
            };
            let (gone, left): (HashSet<_>, HashSet<_>) =
                self.unnamed.iter().copied().partition(|agent| has_ended(agent));
            self.unnamed = left;
            self.watched.retain(|agent, watched| watched.is_named || !gone.contains(agent));
        }
        if self.unnamed.len() < UNNAMED_MAX {
            self.unnamed.insert(monitored.agent);
            self.watch(monitored, rules, Some(failure));
        }
    }

    /// Follows an agent; one that has no name, from its first failure until it is up.
    fn watch(&mut self, monitored: Monitored, rules: ProbeRules, failure: Option<Failure>) {
        let (marks, marked) = mpsc::channel(MARKS_MAX);
        let is_named = failure.is_none();
        let watch = Watch {
            monitored,
            rules,
            is_named,
            probe: self.probe.clone(),
            places: self.places.clone(),
            changes: self.changes.clone(),
            marked,
            tracker: if is_named { HealthTracker::default() } else { HealthTracker::up() },
        };
        let task = tokio::spawn(watch.run(failure)).abort_handle();
        self.watched.insert(monitored.agent, Watched { monitored, is_named, marks, task });
    }
}

/// Follows one agent.
struct Watch {
    monitored: Monitored,
    rules: ProbeRules,
    is_named: bool,
    probe: Probe,
    places: Arc<Places>,
    changes: mpsc::Sender<HealthChange>,
    marked: mpsc::Receiver<Failure>,
    tracker: HealthTracker,
}

impl Watch {
    /// Until it is ended, or there is no reason to follow it any more.
    async fn run(mut self, failure: Option<Failure>) {
        let begun = Instant::now();
        match failure {
            Some(failure) => self.take_mark(failure).await,
            None => tokio::time::sleep(random(self.rules.jitter)).await,
        }
        loop {
            self.probe().await;
            let is_over = begun.elapsed() > UNNAMED_TIME;
            if !self.is_named && (self.tracker.is_well() || is_over) {
                let _ = self.changes.send(HealthChange { agent: self.monitored.agent, health: None }).await;
                return;
            }
            let pause = self.tracker.pause(&self.rules);
            let jitter = self.rules.jitter.min(pause);
            let pause = (pause + random(jitter)).saturating_sub(jitter / 2);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // It is looked at once.
                Some(failure) = self.marked.recv(), if self.tracker.is_up() => self.take_mark(failure).await,
            }
        }
    }

    async fn probe(&mut self) {
        // Those that take the whole time don't keep the others from their turn.
        let is_slow = !self.is_named || !self.tracker.is_up();
        let places = if is_slow { &self.places.slow } else { &self.places.usual };
        let Ok(_place) = places.acquire().await else { return };
        let Some(result) = self.probe.run(self.monitored, &self.rules).await else { return };
        if self.tracker.probed(result, SystemTime::now(), &self.rules) {
            self.report().await;
        }
        // What failed before the probe has said what it had to say.
        while self.marked.try_recv().is_ok() {}
    }

    async fn take_mark(&mut self, failure: Failure) {
        if self.tracker.marked(failure, SystemTime::now(), &self.rules) {
            self.report().await;
        }
    }

    async fn report(&self) {
        let (agent, health) = (self.monitored.agent, self.tracker.health().cloned());
        // Of one without a name nothing is worth knowing but that it is down.
        if self.is_named || matches!(health, Some(Health::Down(_))) {
            let _ = self.changes.send(HealthChange { agent, health }).await;
        }
    }
}

/// A time up to that.
fn random(max: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without it all are probed at once, which is all that it prevents.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    max.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}
