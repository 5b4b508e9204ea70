//! The network helper: a process of its own that asks the network what serving has to know: which agents there are, and
//! whether they live. The privileged
//! helper starts it, the serving process alone speaks to it, by a socket between the two. It opens no file, has no capability
//! and never sees a client, a key or a password. Uses `agents`, `os` and `tls`.

mod client;
mod discovery;
mod messages;
mod monitor;
mod probe;
mod process;

pub(super) use client::NetworkHelper;
pub(super) use messages::{Monitored, Order, Report};
pub(super) use process::serve;
