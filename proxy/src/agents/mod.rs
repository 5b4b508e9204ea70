//! The agents: their names, whether they live, and the connections to them that are kept. An agent is the host of a DCV server. Uses `http` and
//! what is below it; knows no client.

pub mod connectors;
pub mod directory;
pub mod directory_text;
pub mod discovered;
pub mod health;
pub mod known;
pub mod placement;
pub(crate) mod pool;
pub mod session_resolver;
pub(crate) mod unreachable;
