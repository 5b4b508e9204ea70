//! TLS towards clients as openssl and curl see it, and towards agents as they see it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::sync::{Arc, Mutex};

use harness::agent::{Agent, AgentConfig, AgentTls};
use harness::certificates::{Authority, Identity, KeyKind};
use harness::process::eventually;
use harness::proxy::Proxy;
use harness::proxy_under_test::ProxyUnderTest;
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
    eventually("it is told", || {
        proxy.log().contains("it offers only TLS 1.2: it needs TLS 1.3").then_some(())
    });
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

/// Where nobody issues certificates, people put each client's own into the file.
#[test]
fn a_clients_own_certificate_is_trusted_where_it_stands_in_the_file_and_one_of_version_1_where_its_issuer_does()
 {
    let folder = tempfile::tempdir().unwrap();
    let script = "cd $0
        openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=ann -keyout ann.key -out ann
        openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=bob -keyout bob.key -out bob -addext basicConstraints=CA:FALSE
        openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=ann -keyout eve.key -out eve
        openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=ca -keyout ca.key -out ca
        openssl req -new -newkey rsa:2048 -nodes -subj /CN=old -keyout old.key -out request
        openssl x509 -req -in request -CA ca -CAkey ca.key -CAcreateserial -out old
        cat ann bob ca > all";
    let path = |name: &str| folder.path().join(name).display().to_string();
    let made = run("sh", &["-ec", script, &path("")]);
    assert!(made.success, "{}", made.log);
    let curl = Curl::new();
    for (file, welcome) in [("all", &["ann", "bob", "old"][..]), ("bob", &["bob"]), ("ca", &["old"])] {
        let proxy = proxy(&[&format!("--client-ca={}", path(file))]);
        let url = format!("https://{}/health", proxy.address());
        for version in ["1.2", "1.3"] {
            for name in ["ann", "bob", "old", "eve"] {
                let (certificate, key) = (path(name), path(&format!("{name}.key")));
                let args = ["--tls-max", version, &url, "--cert", &certificate, "--key", &key];
                let status = if welcome.contains(&name) { 200 } else { 0 };
                assert_eq!(curl.attempt(&args).1.status, status, "{name} by {file}, {version}");
            }
        }
    }
}

/// Bytes, and the end of the connection.
fn say(proxy: &Proxy, bytes: &[u8]) {
    let mut client = std::net::TcpStream::connect(proxy.address()).unwrap();
    client.write_all(bytes).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // Until it has ended too.
    let _ = client.read_to_end(&mut Vec::new());
}

