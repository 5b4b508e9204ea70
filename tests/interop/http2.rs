//! HTTP/2 by clients of other make: curl, and the `h2` crate as a client that leaves in the middle.

use harness::agent::{Agent, AgentConfig, AgentTls, Checksum, Noise};
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::scripted_agent::ScriptedAgent;
use http::Request;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use crate::tools::{Curl, run};

async fn started(flags: &[&str]) -> (Agent, ProxyUnderTest) {
    let agent = Agent::start(AgentConfig { tls: AgentTls::Both, ..AgentConfig::default() }).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, flags).await;
    (agent, front)
}

fn url(front: &ProxyUnderTest, path: &str) -> String {
    format!("https://{}{path}", front.secure())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_answered_in_the_version_it_offers() {
    let (_agent, front) = started(&[]).await;
    let version = |args: &[&str], url: &str| {
        let all = [
            &["-sSk", "--max-time", "60", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"],
            args,
            &[url],
        ];
        run("curl", &all.concat()).output.trim_end().to_owned()
    };
    let (health, page) = (url(&front, "/health"), url(&front, "/127.0.0.1/dcvjs/main.js"));
    for url in [&health, &page] {
        assert_eq!(version(&["--http2"], url), "2 200");
        assert_eq!(version(&["--http2", "-I"], url), "2 200");
        assert_eq!(version(&["--http1.1"], url), "1.1 200");
    }
    let plain = format!("http://{}/health", front.plain());
    assert_eq!(version(&["--http2-prior-knowledge"], &plain), "2 200");
    assert_eq!(version(&[], &plain), "1.1 200");
    front.access_line("\"GET /127.0.0.1/dcvjs/main.js HTTP/2.0\" 200");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_of_tls_is_logged_in_each_version_of_http() {
    let (_agent, front) = started(&["--access-log-format=json"]).await;
    let secure = url(&front, "/health");
    let plain = format!("http://{}/health", front.plain());
    for (number, (flag, url, tls)) in [
        ("--http1.1", &secure, Some("\"tls\":\"1.3\"")),
        ("--http2", &secure, Some("\"tls\":\"1.3\"")),
        ("--http2-prior-knowledge", &plain, None),
    ]
    .into_iter()
    .enumerate()
    {
        run("curl", &["-sSk", "--max-time", "60", "-o", "/dev/null", flag, &format!("{url}?{number}")]);
        let line = front.access_line(&format!("/health?{number} "));
        assert_eq!(line.contains("\"tls\":"), tls.is_some(), "{line}");
        assert!(tls.is_none_or(|tls| line.contains(tls)), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_arrive_whole_both_ways() {
    let (_agent, front) = started(&[]).await;
    let curl = Curl::new();
    let bytes = Noise::new(20_000_000).bytes();
    let wanted = Checksum::of(&bytes).to_string();
    let file = curl.file("upload", &bytes);
    let sink = url(&front, "/127.0.0.1/sink");
    assert_eq!(curl.get(&["--http2", "-X", "POST", "-T", &file, &sink]).text(), wanted);
    let script = "exec curl -sSk --http2 --max-time 100 -X POST -T - \"$1\" <\"$2\"";
    assert_eq!(run("sh", &["-c", script, "sh", &sink, &file]).output.trim_end(), wanted);
    front.access_line("to_agent=20000000 ");
    for path in ["bytes", "chunked"] {
        let answer = curl.get(&["--http2", &url(&front, &format!("/127.0.0.1/{path}/20000000"))]);
        assert!(answer.head.starts_with("HTTP/2 200"), "{}", answer.head);
        assert_eq!(Checksum::of(&answer.body).to_string(), wanted);
        assert_eq!(answer.header("transfer-encoding"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_responses_and_early_answers_are_passed_on() {
    let (agent, front) = started(&["--body-max=1MiB"]).await;
    let curl = Curl::new();
    let file = curl.file("upload", &Noise::new(500_000).bytes());
    let sink = url(&front, "/127.0.0.1/sink");
    let wait = ["--http2", "-X", "POST", "-H", "Expect: 100-continue", "--expect100-timeout", "60", "-T"];
    let answer = curl.get(&[&wait[..], &[&file, &sink]].concat());
    assert!(answer.head.starts_with("HTTP/2 100"), "{}", answer.head);
    assert_eq!(answer.status, 200);
    assert_eq!(agent.seen.requests()[0].header("expect"), Some("100-continue"));
    let file = curl.file("large", &Noise::new(5_000_000).bytes());
    // Some versions of curl call it an error that the rest is not wanted (RFC 9113 8.1).
    let (_, answer) = curl.attempt(&["--http2", "-X", "POST", "-T", &file, &sink]);
    assert_eq!(answer.status, 413);
}

/// A download of the `h2` crate's.
async fn begins(front: &ProxyUnderTest, path: &str) -> (h2::RecvStream, tokio::task::JoinHandle<()>) {
    let stream = TcpStream::connect(front.plain()).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(async move { drop(connection.await) });
    let request = Request::builder().uri(format!("http://proxy/127.0.0.1{path}")).body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    (response.await.unwrap().into_body(), connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_has_its_request_ended() {
    let (_agent, front) = started(&[]).await;
    let (mut body, connection) = begins(&front, "/bytes/50000000").await;
    body.data().await.unwrap().unwrap();
    // The stream is reset.
    drop(body);
    front.access_line("end_reason=client-reset");
    connection.abort();
    let (mut body, connection) = begins(&front, "/chunked/60000000").await;
    body.data().await.unwrap().unwrap();
    // The connection breaks.
    connection.abort();
    let log = eventually("the second record", || {
        let log = front.proxy.output();
        (log.matches("end_reason=client-reset").count() == 2).then_some(log)
    });
    assert!(log.contains("/chunked/60000000 HTTP/2.0\" 200 "), "{log}");
    front.releases();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_a_running_download_end() {
    let (_agent, mut front) = started(&["--drain-timeout=60s"]).await;
    let (mut body, connection) = begins(&front, "/bytes/5000000").await;
    let mut got = 0;
    let mut takes = async |until: usize| {
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            got += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
            if got >= until {
                break;
            }
        }
        got
    };
    takes(100_000).await;
    front.proxy.signal(Signal::SIGTERM);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(takes(usize::MAX).await, 5_000_000);
    connection.await.unwrap();
    assert!(front.proxy.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_a_connection_goes_by_http1() {
    let agent = ScriptedAgent::plain(|_, mut line| async move {
        while let Some(head) = line.head().await {
            let is_asked = head.starts_with("GET /asks ");
            let status = if is_asked { "401 No\r\nWWW-Authenticate: NTLM" } else { "200 OK" };
            if !line.try_say(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok")).await {
                return;
            }
        }
    })
    .await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-tls=off"]).await;
    let format = "%{http_version} %{http_code}";
    let asks = |path: &str, header: &str| {
        let url = url(&front, path);
        let args =
            ["-sSk", "--http2", "--max-time", "60", "-o", "/dev/null", "-w", format, "-H", header, &url];
        run("curl", &args).output.trim_end().to_owned()
    };
    assert_eq!(asks("/127.0.0.1/x", "X: y"), "2 200");
    assert_eq!(asks("/127.0.0.1/x", "Authorization: NTLM TlRMTVNTUAABAAAA"), "1.1 200");
    assert_eq!(asks("/127.0.0.1/asks", "X: y"), "1.1 401");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tools_of_nghttp2_are_served() {
    let (_agent, front) = started(&["--client-rate=1000000"]).await;
    let page = url(&front, "/127.0.0.1/bytes/100000");
    let told = run("nghttp", &["-nv", "--timeout=60", &url(&front, "/health"), &page]);
    assert!(told.success, "{}", told.log);
    assert!(told.output.contains("The negotiated protocol: h2"), "{}", told.output);
    assert_eq!(told.output.matches(":status: 200").count(), 2, "{}", told.output);
    // Many requests at a time on a few connections.
    let told = run("h2load", &["-n", "2000", "-c", "4", "-m", "50", &page]);
    assert!(told.success, "{}", told.log);
    assert!(told.output.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{}", told.output);
}
