//! curl's requests, uploads and downloads through the prefix to the stand-in agent.

use std::fs;

use harness::agent::{Agent, AgentConfig, AgentTls, Checksum, Noise};
use harness::proxy_under_test::ProxyUnderTest;

use crate::tools::{Curl, run};

async fn started(tls: AgentTls, flags: &[&str]) -> (Agent, ProxyUnderTest) {
    let agent = Agent::start(AgentConfig { tls, ..AgentConfig::default() }).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, flags).await;
    (agent, front)
}

fn url(front: &ProxyUnderTest, path: &str) -> String {
    format!("https://{}/127.0.0.1{path}", front.secure())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_over_both_listeners() {
    let (agent, front) = started(AgentTls::Both, &[]).await;
    let curl = Curl::new();
    for host in [format!("https://{}", front.secure()), format!("http://{}", front.plain())] {
        let answer = curl.get(&[&format!("{host}/health?deep=1")]);
        assert_eq!((answer.status, answer.text().trim_end()), (200, "DCV Proxy OK"));
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(curl.get(&["--head", &format!("{host}/health")]).status, 200);
        assert_eq!(curl.get(&["-d", "x", &format!("{host}/health")]).status, 405);
    }
    let plain_to_tls = curl.get(&[&format!("http://{}/health", front.secure())]);
    assert_eq!(plain_to_tls.status, 400);
    assert_eq!(agent.seen.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_and_query_behind_the_prefix_arrive_byte_for_byte() {
    let (_agent, front) = started(AgentTls::Both, &[]).await;
    let curl = Curl::new();
    for target in [
        "/x?token=a%2Fb",
        "/x?token=a%2Fb&x=%20+%zz;y=?",
        "/x//y/../z/./%2e%2E/%2F%20+",
        "/x/127.0.0.9/../../etc",
        "/x'(){}|^~!*,;:@&=$",
    ] {
        let answer = curl.get(&["--path-as-is", &url(&front, target)]);
        assert_eq!(answer.text(), format!("GET {target}\nHost: 127.0.0.1\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_without_its_slash_is_redirected_with_its_query() {
    let (_agent, front) = started(AgentTls::Both, &[]).await;
    let answer = Curl::new().get(&[&url(&front, "?token=a%2Fb")]);
    assert_eq!((answer.status, answer.header("location")), (308, Some("/127.0.0.1/?token=a%2Fb")));
    let followed = Curl::new().get(&["-L", &url(&front, "")]);
    assert!(followed.status == 200 && followed.text().contains("dcvjs/main.js"));
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_arrive_whole_with_a_length_and_in_chunks_from_stdin() {
    let (_agent, front) = started(AgentTls::Both, &[]).await;
    let curl = Curl::new();
    let bytes = Noise::new(100_000_000).bytes();
    let wanted = Checksum::of(&bytes).to_string();
    let file = curl.file("upload", &bytes);
    drop(bytes);
    let sink = url(&front, "/sink");
    let whole = curl.get(&["-X", "POST", "-T", &file, &sink]);
    assert!(whole.log.contains("Content-Length: 100000000"));
    assert_eq!(whole.text(), wanted);
    let script = "exec curl -sSk --max-time 100 -X POST -T - \"$1\" <\"$2\"";
    let piped = run("sh", &["-c", script, "sh", &sink, &file]);
    assert_eq!(piped.output.trim_end(), wanted, "{}", piped.log);
    let chunked = curl.get(&["-X", "POST", "-H", "Transfer-Encoding: chunked", "-T", &file, &sink]);
    assert_eq!(chunked.text(), wanted);
    let line = front.access_line("to_agent=100000000 ");
    assert!(line.contains("POST /127.0.0.1/sink") && line.contains("end_reason=complete"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_100_continue_is_carried_through() {
    let (agent, front) = started(AgentTls::Both, &[]).await;
    let curl = Curl::new();
    let bytes = Noise::new(2_000_000).bytes();
    let file = curl.file("upload", &bytes);
    let began = std::time::Instant::now();
    // Without the agent's word curl would wait until it runs out of time.
    let answer = curl.get(&[
        "-X",
        "POST",
        "-H",
        "Expect: 100-continue",
        "--expect100-timeout",
        "60",
        "-T",
        &file,
        &url(&front, "/sink"),
    ]);
    assert!(began.elapsed().as_secs() < 50);
    assert!(answer.head.starts_with("HTTP/1.1 100 Continue\r\n"), "{}", answer.head);
    assert_eq!(answer.text(), Checksum::of(&bytes).to_string());
    assert_eq!(agent.seen.requests()[0].header("expect"), Some("100-continue"));
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_arrive_whole_with_a_length_and_in_chunks() {
    for tls in [AgentTls::Tls12, AgentTls::Tls13] {
        let (_agent, front) = started(tls, &[]).await;
        let curl = Curl::new();
        let wanted = Checksum::of(&Noise::new(20_000_000).bytes());
        for (path, framing) in [("bytes", "content-length"), ("chunked", "transfer-encoding")] {
            let answer = curl.get(&[&url(&front, &format!("/{path}/20000000"))]);
            assert_eq!(Checksum::of(&answer.body), wanted);
            assert!(answer.header(framing).is_some(), "{}", answer.head);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_legs_and_mixed_ones_carry_bodies_whole() {
    for (tls, flag) in [(AgentTls::Off, "--agent-tls=off"), (AgentTls::Both, "--agent-tls=insecure")] {
        let (_agent, front) = started(tls, &[flag]).await;
        let curl = Curl::new();
        let bytes = Noise::new(5_000_000).bytes();
        let (wanted, file) = (Checksum::of(&bytes), curl.file("upload", &bytes));
        for host in [format!("https://{}", front.secure()), format!("http://{}", front.plain())] {
            let answer = curl.get(&[&format!("{host}/127.0.0.1/bytes/5000000")]);
            assert_eq!(Checksum::of(&answer.body), wanted);
            let answer = curl.get(&["-X", "POST", "-T", &file, &format!("{host}/127.0.0.1/sink")]);
            assert_eq!(answer.text(), wanted.to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_used_again_on_both_sides() {
    let (agent, front) = started(AgentTls::Both, &[]).await;
    let x = url(&front, "/x?n=1");
    let args = ["-sSk", "--http1.1", "--max-time", "60", "-w", "%{num_connects}\n", &x, &x, &x];
    let ran = run("curl", &args);
    let connects: Vec<_> = ran.output.lines().filter(|line| ["0", "1"].contains(line)).collect();
    assert_eq!(connects, ["1", "0", "0"], "{}", ran.output);
    assert_eq!((agent.seen.requests().len(), agent.seen.connections()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_answered_without_chunks_and_closed() {
    let (_agent, front) = started(AgentTls::Both, &[]).await;
    let curl = Curl::new();
    let answer = curl.get(&["-0", &url(&front, "/x")]);
    assert_eq!(answer.text(), "GET /x\nHost: 127.0.0.1\n");
    let answer = curl.get(&["-0", &url(&front, "/chunked/1000000")]);
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(Checksum::of(&answer.body), Checksum::of(&Noise::new(1_000_000).bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn head_has_no_body_and_keeps_the_connection() {
    let (_agent, front) = started(AgentTls::Both, &[]).await;
    let x = url(&front, "/dcvjs/main.js");
    let ran = run(
        "curl",
        &["-sSkI", "--http1.1", "--max-time", "60", "-w", "%{http_code} %{num_connects}\n", &x, &x],
    );
    assert!(ran.output.contains("200 1\n") && ran.output.contains("200 0\n"), "{}", ran.output);
    assert!(ran.output.contains("content-length: "), "{}", ran.output);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_and_cookies_stay_under_the_prefix() {
    let (agent, front) = started(AgentTls::Both, &[]).await;
    let curl = Curl::new();
    let location = |to: &str| {
        let answer = curl.get(&[&url(&front, &format!("/redirect?to={to}"))]);
        answer.header("location").unwrap().to_owned()
    };
    assert_eq!(location("/x?a=1"), "/127.0.0.1/x?a=1");
    assert_eq!(location("relative/x"), "relative/x");
    assert_eq!(location("https://elsewhere.test/x"), "https://elsewhere.test/x");
    assert_eq!(location(&format!("https://{}/x", agent.address)), "/127.0.0.1/x");
    let cookie = curl.get(&[&url(&front, "/cookie?path=/y")]);
    assert_eq!(cookie.header("set-cookie"), Some("probe=1; Path=/127.0.0.1/y; Secure; HttpOnly"));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_a_prefix_go_to_the_default_agent_or_nowhere() {
    let (agent, front) = started(AgentTls::Both, &["--default-agent=127.0.0.1"]).await;
    let curl = Curl::new();
    let bare = |path: &str| format!("https://{}{path}", front.secure());
    assert_eq!(curl.get(&[&bare("/x?q=1")]).text(), "GET /x?q=1\nHost: 127.0.0.1\n");
    assert_eq!(curl.get(&[&bare("/127.0.0.01/x")]).status, 404);
    assert_eq!(curl.get(&[&bare("/127.0.0.256/x")]).status, 404);
    assert_eq!(agent.seen.requests().len(), 1);
    let (agent, front) = started(AgentTls::Both, &[]).await;
    assert_eq!(curl.get(&[&format!("https://{}/x", front.secure())]).status, 404);
    assert_eq!(agent.seen.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_413_during_an_upload_reaches_curl() {
    let agent = harness::scripted_agent::ScriptedAgent::secure(|_, mut agent| async move {
        agent.head().await;
        agent.say("HTTP/1.1 413 Too Much\r\nConnection: close\r\nContent-Length: 4\r\n\r\nless").await;
        agent.finish().await;
    });
    let agent = agent.await;
    let front = ProxyUnderTest::start(agent.address, &[]).await;
    let curl = Curl::new();
    let file = curl.file("upload", &vec![0; 50_000_000]);
    let (_, answer) = curl.attempt(&["-X", "POST", "-H", "Expect:", "-T", &file, &url(&front, "/x")]);
    assert_eq!((answer.status, answer.text().as_str()), (413, "less"), "{}", answer.log);
    fs::remove_file(file).unwrap();
}
