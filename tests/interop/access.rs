//! Passwords, HTTPS for good, and certificates with their issuer's word, as curl and openssl see them.

use std::fs;
use std::path::Path;

use harness::agent::{Agent, AgentConfig};
use harness::certificates::{Authority, KeyKind};
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;
use tempfile::TempDir;

use crate::tools::{Curl, Received, run};

/// A user's line, of the lowest cost, so that the tests take milliseconds.
fn user(name: &str, password: &str) -> String {
    format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap())
}

async fn agent() -> Agent {
    Agent::start(AgentConfig::default()).await.unwrap()
}

fn htpasswd(folder: &TempDir, line: &str) -> String {
    let file = folder.path().join("users");
    replace(&file, line);
    format!("--htpasswd={}", file.display())
}

/// As a careful program replaces a file: by another one.
fn replace(file: &Path, line: &str) {
    let new = file.with_extension("new");
    fs::write(&new, line).unwrap();
    fs::rename(new, file).unwrap();
}

/// Comparing takes a while, in which a request is under way and its client waits for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_password_to_be_compared_gives_way_to_nobody() {
    let (agent, folder) = (agent().await, tempfile::tempdir().unwrap());
    let slow = format!("ann:{}\n", bcrypt::hash("one", 8).unwrap());
    let limits = [
        "--connections-max=2",
        "--header-timeout=600s",
        "--client-keepalive-timeout=600s",
        "--agent-keepalive-timeout=1s",
    ];
    let front =
        ProxyUnderTest::start(agent.address, &[&[&*htpasswd(&folder, &slow)][..], &limits].concat()).await;
    let shown = "Authorization: Basic YW5uOm9uZQ==\r\nConnection: close\r\n";
    let mut asks = RawClient::plain(front.plain()).await;
    asks.say(front.request("GET /x", shown)).await;
    let mut silent = RawClient::plain(front.plain()).await;
    let mut next = RawClient::plain(front.plain()).await;
    assert_eq!(silent.rest().await.0, b"");
    assert_eq!(asks.answer().await.unwrap().status, 200);
    next.say("GET /health HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n").await;
    assert_eq!(next.answer().await.unwrap().status, 200);
    front.recovers().await;
}

