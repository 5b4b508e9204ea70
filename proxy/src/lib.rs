//! An L7 proxy for Amazon DCV desktops: TLS in, `/<ip>/` routing, TLS out, and a relay after the `101`.
//! The program is [`run`]; what else is public serves the tests, the benches and the tools of the repository.

use std::ffi::OsString;
use std::process::ExitCode;

pub mod access;
pub mod agents;
pub mod config;
mod control;
pub mod http;
pub mod observe;
pub mod os;
pub mod runtime;
pub mod session;
pub mod tls;
pub mod transport;
pub mod worker;

/// Does what the command line says, and returns the exit code: 0 done, 1 failed while running, 2 the flags or the
/// configuration cannot be used. `line` begins with the program's name.
pub fn run(line: Vec<OsString>) -> ExitCode {
    control::command::run(line)
}
