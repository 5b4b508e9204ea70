//! How a process comes to its end: how long sessions may go on, and what shortens it. Stops nothing itself.

use std::time::{Duration, Instant};

use crate::os::systemd;
use crate::runtime::drain::Phase;
use crate::worker::context::SharedState;

/// Why it stops.
pub(super) enum StopReason {
    Signal,
    Upgraded(String),
}

/// How far the end has come.
pub(super) struct Shutdown {
    pub phase: Phase,
    pub at: Instant,
    /// Whether another process serves.
    pub is_upgrade: bool,
    drain: Duration,
}

impl Shutdown {
    pub(super) fn begin(why: &StopReason, shared: &SharedState) -> Self {
        let limits = &shared.config.limits;
        let (limit, is_upgrade) = match why {
            StopReason::Signal => (limits.drain_timeout, false),
            StopReason::Upgraded(_) => (limits.upgrade_drain_timeout, true),
        };
        match why {
            StopReason::Signal => systemd::stopping("sessions come to their end"),
            StopReason::Upgraded(process) => tracing::info!(pid = %process, "the new process serves"),
        }
        let end = Self {
            phase: Phase::Draining,
            at: Instant::now() + limit,
            is_upgrade,
            drain: limits.drain_timeout,
        };
        tracing::info!(drain_timeout = %humantime::format_duration(limit), "draining");
        end
    }

    /// A stop signal while it is stopping.
    pub(super) fn shorten(&mut self) {
        if self.is_upgrade {
            tracing::info!(drain_timeout = %humantime::format_duration(self.drain), "draining");
            self.is_upgrade = false;
            self.at = self.at.min(Instant::now() + self.drain);
        } else {
            tracing::info!("ending all sessions");
            self.phase = Phase::Ending;
        }
    }

    pub(super) fn state(&self) -> &'static str {
        if self.is_upgrade { "draining" } else { "stopping" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_signal_shortens_the_drain_of_an_upgrade_and_the_next_one_ends_it() {
        let mut end = Shutdown {
            phase: Phase::Draining,
            at: Instant::now() + Duration::from_hours(24),
            is_upgrade: true,
            drain: Duration::from_secs(30),
        };
        end.shorten();
        assert_eq!((end.phase, end.state()), (Phase::Draining, "stopping"));
        assert!(end.at <= Instant::now() + Duration::from_secs(30));
        end.shorten();
        assert_eq!(end.phase, Phase::Ending);
    }
}
