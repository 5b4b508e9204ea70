//! An L7 proxy for Amazon DCV desktops: TLS in, `/<ip>/` routing, TLS out, and a relay after the `101`.
//! The program is `main.rs`; this library exists so that tests can put a simulated wire under it.

pub mod account;
pub mod admin;
pub mod admission;
pub mod agents;
pub mod alarms;
pub mod balance;
pub mod body;
pub mod broker;
pub mod buffer;
pub mod cgroup;
pub mod config;
pub mod confine;
pub mod conn;
pub mod control;
pub mod decision;
pub mod exchange;
pub mod executor;
pub mod figures;
pub mod files;
pub mod forward;
pub mod handshakes;
pub mod head;
pub mod htpasswd;
pub mod introduction;
pub mod listeners;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod passwords;
pub mod peer;
pub mod poller;
pub mod prepared;
pub mod refusals;
pub mod relay;
pub mod reply;
pub mod route;
pub mod schedule;
pub mod splice;
pub mod stop;
pub mod supervisor;
#[expect(unsafe_code, reason = "the one place for it, reviewed block by block")]
pub mod sys;
pub mod syscalls;
pub mod tls;
pub mod worker;
