//! The session resolver of Amazon DCV Connection Gateway, both roles: who has a session is asked for, and answered.
// An unwrap that fails is a failed test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::certificates::{Authority, KeyKind};
use harness::name_server::NameServer;
use harness::ports::unused_address;
use harness::process::eventually;
use harness::proxy::{self, Proxy};
use harness::raw_client::{Answer, RawClient, soon};
use harness::scripted_agent::ScriptedAgent;
use harness::stand_in::{Death, StandIn};
use serde_json::{Value, json};

/// What a stand-in of a resolver was asked: the first lines of requests.
type Asked = Arc<Mutex<Vec<String>>>;

/// A stand-in of a session resolver, by the documented protocol: `says` gives status and body for a session.
fn answer(head: &str, asked: &Asked, says: impl Fn(&str) -> (u16, String)) -> String {
    let line = head.lines().next().unwrap().to_owned();
    assert!(head.to_ascii_lowercase().contains("accept: application/json"), "{head}");
    let session = line.split("sessionId=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    asked.lock().unwrap().push(line);
    let (status, body) = says(&session);
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn resolver(
    says: impl Fn(&str) -> (u16, String) + Send + Sync + Clone + 'static,
) -> (ScriptedAgent, Asked) {
    let asked = Asked::default();
    let noted = asked.clone();
    let stand_in = ScriptedAgent::plain(move |_, mut line| {
        let (asked, says) = (noted.clone(), says.clone());
        async move {
            if let Some(head) = line.head().await {
                line.say(answer(&head, &asked, says)).await;
            }
        }
    });
    (stand_in.await, asked)
}

/// The documented answer.
fn place(session: &str, endpoint: &str, port: u16, path: &str) -> (u16, String) {
    let place = json!({
        "SessionId": session, "TransportProtocol": "HTTP", "DcvServerEndpoint": endpoint, "Port": port, "WebUrlPath": path
    });
    (200, place.to_string())
}

fn proxy(port: u16, url: &str, flags: &[&str]) -> Proxy {
    let (port, url) = (format!("--agent-port={port}"), format!("--session-resolver={url}"));
    let fixed = ["--listen-plain=127.0.0.1:0", "--agents=127.111.0.0/16", "--agent-tls=off", &*port, &*url];
    Proxy::start(&[&fixed[..], flags].concat())
}

async fn ask(proxy: SocketAddr, path: &str) -> Answer {
    let mut client = RawClient::plain(proxy).await;
    client.say(format!("GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n")).await;
    client.answer().await.unwrap()
}

async fn agent(last: u8) -> StandIn {
    StandIn::start(format!("desk{last}"), SocketAddr::from(([127, 111, 0, last], 0))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_leads_to_its_agent_and_is_asked_for_once() {
    let agent = agent(1).await;
    let port = agent.address.port();
    let (resolver, asked) = resolver(move |session| place(session, "127.111.0.1", port, "/")).await;
    let proxy = proxy(port, &format!("http://{}", resolver.address), &[]);
    let users = (0..20).map(|number| {
        let at = proxy.address();
        tokio::spawn(async move { ask(at, &format!("/s/my-session_1/a%2Fb?{number}")).await.text() })
    });
    for (number, user) in users.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(user.await.unwrap(), format!("desk1 /a%2Fb?{number}"));
    }
    let moved = ask(proxy.address(), "/s/my-session_1?x=1").await;
    assert_eq!((moved.status, moved.header("location")), (308, Some("/s/my-session_1/?x=1")));
    let mut session = RawClient::plain(proxy.address()).await;
    session
        .say(
            "GET /s/my-session_1/ws HTTP/1.1\r\nHost: proxy\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
    assert!(session.head().await.unwrap().starts_with("HTTP/1.1 101"));
    session.say("hello").await;
    assert_eq!(soon(session.bytes(5)).await, b"hello");
    let asked = asked.lock().unwrap();
    let line =
        "POST /resolveSession?sessionId=my-session_1&transport=HTTP&clientIpAddress=127.0.0.1 HTTP/1.1";
    assert_eq!(*asked, [line]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_before_paths_at_the_agent_is_put_there_and_taken_away_again() {
    let agent = ScriptedAgent::plain(|_, mut line| async move {
        while let Some(head) = line.head().await {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let headers = "Location: /my/desk/login?x\r\nSet-Cookie: a=b; Path=/my/desk/";
            line.say(format!("HTTP/1.1 200 OK\r\n{headers}\r\nContent-Length: {}\r\n\r\n{path}", path.len()))
                .await;
        }
    })
    .await;
    let port = agent.address.port();
    let (resolver, _) = resolver(move |session| place(session, "127.0.0.1", port, "/my/desk/")).await;
    let flags = ["--agents=127.0.0.1/32"];
    let proxy = proxy(port, &format!("http://{}/base/", resolver.address), &flags);
    let answer = ask(proxy.address(), "/s/a/x?y").await;
    assert_eq!((answer.status, answer.text()), (200, "/my/desk/x?y".to_owned()));
    assert_eq!(answer.header("location"), Some("/s/a/login?x"));
    assert_eq!(answer.header("set-cookie"), Some("a=b; Path=/s/a/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_not_be_led_to_a_session_is_told_why() {
    let agent = agent(3).await;
    let port = agent.address.port();
    let (resolver, asked) = resolver(move |session| match session {
        "unknown" => (404, String::new()),
        "elsewhere" => place(session, "10.9.9.9", port, "/"),
        "otherport" => place(session, "127.111.0.3", 22, "/"),
        "badpath" => place(session, "127.111.0.3", port, "//evil.example"),
        "noname" => place(session, "no such host", port, "/"),
        "broken" => (200, "{".to_owned()),
        "portless" => (200, json!({"DcvServerEndpoint": "127.111.0.3", "Port": "x"}).to_string()),
        "failing" => (500, String::new()),
        "endless" => (200, "x".repeat(1 << 20)),
        "text" => (200, json!({"DcvServerEndpoint": "127.111.0.3", "Port": port.to_string()}).to_string()),
        _ => unreachable!("{session}"),
    })
    .await;
    let proxy = proxy(port, &format!("http://{}", resolver.address), &[]);
    for (session, status, says) in [
        ("unknown", 404, "There is no session unknown."),
        ("elsewhere", 403, "none of the agents this proxy serves"),
        ("otherport", 403, "none of the agents this proxy serves"),
        ("badpath", 502, "WebUrlPath that is no path"),
        ("noname", 502, "is not found"),
        ("broken", 502, "its answer can't be used"),
        ("portless", 502, "its answer names no port"),
        ("failing", 502, "it answers with 500"),
        ("endless", 502, "its answer does not come whole"),
        ("text", 200, "desk3 /x"),
    ] {
        let answer = ask(proxy.address(), &format!("/s/{session}/x")).await;
        assert_eq!(answer.status, status, "{session}: {}", answer.text());
        assert!(answer.text().contains(says), "{session}: {}", answer.text());
    }
    let count = asked.lock().unwrap().len();
    // What can be no session's id is not asked for.
    for id in ["a%20b", "a&b=c", "a;b", &"a".repeat(129), ""] {
        assert_eq!(ask(proxy.address(), &format!("/s/{id}/x")).await.status, 404, "{id}");
    }
    assert_eq!(asked.lock().unwrap().len(), count);
    drop(resolver);
    let answer = ask(proxy.address(), "/s/new/x").await;
    assert_eq!(
        (answer.status, answer.text().contains("it can't be reached: connection refused")),
        (502, true)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_that_says_nothing_is_not_waited_for_longer_than_clients_wait() {
    let silent = ScriptedAgent::plain(|_, line| async move {
        let _line = line;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = proxy(8443, &format!("http://{}", silent.address), &[]);
    let answer = tokio::time::timeout(Duration::from_secs(8), ask(proxy.address(), "/s/a/x")).await.unwrap();
    assert_eq!((answer.status, answer.text().contains("it does not answer in time")), (502, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_is_verified_and_hosts_are_found_by_their_names() {
    let agent = agent(4).await;
    let port = agent.address.port();
    let authority = Authority::new("resolvers");
    let identity = authority.issue(KeyKind::Ecdsa, &["resolver.example.com"]);
    let asked = Asked::default();
    let noted = asked.clone();
    let resolver = ScriptedAgent::secure_as(&identity, move |_, mut line| {
        let asked = noted.clone();
        async move {
            if let Some(head) = line.head().await {
                let says = |session: &str| place(session, "desk4.example.com", port, "/");
                line.say(answer(&head, &asked, says)).await;
            }
        }
    })
    .await;
    let names = NameServer::start(60).await;
    names.set_addresses("resolver.example.com", &["127.0.0.1"]);
    names.set_addresses("desk4.example.com", &["10.0.0.1", "127.111.0.4"]);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, authority.cert_pem()).unwrap();
    let other = folder.path().join("other.pem");
    fs::write(&other, Authority::new("others").cert_pem()).unwrap();
    let url = format!("https://resolver.example.com:{}", resolver.address.port());
    let server = format!("--dns-server={}", names.address);
    let flag = format!("--session-resolver-ca={}", ca.display());
    let good = proxy(port, &url, &[&*server, &*flag]);
    assert_eq!(ask(good.address(), "/s/a/x").await.text(), "desk4 /x");
    let flag = format!("--session-resolver-ca={}", other.display());
    let bad = proxy(port, &url, &[&*server, &*flag]);
    let answer = ask(bad.address(), "/s/a/x").await;
    assert_eq!((answer.status, answer.text().contains("TLS to it fails")), (502, true), "{}", answer.text());
    assert_eq!(asked.lock().unwrap().len(), 1);
    let says = |flags: &[&str]| {
        let output = Command::new(proxy::binary()).arg("check").args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(says(&["--session-resolver=https://x"]).contains("needs --session-resolver-ca"));
    fs::write(&other, "no certificate").unwrap();
    assert!(says(&["--session-resolver=https://x", &flag]).contains("--session-resolver-ca"));
    for url in ["x", "ftp://x", "http://", "http://x?y", "http://a@x"] {
        assert!(says(&[&format!("--session-resolver={url}")]).contains("write http://HOST"), "{url}");
    }
}

/// The answer of a resolver, as a gateway asks.
async fn resolve(at: SocketAddr, query: &str) -> (u16, Value) {
    try_to_resolve(at, query).await.expect("an answer")
}

/// The same, where a connection may be closed without one.
async fn try_to_resolve(at: SocketAddr, query: &str) -> Option<(u16, Value)> {
    let mut client = RawClient::plain(at).await;
    client
        .say(format!(
            "POST /resolveSession?{query} HTTP/1.1\r\nHost: resolver\r\naccept: application/json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ))
        .await;
    let answer = client.answer().await?;
    Some((answer.status, serde_json::from_str(&answer.text()).unwrap()))
}

/// The answer right after an upgrade: a question that the former process took last goes with it, and a gateway asks again.
async fn resolve_until_answered(at: SocketAddr, query: &str) -> (u16, Value) {
    for _ in 0..10 {
        if let Some(answer) = try_to_resolve(at, query).await {
            return answer;
        }
    }
    panic!("no answer to ten questions")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_beside_the_proxy_is_told_where_agents_are() {
    let mut agents = [agent(5).await, agent(6).await];
    let ports = format!("--agent-ports={},{}", agents[0].address.port(), agents[1].address.port());
    let folder = tempfile::tempdir().unwrap();
    let text: String = agents.iter().map(|agent| agent.entry("")).collect();
    fs::write(folder.path().join("agents.toml"), text).unwrap();
    let file = format!("--agents-file={}", folder.path().join("agents.toml").display());
    let control = folder.path().join("control");
    let at = unused_address();
    let (control_flag, listen) =
        (format!("--control={}", control.display()), format!("--resolver-listen={at}"));
    let probes = ["--probe=http", "--probe-interval=200ms", "--probe-jitter=20ms"];
    let fixed = ["--agents=127.111.0.0/16", "--agent-tls=off", &*ports, &*file, &*control_flag, &*listen];
    let first = Proxy::start(&[&["--listen-plain=127.0.0.1:0"], &fixed[..], &probes].concat());
    eventually("it is answered there", || std::net::TcpStream::connect(at).ok());
    let port = agents[0].address.port();
    let query = "sessionId=desk5&transport=HTTP&clientIpAddress=192.0.2.1";
    let (status, place) = resolve(at, query).await;
    let wanted = json!({
        "SessionId": "desk5", "TransportProtocol": "HTTP", "DcvServerEndpoint": "127.111.0.5", "Port": port, "WebUrlPath": "/"
    });
    assert_eq!((status, place), (200, wanted));
    let (status, place) = resolve(at, "sessionId=desk6%3Aconsole&transport=QUIC").await;
    assert_eq!(
        (status, &place["SessionId"], &place["TransportProtocol"]),
        (200, &json!("console"), &json!("QUIC"))
    );
    assert_eq!(resolve(at, "sessionId=desk7&transport=HTTP").await.0, 404);
    assert_eq!(resolve(at, "transport=HTTP").await.0, 400);
    // Another proxy asks this one.
    let flags = ["--agents=127.111.0.0/16", &*ports];
    let other = proxy(8443, &format!("http://{at}"), &flags);
    assert_eq!(ask(other.address(), "/s/desk5/x").await.text(), "desk5 /x");
    assert_eq!(ask(other.address(), "/s/desk6:console/x").await.text(), "desk6 /x");
    assert_eq!(ask(other.address(), "/s/desk7/x").await.status, 404);
    // One that takes no users, or is dead, is no answer.
    let mut operate = Command::new(proxy::binary());
    assert!(operate.args(["drain", "desk5", "--control"]).arg(&control).status().unwrap().success());
    agents[1].die(Death::Refuses).await;
    for query in [query, "sessionId=desk6:console&transport=HTTP"] {
        let mut status = 200;
        for _ in 0..200 {
            status = resolve(at, query).await.0;
            if status == 404 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(status, 404, "{query}");
    }
    // The next process answers at the same address.
    let mut operate = Command::new(proxy::binary());
    assert!(operate.args(["upgrade", "--control"]).arg(&control).status().unwrap().success());
    assert_eq!(resolve_until_answered(at, query).await.0, 404);
    let mut operate = Command::new(proxy::binary());
    assert!(operate.args(["undrain", "desk5", "--control"]).arg(&control).status().unwrap().success());
    let mut status = 404;
    for _ in 0..200 {
        status = resolve(at, query).await.0;
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status, 200);
    drop(first);
}

/// Without a resolver the paths are the default agent's as ever.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_resolver_the_paths_are_an_agents_own() {
    let agent = agent(8).await;
    let port = format!("--agent-port={}", agent.address.port());
    let flags = [
        "--listen-plain=127.0.0.1:0",
        "--agent-tls=off",
        "--agents=127.111.0.0/16",
        "--default-agent=127.111.0.8",
        &*port,
    ];
    let proxy = Proxy::start(&flags);
    assert_eq!(ask(proxy.address(), "/s/a/x").await.text(), "desk8 /s/a/x");
}
