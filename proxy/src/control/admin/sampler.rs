//! What the admin listener shows: processes, agents and sessions, of this process and of those that drain. Reads them at most once a
//! second, however many look, and more seldom where that takes long. Changes nothing.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::error::Elapsed;

use crate::control::fleet::{AgentReport, AgentsReport, SessionReport};
use crate::control::socket::{self, ControlCommand, ControlRequest};
use crate::observe::agent::AgentId;
use crate::observe::agent_stats::AgentStats;
use crate::observe::readiness::Readiness;
use crate::observe::session_stats::HistoryPoint;
use crate::observe::status::ProcessStatus;
use crate::transport::own_addresses::OwnAddresses;

/// How long a process may take to answer before it is left out.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a sample serves all who look.
const SAMPLE_LIFE: Duration = Duration::from_secs(1);
/// The same where it takes long.
const SAMPLE_LIFE_MAX: Duration = Duration::from_secs(5);
/// A process that has not answered is not asked again for so long.
const SILENCE: Duration = Duration::from_secs(30);
/// Of the time, one part in so many goes into samples at the most.
const SAMPLE_SHARE: u32 = 20;
/// Between samples that are further apart nothing is said of what was used in the meantime.
const COMPARED_MAX: Duration = Duration::from_secs(10);

/// The sources of what is shown.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// This process.
    pub own: mpsc::Sender<ControlRequest>,
    /// The control sockets of those that drain.
    pub former: Arc<[PathBuf]>,
    /// Whether new users are welcome.
    pub readiness: Readiness,
    /// Where the proxy itself listens: none of its clients reaches this by it.
    pub listeners: OwnAddresses,
}

/// How it stands, at one time.
#[derive(Debug, Default)]
pub(super) struct Overview {
    /// When, in seconds since 1970.
    pub at_s: u64,
    /// The processes; the one that serves comes first.
    pub processes: Vec<ProcessStatus>,
    /// The agents that have names, health or sessions, of all processes.
    pub agents: Vec<AgentReport>,
    /// The open sessions of all processes.
    pub sessions: Vec<SessionReport>,
    /// The share of a core that a worker has used since the sample before, in percent, by process and number.
    pub cpu_percent: HashMap<(u32, usize), u64>,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    took: Duration,
    overview: Arc<Overview>,
}

/// Takes the samples.
#[derive(Debug)]
pub(super) struct Sampler {
    sources: Sources,
    last: Mutex<Option<Sample>>,
    /// The processes that did not answer, and when.
    silent: std::sync::Mutex<HashMap<PathBuf, Instant>>,
}

impl Sampler {
    /// Of those sources.
    pub(super) fn new(sources: Sources) -> Self {
        Self { sources, last: Mutex::default(), silent: std::sync::Mutex::default() }
    }

    /// Whether new users are welcome.
    pub(super) fn is_ready(&self) -> bool {
        self.sources.readiness.is_ready()
    }

    /// How it stands, a second ago at the most where that is soon told.
    pub(super) async fn overview(&self) -> Arc<Overview> {
        // Who comes meanwhile waits, and is given the same.
        let mut last = self.last.lock().await;
        if let Some(Sample { at, took, overview }) = &*last
            && at.elapsed() < took.saturating_mul(SAMPLE_SHARE).clamp(SAMPLE_LIFE, SAMPLE_LIFE_MAX)
        {
            return overview.clone();
        }
        let begun = Instant::now();
        let mut overview = self.read().await;
        if let Some(before) = last.take().filter(|before| before.at.elapsed() < COMPARED_MAX) {
            overview.compare(&before.overview);
        }
        let overview = Arc::new(overview);
        *last = Some(Sample { at: begun, took: begun.elapsed(), overview: overview.clone() });
        overview
    }

    async fn read(&self) -> Overview {
        let (processes, former) = self.answering().await;
        let agents: Vec<AgentsReport> = self.ask(&former, ControlCommand::Agents, "").await;
        let sessions: Vec<Vec<SessionReport>> = self.ask(&former, ControlCommand::Sessions, "").await;
        let sessions = sessions.concat();
        let agents = AgentsReport::merged(agents, &sessions).agent;
        let cpu_percent = HashMap::new();
        let at_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Overview { at_s, processes, agents, sessions, cpu_percent }
    }

    /// The last five minutes of a session.
    pub(super) async fn history(&self, id: &str) -> Vec<HistoryPoint> {
        let points: Vec<Vec<HistoryPoint>> =
            self.ask(&self.answering_lately(), ControlCommand::History, id).await;
        points.concat()
    }

    /// How it stands with this process, and with those that drain.
    pub(super) async fn processes(&self) -> Vec<ProcessStatus> {
        self.answering().await.0
    }

