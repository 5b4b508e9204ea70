//! What one session has the kernel hold when a side takes nothing: the bytes received and not read, and those sent and
//! not taken, on both legs. In a network of the test's own, with the segments of an Ethernet.
//! Debian packages: iproute2
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use harness::network::runs_in_a_network_of_its_own;
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;
use harness::scripted_agent::ScriptedAgent;
use tokio::task::JoinSet;

/// Payload that both sockets of the proxy may hold for one session, whoever takes nothing.
const KERNEL_BYTES_MAX: usize = 4 << 20;
/// Readings in a row that have to agree.
const SETTLED: usize = 10;

/// The port of an address as `/proc/net/tcp` writes it (proc(5)).
fn port(address: &str) -> u16 {
    u16::from_str_radix(address.split(':').nth(1).unwrap(), 16).unwrap()
}

/// Bytes that wait to be acknowledged or to be read on the proxy's own ends: those of connections to its port, and
/// of its connections to the agent's.
fn held(proxy: SocketAddr, agent: SocketAddr) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let of = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_its_own = port(fields[1]) == proxy.port() || port(fields[2]) == agent.port();
        let is_established = fields[3] == "01";
        let bytes = |text| usize::from_str_radix(text, 16).unwrap();
        let (sent, received) = fields[4].split_once(':').unwrap();
        if is_its_own && is_established { bytes(sent) + bytes(received) } else { 0 }
    };
    table.lines().skip(1).map(of).sum()
}

/// The same once nothing moves any more.
async fn settled(proxy: SocketAddr, agent: SocketAddr) -> usize {
    let (mut last, mut same) = (0, 0);
    while same < SETTLED {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = held(proxy, agent);
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// Says so many bytes, or without end.
async fn says(line: &mut RawClient, bytes: usize) {
    let burst = vec![7; 64 * 1024];
    let mut left = bytes;
    while left > 0 && line.tcp().writable().await.is_ok() {
        match line.tcp().try_write(&burst[..burst.len().min(left)]) {
            Ok(said) => left -= said,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Before it stops, a side has taken so much, and the kernel has learnt how fast it can be.
const WARM_UP_BYTES: usize = 64 << 20;

/// A side that has taken that much and takes nothing more, and the other, which says more than that.
async fn stall(is_client: bool) {
    let agent = ScriptedAgent::plain(move |_, mut line| async move {
        line.head().await;
        line.say("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
        if is_client {
            says(&mut line, usize::MAX).await;
        } else {
            assert_eq!(line.bytes(WARM_UP_BYTES).await.len(), WARM_UP_BYTES);
            std::future::pending::<()>().await;
        }
    })
    .await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-tls=off"]).await;
    let proxy = front.plain();
    let mut client = RawClient::plain(proxy).await;
    client.say(front.upgrade("/ws")).await;
    client.head().await.unwrap();
    let mut tasks = JoinSet::new();
    if is_client {
        assert_eq!(client.bytes(WARM_UP_BYTES).await.len(), WARM_UP_BYTES);
        tasks.spawn(async move {
            std::future::pending::<()>().await;
            drop(client);
        });
    } else {
        tasks.spawn(async move {
            says(&mut client, usize::MAX).await;
        });
    }
    let held = settled(proxy, agent.address).await;
    println!("{held} bytes are held");
    assert!(held < KERNEL_BYTES_MAX, "{held} bytes are held");
}

/// The receive buffer of a client whose agent takes some megabytes a second, as the kernel counts it: twice the payload.
const UPLOAD_BYTES_MAX: usize = 208 * 1024;

/// The receive buffer of the one connection to that port.
fn receive_buffer(proxy: SocketAddr) -> usize {
    let filter = format!("( sport = :{} )", proxy.port());
    let found = Command::new("ss").args(["-Htmn", "state", "established", &filter]).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    let buffer = found.split("rb").nth(1).and_then(|rest| rest.split(',').next());
    buffer.and_then(|bytes| bytes.parse().ok()).unwrap_or_else(|| panic!("no buffer in {found:?}"))
}

/// A client that uploads has shown the kernel how fast it can be, and so has a large window, when the agent slows down.
async fn slow_down() {
    /// What an agent takes at a time, of which there are some in a second.
    const TAKEN: usize = 64 * 1024;
    let agent = ScriptedAgent::plain(move |_, mut line| async move {
        line.head().await;
        line.say("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
        assert_eq!(line.bytes(WARM_UP_BYTES).await.len(), WARM_UP_BYTES);
        while line.bytes(TAKEN).await.len() == TAKEN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-tls=off"]).await;
    let mut client = RawClient::plain(front.plain()).await;
    client.say(front.upgrade("/ws")).await;
    client.head().await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { says(&mut client, usize::MAX).await });
    eventually("a small window of the client", || {
        let buffer = receive_buffer(front.plain());
        println!("{buffer} bytes may be received");
        (buffer <= UPLOAD_BYTES_MAX).then_some(())
    });
    drop(tasks);
}

#[test]
fn a_client_that_uploads_has_a_small_window_once_the_agent_is_slow() {
    inside("a_client_that_uploads_has_a_small_window_once_the_agent_is_slow", slow_down());
}

/// Sessions at once, and what each may hold in the program: one receive, its records sealed anew, and its state.
const SESSIONS: usize = 100;
const PROGRAM_KIB_MAX: usize = 320;

/// Sessions over TLS whose clients take nothing, of agents that say more than that.
async fn stall_many() {
    let agent = ScriptedAgent::secure(move |_, mut line| async move {
        line.head().await;
        line.say("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n").await;
        let burst = vec![7; 64 * 1024];
        while line.try_say(&burst).await {}
    })
    .await;
    let front = ProxyUnderTest::start(agent.address, &["--client-connections-max=1000"]).await;
    let ask = |mut client: RawClient<_>| async {
        client.say(front.upgrade("/ws")).await;
        client.head().await.unwrap();
        client
    };
    // What the first one costs is not of any session.
    let first = ask(RawClient::secure(front.secure()).await).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = front.proxy.resident_kib();
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        clients.push(ask(RawClient::secure(front.secure()).await).await);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let each = (front.proxy.resident_kib() - before) / SESSIONS;
    println!("{each} KiB are held by each session");
    assert!(each < PROGRAM_KIB_MAX, "{each} KiB are held by each session");
    drop((first, clients));
}

#[test]
fn clients_that_take_no_more_have_the_program_hold_one_receive_each() {
    inside("clients_that_take_no_more_have_the_program_hold_one_receive_each", stall_many());
}

fn inside(name: &str, test: impl Future<Output = ()>) {
    if runs_in_a_network_of_its_own(name) {
        return;
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_client_that_takes_no_more_has_the_kernel_hold_little() {
    inside("a_client_that_takes_no_more_has_the_kernel_hold_little", stall(true));
}

#[test]
fn an_agent_that_takes_no_more_has_the_kernel_hold_little() {
    inside("an_agent_that_takes_no_more_has_the_kernel_hold_little", stall(false));
}
