//! Agent connections that were kept and have gone stale, and agents that come back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::agent::{Agent, AgentConfig};
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{RawClient, Secure};
use harness::scripted_agent::ScriptedAgent;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// How a kept connection ends on its second request.
#[derive(Clone, Copy)]
enum Stale {
    Closes,
    Cuts,
    Resets,
}

/// The first connection answers one request and ends on the next one; the others answer all. Gives the request
/// lines that arrived.
async fn stale(how: Stale) -> (ScriptedAgent, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let book = seen.clone();
    let agent = ScriptedAgent::secure(move |number, mut agent: RawClient<Secure>| {
        let book = book.clone();
        async move {
            let mut answered = 0;
            while let Some(head) = agent.head().await {
                book.lock().unwrap().push(head.lines().next().unwrap().to_owned());
                if number == 0 && answered == 1 {
                    match how {
                        Stale::Closes => agent.finish().await,
                        Stale::Cuts => {}
                        Stale::Resets => agent.reset(),
                    }
                    return;
                }
                agent.say(OK).await;
                answered += 1;
            }
        }
    });
    (agent.await, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_on_a_connection_that_has_gone_stale_is_sent_once_more() {
    for how in [Stale::Closes, Stale::Cuts, Stale::Resets] {
        let (agent, seen) = stale(how).await;
        let front = ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=1s"]).await;
        assert_eq!(front.ask("GET /first").await.status, 200);
        let answer = front.ask("GET /second").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        let requests = ["GET /first HTTP/1.1", "GET /second HTTP/1.1", "GET /second HTTP/1.1"];
        assert_eq!(*seen.lock().unwrap(), requests);
        assert_eq!(agent.accepted(), 2);
        front.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_on_a_connection_that_has_gone_stale_is_a_502_and_is_never_sent_twice() {
    for how in [Stale::Closes, Stale::Cuts, Stale::Resets] {
        let (agent, seen) = stale(how).await;
        let front = ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=1s"]).await;
        assert_eq!(front.ask("GET /first").await.status, 200);
        assert_eq!(front.ask("POST /second").await.status, 502);
        assert_eq!(*seen.lock().unwrap(), ["GET /first HTTP/1.1", "POST /second HTTP/1.1"]);
        assert_eq!(agent.accepted(), 1);
        front.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_not_sent_once_more_where_an_answer_has_begun() {
    let agent = ScriptedAgent::secure(|number, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say(OK).await;
        agent.head().await;
        if number == 0 {
            agent.say("HTTP/1.1 2").await;
        } else {
            agent.say(OK).await;
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    assert_eq!(front.ask("GET /").await.status, 200);
    assert_eq!(front.ask("GET /").await.status, 502);
    assert_eq!(agent.accepted(), 1);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_not_sent_once_more_behind_an_interim_answer() {
    let agent = ScriptedAgent::secure(|number, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say(OK).await;
        agent.head().await;
        agent.say(if number == 0 { "HTTP/1.1 103 Early Hints\r\n\r\n" } else { OK }).await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    assert_eq!(front.ask("GET /").await.status, 200);
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.request("DELETE /", "")).await;
    assert_eq!(client.answer().await.unwrap().status, 103);
    assert_eq!(client.answer().await.unwrap().status, 502);
    assert_eq!(agent.accepted(), 1);
    drop(client);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_its_agent_has_closed_is_not_used_again() {
    let agent = ScriptedAgent::secure(|_, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say(OK).await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=60s"]).await;
    assert_eq!(front.ask("GET /").await.status, 200);
    // The proxy notices without being asked anything.
    front.releases();
    assert_eq!(front.ask("POST /").await.status, 200);
    assert_eq!(agent.accepted(), 2);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_on_which_its_agent_speaks_unasked_is_not_used_again() {
    let agent = ScriptedAgent::secure(|_, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say(OK).await;
        agent.say("HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nleak").await;
        agent.rest().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=60s"]).await;
    assert_eq!(front.ask("GET /").await.text(), "ok");
    front.releases();
    assert_eq!(front.ask("GET /").await.text(), "ok");
    assert_eq!(agent.accepted(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_agent_connection_is_given_up_after_its_time() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=1s"]).await;
    for _ in 0..3 {
        assert_eq!(front.ask("GET /x").await.status, 200);
    }
    assert_eq!(agent.seen.connections(), 1);
    front.releases();
    assert_eq!(front.ask("GET /x").await.status, 200);
    assert_eq!((agent.seen.connections(), agent.seen.resumed()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_restarted_is_reached_again() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front =
        ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=60s", "--connect-timeout=1000ms"])
            .await;
    assert_eq!(front.ask("GET /x").await.status, 200);
    let listen = agent.address;
    drop(agent);
    eventually("the port is closed", || std::net::TcpStream::connect(listen).is_err().then_some(()));
    assert_eq!(front.ask("GET /x").await.status, 502);
    let agent = Agent::start(AgentConfig { listen, ..AgentConfig::default() }).await.unwrap();
    assert_eq!(front.ask("POST /x").await.status, 200);
    assert_eq!(agent.seen.handshakes(), 1);
}

/// The connections of an agent that says so with each answer and closes none: a POST, a pause, a POST, and a third.
async fn connections_used(said: &'static str, pause: Duration) -> usize {
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| async move {
        while agent.head().await.is_some() {
            agent.say(format!("HTTP/1.1 200 OK\r\n{said}Content-Length: 2\r\n\r\nok")).await;
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-keepalive-timeout=600s"]).await;
    assert_eq!(front.ask("POST /").await.status, 200);
    tokio::time::sleep(pause).await;
    assert_eq!(front.ask("POST /").await.status, 200);
    assert_eq!(front.ask("POST /").await.status, 200);
    agent.accepted()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_connection_is_not_used_for_longer_than_the_agent_has_promised() {
    // The agent counts from when it answered: what is sent at the very end of its time comes too late.
    const OVER: Duration = Duration::from_millis(600);
    for said in ["Keep-Alive: timeout=1\r\n", "KEEP-ALIVE: max=100 , Timeout = \"1\"\r\n"] {
        assert!(connections_used(said, OVER).await >= 2, "{said}");
    }
    assert_eq!(connections_used("Keep-Alive: timeout=0\r\n", Duration::ZERO).await, 3);
    for said in ["Keep-Alive: timeout=600, max=100\r\n", "Keep-Alive: timeout=\r\n", ""] {
        assert_eq!(connections_used(said, OVER).await, 1, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_connection_is_not_used_for_more_requests_than_the_agent_has_promised() {
    assert_eq!(connections_used("Keep-Alive: timeout=600, max=0\r\n", Duration::ZERO).await, 3);
    let agent = ScriptedAgent::secure(move |_, mut agent: RawClient<Secure>| async move {
        agent.head().await;
        agent.say("HTTP/1.1 200 OK\r\nKeep-Alive: max=1\r\nContent-Length: 0\r\n\r\n").await;
        while agent.head().await.is_some() {
            agent.say(OK).await;
        }
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    for connections in [1, 1, 2, 2] {
        assert_eq!(front.ask("POST /").await.status, 200);
        assert_eq!(agent.accepted(), connections);
    }
}
