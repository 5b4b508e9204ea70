//! TCP's urgent data (RFC 6093): a mark in the stream, at which the kernel cuts what it hands out. To the proxy it is
//! data like any other.

use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;
use harness::scripted_agent::ScriptedAgent;
use socket2::SockRef;
use tokio::net::TcpStream;

const SWITCHES: &str = "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Sends `bytes`, the one in the middle as urgent, and waits until the kernel has taken them all.
async fn say_urgently(line: &mut RawClient, bytes: &[u8]) {
    let (before, after) = bytes.split_at(bytes.len() / 2);
    line.say(before).await;
    let sent = SockRef::from(line.tcp()).send_out_of_band(&after[..1]).expect("room");
    assert_eq!(sent, 1);
    line.say(&after[1..]).await;
}

fn letters(count: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(count).collect()
}

/// An agent without TLS that asks for nothing and says what it was sent, urgently.
async fn plain() -> ScriptedAgent {
    ScriptedAgent::plain(|_, mut agent: RawClient<TcpStream>| async move {
        while let Some(head) = agent.head().await {
            if head.contains("websocket") {
                agent.say(SWITCHES).await;
                let bytes = agent.bytes(200).await;
                say_urgently(&mut agent, &bytes).await;
                agent.rest().await;
                return;
            }
            let body = agent.bytes(200).await;
            say_urgently(&mut agent, b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n").await;
            say_urgently(&mut agent, &body).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn urgent_data_is_data_in_heads_and_bodies_both_ways() {
    let agent = plain().await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-tls=off"]).await;
    let body = letters(200);
    for _ in 0..3 {
        let mut client = RawClient::plain(front.plain()).await;
        say_urgently(&mut client, front.request("POST /", "Content-Length: 200\r\n").as_bytes()).await;
        say_urgently(&mut client, &body).await;
        assert_eq!(client.answer().await.unwrap().body, body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn urgent_data_is_data_in_sessions_both_ways() {
    let agent = plain().await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-tls=off"]).await;
    for _ in 0..3 {
        let mut client = RawClient::plain(front.plain()).await;
        client.say(front.upgrade("/ws")).await;
        assert_eq!(client.answer().await.unwrap().status, 101);
        let bytes = letters(200);
        say_urgently(&mut client, &bytes).await;
        assert_eq!(client.bytes(200).await, bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn urgent_data_in_a_flood_is_data() {
    const PART: usize = 300_000;
    let agent = sink(8 * PART).await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-tls=off"]).await;
    let mut client = RawClient::plain(front.plain()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    for part in letters(8 * PART).chunks(PART) {
        say_urgently(&mut client, part).await;
    }
    // An end right behind a mark hides nothing either.
    client.finish().await;
    assert_eq!(client.bytes(5).await, b"whole");
}

/// An agent that takes so many bytes of a session and says that it has them all in order.
async fn sink(count: usize) -> ScriptedAgent {
    ScriptedAgent::plain(move |_, mut agent: RawClient<TcpStream>| async move {
        agent.head().await;
        agent.say(SWITCHES).await;
        let whole = agent.bytes(count).await == letters(count);
        agent.say(if whole { "whole" } else { "not so" }).await;
        agent.rest().await;
    })
    .await
}
