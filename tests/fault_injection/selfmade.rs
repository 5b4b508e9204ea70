//! Agents with certificates that people make with openssl, and with the suites of old programs: `openssl s_server` is
//! the agent.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use harness::process::{Process, eventually};
use harness::proxy;
use harness::proxy_under_test::ProxyUnderTest;
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Runs lines of the shell there.
    #[track_caller]
    fn shell(&self, lines: &str) {
        let mut command = Command::new("timeout");
        command.args(["60", "sh", "-ec", lines]).current_dir(self.0.path());
        let mut process = Process::start(command);
        assert!(process.wait().success(), "{lines}: {}", process.log());
    }

    /// A certificate that signs itself, with these arguments of `openssl req` besides.
    #[track_caller]
    fn itself(&self, name: &str, args: &str) {
        self.shell(&format!(
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name} {args}"
        ));
    }

    /// A certificate that the authority `ca` has signed, of version 1 unless `args` say otherwise.
    #[track_caller]
    fn signed(&self, name: &str, subject: &str, args: &str) {
        self.shell(&format!(
            "openssl req -new -newkey rsa:2048 -nodes -keyout {name}.key -subj {subject} -out request
             openssl x509 -req -in request -CA ca -CAkey ca.key -CAcreateserial -out {name} {args}"
        ));
    }

    /// An agent with the certificate of that name.
    fn agent(&self, name: &str, args: &[&str]) -> OpenSsl {
        let mut command = Command::new("timeout");
        let (certificate, key) = (self.path(name), self.path(&format!("{name}.key")));
        let server = ["300", "openssl", "s_server", "-accept", "127.0.0.1:0", "-www", "-cert"];
        command.args(server).args([&*certificate, "-key", &key]).args(args);
        let mut process = Process::start(command).without_grace();
        let address = process.until("accepts", |process| {
            let said = process.output();
            said.lines().find_map(|line| line.strip_prefix("ACCEPT ")?.parse().ok())
        });
        OpenSsl { _process: process, address }
    }

    /// The status of a request to that agent where these flags verify it, its answer, and the log.
    async fn status(&self, name: &str, flags: &[&str]) -> (u16, String) {
        self.asked(name, &[], &[&["--agent-tls=verify"], flags].concat()).await
    }

    async fn asked(&self, name: &str, args: &[&str], flags: &[&str]) -> (u16, String) {
        let agent = self.agent(name, args);
        let front = ProxyUnderTest::start(agent.address, flags).await;
        let answer = front.ask("GET /x").await;
        if answer.status == 200 {
            return (200, String::new());
        }
        let told =
            || front.proxy.log().lines().find(|line| line.contains("TLS handshake")).map(str::to_owned);
        let told = eventually("the operator is told", told);
        (answer.status, format!("{told} {}", String::from_utf8_lossy(&answer.body)))
    }

    fn ca(&self, name: &str) -> String {
        format!("--agent-ca={}", self.path(name))
    }

    fn pin(&self, name: &str) -> String {
        self.shell(&format!("openssl x509 -noout -fingerprint -sha256 -in {name} | sed 's/.*=//' > pin"));
        format!("--agent-pin=sha256:{}", fs::read_to_string(self.path("pin")).unwrap().trim())
    }
}

