//! The privileged helper: a process of its own that keeps what the serving one gives up: it opens files, runs the program that lists agents, starts the next
//! binary and reads the kernel's counters. It speaks to no network. Uses `config`, `os` and the control socket.

mod agents_command;
mod channel;
mod ebpf;
mod exec;
mod server;

pub(super) use agents_command::exec_unprivileged;
pub(super) use channel::{Answer, HelperClient, LIST, MessageKind, Payload, STATES, STATS, TRUNCATED};
pub(super) use exec::{Predecessor, exec};
pub(super) use server::serve;
