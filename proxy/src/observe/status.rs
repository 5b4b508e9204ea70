//! The status of a process, as it is shown and handed from process to process. Knows no socket.

use serde::{Deserialize, Serialize};

use crate::observe::recent::{RecentEnd, RecentRejection};
use crate::observe::stats::{Stats, WorkerStatus};
use crate::observe::tcp_stats::KernelStats;

/// The states of a process: it accepts connections, another process does so after an upgrade, or it was told to stop.
pub const STATES: [&str; 3] = ["serving", "draining", "stopping"];

/// The status of a process.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ProcessStatus {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// One of [`STATES`].
    pub state: String,
    /// Seconds since it serves.
    pub seconds: u64,
    /// Client connections that are open.
    pub connections: u64,
    /// Worker threads.
    pub workers: u64,
    /// Each of them.
    pub worker: Vec<WorkerStatus>,
    /// Sessions that have ended, the latest first.
    pub recent_sessions: Vec<RecentEnd>,
    /// Requests that failed.
    pub recent_failures: Vec<RecentEnd>,
    /// Connections and requests that were rejected.
    pub recent_rejections: Vec<RecentRejection>,
    /// Reloads that were applied.
    pub reloads: u64,
    /// Reloads that failed.
    pub reload_failures: u64,
    /// The latest one failed.
    pub has_reload_failed: bool,
    /// Lines of its log that were dropped.
    pub log_lines_dropped: u64,
    /// Lines of the access log that were dropped.
    pub access_log_lines_dropped: u64,
    /// What the process uses.
    pub usage: UsageStatus,
    /// The certificates that are shown to clients.
    pub certificates: Vec<CertificateStatus>,
    /// Rejected connections and requests, by reason.
    pub rejected: Vec<(String, u64)>,
    /// Failures that are logged, by reason.
    pub failures: Vec<(String, u64)>,
    /// Security events, by kind.
    pub security_events: Vec<(String, u64)>,
    /// Agents that have names or were probed.
    pub agents: Vec<AgentStatus>,
    /// The sources that list agents, but for the file.
    pub sources: Vec<SourceStatus>,
    /// Statistics of agents and clients.
    pub stats: Stats,
    /// The kernel's TCP statistics, if they are available.
    pub kernel: Option<KernelStats>,
}

/// What a process uses; nothing where it is not known.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct UsageStatus {
    /// Processor time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Memory in use, in bytes.
    pub resident_bytes: Option<u64>,
    /// Addresses in use, in bytes.
    pub virtual_bytes: Option<u64>,
    /// Open descriptors.
    pub open_fds: Option<u64>,
    /// Descriptors that may be open.
    pub max_fds: Option<u64>,
    /// When it began, in seconds since 1970.
    pub start_seconds: Option<f64>,
}

/// A certificate that is shown to clients.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CertificateStatus {
    /// Its file.
    pub file: String,
    /// The first name that it is for.
    pub name: String,
    /// Until when it is valid, in seconds since 1970.
    pub not_after_s: i64,
}

/// The status of a source that lists agents.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SourceStatus {
    /// `--agents-command`, or the name in DNS.
    pub source: String,
    /// Agents of its last list that can be used.
    pub agents: u64,
    /// Why its latest one can't; empty where it can.
    pub problem: String,
}

/// The status of an agent that has a name or was probed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct AgentStatus {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its address and port.
    pub address: String,
    /// What the operator has decided: `active`, `drain` or `off`.
    pub state: String,
    /// Whether it lives; nothing where it was not probed.
    pub is_up: Option<bool>,
    /// In what it fails, where it is down.
    pub failure: String,
    /// What was tried, and what came of it, where it is down.
    pub reason: String,
    /// Since when it is down, in seconds since 1970.
    pub down_since_s: u64,
}
