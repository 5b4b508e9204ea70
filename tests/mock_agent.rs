//! The stand-in agent itself: it must notice what a proxy breaks, or the other tests prove nothing.
use futures_util::{SinkExt, StreamExt};
use harness::agent::{Agent, AgentConfig, AgentTls, Checksum, Noise};
use harness::certificates::{Authority, KeyKind};
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const ORIGIN: &str = "Origin: https://proxy\r\n";
const DCV: &str = "Sec-WebSocket-Protocol: dcv\r\n";
const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[tokio::test]
async fn a_channel_whose_query_was_lost_is_refused() {
    let agent = plain(None).await;
    let session = session(&agent).await;
    let token = text(&session, "token");
    assert_eq!(upgrade(&agent, &format!("/ws?token={token}"), &[ORIGIN, DCV]).await, 101);
    assert_eq!(upgrade(&agent, "/ws?", &[ORIGIN, DCV]).await, 403);
    assert_eq!(upgrade(&agent, "/ws", &[ORIGIN, DCV]).await, 403);
    let decoded = token.replace("%2F", "/");
    assert_eq!(upgrade(&agent, &format!("/ws?token={decoded}"), &[ORIGIN, DCV]).await, 403);
}

#[tokio::test]
async fn a_websocket_whose_origin_or_subprotocol_was_lost_is_refused() {
    let agent = plain(None).await;
    assert_eq!(upgrade(&agent, "/auth", &[ORIGIN, DCV]).await, 101);
    assert_eq!(upgrade(&agent, "/auth", &[DCV]).await, 403);
    assert_eq!(upgrade(&agent, "/auth", &["Origin: http://proxy\r\n", DCV]).await, 403);
    assert_eq!(upgrade(&agent, "/auth", &[ORIGIN]).await, 400);
    assert_eq!(ask(&agent, "GET /auth", DCV, "").await.0, 400);
}

#[tokio::test]
async fn a_resource_whose_token_was_lost_is_refused() {
    let agent = plain(None).await;
    let session = session(&agent).await;
    let (token, place) = (text(&session, "token"), text(&session, "resources"));
    for method in ["POST", "DELETE"] {
        let request = format!("{method} /{place}cursor");
        assert_eq!(ask(&agent, &format!("{request}?token={token}"), "", "image").await.0, 200);
        assert_eq!(ask(&agent, &request, "", "image").await.0, 403);
        assert_eq!(ask(&agent, &format!("{request}?token=other"), "", "image").await.0, 403);
    }
}

#[tokio::test]
async fn a_path_that_was_decoded_or_normalised_or_keeps_its_prefix_is_not_found() {
    let agent = plain(None).await;
    let session = session(&agent).await;
    let (token, place) = (text(&session, "token"), text(&session, "resources"));
    let decoded = place.replace("%2F", "/");
    for path in [
        format!("/127.0.0.2/{place}cursor"),
        format!("//{place}cursor"),
        format!("/{decoded}cursor"),
        format!("/{place}"),
        format!("/{place}cursor/"),
    ] {
        assert_eq!(ask(&agent, &format!("POST {path}?token={token}"), "", "").await.0, 404, "{path}");
    }
    assert_eq!(ask(&agent, "GET /127.0.0.2/", "", "").await.0, 404);
    assert_eq!(ask(&agent, "GET /127.0.0.2/dcvjs/main.js", "", "").await.0, 404);
    assert_eq!(ask(&agent, "GET /dcvjs/main.js?v=1", "", "").await.0, 200);
}

#[tokio::test]
async fn a_session_needs_the_token_of_the_agent_that_wants_one() {
    let agent = plain(Some("secret")).await;
    assert_eq!(authenticate(&agent, json!({ "token": "guess" })).await["status"], "refused");
    assert_eq!(authenticate(&agent, json!({})).await["status"], "refused");
    assert_eq!(authenticate(&agent, json!({ "token": "secret" })).await["status"], "ok");
}

