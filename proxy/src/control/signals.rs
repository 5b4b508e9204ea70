//! Signals: SIGTERM and SIGINT stop, SIGHUP reloads, SIGUSR1 opens the access log again, SIGUSR2 upgrades. What is done is
//! the supervisor's.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::socket::ControlCommand;

/// SIGTERM and SIGINT, which stop, and the signals that command something. Those that come early wait.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    /// From now on no signal ends the program by itself.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Ready once it is to stop; other commands are left for later.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The next command; none where it is to stop.
    pub(super) async fn next(&mut self) -> Option<ControlCommand> {
        tokio::select! {
            _ = self.terminate.recv() => None,
            _ = self.interrupt.recv() => None,
            _ = self.hangup.recv() => Some(ControlCommand::Reload),
            _ = self.user1.recv() => Some(ControlCommand::Reopen),
            _ = self.user2.recv() => Some(ControlCommand::Upgrade),
        }
    }
}
