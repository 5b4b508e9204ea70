//! Bodies that break off, lie about their length, or meet an answer on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{RawClient, Secure};
use harness::scripted_agent::ScriptedAgent;
use tokio::io::AsyncWriteExt;

const LATE: Duration = Duration::from_secs(20);
const UPLOAD: usize = 32 << 20;

/// The agent takes the head, says this, and ends with `close_notify` or without.
async fn agent(says: &'static str, clean: bool) -> ScriptedAgent {
    ScriptedAgent::secure(move |_, mut agent| async move {
        agent.head().await;
        agent.say(says).await;
        if clean {
            agent.finish().await;
            agent.rest().await;
        }
    })
    .await
}

/// What a client over TLS gets of it: the body, and whether it looks whole.
async fn seen(says: &'static str, clean: bool) -> (String, bool) {
    let agent = agent(says, clean).await;
    let front = ProxyUnderTest::start(agent.address, &["--response-timeout=2s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("GET /", "")).await;
    let answer = client.answer().await.expect("a head");
    assert_eq!(answer.status, 200);
    drop(client);
    front.recovers().await;
    (answer.text(), answer.whole)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_shorter_than_its_length_is_seen_to_be_cut() {
    for clean in [true, false] {
        let seen = seen("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", clean).await;
        assert_eq!(seen, ("short".into(), false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_behind_a_body_are_not_passed_on() {
    let seen = seen("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nleak", true).await;
    assert_eq!(seen, ("ok".into(), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_break_the_rules_are_seen_to_be_cut() {
    for bad in [
        "zz\r\nleak",
        "-1\r\nleak",
        "0x5\r\nleak!",
        "5\r\nhellomore",
        "ffffffffffffffffff\r\nleak",
        "5 leak\r\nhello",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n{bad}");
        let (text, whole) = seen(answer.leak(), true).await;
        assert!(!whole && !text.contains("leak"), "{bad:?}: {text:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_break_off_are_seen_to_be_cut() {
    for clean in [true, false] {
        let seen =
            seen("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n9\r\nbe", clean).await;
        assert_eq!(seen, ("wellbe".into(), false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_with_the_connection_is_whole_only_after_close_notify() {
    for clean in [true, false] {
        assert_eq!(seen("HTTP/1.1 200 OK\r\n\r\nall of it", clean).await, ("all of it".into(), clean));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_pauses_in_its_body_for_too_long_is_cut_off() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort").await;
        agent.rest().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--response-timeout=1s"]).await;
    let began = Instant::now();
    let answer = front.ask("GET /").await;
    assert!(!answer.whole && answer.text() == "short" && began.elapsed() < LATE);
    assert!(front.access_line("GET /127.0.0.1/").contains("end_reason=agent-timed-out"));
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_413_is_passed_on_while_the_client_still_sends() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.say("HTTP/1.1 413 Too Much\r\nConnection: close\r\nContent-Length: 4\r\n\r\nless").await;
        agent.rest().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("POST /", &format!("Content-Length: {UPLOAD}\r\n"))).await;
    client.say(vec![0; 1000]).await;
    let answer = client.answer().await.expect("an answer before the upload's end");
    assert_eq!((answer.status, answer.text().as_str(), answer.whole), (413, "less", true));
    assert_eq!(answer.header("connection"), Some("close"));
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_413_reaches_a_client_that_sends_on_without_listening() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.say("HTTP/1.1 413 Too Much\r\nConnection: close\r\nContent-Length: 4\r\n\r\nless").await;
        agent.finish().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("POST /", "Content-Length: 500000\r\n")).await;
    client.say(vec![0; 500_000]).await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.whole), (413, true));
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_200_with_keep_alive_does_not_end_the_upload() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let counter = arrived.clone();
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| {
        let counter = counter.clone();
        async move {
            while agent.head().await.is_some() {
                agent.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine").await;
                counter.fetch_add(agent.bytes(UPLOAD).await.len(), Ordering::Relaxed);
            }
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=1s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    for upload in 1..=2 {
        client.say(front.request("POST /", &format!("Content-Length: {UPLOAD}\r\n"))).await;
        client.say([0; 1000]).await;
        let answer = client.answer().await.expect("an answer before the upload's end");
        assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
        client.say(vec![0; UPLOAD - 1000]).await;
        eventually("the agent has the upload", || {
            (arrived.load(Ordering::Relaxed) == upload * UPLOAD).then_some(())
        });
    }
    // A connection that was answered early serves nobody else: see the smuggled request in `desync`.
    assert_eq!(agent.accepted(), 2);
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_reading_an_upload_is_a_504() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        std::future::pending::<()>().await;
        drop(agent);
    });
    let agent = agent.await;
    let front =
        ProxyUnderTest::start(agent.address, &["--body-idle-timeout=1s", "--response-timeout=1s"]).await;
    let began = Instant::now();
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("POST /", &format!("Content-Length: {UPLOAD}\r\n"))).await;
    let (mut heard, mut said) = client.split();
    let upload = tokio::spawn(async move {
        // It is not to arrive.
        let _ = said.write_all(&vec![0; UPLOAD]).await;
    });
    assert_eq!(heard.answer().await.expect("an answer").status, 504);
    assert!(began.elapsed() < LATE);
    drop(heard);
    upload.abort();
    let _ = upload.await;
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_resets_during_an_upload_is_a_502() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.bytes(100_000).await;
        agent.reset();
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("POST /", &format!("Content-Length: {UPLOAD}\r\n"))).await;
    client.say(vec![0; 200_000]).await;
    assert_eq!(client.answer().await.expect("an answer").status, 502);
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_over_the_limit_is_a_413_also_in_chunks() {
    let agent = ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.rest().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--body-max=1000B"]).await;
    for (framing, body) in [
        ("Content-Length: 1001\r\n", ""),
        ("Transfer-Encoding: chunked\r\n", "3e8\r\n"),
        ("Transfer-Encoding: chunked\r\n", "3e9\r\n"),
    ] {
        let mut client = RawClient::secure(front.secure()).await;
        client.say(front.request("POST /", framing)).await;
        client.say(body).await;
        if body == "3e8\r\n" {
            client.say([b'x'; 1000]).await;
            client.say("\r\n1\r\nx\r\n").await;
        }
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.header("connection")), (413, Some("close")), "{body:?}");
    }
    front.recovers().await;
}

/// An agent that says 100 after so many milliseconds, or never, and takes a body of 5 bytes.
async fn hesitant(after: Option<u64>) -> ScriptedAgent {
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        let Some(after) = after else {
            agent.rest().await;
            return;
        };
        tokio::time::sleep(Duration::from_millis(after)).await;
        agent.say("HTTP/1.1 100 Continue\r\n\r\n").await;
        let body = agent.bytes(5).await;
        agent.say(["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".as_bytes(), &body].concat()).await;
    });
    agent.await
}

const EXPECTING: &str = "Expect: 100-continue\r\nContent-Length: 5\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_a_100_is_not_blamed_for_its_agents_hesitation() {
    let agent = hesitant(Some(2500)).await;
    let front =
        ProxyUnderTest::start(agent.address, &["--body-idle-timeout=1s", "--response-timeout=30s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("POST /", EXPECTING)).await;
    assert_eq!(client.answer().await.unwrap().status, 100);
    client.say("hello").await;
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_let_wait_for_its_100_has_all_the_time_for_its_body() {
    let agent = hesitant(Some(2000)).await;
    let front =
        ProxyUnderTest::start(agent.address, &["--body-idle-timeout=30s", "--response-timeout=3s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("POST /", EXPECTING)).await;
    assert_eq!(client.answer().await.unwrap().status, 100);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    client.say("hello").await;
    let answer = client.answer().await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_a_100_in_vain_gets_a_504() {
    let agent = hesitant(None).await;
    let front =
        ProxyUnderTest::start(agent.address, &["--body-idle-timeout=1s", "--response-timeout=2s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    let began = Instant::now();
    client.say(front.request("POST /", EXPECTING)).await;
    assert_eq!(client.answer().await.unwrap().status, 504);
    assert!(began.elapsed() < LATE);
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_told_to_continue_and_does_not_gets_a_408() {
    let agent = hesitant(Some(0)).await;
    let front =
        ProxyUnderTest::start(agent.address, &["--body-idle-timeout=1s", "--response-timeout=2s"]).await;
    let mut client = RawClient::secure(front.secure()).await;
    let began = Instant::now();
    client.say(front.request("POST /", EXPECTING)).await;
    assert_eq!(client.answer().await.unwrap().status, 100);
    assert_eq!(client.answer().await.unwrap().status, 408);
    assert!(began.elapsed() < LATE);
    drop(client);
    front.recovers().await;
}
