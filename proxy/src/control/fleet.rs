//! The agents and sessions of the running proxy, as its control socket gives them and as `dcv-splice agents` and `sessions` show
//! them. Changes none of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::agents::directory::{AgentState, NamedAgent};
use crate::agents::health::{Health, HealthChange, date};
use crate::agents::known::KnownAgents;
use crate::config::SessionFilter;
use crate::control::network_helper::{UNNAMED_MAX, shown};
use crate::control::socket::{self, ControlCommand};
use crate::observe::lag::Lag;
use crate::observe::session_stats::{HistoryPoint, SessionSample};
use crate::observe::status::AgentStatus;
use crate::observe::units::{bytes, short};
use crate::session::open_sessions::{Desktop, ListedSession, OpenSessions};
use crate::worker::context::SharedState;

/// How often processes that drain are asked who is left.
const FORMER_LOOK: Duration = Duration::from_secs(5);
/// Agents whose change of state is logged at once.
const LOGGED_MAX: usize = 20;
/// How long one of them may take to answer.
pub(super) const FORMER_TIMEOUT: Duration = Duration::from_secs(5);

/// An open session.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct SessionReport {
    /// The process and its own number: unique while it is open.
    pub id: String,
    /// The agent's name, where it has one.
    pub name: Option<String>,
    /// Where the agent is reached.
    pub agent: SocketAddr,
    /// The client.
    pub client: IpAddr,
    /// The user whose password was given; empty where none is asked for.
    pub user: String,
    /// How long it is open, in seconds.
    pub seconds: u64,
    /// What it was like when it moved bytes last.
    #[serde(default, flatten)]
    pub sample: SessionSample,
}

/// An agent that has a name, or sessions.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct AgentReport {
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Where it is reached.
    pub address: SocketAddr,
    /// `active`, `drain` or `off`.
    pub state: String,
    /// `up`, `down`, or `unknown` where it was not probed.
    pub health: String,
    /// Since when it is down, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_since: Option<u64>,
    /// Why it is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_reason: Option<String>,
    /// The pools that it is part of.
    pub pools: Vec<String>,
    /// What the operator has said of it.
    pub tags: BTreeMap<String, String>,
    /// Open sessions.
    pub sessions: u64,
    /// Desktops that have them.
    pub desktops: u64,
    /// Where their time goes: p50 of the sessions.
    #[serde(default)]
    pub lag: Lag,
}

/// All agents, as a document.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct AgentsReport {
    /// Each of them, those with names first.
    pub agent: Vec<AgentReport>,
}

impl AgentsReport {
    /// As they are now.
    pub(super) fn of(shared: &SharedState) -> Self {
        let directory = &shared.agents.directory;
        let mut sessions: HashMap<SocketAddr, u64> = HashMap::new();
        let mut desktops: HashMap<SocketAddr, u64> = HashMap::new();
        let mut lags: HashMap<SocketAddr, Vec<Lag>> = HashMap::new();
        let mut seen = HashSet::new();
        for session in shared.process.sessions.list() {
            let agent = session.desktop.agent;
            lags.entry(agent).or_default().push(session.live.sample().lag);
            *sessions.entry(agent).or_default() += 1;
            if seen.insert(session.desktop) {
                *desktops.entry(agent).or_default() += 1;
            }
        }
        let count = |counts: &HashMap<SocketAddr, u64>, agent| counts.get(agent).copied().unwrap_or(0);
        let mut agents: Vec<_> = directory.agents().iter().map(AgentReport::named).collect();
        let health = &shared.agents.health;
        let others = sessions.keys().copied().chain(health.iter().map(|(agent, _)| agent));
        let others: BTreeSet<_> = others.filter(|agent| directory.at(*agent).is_none()).collect();
        agents.extend(others.into_iter().map(AgentReport::unnamed));
        for agent in &mut agents {
            agent.note_health(health.of(agent.address));
            agent.sessions = count(&sessions, &agent.address);
            agent.desktops = count(&desktops, &agent.address);
            agent.lag = Lag::median(lags.get(&agent.address).map_or(&[], Vec::as_slice));
        }
        Self { agent: agents }
    }

