//! Where agents are listed: the file, the command, and names in DNS, and what each of them said last that can be used. A source
//! that fails, or lists nobody any more, changes nothing. Pure: reads nothing itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::agents::connectors::Connectors;
use crate::agents::directory::{Directory, DirectoryRules, NamedAgent};
use crate::agents::directory_text::{Format, Problem};
use crate::agents::discovered::{self, FoundAddress};
use crate::config::Config;
use crate::observe::metrics::SourceStatus;
use crate::os::files::{Location, PassedFiles};

/// One of them.
#[derive(Debug, Default)]
struct Source {
    /// What it said last that can be used.
    directory: Directory,
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
}

impl Source {
    /// Takes what it says now.
    fn take(&mut self, told: Result<Directory, String>, name: &str) {
        let before = self.directory.agents().len();
        let taken = told.and_then(|directory| match directory.agents().len() {
            0 if before > 0 => Err(format!("it lists no agents any more: the {before} of before stay")),
            _ => Ok(directory),
        });
        self.is_heard = true;
        match taken {
            Ok(directory) => {
                if self.problem.take().is_some() || directory.agents().len() != before {
                    tracing::info!(source = name, agents = directory.agents().len(), "agents listed");
                }
                self.directory = directory;
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
            }
        }
    }
}

impl AgentSources {
    /// Goes by a configuration, and what its file says. Sources that it names as before have said what they have said.
    pub(super) fn set(&mut self, config: &Config, file: Directory, connectors: Connectors) {
        self.connectors = connectors;
        match &config.agents_file {
            Some(_) => self.file.take(Ok(file), "--agents-file"),
            None => self.file = Source::default(),
        }
        self.command = config.agents_command.is_some().then(|| self.command.take().unwrap_or_default());
        let mut before = std::mem::take(&mut self.names);
        let source = |name: &String| (name.clone(), before.remove(name).unwrap_or_default());
        self.names = config.agents_dns.iter().map(source).collect();
    }

    /// Whether one of them has not said anything yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.command.iter().chain(self.names.values()).any(|source| !source.is_heard)
    }

    /// Takes what the command has printed, or why it has not.
    pub(super) fn take_list(&mut self, listed: Result<Vec<u8>, String>, config: &Config) {
        let Some(source) = &mut self.command else { return };
        let read = |list: Vec<u8>| {
            let text = String::from_utf8(list).map_err(|_| "it is no UTF-8 text".to_owned())?;
            let told =
                |Problem { at, what }| format!("{}: {what}", Location::new("its list".as_ref(), &text, at));
            with_rules(config, |rules| Directory::parse(&text, Format::Json, rules))
                .map_err(|problems| problems.into_iter().map(told).collect::<Vec<_>>().join("\n"))
        };
        source.take(listed.and_then(read), "--agents-command");
    }

    /// Takes what a name has come to, or why to nothing.
    pub(super) fn take_name(
        &mut self,
        name: &str,
        found: Result<Vec<FoundAddress>, String>,
        config: &Config,
    ) {
        let Some(source) = self.names.get_mut(name) else { return };
        let directory = found.map(|found| {
            let (directory, left_out) =
                with_rules(config, |rules| discovered::directory_of(name, &found, rules));
            for reason in left_out {
                tracing::warn!(source = name, reason, "an address of --agents-dns is left out");
            }
            directory
        });
        source.take(directory, name);
    }

    /// The agents of all, those of the file first, and TLS to them. One that has the name or the address of one before it is left
    /// out.
    pub(super) fn all(&self) -> (Directory, Connectors) {
        let others: Vec<_> = self.command.iter().chain(self.names.values()).collect();
        if others.iter().all(|source| source.directory.agents().is_empty()) {
            return (self.file.directory.clone(), self.connectors.clone());
        }
        let all = [&self.file].into_iter().chain(others);
        let all = all.flat_map(|source| source.directory.agents().iter().cloned());
        let (directory, left_out) = Directory::of(all.collect::<Vec<NamedAgent>>());
        for reason in left_out {
            tracing::warn!(reason, "an agent that several sources list is left out");
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
        let command = self.command.iter().map(|source| status("--agents-command", source));
        command.chain(self.names.iter().map(|(name, source)| status(name, source))).collect()
    }
}

fn with_rules<T>(config: &Config, read: impl FnOnce(DirectoryRules<'_>) -> T) -> T {
    let is_allowed = |address: IpAddr| config.policy.agents.allows(address);
    read(DirectoryRules { ports: &config.agent_ports, is_allowed: &is_allowed, names_files: false })
}
