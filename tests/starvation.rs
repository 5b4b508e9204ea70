//! One client or agent that is always ready never has a worker to itself: beside each such source a neighbour's
//! session goes on, and a stop reaches the worker. In a network of the test's own whose segments are as small as those
//! of an Ethernet: on plain loopback a receive takes all that waits, and hides what starves.
//! Debian packages: iproute2
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dcv_splice::runtime::buffer::Buffer;
use dcv_splice::tls::{AgentTrust, Connector, PARTIAL_RECORD_MAX, TlsEnd};
use harness::network::runs_in_a_network_of_its_own;
use harness::ports::unused_address;
use harness::proxy::Proxy;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;
use harness::scripted_agent::ScriptedAgent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long a source is always ready, and how often a neighbour must be answered meanwhile. It is some thousand times
/// where nothing starves, and once or twice where something does.
const ATTACK: Duration = Duration::from_secs(2);
const ECHOES_MIN: usize = 30;
/// How long one echo may take: far more than a busy machine does, and less than a source that has to be cut off.
const ECHO_WITHIN: Duration = Duration::from_secs(8);
/// How long the worker may take to stop, of which two seconds are the drain time.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);
/// Bytes that an attacker sends at once.
const BURST_BYTES: usize = 256 * 1024;

/// Whoever asks for `/attack` is answered by `attack`; everybody else has a WebSocket that echoes.
async fn agent<F>(attack: impl Fn(RawClient) -> F + Send + Sync + 'static) -> ScriptedAgent
where
    F: Future<Output = ()> + Send + 'static,
{
    let attack = Arc::new(attack);
    ScriptedAgent::plain(move |_, mut line| {
        let attack = attack.clone();
        async move {
            let Some(head) = line.head().await else { return };
            if head.contains("/attack") {
                return attack(line).await;
            }
            line.say("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
            loop {
                let bytes = line.bytes(1).await;
                if bytes.is_empty() || !line.try_say(bytes).await {
                    return;
                }
            }
        }
    })
    .await
}

async fn no_attack(_: RawClient) {}

const FLAGS: [&str; 4] =
    ["--agent-tls=off", "--drain-timeout=2s", "--client-rate=1000000", "--client-connections-max=4000"];

/// Has a neighbour echo while `attack` goes on, and then stops the proxy.
async fn neighbours_go_on(front: ProxyUnderTest, attack: JoinSet<()>) {
    let mut neighbour = RawClient::plain(front.plain()).await;
    neighbour.say(front.upgrade("/echo")).await;
    echoes_go_on(neighbour, front.proxy, attack).await;
}

/// The same with a neighbour that has asked for an echo.
async fn echoes_go_on(mut neighbour: RawClient, mut proxy: Proxy, attack: JoinSet<()>) {
    neighbour.head().await.unwrap();
    let start = Instant::now();
    let (mut echoes, mut slowest) = (0, Duration::ZERO);
    while start.elapsed() < ATTACK {
        let said = Instant::now();
        neighbour.say("x").await;
        assert_eq!(neighbour.bytes(1).await, b"x");
        slowest = slowest.max(said.elapsed());
        echoes += 1;
    }
    assert!(echoes >= ECHOES_MIN, "{echoes} echoes in {ATTACK:?}, the slowest after {slowest:?}");
    assert!(slowest < ECHO_WITHIN, "{echoes} echoes, the slowest after {slowest:?}");
    assert!(!attack.is_empty(), "nobody has attacked");
    let stopping = Instant::now();
    tokio::task::spawn_blocking(move || assert!(proxy.terminate().success())).await.unwrap();
    println!("{echoes} echoes, the slowest after {slowest:?}; stopped after {:?}", stopping.elapsed());
    assert!(stopping.elapsed() < STOPPED_WITHIN, "it took {:?} to stop", stopping.elapsed());
    drop(attack);
}

/// Sends `first` and then `again` for ever, takes every answer, and comes back when it is sent away. By threads of its
/// own, so that it is always ahead of the proxy.
fn floods(to: SocketAddr, first: Vec<u8>, again: &[u8]) -> JoinSet<()> {
    let again = again.repeat(BURST_BYTES / again.len().max(1));
    let mut tasks = JoinSet::new();
    tasks.spawn_blocking(move || {
        while let Ok(mut writer) = std::net::TcpStream::connect(to) {
            let mut reader = writer.try_clone().unwrap();
            let takes = std::thread::spawn(move || {
                let mut buffer = vec![0; BURST_BYTES];
                while reader.read(&mut buffer).is_ok_and(|got| got > 0) {}
            });
            let mut is_open = writer.write_all(&first).is_ok();
            while is_open && !again.is_empty() {
                is_open = writer.write_all(&again).is_ok();
            }
            takes.join().unwrap();
        }
    });
    tasks
}

macro_rules! starves_nobody {
    ($name:ident, $attack:expr) => {
        #[test]
        fn $name() {
            if runs_in_a_network_of_its_own(stringify!($name)) {
                return;
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on($attack);
        }
    };
}

/// A request that is as large as one receive.
fn filled_request() -> Vec<u8> {
    let (start, end) = ("GET /health HTTP/1.1\r\nHost: p\r\nX: ", "\r\n\r\n");
    let padding = 16 * 1024 - start.len() - end.len();
    format!("{start}{}{end}", "x".repeat(padding)).into_bytes()
}

starves_nobody!(requests_that_fill_a_receive_each, async {
    let agent = agent(no_attack).await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let attack = floods(front.plain(), Vec::new(), &filled_request());
    neighbours_go_on(front, attack).await;
});

starves_nobody!(requests_without_a_byte_too_many, async {
    let agent = agent(no_attack).await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let attack = floods(front.plain(), Vec::new(), b"GET /health HTTP/1.1\r\nHost: p\r\n\r\n");
    neighbours_go_on(front, attack).await;
});

/// Each connection of the attacker has an agent that answers so for ever.
async fn agent_that_sends(first: &'static str, again: &'static str) {
    let again = again.repeat(BURST_BYTES / again.len());
    let agent = agent(move |mut line| {
        let again = again.clone();
        async move {
            let mut is_open = line.try_say(first).await;
            while is_open {
                is_open = line.try_say(&again).await;
            }
        }
    })
    .await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let asked = front.request("GET /attack", "").into_bytes();
    let attack = floods(front.plain(), asked, &[]);
    neighbours_go_on(front, attack).await;
}

starves_nobody!(interim_responses_without_end, agent_that_sends("", "HTTP/1.1 103 x\r\nX: y\r\n\r\n"));
starves_nobody!(continues_without_end, agent_that_sends("", "HTTP/1.1 100 x\r\n\r\n"));
starves_nobody!(
    a_response_in_chunks_of_one_byte,
    agent_that_sends("HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n")
);
starves_nobody!(a_response_without_end, agent_that_sends("HTTP/1.1 200 x\r\n\r\n", "xxxxxxxxxxxxxxxx"));

/// An agent that takes everything it is sent.
async fn agent_that_takes() -> ScriptedAgent {
    agent(|mut line| async move {
        let mut buffer = vec![0; BURST_BYTES];
        let stream = line.tcp();
        loop {
            if stream.readable().await.is_err() {
                return;
            }
            match stream.try_read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
        line.finish().await;
    })
    .await
}

starves_nobody!(a_request_in_chunks_of_one_byte, async {
    let agent = agent_that_takes().await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let head = front.request("POST /attack", "Transfer-Encoding: chunked\r\n").into_bytes();
    let attack = floods(front.plain(), head, b"1\r\nx\r\n");
    neighbours_go_on(front, attack).await;
});

starves_nobody!(a_session_that_never_stops, async {
    let agent = agent(|mut line| async move {
        line.say("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
        let burst = vec![0; BURST_BYTES];
        while line.try_say(&burst).await {}
    })
    .await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let asked = front.upgrade("/attack").into_bytes();
    let attack = floods(front.plain(), asked, &[]);
    neighbours_go_on(front, attack).await;
});

starves_nobody!(what_follows_a_refused_request, async {
    let agent = agent(no_attack).await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let attack = floods(front.plain(), b"NO HTTP\r\n\r\n".to_vec(), &[b'x'; 1024]);
    neighbours_go_on(front, attack).await;
});

starves_nobody!(proxy_headers, async {
    let agent = agent(no_attack).await;
    let flags = [&FLAGS[..], &["--proxy-protocol=127.0.0.1/32"]].concat();
    // Its health is asked for without a header: by the balancer's own word.
    let port = format!("--agent-port={}", agent.address.port());
    let all = [&flags[..], &["--listen-plain=127.0.0.1:0", "--agents=127.0.0.1/32", "--workers=1", &port]];
    let proxy = Proxy::start(&all.concat());
    let to = proxy.address();
    // As long as one may be, byte by byte, from connection after connection.
    let header = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\xf0"[..], &[0; 4080]].concat();
    let mut attack = JoinSet::new();
    for _ in 0..8 {
        let header = header.clone();
        attack.spawn(async move {
            while let Ok(mut stream) = TcpStream::connect(to).await {
                let _ = stream.set_nodelay(true);
                let _ = stream.set_zero_linger();
                for byte in &header {
                    if stream.write_all(std::slice::from_ref(byte)).await.is_err() {
                        break;
                    }
                }
            }
        });
    }
    let mut neighbour = RawClient::plain(to).await;
    neighbour.say("PROXY UNKNOWN\r\nGET /127.0.0.1/echo HTTP/1.1\r\nHost: p\r\n").await;
    neighbour
        .say("Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        .await;
    echoes_go_on(neighbour, proxy, attack).await;
});

starves_nobody!(connections_that_come_and_go, async {
    let agent = agent(no_attack).await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let to = front.plain();
    let mut attack = JoinSet::new();
    for _ in 0..8 {
        attack.spawn(async move {
            while let Ok(stream) = TcpStream::connect(to).await {
                // Or the ports would be used up.
                let _ = stream.set_zero_linger();
            }
        });
    }
    neighbours_go_on(front, attack).await;
});

// Whole requests in TLS records of one byte each.
starves_nobody!(records_of_one_byte, async {
    let agent = agent(no_attack).await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let to = front.secure();
    let mut attack = JoinSet::new();
    attack.spawn(async move {
        while let Some((mut stream, mut tls)) = handshake(to).await {
            let (mut reader, mut writer) = stream.split();
            let takes = async {
                let mut buffer = vec![0; BURST_BYTES];
                while reader.read(&mut buffer).await.is_ok_and(|got| got > 0) {}
            };
            let says = async {
                loop {
                    let mut records = Buffer::default();
                    for byte in b"GET /health HTTP/1.1\r\nHost: p\r\n\r\n".repeat(100) {
                        tls.seal(&[byte], &mut records).unwrap();
                    }
                    if writer.write_all(records.filled()).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! { () = takes => {}, () = says => {} }
        }
    });
    neighbours_go_on(front, attack).await;
});

async fn handshake(to: SocketAddr) -> Option<(TcpStream, TlsEnd)> {
    let mut stream = TcpStream::connect(to).await.ok()?;
    let mut tls = Connector::new(&AgentTrust::Anything).unwrap().connect(to.ip()).unwrap();
    let mut incoming = vec![0; 4 * PARTIAL_RECORD_MAX];
    let mut got = 0;
    loop {
        let held = tls.put_back(&mut incoming);
        // What comes is received behind what is held.
        let mut outgoing = Buffer::default();
        let state = tls.open(&mut incoming[..held + got], &mut |_| {}, &mut outgoing).ok()?;
        stream.write_all(outgoing.filled()).await.ok()?;
        if state == dcv_splice::tls::TlsState::Open {
            return Some((stream, tls));
        }
        let held = tls.put_back(&mut incoming);
        got = stream.read(&mut incoming[held..]).await.ok().filter(|got| *got > 0)?;
    }
}

// A hello in records of one byte each, from connection after connection.
starves_nobody!(hellos_in_pieces_of_one_byte, async {
    let agent = agent(no_attack).await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    // A ClientHello of 16 KiB (RFC 8446 4) that never comes to its end.
    let hello = [&[1, 0, 0x3f, 0xff][..], &[0; 16 * 1024]].concat();
    let pieces: Vec<u8> = hello.iter().flat_map(|byte| [22, 3, 3, 0, 1, *byte]).collect();
    let attack = floods(front.secure(), pieces, &[]);
    neighbours_go_on(front, attack).await;
});

// Those who ask how it stands have a thread of their own, from which a stop must get to the workers.
starves_nobody!(an_admin_page_that_is_asked_for_without_end, async {
    let agent = agent(no_attack).await;
    let admin = unused_address();
    let flag = format!("--admin={admin}");
    let front = ProxyUnderTest::start(agent.address, &[&FLAGS[..], &[&flag]].concat()).await;
    let mut attack = JoinSet::new();
    for _ in 0..32 {
        let more = floods(admin, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), &[]);
        attack.spawn(async move { drop(more.join_all().await) });
    }
    neighbours_go_on(front, attack).await;
});

starves_nobody!(a_control_socket_that_is_asked_without_end, async {
    let agent = agent(no_attack).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let flag = format!("--control={}", path.display());
    let front = ProxyUnderTest::start(agent.address, &[&FLAGS[..], &[&flag]].concat()).await;
    let mut attack = JoinSet::new();
    for command in
        [&b"status\n"[..], b"stats\n", b"reload\n", b"reopen\n", b"no such command\n", b""].repeat(3)
    {
        let path = path.clone();
        attack.spawn_blocking(move || {
            while let Ok(mut stream) = std::os::unix::net::UnixStream::connect(&path) {
                // Whoever says nothing is sent away after a while.
                let _ = stream.write_all(command);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
    }
    neighbours_go_on(front, attack).await;
});
