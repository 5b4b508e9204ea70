//! The process itself: confines itself, and does what the serving process orders until that has gone.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::discovery::{self, Discovery, SystemResolver};
use super::messages::{self, Order, Report};
use super::monitor::Monitor;
use super::resolver_client::ResolverClient;
use super::resolver_server::{DownAgents, ResolverServer};
use crate::agents::health::{Health, HealthChange};
use crate::control::signals::Signals;
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
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        // They are meant for the serving process, with which this one ends.
        let _ignored = Signals::new()?;
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
    let down = DownAgents::default();
    let mut discovery = Discovery::new(system, reports.clone());
    let mut server = ResolverServer::new(down.clone());
    let mut resolver = None;
    let ordered = async {
        while let Some(order) = messages::next(&mut from).await? {
            let mut done = Ok(());
            match order {
                Order::Monitor { rules, agents } => monitor.set(rules, agents).await,
                Order::Names { names, servers } => discovery.set(names, servers),
                Order::Mark { agent, failure } => monitor.mark(agent, failure),
                // By the name servers of the order before this one.
                Order::Resolver { url, authorities, servers: _ } => {
                    let client = |url| ResolverClient::new(url, authorities.as_deref(), discovery.resolver());
                    done = url.map(client).transpose().map(|client| resolver = client);
                }
                Order::Resolve { session, client } => {
                    tokio::spawn(resolve(resolver.clone(), session, client, reports.clone()));
                }
                Order::Serve { listen, agents } => {
                    done = server.set(listen, agents);
                    if done.is_ok() && listen.is_some() {
                        let _ = reports.send(Report::Serving).await;
                    }
                }
            }
            if let Err(problem) = done {
                // Nobody listens only where everything ends.
                let _ = reports.send(Report::Problem(problem)).await;
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
                    let changes: Vec<_> = [change].into_iter().chain(others).collect();
                    note_down(&changes, &down);
                    Report::Health(changes)
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

async fn resolve(
    resolver: Option<ResolverClient>,
    session: String,
    client: IpAddr,
    reports: mpsc::Sender<Report>,
) {
    let found = match resolver {
        Some(resolver) => resolver.ask(&session, client).await,
        None => Err("there is none".to_owned()),
    };
    // Nobody listens only where everything ends.
    let _ = reports.send(Report::Resolved { session, client, found }).await;
}

fn note_down(changes: &[HealthChange], down: &DownAgents) {
    let mut down = down.borrow_mut();
    for HealthChange { agent, health } in changes {
        if matches!(health, Some(Health::Down(_))) {
            down.insert(*agent);
        } else {
            down.remove(agent);
        }
    }
}
