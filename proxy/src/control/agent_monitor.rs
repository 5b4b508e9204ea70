//! What the serving process does about the network helper: has it started where agents are to be probed or found, and again where it has
//! ended; tells it which agents there are, and of connections that have failed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::agents::connectors::Connectors;
use crate::agents::directory::{AgentState, NamedAgent};
use crate::agents::discovered::FoundAddress;
use crate::agents::health::{Failure, FailureMarks, HealthChange};
use crate::agents::known::KnownAgents;
use crate::agents::session_resolver::{self, Resolution, ResolveError, ResolveQuestion, SessionPlace};
use crate::config::Config;
use crate::control::network_helper::{FoundSession, Monitored, NetworkHelper, Order, Report, shown};

/// How long it is before a network helper that has ended is started again.
const RESTART: Duration = Duration::from_secs(2);

/// What has come up.
pub(super) enum MonitorEvent {
    /// A network helper is to be started.
    Wanted,
    /// Agents have other states.
    Changed(Vec<HealthChange>),
    /// A name in DNS has come to these addresses.
    Named(String, Result<Vec<FoundAddress>, String>),
    /// The session resolver has said where a session is.
    Resolved(String, IpAddr, Result<Option<FoundSession>, String>),
    /// It is known whether it can do what it is to.
    Settled,
    /// It has ended: nothing is known any more.
    Lost(io::Error),
    /// A connection to an agent has failed.
    Failed(SocketAddr, Failure),
}

/// The network helper, or the wish for one.
#[derive(Debug)]
pub(super) struct AgentMonitor {
    marks: mpsc::Receiver<(SocketAddr, Failure)>,
    /// What it is to do.
    orders: Vec<Order>,
    process: Process,
    /// It has said whether it can do what it is to.
    has_settled: bool,
}

#[derive(Debug)]
enum Process {
    /// None is there, and one is asked for then if it is wanted.
    Absent {
        from: Instant,
    },
    /// One was asked for.
    Asked,
    /// It takes no orders.
    Stuck,
    Running(NetworkHelper),
}

impl AgentMonitor {
    /// None yet. Gives where failures are to be told.
    pub(super) fn new() -> (Self, FailureMarks) {
        let (sender, marks) = FailureMarks::new();
        (
            Self {
                marks,
                orders: Vec::new(),
                process: Process::Absent { from: Instant::now() },
                has_settled: false,
            },
            sender,
        )
    }

    /// Goes by a configuration and its agents.
    pub(super) fn set(&mut self, config: &Config, agents: &KnownAgents, resolver_ca: Option<&str>) {
        let orders = orders(config, agents, resolver_ca);
        let before = std::mem::replace(&mut self.orders, orders);
        if self.orders.is_empty() {
            self.end();
        } else if let Process::Running(helper) = &self.process {
            let mut news = self.orders.iter().filter(|order| !before.contains(order));
            if news.any(|order| helper.order(order.clone()).is_err()) {
                // That is told by the next event: nothing is known any more.
                self.process = Process::Stuck;
            }
        }
    }

    /// Whether a network helper is wanted, and has not said yet that it can do what it is to.
    pub(super) fn is_waiting(&self) -> bool {
        !self.orders.is_empty() && !self.has_settled
    }

    /// Whether it has more to say than that it is there.
    fn is_to_serve(&self) -> bool {
        self.orders.iter().any(|order| matches!(order, Order::Serve { listen: Some(_), .. }))
    }

    /// One was asked for.
    pub(super) fn asked(&mut self) {
        self.process = Process::Asked;
    }

    /// It was started: it is reached by this socket; or it was not.
    pub(super) fn started(&mut self, socket: Result<OwnedFd, String>) -> io::Result<()> {
        self.process = Process::Absent { from: Instant::now() + RESTART };
        let helper = NetworkHelper::at(socket.map_err(io::Error::other)?)?;
        if self.orders.is_empty() {
            return Ok(());
        }
        self.orders.iter().try_for_each(|order| helper.order(order.clone()))?;
        self.process = Process::Running(helper);
        Ok(())
    }

    /// Ends it. It is not started again until there is something for it to do.
    pub(super) fn end(&mut self) {
        self.orders.clear();
        self.process = Process::Absent { from: Instant::now() };
    }

    /// Tells it of a connection that has failed.
    pub(super) fn mark(&self, agent: SocketAddr, failure: Failure, connectors: &Connectors) {
        if let Process::Running(helper) = &self.process {
            let agent = Monitored { agent, tls: connectors.of(agent).is_some() };
            // Of many, some are as good as all.
            helper.try_order(Order::Mark { agent, failure });
        }
    }

    /// Has it ask the session resolver. An error where that is not possible now.
    pub(super) fn resolve(&self, ResolveQuestion { session, client }: ResolveQuestion) -> Result<(), String> {
        let asked = match &self.process {
            Process::Running(helper) => helper.try_order(Order::Resolve { session, client }),
            Process::Absent { .. } | Process::Asked | Process::Stuck => false,
        };
        if asked { Ok(()) } else { Err("it can't be asked now".to_owned()) }
    }

