//! An L7 proxy for Amazon DCV desktops: TLS in, `/<ip>/` routing, TLS out, and a relay after the `101`.
//! The program is `main.rs`; this library exists so that tests can put a simulated wire under it.

pub mod access;
pub mod agents;
pub mod config;
pub mod control;
pub mod http;
pub mod observe;
pub mod os;
pub mod runtime;
pub mod session;
pub mod tls;
pub mod transport;
pub mod worker;