    /// Of all processes: the agents of the one that serves and those that others still have sessions with, and the sessions of
    /// all. A desktop may have some in each.
    pub(super) fn merged(reports: Vec<Self>, sessions: &[SessionReport]) -> Self {
        let mut reports = reports.into_iter();
        let mut merged = reports.next().unwrap_or_default();
        for other in reports.flat_map(|former| former.agent).filter(|other| other.sessions > 0) {
            if !merged.agent.iter().any(|agent| agent.address == other.address) {
                merged.agent.push(other);
            }
        }
        let mut of_agents: HashMap<SocketAddr, Vec<&SessionReport>> = HashMap::new();
        for session in sessions {
            of_agents.entry(session.agent).or_default().push(session);
        }
        for agent in &mut merged.agent {
            let sessions = of_agents.remove(&agent.address).unwrap_or_default();
            let lags: Vec<_> = sessions.iter().map(|session| session.sample.lag).collect();
            let desktops: HashSet<_> = sessions.iter().map(|it| (it.client, &it.user)).collect();
            agent.sessions = sessions.len() as u64;
            agent.desktops = desktops.len() as u64;
            agent.lag = Lag::median(&lags);
        }
        merged
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let row = |agent: &AgentReport| {
            [
                agent.name.clone().unwrap_or_else(|| "-".to_owned()),
                agent.address.to_string(),
                agent.state.clone(),
                agent.health_cell(),
                agent.desktops.to_string(),
                agent.sessions.to_string(),
                lag_cell(&agent.lag),
                if agent.pools.is_empty() { "-".to_owned() } else { agent.pools.join(",") },
            ]
        };
        table(
            ["name", "address", "state", "health", "desktops", "sessions", LAG_HEAD, "pools"],
            self.agent.iter().map(row),
        )
    }
}

impl AgentReport {
    fn named(agent: &NamedAgent) -> Self {
        let tags = agent.tags.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        Self {
            name: Some(agent.name.to_string()),
            state: agent.state.to_string(),
            pools: agent.pools.iter().map(ToString::to_string).collect(),
            tags: tags.collect(),
            ..Self::unnamed(agent.address)
        }
    }

    fn unnamed(address: SocketAddr) -> Self {
        let state = AgentState::Active.to_string();
        Self {
            name: None,
            address,
            state,
            health: "unknown".to_owned(),
            down_since: None,
            down_reason: None,
            pools: Vec::new(),
            tags: BTreeMap::new(),
            sessions: 0,
            desktops: 0,
            lag: Lag::default(),
        }
    }
}

impl AgentReport {
    fn note_health(&mut self, health: Option<&Health>) {
        match health {
            None => {}
            Some(Health::Up { .. }) => "up".clone_into(&mut self.health),
            Some(Health::Down(down)) => {
                "down".clone_into(&mut self.health);
                self.down_since = Some(down.since_s);
                self.down_reason = Some(down.failure.detail.clone());
            }
        }
    }

    /// For people.
    fn health_cell(&self) -> String {
        match (&self.down_reason, self.down_since) {
            (Some(reason), Some(since)) => {
                let since = humantime::format_rfc3339_seconds(date(since));
                format!("down since {since} ({reason})")
            }
            _ => self.health.clone(),
        }
    }
}

/// The agents that have names or were probed, for monitoring.
pub(super) fn status(KnownAgents { directory, health, .. }: &KnownAgents) -> Vec<AgentStatus> {
    let mut all: Vec<_> = directory
        .agents()
        .iter()
        .map(|agent| AgentStatus {
            name: agent.name.to_string(),
            address: agent.address.to_string(),
            state: agent.state.to_string(),
            ..health_status(health.of(agent.address))
        })
        .collect();
    let unnamed = health.iter().filter(|(agent, _)| directory.at(*agent).is_none());
    all.extend(unnamed.map(|(agent, health)| AgentStatus {
        address: agent.to_string(),
        state: AgentState::Active.to_string(),
        ..health_status(Some(health))
    }));
    all
}

fn health_status(health: Option<&Health>) -> AgentStatus {
    match health {
        None => AgentStatus::default(),
        Some(Health::Up { .. }) => AgentStatus { is_up: Some(true), ..AgentStatus::default() },
        Some(Health::Down(down)) => AgentStatus {
            is_up: Some(false),
            failure: down.failure.kind.to_string(),
            reason: down.failure.detail.clone(),
            down_since_s: down.since_s,
            ..AgentStatus::default()
        },
    }
}

/// Changes that can be believed: of agents that are listed, of the default agent, and of a bounded number of others that may be
/// reached. What is said of them is cut to what can be shown.
pub(super) fn accepted(changes: Vec<HealthChange>, shared: &SharedState) -> Vec<HealthChange> {
    let SharedState { agents: KnownAgents { directory, health, .. }, config, .. } = shared;
    let policy = &config.policy;
    let is_usual = |agent: SocketAddr| Some(agent.ip()) == policy.default_agent;
    let is_other = |agent: SocketAddr| directory.at(agent).is_none() && !is_usual(agent);
    let mut others = health.iter().filter(|(agent, _)| is_other(*agent)).count();
    let is_accepted = |change: &HealthChange| {
        let agent = change.agent;
        if change.health.is_none() || health.of(agent).is_some() || !is_other(agent) {
            return true;
        }
        others += 1;
        others <= UNNAMED_MAX && policy.agents.allows(agent.ip())
    };
    let cut = |mut change: HealthChange| {
        if let Some(Health::Down(down)) = &mut change.health {
            down.failure.detail = shown(&down.failure.detail);
        }
        change
    };
    let mut accepted = changes;
    accepted.retain(is_accepted);
    accepted.into_iter().map(cut).collect()
}

