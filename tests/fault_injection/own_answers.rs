//! What a user is told by the proxy itself: a page for a browser, text for a program, each with the id by which the operator finds
//! the request, and the reason that `dcv-splice doctor` names.

use harness::certificates::{Identity, KeyKind};
use harness::ports::unused_address;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{Answer, RawClient};
use harness::scripted_agent::ScriptedAgent;

const BROWSER: &str = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
/// A pin that no certificate has.
const OTHER_PIN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

async fn ask(front: &ProxyUnderTest, path: &str, fields: &str) -> Answer {
    let mut client = RawClient::plain(front.plain()).await;
    client.say(format!("GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n{fields}\r\n")).await;
    client.answer().await.unwrap()
}

/// Both forms of an answer tell the same, and their ids are in the access log.
async fn tells(front: &ProxyUnderTest, path: &str, status: u16, text: &str) {
    let (page, plain) = (ask(front, path, BROWSER).await, ask(front, path, "").await);
    for (answer, kind) in [(&page, "text/html; charset=utf-8"), (&plain, "text/plain; charset=utf-8")] {
        assert_eq!((answer.status, answer.header("content-type")), (status, Some(kind)), "{}", answer.text());
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(id.len(), 32, "{id}");
        assert!(front.access_line(id).contains(&format!("\" {status} ")));
        assert!(answer.text().contains(text), "{}", answer.text());
        for secret in ["--", "sha256", OTHER_PIN, "os error", ":8443"] {
            assert!(!answer.head.contains(secret) && !answer.text().contains(secret), "{}", answer.text());
        }
    }
    assert!(page.text().starts_with("<!DOCTYPE html>"), "{}", page.text());
    assert!(page.text().contains(page.header("x-request-id").unwrap()));
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_that_is_not_reached_is_told_of_with_its_reason() {
    let agent = unused_address();
    let front = ProxyUnderTest::start(agent, &[]).await;
    tells(&front, "/127.0.0.1/x", 502, "The desktop at 127.0.0.1 is not reached: nobody listens at its port")
        .await;
    let silent = ScriptedAgent::plain(|_, client| async move {
        let _client = client;
        std::future::pending::<()>().await;
    })
    .await;
    let front = ProxyUnderTest::start(silent.address, &["--connect-timeout=1s"]).await;
    tells(&front, "/127.0.0.1/x", 504, "it does not answer").await;
    let other =
        ScriptedAgent::plain(|_, mut client| async move { client.say("SSH-2.0-OpenSSH_9.2\r\n").await })
            .await;
    let front = ProxyUnderTest::start(other.address, &[]).await;
    tells(&front, "/127.0.0.1/x", 502, "its TLS handshake fails").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_another_is_told_of_without_what_was_expected() {
    let identity = Identity::self_signed(KeyKind::Ecdsa, &["127.0.0.1"]);
    let agent = ScriptedAgent::secure_as(&identity, |_, _client| async {}).await;
    let front = ProxyUnderTest::start(
        agent.address,
        &["--agent-tls=verify", &format!("--agent-pin=sha256:{OTHER_PIN}")],
    )
    .await;
    tells(&front, "/127.0.0.1/x", 502, "its certificate is not the one that is expected").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_path_is_no_part_of_a_page() {
    let front = ProxyUnderTest::start(unused_address(), &["--session-resolver=http://127.0.0.1:9/"]).await;
    tells(&front, "/s/<script>alert(1)</script>/", 404, "There is no session").await;
    let page = ask(&front, "/s/<script>alert(1)</script>/", BROWSER).await;
    assert!(!page.text().contains("<script"), "{}", page.text());
    tells(&front, "/x/", 404, "No desktop is named").await;
    // Whatever an agent answers is passed on as it is.
    let health = ask(&front, "/health", BROWSER).await;
    assert_eq!((health.status, health.text()), (200, "DCV Proxy OK\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_and_the_log_know_a_request_by_the_same_id() {
    let agent = ScriptedAgent::secure(|_, mut client| async move {
        while let Some(head) = client.head().await {
            let id = harness::raw_client::header(&head, "x-request-id").unwrap_or_default().to_owned();
            client.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{id}", id.len())).await;
        }
    })
    .await;
    let front = ProxyUnderTest::start(agent.address, &["--trust-forwarded=127.0.0.1/32"]).await;
    let made = [ask(&front, "/127.0.0.1/x", "").await, ask(&front, "/127.0.0.1/x", "").await];
    let made = made.map(|answer| answer.text());
    assert!(made[0] != made[1] && made[0].len() == 32, "{made:?}");
    front.access_line(&format!(" id={}", made[0]));
    let kept = ask(&front, "/127.0.0.1/x", "X-Request-Id: lb-7\r\n").await;
    assert_eq!(kept.text(), "lb-7");
    front.access_line(" id=lb-7");
    let refused = ask(&front, "/127.0.0.2/x", "X-Request-Id: lb-8\r\n").await;
    assert_eq!((refused.status, refused.header("x-request-id")), (403, Some("lb-8")));
}