#[test]
fn each_handshake_that_fails_is_counted_by_its_reason_and_told_in_plain_words() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let files = Curl::new();
    let ca = format!("--client-ca={}", files.file("ca", ours.cert_pem().as_bytes()));
    let mut proxy = proxy(&[&ca, "--admin=127.0.0.1:0"]);
    let figures = proxy
        .until("shows figures", |log| Some(log.split_once("admin page at ")?.1.lines().next()?.to_owned()));
    let counted = |reason: &str| {
        let line = format!("reason=\"{reason}\"}} 1");
        let figures = format!("{figures}metrics");
        let metrics =
            || Curl::new().get(&["--http1.1", &figures]).text().lines().any(|it| it.contains(&line));
        eventually(&line, || metrics().then_some(()));
    };
    let shown = |name: &str, authority: &Authority| {
        let Identity { cert_pem, key_pem } = authority.issue(KeyKind::Ecdsa, &["client.test"]);
        let cert = files.file(&format!("{name}.cert"), cert_pem.as_bytes());
        format!("-cert {cert} -key {}", files.file(&format!("{name}.key"), key_pem.as_bytes()))
    };
    let (good, bad) = (shown("good", &ours), shown("bad", &theirs));
    let distrust =
        format!("{good} -verify_return_error -CAfile {}", files.file("theirs", theirs.cert_pem().as_bytes()));
    for (args, reason, told) in [
        (
            "-tls1_1 -cipher ALL:@SECLEVEL=0",
            "tls_version",
            "it offers only TLS 1.1: it needs TLS 1.2 or later",
        ),
        ("-tls1_2 -cipher AES128-SHA", "tls_cipher_suites", "it takes none of the cipher suites or curves"),
        ("-alpn imap", "tls_alpn", "it wants a protocol that is not spoken here"),
        ("", "certificate_missing", "it shows no certificate (--client-ca)"),
        (&bad, "certificate_untrusted", "its certificate is not issued by an authority of --client-ca"),
        (&distrust, "tls_alert", "it does not accept the certificate it was shown (UnknownCA)"),
    ] {
        assert!(!openssl(&proxy, args).output.contains("DCV Proxy OK"), "{args}");
        counted(reason);
        proxy.until("tells", |log| {
            log.lines()
                .any(|line| line.contains("client=127.0.0.1 reason=") && line.contains(told))
                .then_some(())
        });
    }
    assert!(openssl(&proxy, &good).output.contains("DCV Proxy OK"));
    // A record of a handshake message that is none, and half a hello.
    say(&proxy, &[22, 3, 1, 0, 4, 99, 0, 0, 0]);
    counted("tls_error");
    say(&proxy, &[22, 3, 1, 1, 0, 1]);
    counted("handshake_aborted");
    // A warning of close_notify (RFC 8446 6.1).
    say(&proxy, &[21, 3, 1, 0, 2, 1, 0]);
    say(&proxy, &[0x80, 0x2e, 1, 0, 2]);
    counted("not_tls");
    let before = proxy.log().matches("client rejected").count();
    // Who looks whether the port is open does nothing wrong.
    for _ in 0..8 {
        say(&proxy, b"");
    }
    assert!(openssl(&proxy, &good).output.contains("DCV Proxy OK"));
    assert_eq!(proxy.log().matches("client rejected").count(), before);
    say(&proxy, b"GET / HTTP/1.1\r\n\r\n");
    assert!(proxy.terminate().success());
    let sum = "rejections: handshake_aborted 2, not_tls 2, tls_version 1, tls_cipher_suites 1, tls_alpn 1, tls_alert 1, \
               tls_error 1, certificate_missing 1, certificate_untrusted 1";
    assert!(proxy.log().contains(sum), "{}", proxy.log());
}

#[test]
fn a_handshake_that_takes_too_long_and_a_certificate_that_has_expired_are_counted() {
    let files = Curl::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["client.test".to_owned()]).unwrap();
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
    let cert = files.file("cert", params.self_signed(&key).unwrap().pem().as_bytes());
    let shown = format!("-cert {cert} -key {}", files.file("key", key.serialize_pem().as_bytes()));
    let mut proxy = proxy(&[&format!("--client-ca={cert}"), "--header-timeout=1s"]);
    let _silent = std::net::TcpStream::connect(proxy.address()).unwrap();
    proxy.until("tells of the silent one", |log| log.contains("reason=handshake_timeout").then_some(()));
    for _ in 0..3 {
        assert!(!openssl(&proxy, &shown).output.contains("DCV Proxy OK"));
    }
    proxy.until("tells twice of the other", |log| {
        (log.matches("its certificate has expired").count() == 2).then_some(())
    });
    assert!(proxy.terminate().success());
    assert!(proxy.log().contains("certificate_expired 3"), "{}", proxy.log());
}

#[test]
fn without_http2_http_1_1_is_negotiated_and_a_client_of_h2_alone_is_told_no() {
    let proxy = proxy(&["--http2=off"]);
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
        let front = ProxyUnderTest::start(agent.address, &["--agent-idle-max=0"]).await;
        for _ in 0..4 {
            assert_eq!(front.ask("GET /x").await.status, 200);
        }
        assert_eq!((agent.seen.handshakes(), agent.seen.resumed()), (4, 3), "{tls:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_and_the_start_of_its_body_are_one_record() {
    let agent = Agent::start(AgentConfig::default()).await.unwrap();
    let front = ProxyUnderTest::start(agent.address, &[]).await;
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
    let front = ProxyUnderTest::start(listener.local_addr().unwrap(), flags).await;
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
