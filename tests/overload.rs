//! The real proxy under attack by hundreds of clients at a time: its neighbours are answered meanwhile, what it holds
//! is bounded, and when the attackers have gone it is as it was. Times are generous: the machine may be busy.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use harness::agent::{Agent, AgentConfig};
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{RawClient, Wire, soon};
use tokio::net::{TcpSocket, TcpStream};

/// Attackers of each kind.
const ATTACKERS: usize = 400;
/// How many arrive at the same time.
const AT_ONCE: usize = 32;
/// Questions of a neighbour's during an attack, and how long one may take.
const QUESTIONS: usize = 20;
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// What an attacker may make the proxy hold: the buffers of a side that takes nothing, and two TLS connections.
const HELD_KIB_MAX: usize = 700;
/// The first bytes of a `ClientHello`.
const HALF_A_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

async fn front() -> (Agent, ProxyUnderTest) {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let flags = ["--agent-keepalive-timeout=1s", "--client-rate=100000", "--connect-timeout=60000ms"];
    let front = ProxyUnderTest::start(agent.address, &flags).await;
    (agent, front)
}

/// Lets the attackers arrive, looks how their neighbours are, and what is left of them.
async fn withstand<S: Wire, F: Future<Output = RawClient<S>>>(
    front: &ProxyUnderTest,
    attack: impl Fn() -> F,
) {
    let resident = front.proxy.resident_kib();
    let attackers: Vec<_> =
        stream::iter(0..ATTACKERS).map(|_| attack()).buffer_unordered(AT_ONCE).collect().await;
    let mut slowest = Duration::ZERO;
    for _ in 0..QUESTIONS {
        let asked = Instant::now();
        front.answers().await;
        assert_eq!(front.ask("GET /x").await.status, 200);
        slowest = slowest.max(asked.elapsed());
    }
    let held = front.proxy.resident_kib().saturating_sub(resident);
    println!("{} attackers: {held} KiB held, the slowest answer after {slowest:?}", attackers.len());
    assert!(slowest < ANSWERED_WITHIN, "an answer took {slowest:?}");
    assert!(held < ATTACKERS * HELD_KIB_MAX, "{held} KiB are held");
    let gone = Instant::now();
    drop(attackers);
    front.recovers().await;
    println!("as before after {:?}", gone.elapsed());
    assert!(!front.proxy.log().contains("panicked"));
}

/// A client whose receive window is as small as the kernel makes it.
async fn with_a_tiny_window(to: SocketAddr) -> RawClient {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1).unwrap();
    RawClient::new(soon(socket.connect(to)).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_who_say_nothing() {
    let (_agent, front) = front().await;
    withstand(&front, || RawClient::<TcpStream>::plain(front.secure())).await;
    withstand(&front, || RawClient::<TcpStream>::plain(front.plain())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_who_stop_within_their_handshake() {
    let (_agent, front) = front().await;
    let attack = || async {
        let mut client = RawClient::plain(front.secure()).await;
        client.say(HALF_A_HELLO).await;
        client
    };
    withstand(&front, attack).await;
}

/// They say that by TLS, and then nothing.
async fn who_say_no_more_than(front: &ProxyUnderTest, said: &str) {
    let attack = || async {
        let mut client = RawClient::secure(front.secure()).await;
        client.say(said).await;
        client
    };
    withstand(front, attack).await;
}

/// They ask, and take next to nothing of what they are answered.
async fn who_hardly_listen(front: &ProxyUnderTest, asked: &str) {
    let attack = || async {
        let mut client = with_a_tiny_window(front.plain()).await;
        client.say(asked).await;
        client
    };
    withstand(front, attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_who_stop_within_a_head_of_many_bytes() {
    let (_agent, front) = front().await;
    let head = format!("GET /{} HTTP/1.1\r\nHost: p\r\nX: {}", "a".repeat(10_000), "b".repeat(20_000));
    who_say_no_more_than(&front, &head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_who_stop_within_a_body() {
    let (_agent, front) = front().await;
    let asked = front.request("POST /sink", "Content-Length: 1000000\r\n") + "and";
    who_say_no_more_than(&front, &asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_who_take_nothing_of_what_they_ask_for() {
    let (_agent, front) = front().await;
    who_hardly_listen(&front, &front.request("GET /bytes/100000000", "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_who_ask_a_thousand_times_and_listen_to_nothing() {
    let (_agent, front) = front().await;
    who_hardly_listen(&front, &"GET /health HTTP/1.1\r\nHost: p\r\n\r\n".repeat(1000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_whose_sessions_say_much_and_take_nothing() {
    let (_agent, front) = front().await;
    let asked = front.upgrade("/echo");
    let said = [&[0x82, 0xfe, 0x40, 0, 0, 0, 0, 0][..], &[7; 0x4000]].concat();
    let attack = || async {
        let mut client = with_a_tiny_window(front.plain()).await;
        client.say(&asked).await;
        assert_eq!(client.head().await.unwrap().split(' ').nth(1), Some("101"));
        // As much as goes: what nobody takes comes to a stop.
        let much = async { while client.try_say(&said).await {} };
        let _ = tokio::time::timeout(Duration::from_millis(200), much).await;
        client
    };
    withstand(&front, attack).await;
}
