//! What tells the workers which sockets are ready, and how sessions are spread over them.

use std::collections::BTreeMap;
use std::fs;

use harness::agent::{Agent, AgentConfig, AgentTls};
use harness::front::Front;
use harness::line::Line;
use harness::process::eventually;

use crate::crowd::live;
use crate::sockets::{MIB, echoes};

#[tokio::test(flavor = "multi_thread")]
async fn epoll_serves_where_there_is_no_ring() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = Front::start(agent.address, &["--readiness=epoll", "--workers=2"]).await;
    assert_eq!(rings(front.proxy.pid()), 0);
    let secure = front.secure();
    echoes(Line::secure(secure).await, 16 * MIB).await;
    live(&agent, &front, 100, || Line::secure(secure)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_worker_has_a_ring_of_its_own() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = Front::start(agent.address, &["--readiness=io-uring", "--workers=3"]).await;
    eventually("each has", || (rings(front.proxy.pid()) == 3).then_some(()));
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
    let front = Front::start(agent.address, &["--agent-tls=off", "--workers=4"]).await;
    let mut sessions = Vec::new();
    for _ in 0..10 {
        let mut client = Line::plain(front.plain()).await;
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
