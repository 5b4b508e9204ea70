//! TLS to agents: by one rule for all of them, and by another for those that the directory says so of. Connects to nobody.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::agents::directory::{AgentTls, Directory};
use crate::os::files::Files;
use crate::tls::{AgentTrust, CertificateError, Connector};

/// The connectors. A clone is another handle of the same.
#[derive(Clone, Debug, Default)]
pub struct Connectors {
    /// Of agents without a rule of their own; none where they speak plain HTTP.
    usual: Option<Connector>,
    own: Arc<HashMap<SocketAddr, Option<Connector>>>,
}

impl Connectors {
    /// One for all agents; none where they speak plain HTTP.
    pub fn for_all(usual: Option<Connector>) -> Self {
        Self { usual, own: Arc::default() }
    }

    /// The same with the rules of a directory as well. The error has each agent that can't be verified so.
    pub fn with_own(
        self,
        directory: &Directory,
        files: &dyn Files,
    ) -> Result<Self, Vec<(Box<str>, CertificateError)>> {
        let mut sharing: HashMap<&AgentTrust, usize> = HashMap::new();
        for agent in directory.agents() {
            if let Some(AgentTls::Verified(trust)) = &agent.tls {
                *sharing.entry(trust).or_default() += 1;
            }
        }
        let (mut made, mut own, mut errors) = (HashMap::new(), HashMap::clone(&self.own), Vec::new());
        for agent in directory.agents() {
            let connector = match &agent.tls {
                None => continue,
                Some(AgentTls::Off) => None,
                Some(AgentTls::Verified(trust)) => {
                    if !made.contains_key(trust) {
                        let agents = sharing.get(trust).copied().unwrap_or(1);
                        match Connector::for_agents(trust, agents, files) {
                            Ok(connector) => drop(made.insert(trust, connector)),
                            Err(error) => errors.push((agent.name.clone(), error)),
                        }
                    }
                    made.get(trust).cloned()
                }
            };
            own.insert(agent.address, connector);
        }
        if errors.is_empty() { Ok(Self { own: Arc::new(own), ..self }) } else { Err(errors) }
    }

    /// That of an agent; none where it speaks plain HTTP.
    pub fn of(&self, agent: SocketAddr) -> Option<&Connector> {
        self.own.get(&agent).unwrap_or(&self.usual).as_ref()
    }
}
