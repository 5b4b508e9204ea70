//! A WebSocket over HTTP/2 (RFC 8441): a stream becomes a session, beside requests of the same connection.

use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{RawClient, soon};
use harness::scripted_agent::ScriptedAgent;
use harness::websocket::accepted;
use http::{Method, Request};
use tokio::net::TcpStream;

use super::frames::{END_HEADERS, Frame, HEADERS, PREFACE, SETTINGS, block, frame};
use super::{Due, FLAGS, agent, heard};

/// The setting that says that it is spoken (RFC 8441 3).
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// Accepts each WebSocket with a word of its own, says again what it is told, and a last word at the end.
async fn echo() -> ScriptedAgent {
    ScriptedAgent::plain(|_, mut line| async move {
        let head = line.head().await.unwrap();
        if head.starts_with("GET /refused ") {
            return line.say("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno").await;
        }
        if head.starts_with("GET /other-key ") {
            return line.say(accepted("Sec-WebSocket-Key: another", "")).await;
        }
        if head.starts_with("GET /page ") {
            return line.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage").await;
        }
        assert!(head.starts_with("GET /ws?x=1 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"), "{head}");
        assert!(
            head.contains("\r\nSec-WebSocket-Key: ") && head.contains("\r\nsec-websocket-version: 13\r\n")
        );
        line.say([accepted(&head, "Sec-WebSocket-Protocol: dcv\r\n"), "hello".to_owned()].concat()).await;
        loop {
            let bytes = line.some_bytes().await;
            if bytes.is_empty() || !line.try_say(bytes).await {
                break;
            }
        }
        line.try_say("bye").await;
    })
    .await
}

fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&FLAGS[..], &["--http2-websocket=on"], more].concat()
}

/// A client that the proxy has told that it may.
async fn connects(front: &ProxyUnderTest) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(front.plain()).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    for number in 0.. {
        if client.is_extended_connect_protocol_enabled() {
            break;
        }
        assert!(number < 100, "the proxy does not say that it speaks RFC 8441");
        let request = Request::builder().uri("http://proxy/health").body(()).unwrap();
        client.send_request(request, true).unwrap().0.await.unwrap();
        client = client.ready().await.unwrap();
    }
    client
}

/// Opens a WebSocket.
fn opens(client: &mut SendRequest<Bytes>, path: &str) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let request = Request::builder().method(Method::CONNECT).uri(format!("http://proxy/127.0.0.1{path}"));
    let request = request.header("sec-websocket-version", "13").extension(Protocol::from_static("websocket"));
    client.send_request(request.body(()).unwrap(), false).unwrap()
}

/// What is known of the client's network is that of the connection, which it shares.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_logged_with_the_network_of_its_connection() {
    let agent = echo().await;
    let front = ProxyUnderTest::start(agent.address, &flags(&["--access-log-format=json"])).await;
    let mut client = connects(&front).await;
    let (response, mut sender) = opens(&mut client, "/ws?x=1");
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(takes(&mut body, 5).await, b"hello");
    sender.send_data(Bytes::new(), true).unwrap();
    let _ = takes(&mut body, 3).await;
    let line = front.access_line("session_ended");
    let rtt = line.split("\"client_rtt_us\":").nth(1).unwrap().split(',').next().unwrap();
    assert!(rtt.parse::<u64>().is_ok(), "{line}");
}

