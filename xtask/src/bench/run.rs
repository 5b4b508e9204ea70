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
use super::peers::{Entrance, Peer, Place, free};
use super::scenario::{Scenario, Unit};
use super::wire::Tls;

/// The measured load's agent, and those of what runs beside it: one must not wait for the other in there.
const AGENTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3), Ipv4Addr::new(127, 0, 0, 4)];
/// What a run may take beside its window.
const SLACK: Duration = Duration::from_mins(1);
/// What runs beside a load starts before it, and goes on for this much longer.
const LINGER_S: f64 = 2.0;
const ATTEMPTS: usize = 3;

/// What all runs have in common.
pub(super) struct Setting<'a> {
    pub(super) proxy: &'a Path,
    pub(super) before: Option<&'a Path>,
    /// Where everything is kept, also what an interrupted run leaves.
    pub(super) out: &'a Path,
    pub(super) identities: &'a Identities,
    pub(super) window: Duration,
    /// A run in which others used more of the machine is repeated.
    pub(super) foreign_max: f64,
}

/// What is run.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Case {
    pub(super) scenario: Scenario,
    pub(super) peer: Peer,
    /// On the leg to the agent.
    pub(super) agent_tls: Tls,
    pub(super) repetition: u64,
}

/// One measured window.
#[derive(Clone, Serialize)]
pub(super) struct Run {
    #[serde(flatten)]
    pub(super) case: Case,
    /// Which attempt it was: earlier ones were not quiet, later ones not quieter.
    pub(super) attempt: usize,
    pub(super) outcome: Outcome,
    /// Of what has run beside it.
    pub(super) beside: Vec<Outcome>,
}

/// Certificates for the agents and all peers.
pub(super) struct Identities {
    ecdsa: Identity,
    rsa: Identity,
}

impl Identities {
    /// New ones.
    pub(super) fn new() -> Self {
        let agents = AGENTS.map(|agent| agent.to_string());
        let names: Vec<&str> = agents.iter().map(String::as_str).chain(["127.0.0.1"]).collect();
        let [ecdsa, rsa] = [KeyKind::Ecdsa, KeyKind::Rsa].map(|kind| Identity::self_signed(kind, &names));
        Self { ecdsa, rsa }
    }

    fn of(&self, kind: KeyKind) -> &Identity {
        match kind {
            KeyKind::Ecdsa => &self.ecdsa,
            KeyKind::Rsa => &self.rsa,
        }
    }
}

