//! The threads of the workers: their start, and how they tell that they serve and how they ended.

use std::io;

use tokio::sync::{mpsc, watch};

use crate::transport::own_addresses::OwnAddresses;
use crate::worker::listeners::{self, Listener};
use crate::worker::load_balancer::WorkerInbox;
use crate::worker::thread::{self, WorkerCommand};

/// How it is with a worker.
#[derive(Debug)]
pub(super) enum WorkerReport {
    /// It serves.
    Started,
    /// It has ended.
    Ended(io::Result<()>),
}

/// Starts a thread for each inbox; gives where they report.
pub(super) fn start_workers(
    commands: &watch::Receiver<WorkerCommand>,
    inboxes: Vec<WorkerInbox>,
    listeners: Vec<Listener>,
    own: &OwnAddresses,
) -> io::Result<mpsc::UnboundedReceiver<WorkerReport>> {
    let shares = listeners::deal(listeners, inboxes.len());
    let (reports, reported) = mpsc::unbounded_channel();
    for (inbox, share) in inboxes.into_iter().zip(shares) {
        let (number, commands, own, reports) = (inbox.worker, commands.clone(), own.clone(), reports.clone());
        let start = reports.clone();
        let work =
            move || thread::run(inbox, share, commands, own, move || drop(start.send(WorkerReport::Started)));
        let telling = Reporter::new(reports);
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || telling.on(work))?;
    }
    Ok(reported)
}

/// Tells how a worker ended when it has, also by a panic.
struct Reporter {
    to: mpsc::UnboundedSender<WorkerReport>,
    result: io::Result<()>,
}

impl Reporter {
    fn new(to: mpsc::UnboundedSender<WorkerReport>) -> Self {
        Self { to, result: Err(io::Error::other("a worker panicked")) }
    }

    fn on(mut self, work: impl FnOnce() -> io::Result<()>) {
        self.result = work();
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        // Nobody listens any more once the program is on its way out.
        let _ = self.to.send(WorkerReport::Ended(std::mem::replace(&mut self.result, Ok(()))));
    }
}

/// The result of a worker that has ended.
pub(super) fn ended(report: Option<WorkerReport>) -> io::Result<()> {
    match report {
        Some(WorkerReport::Ended(result)) => result,
        Some(WorkerReport::Started) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_is_told_of() {
        let (reports, mut reported) = mpsc::unbounded_channel();
        let panicking = Reporter::new(reports);
        assert!(std::thread::spawn(move || panicking.on(|| panic!("on purpose"))).join().is_err());
        let error = ended(reported.blocking_recv()).expect_err("no clean end");
        assert_eq!(error.to_string(), "a worker panicked");
    }
}
