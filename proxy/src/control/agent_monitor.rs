//! What the serving process does about the network helper: has it started where agents are to be probed, and again where it has
//! ended; tells it which agents there are, and of connections that have failed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::agents::connectors::Connectors;
use crate::agents::health::{Failure, FailureMarks, HealthChange};
use crate::agents::known::KnownAgents;
use crate::config::Config;
use crate::control::network_helper::{Monitored, NetworkHelper, Order, Report};

/// How long it is before a network helper that has ended is started again.
const RESTART: Duration = Duration::from_secs(2);

/// What has come up.
pub(super) enum MonitorEvent {
    /// A network helper is to be started.
    Wanted,
    /// Agents have other states.
    Changed(Vec<HealthChange>),
    /// It has ended: nothing is known any more.
    Lost(io::Error),
    /// A connection to an agent has failed.
    Failed(SocketAddr, Failure),
}

/// The network helper, or the wish for one.
#[derive(Debug)]
pub(super) struct AgentMonitor {
    marks: mpsc::Receiver<(SocketAddr, Failure)>,
    /// What it is to do; nothing where it has nothing to do.
    order: Option<Order>,
    process: Process,
}

#[derive(Debug)]
enum Process {
    /// None is there, and one is asked for then if it is wanted.
    Absent {
        from: Instant,
    },
    /// One was asked for.
    Asked,
    Running(NetworkHelper),
}

impl AgentMonitor {
    /// None yet. Gives where failures are to be told.
    pub(super) fn new() -> (Self, FailureMarks) {
        let (sender, marks) = FailureMarks::new();
        (Self { marks, order: None, process: Process::Absent { from: Instant::now() } }, sender)
    }

    /// Goes by a configuration and its agents. False where no agents are probed.
    pub(super) fn set(&mut self, config: &Config, agents: &KnownAgents) -> bool {
        let order = order(config, agents);
        if order == self.order {
            return order.is_some();
        }
        self.order = order;
        match (&self.order, &self.process) {
            (Some(order), Process::Running(helper)) if helper.order(order.clone()).is_err() => {
                self.process = Process::Absent { from: Instant::now() };
            }
            (None, Process::Running(_)) => self.end(),
            _ => {}
        }
        self.order.is_some()
    }

    /// One was asked for.
    pub(super) fn asked(&mut self) {
        self.process = Process::Asked;
    }

    /// It was started: it is reached by this socket; or it was not.
    pub(super) fn started(&mut self, socket: Result<OwnedFd, String>) -> io::Result<()> {
        self.process = Process::Absent { from: Instant::now() + RESTART };
        let helper = NetworkHelper::at(socket.map_err(io::Error::other)?)?;
        let Some(order) = &self.order else { return Ok(()) };
        helper.order(order.clone())?;
        self.process = Process::Running(helper);
        Ok(())
    }

    /// Ends it. It is not started again until there is something for it to do.
    pub(super) fn end(&mut self) {
        self.order = None;
        self.process = Process::Absent { from: Instant::now() };
    }

    /// Tells it of a connection that has failed.
    pub(super) fn mark(&self, agent: SocketAddr, failure: Failure, connectors: &Connectors) {
        if let Process::Running(helper) = &self.process {
            let agent = Monitored { agent, tls: connectors.of(agent).is_some() };
            // One that takes no orders is noticed by the next that matters.
            let _ = helper.order(Order::Mark { agent, failure });
        }
    }

    /// The next event. A wait that is given up loses nothing.
    pub(super) async fn next(&mut self) -> MonitorEvent {
        loop {
            let mark = self.marks.recv();
            let report = match &mut self.process {
                Process::Running(helper) => tokio::select! {
                    report = helper.report() => report,
                    Some((agent, failure)) = mark => return MonitorEvent::Failed(agent, failure),
                },
                Process::Absent { from } if self.order.is_some() => {
                    tokio::time::sleep_until(*from).await;
                    return MonitorEvent::Wanted;
                }
                // The serving process comes here again once that has changed.
                Process::Absent { .. } | Process::Asked => std::future::pending().await,
            };
            match report {
                Ok(Report::Started(sandbox)) => tracing::info!(sandbox, "network helper started"),
                Ok(Report::Health(changes)) => return MonitorEvent::Changed(changes),
                Err(error) => {
                    self.process = Process::Absent { from: Instant::now() + RESTART };
                    return MonitorEvent::Lost(error);
                }
            }
        }
    }
}

/// What the network helper is to do.
fn order(config: &Config, KnownAgents { directory, connectors, .. }: &KnownAgents) -> Option<Order> {
    let rules = config.probe?;
    let policy = &config.policy;
    let usual = policy.default_agent.map(|agent| SocketAddr::new(agent, policy.agent_port));
    let usual = usual.filter(|agent| directory.at(*agent).is_none());
    let all = directory.agents().iter().map(|agent| agent.address).chain(usual);
    let agents = all.map(|agent| Monitored { agent, tls: connectors.of(agent).is_some() }).collect();
    Some(Order::Monitor { rules: Some(rules), agents })
}