/// Runs until the machine was quiet, or as often as is worth it; the quietest counts.
pub(super) fn run(setting: &Setting, case: Case) -> Result<Run, String> {
    let once = |attempt| {
        let (outcome, beside) = measured(setting, case, case.scenario.load())?;
        Ok::<_, String>(Run { case, attempt, outcome, beside })
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

/// The most echoes a second that client and agent manage without anything between them.
pub(super) fn saturation(setting: &Setting) -> Result<f64, String> {
    let case = Case { scenario: Scenario::Echo, peer: Peer::Direct, agent_tls: Tls::Tls13, repetition: 1 };
    let (outcome, _) = measured(setting, case, Load::Bounce { sessions: 20, bytes: 256 })?;
    Ok(outcome.units as f64 / outcome.seconds)
}

fn measured(setting: &Setting, case: Case, load: Load) -> Result<(Outcome, Vec<Outcome>), String> {
    let Case { scenario, peer, .. } = case;
    let named = |why: String| format!("{} {}: {why}", scenario.name(), peer.name());
    let directory = tempfile::Builder::new().prefix("run-").tempdir_in(setting.out);
    let directory = directory.map_err(|why| format!("no temporary directory: {why}"))?;
    let (directory, identity) = (directory.path(), setting.identities.of(scenario.key()));
    keep(directory, identity).map_err(|why| format!("no certificate files: {why}"))?;
    let first = free(AGENTS[0])?;
    let agents = AGENTS.map(|ip| SocketAddr::from((ip, first.port())));
    let is_secure = scenario.is_secure();
    let place = Place {
        directory,
        identity,
        agents,
        is_secure,
        is_http2: scenario.is_http2(),
        listen: Ipv4Addr::LOCALHOST,
        proxy: setting.proxy,
        before: setting.before,
        flags: &[],
    };
    let mut agents = vec![start_agent(setting, case, agents[0]).map_err(named)?];
    let running = peer.start(&place).map_err(named)?;

    let mut beside = Vec::new();
    for (at, load) in (1..).zip(scenario.beside()) {
        agents.push(start_agent(setting, case, place.agents[at]).map_err(named)?);
        let plan =
            ClientPlan { linger_s: LINGER_S, ..client_plan(setting, scenario, load, &running.entrances[at]) };
        beside.push(Process::start(part::command(Role::Client, &plan)?).without_grace());
    }
    let plan = ClientPlan {
        peer: running.process.iter().map(Process::pid).collect(),
        agent: agents.iter().map(Process::pid).collect(),
        others: beside.iter().map(Process::pid).collect(),
        counts_syscalls: case.repetition == 0 && running.process.is_some() && !load.is_idle(),
        ..client_plan(setting, scenario, load, &running.entrances[0])
    };
    let client = Process::start(part::command(Role::Client, &plan)?).without_grace();
    let outcome = |client| {
        part::outcome(client, setting.window + SLACK).map_err(|why| {
            let words = agents.iter().chain(&running.process).map(part::last_words);
            let words = words.filter(|words| !words.is_empty());
            named([why].into_iter().chain(words).collect::<Vec<_>>().join("; "))
        })
    };
    Ok((outcome(client)?, beside.into_iter().map(outcome).collect::<Result<_, _>>()?))
}

fn start_agent(setting: &Setting, case: Case, listen: SocketAddr) -> Result<Process, String> {
    let Identity { cert_pem, key_pem } = setting.identities.of(KeyKind::Ecdsa).clone();
    let tls = if case.scenario.is_secure() { case.agent_tls } else { Tls::Off };
    let command = part::command(Role::Agent, &AgentPlan { listen, tls, cert_pem, key_pem })?;
    part::listening(Process::start(command).without_grace(), listen)
}

fn client_plan(setting: &Setting, scenario: Scenario, load: Load, entrance: &Entrance) -> ClientPlan {
    // A peer's certificate, or that of the agent where nothing is between.
    let trusted = || [KeyKind::Ecdsa, KeyKind::Rsa].map(|kind| setting.identities.of(kind).cert_pem.clone());
    ClientPlan {
        load,
        connect: entrance.address,
        prefix: entrance.prefix.clone(),
        cert_pem: scenario.is_secure().then(|| trusted().concat()),
        window_s: setting.window.as_secs_f64(),
        linger_s: 0.0,
        peer: Vec::new(),
        agent: Vec::new(),
        others: Vec::new(),
        counts_syscalls: false,
    }
}

pub(super) fn keep(directory: &Path, identity: &Identity) -> io::Result<()> {
    fs::write(directory.join("cert.pem"), &identity.cert_pem)?;
    fs::write(directory.join("key.pem"), &identity.key_pem)
}

impl Run {
    /// What one unit has cost the peer.
    pub(super) fn cost(&self) -> f64 {
        let unit = self.case.scenario.unit();
        match self.case.scenario.load() {
            load if load.is_idle() => self.outcome.memory_kib * 1.024 / self.units(),
            _ => self.outcome.peer.cpu_s * unit.per_second / self.units(),
        }
    }

    /// How much was done.
    pub(super) fn units(&self) -> f64 {
        (self.outcome.units as f64 / self.case.scenario.unit().size).max(f64::MIN_POSITIVE)
    }

    /// What was done beside it, in units a second.
    pub(super) fn beside_rates(&self) -> impl Iterator<Item = f64> {
        let loads = self.case.scenario.beside().into_iter().zip(&self.beside);
        loads.map(|(load, outcome)| outcome.units as f64 / Unit::of(load).size / outcome.seconds)
    }
}
