//! Where agents are listed: the file, the command, and names in DNS, and what each of them said last that can be used. A source
//! that fails, or lists nobody any more, changes nothing. Pure: reads nothing itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::agents::connectors::Connectors;
use crate::agents::directory::{AGENTS_MAX, Directory, DirectoryRules, NamedAgent};
use crate::agents::directory_text::{Format, Problem};
use crate::agents::discovered::{self, FoundAddress};
use crate::config::Config;
use crate::observe::status::SourceStatus;
use crate::os::files::{Location, PassedFiles};

/// The name of the command among the sources.
const COMMAND: &str = "--agents-command";
/// Agents left out that are logged one by one.
const LOGGED_MAX: usize = 20;

/// What a source has said, as it was said.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    /// A list as text.
    List(String),
    /// Addresses of a name.
    Found(Vec<FoundAddress>),
}

/// What sources have said that can be used, for the next process: by their names.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub(super) struct LastLists(BTreeMap<String, Said>);

/// One of them.
#[derive(Debug, Default)]
struct Source {
    /// What it said last that can be used.
    directory: Directory,
    good: Option<Said>,
    /// What it said last, if only that can't be used.
    latest: Option<Said>,
    /// It has said something, if only why it can't.
    is_heard: bool,
    problem: Option<String>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct AgentSources {
    file: Source,
    command: Option<Source>,
    names: BTreeMap<String, Source>,
    /// TLS to agents, as the configuration and the file have it.
    connectors: Connectors,
    /// Agents of several sources that are left out, as it was logged last.
    left_out: Vec<String>,
}

impl Source {
    /// Takes what it says now, or why it says nothing.
    fn hear(&mut self, said: Result<Said, String>, name: &str, config: &Config) {
        self.is_heard = true;
        match said {
            Ok(said) => {
                self.latest = Some(said.clone());
                let read = said.read(name, config);
                if self.take(read, name) {
                    self.good = Some(said);
                }
            }
            Err(reason) => drop(self.take(Err(reason), name)),
        }
    }

    /// Goes by another configuration: agents that it does not allow are gone, and what could not be used may be usable.
    fn judge_again(&mut self, name: &str, config: &Config) {
        let is_allowed = |agent: &NamedAgent| {
            let address = agent.address;
            config.policy.agents.allows(address.ip()) && config.agent_ports.contains(&address.port())
        };
        let allowed: Vec<_> =
            self.directory.agents().iter().filter(|agent| is_allowed(agent)).cloned().collect();
        self.directory = Directory::of(allowed).0;
        if let Some(latest) = self.latest.clone() {
            self.hear(Ok(latest), name, config);
        }
    }

    /// Goes by that list from now on, where it can be used.
    fn take(&mut self, read: Result<Directory, String>, name: &str) -> bool {
        let before = self.directory.agents().len();
        let taken = read.and_then(|directory| match directory.agents().len() {
            0 if before > 0 => Err(format!("it lists no agents any more: the {before} of before stay")),
            _ => Ok(directory),
        });
        match taken {
            Ok(directory) => {
                if self.problem.take().is_some() || directory.agents().len() != before {
                    tracing::info!(source = name, agents = directory.agents().len(), "agents listed");
                }
                self.directory = directory;
                true
            }
            Err(reason) => {
                let reason = reason.replace('\n', "; ");
                tracing::error!(
                    source = name,
                    agents = before,
                    reason,
                    "agents are not listed, those of before stay"
                );
                self.problem = Some(reason);
                false
            }
        }
    }
}

impl Said {
    /// The agents that it lists; or a line for each thing that is wrong with it.
    fn read(&self, name: &str, config: &Config) -> Result<Directory, String> {
        match self {
            Self::List(text) => {
                let told = |Problem { at, what }| {
                    format!("{}: {what}", Location::new("its list".as_ref(), text, at))
                };
                with_rules(config, |rules| Directory::parse(text, Format::Json, rules))
                    .map_err(|problems| problems.into_iter().map(told).collect::<Vec<_>>().join("\n"))
            }
            Self::Found(found) => {
                let (directory, left_out) =
                    with_rules(config, |rules| discovered::directory_of(name, found, rules));
                for reason in left_out {
                    tracing::warn!(source = name, reason, "an address of --agents-dns is left out");
                }
                Ok(directory)
            }
        }
    }
}

impl AgentSources {
    /// Goes by a configuration, and what its file says. Sources that it names as before have said what they have said.
    pub(super) fn set(&mut self, config: &Config, file: Directory, connectors: Connectors) {
        self.connectors = connectors;
        match &config.agents_file {
            Some(_) => drop(self.file.take(Ok(file), "--agents-file")),
            None => self.file = Source::default(),
        }
        self.command = config.agents_command.is_some().then(|| self.command.take().unwrap_or_default());
        let mut before = std::mem::take(&mut self.names);
        let source = |name: &String| (name.clone(), before.remove(name).unwrap_or_default());
        self.names = config.agents_dns.iter().map(source).collect();
        for (name, source) in self.others_mut() {
            source.judge_again(name, config);
        }
    }

