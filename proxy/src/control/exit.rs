//! Why the program ends, and with which exit code.

use std::fmt;
use std::io;

/// Stopped cleanly.
pub(super) const STOPPED: u8 = 0;
/// Failed while running.
const FAILED: u8 = 1;
/// Unusable flags or configuration; nothing was bound.
const UNUSABLE: u8 = 2;
/// Why the program ends, a line for each reason, and its exit code.
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) reason: String,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        failed(&error)
    }
}

pub(super) fn failed(reason: &dyn fmt::Display) -> Failure {
    Failure { code: FAILED, reason: reason.to_string() }
}

pub(super) fn unusable(reason: String) -> Failure {
    Failure { code: UNUSABLE, reason }
}
