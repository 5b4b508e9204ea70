//! `dcv-splice doctor`: each cause for which an agent is not reached has a stand-in here that has it, and is named with its exit code.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::process::Command;

use harness::certificates::{Identity, KeyKind};
use harness::ports::unused_address;
use harness::proxy;
use harness::raw_client::{RawClient, Secure, header};
use harness::scripted_agent::ScriptedAgent;
use harness::websocket::accepted;

/// Runs it as a user would; the exit code, and what it says.
async fn doctor(agent: &str, flags: &[&str]) -> (i32, String) {
    let words = [&["doctor", agent, "desk.example"], flags]
        .concat()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    let run = || Command::new(proxy::binary()).args(words).output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

async fn examine(agent: SocketAddr, flags: &[&str]) -> (i32, String) {
    let port = format!("--agent-port={}", agent.port());
    let flags = [&["--agents=127.0.0.0/8", &port], flags].concat();
    doctor(&agent.ip().to_string(), &flags).await
}

/// A DCV server, but that it refuses requests for which `refuses` gives a status.
async fn agent(refuses: impl Fn(&str) -> Option<u16> + Clone + Send + Sync + 'static) -> ScriptedAgent {
    ScriptedAgent::secure(move |_, client| serve(client, refuses.clone())).await
}

async fn serve(mut client: RawClient<Secure>, refuses: impl Fn(&str) -> Option<u16>) {
    while let Some(head) = client.head().await {
        match refuses(&head) {
            Some(status) => client.say(format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n")).await,
            None if head.contains("websocket") => return client.say(accepted(&head, "")).await,
            None => client.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await,
        }
    }
}

/// What it finds is the cause with that code, in those words.
#[track_caller]
fn finds((code, text): (i32, String), wanted: i32, words: &[&str]) {
    assert_eq!(code, wanted, "{text}");
    assert_eq!(text.matches("cause: ").count(), 1, "{text}");
    assert_eq!(text.matches("remedy: ").count(), 1, "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_with_an_agent_as_it_should_be() {
    let agent = agent(|_| None).await;
    let (code, text) = examine(agent.address, &[]).await;
    assert_eq!(code, 0, "{text}");
    for word in [
        "TCP",
        "TLS",
        "TLSv1_3",
        "certificate sha256:",
        "GET /",
        "status 200",
        "/auth",
        "status 101",
        "all is well",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let (code, text) = doctor(&agent.address.to_string(), &["--agents=127.0.0.0/8"]).await;
    assert_eq!(code, 0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_found_or_not_allowed() {
    finds(
        doctor("nobody.invalid", &["--agents=127.0.0.0/8"]).await,
        10,
        &["no agent is named nobody.invalid"],
    );
    finds(doctor("192.0.2.1", &["--agents=127.0.0.0/8"]).await, 11, &["in no --agents network"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_connected_to() {
    let closed = unused_address();
    finds(examine(closed, &[]).await, 12, &["nobody listens at its port", "start its DCV server"]);
    finds(
        doctor("255.255.255.255", &["--agents=0.0.0.0/0", "--agents=255.255.255.255/32"]).await,
        14,
        &["there is no way to it"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_says_nothing() {
    let agent = ScriptedAgent::plain(|_, client| async move {
        let _client = client;
        std::future::pending::<()>().await;
    })
    .await;
    finds(examine(agent.address, &[]).await, 13, &["says nothing in the TLS handshake"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_speaks_plain_http_or_none() {
    let plain = ScriptedAgent::plain(|_, mut client| async move {
        client.some_bytes().await;
        client.say("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    })
    .await;
    finds(
        examine(plain.address, &[]).await,
        15,
        &["speaks plain HTTP where TLS is expected", "--agent-tls off"],
    );
    let other = ScriptedAgent::plain(|_, mut client| async move {
        client.say("SSH-2.0-OpenSSH_9.2\r\n").await;
        client.some_bytes().await;
    })
    .await;
    finds(examine(other.address, &[]).await, 19, &["its TLS handshake fails"]);
    finds(examine(other.address, &["--agent-tls=off"]).await, 20, &["no HTTP"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_tls_is_too_old() {
    let agent = ScriptedAgent::plain(|_, mut client| async move {
        client.some_bytes().await;
        // The alert protocol_version of TLS 1.0 (RFC 5246 7.2.2).
        client.say(b"\x15\x03\x01\x00\x02\x02\x46").await;
    })
    .await;
    finds(examine(agent.address, &[]).await, 16, &["no TLS that is safe", "TLS 1.2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificate_is_another_or_can_not_be_used() {
    let agent = agent(|_| None).await;
    let pin = format!("--agent-pin=sha256:{}", "00".repeat(32));
    let found = examine(agent.address, &["--agent-tls=verify", &pin]).await;
    finds(found, 17, &["is not the one that is expected", "it shows sha256:", "--agent-pin"]);
    let expired = Identity::expired(KeyKind::Ecdsa, &["127.0.0.1"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, &expired.cert_pem).unwrap();
    let agent = ScriptedAgent::secure_as(&expired, |_, client| serve(client, |_| None)).await;
    let authority = format!("--agent-ca={}", file.display());
    finds(examine(agent.address, &["--agent-tls=verify", &authority]).await, 18, &["is expired or damaged"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_refuses_our_host_or_origin() {
    let refuses_host = |head: &str| (header(head, "Host") == Some("desk.example")).then_some(403);
    let found = examine(agent(refuses_host).await.address, &[]).await;
    finds(found, 21, &["refuses the Host desk.example", "web-host-regex"]);
    let refuses_origin = |head: &str| (header(head, "Origin") == Some("https://desk.example")).then_some(403);
    let found = examine(agent(refuses_origin).await.address, &[]).await;
    finds(found, 22, &["refuses the Origin https://desk.example", "web-origin-regex"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_session() {
    let no_page = agent(|head| head.starts_with("GET / ").then_some(404)).await;
    finds(examine(no_page.address, &[]).await, 23, &["GET / gives 404", "dcv list-sessions"]);
    let no_channel = agent(|head| head.starts_with("GET /auth").then_some(404)).await;
    finds(examine(no_channel.address, &[]).await, 23, &["/auth gives 404"]);
}
