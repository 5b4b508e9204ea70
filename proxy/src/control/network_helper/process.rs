//! The process itself: confines itself, and does what the serving process orders until that has gone.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::discovery::{self, Discovery, SystemResolver};
use super::messages::{self, Order, Report};
use super::monitor::Monitor;
use crate::os::sandbox;

/// Changes of states, and other reports, that wait to be sent.
const CHANGES_MAX: usize = 1024;
const REPORTS_MAX: usize = 16;
/// For how long changes are gathered that are reported together: all agents of a rack go at once.
const GATHER: Duration = Duration::from_millis(10);

/// Serves whoever is on the other side of the standard input until it has gone.
pub(in crate::control) fn serve() -> io::Result<()> {
    let system = discovery::system();
    let confined = sandbox::confine_network_helper().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // They are meant for the serving process, with which this one ends.
        let kinds = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        let _ignored = kinds.into_iter().map(signal).collect::<io::Result<Vec<_>>>()?;
        let socket = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        socket.set_nonblocking(true)?;
        run(UnixStream::from_std(socket)?, confined, system).await
    })
}

async fn run(socket: UnixStream, confined: String, system: SystemResolver) -> io::Result<()> {
    let (from, mut to) = socket.into_split();
    to.write_all(&messages::line(&Report::Started(confined))?).await?;
    let mut from = BufReader::new(from);
    let (changes, mut changed_health) = mpsc::channel(CHANGES_MAX);
    let (reports, mut reported) = mpsc::channel(REPORTS_MAX);
    let mut monitor = Monitor::new(changes)?;
    let mut discovery = Discovery::new(system, reports);
    let ordered = async {
        while let Some(order) = messages::next(&mut from).await? {
            match order {
                Order::Monitor { rules, agents } => monitor.set(rules, agents).await,
                Order::Names { names, servers } => discovery.set(names, servers),
                Order::Mark { agent, failure } => monitor.mark(agent, failure),
            }
        }
        Ok(())
    };
    let reporting = async {
        loop {
            let report = tokio::select! {
                Some(report) = reported.recv() => report,
                Some(change) = changed_health.recv() => {
                    tokio::time::sleep(GATHER).await;
                    let others = std::iter::from_fn(|| changed_health.try_recv().ok());
                    Report::Health([change].into_iter().chain(others).collect())
                }
            };
            to.write_all(&messages::line(&report)?).await?;
        }
    };
    tokio::select! {
        ended = ordered => ended,
        ended = reporting => ended,
    }
}
