//! WebSocket sessions by a client of other make: bytes are the same at the end, however they were cut on the way.

use std::fs;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use harness::agent::{Agent, AgentConfig, AgentTls, Noise};
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{End, RawClient, Secure, Wire, soon};
use harness::scripted_agent::ScriptedAgent;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

pub(crate) const MIB: usize = 1 << 20;
/// How long a large echo may take in a debug build on a busy machine.
const LONG: Duration = Duration::from_mins(2);

type Socket<S> = WebSocketStream<Choppy<S>>;

/// A stream that takes and gives random pieces.
struct Choppy<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Choppy<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut piece = [0; 16 << 10];
        let length = fastrand::usize(1..=piece.len()).min(into.remaining());
        let mut piece = ReadBuf::new(&mut piece[..length]);
        let read = Pin::new(&mut self.0).poll_read(cx, &mut piece);
        into.put_slice(piece.filled());
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Choppy<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let piece = fastrand::usize(1..128 << 10).min(bytes.len());
        Pin::new(&mut self.0).poll_write(cx, &bytes[..piece])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn started(tls: AgentTls, flags: &[&str]) -> (Agent, ProxyUnderTest) {
    let agent = Agent::start(AgentConfig { tls, ..AgentConfig::default() }).await.unwrap();
    let mut all = vec![if tls == AgentTls::Off { "--agent-tls=off" } else { "--agent-tls=insecure" }];
    all.extend(flags);
    let front = ProxyUnderTest::start(agent.address, &all).await;
    (agent, front)
}

/// Opens a WebSocket to the agent's echo; boxed, because a handshake is a large future.
fn socket<S: Wire>(line: RawClient<S>) -> BoxFuture<'static, Socket<S>> {
    let request = "ws://proxy/127.0.0.1/echo".into_client_request().unwrap();
    let config = WebSocketConfig::default().max_frame_size(Some(64 * MIB)).max_message_size(Some(64 * MIB));
    let stream = Choppy(line.into_stream());
    let opened = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
    async { soon(opened).await.expect("a 101").0 }.boxed()
}

/// Sends all of `bytes` in frames of 1 B to 1 MiB, and takes them back.
async fn echo<S: Wire>(socket: Socket<S>, bytes: Arc<Vec<u8>>) -> Socket<S> {
    let (mut said, mut heard) = socket.split();
    let sent = bytes.clone();
    let sender = tokio::spawn(async move {
        let mut rest = &sent[..];
        while !rest.is_empty() {
            // Small frames as often as large ones.
            let length = fastrand::usize(1..=1 << fastrand::usize(0..=20)).min(rest.len());
            let (frame, after) = rest.split_at(length);
            rest = after;
            said.send(Message::binary(frame.to_vec())).await.expect("the socket is open");
        }
        said
    });
    let mut at = 0;
    while at < bytes.len() {
        let message = timeout(LONG, heard.next()).await.expect("it is in time").expect("a message").unwrap();
        let frame = message.into_data();
        assert!(bytes[at..].starts_with(&frame), "the echo differs within {} bytes at {at}", frame.len());
        at += frame.len();
    }
    sender.await.unwrap().reunite(heard).unwrap()
}