#[tokio::test]
async fn input_is_in_a_later_frame_and_the_session_ends_with_its_channels() {
    let agent = plain(None).await;
    let session = session(&agent).await;
    let mut display = channel(&agent, &session, "display").await;
    let mut input = channel(&agent, &session, "input").await;
    let mut event = 7_u64.to_be_bytes().to_vec();
    event.extend([3, 0, b'x', 0, 0]);
    input.send(Message::binary(event)).await.expect("the channel is open");
    soon(async {
        while let Some(Ok(message)) = display.next().await {
            if message.is_binary() && message.into_data()[16..24] == 7_u64.to_be_bytes() {
                return;
            }
        }
        panic!("the display ended");
    })
    .await;
    drop((display, input));
    let request = format!("POST /{}cursor?token={}", text(&session, "resources"), text(&session, "token"));
    soon(async { while ask(&agent, &request, "", "").await.0 != 404 {} }).await;
}

#[tokio::test]
async fn targets_and_headers_are_seen_as_they_were_sent() {
    let agent = plain(None).await;
    let (status, body) = ask(&agent, "PUT /x//a%2Fb/../c?token=%2f+%20;", "B: 2\r\nA: 1\r\n", "").await;
    assert_eq!((status, body.as_str()), (200, "PUT /x//a%2Fb/../c?token=%2f+%20;\nHost: agent\n"));
    let seen = agent.seen.requests();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("PUT", "/x//a%2Fb/../c?token=%2f+%20;"));
    let names: Vec<_> = seen[0].headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["host", "connection", "b", "a", "content-length"]);
    assert_eq!(seen[0].header("a"), Some("1"));
}

#[tokio::test]
async fn bodies_pass_whole() {
    let agent = plain(None).await;
    let noise = Noise::new(200_001).bytes();
    assert_eq!(noise.len(), 200_001);
    let request = format!("POST /sink HTTP/1.1\r\nHost: agent\r\nContent-Length: {}\r\n\r\n", noise.len());
    let mut stream = connect(&agent).await;
    stream.write_all(&[request.as_bytes(), &noise].concat()).await.expect("the agent reads");
    let wanted = Checksum::of(&noise).to_string();
    assert!(head(&mut stream).await.contains(&format!("content-length: {}\r\n", wanted.len())));
    let mut answer = vec![0; wanted.len()];
    stream.read_exact(&mut answer).await.expect("the agent answers");
    assert_eq!(answer, wanted.as_bytes());
    stream.write_all(b"GET /bytes/200001 HTTP/1.1\r\nHost: agent\r\n\r\n").await.expect("it is kept alive");
    assert!(head(&mut stream).await.contains("content-length: 200001\r\n"));
    let mut body = vec![0; noise.len()];
    stream.read_exact(&mut body).await.expect("the agent answers");
    assert!(body == noise);
}

#[tokio::test]
async fn tls_handshakes_and_resumed_ones_are_counted() {
    for tls in [AgentTls::Tls12, AgentTls::Tls13] {
        let agent = Agent::start(AgentConfig { tls, ..AgentConfig::default() }).await.expect("a free port");
        let connector = trusting(agent.identity.chain().expect("its own certificate"));
        for _ in 0..3 {
            let name = ServerName::from(agent.address.ip());
            let mut stream = connector.connect(name, connect(&agent).await).await.expect("a trusted agent");
            let request = "GET /x HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).await.expect("the agent reads");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("the agent closes properly");
        }
        assert_eq!((agent.seen.connections(), agent.seen.handshakes(), agent.seen.resumed()), (3, 3, 2));
    }
}