    fn others_mut(&mut self) -> impl Iterator<Item = (&str, &mut Source)> {
        let command = self.command.iter_mut().map(|source| (COMMAND, source));
        command.chain(self.names.iter_mut().map(|(name, source)| (&**name, source)))
    }

    fn others(&self) -> impl Iterator<Item = (&str, &Source)> {
        let command = self.command.iter().map(|source| (COMMAND, source));
        command.chain(self.names.iter().map(|(name, source)| (&**name, source)))
    }

    /// What sources have said last that can be used.
    pub(super) fn last_lists(&self) -> LastLists {
        let said = |(name, source): (&str, &Source)| Some((name.to_owned(), source.good.clone()?));
        LastLists(self.others().filter_map(said).collect())
    }

    /// Goes by what the process before has heard, until the sources say something themselves.
    pub(super) fn adopt(&mut self, mut lists: LastLists, config: &Config) {
        for (name, source) in self.others_mut() {
            if let Some(said) = lists.0.remove(name).filter(|_| !source.is_heard) {
                source.hear(Ok(said), name, config);
                source.is_heard = false;
            }
        }
    }

    /// Whether one of them has not said anything yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.others().any(|(_, source)| !source.is_heard)
    }

    /// Takes what the command has printed, or why it has not.
    pub(super) fn take_list(&mut self, listed: Result<Vec<u8>, String>, config: &Config) {
        let Some(source) = &mut self.command else { return };
        let text = |list| String::from_utf8(list).map_err(|_| "it is no UTF-8 text".to_owned());
        source.hear(listed.and_then(text).map(Said::List), COMMAND, config);
    }

    /// Takes what a name has come to, or why to nothing.
    pub(super) fn take_name(
        &mut self,
        name: &str,
        found: Result<Vec<FoundAddress>, String>,
        config: &Config,
    ) {
        if let Some(source) = self.names.get_mut(name) {
            source.hear(found.map(Said::Found), name, config);
        }
    }

    /// The agents of all, those of the file first, and TLS to them. One that has the name or the address of one before it is left
    /// out.
    pub(super) fn all(&mut self) -> (Directory, Connectors) {
        if self.others().all(|(_, source)| source.directory.agents().is_empty()) {
            return (self.file.directory.clone(), self.connectors.clone());
        }
        let all = [&self.file].into_iter().chain(self.others().map(|(_, source)| source));
        let all = all.flat_map(|source| source.directory.agents().iter().cloned());
        let (directory, left_out) = Directory::of(all.take(AGENTS_MAX).collect::<Vec<NamedAgent>>());
        if left_out != self.left_out {
            for reason in left_out.iter().take(LOGGED_MAX) {
                tracing::warn!(reason, "an agent that several sources list is left out");
            }
            let further = left_out.len().saturating_sub(LOGGED_MAX);
            if further > 0 {
                tracing::warn!(agents = further, "further agents that several sources list are left out");
            }
            self.left_out = left_out;
        }
        (directory, self.connectors_of_all())
    }

    /// The command can say pins, for which no file is read. Where it lists an agent that the file has, the file counts.
    fn connectors_of_all(&self) -> Connectors {
        let Some(command) = &self.command else { return self.connectors.clone() };
        let is_of_file = |agent: &&NamedAgent| self.file.directory.at(agent.address).is_some();
        let listed = command.directory.agents().iter().filter(|agent| !is_of_file(agent));
        let (listed, _) = Directory::of(listed.cloned().collect::<Vec<_>>());
        let connectors = self.connectors.clone().with_own(&listed, &PassedFiles::default());
        connectors.unwrap_or_else(|errors| {
            for (name, error) in errors {
                tracing::error!(
                    agent = &*name,
                    reason = &*error.to_string(),
                    "TLS of an agent can't be set up"
                );
            }
            self.connectors.clone()
        })
    }

    /// For monitoring.
    pub(super) fn status(&self) -> Vec<SourceStatus> {
        let status = |name: &str, source: &Source| SourceStatus {
            source: name.to_owned(),
            agents: source.directory.agents().len() as u64,
            problem: source.problem.clone().unwrap_or_default(),
        };
        self.others().map(|(name, source)| status(name, source)).collect()
    }
}

fn with_rules<T>(config: &Config, read: impl FnOnce(DirectoryRules<'_>) -> T) -> T {
    let is_allowed = |address: IpAddr| config.policy.agents.allows(address);
    read(DirectoryRules { ports: &config.agent_ports, is_allowed: &is_allowed, names_files: false })
}