/// Takes so many bytes, or what there is of them.
async fn takes(body: &mut RecvStream, count: usize) -> Vec<u8> {
    let mut taken = Vec::new();
    while taken.len() < count
        && let Some(data) = soon(body.data()).await
    {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        taken.extend_from_slice(&data);
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_becomes_a_session_and_others_are_answered_beside_it() {
    let agent = echo().await;
    let front = ProxyUnderTest::start(agent.address, &flags(&[])).await;
    let mut client = connects(&front).await;
    let (response, mut sender) = opens(&mut client, "/ws?x=1");
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "dcv");
    for absent in ["sec-websocket-accept", "upgrade", "connection"] {
        assert!(!response.headers().contains_key(absent), "{absent}");
    }
    let mut body = response.into_body();
    assert_eq!(takes(&mut body, 5).await, b"hello");
    let health = Request::builder().uri("http://proxy/health").body(()).unwrap();
    let health = client.send_request(health, true).unwrap().0;
    assert_eq!(soon(health).await.unwrap().status(), 200);
    // More than any window or buffer on the way holds.
    let said: Vec<u8> = (0..400_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let says = async {
        let mut left = Bytes::from(said.clone());
        while !left.is_empty() {
            sender.reserve_capacity(left.len());
            let room = std::future::poll_fn(|cx| sender.poll_capacity(cx)).await.unwrap().unwrap();
            sender.send_data(left.split_to(room.min(left.len())), false).unwrap();
        }
    };
    let ((), echoed) = tokio::join!(says, takes(&mut body, said.len()));
    assert_eq!(echoed, said);
    sender.send_data(Bytes::new(), true).unwrap();
    assert_eq!(takes(&mut body, 100).await, b"bye");
    front.access_line("/ws?x=1 HTTP/2.0\" 101 ");
    drop((client, sender, body));
    front.releases();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_websocket_is_a_response() {
    let agent = echo().await;
    let front = ProxyUnderTest::start(agent.address, &flags(&[])).await;
    let mut client = connects(&front).await;
    let (response, _sender) = opens(&mut client, "/refused");
    let mut response = soon(response).await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(takes(response.body_mut(), 2).await, b"no");
}

/// Or a page of the agent's would be read as frames of a WebSocket, and so would what it says to somebody else's key.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_answer_the_key_has_accepted_nothing() {
    let agent = echo().await;
    let front = ProxyUnderTest::start(agent.address, &flags(&[])).await;
    let mut client = connects(&front).await;
    for path in ["/page", "/other-key"] {
        let (response, _sender) = opens(&mut client, path);
        let refused = soon(response).await.unwrap_err();
        assert_eq!(refused.reason(), Some(h2::Reason::INTERNAL_ERROR), "{path}");
    }
}

/// It has a connection, and the connection is in use; sessions on it have none to give up.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_does_not_make_way_for_another_client_and_who_waits_does() {
    let agent = echo().await;
    let front = ProxyUnderTest::start(agent.address, &flags(&["--connections-max=3"])).await;
    let mut client = connects(&front).await;
    let mut sessions = Vec::new();
    for _ in 0..80 {
        let (response, sender) = opens(&mut client, "/ws?x=1");
        let mut body = soon(response).await.unwrap().into_body();
        assert_eq!(takes(&mut body, 5).await, b"hello");
        sessions.push((sender, body));
    }
    // Each of them makes the one before leave, however many sessions are older.
    for _ in 0..80 {
        let mut other = RawClient::plain(front.plain()).await;
        other.say("GET /health HTTP/1.1\r\nHost: p\r\n\r\n").await;
        assert_eq!(other.answer().await.map(|answer| answer.status), Some(200));
        std::mem::forget(other);
    }
    for (sender, body) in &mut sessions {
        sender.send_data(Bytes::from_static(b"still here"), true).unwrap();
        assert_eq!(takes(body, 100).await, b"still herebye");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resets_its_stream_ends_the_session() {
    let agent = echo().await;
    let front = ProxyUnderTest::start(agent.address, &flags(&[])).await;
    let mut client = connects(&front).await;
    let (response, mut sender) = opens(&mut client, "/ws?x=1");
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(takes(&mut body, 5).await, b"hello");
    sender.send_reset(h2::Reason::CANCEL);
    front.access_line("end_reason=client-reset");
    drop((client, sender, body));
    front.releases();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_leaves_a_session_its_time() {
    let agent = echo().await;
    let mut front = ProxyUnderTest::start(agent.address, &flags(&["--drain-timeout=60s"])).await;
    let mut client = connects(&front).await;
    let (response, mut sender) = opens(&mut client, "/ws?x=1");
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(takes(&mut body, 5).await, b"hello");
    front.proxy.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("no more connections", || std::net::TcpStream::connect(front.plain()).is_err().then_some(()));
    sender.send_data(Bytes::from_static(b"still here"), true).unwrap();
    assert_eq!(takes(&mut body, 100).await, b"still herebye");
    drop((client, sender, body));
    assert!(front.proxy.wait().success());
}

/// What comes of a CONNECT with a protocol.
async fn tried(front: &ProxyUnderTest, protocol: &str) -> (bool, Due) {
    let mut client = RawClient::plain(front.plain()).await;
    let fields = [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "http"),
        (":authority", "proxy"),
        (":path", "/127.0.0.1/ws?x=1"),
        ("sec-websocket-version", "13"),
    ];
    let ask = frame(HEADERS, END_HEADERS, 1, block(&fields));
    client.say([PREFACE, &frame(SETTINGS, 0, 0, []), &ask].concat()).await;
    let settings = Frame::next(&mut client).await.unwrap();
    assert_eq!(settings.kind, SETTINGS);
    let identifiers = settings.payload.chunks(6).map(|setting| u16::from_be_bytes([setting[0], setting[1]]));
    let says = identifiers.into_iter().any(|identifier| identifier == ENABLE_CONNECT_PROTOCOL);
    (says, heard(&mut client, 1).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_flag_and_for_other_protocols_connect_is_refused() {
    let agent = agent().await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    assert_eq!(tried(&front, "websocket").await, (false, Due::Reset(1)));
    let front = ProxyUnderTest::start(agent.address, &flags(&[])).await;
    let (says, outcome) = tried(&front, "connect-udp").await;
    assert!(says);
    assert!(matches!(outcome, Due::Answered(_)), "{outcome:?}");
    front.access_line("\"CONNECT /127.0.0.1/ws?x=1 HTTP/2.0\" 405 ");
}
