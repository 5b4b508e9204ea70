//! Sides that lose step: bodies that are taken for requests, bytes that wait where nobody asked, records that
//! don't decrypt.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use harness::agent::{Agent, AgentConfig};
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{RawClient, Secure, Wire, soon, trusting};
use harness::scripted_agent::ScriptedAgent;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::{TLS12, TLS13};

/// A body that could be a request, too.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: agent\r\n\r\n";

fn ok(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

/// Refuses every POST before its body has come, and takes the body for a request of its own. That one is
/// answered when the next request comes on the same connection.
async fn smuggler() -> (ScriptedAgent, mpsc::UnboundedReceiver<()>) {
    let (tell, told) = mpsc::unbounded_channel();
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let tell = tell.clone();
        async move {
            while let Some(head) = agent.head().await {
                if head.starts_with("POST") {
                    agent.say("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n").await;
                } else if head.contains("smuggled") {
                    tell.send(()).unwrap();
                    if agent.head().await.is_none() {
                        return;
                    }
                    agent.say(ok("attacker")).await;
                } else {
                    agent.say(ok("victim")).await;
                }
            }
        }
    });
    (agent.await, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_the_agent_takes_for_a_request_is_answered_to_nobody() {
    for expect in ["", "Expect: 100-continue\r\n"] {
        let (agent, mut told) = smuggler().await;
        let front = ProxyUnderTest::start(agent.address, &[]).await;
        let mut client = RawClient::secure(front.secure()).await;
        let length = format!("{expect}Content-Length: {}\r\n", SMUGGLED.len());
        client.say(front.request("POST /", &length)).await;
        assert_eq!(client.answer().await.expect("an answer before the body").status, 401);
        client.say(SMUGGLED).await;
        soon(told.recv()).await.expect("the agent has the body");
        assert_eq!(front.ask("GET /").await.text(), "victim", "{expect:?}");
        // Nor is it answered to the client that sent it.
        if client.try_say(front.request("GET /", "")).await
            && let Some(answer) = client.answer().await
        {
            assert_eq!(answer.text(), "victim", "{expect:?}");
        }
        drop(client);
        front.answers().await;
    }
}

/// Says more than it was asked for, once it has been asked for `first` and its connection been put aside.
async fn talks_on<S: Wire>(mut agent: RawClient<S>, tell: mpsc::UnboundedSender<()>) {
    while let Some(head) = agent.head().await {
        agent.say(ok("asked for")).await;
        if head.contains("first") {
            tokio::time::sleep(Duration::from_millis(50)).await;
            agent.say(ok("stale")).await;
            tell.send(()).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_wait_on_a_kept_connection_are_no_answer_however_busy_its_client_was() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let plain = tell.clone();
    let plain = ScriptedAgent::plain(move |_, agent| talks_on(agent, plain.clone())).await;
    let secure = ScriptedAgent::secure(move |_, agent| talks_on(agent, tell.clone())).await;
    for (agent, flags) in [(plain, &["--agent-tls=off"][..]), (secure, &[])] {
        let front = ProxyUnderTest::start(agent.address, flags).await;
        // A task may do 128 things before it is told that nothing more is there.
        for count in 120..=133 {
            assert_eq!(front.ask("GET /first").await.text(), "asked for");
            soon(told.recv()).await.unwrap();
            let own = "GET /health HTTP/1.1\r\nHost: proxy\r\n\r\n".repeat(count);
            let mut client = RawClient::plain(front.plain()).await;
            client.say(own + &front.request("GET /second", "Connection: close\r\n")).await;
            for _ in 0..count {
                assert_eq!(client.answer().await.unwrap().text().trim_end(), "DCV Proxy OK");
            }
            assert_eq!(
                client.answer().await.unwrap().text(),
                "asked for",
                "behind {count} others, {flags:?}"
            );
        }
    }
}

/// A connection that flips the last bit of whatever is sent while it is told to.
struct Flips {
    stream: TcpStream,
    now: Arc<AtomicBool>,
}

impl AsyncRead for Flips {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Flips {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut bytes = bytes.to_vec();
        if let Some(last) = bytes.last_mut().filter(|_| self.now.load(Ordering::Relaxed)) {
            *last ^= 1;
        }
        Pin::new(&mut self.stream).poll_write(cx, &bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Sends `first` as it is and two records that don't decrypt, and gives what came back.
async fn flipped(front: &ProxyUnderTest, tls13: bool, first: &str) -> String {
    let stream = TcpStream::connect(front.secure()).await.unwrap();
    let now = Arc::new(AtomicBool::new(false));
    let versions = [if tls13 { &TLS13 } else { &TLS12 }];
    let name = ServerName::from(front.secure().ip());
    let connected = trusting(&versions).connect(name, Flips { stream, now: now.clone() });
    let mut client: TlsStream<Flips> = soon(connected).await.unwrap();
    client.write_all(first.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    let mut heard = Vec::new();
    while first.ends_with("\r\n\r\n") && !heard.ends_with(b"\n") {
        assert_ne!(soon(client.read_buf(&mut heard)).await.unwrap(), 0, "an answer to {first:?}");
    }
    now.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        // It may have been ended by then.
        let _ = client.write_all(b"GET /health HTTP/1.1\r\nHost: proxy\r\n\r\n").await;
        let _ = client.flush().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _ = soon(client.read_to_end(&mut heard)).await;
    String::from_utf8(heard).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_does_not_decrypt_ends_its_connection_and_nothing_else() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=1s"]).await;
    for tls13 in [true, false] {
        for (first, status) in [
            ("", ""),
            ("GET /health HT", ""),
            ("GET /health HTTP/1.1\r\nHost: proxy\r\n\r\n", "HTTP/1.1 200"),
            ("no request\r\n\r\n", "HTTP/1.1 400"),
            ("POST /health HTTP/1.1\r\nHost: proxy\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 405"),
        ] {
            let heard = flipped(&front, tls13, first).await;
            assert!(heard.starts_with(status), "{first:?}: {heard:?}");
            let answers = heard.matches("\r\n\r\n").count();
            assert_eq!(answers, usize::from(!status.is_empty()), "{first:?}: {heard:?}");
            front.recovers().await;
        }
    }
    assert_eq!(front.proxy.terminate().code(), Some(0));
    assert!(!front.proxy.log().contains("panicked"), "{}", front.proxy.log());
}
