//! Agent certificates that are verified, and those that are not accepted.

use std::fs;
use std::process::Command;

use harness::agent::{Agent, AgentConfig};
use harness::certificates::{Authority, Identity, KeyKind};
use harness::ports::unused_port;
use harness::process::{Process, eventually};
use harness::proxy::{self, Proxy};
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;
use tempfile::TempDir;

async fn agent(identity: &Identity) -> Agent {
    Agent::start(AgentConfig { identity: Some(identity.clone()), ..AgentConfig::default() }).await.unwrap()
}

/// The status of a request to an agent with this certificate where these flags verify it.
async fn status(identity: &Identity, flags: &[&str]) -> u16 {
    let agent = agent(identity).await;
    let flags: Vec<&str> = [&["--agent-tls=verify", "--agent-keepalive-timeout=1s"], flags].concat();
    let front = ProxyUnderTest::start(agent.address, &flags).await;
    let answer = front.ask("GET /x").await;
    assert_eq!(agent.seen.requests().len(), usize::from(answer.status == 200));
    if answer.status != 200 {
        let told = || front.proxy.log().contains("failed in the TLS handshake").then_some(());
        eventually("the operator is told", told);
    }
    front.recovers().await;
    answer.status
}

struct Ca {
    authority: Authority,
    folder: TempDir,
}

impl Ca {
    fn new(name: &str) -> Self {
        let ca = Self { authority: Authority::new(name), folder: tempfile::tempdir().unwrap() };
        fs::write(ca.folder.path().join("ca.pem"), ca.authority.cert_pem()).unwrap();
        ca
    }

    fn flag(&self) -> String {
        format!("--agent-ca={}", self.folder.path().join("ca.pem").display())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_accepted_from_the_right_authority_alone() {
    let (right, wrong) = (Ca::new("right"), Ca::new("wrong"));
    for kind in [KeyKind::Ecdsa, KeyKind::Rsa] {
        let identity = right.authority.issue(kind, &["127.0.0.1"]);
        assert_eq!(status(&identity, &[&right.flag()]).await, 200);
        assert_eq!(status(&identity, &[&wrong.flag()]).await, 502);
    }
    let itself = Identity::self_signed(KeyKind::Ecdsa, &["127.0.0.1"]);
    assert_eq!(status(&itself, &[&right.flag()]).await, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_address_is_not_accepted() {
    let ca = Ca::new("authority");
    let other = ca.authority.issue(KeyKind::Ecdsa, &["127.0.0.9", "localhost"]);
    assert_eq!(status(&other, &[&ca.flag()]).await, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_may_carry_a_name_instead() {
    let ca = Ca::new("authority");
    let named = ca.authority.issue(KeyKind::Ecdsa, &["desktops.test"]);
    assert_eq!(status(&named, &[&ca.flag(), "--agent-name=desktops.test"]).await, 200);
    assert_eq!(status(&named, &[&ca.flag(), "--agent-name=other.test"]).await, 502);
    assert_eq!(status(&named, &[&ca.flag()]).await, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_certificate_is_accepted_and_no_other() {
    let pinned = Identity::self_signed(KeyKind::Ecdsa, &["127.0.0.1"]);
    let other = Identity::self_signed(KeyKind::Ecdsa, &["127.0.0.1"]);
    let flag = format!("--agent-pin={}", pin(&pinned));
    assert_eq!(status(&pinned, &[&flag]).await, 200);
    assert_eq!(status(&other, &[&flag]).await, 502);
    assert_eq!(status(&other, &[&flag, &format!("--agent-pin={}", pin(&other))]).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pin_of_an_agent_can_be_asked_for() {
    let identity = Identity::self_signed(KeyKind::Ecdsa, &["127.0.0.1"]);
    let agent = agent(&identity).await;
    let mut asked = Process::start(proxy::command(&["pin", &agent.address.to_string()]));
    assert!(asked.wait().success(), "{}", asked.log());
    assert_eq!(
        asked.output().trim().to_uppercase(),
        pin(&identity).replace(':', "").replace("sha256", "sha256:").to_uppercase()
    );
    assert_eq!(status(&identity, &[&format!("--agent-pin={}", asked.output().trim())]).await, 200);

    let mut nobody = Process::start(proxy::command(&["pin", "127.0.0.1:1"]));
    assert_eq!(nobody.wait().code(), Some(1));
    assert!(nobody.log().contains("127.0.0.1:1 shows no certificate"), "{}", nobody.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_never_asks_itself() {
    for (listener, host, path) in [
        ("127.0.0.1", "p", "/127.0.0.1/127.0.0.1/127.0.0.1/x"),
        ("127.0.0.1", "--ffff-7f00-1.desks.test", "/x"),
        // Which the kernel takes for 127.0.0.1.
        ("127.0.0.1", "p", "/0.0.0.0/0.0.0.0/x"),
        ("0.0.0.0", "p", "/127.0.0.1/127.0.0.1/x"),
        ("0.0.0.0", "p", "/127.0.0.9/127.0.0.9/x"),
        ("0.0.0.0", "p", "/0.0.0.0/0.0.0.0/x"),
        ("[::1]", "--1.desks.test", "/x"),
        ("[::]", "--1.desks.test", "/x"),
        ("[::]", "--.desks.test", "/x"),
    ] {
        let port = unused_port();
        let listen = format!("--listen-plain={listener}:{port}");
        let agent_port = format!("--agent-port={port}");
        let mut flags = vec![&*listen, &agent_port, "--agent-tls=off", "--workers=1", "--access-log=stdout"];
        flags.extend(["--agents=127.0.0.0/8", "--agents=0.0.0.0/32", "--agents=::1/128", "--agents=::/128"]);
        flags.push("--agent-domain=desks.test");
        let itself = Proxy::start(&flags);
        let host = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let at = if listener.starts_with('[') { "[::1]" } else { "127.0.0.1" };
        let mut client = RawClient::plain(format!("{at}:{port}").parse().unwrap()).await;
        client.say(host).await;
        assert_eq!(client.answer().await.unwrap().status, 502, "{listener} {path}");
        let told = || itself.log().contains("this is the proxy itself").then_some(());
        eventually("it is told", told);
        assert_eq!(itself.log().matches("this is the proxy itself").count(), 1, "{listener} {path}");
        eventually("there is a line of it", || (!itself.output().is_empty()).then_some(()));
        assert_eq!(itself.output().lines().count(), 1, "{listener} {path}: {}", itself.output());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_reaches_the_admin_listener_by_the_proxy() {
    for admin in ["127.0.0.1", "0.0.0.0"] {
        let port = unused_port();
        let (agent_port, admin) = (format!("--agent-port={port}"), format!("--admin={admin}:{port}"));
        let flags =
            ["--listen-plain=127.0.0.1:0", &agent_port, &admin, "--agents=127.0.0.0/8", "--agent-tls=off"];
        let itself = Proxy::start(&flags);
        let mut client = RawClient::plain(itself.address()).await;
        client.say("GET /127.0.0.1/metrics HTTP/1.1\r\nHost: p\r\n\r\n").await;
        assert_eq!(client.answer().await.unwrap().status, 502, "{admin}");
    }
}

/// As `openssl x509 -fingerprint -sha256` tells it.
fn pin(identity: &Identity) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cert.pem");
    fs::write(&file, &identity.cert_pem).unwrap();
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(file);
    let mut openssl = Process::start(command);
    assert!(openssl.wait().success(), "{}", openssl.log());
    format!("sha256:{}", openssl.output().trim().rsplit('=').next().unwrap())
}
