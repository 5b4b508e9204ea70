//! The process itself: confines itself, and does what the serving process orders until that has gone.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::messages::{self, Order, Report};
use super::monitor::Monitor;
use crate::agents::health::HealthChange;
use crate::os::sandbox;

/// Reports that wait to be sent.
const REPORTS_MAX: usize = 1024;
/// For how long changes are gathered that are reported together: all agents of a rack go at once.
const GATHER: Duration = Duration::from_millis(10);

/// Serves whoever is on the other side of the standard input until it has gone.
pub(in crate::control) fn serve() -> io::Result<()> {
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
        run(UnixStream::from_std(socket)?, confined).await
    })
}

async fn run(socket: UnixStream, confined: String) -> io::Result<()> {
    let (from, mut to) = socket.into_split();
    to.write_all(&messages::line(&Report::Started(confined))?).await?;
    let mut from = BufReader::new(from);
    let (changes, mut reported) = mpsc::channel(REPORTS_MAX);
    let mut monitor = Monitor::new(changes)?;
    let ordered = async {
        while let Some(order) = messages::next(&mut from).await? {
            match order {
                Order::Monitor { rules, agents } => monitor.set(rules, agents).await,
                Order::Mark { agent, failure } => monitor.mark(agent, failure),
            }
        }
        Ok(())
    };
    let reporting = async {
        while let Some(change) = reported.recv().await {
            tokio::time::sleep(GATHER).await;
            let mut all: Vec<HealthChange> = vec![change];
            all.extend(std::iter::from_fn(|| reported.try_recv().ok()));
            to.write_all(&messages::line(&Report::Health(all))?).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = ordered => ended,
        ended = reporting => ended,
    }
}