#[tokio::test]
async fn a_certificate_of_an_authority_is_trusted_through_it_alone() {
    let (authority, other) = (Authority::new("one"), Authority::new("other"));
    for kind in [KeyKind::Ecdsa, KeyKind::Rsa] {
        let identity = Some(authority.issue(kind, &["127.0.0.1", "agent.test"]));
        let agent =
            Agent::start(AgentConfig { identity, ..AgentConfig::default() }).await.expect("a free port");
        for (authority, trusted) in [(&authority, true), (&other, false)] {
            let root =
                CertificateDer::from_pem_slice(authority.cert_pem().as_bytes()).expect("a certificate");
            let name = ServerName::try_from("agent.test").expect("a name");
            let secured = trusting([root]).connect(name, connect(&agent).await).await;
            assert_eq!(secured.is_ok(), trusted);
        }
    }
}

#[tokio::test]
async fn a_dropped_agent_closes_its_connections() {
    let agent = plain(None).await;
    let mut echo = websocket(&agent, "/echo").await;
    echo.send(Message::text("there?")).await.expect("the socket is open");
    assert_eq!(echo.next().await.expect("an answer").expect("an answer"), Message::text("there?"));
    assert_eq!(agent.seen.websockets_open(), 1);
    let address = agent.address;
    drop(agent);
    assert!(soon(echo.next()).await.is_none_or(|message| message.is_err()));
    soon(async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), what).await.expect("it happens within 5 s")
}

async fn plain(token: Option<&str>) -> Agent {
    let config = AgentConfig { tls: AgentTls::Off, token: token.map(Into::into), ..AgentConfig::default() };
    Agent::start(config).await.expect("a free port")
}

async fn connect(agent: &Agent) -> TcpStream {
    TcpStream::connect(agent.address).await.expect("the agent listens")
}

fn trusting(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> TlsConnector {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    TlsConnector::from(Arc::new(ClientConfig::builder().with_root_certificates(store).with_no_client_auth()))
}

/// Status and body of one request.
async fn ask(agent: &Agent, request: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = connect(agent).await;
    let length = body.len();
    let request = format!(
        "{request} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("the agent reads");
    let status = status(&head(&mut stream).await);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the agent answers");
    (status, answer)
}

/// Status of a WebSocket request.
async fn upgrade(agent: &Agent, target: &str, headers: &[&str]) -> u16 {
    let mut stream = connect(agent).await;
    let request = format!("GET {target} HTTP/1.1\r\nHost: agent\r\n{UPGRADE}{}\r\n", headers.concat());
    stream.write_all(request.as_bytes()).await.expect("the agent reads");
    status(&head(&mut stream).await)
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(char::from(stream.read_u8().await.expect("a whole head")));
    }
    head
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

async fn websocket(agent: &Agent, target: &str) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{}{target}", agent.address).into_client_request().expect("a URL");
    for (name, value) in [("origin", "https://proxy"), ("sec-websocket-protocol", "dcv")] {
        request.headers_mut().insert(name, value.parse().expect("a header value"));
    }
    let opened = tokio_tungstenite::client_async(request, connect(agent).await).await;
    opened.map_err(io::Error::other).expect("the agent answers 101").0
}

async fn authenticate(agent: &Agent, request: Value) -> Value {
    let mut auth = websocket(agent, "/auth").await;
    auth.send(Message::text(request.to_string())).await.expect("the socket is open");
    let answer = auth.next().await.expect("an answer").expect("an answer");
    serde_json::from_str(answer.to_text().expect("text")).expect("JSON")
}

async fn session(agent: &Agent) -> Value {
    authenticate(agent, json!({ "token": null })).await
}

async fn channel(agent: &Agent, session: &Value, name: &str) -> WebSocketStream<TcpStream> {
    let mut channel = websocket(agent, &format!("/ws?token={}", text(session, "token"))).await;
    let hello = json!({ "channel": name, "connection": session["connection"] });
    channel.send(Message::text(hello.to_string())).await.expect("the socket is open");
    let opened = channel.next().await.expect("an answer").expect("an answer");
    assert_eq!(opened, Message::text(json!({ "opened": name }).to_string()));
    channel
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}
