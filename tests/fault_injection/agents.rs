//! Agents that fail before their response's head is whole.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::agent::Noise;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{End, PATIENCE, RawClient, Secure, Wire};
use harness::scripted_agent::ScriptedAgent;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Far more than any limit of these tests.
const LATE: Duration = Duration::from_secs(20);

const LIMITS: [&str; 3] = ["--connect-timeout=1000ms", "--response-timeout=1s", "--body-idle-timeout=1s"];

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_refuses_is_a_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    ends_in(nobody, 502).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_agent_fills_no_log_however_often_it_is_asked_for() {
    const ASKED: usize = 300;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let front = ProxyUnderTest::start(nobody, &LIMITS).await;
    let mut client = RawClient::plain(front.plain()).await;
    for _ in 0..ASKED {
        client.say(front.request("GET /x", "")).await;
        assert_eq!(client.answer().await.unwrap().status, 502);
    }
    let log = front.proxy.log();
    let told = log.lines().filter(|line| line.contains("can't be reached"));
    assert_eq!(told.count(), 9, "the 1st, 2nd, 4th, ... 256th of {ASKED} in:\n{log}");
    assert!(log.contains("count=256"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_answer_the_syn_is_a_504() {
    let (deaf, _queue) = deaf().await;
    ends_in(deaf.local_addr().unwrap(), 504).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_never_answers_the_tls_hello_is_a_504() {
    let agent = ScriptedAgent::plain(|_, agent| hold(agent)).await;
    ends_in(agent.address, 504).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_within_the_handshake_is_a_504() {
    // The head of a record that never comes.
    let agent = ScriptedAgent::plain(|_, mut agent| async move {
        agent.say([22, 3, 3, 0, 90, 2, 0, 0, 86]).await;
        hold(agent).await;
    });
    ends_in(agent.await.address, 504).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_speaks_no_tls_is_a_502() {
    let noise = Noise::new(4000).bytes();
    for banner in [
        b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(),
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
        noise,
        vec![0; 10],
        vec![22, 3, 3, 0xff, 0xff, 0],
        vec![21, 3, 3, 0, 2, 2, 40],
    ] {
        let agent = ScriptedAgent::plain(move |_, mut agent| {
            let banner = banner.clone();
            async move {
                agent.say(banner).await;
                agent.rest().await;
            }
        });
        ends_in(agent.await.address, 502).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_closes_at_once_is_a_502() {
    ends_in(ScriptedAgent::plain(|_, agent| async { drop(agent) }).await.address, 502).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_resets_at_once_is_a_502() {
    ends_in(ScriptedAgent::plain(|_, agent| async { agent.reset() }).await.address, 502).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_closes_within_the_handshake_is_a_502() {
    let agent = ScriptedAgent::plain(|_, mut agent| async move {
        agent.bytes(5).await;
        agent.say([22, 3, 3, 0, 90, 2, 0, 0, 86]).await;
        agent.finish().await;
        agent.rest().await;
    });
    ends_in(agent.await.address, 502).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_takes_the_request_and_closes_is_a_502() {
    says(b"", 502).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_takes_the_request_and_resets_is_a_502() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.reset();
    });
    ends_in(agent.await.address, 502).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_closes_within_its_head_is_a_502() {
    says(b"HTTP/1.1 200 OK\r\nContent-Le", 502).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_silent_after_the_request_is_a_504() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        hold(agent).await;
    });
    ends_in(agent.await.address, 504).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_within_its_head_is_a_504() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.say("HTTP/1.1 200 OK\r\nContent-Le").await;
        hold(agent).await;
    });
    ends_in(agent.await.address, 504).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_head_drips_is_a_504() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.say("HTTP/1.1 200 OK\r\nX: ").await;
        while agent.try_say("x").await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    ends_in(agent.await.address, 504).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_breaks_the_rules_is_a_502_and_none_of_it_is_passed_on() {
    const BAD: [&str; 12] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nleak",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nleak",
        "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nleak",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nleak",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: leak, chunked, gzip\r\n\r\nleak",
        "HTTP/1.1 200 OK\r\nleak : 1\r\n\r\nleak",
        "HTTP/1.1 200 OK\r\nX: leak\r\n folded\r\n\r\nleak",
        "HTTP/1.1 200 OK\r\nX: le\0ak\r\n\r\nleak",
        "HTTP/1.1 2000 OK\r\nX: leak\r\n\r\nleak",
        "HTTP/1.1 leak\r\n\r\n",
        "HTTP/2.0 200 leak\r\nContent-Length: 4\r\n\r\nleak",
        "220 leak ESMTP\r\n\r\n",
    ];
    let agent = ScriptedAgent::secure(|number, mut agent| async move {
        agent.head().await;
        agent.say(BAD[number % BAD.len()]).await;
        agent.rest().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &LIMITS).await;
    for bad in BAD {
        let answer = front.ask("GET /").await;
        assert_eq!(answer.status, 502, "{bad:?}");
        assert!(!answer.head.contains("leak") && !answer.text().contains("leak"), "{answer:?}");
    }
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_nobody_asked_for_is_a_502() {
    says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nleak", 502)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_to_something_else_than_was_asked_for_is_a_502() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n").await;
        agent.rest().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &LIMITS).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 502);
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_end_is_a_502() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.say("HTTP/1.1 200 OK\r\n").await;
        while agent.try_say("X: 0123456789abcdef0123456789abcdef0123456789abcdef\r\n").await {}
    });
    ends_in(agent.await.address, 502).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_interim_answers_without_end_do_not_keep_others_waiting() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        while agent.try_say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(100)).await {}
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &LIMITS).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("GET /", "")).await;
    let (mut heard, mut said) = client.split();
    let reader = tokio::spawn(async move { while heard.head().await.is_some() {} });
    for _ in 0..3 {
        front.answers().await;
    }
    // The client has had enough.
    tokio::io::AsyncWriteExt::shutdown(&mut said).await.unwrap();
    drop(said);
    timeout(PATIENCE, reader).await.unwrap().unwrap();
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_give_the_agent_no_more_time() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        while agent.try_say("HTTP/1.1 103 Early Hints\r\n\r\n").await {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &LIMITS).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("GET /", "Connection: close\r\n")).await;
    let began = Instant::now();
    let mut heads = Vec::new();
    while let Some(answer) = client.answer().await {
        heads.push(answer.status);
        assert!(began.elapsed() < LATE, "it goes on and on: {heads:?}");
    }
    assert!(heads.starts_with(&[103]) && heads.ends_with(&[504]), "{heads:?}");
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_gets_no_interim_answer() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        while agent.head().await.is_some() {
            agent.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
            agent.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &LIMITS).await;
    for (version, statuses) in [("HTTP/1.0", &[200][..]), ("HTTP/1.1", &[103, 200])] {
        let mut client = RawClient::secure(front.secure()).await;
        client.say(format!("GET /127.0.0.1/ {version}\r\nHost: p\r\n\r\n")).await;
        for status in statuses {
            assert_eq!(client.answer().await.expect("an answer").status, *status, "{version}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_resets_behind_its_101_cuts_the_session() {
    upgraded_then(RawClient::reset, End::Cut, "end_reason=agent-reset").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_without_close_notify_behind_its_101_is_not_called_a_clean_end() {
    upgraded_then(drop, End::Cut, "end_reason=agent-truncated").await;
}

/// An upgrade, one message from the client, `end` by the agent: how the client sees it, and the books.
async fn upgraded_then(end: fn(RawClient<Secure>), seen: End, booked: &str) {
    let agent = ScriptedAgent::secure(move |_, mut agent| async move {
        agent.head().await;
        agent
            .say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhi")
            .await;
        assert_eq!(agent.bytes(3).await, b"you");
        end(agent);
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--half-closed-timeout=1s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/ws")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    assert_eq!(client.bytes(2).await, b"hi");
    client.say("you").await;
    assert_eq!(client.rest().await, (Vec::new(), seen));
    drop(client);
    let line = front.access_line("GET /127.0.0.1/ws");
    assert!(line.contains(booked) && line.contains("to_agent=3 to_client=2"), "{line}");
    front.recovers().await;
}

/// The agent takes the request, says this and closes in order.
async fn says(bytes: &'static [u8], status: u16) {
    let agent = ScriptedAgent::secure(move |_, mut agent| async move {
        agent.head().await;
        agent.say(bytes).await;
        agent.finish().await;
        agent.rest().await;
    });
    ends_in(agent.await.address, status).await;
}

/// A request ends in `status`, over TLS as over plain HTTP, in time and in order, and leaves nothing behind.
async fn ends_in(agent: SocketAddr, status: u16) {
    let front = ProxyUnderTest::start(agent, &LIMITS).await;
    let began = Instant::now();
    let answer = front.ask("GET /x?token=leak").await;
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.whole && !answer.text().contains("leak"), "{answer:?}");
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("POST /x?token=leak", "Content-Length: 2\r\nConnection: close\r\n")).await;
    client.say("hi").await;
    assert_eq!(client.answer().await.expect("an answer").status, status);
    assert_eq!(client.rest().await, (Vec::new(), End::Clean));
    assert!(began.elapsed() < LATE, "{:?}", began.elapsed());
    drop(client);
    front.recovers().await;
    assert!(!front.proxy.log().contains("leak") && !front.proxy.output().contains("leak"));
}

/// A listener whose queue is full, so that the kernel drops every further SYN.
async fn deaf() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queue.push(stream.unwrap());
    }
    (listener, queue)
}

/// Reads nothing and says nothing until the agent ends.
async fn hold<S: Wire>(line: RawClient<S>) {
    std::future::pending::<()>().await;
    drop(line);
}
