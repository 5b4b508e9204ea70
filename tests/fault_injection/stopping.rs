//! SIGTERM: sessions go on, nothing new is taken, and the program comes to its end.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::agent::{Agent, AgentConfig};
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{End, RawClient, Secure, soon};
use harness::scripted_agent::ScriptedAgent;
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Far more than a stop without sessions takes, and less than the drain time.
const PROMPT: Duration = Duration::from_secs(20);

/// An agent of sessions that echo, in any number of pieces.
async fn echo() -> ScriptedAgent {
    ScriptedAgent::secure(|_, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        loop {
            let bytes = agent.bytes(4).await;
            if bytes.is_empty() || !agent.try_say(bytes).await {
                break;
            }
        }
        agent.finish().await;
    })
    .await
}

async fn session(front: &ProxyUnderTest) -> RawClient<Secure> {
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    echoes(&mut client).await;
    client
}

async fn echoes(client: &mut RawClient<Secure>) {
    client.say("ping").await;
    assert_eq!(client.bytes(4).await, b"ping");
}

fn refuses(front: &ProxyUnderTest) {
    for address in [front.plain(), front.secure()] {
        eventually("new connections are refused", || TcpStream::connect(address).is_err().then_some(()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_are_ended_in_order_and_the_exit_is_prompt() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=60s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("GET /x", "")).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    let began = Instant::now();
    front.proxy.signal(Signal::SIGTERM);
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    assert_eq!(front.proxy.wait().code(), Some(0));
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_asked_does_not_keep_it_from_stopping() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=60s"]).await;
    let _silent = RawClient::plain(front.plain()).await;
    let _secured = RawClient::secure(front.secure()).await;
    let began = Instant::now();
    front.proxy.signal(Signal::SIGTERM);
    assert_eq!(front.proxy.wait().code(), Some(0));
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_handshake_does_not_keep_it_from_stopping() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=60s"]).await;
    let before = front.proxy.descriptors();
    let mut client = RawClient::plain(front.secure()).await;
    client.say([22, 3, 1]).await;
    eventually("it has taken the connection", || (front.proxy.descriptors() > before).then_some(()));
    let began = Instant::now();
    front.proxy.signal(Signal::SIGTERM);
    assert_eq!(front.proxy.wait().code(), Some(0));
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_taken_is_answered_and_its_connection_not_kept() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=60s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("GET /slow/1500", "")).await;
    eventually("the agent is asked", || (!agent.seen.requests().is_empty()).then_some(()));
    front.proxy.signal(Signal::SIGTERM);
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "after 1500 ms\n"));
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    assert_eq!(front.proxy.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_and_its_end_is_the_programs() {
    let agent = echo().await;
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=60s"]).await;
    let mut client = session(&front).await;
    front.proxy.signal(Signal::SIGTERM);
    refuses(&front);
    for _ in 0..10 {
        echoes(&mut client).await;
    }
    assert!(front.proxy.log().contains("drain_timeout=1m"));
    client.finish().await;
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    assert_eq!(front.proxy.wait().code(), Some(0));
    assert!(front.access_line("GET /127.0.0.1/ws").contains("end_reason=client-ended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_drain_time_is_over_a_session_is_ended_in_order() {
    let agent = echo().await;
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=1s"]).await;
    let mut client = session(&front).await;
    let began = Instant::now();
    front.proxy.signal(Signal::SIGTERM);
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    assert_eq!(front.proxy.wait().code(), Some(0));
    assert!(began.elapsed() >= Duration::from_millis(900) && began.elapsed() < PROMPT);
    assert!(front.access_line("GET /127.0.0.1/ws").contains("end_reason=drained"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_the_sessions_at_once() {
    let agent = echo().await;
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=600s"]).await;
    let mut client = session(&front).await;
    let began = Instant::now();
    front.proxy.signal(Signal::SIGTERM);
    refuses(&front);
    echoes(&mut client).await;
    front.proxy.signal(Signal::SIGTERM);
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    assert_eq!(front.proxy.wait().code(), Some(0));
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
}

/// A stop that ends what still runs, and does not wait for it.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_a_request_whose_agent_is_silent_and_books_it() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let tell = tell.clone();
        async move {
            tell.send(agent.head().await).unwrap();
            agent.rest().await;
        }
    });
    let agent = agent.await;
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=600s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("GET /silence", "")).await;
    soon(told.recv()).await.expect("the agent is asked");
    front.proxy.signal(Signal::SIGTERM);
    refuses(&front);
    let began = Instant::now();
    front.proxy.signal(Signal::SIGTERM);
    assert_eq!(front.proxy.wait().code(), Some(0));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert!(front.access_line("GET /127.0.0.1/silence").contains("end_reason=drained"));
    assert!(client.answer().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_an_answer_that_pauses_and_books_it() {
    let agent = ScriptedAgent::secure(|_, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say("HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\nhalf").await;
        agent.rest().await;
    });
    let agent = agent.await;
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=600s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("GET /half", "")).await;
    assert!(client.head().await.is_some());
    assert_eq!(client.bytes(4).await, b"half");
    front.proxy.signal(Signal::SIGTERM);
    refuses(&front);
    let began = Instant::now();
    front.proxy.signal(Signal::SIGTERM);
    assert_eq!(front.proxy.wait().code(), Some(0));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    let line = front.access_line("GET /127.0.0.1/half");
    assert!(line.contains("end_reason=drained"), "{line}");
    assert_eq!(client.rest().await.0, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_drain_time_is_over_an_agent_is_told_whatever_its_client_does() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let tell = tell.clone();
        async move {
            agent.head().await;
            agent.say("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
            let (mut heard, mut said) = agent.split();
            let piece = vec![b'x'; 256 << 10];
            let stalled = Duration::from_secs(1);
            while let Ok(taken) = timeout(stalled, said.write_all(&piece)).await {
                taken.unwrap();
            }
            tell.send(None).unwrap();
            tell.send(Some(heard.rest().await)).unwrap();
        }
    });
    let agent = agent.await;
    let mut front = ProxyUnderTest::start(agent.address, &["--drain-timeout=1s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    // From here on it takes nothing.
    assert_eq!(soon(told.recv()).await, Some(None));
    front.proxy.signal(Signal::SIGTERM);
    assert_eq!(soon(told.recv()).await, Some(Some((Vec::new(), End::Clean))));
    assert_eq!(front.proxy.wait().code(), Some(0));
    assert!(front.access_line("GET /127.0.0.1/ws").contains("end_reason=drained"));
}