    /// The next event. A wait that is given up loses nothing.
    pub(super) async fn next(&mut self) -> MonitorEvent {
        loop {
            let report = match &mut self.process {
                Process::Running(helper) => tokio::select! {
                    report = helper.report() => report,
                    Some((agent, failure)) = self.marks.recv() => return MonitorEvent::Failed(agent, failure),
                },
                Process::Absent { from } if !self.orders.is_empty() => {
                    tokio::time::sleep_until(*from).await;
                    return MonitorEvent::Wanted;
                }
                // The serving process comes here again once that has changed.
                Process::Stuck => Err(io::Error::other("it takes no orders")),
                Process::Absent { .. } | Process::Asked => std::future::pending().await,
            };
            match report {
                Ok(Report::Started(sandbox)) => {
                    let sandbox = shown(&sandbox);
                    tracing::info!(sandbox, "network helper started");
                    if !self.is_to_serve() {
                        self.has_settled = true;
                        return MonitorEvent::Settled;
                    }
                }
                Ok(Report::Health(changes)) => return MonitorEvent::Changed(changes),
                Ok(Report::Problem(reason)) => {
                    tracing::error!(reason = shown(&reason), "network helper");
                    self.has_settled = true;
                    return MonitorEvent::Settled;
                }
                Ok(Report::Serving) if self.has_settled => {}
                Ok(Report::Serving) => {
                    self.has_settled = true;
                    return MonitorEvent::Settled;
                }
                Ok(Report::Resolved { session, client, found }) => {
                    return MonitorEvent::Resolved(session, client, found.map_err(|why| shown(&why)));
                }
                Ok(Report::Name { name, found }) => {
                    return MonitorEvent::Named(name, found.map_err(|why| shown(&why)));
                }
                Err(error) => {
                    self.process = Process::Absent { from: Instant::now() + RESTART };
                    return MonitorEvent::Lost(error);
                }
            }
        }
    }
}

/// What the network helper is to do; nothing where no process is needed for it.
fn orders(config: &Config, agents: &KnownAgents, resolver_ca: Option<&str>) -> Vec<Order> {
    let has_resolver = config.session_resolver.is_some() || config.resolver_listen.is_some();
    if config.probe.is_none() && config.agents_dns.is_empty() && !has_resolver {
        return Vec::new();
    }
    let takes_users = |agent: &&NamedAgent| agent.state == AgentState::Active;
    let named = agents.directory.agents().iter().filter(takes_users);
    let served = named.map(|agent| (agent.name.to_string(), agent.address));
    vec![
        Order::Monitor { rules: config.probe, agents: monitored(config, agents) },
        Order::Names { names: config.agents_dns.clone(), servers: config.dns_servers.clone() },
        Order::Resolver {
            url: config.session_resolver.clone(),
            authorities: resolver_ca.map(str::to_owned),
            servers: config.dns_servers.clone(),
        },
        Order::Serve {
            listen: config.resolver_listen,
            agents: if config.resolver_listen.is_some() { served.collect() } else { Vec::new() },
        },
    ]
}

fn monitored(config: &Config, KnownAgents { directory, connectors, .. }: &KnownAgents) -> Vec<Monitored> {
    if config.probe.is_none() {
        return Vec::new();
    }
    let policy = &config.policy;
    let usual = policy.default_agent.map(|agent| SocketAddr::new(agent, policy.agent_port));
    let usual = usual.filter(|agent| directory.at(*agent).is_none());
    let all = directory.agents().iter().map(|agent| agent.address).chain(usual);
    all.map(|agent| Monitored { agent, tls: connectors.of(agent).is_some() }).collect()
}

/// Where a session is, as its resolver says. An address that may not be reached is none, whoever says so.
pub(super) fn resolution(
    session: &str,
    found: Result<Option<FoundSession>, String>,
    config: &Config,
) -> Resolution {
    let FoundSession { addresses, port, web_url_path } = match found {
        Ok(Some(found)) => found,
        Ok(None) => return Err(ResolveError::Unknown),
        Err(reason) => {
            tracing::warn!(session, reason, "where a session is can't be found out");
            return Err(ResolveError::Failed(reason));
        }
    };
    // Whatever the network helper has become, this gets into heads of requests.
    let web_url_path = session_resolver::web_url_path(&web_url_path).map_err(ResolveError::Failed)?;
    let addresses = addresses.into_iter().map(|address| address.to_canonical());
    let mut allowed = addresses.filter(|address| config.policy.agents.allows(*address));
    let agent = allowed.next().filter(|_| config.agent_ports.contains(&port));
    let Some(ip) = agent else {
        tracing::warn!(session, "a session is at an agent that is not in --agents or --agent-ports");
        return Err(ResolveError::NotAllowed);
    };
    Ok(SessionPlace { agent: SocketAddr::new(ip, port), web_url_path })
}
