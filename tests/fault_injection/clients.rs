//! Clients that stop half-way, vanish, do not read, or come in crowds.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::agent::{Agent, AgentConfig, AgentTls, Checksum, Noise};
use harness::process::eventually;
use harness::proxy::{self, Proxy};
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{End, RawClient, Secure, Wire, soon};
use harness::scripted_agent::ScriptedAgent;
use tokio::sync::mpsc;

const LATE: Duration = Duration::from_secs(20);
const LIMITS: [&str; 3] = ["--header-timeout=1s", "--body-idle-timeout=1s", "--client-keepalive-timeout=1s"];
/// What stands between two programs: the buffers of two sockets at either side of the proxy, and TLS.
const BUFFERED_MAX: usize = 64 << 20;

async fn front() -> (Agent, ProxyUnderTest) {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &LIMITS).await;
    (agent, front)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_tls_hello_is_ended() {
    let (_agent, front) = front().await;
    let began = Instant::now();
    // Nothing, half a hello's record, and a record's head.
    for said in [&[][..], &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 7, 7], &[22]] {
        let mut client = RawClient::plain(front.secure()).await;
        client.say(said).await;
        assert_eq!(client.rest().await.0, b"");
    }
    assert!(began.elapsed() < LATE);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_ended_without_an_answer() {
    let (_agent, front) = front().await;
    let began = Instant::now();
    let mut client = RawClient::plain(front.plain()).await;
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    let mut client = RawClient::secure(front.secure()).await;
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    assert!(began.elapsed() < LATE);
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_head_is_a_408() {
    let (agent, front) = front().await;
    let began = Instant::now();
    for said in ["G", "GET /127.0.0.1/x HTTP/1.1\r\nHost: p\r\n", "\r\n\r\n"] {
        let mut client = RawClient::secure(front.secure()).await;
        client.say(said).await;
        assert_eq!(client.answer().await.expect("an answer").status, 408, "{said:?}");
        assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    }
    assert!(began.elapsed() < LATE);
    assert_eq!(agent.seen.connections(), 0);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_too_many_handshakes_the_oldest_give_way_and_others_are_served() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &["--handshakes-max=4", "--workers=1"]).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(RawClient::plain(front.secure()).await);
    }
    for mut client in clients.drain(..6) {
        assert_eq!(client.rest().await.0, b"");
    }
    front.answers().await;
    // It took the place of one more; the last three are still there.
    for mut client in clients.drain(1..) {
        client.say("GET / HTTP/1.1\r\n\r\n").await;
        assert_eq!(client.answer().await.expect("an answer").status, 400);
    }
    drop(clients);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_drips_is_a_408() {
    let (_agent, front) = front().await;
    let began = Instant::now();
    let client = RawClient::secure(front.secure()).await;
    let (mut heard, mut said) = client.split();
    let drip = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let _ = said.write_all(b"GET / HTTP/1.1\r\n").await;
        while said.write_all(b"X").await.is_ok() {
            let _ = said.flush().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(heard.answer().await.expect("an answer").status, 408);
    assert!(began.elapsed() < LATE);
    drip.abort();
    let _ = drip.await;
    drop(heard);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_body_is_a_408_and_the_agent_is_let_go() {
    let (agent, front) = front().await;
    let began = Instant::now();
    for (framing, half) in [("Content-Length: 10", "short"), ("Transfer-Encoding: chunked", "5\r\nsho")] {
        let mut client = RawClient::secure(front.secure()).await;
        client.say(front.request("POST /sink", &format!("{framing}\r\n"))).await;
        client.say(half).await;
        assert_eq!(client.answer().await.expect("an answer").status, 408, "{framing}");
        assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    }
    assert!(began.elapsed() < LATE);
    assert_eq!(agent.seen.connections(), 2);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_client_connection_is_ended_after_its_time() {
    let (_agent, front) = front().await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("GET /x", "")).await;
    assert_eq!(client.answer().await.unwrap().header("connection"), None);
    let began = Instant::now();
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    assert!(began.elapsed() < LATE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_line_behind_a_body_is_no_beginning_of_a_request() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front =
        ProxyUnderTest::start(agent.address, &["--header-timeout=1s", "--client-keepalive-timeout=60s"])
            .await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("POST /x", "Content-Length: 2\r\n") + "ab\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    client.say(front.request("GET /x", "")).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
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
async fn when_a_client_leaves_its_agent_is_let_go() {
    type Leave = fn(RawClient<Secure>);
    const SWITCHES: &str = "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let cases: [(&str, Leave); 6] = [
        ("", RawClient::reset),
        ("", drop),
        ("HTTP/1.1 200", drop),
        ("HTTP/1.1 103 Early Hints\r\n\r\n", drop),
        (SWITCHES, RawClient::reset),
        (SWITCHES, drop),
    ];
    for (answer, leave) in cases {
        let (agent, mut told) = watched(answer).await;
        let front = ProxyUnderTest::start(agent.address, &[]).await;
        let mut client = RawClient::secure(front.secure()).await;
        client.say(front.upgrade("/ws")).await;
        assert_eq!(soon(told.recv()).await, Some("asked"));
        leave(client);
        assert_eq!(soon(told.recv()).await, Some("ended"), "{answer:?}");
        front.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_client_resets_while_its_answer_pauses_the_agent_is_let_go() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let (agent, mut told) = watched(answer).await;
        let front = ProxyUnderTest::start(agent.address, &["--response-timeout=600s"]).await;
        let mut secure = RawClient::secure(front.secure()).await;
        secure.say(front.request("GET /", "")).await;
        assert!(secure.head().await.is_some());
        assert_eq!(soon(told.recv()).await, Some("asked"));
        secure.reset();
        assert_eq!(soon(told.recv()).await, Some("ended"), "{answer:?}");
        let mut plain = RawClient::plain(front.plain()).await;
        plain.say(front.request("GET /", "")).await;
        assert!(plain.head().await.is_some());
        assert_eq!(soon(told.recv()).await, Some("asked"));
        plain.reset();
        assert_eq!(soon(told.recv()).await, Some("ended"), "{answer:?}");
        front.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_client_leaves_within_its_upload_the_agent_sees_no_whole_request() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let tell = tell.clone();
        async move {
            agent.head().await;
            tell.send(agent.rest().await).unwrap();
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    for (framing, half) in [("Content-Length: 10", "short"), ("Transfer-Encoding: chunked", "5\r\nshort\r\n")]
    {
        let mut client = RawClient::secure(front.secure()).await;
        client.say(front.request("POST /sink", &format!("{framing}\r\n"))).await;
        client.say(half).await;
        client.finish().await;
        let (body, _) = soon(told.recv()).await.unwrap();
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains("short") && !body.contains("\r\n0\r\n"), "{body:?}");
    }
    front.recovers().await;
}

/// Offers 1 GB and counts what was taken.
async fn generous(head: &'static str) -> (ScriptedAgent, Arc<AtomicUsize>) {
    let offered = Arc::new(AtomicUsize::new(0));
    let counter = offered.clone();
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let counter = counter.clone();
        async move {
            agent.head().await;
            agent.say(head).await;
            let (_heard, mut said) = agent.split();
            let piece = vec![b'x'; 256 << 10];
            while counter.load(Ordering::Relaxed) < 1_000_000_000 {
                if tokio::io::AsyncWriteExt::write_all(&mut said, &piece).await.is_err() {
                    return;
                }
                counter.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    });
    (agent.await, offered)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_holds_its_agent_back_and_costs_no_memory() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
        "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let (agent, offered) = generous(head).await;
        let front = ProxyUnderTest::start(agent.address, &[]).await;
        let mut client = RawClient::secure(front.secure()).await;
        let resident = front.proxy.resident_kib();
        client.say(front.upgrade("/ws")).await;
        assert!(client.head().await.is_some());
        stands_still(&offered);
        let taken = offered.load(Ordering::Relaxed);
        assert!(taken < BUFFERED_MAX, "{taken} bytes were taken from the agent");
        let grown = front.proxy.resident_kib().saturating_sub(resident);
        assert!(grown < 20 << 10, "{grown} KiB more");
        // Another one is served meanwhile.
        front.answers().await;
        drop(client);
        front.recovers().await;
    }
}

/// Waits until a counter has moved and does not move any more.
fn stands_still(counter: &AtomicUsize) {
    let mut last = 0;
    let mut since = Instant::now();
    eventually("the agent is held back", || {
        let now = counter.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (last > 0 && since.elapsed() > Duration::from_millis(1500)).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_for_the_stall_time_is_let_go() {
    let (agent, _) = generous("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let front = ProxyUnderTest::start(agent.address, &["--tcp-user-timeout=1s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert!(client.head().await.is_some());
    assert!(front.access_line("GET /127.0.0.1/ws").contains("end_reason=client-stalled"));
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_gets_every_byte() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=1s"]).await;
    for path in ["bytes", "chunked"] {
        let mut client = RawClient::secure(front.secure()).await;
        client.say(front.request(&format!("GET /{path}/3000000"), "Connection: close\r\n")).await;
        assert!(client.head().await.unwrap().starts_with("HTTP/1.1 200"));
        let mut body = Vec::new();
        loop {
            let piece = client.bytes(64 << 10).await;
            if piece.is_empty() {
                break;
            }
            body.extend(piece);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if path == "chunked" {
            body = unchunked(&body);
        }
        assert_eq!(Checksum::of(&body), Checksum::of(&Noise::new(3_000_000).bytes()));
    }
    front.recovers().await;
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        body.extend(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
        if size == 0 {
            return body;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_it_turns_clients_away_without_spinning_and_recovers() {
    let agent = Agent::start(AgentConfig { tls: AgentTls::Off, ..AgentConfig::default() }).await.unwrap();
    let port = format!("--agent-port={}", agent.address.port());
    let flags =
        ["--listen-plain=127.0.0.1:0", "--workers=1", "--agents=127.0.0.1/32", "--agent-tls=off", &port];
    let proxied = proxy::command(&flags);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 64; exec \"$@\"", "sh"])
        .arg(proxied.get_program())
        .args(proxied.get_args());
    let proxy = Proxy::start_by(command, &flags);
    let healthy = |to: SocketAddr| async move {
        let Ok(stream) = tokio::net::TcpStream::connect(to).await else { return false };
        let mut client = RawClient::new(stream);
        client.try_say("GET /127.0.0.1/x HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n").await
            && client.answer().await.is_some_and(|answer| answer.status == 200)
    };
    assert!(healthy(proxy.address()).await);
    let crowd: Vec<_> = (0..200).map(|_| TcpStream::connect(proxy.address()).unwrap()).collect();
    eventually("it turns somebody away", || proxy.log().contains("no file descriptor is left").then_some(()));
    let (before, began) = (ticks(proxy.pid()), Instant::now());
    while began.elapsed() < Duration::from_secs(1) {
        drop(TcpStream::connect(proxy.address()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let failures = || proxy.log().matches("accept failed").count();
    // Those that wait stay where they are, and while nobody comes there is nothing to be said.
    let quiet = failures();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(failures() < quiet + 5, "{} failures while nobody came", failures() - quiet);
    let spent = ticks(proxy.pid()) - before;
    assert!(spent < 100, "{spent} of about 200 ticks were spent on turning clients away");
    drop(crowd);
    soon(async { while !healthy(proxy.address()).await {} }).await;
}

/// CPU time so far, in hundredths of a second (proc(5): utime and stime).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

async fn session<S: Wire>(front: &ProxyUnderTest, mut client: RawClient<S>) -> RawClient<S> {
    client.say(front.upgrade("/echo")).await;
    assert!(client.head().await.unwrap().contains(" 101 "));
    client
}

async fn echoes<S: Wire>(client: &mut RawClient<S>) {
    client.say([0x81, 0x84, 0, 0, 0, 0, b'p', b'i', b'n', b'g']).await;
    assert_eq!(client.bytes(6).await, b"\x81\x04ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_the_limit_are_turned_away_and_the_others_served() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &["--connections-max=3"]).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(session(&front, RawClient::plain(front.plain()).await).await);
    }
    let mut one_more = RawClient::plain(front.plain()).await;
    one_more.say(front.request("GET /x", "")).await;
    let answer = one_more.answer().await.unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    assert!(RawClient::plain(front.secure()).await.rest().await.0.is_empty());
    echoes(&mut kept[1]).await;
    drop(kept);
    soon(async {
        loop {
            let mut client = RawClient::plain(front.plain()).await;
            let said = client.try_say(front.request("GET /x", "")).await;
            if said && client.answer().await.is_some_and(|answer| answer.status == 200) {
                break;
            }
        }
    })
    .await;
}

/// Whoever says nothing, stops within its handshake or its head, or has been answered.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ask_for_nothing_give_way_to_new_ones_and_sessions_and_running_requests_never_do() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let limits = [
        "--connections-max=12",
        "--header-timeout=600s",
        "--client-keepalive-timeout=600s",
        "--agent-keepalive-timeout=1s",
    ];
    let flags = [&limits[..], &["--workers=2"]].concat();
    let front = ProxyUnderTest::start(agent.address, &flags).await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(session(&front, RawClient::secure(front.secure()).await).await);
    }
    let mut running = RawClient::secure(front.secure()).await;
    running.say(front.request("POST /sink", "Content-Length: 4\r\n") + "an").await;
    eventually("the agent has the request", || {
        agent.seen.requests().iter().any(|request| request.target.starts_with("/sink")).then_some(())
    });
    let (mut plain, mut secure) = (Vec::new(), Vec::new());
    for round in 0..20 {
        plain.push(RawClient::plain(front.secure()).await);
        let mut stopped = RawClient::plain(front.secure()).await;
        stopped.say([22, 3, 1, 2, 0, 1]).await;
        plain.push(stopped);
        let mut silent = RawClient::secure(front.secure()).await;
        if round % 2 == 0 {
            silent.say("GET /x HTTP/1.1\r\nHost: ").await;
        }
        secure.push(silent);
        let mut answered = RawClient::secure(front.secure()).await;
        answered.say("GET /health HTTP/1.1\r\nHost: p\r\n\r\n").await;
        let answer = answered.answer().await;
        assert_eq!(answer.map(|answer| answer.status), Some(200), "round {round}");
        secure.push(answered);
    }
    // The first of them have gone; the last are there.
    assert_eq!(plain[0].rest().await.0, b"");
    assert_eq!(secure[0].rest().await.0, b"");
    let last = secure.last_mut().unwrap();
    last.say("GET /health HTTP/1.1\r\nHost: p\r\n\r\n").await;
    assert_eq!(last.answer().await.unwrap().status, 200);
    for session in &mut sessions {
        echoes(session).await;
    }
    running.say("d\n").await;
    assert_eq!(running.answer().await.unwrap().status, 200);
    assert!(front.proxy.log().contains("reason=evicted"));
    drop((plain, secure, sessions, running));
    front.recovers().await;
}
