//! TLS towards clients as openssl and curl see it, and towards agents as they see it.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use harness::agent::{Agent, AgentConfig, AgentTls};
use harness::certificates::{Authority, Identity, KeyKind};
use harness::front::Front;
use harness::process::eventually;
use harness::proxy::Proxy;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;

use crate::tools::{Curl, Ran, run};

const ASK: &str = "printf 'GET /health HTTP/1.1\\r\\nHost: p\\r\\nConnection: close\\r\\n\\r\\n'";

/// One request by `openssl s_client` with these arguments.
fn openssl(proxy: &Proxy, args: &str) -> Ran {
    let script =
        format!("{ASK} | timeout 60 openssl s_client -connect {} -ign_eof {args} 2>&1", proxy.address());
    run("sh", &["-c", &script])
}

fn proxy(flags: &[&str]) -> Proxy {
    Proxy::start(&[&["--listen=127.0.0.1:0", "--workers=1"], flags].concat())
}

/// Certificate files, as flags.
struct Files {
    folder: TempDir,
    flags: Vec<String>,
}

impl Files {
    fn new(pairs: &[Identity]) -> Self {
        let mut this = Self { folder: tempfile::tempdir().unwrap(), flags: Vec::new() };
        for (number, pair) in pairs.iter().enumerate() {
            for (kind, pem) in [("cert", &pair.cert_pem), ("key", &pair.key_pem)] {
                let file = this.folder.path().join(format!("{number}.{kind}"));
                fs::write(&file, pem).unwrap();
                this.flags.push(format!("--{kind}={}", file.display()));
            }
        }
        this
    }

