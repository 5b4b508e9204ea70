//! What systemd is told (`sd_notify(3)`), where it asked to be: that the program serves, reloads, hands over, stops, and is
//! alive. Without it nothing is said to anybody. A manager that does not listen keeps nobody waiting: a thread tells it.

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::os::seccomp;

/// Notifications that wait to be heard; more are dropped.
const WAITING_MAX: usize = 64;
/// How long a worker may give no sign of life, which it does each second, before the program is not alive.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

fn notify(state: String) {
    static NOTIFIER: OnceLock<Option<SyncSender<String>>> = OnceLock::new();
    let teller = NOTIFIER.get_or_init(|| std::env::var_os("NOTIFY_SOCKET").and_then(|_| start().ok()));
    if let Some(teller) = teller
        && teller.try_send(state).is_err()
    {
        tracing::warn!("systemd notification dropped");
    }
}

fn start() -> std::io::Result<SyncSender<String>> {
    let (teller, told) = sync_channel::<String>(WAITING_MAX);
    let work = move || {
        seccomp::forbid_rings();
        for state in told {
            if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&state)]) {
                tracing::warn!(reason = &*error.to_string(), "systemd notification failed");
            }
        }
    };
    std::thread::Builder::new().name("notify".into()).spawn(work)?;
    Ok(teller)
}

/// It serves, and is the main process of the service from now on.
pub(crate) fn ready(status: &str) {
    notify(format!("MAINPID={}\nREADY=1\nSTATUS={status}", std::process::id()));
}

/// It reads its configuration again. [`ready`] has to follow.
pub(crate) fn reloading() {
    let since = NotifyState::monotonic_usec_now().map(|now| format!("\n{now}")).unwrap_or_default();
    notify(format!("RELOADING=1{since}"));
}

/// It is about to end.
pub(crate) fn stopping(status: &str) {
    notify(format!("STOPPING=1\nSTATUS={status}"));
}

/// Says that the program is alive, for as long as all workers are.
pub(crate) struct Watchdog {
    looks: Option<tokio::time::Interval>,
    workers: Vec<(usize, Instant)>,
}

impl Watchdog {
    /// As systemd wants it; never where it doesn't.
    pub(crate) fn new() -> Self {
        let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
        let looks = limit.map(|limit| tokio::time::interval(limit.mul_f64(0.4)));
        Self { looks, workers: Vec::new() }
    }

    /// When it is time to [`Watchdog::look`].
    pub(crate) async fn due(&mut self) {
        match &mut self.looks {
            Some(looks) => drop(looks.tick().await),
            None => std::future::pending().await,
        }
    }

    /// Takes the signs of life that workers have given so far.
    pub(crate) fn look(&mut self, beats: &[usize]) {
        match self.still(beats, Instant::now()) {
            None => notify("WATCHDOG=1".to_owned()),
            Some(worker) => tracing::error!(worker, "worker stalled, watchdog notification withheld"),
        }
    }

    fn still(&mut self, beats: &[usize], now: Instant) -> Option<usize> {
        self.workers.resize(beats.len(), (0, now));
        for ((before, at), beats) in self.workers.iter_mut().zip(beats) {
            if before != beats {
                (*before, *at) = (*beats, now);
            }
        }
        self.workers.iter().position(|(_, at)| now.duration_since(*at) > STALL_TIMEOUT)
    }
}

impl Default for Watchdog {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_gives_no_sign_of_life_is_told_of() {
        let mut watchdog = Watchdog { looks: None, workers: Vec::new() };
        let start = Instant::now();
        let mut still =
            |second: u64, beats: &[usize]| watchdog.still(beats, start + Duration::from_secs(second));
        assert_eq!([still(0, &[1, 1]), still(1, &[1, 2]), still(10, &[1, 3])], [None; 3]);
        assert_eq!(still(11, &[1, 4]), Some(0));
        assert_eq!([still(12, &[2, 4]), still(20, &[3, 4])], [None; 2]);
        assert_eq!(still(22, &[4, 4]), Some(1));
    }
}
