//! The access log: one line per request, and per session at its end, right about bytes and silent about secrets.

use harness::agent::{Agent, AgentConfig};
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;

use crate::tools::Curl;

async fn started(flags: &[&str]) -> (Agent, ProxyUnderTest) {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, flags).await;
    (agent, front)
}

/// The lines that are not about the harness's own questions.
fn lines(front: &ProxyUnderTest) -> Vec<String> {
    front.proxy.output().lines().filter(|line| !line.contains("/health")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_one_line_with_its_status_and_its_bytes() {
    let (agent, front) = started(&[]).await;
    let curl = Curl::new();
    let url = |path: &str| format!("https://{}/127.0.0.1{path}", front.secure());
    let upload = curl.file("upload", &[b'x'; 12345]);
    curl.get(&["-A", "curl \"quoted\"", &url("/bytes/54321")]);
    curl.get(&[&url("/chunked/54321")]);
    curl.get(&["-X", "POST", "--data-binary", &format!("@{upload}"), &url("/sink")]);
    curl.get(&[
        "-X",
        "POST",
        "-H",
        "Transfer-Encoding: chunked",
        "--data-binary",
        &format!("@{upload}"),
        &url("/sink"),
    ]);
    curl.get(&[&url("/nothing")]);
    front.access_line("/nothing");
    let lines = lines(&front);
    let wanted = [
        ["\"GET /127.0.0.1/bytes/54321 HTTP/1.1\" 200 54321 ", "to_agent=0 to_client=54321 "],
        ["\"GET /127.0.0.1/chunked/54321 HTTP/1.1\" 200 54321 ", "to_agent=0 to_client=54321 "],
        ["\"POST /127.0.0.1/sink HTTP/1.1\" 200 22 ", "to_agent=12345 to_client=22 "],
        ["\"POST /127.0.0.1/sink HTTP/1.1\" 200 22 ", "to_agent=12345 to_client=22 "],
        ["\"GET /127.0.0.1/nothing HTTP/1.1\" 404 26 ", "to_agent=0 to_client=26 "],
    ];
    assert_eq!(lines.len(), wanted.len(), "{lines:#?}");
    for (line, parts) in lines.iter().zip(wanted) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line} should have {parts:?}");
        assert!(line.starts_with("127.0.0.1 - - [") && line.ends_with(" end_reason=complete"), "{line}");
        assert!(line.contains(&format!(" agent={} ", agent.address)), "{line}");
    }
    assert!(lines[0].contains("\"curl \\x22quoted\\x22\""), "{}", lines[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxys_own_answers_are_booked_with_the_bytes_of_their_bodies() {
    let (agent, front) = started(&[]).await;
    let curl = Curl::new();
    let url = format!("https://{}/nowhere", front.secure());
    let length = curl.get(&[&url]).body.len();
    let line = front.access_line("\"GET /nowhere HTTP/1.1\" 404");
    assert!(line.contains(&format!("agent=- to_agent=0 to_client={length} ")), "{line}");
    assert!(line.ends_with(" end_reason=rejected"), "{line}");
    for (path, status) in [("/health", 200), (&format!("/{}", agent.address.ip()), 308)] {
        curl.get(&[&format!("https://{}{path}", front.secure())]);
        let line = front.access_line(&format!("\"GET {path} HTTP/1.1\" {status}"));
        assert!(line.ends_with(" end_reason=answered"), "{line}");
    }
    curl.get(&["--head", &url]);
    let line = front.access_line("\"HEAD /nowhere HTTP/1.1\" 404");
    assert!(line.contains("to_client=0 "), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_one_line_at_its_beginning_and_one_at_its_end() {
    let (_agent, front) = started(&[]).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(front.upgrade("/echo")).await;
    assert_eq!(client.answer().await.unwrap().status, 101);
    for _ in 0..100 {
        client.say([0x81, 0x84, 0, 0, 0, 0, b'p', b'i', b'n', b'g']).await;
        assert_eq!(client.bytes(6).await, b"\x81\x04ping");
    }
    front.answers().await;
    let begun = lines(&front);
    assert!(begun.len() == 1 && begun[0].ends_with(" end_reason=started"), "{begun:?}");
    assert!(begun[0].contains("\" 101 0 ") && begun[0].contains(" to_agent=0 to_client=0 "), "{begun:?}");
    drop(client);
    let line = front.access_line("GET /127.0.0.1/echo HTTP/1.1\" 101 600 ");
    assert!(line.contains(" to_agent=1000 to_client=600 "), "{line}");
    assert_eq!(lines(&front).len(), 2);
    let id =
        |line: &str| line.split_once(" id=").and_then(|(_, rest)| rest.split(' ').next()).map(str::to_owned);
    assert_eq!(id(&begun[0]), id(&line));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_request_is_written_anywhere() {
    let (_agent, front) = started(&["--agents=127.0.0.9/32", "--connect-timeout=500ms"]).await;
    let curl = Curl::new();
    let host = format!("https://{}", front.secure());
    let queries = [
        "token=S3CRET",
        "a=1&authToken=S3CRET%2Fb#x",
        "AUTHTOKEN=S3CRET;x=1",
        "x=1&password=S3CRET&y=2",
        "%74oken=S3CRET",
    ];
    // Answered by the agent, refused by the proxy, unreachable, not found and broken.
    for path in ["/127.0.0.1/x", "/127.0.0.1", "/192.0.2.1/x", "/127.0.0.9/x", "/nowhere"] {
        for query in queries {
            let url = format!("{host}{path}?{query}");
            curl.attempt(&["-e", &format!("https://p/?{query}"), &url]);
        }
    }
    let mut broken = RawClient::plain(front.plain()).await;
    broken.say("GET /127.0.0.1/x?token=S3CRET HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
    assert_eq!(broken.answer().await.unwrap().status, 400);
    let mut broken = RawClient::plain(front.plain()).await;
    broken.say("GET /127.0.0.1/x?token=S3CRET\r\n\r\n").await;
    assert_eq!(broken.answer().await.unwrap().status, 400);
    front.access_line("token=***");
    let (mut all, mut waiting) = (lines(&front), true);
    while waiting {
        waiting = all.len() < 5 * queries.len() + 2;
        all = lines(&front);
    }
    assert!(all.iter().all(|line| line.contains("=***")), "{all:#?}");
    for text in [front.proxy.output(), front.proxy.log()] {
        assert!(!text.contains("S3CRET"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_file_is_appended_to() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    std::fs::write(&file, "earlier\n").unwrap();
    let port = format!("--agent-port={}", agent.address.port());
    let log = format!("--access-log={}", file.display());
    let flags = ["--listen=127.0.0.1:0", "--agents=127.0.0.1/32", &port, &log];
    let mut proxy = harness::proxy::Proxy::start(&flags);
    Curl::new().get(&[&format!("https://{}/127.0.0.1/x", proxy.address())]);
    // What was booked is in the file when the program has ended.
    assert_eq!(proxy.terminate().code(), Some(0));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("earlier\n127.0.0.1 - - [") && text.lines().count() == 2, "{text}");
    assert_eq!(proxy.output(), "");
}
