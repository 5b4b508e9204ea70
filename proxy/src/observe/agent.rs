//! Which agent something is about, and where it is reached. Everything that is counted, logged or kept per agent names it
//! by its [`AgentId`]; no other file knows what that is made of. Connects to nobody.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// An agent's identity, whatever address it is reached at.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct AgentId(IpAddr);

impl AgentId {
    /// All agents that are not told apart: those never reached, and those beyond the limit of what is counted.
    pub const OTHERS: Self = Self(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
}

impl From<IpAddr> for AgentId {
    fn from(address: IpAddr) -> Self {
        Self(address)
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::OTHERS { f.write_str("others") } else { self.0.fmt(f) }
    }
}

/// An agent: who it is, and where it is reached.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Agent {
    /// Its identity.
    pub id: AgentId,
    /// The address and port of its DCV server.
    pub address: SocketAddr,
}

impl Agent {
    /// An agent that is known by its address alone.
    pub fn at(address: SocketAddr) -> Self {
        Self { id: address.ip().into(), address }
    }
}

/// As logs write it: the address and port.
impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
