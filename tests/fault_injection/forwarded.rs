//! Whom a trusted proxy in front speaks for, request by request: agents, logs, rules and waits all go by it, and by nobody
//! else's word.

use std::io::Write;

use harness::raw_client::{Answer, RawClient, Wire};
use tempfile::NamedTempFile;

use super::admission::{connect, front, logs, stranger};

/// Where [`stranger`] comes from.
const TRUST: &str = "--trust-forwarded=127.0.0.9/32";

fn users(line: &str) -> (NamedTempFile, String) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(line.as_bytes()).unwrap();
    let flag = format!("--htpasswd={}", file.path().display());
    (file, flag)
}

async fn answer<S: Wire>(client: &mut RawClient<S>, request: &str) -> Answer {
    client.say(request).await;
    client.answer().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_behind_a_trusted_proxy_is_the_client_everywhere() {
    let (agent, front) = front(&[TRUST, "--trust-forwarded=10.0.0.0/24"]).await;
    let ask = |path: &str, said: &str| {
        front.request(
            &format!("GET {path}"),
            &format!("X-Forwarded-For: {said}\r\nX-Forwarded-Proto: https\r\n"),
        )
    };
    // One connection of the proxy in front has requests of many.
    let mut proxy = stranger(&front).await;
    for (path, said, client) in [
        ("/x?a", "192.0.2.7", "192.0.2.7"),
        ("/x?b", "6.6.6.6, 192.0.2.8:5678, 10.0.0.9", "192.0.2.8"),
        ("/x?c", "6.6.6.6, [2001:db8::7]:80", "2001:db8::7"),
        ("/x?d", "192.0.2.8, unknown", "127.0.0.9"),
        ("/x?e", "", "127.0.0.9"),
    ] {
        assert_eq!(answer(&mut proxy, &ask(path, said)).await.status, 200);
        let seen = agent.seen.requests();
        let told = |name| seen.last().unwrap().header(name);
        assert_eq!(told("x-real-ip"), Some(client), "{said}");
        let chain = if said.is_empty() { "127.0.0.9".to_owned() } else { format!("{said}, 127.0.0.9") };
        assert_eq!(told("x-forwarded-for"), Some(&*chain));
        assert_eq!(told("x-forwarded-proto"), Some("https"), "{said}");
        let line = front.access_line(&format!("GET /127.0.0.1{path} "));
        assert!(line.starts_with(&format!("{client} - ")), "{line}");
    }
    // What it refuses by itself is logged so too.
    let refused = "GET /10.9.9.9/x HTTP/1.1\r\nHost: p\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n";
    assert_eq!(answer(&mut proxy, refused).await.status, 403);
    assert!(front.access_line("/10.9.9.9/x").starts_with("192.0.2.9 - "));
    logs(&front, "client=192.0.2.9 agent=10.9.9.9 reason=agent_not_allowed", 1);
    // Anybody else speaks for themselves alone.
    let mut client = RawClient::plain(front.plain()).await;
    assert_eq!(answer(&mut client, &ask("/x?f", "192.0.2.7")).await.status, 200);
    let seen = agent.seen.requests();
    let told =
        ["x-real-ip", "x-forwarded-for", "x-forwarded-proto"].map(|name| seen.last().unwrap().header(name));
    assert_eq!(told, [Some("127.0.0.1"), Some("127.0.0.1"), Some("http")]);
    assert!(front.access_line("GET /127.0.0.1/x?f ").starts_with("127.0.0.1 - "));
    drop((proxy, client));
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_hold_for_who_is_behind_a_trusted_proxy() {
    let denied = ["--deny-clients=192.0.2.64/26"];
    let allowed = ["--allow-clients=192.0.2.0/26", "--allow-clients=127.0.0.0/8"];
    for rules in [&denied[..], &allowed] {
        let (agent, front) = front(&[&[TRUST], rules].concat()).await;
        let mut proxy = stranger(&front).await;
        for (path, client, status) in [
            ("/127.0.0.1/x", "192.0.2.7", 200),
            ("/127.0.0.1/x", "192.0.2.66", 403),
            ("/health", "192.0.2.66", 403),
            ("/127.0.0.1/x", "192.0.2.7, ::ffff:192.0.2.66", 403),
            ("/127.0.0.1/x", "192.0.2.66, 192.0.2.7", 200),
            ("/health", "192.0.2.7", 200),
        ] {
            let ask = format!("GET {path} HTTP/1.1\r\nHost: p\r\nX-Forwarded-For: {client}\r\n\r\n");
            assert_eq!(answer(&mut proxy, &ask).await.status, status, "{rules:?} {path} {client}");
        }
        assert_eq!(agent.seen.requests().len(), 2);
        logs(&front, "client=192.0.2.66 reason=client_denied", 2);
        // From others it is no more than a line.
        let mut client = RawClient::plain(front.plain()).await;
        let ask = front.request("GET /x", "X-Forwarded-For: 192.0.2.66\r\n");
        assert_eq!(answer(&mut client, &ask).await.status, 200);
        drop((proxy, client));
        front.recovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_behind_a_trusted_proxy_waits_alone() {
    let (_file, users) = users(&format!("ann:{}\n", bcrypt::hash("one", 4).unwrap()));
    let (_agent, front) = front(&[TRUST, &users]).await;
    let mut proxy = stranger(&front).await;
    let (right, wrong) = ("YW5uOm9uZQ==", "YW5uOnR3bw==");
    let ask = |client: &str, shown: &str| {
        let said = format!("X-Forwarded-For: {client}\r\nAuthorization: Basic {shown}\r\n");
        front.request("GET /x", &said)
    };
    // What it says before its own address makes it no other client.
    for guess in 0..5 {
        assert_eq!(
            answer(&mut proxy, &ask(&format!("192.0.2.1{guess}, 192.0.2.7"), wrong)).await.status,
            401
        );
    }
    assert_eq!(answer(&mut proxy, &ask("192.0.2.8", right)).await.status, 200);
    assert_eq!(answer(&mut proxy, &ask("192.0.2.7", right)).await.status, 429);
    // It has not made others wait by naming them, nor could those who speak for themselves.
    let mut client = RawClient::plain(front.plain()).await;
    for _ in 0..5 {
        assert_eq!(answer(&mut client, &ask("192.0.2.9", wrong)).await.status, 401);
    }
    assert_eq!(answer(&mut proxy, &ask("192.0.2.9", right)).await.status, 200);
    drop((proxy, client));
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_held_to_https_by_how_they_came_to_a_trusted_proxy() {
    let (_agent, front) = front(&[TRUST, "--hsts-max-age=77s"]).await;
    let hsts = |answer: &Answer| answer.header("strict-transport-security").map(str::to_owned);
    for (said, is_held) in [("https", true), ("http", false), ("https, http", false), ("", false)] {
        for path in ["/127.0.0.1/x", "/health", "/127.0.0.1", "/10.9.9.9/x"] {
            let ask = format!("GET {path} HTTP/1.1\r\nHost: p\r\nX-Forwarded-Proto: {said}\r\n\r\n");
            let trusted = answer(&mut stranger(&front).await, &ask).await;
            assert_eq!(hsts(&trusted).is_some(), is_held, "{said} {path}");
            let other = answer(&mut RawClient::plain(front.plain()).await, &ask).await;
            assert_eq!(hsts(&other), None, "{said} {path}");
        }
    }
    // A redirect names neither scheme nor host.
    let ask = "GET /127.0.0.1?q HTTP/1.1\r\nHost: p\r\nX-Forwarded-Proto: https\r\n\r\n";
    assert_eq!(answer(&mut stranger(&front).await, ask).await.header("location"), Some("/127.0.0.1/?q"));
    front.recovers().await;
}

/// Behind a balancer, all connections come from where clients may come from.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_way_to_whom_a_balancer_names_before_that_client_is_let_in() {
    const LET_IN: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\n";
    const DENIED: &str = "PROXY TCP4 192.0.2.66 198.51.100.1 5000 443\r\n";
    let flags = ["--proxy-protocol=127.0.0.9/32", "--connections-max=3", "--deny-clients=192.0.2.64/26"];
    let (_agent, front) = front(&[&flags[..], &["--client-keepalive-timeout=600s"]].concat()).await;
    let ask = "GET /health HTTP/1.1\r\nHost: p\r\n\r\n";
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut client = RawClient::new(connect(front.plain()).await);
        assert_eq!(answer(&mut client, &[LET_IN, ask].concat()).await.status, 200);
        waiting.push(client);
    }
    for _ in 0..5 {
        let mut denied = RawClient::new(connect(front.plain()).await);
        assert_eq!(answer(&mut denied, &[DENIED, ask].concat()).await.status, 403);
    }
    for client in &mut waiting {
        assert_eq!(answer(client, ask).await.status, 200);
    }
    let mut next = RawClient::new(connect(front.plain()).await);
    assert_eq!(answer(&mut next, &[LET_IN, ask].concat()).await.status, 200);
    // The one that has waited longest.
    assert_eq!(waiting.remove(0).rest().await.0, b"");
    for client in &mut waiting {
        assert_eq!(answer(client, ask).await.status, 200);
    }
    drop((waiting, next));
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_proxy_header_it_is_the_one_it_names_that_is_trusted_or_not() {
    let flags = ["--proxy-protocol=127.0.0.9/32", "--trust-forwarded=192.0.2.0/28", TRUST];
    let (agent, front) = front(&flags).await;
    for (header, client) in [
        ("PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\n", "203.0.113.5"),
        ("PROXY TCP6 ::ffff:192.0.2.7 ::1 5000 443\r\n", "203.0.113.5"),
        ("PROXY TCP4 192.0.2.99 198.51.100.1 5000 443\r\n", "192.0.2.99"),
        // The balancer itself asks.
        ("PROXY UNKNOWN\r\n", "203.0.113.5"),
    ] {
        let mut balancer = RawClient::new(connect(front.plain()).await);
        let ask = front.request("GET /x", "X-Forwarded-For: 203.0.113.5\r\nX-Forwarded-Proto: https\r\n");
        assert_eq!(answer(&mut balancer, &[header, &ask].concat()).await.status, 200);
        let seen = agent.seen.requests();
        let told = ["x-real-ip", "x-forwarded-proto"].map(|name| seen.last().unwrap().header(name));
        let scheme = if client == "203.0.113.5" { "https" } else { "http" };
        assert_eq!(told, [Some(client), Some(scheme)], "{header}");
    }
    front.recovers().await;
}
