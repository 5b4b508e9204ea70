//! Clients that end their side behind a request and wait for the answer, as scripts and probes do (RFC 9112 9.6).

use std::time::Duration;

use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{End, RawClient, Secure, Wire, soon};
use harness::scripted_agent::ScriptedAgent;
use tokio::sync::mpsc;

/// Time for an end to be seen before the answer comes. Only the strength of a test depends on it.
const PAUSE: Duration = Duration::from_millis(300);

/// An agent that answers each request with its path after a while.
async fn slow() -> ScriptedAgent {
    ScriptedAgent::secure(|_, mut agent: RawClient<Secure>| async move {
        while let Some(head) = agent.head().await {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            if head.starts_with("POST") {
                assert_eq!(agent.bytes(4).await, b"body");
            }
            tokio::time::sleep(PAUSE).await;
            let body = if head.starts_with("HEAD") { "" } else { &path };
            agent.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", path.len())).await;
        }
    })
    .await
}

async fn is_answered<S: Wire>(mut client: RawClient<S>, request: &str, paths: &[&str]) {
    client.say(request).await;
    client.finish().await;
    let method = request.split(' ').next().unwrap();
    for (number, path) in (1..).zip(paths) {
        let answer = client.answer_to(method).await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, *path), "{request}");
        let closes = answer.header("connection") == Some("close");
        assert_eq!(closes, number == paths.len(), "{request}: {}", answer.head);
    }
    assert_eq!(client.rest().await, (Vec::new(), End::Clean), "{request}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_its_side_behind_its_request_is_answered() {
    let agent = slow().await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=1s"]).await;
    let get = front.request("GET /a", "");
    let old = get.replace("HTTP/1.1", "HTTP/1.0").replace("Host", "Connection: keep-alive\r\nHost");
    let requests: [(String, &[&str]); 5] = [
        (get.clone(), &["/a"]),
        (old, &["/a"]),
        (front.request("HEAD /a", ""), &[""]),
        (front.request("POST /b", "Content-Length: 4\r\n") + "body", &["/b"]),
        (get.clone() + &front.request("GET /c", "") + &get, &["/a", "/c", "/a"]),
    ];
    for (request, paths) in &requests {
        is_answered(RawClient::plain(front.plain()).await, request, paths).await;
        is_answered(RawClient::secure(front.secure()).await, request, paths).await;
    }
    front.recovers().await;
    let log = front.proxy.output();
    assert!(!log.contains("end_reason=client-"), "{log}");
}

/// An agent that takes one request, says `answer`, and tells when its connection has ended.
async fn watched(answer: &'static str) -> (ScriptedAgent, mpsc::UnboundedReceiver<&'static str>) {
    let (tell, told) = mpsc::unbounded_channel();
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let tell = tell.clone();
        async move {
            agent.head().await;
            tell.send("asked").unwrap();
            agent.say(answer).await;
            agent.rest().await;
            tell.send("ended").unwrap();
        }
    });
    (agent.await, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_ended_its_side_is_not_waited_for_longer_than_a_half_closed_session() {
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"] {
        let (agent, mut told) = watched(answer).await;
        let flags = ["--half-closed-timeout=1s", "--response-timeout=600s", "--body-idle-timeout=600s"];
        let front = ProxyUnderTest::start(agent.address, &flags).await;
        let mut client = RawClient::plain(front.plain()).await;
        client.say(front.request("GET /", "")).await;
        assert_eq!(soon(told.recv()).await, Some("asked"));
        client.finish().await;
        assert_eq!(soon(told.recv()).await, Some("ended"), "{answer:?}");
        client.rest().await;
        front.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_has_its_agent_let_go_at_once() {
    const PATIENT: [&str; 3] =
        ["--half-closed-timeout=600s", "--response-timeout=600s", "--body-idle-timeout=600s"];
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"] {
        let (agent, mut told) = watched(answer).await;
        let front = ProxyUnderTest::start(agent.address, &PATIENT).await;
        let mut plain = RawClient::plain(front.plain()).await;
        plain.say(front.request("GET /", "")).await;
        assert_eq!(soon(told.recv()).await, Some("asked"));
        plain.finish().await;
        tokio::time::sleep(PAUSE).await;
        plain.reset();
        assert_eq!(soon(told.recv()).await, Some("ended"), "{answer:?}");
        let mut secure = RawClient::secure(front.secure()).await;
        secure.say(front.request("GET /", "")).await;
        assert_eq!(soon(told.recv()).await, Some("asked"));
        secure.finish().await;
        tokio::time::sleep(PAUSE).await;
        secure.reset();
        assert_eq!(soon(told.recv()).await, Some("ended"), "{answer:?}");
        front.recovers().await;
    }
}

/// So much that nothing more of it is taken in, and its end stands behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_sent_much_ahead_and_is_gone_has_its_agent_let_go_at_once() {
    const PATIENT: [&str; 3] =
        ["--half-closed-timeout=600s", "--response-timeout=600s", "--body-idle-timeout=600s"];
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"] {
        let (agent, mut told) = watched(answer).await;
        let front = ProxyUnderTest::start(agent.address, &PATIENT).await;
        let mut plain = RawClient::plain(front.plain()).await;
        plain.say(front.request("GET /", "").repeat(2000)).await;
        assert_eq!(soon(told.recv()).await, Some("asked"));
        tokio::time::sleep(PAUSE).await;
        plain.reset();
        assert_eq!(soon(told.recv()).await, Some("ended"), "{answer:?}");
        front.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_stream_and_the_end_of_a_client_that_asked_for_a_websocket_are_no_half_close() {
    const PATIENT: [&str; 3] =
        ["--half-closed-timeout=600s", "--response-timeout=600s", "--body-idle-timeout=600s"];
    let (agent, mut told) = watched("").await;
    let front = ProxyUnderTest::start(agent.address, &PATIENT).await;
    let mut cut = RawClient::secure(front.secure()).await;
    cut.say(front.request("GET /", "")).await;
    assert_eq!(soon(told.recv()).await, Some("asked"));
    drop(cut);
    assert_eq!(soon(told.recv()).await, Some("ended"));
    let mut asks = RawClient::plain(front.plain()).await;
    asks.say(front.upgrade("/ws")).await;
    assert_eq!(soon(told.recv()).await, Some("asked"));
    asks.finish().await;
    assert_eq!(soon(told.recv()).await, Some("ended"));
    front.recovers().await;
}