pub(crate) async fn echoes<S: Wire>(line: RawClient<S>, count: usize) {
    let bytes = Arc::new(Noise::new(count as u64).bytes());
    let mut socket = echo(socket(line).await, bytes).await;
    soon(socket.close(None)).await.unwrap();
    while soon(socket.next()).await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn echoes_are_the_same_byte_for_byte_with_tls_1_2_to_the_agent() {
    let (_agent, front) = started(AgentTls::Tls12, &[]).await;
    echoes(RawClient::secure(front.secure()).await, 64 * MIB).await;
    assert!(front.access_line("GET /127.0.0.1/echo").contains("101"));
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn echoes_are_the_same_byte_for_byte_with_tls_1_3_to_the_agent() {
    let (_agent, front) = started(AgentTls::Tls13, &[]).await;
    echoes(RawClient::secure(front.secure()).await, 64 * MIB).await;
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn echoes_are_the_same_byte_for_byte_between_plain_legs() {
    let (_agent, front) = started(AgentTls::Off, &[]).await;
    echoes(RawClient::plain(front.plain()).await, 64 * MIB).await;
    front.answers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn echoes_are_the_same_byte_for_byte_over_mixed_legs() {
    let (_agent, front) = started(AgentTls::Off, &[]).await;
    echoes(RawClient::secure(front.secure()).await, 16 * MIB).await;
    let (_agent, front) = started(AgentTls::Both, &[]).await;
    echoes(RawClient::plain(front.plain()).await, 16 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn echoes_are_the_same_byte_for_byte_in_the_smallest_turns() {
    let (_agent, front) = started(AgentTls::Both, &["--relay-budget=4096B"]).await;
    echoes(RawClient::secure(front.secure()).await, 8 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_eight_sockets_of_a_desktop_run_at_the_same_time() {
    let (agent, front) = started(AgentTls::Both, &[]).await;
    let bytes = Arc::new(Noise::new(2 * MIB as u64).bytes());
    let mut sockets = Vec::new();
    for _ in 0..8 {
        sockets.push(socket(RawClient::secure(front.secure()).await).await);
    }
    eventually("the agent has all of them", || (agent.seen.websockets_open() == 8).then_some(()));
    let echoes: Vec<_> =
        sockets.into_iter().map(|socket| tokio::spawn(echo(socket, bytes.clone()))).collect();
    for echo in echoes {
        drop(echo.await.unwrap());
    }
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_50_mib_passes_whole() {
    let (_agent, front) = started(AgentTls::Both, &[]).await;
    let mut socket = socket(RawClient::secure(front.secure()).await).await;
    let bytes = Noise::new(50 * MIB as u64).bytes();
    let resident = front.proxy.resident_kib();
    timeout(LONG, socket.send(Message::binary(bytes.clone()))).await.unwrap().unwrap();
    let message = timeout(LONG, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(message.into_data() == bytes);
    let grown = front.proxy.resident_kib().saturating_sub(resident);
    assert!(grown < 20 << 10, "{grown} KiB more");
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_by_the_agent() {
    let (_agent, front) = started(AgentTls::Both, &[]).await;
    let mut socket = socket(RawClient::secure(front.secure()).await).await;
    for payload in ["", "one", &"x".repeat(125)] {
        let payload = payload.to_owned().into_bytes();
        soon(socket.send(Message::Ping(payload.clone().into()))).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::Pong(payload.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_idle_for_a_while_still_echoes() {
    let (_agent, front) = started(
        AgentTls::Both,
        &[
            "--response-timeout=1s",
            "--client-keepalive-timeout=1s",
            "--header-timeout=1s",
            "--agent-keepalive-timeout=1s",
        ],
    )
    .await;
    let mut socket = socket(RawClient::secure(front.secure()).await).await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        soon(socket.send(Message::text("still there?"))).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text("still there?"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_silent_for_the_idle_time_is_ended() {
    let (agent, front) = started(AgentTls::Both, &["--session-idle-timeout=1s"]).await;
    let mut socket = socket(RawClient::secure(front.secure()).await).await;
    assert!(!matches!(soon(socket.next()).await, Some(Ok(_))));
    assert!(front.access_line("GET /127.0.0.1/echo").contains("end_reason=idle"));
    drop(socket);
    front.recovers().await;
    eventually("the agent's is closed", || (agent.seen.websockets_open() == 0).then_some(()));
}

/// A text frame as a client sends it, masked with zeros.
fn frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126);
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_right_behind_the_upgrade_arrive() {
    for (tls, count) in [(AgentTls::Tls12, 1), (AgentTls::Tls13, 300), (AgentTls::Off, 300)] {
        let (_agent, front) = started(tls, &[]).await;
        let early = frame("a frame that rides right behind the head, in the same record").repeat(count);
        let said = [front.upgrade("/echo").as_bytes(), &early].concat();
        frames_come_back(RawClient::secure(front.secure()).await, &said, count).await;
        frames_come_back(RawClient::plain(front.plain()).await, &said, count).await;
    }
}

async fn frames_come_back<S: Wire>(mut client: RawClient<S>, said: &[u8], count: usize) {
    client.say(said).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    for _ in 0..count {
        assert_eq!(client.bytes(2).await, [0x81, 60]);
        assert_eq!(client.bytes(60).await, b"a frame that rides right behind the head, in the same record");
    }
}

const ACCEPTED: &str = "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn frames_right_behind_the_101_arrive() {
    let agent = ScriptedAgent::secure(|_, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say([ACCEPTED.as_bytes(), &Noise::new(100_000).bytes()].concat()).await;
        agent.finish().await;
        agent.rest().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    let (early, end) = client.rest().await;
    assert!(early == Noise::new(100_000).bytes() && end == End::Clean);
    drop(client);
    front.recovers().await;
}

/// What the side that ended last still sends.
const LAST_WORDS: u64 = 1_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn when_the_client_ends_first_the_agent_may_go_on_to_its_own_end() {
    let agent = ScriptedAgent::secure(|_, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say(ACCEPTED).await;
        assert_eq!(agent.rest().await, (b"bye".to_vec(), End::Clean));
        agent.say(Noise::new(LAST_WORDS).bytes()).await;
        agent.finish().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    client.say("bye").await;
    client.finish().await;
    let (last, end) = client.rest().await;
    assert!(last == Noise::new(LAST_WORDS).bytes() && end == End::Clean);
    let line = front.access_line("GET /127.0.0.1/ws");
    assert!(
        line.contains("to_agent=3 to_client=1000000") && line.contains("end_reason=client-ended"),
        "{line}"
    );
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_agent_ends_first_the_client_may_go_on_to_its_own_end() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let tell = tell.clone();
        async move {
            agent.head().await;
            agent.say(ACCEPTED).await;
            agent.say("bye").await;
            agent.finish().await;
            tell.send(agent.rest().await).unwrap();
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    assert_eq!(client.rest().await, (b"bye".to_vec(), End::Clean));
    client.say(Noise::new(LAST_WORDS).bytes()).await;
    client.finish().await;
    let (last, end) = soon(told.recv()).await.unwrap();
    assert!(last == Noise::new(LAST_WORDS).bytes() && end == End::Clean);
    assert!(front.access_line("GET /127.0.0.1/ws").contains("end_reason=agent-ended"));
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_session_between_plain_legs_goes_on_too() {
    let agent = ScriptedAgent::plain(|_, mut agent: RawClient| async move {
        agent.head().await;
        agent.say(ACCEPTED).await;
        let (bytes, _) = agent.rest().await;
        agent.say(bytes).await;
        agent.finish().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-tls=off"]).await;
    let mut client = RawClient::plain(front.plain()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    client.say(Noise::new(20 * LAST_WORDS).bytes()).await;
    client.finish().await;
    let (echo, end) = client.rest().await;
    assert!(echo == Noise::new(20 * LAST_WORDS).bytes() && end == End::Clean);
    drop(client);
    front.answers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_first_amid_much_data_waits_for_a_silent_agent_no_longer_than_is_said() {
    const MUCH: usize = 64 * MIB;
    let agent = ScriptedAgent::plain(|_, mut agent: RawClient| async move {
        agent.head().await;
        agent.say(ACCEPTED).await;
        agent.say(vec![b'x'; MUCH]).await;
        // It neither ends nor reads.
        std::future::pending::<()>().await;
    });
    let agent = agent.await;
    for turn in ["--relay-budget=4096B", "--relay-budget=65536B"] {
        let flags = ["--agent-tls=off", "--half-closed-timeout=1s", "--session-idle-timeout=600s", turn];
        let front = ProxyUnderTest::start(agent.address, &flags).await;
        for _ in 0..2 {
            let mut client = RawClient::plain(front.plain()).await;
            client.say(front.upgrade("/ws")).await;
            assert_eq!(client.answer().await.unwrap().status, 101);
            assert_eq!(client.bytes(MUCH / 8).await.len(), MUCH / 8);
            client.finish().await;
            let (rest, _) = client.rest().await;
            assert_eq!(rest.len(), MUCH - MUCH / 8, "{turn}");
        }
    }
}

/// What an agent says before it leaves without having listened.
const LAST_BYTES: u64 = 3 << 20;
/// What the client has not taken of it when the agent leaves, at the least.
const HELD_BYTES: u64 = 128 << 10;
/// How long the client is slow once its agent has left.
const SLOW: Duration = Duration::from_millis(300);

/// The agent says it all, waits until all of it has been taken, and leaves with input that it has not read.
async fn leaves_unread<S: Wire>(mut agent: RawClient<S>, tell: UnboundedSender<()>) {
    agent.head().await;
    agent.say([ACCEPTED.as_bytes(), &Noise::new(LAST_BYTES).bytes()].concat()).await;
    let local = agent.tcp().local_addr().unwrap().port();
    let remote = agent.tcp().peer_addr().unwrap().port();
    let taken = async {
        while unsent(local, remote) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(taken).await;
    tell.send(()).unwrap();
}

/// Bytes that the kernel has not brought over yet, of the connection between two ports (proc(5): `tx_queue`).
fn unsent(local: u16, remote: u16) -> u64 {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = [local, remote].map(|port| format!("0100007F:{port:04X}"));
    let row = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let mut row = row.filter(|row| row[1..3] == ends);
    let queues = row.next().expect("an open connection")[4];
    u64::from_str_radix(queues.split_once(':').unwrap().0, 16).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_that_talks_on_gets_all_that_an_agent_said_before_it_left() {
    let (tell, mut told) = unbounded_channel();
    let plain = tell.clone();
    let plain = ScriptedAgent::plain(move |_, agent| leaves_unread(agent, plain.clone())).await;
    let front = ProxyUnderTest::start(plain.address, &["--agent-tls=off"]).await;
    hears_all(&front, RawClient::plain(front.plain()).await, &mut told).await;
    hears_all(&front, RawClient::secure(front.secure()).await, &mut told).await;
    let secure = ScriptedAgent::secure(move |_, agent| leaves_unread(agent, tell.clone())).await;
    let front = ProxyUnderTest::start(secure.address, &[]).await;
    hears_all(&front, RawClient::plain(front.plain()).await, &mut told).await;
    hears_all(&front, RawClient::secure(front.secure()).await, &mut told).await;
}

async fn hears_all<S: Wire>(front: &ProxyUnderTest, client: RawClient<S>, told: &mut UnboundedReceiver<()>) {
    let (mut heard, mut said) = client.split();
    said.write_all(front.upgrade("/ws").as_bytes()).await.unwrap();
    said.flush().await.unwrap();
    assert!(heard.head().await.unwrap().starts_with("HTTP/1.1 101"));
    let talk = tokio::spawn(async move {
        while said.write_all(&[b'k'; 200]).await.is_ok() && said.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let (mut bytes, mut left) = (Vec::new(), None);
    loop {
        let piece = heard.bytes(16 << 10).await;
        if piece.is_empty() {
            break;
        }
        bytes.extend(piece);
        left = left.or_else(|| told.try_recv().ok().map(|()| Instant::now()));
        if left.is_none() && bytes.len() as u64 + HELD_BYTES >= LAST_BYTES {
            // So much stands on the way in any case.
            soon(told.recv()).await.expect("the agent leaves");
            left = Some(Instant::now());
        }
        // In the end it hurries: the proxy waits for nobody for long.
        if left.is_none_or(|at| at.elapsed() < SLOW) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(bytes == Noise::new(LAST_BYTES).bytes(), "{} bytes of {LAST_BYTES}", bytes.len());
    talk.abort();
    let _ = talk.await;
}

/// What `ss` says of the connections that the proxy has made or accepted.
fn connections(filter: &str) -> String {
    let found =
        std::process::Command::new("ss").args(["-Htin", "state", "established", filter]).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8(found.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_leg_has_the_congestion_control_that_is_named_for_it() {
    // Those that the kernel allows to everybody, everywhere (tcp(7)), and whatever it uses by itself.
    let flags = ["--client-congestion=reno", "--agent-congestion=reno"];
    for (flags, leg) in [(&flags[..1], "client"), (&flags[1..], "agent"), (&flags[..0], "none")] {
        let (agent, front) = started(AgentTls::Off, flags).await;
        let mut client = RawClient::plain(front.plain()).await;
        client.say(front.upgrade("/echo")).await;
        client.head().await.unwrap();
        let client_leg = connections(&format!("( sport = :{} )", front.plain().port()));
        let agent_leg = connections(&format!("( dport = :{} )", agent.address.port()));
        let default = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
        for (found, named) in [(client_leg, leg == "client"), (agent_leg, leg == "agent")] {
            let wanted = if named { "reno" } else { default.trim() };
            assert!(found.contains(&format!(" {wanted} ")), "{flags:?}: not {wanted}: {found}");
        }
    }
}