/// Logs which agents are down or up again; of very many at once, how many.
pub(super) fn log_health(changes: &[HealthChange], known: &KnownAgents) {
    let was_down = |agent| known.health.down(agent).is_some();
    let is_news =
        |change: &&HealthChange| was_down(change.agent) != matches!(change.health, Some(Health::Down(_)));
    let mut news = changes.iter().filter(is_news);
    for HealthChange { agent, health } in news.by_ref().take(LOGGED_MAX) {
        let name = known.directory.at(*agent).map_or_else(|| "-".to_owned(), |named| named.name.to_string());
        match health {
            Some(Health::Down(down)) => {
                tracing::warn!(%agent, name, kind = %down.failure.kind, reason = &*down.failure.detail, "agent is down");
            }
            Some(Health::Up { .. }) => tracing::info!(%agent, name, "agent is up again"),
            None => tracing::info!(%agent, name, "agent is no longer probed"),
        }
    }
    let others = news.count();
    if others > 0 {
        tracing::warn!(agents = others, "further agents have changed: `dcv-splice agents` lists them");
    }
}

/// The numbers of the open sessions that a filter names.
pub(super) fn chosen(shared: &SharedState, filter: &SessionFilter) -> Vec<u64> {
    let listed = shared.process.sessions.list();
    let numbers = listed.iter().map(|session| session.number);
    numbers
        .zip(reports(shared, listed.clone()))
        .filter(|(_, it)| it.is_named(filter))
        .map(|(it, _)| it)
        .collect()
}

/// The open sessions of this process.
pub(super) fn sessions(shared: &SharedState) -> Vec<SessionReport> {
    reports(shared, shared.process.sessions.list())
}

/// The last five minutes of one of them; nothing where it is not here.
pub(super) fn history(shared: &SharedState, id: &str) -> Vec<HistoryPoint> {
    let listed = shared.process.sessions.list();
    let found = listed.iter().find(|session| session_id(session.number) == id);
    found.map(|session| session.live.history()).unwrap_or_default()
}

fn session_id(number: u64) -> String {
    format!("{}-{number}", std::process::id())
}

fn reports(shared: &SharedState, listed: Vec<ListedSession>) -> Vec<SessionReport> {
    let (directory, now) = (&shared.agents.directory, Instant::now());
    let report = |session: ListedSession| SessionReport {
        id: session_id(session.number),
        name: directory.at(session.desktop.agent).map(|agent| agent.name.to_string()),
        agent: session.desktop.agent,
        client: session.desktop.client,
        user: session.desktop.user,
        seconds: now.saturating_duration_since(session.since).as_secs(),
        sample: session.live.sample(),
    };
    listed.into_iter().map(report).collect()
}

impl SessionReport {
    /// Whether all that a filter says is true of it.
    pub(super) fn is_named(&self, filter: &SessionFilter) -> bool {
        let SessionFilter { agent, client, user, id } = filter;
        let is_agent = |agent: &String| {
            let is_name = self.name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(agent));
            let address = agent.trim_matches(['[', ']']).parse::<IpAddr>();
            is_name || address == Ok(self.agent.ip()) || agent.parse() == Ok(self.agent)
        };
        agent.as_ref().is_none_or(is_agent)
            && client.is_none_or(|client| client == self.client)
            && user.as_ref().is_none_or(|user| *user == self.user)
            && id.as_ref().is_none_or(|id| *id == self.id)
    }

    /// Whose it is.
    fn desktop(self) -> Desktop {
        Desktop { agent: self.agent, client: self.client, user: self.user }
    }
}

/// What a former process says.
pub(super) enum FormerAnswer {
    Said(String),
    /// Not yet: it is busy.
    Silent,
    /// It has ended, or is of a version that does not know the command.
    Gone,
}

/// Asks a former process, and waits for its answer that long.
pub(super) async fn ask_former(path: &Path, command: ControlCommand, limit: Duration) -> FormerAnswer {
    match tokio::time::timeout(limit, socket::ask(path, command, "")).await {
        Ok(Ok(said)) => FormerAnswer::Said(said),
        Ok(Err(_)) => FormerAnswer::Gone,
        Err(_) => FormerAnswer::Silent,
    }
}

