//! The process around the workers: start, signals, commands, reload and upgrade, the admin page, and the privileged helper.
//! Serves no desktop. Uses all folders.

mod admin;
mod agent_states;
pub(crate) mod command;
mod exit;
mod fleet;
mod helper;
mod logging;
mod service_account;
mod signals;
mod socket;
mod start;
mod supervisor;
mod validation;
