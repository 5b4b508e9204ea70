//! Everything that operators see: the access log, counters and times, their export, and how often something has failed. Never
//! decides what happens to a connection. Uses `os`, `runtime` and `tls`.

pub mod access_log;
pub mod agent;
pub mod agent_stats;
pub(crate) mod client;
pub(crate) mod failures;
pub mod handshakes;
pub mod histogram;
pub mod lag;
pub mod metrics;
pub mod readiness;
pub mod recent;
pub mod request_id;
pub mod session_stats;
pub mod side;
pub mod stats;
pub mod status;
pub mod tcp_stats;
pub(crate) mod units;
