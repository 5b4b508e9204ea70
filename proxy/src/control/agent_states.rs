//! The states of agents that an operator has set by a command. Each holds until another command, or until the file of agents
//! says something else of that agent than it did then: the later word counts. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::agents::directory::{AGENTS_MAX, AgentState, Directory, NamedAgent};

/// All of them, by the agents' names.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct AgentStates(BTreeMap<String, SetState>);

/// A state that was set.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct SetState {
    state: AgentState,
    /// What the file said then.
    file: AgentState,
}

impl AgentStates {
    /// From text that [`AgentStates::text`] has given.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// As text.
    pub(super) fn text(&self) -> Result<String, String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n").map_err(|error| error.to_string())
    }

    /// Sets the state of an agent of the file, by its name or address. Gives its name.
    pub(super) fn set(&mut self, agent: &str, state: AgentState, file: &Directory) -> Result<String, String> {
        let found = find(agent, file)?;
        let name = found.name.to_string();
        self.0.insert(name.clone(), SetState { state, file: found.state });
        Ok(name)
    }

    /// The agents that are listed with the states that hold. What holds no longer is forgotten; that of an agent that is not listed
    /// now may hold again when it is.
    pub(super) fn apply(&mut self, file: &Directory) -> Directory {
        self.0.retain(|name, set| file.named(name).is_none_or(|agent| agent.state == set.file));
        if self.0.len() > AGENTS_MAX {
            self.0.retain(|name, _| file.named(name).is_some());
        }
        if self.0.is_empty() {
            return file.clone();
        }
        file.with_states(self.0.iter().map(|(name, set)| (name.as_str(), set.state)))
    }
}

/// The agent of that name, or at that address.
fn find<'a>(agent: &str, file: &'a Directory) -> Result<&'a NamedAgent, String> {
    if let Some(found) = file.named(&agent.to_ascii_lowercase()) {
        return Ok(found);
    }
    let none = || format!("no agent of --agents-file is {agent}: `dcv-splice agents` lists them");
    let address: IpAddr = agent.trim_matches(['[', ']']).parse().map_err(|_| none())?;
    let mut at = file.agents().iter().filter(|found| found.address.ip() == address.to_canonical());
    match (at.next(), at.next()) {
        (Some(found), None) => Ok(found),
        (Some(one), Some(other)) => {
            Err(format!("{agent} is the address of {} and {}: give a name", one.name, other.name))
        }
        (None, _) => Err(none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::directory::DirectoryRules;
    use crate::agents::directory_text::Format;

    fn file(states: [&str; 2]) -> Directory {
        let entry = |(name, state): (&str, &str)| {
            format!(
                "[[agent]]\nname = \"{name}\"\naddress = \"10.0.0.{}\"\nstate = \"{state}\"\n",
                name.len()
            )
        };
        let text: String = ["a", "bb"].into_iter().zip(states).map(entry).collect();
        let rules = DirectoryRules { ports: &[8443], is_allowed: &|_| true, names_files: true };
        Directory::parse(&text, Format::Toml, rules).expect("a directory")
    }

    fn states(directory: &Directory) -> Vec<AgentState> {
        directory.agents().iter().map(|agent| agent.state).collect()
    }

    #[test]
    fn the_later_word_of_a_command_and_the_file_counts() {
        let mut set = AgentStates::default();
        let active = file(["active", "active"]);
        assert_eq!(set.set("A", AgentState::Drain, &active), Ok("a".to_owned()));
        assert_eq!(set.set("10.0.0.2", AgentState::Off, &active), Ok("bb".to_owned()));
        assert_eq!(states(&set.apply(&active)), [AgentState::Drain, AgentState::Off]);
        // A file that says the same of an agent has said nothing new.
        assert_eq!(states(&set.apply(&file(["active", "drain"]))), [AgentState::Drain, AgentState::Drain]);
        assert_eq!(states(&set.apply(&active)), [AgentState::Drain, AgentState::Active]);
        assert_eq!(set.set("a", AgentState::Active, &active), Ok("a".to_owned()));
        assert_eq!(states(&set.apply(&active)), [AgentState::Active, AgentState::Active]);
        // The file before said something else when the command was given.
        set.set("a", AgentState::Drain, &file(["drain", "active"])).expect("it is there");
        assert_eq!(states(&set.apply(&active))[0], AgentState::Active);
        assert!(set.set("c", AgentState::Off, &active).is_err_and(|error| error.contains("is c:")));
        assert!(set.set("10.0.0.3", AgentState::Off, &active).is_err());
    }

    #[test]
    fn they_are_read_as_they_are_written() {
        let mut set = AgentStates::default();
        set.set("a", AgentState::Off, &file(["drain", "active"])).expect("it is there");
        let text = set.text().expect("a text");
        assert_eq!(AgentStates::parse(&text), Ok(set));
        assert_eq!(AgentStates::parse(" \n"), Ok(AgentStates::default()));
        assert!(AgentStates::parse("{\"a\": {\"state\": \"gone\", \"file\": \"off\"}}").is_err());
    }
}
