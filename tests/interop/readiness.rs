//! What tells the workers which sockets are ready, and how sessions are spread over them.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use harness::agent::{Agent, AgentConfig, AgentTls};
use harness::process::{Process, eventually};
use harness::proxy::{self, Proxy};
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;

use crate::crowd::live;
use crate::sockets::{MIB, echoes};

#[tokio::test(flavor = "multi_thread")]
async fn epoll_serves_where_there_is_no_ring() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &["--io-backend=epoll", "--workers=2"]).await;
    assert_eq!(rings(front.proxy.pid()), 0);
    let secure = front.secure();
    echoes(RawClient::secure(secure).await, 16 * MIB).await;
    live(&agent, &front, 100, || RawClient::secure(secure)).await;
}

/// What container engines do: `io_uring_setup(2)` is not permitted (425 on every architecture).
const NO_RING: [[u8; 8]; 4] = [
    // The number of the call; where it is that, the answer is EPERM, and else the call goes on (seccomp(2)).
    [0x20, 0, 0, 0, 0, 0, 0, 0],
    [0x15, 0, 0, 1, 0xa9, 1, 0, 0],
    [0x06, 0, 0, 0, 1, 0, 5, 0],
    [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f],
];

#[tokio::test(flavor = "multi_thread")]
async fn where_a_ring_is_not_permitted_it_says_so_and_serves_by_epoll() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let filter = folder.path().join("filter");
    fs::write(&filter, NO_RING.concat()).unwrap();
    let confined = |flags: &[&str]| {
        let mut command = Command::new("sh");
        let proxy = proxy::command(flags);
        command.args(["-c", "exec 9<\"$0\"; exec bwrap --dev-bind / / --seccomp 9 -- \"$@\""]);
        command.arg(&filter).arg(proxy.get_program()).args(proxy.get_args());
        command
    };
    let (port, allowed) =
        (format!("--agent-port={}", agent.address.port()), format!("--agents={}/32", agent.address.ip()));
    let flags = ["--listen=127.0.0.1:0", "--workers=2", &port, &allowed];
    let served = Proxy::start_by(confined(&flags), &flags);
    let mut client = RawClient::secure(served.address()).await;
    client.say(format!("GET /{}/bytes/100 HTTP/1.1\r\nHost: p\r\n\r\n", agent.address.ip())).await;
    assert_eq!(client.answer().await.expect("an answer").status, 200);
    eventually("it is said once", || {
        let log = served.log();
        let said = log.lines().filter(|line| line.contains("io_uring can't be used")).collect::<Vec<_>>();
        matches!(said[..], [line] if line.contains("epoll is used instead")).then_some(())
    });

    // Who insists on a ring is told that there is none.
    let mut refused =
        Process::start(confined(&[&flags[..], &["--io-backend=io-uring"]].concat())).without_grace();
    assert_eq!(refused.wait().code(), Some(1), "{}", refused.log());
    assert!(refused.log().contains("io_uring can't be used"), "{}", refused.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_worker_has_a_ring_of_its_own() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &["--io-backend=io-uring", "--workers=3"]).await;
    // The control plane has one too.
    eventually("each has", || (rings(front.proxy.pid()) == 3 + 1).then_some(()));
}

fn rings(pid: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let names = files.filter_map(|file| fs::read_link(file.path()).ok());
    names.filter(|name| name.to_string_lossy().contains("[io_uring]")).count()
}

/// Ten long sessions, opened one after another, on four workers: each has two or three of them.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_spread_over_the_workers() {
    const ECHOES: u64 = 300;
    let agent = Agent::start(AgentConfig { tls: AgentTls::Off, ..AgentConfig::default() }).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &["--agent-tls=off", "--workers=4"]).await;
    let mut sessions = Vec::new();
    for _ in 0..10 {
        let mut client = RawClient::plain(front.plain()).await;
        client.say(front.upgrade("/echo")).await;
        assert_eq!(client.answer().await.expect("an answer").status, 101);
        sessions.push(client);
    }
    let before = waits(front.proxy.pid());
    for session in &mut sessions {
        for _ in 0..ECHOES {
            session.say([0x81, 0x84, 0, 0, 0, 0, b'p', b'i', b'n', b'g']).await;
            assert_eq!(session.bytes(6).await, b"\x81\x04ping");
        }
    }
    // A worker waits once or twice for each echo of its sessions, and hardly ever otherwise.
    let after = waits(front.proxy.pid());
    assert_eq!(after.len(), 4);
    for (worker, waits) in &after {
        let waited = waits - before[worker];
        assert!(
            (ECHOES..=7 * ECHOES).contains(&waited),
            "{worker} waited {waited} times: {before:?} {after:?}"
        );
    }
}

/// How often each worker has waited so far.
fn waits(pid: u32) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let named = threads.filter_map(|thread| {
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((name.trim().to_owned(), waits.trim().parse().ok()?))
    });
    named.filter(|(name, _)| name.starts_with("worker-")).collect()
}
