//! A network of a test's own: the test runs once more inside it, as another process. Only root may make one.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::{env, fs};

/// Set where the test runs in its own network already.
const INSIDE: &str = "DCV_SPLICE_TEST_NETWORK";

/// Runs the test `name` of this program once more in a network of its own; false where this is that run. Its loopback
/// has the segments of an Ethernet: large ones let one receive take all that waits.
pub fn runs_in_a_network_of_its_own(name: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return false;
    }
    if fs::metadata("/proc/self").expect("proc is mounted").uid() != 0 {
        assert!(env::var_os("CI").is_none(), "only root may make a network namespace");
        eprintln!("skipped: only root may make a network namespace");
        return true;
    }
    let script = "ip link set lo up mtu 1500 && exec \"$0\" --exact \"$1\" --nocapture";
    let status = Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .arg(env::current_exe().expect("a program of every Linux"))
        .arg(name)
        .env(INSIDE, "yes")
        .status()
        .expect("a program of every Linux");
    assert!(status.success(), "{name} failed in its own network");
    true
}
