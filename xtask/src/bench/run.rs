//! One run: agent, peer and load in processes of their own, all fresh, all ended with the run.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use harness::certificates::{Identity, KeyKind};
use harness::process::Process;
use serde::Serialize;

use super::agent::AgentPlan;
use super::client::{ClientPlan, Load, Outcome};
use super::part::{self, Role};
use super::peers::{Door, Peer, Place, free};
use super::scenario::{Scenario, Unit};
use super::wire::Tls;

/// The measured load's agent, and that of what runs beside it: one must not wait for the other in there.
const AGENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
/// What a run may take beside its window.
const SLACK: Duration = Duration::from_mins(1);
/// What runs beside a load starts before it, and goes on for this much longer.
const LINGER_S: f64 = 1.0;
const ATTEMPTS: usize = 3;

/// What all runs have in common.
pub(super) struct Setting<'a> {
    pub(super) proxy: &'a Path,
    pub(super) identity: &'a Identity,
    pub(super) window: Duration,
    pub(super) agent_tls: Tls,
    /// A run in which others used more of the machine is repeated.
    pub(super) foreign_max: f64,
}

/// One measured window.
#[derive(Clone, Serialize)]
pub(super) struct Run {
    pub(super) scenario: Scenario,
    pub(super) peer: Peer,
    pub(super) repetition: u64,
    /// Which attempt it was: earlier ones were not quiet, later ones not quieter.
    pub(super) attempt: usize,
    pub(super) outcome: Outcome,
    /// Of what has run beside it.
    pub(super) beside: Option<Outcome>,
}

/// One certificate for the agent and all peers.
pub(super) fn identity() -> Identity {
    Identity::self_signed(KeyKind::Ecdsa, &["127.0.0.1", &AGENTS[0].to_string(), &AGENTS[1].to_string()])
}

/// Runs until the machine was quiet, or as often as is worth it; the quietest counts.
pub(super) fn run(setting: &Setting, scenario: Scenario, peer: Peer, repetition: u64) -> Result<Run, String> {
    let once = |attempt| {
        let (outcome, beside) = measured(setting, scenario, peer)?;
        Ok::<_, String>(Run { scenario, peer, repetition, attempt, outcome, beside })
    };
    let mut best = once(1)?;
    for attempt in 2..=ATTEMPTS {
        if best.outcome.foreign <= setting.foreign_max {
            break;
        }
        let again = once(attempt)?;
        if again.outcome.foreign < best.outcome.foreign {
            best = again;
        }
    }
    Ok(best)
}

fn measured(setting: &Setting, scenario: Scenario, peer: Peer) -> Result<(Outcome, Option<Outcome>), String> {
    let named = |why: String| format!("{} {}: {why}", scenario.name(), peer.name());
    let directory = tempfile::tempdir().map_err(|why| format!("no temporary directory: {why}"))?;
    keep(directory.path(), setting.identity).map_err(|why| format!("no certificate files: {why}"))?;
    let is_secure = scenario.is_secure();
    let first = free(AGENTS[0])?;
    let agents = AGENTS.map(|ip| SocketAddr::from((ip, first.port())));
    let (directory, identity) = (directory.path(), setting.identity);
    let place = Place { directory, identity, agents, is_secure, proxy: setting.proxy };
    let agent = start_agent(setting, scenario, agents[0]).map_err(named)?;
    let running = peer.start(&place).map_err(named)?;

    let mut agents = vec![agent];
    let mut beside = None;
    if let Some(load) = scenario.beside() {
        agents.push(start_agent(setting, scenario, place.agents[1]).map_err(named)?);
        let plan = client_plan(setting, scenario, &running.doors[1]);
        let plan = ClientPlan { load, linger_s: LINGER_S, ..plan };
        beside = Some(Process::start(part::command(Role::Client, &plan)?).without_grace());
    }
    let plan = ClientPlan {
        peer: running.process.iter().map(Process::pid).collect(),
        agent: agents.iter().map(Process::pid).collect(),
        others: beside.iter().map(Process::pid).collect(),
        ..client_plan(setting, scenario, &running.doors[0])
    };
    let client = Process::start(part::command(Role::Client, &plan)?).without_grace();
    let outcome = |client| {
        part::outcome(client, setting.window + SLACK).map_err(|why| {
            let words = agents.iter().chain(&running.process).map(part::last_words);
            let words = words.filter(|words| !words.is_empty());
            named([why].into_iter().chain(words).collect::<Vec<_>>().join("; "))
        })
    };
    Ok((outcome(client)?, beside.map(outcome).transpose()?))
}

fn start_agent(setting: &Setting, scenario: Scenario, listen: SocketAddr) -> Result<Process, String> {
    let Identity { cert_pem, key_pem } = setting.identity.clone();
    let tls = if scenario.is_secure() { setting.agent_tls } else { Tls::Off };
    let command = part::command(Role::Agent, &AgentPlan { listen, tls, cert_pem, key_pem })?;
    part::listening(Process::start(command).without_grace(), listen)
}

fn client_plan(setting: &Setting, scenario: Scenario, door: &Door) -> ClientPlan {
    ClientPlan {
        load: scenario.load(),
        connect: door.address,
        prefix: door.prefix.clone(),
        cert_pem: scenario.is_secure().then(|| setting.identity.cert_pem.clone()),
        window_s: setting.window.as_secs_f64(),
        linger_s: 0.0,
        peer: Vec::new(),
        agent: Vec::new(),
        others: Vec::new(),
    }
}

fn keep(directory: &Path, identity: &Identity) -> io::Result<()> {
    fs::write(directory.join("cert.pem"), &identity.cert_pem)?;
    fs::write(directory.join("key.pem"), &identity.key_pem)
}

impl Run {
    /// What one unit has cost the peer.
    pub(super) fn cost(&self) -> f64 {
        let unit = self.scenario.unit();
        match self.scenario.load() {
            Load::Idle { .. } => self.outcome.memory_kib * 1.024 / self.units(),
            _ => self.outcome.peer.cpu_s * unit.per_second / self.units(),
        }
    }

    /// How much was done.
    pub(super) fn units(&self) -> f64 {
        (self.outcome.units as f64 / self.scenario.unit().size).max(f64::MIN_POSITIVE)
    }

    /// What was done beside it, in units a second.
    pub(super) fn beside_rate(&self) -> Option<f64> {
        let (load, outcome) = (self.scenario.beside()?, self.beside.as_ref()?);
        Some(outcome.units as f64 / Unit::of(load).size / outcome.seconds)
    }
}