struct OpenSsl {
    _process: Process,
    address: SocketAddr,
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_own_certificate_is_trusted_where_it_stands_in_the_file() {
    let folder = Folder::new();
    folder.itself("own", "-subj /CN=dcv -addext subjectAltName=IP:127.0.0.1");
    folder.itself("other", "-subj /CN=dcv -addext subjectAltName=IP:127.0.0.1");
    folder.itself(
        "leaf",
        "-subj /CN=leaf -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE",
    );
    folder.shell("cat other own leaf > all");
    for name in ["own", "other", "leaf"] {
        assert_eq!(folder.status(name, &[&folder.ca("all")]).await.0, 200, "{name}");
        assert_eq!(folder.status(name, &[&folder.ca(name)]).await.0, 200, "{name}");
    }
    let (status, told) = folder.status("own", &[&folder.ca("other")]).await;
    assert!(status == 502 && told.contains("its certificate"), "{status} {told}");
    let (status, told) = folder.status("own", &[&folder.ca("leaf")]).await;
    assert!(status == 502 && told.contains("is an authority's own (CA:TRUE): put"), "{status} {told}");
    // It stands in the file for one name, not for all.
    let (status, told) = folder.status("own", &[&folder.ca("own"), "--agent-name=other.test"]).await;
    assert!(
        status == 502 && told.contains("its certificate is not for other.test, but for"),
        "{status} {told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_in_the_file_and_no_authority_vouches_for_nobody() {
    let folder = Folder::new();
    folder.itself("ca", "-subj /CN=leaf -addext basicConstraints=CA:FALSE");
    folder.signed("agent", "/CN=dcv.test", "");
    let (status, told) = folder.status("agent", &[&folder.ca("ca"), "--agent-name=dcv.test"]).await;
    assert!(status == 502 && told.contains("its certificate"), "{status} {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_common_name_counts_where_there_is_no_other() {
    let folder = Folder::new();
    folder.itself("ca", "-subj /CN=authority");
    folder.signed("old", "/CN=dcv.test", "");
    folder.shell("echo basicConstraints=CA:FALSE > v3; printf 'subjectAltName=DNS:else.test' > san");
    folder.signed("new", "/CN=dcv.test", "-extfile v3");
    folder.signed("wild", "/CN=*.dcv.test", "-extfile v3");
    folder.signed("address", "/CN=127.0.0.1", "");
    folder.signed("two", "/CN=dcv.test/CN=else.test", "");
    folder.signed("both", "/CN=dcv.test", "-extfile san");
    folder.itself("own", "-subj /CN=dcv.test");
    let ca = folder.ca("ca");
    for (name, flags, status) in [
        ("old", &[&*ca, "--agent-name=DCV.test"][..], 200),
        ("new", &[&ca, "--agent-name=dcv.test"], 200),
        ("wild", &[&ca, "--agent-name=one.dcv.test"], 200),
        ("wild", &[&ca, "--agent-name=dcv.test"], 502),
        ("wild", &[&ca, "--agent-name=a.one.dcv.test"], 502),
        ("address", &[&ca], 200),
        ("own", &[&folder.ca("own"), "--agent-name=dcv.test"], 200),
        ("own", &[&ca, "--agent-name=dcv.test"], 502),
        ("old", &[&ca, "--agent-name=other.test"], 502),
        ("old", &[&ca], 502),
        ("two", &[&ca, "--agent-name=dcv.test"], 502),
        ("both", &[&ca, "--agent-name=dcv.test"], 502),
        ("both", &[&ca, "--agent-name=else.test"], 200),
    ] {
        let (got, told) = folder.status(name, flags).await;
        assert_eq!(got, status, "{name} {flags:?}: {told}");
    }
    let (_, told) = folder.status("old", &[&ca]).await;
    // The log has it as a field in quotes.
    let told = told.replace('\\', "");
    assert!(
        told.contains("is not for 127.0.0.1: it has no subjectAltName, and its common name is \"dcv.test\""),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_common_name_gets_around_no_constraint_and_no_signature() {
    let folder = Folder::new();
    folder.itself("ca", "-subj /CN=authority -addext 'nameConstraints=permitted;DNS:else.test'");
    folder.shell("echo basicConstraints=CA:FALSE > v3");
    folder.signed("constrained", "/CN=dcv.test", "-extfile v3");
    let (status, told) = folder.status("constrained", &[&folder.ca("ca"), "--agent-name=dcv.test"]).await;
    assert!(status == 502 && told.contains("no subjectAltName"), "{status} {told}");
    // Another authority of the same name.
    folder.itself("false", "-subj /CN=authority");
    for extensions in ["", "-extfile v3"] {
        folder.shell("cp ca ca.real; cp ca.key ca.real.key; cp false ca; cp false.key ca.key");
        folder.signed("forged", "/CN=dcv.test", extensions);
        folder.shell("cp ca.real ca; cp ca.real.key ca.key");
        let (status, told) = folder.status("forged", &[&folder.ca("ca"), "--agent-name=dcv.test"]).await;
        assert!(status == 502 && told.contains("its certificate"), "{status} {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_times_of_a_certificate_that_is_in_the_file_are_looked_at() {
    let folder = Folder::new();
    for (name, from, until, told) in
        [("past", 2001, 2002, "has expired"), ("future", 4000, 4001, "is not valid yet")]
    {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        fs::write(folder.path(name), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(folder.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        let (status, log) = folder.status(name, &[&folder.ca(name)]).await;
        assert!(status == 502 && log.contains(&format!("its certificate {told}")), "{status} {log}");
        // A pin is for that certificate, whatever it says.
        assert_eq!(folder.status(name, &[&folder.pin(name)]).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_for_that_certificate_whatever_it_is() {
    let folder = Folder::new();
    folder.itself("ca", "-subj /CN=authority");
    folder.signed("old", "/CN=dcv", "");
    folder.itself("strange", "-subj /CN=dcv -addext 1.2.3.4=critical,DER:0500 -set_serial -5");
    folder.shell(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:secp521r1 -nodes -subj /CN=c -keyout curve.key -out curve
         openssl req -x509 -newkey ed25519 -nodes -subj /CN=e -keyout edwards.key -out edwards",
    );
    for name in ["old", "strange", "curve", "edwards"] {
        let pin = folder.pin(name);
        // In TLS 1.2 openssl signs by a curve only if the client exchanges keys on it too.
        let versions = if name == "curve" { &["-tls1_3"][..] } else { &["-tls1_2", "-tls1_3"] };
        for version in versions {
            let (status, told) = folder.asked(name, &[version], &["--agent-tls=verify", &pin]).await;
            assert_eq!(status, 200, "{name} {version}: {told}");
        }
        let agent = folder.agent(name, &[]);
        let mut asked = Process::start(proxy::command(&["pin", &agent.address.to_string()]));
        assert_eq!(asked.wait().code(), Some(0), "{}", asked.log());
    }
    let (status, told) = folder.status("ca", &[&folder.pin("old")]).await;
    assert!(status == 502 && told.contains("its certificate is none of --agent-pin"), "{status} {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_would_shut_the_agent_out_is_not_printed() {
    let folder = Folder::new();
    folder.shell("openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=dcv -keyout weak.key -out weak");
    let weak = ["-cipher", "DEFAULT:@SECLEVEL=0"];
    let told = "its certificate has an RSA key of 1024 bits, whose signatures are not verified: it needs 2048 or more";
    for version in ["-tls1_2", "-tls1_3"] {
        let args = [&weak[..], &[version]].concat();
        let agent = folder.agent("weak", &args);
        let mut asked = Process::start(proxy::command(&["pin", &agent.address.to_string()]));
        assert_eq!(asked.wait().code(), Some(1));
        let log = asked.log();
        assert!(
            asked.output().is_empty() && log.contains(told) && log.contains("`openssl req -x509"),
            "{log}"
        );
        let (status, log) = folder.asked("weak", &args, &["--agent-tls=verify", &folder.pin("weak")]).await;
        assert!(status == 502 && log.contains(told), "{status} {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_old_suites_or_versions_is_told_with_what_it_needs() {
    let folder = Folder::new();
    folder.itself("own", "-subj /CN=dcv");
    for (args, needed) in [
        (&["-tls1_2", "-cipher", "AES128-GCM-SHA256"][..], "ECDHE-RSA-AES128-GCM-SHA256"),
        (&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"], "ECDHE-RSA-AES128-GCM-SHA256"),
        (&["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"], "ECDHE-RSA-AES128-GCM-SHA256"),
        (&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "it needs TLS 1.2 or later"),
        (&["-tls1", "-cipher", "ALL:@SECLEVEL=0"], "it needs TLS 1.2 or later"),
    ] {
        let (status, told) = folder.asked("own", args, &[]).await;
        assert!(status == 502 && told.contains(needed), "{args:?}: {status} {told}");
        assert!(told.contains("it speaks no TLS that is safe: it needs TLS 1.3, or"), "{told}");
        let agent = folder.agent("own", args);
        let mut asked = Process::start(proxy::command(&["pin", &agent.address.to_string()]));
        assert_eq!(asked.wait().code(), Some(1));
        assert!(asked.log().contains(needed), "{}", asked.log());
    }
}
