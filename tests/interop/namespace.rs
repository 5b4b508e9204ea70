//! What the proxy dials, as its kernel counts it: it runs in a network namespace of its own, so that nobody else's
//! connections are counted. Only root may make one.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

use harness::process::eventually;
use harness::proxy::{self, Proxy};

use crate::tools::{Ran, run};

/// A network namespace with nothing but its loopback.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let this = Self(format!("dcv-splice-{}-{number}", std::process::id()));
        assert!(run("ip", &["netns", "add", &this.0]).success, "a namespace can't be made");
        assert!(this.run(&["ip", "link", "set", "lo", "up"]).success);
        this
    }

    fn run(&self, command: &[&str]) -> Ran {
        run("ip", &[&["netns", "exec", &self.0], command].concat())
    }

    fn start(&self, flags: &[&str]) -> Proxy {
        let proxied = proxy::command(flags);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(proxied.get_program()).args(proxied.get_args());
        Proxy::start_by(command, flags)
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

fn may_make_one() -> bool {
    let may = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !may {
        assert!(env::var_os("CI").is_none(), "only root may make a network namespace");
        eprintln!("skipped: only root may make a network namespace");
    }
    may
}

#[test]
fn an_address_that_is_no_agent_is_refused_and_not_dialled() {
    if !may_make_one() {
        return;
    }
    let namespace = Namespace::new();
    let flags = ["--listen-plain=127.0.0.1:0", "--agents=127.0.0.1/32", "--agent-port=1"];
    let mut proxy = namespace.start(&flags);
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
        let fourth = log.lines().find(|line| line.contains("agent=0.0.0.0 reason="))?;
        fourth.contains("reason=agent_not_allowed count=4").then_some(())
    });
}

/// Of two addresses in one network the kernel connects to both from the first.
#[test]
fn every_address_of_the_host_is_the_proxys_own() {
    if !may_make_one() {
        return;
    }
    let namespace = Namespace::new();
    for command in [
        &["ip", "address", "add", "10.9.0.1/24", "dev", "lo"][..],
        &["ip", "address", "add", "10.9.0.2/24", "dev", "lo"],
        &["ip", "address", "add", "2001:db8::1/64", "dev", "lo", "nodad"],
        &["ip", "address", "add", "2001:db8::2/64", "dev", "lo", "nodad"],
    ] {
        assert!(namespace.run(command).success, "{command:?}");
    }
    let flags = [
        "--listen-plain=0.0.0.0:8000",
        "--listen-plain=[::]:8000",
        "--agent-port=8000",
        "--agents=0.0.0.0/0",
        "--agents=::/0",
        "--agent-domain=desks.test",
        "--agent-tls=off",
        "--access-log=stdout",
    ];
    let proxy = namespace.start(&flags);
    for (asked, (host, path)) in (1..).zip([
        ("p", "/10.9.0.1/10.9.0.1/x"),
        ("p", "/10.9.0.2/10.9.0.2/x"),
        ("2001-db8--1.desks.test", "/x"),
        ("2001-db8--2.desks.test", "/x"),
    ]) {
        let (host, url) = (format!("Host: {host}"), format!("http://127.0.0.1:8000{path}"));
        let ran = namespace.run(&[
            "curl",
            "-sS",
            "--max-time",
            "60",
            "-w",
            "%{http_code}",
            "-o",
            "/dev/null",
            "-H",
            &host,
            &url,
        ]);
        assert_eq!(ran.output.trim_end(), "502", "{host} {path}");
        eventually("there is a line of it", || (proxy.output().lines().count() >= asked).then_some(()));
        assert_eq!(proxy.output().lines().count(), asked, "{host} {path}:\n{}", proxy.output());
    }
}
