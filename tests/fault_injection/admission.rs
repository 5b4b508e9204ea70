//! Who is let in: networks, limits of one client, and balancers that say whom they speak for.

use std::net::SocketAddr;

use harness::agent::{Agent, AgentConfig};
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{Answer, End, RawClient, Secure, soon, trusting};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::TLS13;

/// Another client than the one that looks whether the proxy is well, which comes from 127.0.0.1.
const STRANGER: &str = "127.0.0.9:0";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x13\x88\x01\xbb";

pub(super) async fn connect(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(STRANGER.parse().unwrap()).unwrap();
    soon(socket.connect(to)).await.unwrap()
}

pub(super) async fn stranger(front: &ProxyUnderTest) -> RawClient {
    RawClient::new(connect(front.plain()).await)
}

async fn health(client: &mut RawClient) -> Option<Answer> {
    client.try_say("GET /health HTTP/1.1\r\nHost: p\r\n\r\n").await;
    client.answer().await
}

/// The log comes to have so many lines with these words.
#[track_caller]
pub(super) fn logs(front: &ProxyUnderTest, words: &str, count: usize) {
    eventually(&format!("{count} lines with {words}"), || {
        (front.proxy.log().matches(words).count() == count).then_some(())
    });
}

pub(super) async fn front(flags: &[&str]) -> (Agent, ProxyUnderTest) {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(
        agent.address,
        &[&["--agent-keepalive-timeout=1s", "--header-timeout=2s"], flags].concat(),
    )
    .await;
    (agent, front)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_from_where_none_may_come_is_told_so_or_left() {
    for flag in [
        "--deny-clients=127.0.0.8/29",
        "--allow-clients=127.0.0.1/32",
        // The same as IPv6 would write them (RFC 4291 2.5.5.2).
        "--deny-clients=::ffff:127.0.0.8/125",
        "--allow-clients=::ffff:127.0.0.1/128",
    ] {
        let (_agent, front) = front(&[flag]).await;
        let answer = health(&mut stranger(&front).await).await.unwrap();
        assert_eq!((answer.status, answer.header("connection")), (403, Some("close")), "{flag}");
        let mut secure = RawClient::new(connect(front.secure()).await);
        assert_eq!(secure.rest().await.0, b"", "{flag}");
        logs(&front, "client=127.0.0.9 reason=", 2);
        front.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_so_many_connections_and_others_are_served() {
    let (_agent, front) = front(&["--client-connections-max=3", "--client-keepalive-timeout=60s"]).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut client = stranger(&front).await;
        assert_eq!(health(&mut client).await.unwrap().status, 200);
        open.push(client);
    }
    for _ in 0..20 {
        let answer = health(&mut stranger(&front).await).await.unwrap();
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some("5")));
        front.answers().await;
    }
    // As many logs as would be lines of an attacker's making.
    logs(&front, "client=127.0.0.9 reason=", 5);
    drop(open);
    front.recovers().await;
    assert_eq!(health(&mut stranger(&front).await).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_connects_too_fast_is_told_to_wait() {
    let (_agent, front) = front(&["--client-rate=1"]).await;
    let mut statuses = Vec::new();
    for _ in 0..100 {
        statuses.push(health(&mut stranger(&front).await).await.unwrap().status);
        if statuses.last() == Some(&429) {
            break;
        }
    }
    assert!(statuses.starts_with(&[200; 4]) && statuses.ends_with(&[429]), "{statuses:?}");
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_says_whom_it_speaks_for() {
    let (agent, front) = front(&["--proxy-protocol=127.0.0.9/32", "--deny-clients=192.0.2.66/32"]).await;
    let ask = front.request("GET /x", "Connection: close\r\n");
    let v1 = |client: &str| format!("PROXY TCP4 {client} 198.51.100.1 5000 443\r\n").into_bytes();
    for (header, told) in [
        (v1("192.0.2.7"), "192.0.2.7"),
        (V2.to_vec(), "192.0.2.7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.9"),
    ] {
        let mut client = stranger(&front).await;
        client.say([&header, ask.as_bytes()].concat()).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
        let seen = agent.seen.requests();
        assert_eq!(seen.last().unwrap().header("x-real-ip"), Some(told));
        assert_eq!(seen.last().unwrap().header("x-forwarded-for"), Some(told));
    }
    assert!(front.access_line("GET /127.0.0.1/x").starts_with("192.0.2.7 "));
    // Before TLS, and cut anywhere.
    let mut stream = connect(front.secure()).await;
    for byte in V2.chunks(7) {
        tokio::io::AsyncWriteExt::write_all(&mut stream, byte).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let secure = soon(trusting(&[&TLS13]).connect(ServerName::from(front.secure().ip()), stream)).await;
    let mut client = RawClient::new(Secure::Client(secure.unwrap()));
    client.say(&ask).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    assert_eq!(agent.seen.requests().last().unwrap().header("x-real-ip"), Some("192.0.2.7"));
    // The limits are those of the client, not of the balancer.
    let mut denied = stranger(&front).await;
    denied.say([v1("192.0.2.66"), ask.clone().into_bytes()].concat()).await;
    assert_eq!(denied.answer().await.unwrap().status, 403);
    drop((client, denied));
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_says_whom_they_speak_for_and_a_balancer_has_to() {
    let (agent, front) = front(&["--proxy-protocol=127.0.0.9/32"]).await;
    let ask = front.request("GET /x", "");
    for header in ["", "PROXY TCP4 192.0.2.7\r\n", "GET / HTTP/1.1\r\n\r\n", "PROXY", "\r\n\r\n\0\r\nQUIT"] {
        let mut client = stranger(&front).await;
        client.say([header, &ask].concat()).await;
        assert_eq!(client.rest().await.0, b"", "{header:?}");
    }
    // One that stops within its header is ended in the time of a head.
    let mut client = stranger(&front).await;
    client.say("PROXY TCP4 192.0").await;
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    let mut client = RawClient::plain(front.plain()).await;
    client.say(["PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\n", &ask].concat()).await;
    assert_eq!(client.answer().await.unwrap().status, 400);
    assert!(agent.seen.requests().is_empty());
    front.recovers().await;
}
