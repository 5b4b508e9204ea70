//! What workers know of the agents at a time: one value, which is swapped as a whole. Does nothing itself.

use crate::agents::connectors::Connectors;
use crate::agents::directory::Directory;
use crate::agents::health::HealthMap;

/// The agents as they are known. A clone is another handle of the same.
#[derive(Clone, Debug, Default)]
pub struct KnownAgents {
    /// Those that have names.
    pub directory: Directory,
    /// Which of all agents live, as far as they are probed.
    pub health: HealthMap,
    /// TLS to each of them.
    pub connectors: Connectors,
}
