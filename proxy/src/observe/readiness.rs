//! Whether a balancer is to send new users here, as an operator has said. Nothing else goes by it: whoever comes is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ready, unless somebody has said otherwise.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Whether new users are welcome.
    pub fn is_ready(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }

    /// Says whether they are.
    pub fn set(&self, is_ready: bool) {
        self.0.store(!is_ready, Ordering::Relaxed);
    }
}
