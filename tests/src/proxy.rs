//! The real `dcv-splice` binary, built once per test process and started with a test's own flags. What it prints
//! and what it uses (descriptors, threads, memory) can be read while it runs; it ends with its guard.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::{env, fs};

use nix::sys::signal::Signal;

use crate::process::Process;

/// A running proxy. Dropping it kills it at once: a test that cares how it ends calls [`Proxy::terminate`].
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    addresses: Vec<SocketAddr>,
}

impl Proxy {
    /// Starts the proxy and waits until it listens wherever the flags want it to; panics with its log if it ends.
    #[track_caller]
    pub fn start(flags: &[&str]) -> Self {
        Self::start_by(command(flags), flags)
    }

    /// The same by a command of the test's that runs [`command`] in surroundings of its own and as the same
    /// process (`exec`).
    #[track_caller]
    pub fn start_by(command: Command, flags: &[&str]) -> Self {
        let wanted = listeners(flags);
        // Asked to end, it would drain its sessions first.
        let mut process = Process::start(command).without_grace();
        let addresses = process.until("listens", |process| {
            let addresses = listening(&process.log());
            (addresses.len() >= wanted).then_some(addresses)
        });
        Self { process, addresses }
    }

    /// The first address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All addresses it listens on, in the order it announced them.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// All it has printed to stderr so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// All it has printed to stdout so far.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits for a condition; panics with the log if the proxy ends first.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut attempt: impl FnMut(&str) -> Option<T>) -> T {
        self.process.until(what, |process| attempt(&process.log()))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// How many file descriptors it holds open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the proxy runs").count()
    }

    /// How many threads it has, without those that the kernel keeps for writes through a ring, as it sees fit.
    pub fn threads(&self) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the proxy runs");
        let names = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| !name.starts_with("iou-wrk-")).count()
    }

    /// How much memory it has resident (`VmRSS`), in KiB.
    pub fn resident_kib(&self) -> usize {
        self.status("VmRSS:")
    }

    fn status(&self, field: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the proxy runs");
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {field} in:\n{status}"))
    }
}

/// The proxy with these flags, not started yet. Many run at a time: each shows its figures only where its test says.
pub fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(flags);
    let asks =
        flags.first().is_some_and(|word| ["pin", "reload", "reopen", "status", "upgrade"].contains(word));
    if !asks && !flags.iter().any(|flag| flag.starts_with("--admin")) {
        command.arg("--admin=off");
    }
    if let Ok(by) = env::var(SESSION_TLS)
        && flags.iter().any(|flag| flag.starts_with("--listen"))
        && !flags.iter().any(|flag| flag.starts_with("--session-tls"))
    {
        command.arg(format!("--session-tls={by}"));
    }
    command
}

/// Names who seals and opens the records of sessions in tests that do not say themselves, for a run of theirs on a kernel
/// with TLS.
pub const SESSION_TLS: &str = "DCV_SPLICE_TEST_SESSION_TLS";

/// The directory all builds of this workspace go to, whatever the test was built with.
pub fn target_directory() -> PathBuf {
    profile_directory().parent().expect("a profile lies in the target directory").into()
}

/// `target/debug` of a test that runs as `target/debug/deps/desktop-0123456789abcdef`.
fn profile_directory() -> PathBuf {
    let test = env::current_exe().expect("a running test has a path");
    test.ancestors().nth(2).expect("cargo puts tests into <profile>/deps").into()
}

/// The binary, built as the test itself was: a test never runs against yesterday's proxy.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build("dcv-splice"))
}

/// Builds a package's binary of the same name as the test itself was built; returns where it lies.
pub fn build(package: &str) -> PathBuf {
    let status = cargo("build").args(["--package", package, "--bin", package]).status().expect("cargo runs");
    assert!(status.success(), "{package} doesn't build");
    profile_directory().join(package)
}

/// Builds another test of this package as the test itself was built; returns where it lies.
pub fn test_program(name: &str) -> PathBuf {
    let mut command = cargo("test");
    command.args(["--package", env!("CARGO_PKG_NAME"), "--test", name, "--no-run", "--message-format=json"]);
    let built = command.output().expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let messages = String::from_utf8_lossy(&built.stdout);
    let program = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name)
            .then(|| message["executable"].as_str().map(PathBuf::from))
            .flatten()
    });
    program.expect("cargo says where it lies")
}

/// A command of cargo's, for the profile and the directory of the test itself.
fn cargo(word: &str) -> Command {
    let directory = profile_directory();
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args([word, "--quiet", "--profile", profile]);
    command.arg("--target-dir").arg(target_directory());
    command
}

/// How many listeners the flags ask for; without any there is the default one.
fn listeners(flags: &[&str]) -> usize {
    let names = flags.iter().map(|flag| flag.split('=').next().unwrap_or(flag));
    names.filter(|name| ["--listen", "--listen-plain"].contains(name)).count().max(1)
}

/// The addresses in lines such as `listening on https://127.0.0.1:43211`.
fn listening(log: &str) -> Vec<SocketAddr> {
    let is_end = |c: char| c.is_whitespace() || c == '"';
    let urls = log.lines().filter_map(|line| line.split_once("listening on ")?.1.split(is_end).next());
    urls.filter_map(|url| url.trim_end_matches('/').rsplit('/').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn listeners_are_counted_in_flags_and_found_in_the_log() {
        assert_eq!(listeners(&["--workers", "1"]), 1);
        assert_eq!(listeners(&["--listen", "[::1]:0", "--listen-plain=127.0.0.1:0", "--agents", "::/0"]), 2);
        let log = "warning: self-signed\nlistening on https://127.0.0.1:43211\nlistening on http://[::1]:80 (plain)\n";
        let addresses = [(Ipv4Addr::LOCALHOST, 43211).into(), (Ipv6Addr::LOCALHOST, 80).into()];
        assert_eq!(listening(log), addresses);
    }
}
