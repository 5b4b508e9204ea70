//! The process around the workers: start, signals, commands, reload and upgrade, the admin page, the privileged helper and the network helper.
//! Serves no desktop. Uses all folders.

mod admin;
mod agent_monitor;
mod agent_sources;
mod agent_states;
pub(crate) mod command;
mod doctor;
mod exit;
mod expiry_watch;
mod fleet;
mod helper;
mod logging;
mod network_helper;
mod reports;
mod runtime;
mod service_account;
mod shutdown;
mod signals;
mod socket;
mod start;
mod supervisor;
mod top;
mod validation;
mod workers;
