//! The network helper: a process of its own that asks the network what serving has to know: which agents there are,
//! whether they live, and which of them has a session. It answers that too. The privileged
//! helper starts it, the serving process alone speaks to it, by a socket between the two. It opens no file, has no capability
//! and never sees a client, a key or a password. Uses `agents`, `os` and `tls`.

mod client;
mod discovery;
mod messages;
mod monitor;
mod probe;
mod process;
mod resolver_client;
mod resolver_server;

pub(super) use client::NetworkHelper;
pub(super) use messages::{FoundSession, Monitored, Order, Report, shown};
pub(super) use monitor::UNNAMED_MAX;
pub(super) use process::serve;
