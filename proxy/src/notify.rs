//! What systemd is told (`sd_notify(3)`), where it asked to be: that the program serves, reloads, hands over, stops, and is
//! alive. Without it nothing is said to anybody.

use std::time::Duration;

use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd can't be told: {error}");
    }
}

/// It serves, and is the main process of the service from now on.
pub fn ready(status: &str) {
    let process = std::process::id();
    tell(&[NotifyState::MainPid(process), NotifyState::Ready, NotifyState::Status(status)]);
}

/// It reads its configuration again. [`ready`] has to follow.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// It is about to end.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// It is alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often it has to say that it is alive; less than half of what systemd waits for.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit.mul_f64(0.4))
}
