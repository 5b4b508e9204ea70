//! Everything that operators see: the access log, counters and times, their export, and how often something has failed. Never
//! decides what happens to a connection. Uses `os`, `runtime` and `tls`.

pub mod access_log;
pub mod agent;
pub(crate) mod client;
pub(crate) mod failures;
pub mod metrics;
pub mod readiness;
pub mod stats;
