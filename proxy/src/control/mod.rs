//! The process around the workers: start, signals, commands, reload and upgrade, the admin page, and the privileged helper.
//! Serves no desktop. Uses all folders.

pub mod admin;
pub mod helper;
pub mod logging;
pub mod service_account;
pub mod socket;
pub mod supervisor;
pub mod validation;
