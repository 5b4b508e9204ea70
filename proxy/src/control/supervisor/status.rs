//! How it stands with the process, for whoever asks the supervisor: people, programs, the admin page. Changes nothing.

use tokio::sync::oneshot;

use super::{Supervisor, json, respond};
use crate::control::fleet::{self, AgentsReport};
use crate::control::helper::{MessageKind, Payload, STATS};
use crate::control::socket::{ControlCommand, Outcome};
use crate::observe::status::{ProcessStatus, UsageStatus};
use crate::observe::tcp_stats::KernelStats;
use crate::os::files::Files;
use crate::os::process_usage::UsageReader;
use crate::worker::context::{ProcessState, SharedState};

impl Supervisor {
    /// Tells how it stands, people or programs; the kernel's account is the helper's to read.
    pub(super) async fn show_status(
        &mut self,
        command: ControlCommand,
        answer: Option<oneshot::Sender<Outcome>>,
    ) {
        match (command, answer) {
            (ControlCommand::Stats, Some(waiter)) if self.ask_stats().await => {
                let stats_waiters = self.stats_waiters.get_or_insert_default();
                // Some of a helper that does not answer have gone.
                stats_waiters.retain(|waiter| !waiter.is_closed());
                stats_waiters.push(waiter);
            }
            (ControlCommand::Status, answer) => respond(answer, Ok(self.status_line())),
            (ControlCommand::Agents, answer) => respond(answer, json(&AgentsReport::of(&self.shared))),
            (ControlCommand::Lists, answer) => respond(answer, json(&self.sources.last_lists())),
            (ControlCommand::States, answer) => respond(answer, self.states.text()),
            (ControlCommand::Sessions, answer) => respond(answer, json(&fleet::sessions(&self.shared))),
            (_, answer) => respond(answer, self.stats(None)),
        }
    }

    /// Whether the kernel's stats are on their way.
    async fn ask_stats(&self) -> bool {
        let can_ask = self.accounts.kernel && !self.alone;
        can_ask && (self.stats_waiters.is_some() || self.helper.ask(MessageKind::Stats).await.is_ok())
    }

    pub(super) fn stats(&self, kernel: Option<KernelStats>) -> Outcome {
        json(&ProcessStatus { kernel, ..self.status() })
    }

    fn status_line(&self) -> String {
        let ProcessStatus { pid, version, state, seconds, connections, .. } = self.status();
        let alone = if self.alone { ", without its helper: restart it to reload" } else { "" };
        format!(
            "process {pid}, version {version}, {state}, for {seconds} s, connections {connections}{alone}"
        )
    }

    fn usage(&self) -> UsageStatus {
        let usage = self.accounts.usage.as_ref().map(UsageReader::read);
        match usage {
            Some(Ok(usage)) => UsageStatus {
                cpu_seconds: Some(usage.cpu_seconds),
                resident_bytes: Some(usage.resident_bytes),
                virtual_bytes: Some(usage.virtual_bytes),
                open_fds: usage.open_fds,
                max_fds: usage.max_fds,
                start_seconds: Some(usage.start_seconds),
            },
            Some(Err(error)) => {
                tracing::warn!(reason = &*error.to_string(), "what the process uses can't be read");
                UsageStatus::default()
            }
            None => UsageStatus::default(),
        }
    }

    fn status(&self) -> ProcessStatus {
        let SharedState { config, process, .. } = &self.shared;
        let ProcessState { balance, rejections, published, recent_ends, .. } = process;
        ProcessStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.state.to_owned(),
            seconds: self.since.elapsed().as_secs(),
            connections: balance.connections() as u64,
            workers: config.workers as u64,
            worker: published.workers(&balance.counts()),
            recent_sessions: recent_ends.sessions.list(),
            recent_failures: recent_ends.failures.list(),
            recent_rejections: rejections.recent(),
            reloads: self.reloads,
            reload_failures: self.reload_failures,
            has_reload_failed: self.has_reload_failed,
            log_lines_dropped: self.own_log.dropped(),
            access_log_lines_dropped: self.log.dropped(),
            usage: self.usage(),
            certificates: self.certificates.status(),
            rejected: rejections.counts(),
            failures: process.failures.counts(),
            security_events: rejections.events(),
            agents: fleet::status(&self.shared.agents),
            sources: self.sources.status(),
            stats: published.sum(),
            kernel: None,
        }
    }
}

pub(super) fn kernel_stats(found: Payload) -> Option<KernelStats> {
    let Payload::Files(files) = found else { return None };
    serde_json::from_slice(&files.read(STATS.as_ref()).ok()?).ok()
}
