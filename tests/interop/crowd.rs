//! Sessions by the thousand, idle and then all answering, and nothing left of them at the end.

use futures_util::{StreamExt, stream};
use harness::agent::{Agent, AgentConfig, AgentTls};
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{RawClient, Wire};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Sessions that are opened at the same time, far fewer than a listener's queue holds.
const AT_ONCE: usize = 50;
/// Descriptors for everything else in this process.
const SPARE: usize = 500;

/// So many, or as many as this process and the proxy may have: each end of a leg is a descriptor.
fn affordable(wanted: usize) -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let most = usize::try_from(hard).unwrap().saturating_sub(SPARE) / 2;
    if most < wanted {
        eprintln!("{most} sessions instead of {wanted}: {hard} open files are allowed (ulimit -Hn)");
    }
    most.min(wanted)
}

async fn open<S: Wire>(front: &ProxyUnderTest, mut client: RawClient<S>) -> RawClient<S> {
    client.say(front.upgrade("/echo")).await;
    assert_eq!(client.answer().await.expect("an answer").status, 101);
    client
}

async fn echo<S: Wire>(mut client: RawClient<S>) -> RawClient<S> {
    client.say([0x81, 0x84, 0, 0, 0, 0, b'p', b'i', b'n', b'g']).await;
    assert_eq!(client.bytes(6).await, b"\x81\x04ping");
    client
}

/// Opens them all, has each of them echo, and closes them all.
pub(crate) async fn live<S: Wire, F: Future<Output = RawClient<S>>>(
    agent: &Agent,
    front: &ProxyUnderTest,
    count: usize,
    connect: impl Fn() -> F,
) {
    let sessions: Vec<_> = stream::iter(0..count)
        .map(|_| async { open(front, connect().await).await })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    eventually("the agent has all of them", || (agent.seen.websockets_open() == count as u64).then_some(()));
    assert!(front.proxy.descriptors() >= 2 * count);
    let sessions: Vec<_> = stream::iter(sessions).map(echo).buffer_unordered(AT_ONCE).collect().await;
    assert_eq!(sessions.len(), count);
    front.answers().await;
    println!("{count} sessions: {} KiB resident", front.proxy.resident_kib());
    drop(sessions);
    eventually("the agent has none left", || (agent.seen.websockets_open() == 0).then_some(()));
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_idle_sessions_all_echo_and_leave_nothing_behind() {
    let count = affordable(5000);
    let agent = Agent::start(AgentConfig { tls: AgentTls::Off, ..AgentConfig::default() }).await.unwrap();
    let front = ProxyUnderTest::start(
        agent.address,
        &["--agent-tls=off", "--workers=2", "--client-connections-max=9000", "--client-rate=1000000"],
    )
    .await;
    let plain = front.plain();
    live(&agent, &front, count, || RawClient::plain(plain)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_sessions_with_tls_on_both_legs_all_echo_and_leave_nothing_behind() {
    let count = affordable(500);
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &["--workers=2", "--connect-timeout=60000ms"]).await;
    let secure = front.secure();
    live(&agent, &front, count, || RawClient::secure(secure)).await;
}