    fn proxy(&self) -> Proxy {
        proxy(&self.flags.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let proxy = proxy(&[]);
    let curl = Curl::new();
    let url = format!("https://{}/health", proxy.address());
    for (flags, version) in
        [(["--tlsv1.2", "--tls-max", "1.2"], "TLSv1.2 /"), (["--tlsv1.3", "--tls-max", "1.3"], "TLSv1.3 /")]
    {
        let answer = curl.get(&[&flags[..], &[&url]].concat());
        assert!(answer.status == 200 && answer.log.contains(version), "{}", answer.log);
    }
    let old = openssl(&proxy, "-tls1_1 -cipher ALL:@SECLEVEL=0");
    assert!(
        !old.output.contains("DCV Proxy OK") && old.output.contains("SSL alert number"),
        "{}",
        old.output
    );
}

#[test]
fn tls_1_3_alone_is_spoken_where_that_is_asked_for() {
    let proxy = proxy(&["--tls-min=1.3"]);
    let (curl, url) = (Curl::new(), format!("https://{}/health", proxy.address()));
    assert_eq!(curl.get(&["--tlsv1.3", &url]).status, 200);
    let (old, received) = curl.attempt(&["--tls-max", "1.2", &url]);
    assert!(received.status == 0 && old.log.contains("protocol version"), "{}", old.log);
}

#[test]
fn clients_show_a_certificate_where_that_is_asked_for() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: &str| {
        let file = folder.path().join(name);
        fs::write(&file, pem).unwrap();
        file.display().to_string()
    };
    let authority = format!("--client-ca={}", file("ca.pem", &ours.cert_pem()));
    let identity = |name: &str, authority: &Authority| {
        let Identity { cert_pem, key_pem } = authority.issue(KeyKind::Ecdsa, &["client.test"]);
        [file(&format!("{name}.pem"), &cert_pem), file(&format!("{name}.key"), &key_pem)]
    };
    let (good, bad) = (identity("good", &ours), identity("bad", &theirs));
    let curl = Curl::new();
    for (demand, without) in [("--client-cert=required", 0), ("--client-cert=optional", 200)] {
        let proxy = proxy(&[&authority, demand]);
        let url = format!("https://{}/health", proxy.address());
        for version in ["1.2", "1.3"] {
            let status = |identity: Option<&[String; 2]>| {
                let mut args = vec!["--tls-max", version, &url];
                if let Some([certificate, key]) = identity {
                    args.extend(["--cert", certificate, "--key", key]);
                }
                curl.attempt(&args).1.status
            };
            assert_eq!([Some(&good), Some(&bad), None].map(status), [200, 0, without], "{demand} {version}");
        }
    }
}

#[test]
fn http_1_1_is_negotiated_and_a_client_of_h2_alone_is_told_no() {
    let proxy = proxy(&[]);
    let url = format!("https://{}/health", proxy.address());
    let both = Curl::new().get(&["--http2", &url]);
    assert!(both.status == 200 && both.head.starts_with("HTTP/1.1"), "{}", both.head);
    assert!(both.log.contains("server accepted http/1.1"), "{}", both.log);
    let none = Curl::new().get(&["--no-alpn", &url]);
    assert_eq!(none.status, 200);
    for version in ["-tls1_2", "-tls1_3"] {
        let alone = openssl(&proxy, &format!("-alpn h2 {version}"));
        assert!(alone.output.contains("alert no application protocol"), "{}", alone.output);
        assert!(!alone.output.contains("DCV Proxy OK"));
    }
}

#[test]
fn the_server_name_chooses_among_certificates() {
    let pairs = ["one.test", "*.two.test"].map(|name| Identity::self_signed(KeyKind::Ecdsa, &[name]));
    let files = Files::new(&pairs);
    let proxy = files.proxy();
    for (asked, given) in [
        ("-servername one.test", "CN = one.test"),
        ("-servername a.two.test", "CN = *.two.test"),
        ("-servername A.TWO.TEST", "CN = *.two.test"),
        ("-servername other.test", "CN = one.test"),
        ("-noservername", "CN = one.test"),
    ] {
        let answer = openssl(&proxy, asked).output;
        assert!(answer.contains("DCV Proxy OK") && answer.contains(given), "{asked}: {answer}");
    }
}

#[test]
fn ecdsa_is_preferred_and_rsa_given_to_who_knows_no_other() {
    let pairs = [KeyKind::Rsa, KeyKind::Ecdsa].map(|kind| Identity::self_signed(kind, &["one.test"]));
    let files = Files::new(&pairs);
    let proxy = files.proxy();
    for version in ["-tls1_2", "-tls1_3"] {
        for (asked, given) in [
            ("", "Peer signature type: ECDSA"),
            ("-sigalgs RSA-PSS+SHA256:ECDSA+SHA256", "Peer signature type: ECDSA"),
            ("-sigalgs RSA-PSS+SHA256", "Peer signature type: RSA-PSS"),
        ] {
            let answer = openssl(&proxy, &format!("{version} {asked} -servername one.test")).output;
            assert!(answer.contains("DCV Proxy OK") && answer.contains(given), "{version} {asked}: {answer}");
        }
    }
}

#[test]
fn a_certificate_of_an_authority_is_verified_by_curl() {
    let authority = Authority::new("authority");
    let files = Files::new(&[authority.issue(KeyKind::Ecdsa, &["127.0.0.1"])]);
    let ca = files.folder.path().join("ca.pem");
    fs::write(&ca, authority.cert_pem()).unwrap();
    let proxy = files.proxy();
    let url = format!("https://{}/health", proxy.address());
    let strict = ["-sS", "--max-time", "60", "--cacert"];
    let ran = run("curl", &[&strict[..], &[&ca.display().to_string(), &url]].concat());
    assert!(ran.success && ran.output.contains("DCV Proxy OK"), "{}", ran.log);
    fs::write(&ca, Authority::new("other").cert_pem()).unwrap();
    let ran = run("curl", &[&strict[..], &[&ca.display().to_string(), &url]].concat());
    assert!(!ran.success && ran.output.is_empty(), "{}", ran.output);
}

#[test]
fn a_client_may_resume_its_tls_session() {
    let proxy = proxy(&[]);
    let folder = tempfile::tempdir().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let session = folder.path().join(version).display().to_string();
        let first = openssl(&proxy, &format!("{version} -sess_out {session}")).output;
        assert!(first.contains("DCV Proxy OK") && first.contains("New, TLSv1"), "{first}");
        let second = openssl(&proxy, &format!("{version} -sess_in {session}")).output;
        assert!(second.contains("DCV Proxy OK") && second.contains("Reused, TLSv1"), "{second}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_sessions_to_agents_are_resumed() {
    for tls in [AgentTls::Tls12, AgentTls::Tls13] {
        let agent = Agent::start(AgentConfig { tls, ..AgentConfig::default() }).await.unwrap();
        let front = Front::start(agent.address, &["--agent-idle-max=0"]).await;
        for _ in 0..4 {
            assert_eq!(front.ask("GET /x").await.status, 200);
        }
        assert_eq!((agent.seen.handshakes(), agent.seen.resumed()), (4, 3), "{tls:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_and_the_start_of_its_body_are_one_record() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = Front::start(agent.address, &[]).await;
    let script = format!(
        "printf 'GET /{}/x HTTP/1.1\\r\\nHost: p\\r\\nConnection: close\\r\\n\\r\\n' |
         timeout 60 openssl s_client -connect {} -ign_eof -tls1_2 -msg 2>&1",
        agent.address.ip(),
        front.secure()
    );
    let said = run("sh", &["-c", &script]).output;
    assert!(said.contains("HTTP/1.1 200"), "{said}");
    // Records of application data (RFC 5246 6.2.1) that came from the proxy.
    let lines: Vec<&str> = said.lines().collect();
    let received = |pair: &&[&str]| pair[0].contains("<<<") && pair[1].trim().starts_with("17 03 03");
    assert_eq!(lines.windows(2).filter(received).count(), 1, "{said}");
}

/// The server name that the proxy sends to an agent.
async fn server_name(flags: &[&str]) -> Option<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let front = Front::start(listener.local_addr().unwrap(), flags).await;
    let name = Arc::new(Mutex::new(None));
    let seen = name.clone();
    let agent = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await.unwrap();
        *seen.lock().unwrap() = Some(start.client_hello().server_name().map(str::to_owned));
    });
    assert_eq!(front.ask("GET /x").await.status, 502);
    agent.await.unwrap();
    eventually("the agent has heard it", || name.lock().unwrap().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_never_sent_as_server_name() {
    assert_eq!(server_name(&[]).await, None);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, Authority::new("authority").cert_pem()).unwrap();
    let ca = format!("--agent-ca={}", ca.display());
    assert_eq!(server_name(&["--agent-tls=verify", &ca]).await, None);
    let named = server_name(&["--agent-tls=verify", &ca, "--agent-name=desktops.test"]).await;
    assert_eq!(named.as_deref(), Some("desktops.test"));
}
