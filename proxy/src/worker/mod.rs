//! A worker: one thread with its own loop, listeners, pool and buffers. Accepts connections, spreads them over all workers,
//! and serves each from accept to close (`connection.rs`). Shares nothing with other workers but counts and configuration.
//! Never reloads anything itself. Uses all folders but `control`.

mod authorization;
pub mod connection;
pub mod context;
pub(crate) mod eviction;
mod failure_responses;
pub(crate) mod handshake_slots;
mod http2;
mod http2_stream;
pub(crate) mod listeners;
pub mod load_balancer;
pub(crate) mod record_builder;
mod request;
mod routing;
mod session_slots;
pub(crate) mod thread;
mod upgraded;