/// What the agent answers to who shows such a name and password.
fn ask(front: &ProxyUnderTest, agent: &Agent, shown: &[&str]) -> Received {
    let url = format!("https://{}/{}/x", front.secure(), agent.address.ip());
    Curl::new().get(&[shown, &[&url]].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_password_is_asked_for_one_and_the_agent_never_hears_of_it() {
    let (agent, folder) = (agent().await, tempfile::tempdir().unwrap());
    let front = ProxyUnderTest::start(agent.address, &[&htpasswd(&folder, &user("ann", "one"))]).await;
    for shown in [&[][..], &["-u", "ann:two"], &["-u", "bob:one"], &["-H", "Authorization: Bearer x"]] {
        let refused = ask(&front, &agent, shown);
        assert_eq!(refused.status, 401, "{shown:?}");
        let challenge = refused.header("www-authenticate").unwrap();
        assert!(challenge.starts_with("Basic realm="), "{challenge}");
    }
    assert!(agent.seen.requests().is_empty());
    assert_eq!(ask(&front, &agent, &["-u", "ann:one"]).status, 200);
    let seen = agent.seen.requests();
    assert_eq!(seen.last().unwrap().header("authorization"), None);
    assert!(front.access_line("GET /127.0.0.1/x HTTP/1.1\" 200").starts_with("127.0.0.1 - ann ["));
    // What looks whether the proxy lives has no password.
    front.answers().await;
    let log = front.proxy.log() + &front.proxy.output();
    assert!(!log.contains("YW5uOm9uZQ") && !log.contains(":one"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_is_told_to_wait_and_who_is_known_goes_on() {
    let (agent, folder) = (agent().await, tempfile::tempdir().unwrap());
    let users = htpasswd(&folder, &user("ann", "one"));
    let front = ProxyUnderTest::start(agent.address, &[&users, "--agent-keepalive-timeout=1s"]).await;
    assert_eq!(ask(&front, &agent, &["-u", "ann:one"]).status, 200);
    let guesses: Vec<_> =
        (0..20).map(|guess| ask(&front, &agent, &["-u", &format!("ann:{guess}")])).collect();
    let statuses: Vec<_> = guesses.iter().map(|guess| guess.status).collect();
    assert_eq!(statuses[..5], [401; 5], "{statuses:?}");
    let waits = guesses.iter().find(|guess| guess.status == 429).expect("one has to wait");
    assert!(waits.header("retry-after").unwrap().parse::<u32>().is_ok());
    assert_eq!(ask(&front, &agent, &["-u", "ann:one"]).status, 200);
    front.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_file_that_is_replaced_is_read_again() {
    let (agent, folder) = (agent().await, tempfile::tempdir().unwrap());
    let front = ProxyUnderTest::start(agent.address, &[&htpasswd(&folder, &user("ann", "one"))]).await;
    assert_eq!(ask(&front, &agent, &["-u", "ann:one"]).status, 200);
    replace(&folder.path().join("users"), "ann:secret\n");
    eventually("the log says what is wrong", || {
        front.proxy.log().contains("users: line 1: only bcrypt hashes are taken").then_some(())
    });
    assert_eq!(ask(&front, &agent, &["-u", "ann:one"]).status, 200);
    replace(&folder.path().join("users"), &user("bob", "two"));
    eventually("it is read again", || front.proxy.log().contains("changed files loaded").then_some(()));
    assert_eq!(ask(&front, &agent, &["-u", "ann:one"]).status, 401);
    assert_eq!(ask(&front, &agent, &["-u", "bob:two"]).status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_may_be_for_some_agents_only() {
    let (agent, folder) = (agent().await, tempfile::tempdir().unwrap());
    let users = htpasswd(&folder, &user("ann", "one"));
    for (agents, status) in [("127.0.0.1/32", 401), ("127.0.0.2/32", 200), ("::ffff:127.0.0.1/128", 401)] {
        let front =
            ProxyUnderTest::start(agent.address, &[&users, &format!("--htpasswd-agents={agents}")]).await;
        assert_eq!(ask(&front, &agent, &[]).status, status, "{agents}");
        assert_eq!(ask(&front, &agent, &["-u", "ann:one"]).status, 200);
        // Browsers send it to every agent of the host; none gets it.
        let asked = agent.seen.requests();
        assert_eq!(asked.last().unwrap().header("authorization"), None);
        let token = ["-H", "Authorization: Bearer x"];
        assert_eq!(ask(&front, &agent, &token).status, status);
        let passed = agent.seen.requests().len() > asked.len();
        assert_eq!(passed, status == 200, "what is no password of the proxy's is the agent's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_held_to_https_where_that_is_asked_for() {
    let agent = agent().await;
    for (flags, line) in [(&["--hsts-max-age=1000s"][..], Some("max-age=1000")), (&[], None)] {
        let front = ProxyUnderTest::start(agent.address, flags).await;
        let path = format!("{}/x", agent.address.ip());
        for path in [path.as_str(), "health", "8.8.8.8/"] {
            let secure = Curl::new().get(&[&format!("https://{}/{path}", front.secure())]);
            assert_eq!(secure.header("strict-transport-security"), line, "{path}");
            // Over HTTP browsers don't believe it (RFC 6797 7.2).
            let plain = Curl::new().get(&[&format!("http://{}/{path}", front.plain())]);
            assert_eq!(plain.header("strict-transport-security"), None, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_who_asks_is_given_the_issuers_word() {
    let agent = agent().await;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let authority = Authority::new("authority");
    let identity = authority.issue(KeyKind::Ecdsa, &["127.0.0.1"]);
    fs::write(at("ca.pem"), authority.cert_pem()).unwrap();
    fs::write(at("ca.key"), authority.key_pem()).unwrap();
    fs::write(at("cert.pem"), identity.cert_pem).unwrap();
    fs::write(at("key.pem"), identity.key_pem).unwrap();
    let script = format!(
        "cd {} && touch index &&
         openssl x509 -in cert.pem -noout -serial | sed 's/serial=//' > serial &&
         printf 'V\\t491231235959Z\\t\\t%s\\tunknown\\t/CN=x\\n' \"$(cat serial)\" > index &&
         openssl ocsp -issuer ca.pem -cert cert.pem -reqout request -no_nonce &&
         openssl ocsp -index index -CA ca.pem -rsigner ca.pem -rkey ca.key -reqin request -respout word -ndays 2",
        folder.path().display()
    );
    let made = run("sh", &["-c", &script]);
    assert!(made.success, "{}", made.log);
    let flags = [("cert", "cert.pem"), ("key", "key.pem"), ("ocsp", "word")];
    let flags = flags.map(|(flag, name)| format!("--{flag}={}", at(name)));
    let front = ProxyUnderTest::start(agent.address, &flags.each_ref().map(String::as_str)).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let script = format!(
            "timeout 60 openssl s_client -connect {} -status {version} -CAfile {} </dev/null 2>&1",
            front.secure(),
            at("ca.pem")
        );
        let said = run("sh", &["-c", &script]).output;
        assert!(
            said.contains("OCSP Response Status: successful") && said.contains("Cert Status: good"),
            "{said}"
        );
    }
}
