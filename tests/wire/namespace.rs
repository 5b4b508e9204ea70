//! What the proxy dials, as its kernel counts it: it runs in a network namespace of its own, so that nobody else's
//! connections are counted. Only root may make one.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::{env, fs};

use harness::proxy::{self, Proxy};

use crate::tools::{Ran, run};

/// A network namespace with nothing but its loopback.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let this = Self(format!("dcv-splice-{}", std::process::id()));
        assert!(run("ip", &["netns", "add", &this.0]).success, "a namespace can't be made");
        assert!(this.run(&["ip", "link", "set", "lo", "up"]).success);
        this
    }

    fn run(&self, command: &[&str]) -> Ran {
        run("ip", &[&["netns", "exec", &self.0], command].concat())
    }

    /// Connections that anybody inside has begun.
    fn begun(&self) -> usize {
        let counters = self.run(&["cat", "/proc/net/snmp"]).output;
        let tcp: Vec<Vec<&str>> =
            counters.lines().filter(|l| l.starts_with("Tcp:")).map(|l| l.split(' ').collect()).collect();
        let column = tcp[0].iter().position(|name| *name == "ActiveOpens").unwrap();
        tcp[1][column].parse().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run("ip", &["netns", "delete", &self.0]);
    }
}

#[test]
fn an_address_that_is_no_agent_is_refused_and_not_dialled() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        assert!(env::var_os("CI").is_none(), "only root may make a network namespace");
        eprintln!("skipped: only root may make a network namespace");
        return;
    }
    let namespace = Namespace::new();
    let flags = ["--listen-plain=127.0.0.1:0", "--agents=127.0.0.1/32", "--agent-port=1"];
    let proxied = proxy::command(&flags);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace.0]).arg(proxied.get_program()).args(proxied.get_args());
    let mut proxy = Proxy::start_by(command, &flags);
    let address = proxy.address();
    let dialled = |agent: &str| {
        let before = namespace.begun();
        let url = format!("http://{address}/{agent}/");
        let ran = namespace.run(&["curl", "-sS", "--max-time", "60", "-w", "\n%{http_code}\n", &url]);
        // One of them is curl's own.
        (ran.output.lines().next_back().unwrap().to_owned(), namespace.begun() - before - 1)
    };
    assert_eq!(dialled("127.0.0.1"), ("502".into(), 1));
    for other in ["127.0.0.2", "10.0.0.5", "169.254.169.254", "0.0.0.0", "255.255.255.255"] {
        assert_eq!(dialled(other), ("403".into(), 0), "{other}");
    }
    proxy.until("counts who is refused", |log| {
        let fourth = log.lines().find(|line| line.contains("with 0.0.0.0 is turned away"))?;
        fourth.ends_with("is in no --agents prefix and was not dialled (4 so far)").then_some(())
    });
}