    /// The processes that tell, and the sockets of those of them that drain.
    async fn answering(&self) -> (Vec<ProcessStatus>, Vec<PathBuf>) {
        let mut processes = Vec::from_iter(self.own_status().await);
        let mut answering = Vec::new();
        for path in self.answering_lately() {
            match ask_former(&path, ControlCommand::Stats, "").await {
                Ok(status) => {
                    processes.extend(status);
                    answering.push(path);
                }
                Err(_) => _ = self.silent().insert(path, Instant::now()),
            }
        }
        (processes, answering)
    }

    /// Without those that hang.
    fn answering_lately(&self) -> Vec<PathBuf> {
        let silent = self.silent();
        let is_silent = |path: &PathBuf| silent.get(path).is_some_and(|since| since.elapsed() < SILENCE);
        self.sources.former.iter().filter(|path| !is_silent(path)).cloned().collect()
    }

    fn silent(&self) -> MutexGuard<'_, HashMap<PathBuf, Instant>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With the kernel's account where it can be had soon.
    async fn own_status(&self) -> Option<ProcessStatus> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.ask_own(ControlCommand::Stats, "")).await {
            Ok(status) => status,
            Err(_) => self.ask_own(ControlCommand::OwnStats, "").await,
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        former: &[PathBuf],
        command: ControlCommand,
        argument: &str,
    ) -> Vec<T> {
        let mut answers = Vec::from_iter(self.ask_own(command, argument).await);
        for path in former {
            answers.extend(ask_former(path, command, argument).await.ok().flatten());
        }
        answers
    }

    async fn ask_own<T: DeserializeOwned>(&self, command: ControlCommand, argument: &str) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let request = ControlRequest { command, argument: argument.to_owned(), answer };
        self.sources.own.send(request).await.ok()?;
        serde_json::from_str(&answered.await.ok()?.ok()?).ok()
    }
}

/// Nothing where it has ended, as most have by now, or is of a version that does not know the command; an error where it hangs.
async fn ask_former<T: DeserializeOwned>(
    path: &std::path::Path,
    command: ControlCommand,
    argument: &str,
) -> Result<Option<T>, Elapsed> {
    let said = tokio::time::timeout(ANSWER_TIMEOUT, socket::ask(path, command, argument)).await?;
    Ok(said.ok().and_then(|said| serde_json::from_str(&said).ok()))
}

impl Overview {
    /// The statistics of an agent, of all processes.
    pub(super) fn stats(&self, agent: AgentId) -> Option<AgentStats> {
        let mut all = self.processes.iter().filter_map(|process| process.stats.agents.get(&agent));
        let first = all.next()?.clone();
        Some(all.fold(first, |mut sum, stats| {
            sum.add(stats);
            sum
        }))
    }

    /// Notes what has been used since `before`.
    fn compare(&mut self, before: &Self) {
        for process in &self.processes {
            let Some(former) = before.processes.iter().find(|former| former.pid == process.pid) else {
                continue;
            };
            for (number, (now, then)) in process.worker.iter().zip(&former.worker).enumerate() {
                let key = (process.pid, number);
                let time = now.alive_us.saturating_sub(then.alive_us);
                let used = now.cpu_us.saturating_sub(then.cpu_us).saturating_mul(100);
                // It may have told nothing new since.
                let percent = used.checked_div(time).or_else(|| before.cpu_percent.get(&key).copied());
                self.cpu_percent.extend(percent.map(|percent| (key, percent.min(100))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::stats::WorkerStatus;

    #[test]
    fn a_workers_share_is_what_it_has_used_since_the_sample_before() {
        let overview = |pid, alive_us, used: [u64; 2]| {
            let worker =
                used.map(|cpu_us| WorkerStatus { cpu_us, alive_us, ..WorkerStatus::default() }).into();
            let process = ProcessStatus { pid, worker, ..ProcessStatus::default() };
            Overview { processes: vec![process], ..Overview::default() }
        };
        let mut now = overview(7, 3_000_000, [1_500_000, 9_000_000]);
        now.compare(&overview(7, 1_000_000, [1_000_000, 1_000_000]));
        assert_eq!((now.cpu_percent[&(7, 0)], now.cpu_percent[&(7, 1)]), (25, 100));
        // It has told nothing since.
        let mut same = overview(7, 3_000_000, [1_500_000, 9_000_000]);
        same.compare(&now);
        assert_eq!(same.cpu_percent, now.cpu_percent);
        let mut other = overview(8, 1, [1, 1]);
        other.compare(&now);
        assert!(other.cpu_percent.is_empty());
    }
}