/// Notes who has sessions in processes that drain, reached at `former`, and keeps track of them until all have ended.
pub(super) async fn follow_former(former: Vec<PathBuf>, sessions: OpenSessions) {
    let mut known = Vec::new();
    if !note_former(&former, &mut known, &sessions).await {
        return;
    }
    tokio::spawn(async move {
        while note_former(&former, &mut known, &sessions).await {
            tokio::time::sleep(FORMER_LOOK).await;
        }
    });
}

/// Notes who has sessions in them now; of one that is silent, what is known of it. Whether there may be any of them.
async fn note_former(former: &[PathBuf], known: &mut Vec<HashSet<Desktop>>, sessions: &OpenSessions) -> bool {
    known.resize(former.len(), HashSet::new());
    let mut is_there = false;
    for (path, desktops) in former.iter().zip(&mut *known) {
        match ask_former(path, ControlCommand::Sessions, FORMER_TIMEOUT).await {
            FormerAnswer::Said(said) => {
                let reports: Vec<SessionReport> = serde_json::from_str(&said).unwrap_or_default();
                *desktops = reports.into_iter().map(SessionReport::desktop).collect();
                is_there = true;
            }
            FormerAnswer::Silent => is_there = true,
            FormerAnswer::Gone => desktops.clear(),
        }
    }
    sessions.note_former(known.iter().flatten().cloned().collect());
    is_there
}

/// Sessions for people.
pub(super) fn table_of_sessions(sessions: &[SessionReport]) -> String {
    let row = |session: &SessionReport| {
        let open = humantime::format_duration(Duration::from_secs(session.seconds)).to_string();
        [
            session.id.clone(),
            session.name.clone().unwrap_or_else(|| "-".to_owned()),
            session.agent.to_string(),
            session.client.to_string(),
            if session.user.is_empty() { "-".to_owned() } else { session.user.clone() },
            open,
            bytes(session.sample.rate_to_client),
            lag_cell(&session.sample.lag),
        ]
    };
    let head = ["id", "name", "agent", "client", "user", "open", "bytes/s", LAG_HEAD];
    table(head, sessions.iter().map(row))
}

/// The four places of [`lag_cell`].
const LAG_HEAD: &str = "client net + proxy + agent net + agent";

/// Where the time goes, place by place.
fn lag_cell(lag: &Lag) -> String {
    lag.places().map(|(_, us)| us.map_or_else(|| "?".to_owned(), short)).join(" + ")
}

/// Columns as wide as they have to be.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let all: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to memory does not fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_columns_as_wide_as_they_have_to_be() {
        let rows = [["a", "10.0.0.1:8443"], ["longer", "x"]].map(|row| row.map(str::to_owned));
        let text = table(["name", "address"], rows.into_iter());
        assert_eq!(text, "name    address\na       10.0.0.1:8443\nlonger  x\n");
    }

    #[test]
    fn what_drains_is_added_to_the_agent_that_it_is_on() {
        let agent = |address: &str, sessions| AgentReport {
            sessions,
            desktops: sessions,
            ..AgentReport::unnamed(address.parse().expect("an address"))
        };
        let session = |agent: &str, user: &str, us: u64| {
            let lag = format!(r#"{{"client_network_us":{us}}}"#);
            let text = format!(
                r#"{{"id":"1","agent":"{agent}","client":"192.0.2.7","user":"{user}","seconds":1,"lag":{lag}}}"#
            );
            serde_json::from_str::<SessionReport>(&text).expect("a session")
        };
        let serving = AgentsReport { agent: vec![agent("10.0.0.1:1", 1), agent("10.0.0.2:1", 0)] };
        let former = [agent("10.0.0.1:1", 2), agent("10.0.0.3:1", 1), agent("10.0.0.4:1", 0)];
        let former = AgentsReport { agent: former.to_vec() };
        let sessions = [
            ("10.0.0.1:1", "ann", 1),
            ("10.0.0.1:1", "ann", 5),
            ("10.0.0.1:1", "bob", 9),
            ("10.0.0.3:1", "", 7),
        ];
        let sessions = sessions.map(|(agent, user, us)| session(agent, user, us));
        let merged = AgentsReport::merged(vec![serving, former], &sessions);
        let counts: Vec<_> = merged
            .agent
            .iter()
            .map(|it| (it.address.to_string(), it.sessions, it.desktops, it.lag.client_network_us))
            .collect();
        // Ann's sessions in both processes are one desktop.
        let wanted =
            [("10.0.0.1:1", 3, 2, Some(5)), ("10.0.0.2:1", 0, 0, None), ("10.0.0.3:1", 1, 1, Some(7))];
        let wanted = wanted.map(|(address, count, desktops, us)| (address.to_owned(), count, desktops, us));
        assert_eq!(counts, wanted);
    }
}
