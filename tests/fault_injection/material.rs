//! Certificates, keys and lists of authorities as people have them: made by openssl, joined by `cat`, saved on Windows.
//! What can serve does, whole; what can't is refused with the line, and with what to do.

use std::fs;
use std::process::Command;

use harness::certificates::{Authority, Identity, KeyKind};
use harness::process::Process;
use harness::proxy::{self, Proxy};
use tempfile::TempDir;

/// A folder that commands run in.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    /// A certificate and its key, `cert` and `key`.
    fn identity(&self, identity: &Identity) {
        self.put("cert", &identity.cert_pem);
        self.put("key", &identity.key_pem);
    }

    /// Runs a line of the shell there; gives what it prints.
    #[track_caller]
    fn shell(&self, line: &str) -> String {
        let mut command = Command::new("timeout");
        command.args(["60", "sh", "-ec", line]).current_dir(self.0.path());
        let mut process = Process::start(command);
        assert!(process.wait().success(), "{line}: {}", process.log());
        process.output()
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = proxy::command(flags);
        command.current_dir(self.0.path());
        command
    }

    /// Exit code, stdout and stderr of `check`.
    fn check(&self, flags: &[&str]) -> (Option<i32>, String, String) {
        let mut process = Process::start(self.command(&[&["check"], flags].concat())).without_grace();
        let code = process.wait().code();
        (code, process.output(), process.log())
    }

    #[track_caller]
    fn refused(&self, flags: &[&str], told: &str) {
        let (code, output, log) = self.check(flags);
        assert_eq!((code, &*output), (Some(2), ""), "{told}: {log}");
        assert!(log.contains(told), "{told:?} in {log}");
    }

    /// The numbers of certificates that are sent where `cert` and `key` serve.
    #[track_caller]
    fn sent(&self, cert: &str, key: &str) -> usize {
        let flags =
            ["--listen=127.0.0.1:0", "--workers=1", &format!("--cert={cert}"), &format!("--key={key}")];
        let proxy = Proxy::start_by(self.command(&flags), &flags);
        let line =
            format!("openssl s_client -connect {} -showcerts </dev/null 2>&1 || true", proxy.address());
        self.shell(&line).matches("-----BEGIN CERTIFICATE-----").count()
    }
}

const SERVE: [&str; 2] = ["--cert=cert", "--key=key"];

#[test]
fn every_certificate_of_a_chain_is_sent_whatever_stands_around_it() {
    let folder = Folder::new();
    let authority = Authority::new("authority");
    let identity = authority.issue(KeyKind::Ecdsa, &["one.test"]);
    let (own, issuer) = (identity.cert_pem.replace("\r\n", "\n"), authority.cert_pem().replace("\r\n", "\n"));
    folder.put("key", &identity.key_pem);
    folder.put("own", &own);
    let dump = folder.shell("openssl x509 -text -in own");
    let bag = "Bag Attributes\n    localKeyID: 01\nsubject=CN = one.test\n\nissuer=CN = authority\n";
    for chain in [
        format!("{own}{issuer}"),
        format!("\u{feff}{own}\u{feff}{issuer}").replace('\n', "\r\n"),
        format!("{own}{issuer}").replace('\n', "\r"),
        format!("{own}{issuer}").replace('\n', "  \n"),
        format!("{bag}{own}{bag}{}", issuer.trim_end()),
        format!("{dump}{issuer}{}", identity.key_pem),
        format!("{own}-----BEGIN DH PARAMETERS-----\nMAYCAQsCAQI=\n-----END DH PARAMETERS-----\n{issuer}"),
    ] {
        folder.put("cert", &chain);
        assert_eq!(folder.sent("cert", "key"), 2, "{chain}");
    }
    // One file for both, as HAProxy has it.
    folder.put("all", format!("{own}{}{issuer}", identity.key_pem));
    assert_eq!(folder.sent("all", "all"), 2);
}

#[test]
fn a_file_that_would_lose_a_certificate_is_refused_with_the_line() {
    let folder = Folder::new();
    let authority = Authority::new("authority");
    let identity = authority.issue(KeyKind::Ecdsa, &["one.test"]);
    folder.identity(&identity);
    folder.put("ca", authority.cert_pem());
    let lines = identity.cert_pem.trim_end().lines().count();
    let joined = format!("{}{}", identity.cert_pem.trim_end(), authority.cert_pem());
    folder.put("joined", &joined);
    let told = format!("joined: line {lines}: -----BEGIN ...-----");
    folder.refused(&["--cert=joined", "--key=key"], &told);
    folder.refused(&[&SERVE[..], &["--client-ca=joined"]].concat(), &told);
    folder.refused(&["--agent-tls=verify", "--agent-ca=joined"], &told);
    folder.put("joined", format!("{}{}", identity.key_pem.trim_end(), identity.cert_pem));
    folder.refused(&["--cert=cert", "--key=joined"], "joined: line ");
    let utf_16: Vec<u8> =
        "\u{feff}".encode_utf16().chain(joined.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    folder.put("wide", utf_16);
    folder.refused(&["--cert=wide", "--key=key"], "wide: line 1: the file is UTF-16 text");
    folder.shell(
        "openssl x509 -in cert -outform DER -out der; openssl crl2pkcs7 -nocrl -certfile cert -out p7",
    );
    folder.refused(&["--cert=der", "--key=key"], "der: line 1: the file is binary (DER), not PEM");
    folder.refused(&["--cert=p7", "--key=key"], "p7: line 1: PKCS#7: `openssl pkcs7 -print_certs -in p7`");
    folder.shell(
        "openssl x509 -in cert -trustout -out trusted; openssl req -new -key key -subj /CN=a -out request",
    );
    folder.refused(&["--cert=trusted", "--key=key"], "`openssl x509 -in trusted`");
    folder.refused(&["--cert=request", "--key=key"], "holds no PEM certificate, but CERTIFICATE REQUEST");
    folder.put("cut", &identity.cert_pem[..identity.cert_pem.len() - 40]);
    folder.refused(&["--cert=cut", "--key=key"], "cut: line 1: -----BEGIN CERTIFICATE----- has no");
    folder.put("no", "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n");
    folder.refused(&["--cert=no", "--key=key"], "no: line 1: the certificate is damaged");
    folder.refused(&[&SERVE[..], &["--client-ca=no"]].concat(), "no: line 1: the certificate is damaged");
}

#[test]
fn an_encrypted_key_is_told_with_the_command_that_decrypts_it() {
    let folder = Folder::new();
    folder.identity(&Identity::self_signed(KeyKind::Rsa, &["one.test"]));
    folder.shell("openssl pkcs8 -topk8 -in key -out new.key -passout pass:x");
    folder.shell("openssl rsa -traditional -aes256 -in key -out old.key -passout pass:x");
    for name in ["new.key", "old.key"] {
        let command = format!("openssl pkey -in {name} -out {name}.plain");
        let told = format!(
            "{name}: line 1: the key is encrypted, and nobody is there to type its password: `{command}`"
        );
        folder.refused(&["--cert=cert", &format!("--key={name}")], &told);
        folder.shell(&format!("{command} -passin pass:x"));
        assert_eq!(folder.sent("cert", &format!("{name}.plain")), 1);
    }
}

#[test]
fn keys_are_taken_in_every_form_that_openssl_writes() {
    let folder = Folder::new();
    for (make, forms) in [
        (
            "openssl ecparam -name prime256v1 -genkey -out key",
            "cp key a; openssl pkcs8 -topk8 -nocrypt -in key -out b",
        ),
        ("openssl genrsa -out key 2048", "openssl rsa -traditional -in key -out a; cat a cert > b"),
        ("openssl genpkey -algorithm ed25519 -out key", "cp key a; sed 's/$/\\r/' key > b"),
    ] {
        folder.shell(make);
        folder.shell("openssl req -x509 -key key -subj /CN=a -out cert");
        folder.shell(forms);
        for key in ["key", "a", "b"] {
            let (code, _, log) = folder.check(&["--cert=cert", &format!("--key={key}")]);
            assert_eq!(code, Some(0), "{make}: {key}: {log}");
        }
    }
    folder.shell(
        "openssl genrsa -out weak 1024; cat key key > two; ssh-keygen -q -t ecdsa -N '' -f ssh || touch ssh",
    );
    folder.refused(
        &["--cert=cert", "--key=weak"],
        "weak: line 1: the key can't be used: RSA of 2048 to 8192 bits",
    );
    folder.refused(&["--cert=cert", "--key=two"], "two: line 4: a second private key, beside that of line 1");
    folder.refused(&["--cert=cert", "--key=cert"], "cert: holds no PEM private key, but CERTIFICATE");
}

#[test]
fn a_certificate_and_a_key_that_do_not_belong_together_are_told_apart() {
    let folder = Folder::new();
    let authority = Authority::new("authority");
    let [one, other] = [(), ()].map(|()| authority.issue(KeyKind::Ecdsa, &["one.test"]));
    folder.identity(&one);
    folder.put("other.cert", &other.cert_pem);
    folder.put("other.key", &other.key_pem);
    folder.put("wrong", format!("{}{}", authority.cert_pem(), one.cert_pem));
    folder.refused(
        &["--cert=wrong", "--key=key"],
        "wrong with key: the key belongs to certificate 2 of the chain: put the host's own certificate first",
    );
    folder.refused(
        &["--cert=cert", "--key=other.key"],
        "cert with other.key: the key belongs to another certificate",
    );
    folder.refused(
        &["--cert=cert", "--key=other.key", "--cert=other.cert", "--key=key"],
        "cert with other.key: the key belongs to other.cert: give each --cert its --key in the same order",
    );
}

#[test]
fn a_certificate_of_version_1_serves() {
    let folder = Folder::new();
    folder.shell("openssl req -new -newkey rsa:2048 -nodes -keyout key -subj /CN=one.test -out request");
    folder.shell("openssl x509 -req -in request -signkey key -out cert");
    assert!(folder.shell("openssl x509 -noout -text -in cert").contains("Version: 1"));
    assert_eq!(folder.sent("cert", "key"), 1);
}

#[test]
fn what_serves_and_is_still_not_as_it_should_be_is_warned_of() {
    let folder = Folder::new();
    let issued = |from, until| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["one.test".to_owned()]).unwrap();
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(until, 1, 1));
        Identity { cert_pem: params.self_signed(&key).unwrap().pem(), key_pem: key.serialize_pem() }
    };
    let [past, future] = [issued(2001, 2002), issued(4000, 4001)];
    folder.put("future", &future.cert_pem);
    folder.put("both", format!("{}{}", Authority::new("a").cert_pem(), past.cert_pem));
    folder.identity(&past);
    let all = ["--client-ca=future", "--agent-tls=verify", "--agent-ca=both", "--listen=127.0.0.1:0"];
    let flags = [&SERVE[..], &all].concat();
    folder.shell("chmod 644 key");
    let told = [
        "cert: the certificate has expired",
        "future: the certificate is not valid yet",
        "both: certificate 2 has expired",
        "key: everybody on this host may read this private key: `chmod o= key`",
    ];
    let (code, _, log) = folder.check(&flags);
    assert_eq!((code, log.matches("dcv-splice: warning: ").count()), (Some(0), told.len()), "{log}");
    let mut proxy = Proxy::start_by(folder.command(&flags), &flags);
    for told in told {
        assert!(log.contains(told), "{told}: {log}");
        proxy.until(told, |log| log.contains(told).then_some(()));
    }
    folder.shell("chmod o= key; openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=a -keyout key -out cert");
    let (_, _, log) = folder.check(&SERVE);
    assert!(log.contains("the certificate has no subjectAltName") && !log.contains("everybody"), "{log}");
    folder.shell("openssl req -x509 -key key -subj /CN=a -out cert -addext subjectAltName=DNS:a.test");
    assert_eq!(folder.check(&SERVE).2, "");
    folder.put("other", Authority::new("other").cert_pem());
    folder.shell("cat other >> cert");
    let (_, _, log) = folder.check(&SERVE);
    assert!(log.contains("certificate 2 of the chain is not the issuer of certificate 1"), "{log}");
}

/// Each as it is written there; those that ask for a password are given one.
#[test]
fn the_commands_of_the_manual_make_what_serves() {
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let manual = fs::read_to_string(manual).unwrap();
    let section = manual.split("### Made with openssl\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let commands: Vec<_> = section.lines().filter(|line| line.starts_with("openssl ")).collect();
    assert_eq!(commands.len(), 10, "{commands:?}");
    let folder = Folder::new();
    let served = |flags: &[&str]| {
        let (code, _, log) = folder.check(flags);
        assert_eq!((code, &*log), (Some(0), ""), "{flags:?}");
    };
    folder.shell("umask 077; openssl genpkey -algorithm ed25519 -aes256 -pass pass:x -out encrypted.key");
    for command in commands {
        if command.starts_with("openssl pkcs12 -in") {
            folder.shell("openssl pkcs12 -export -in proxy.crt -inkey proxy.key -certfile ca.pem -out proxy.p12 -passout pass:x");
        }
        let password = match command.split(' ').nth(1) {
            Some("pkcs12") if command.contains(" -export ") => " -passout pass:x",
            Some("pkcs12" | "pkey") => " -passin pass:x",
            _ => "",
        };
        folder.shell(&format!("umask 077; {command}{password}"));
        match command.split(' ').next_back() {
            Some("proxy.crt") => served(&["--cert=proxy.crt", "--key=proxy.key"]),
            Some("proxy.pem") => served(&["--cert=proxy.pem", "--key=proxy.pem"]),
            Some("dcv.pem") => served(&["--agent-tls=verify", "--agent-ca=dcv.pem"]),
            Some("alice.crt") => served(&["--client-ca=ca.pem"]),
            _ => {}
        }
    }
    folder.shell("openssl req -x509 -key proxy.key -subj /CN=a -addext subjectAltName=DNS:a.test -out cert");
    served(&["--cert=cert", "--key=proxy.key"]);
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let folder = Folder::new();
    folder.identity(&Identity::self_signed(KeyKind::Ecdsa, &["one.test"]));
    folder.put("users", "ann:plain\n");
    let flags = [
        "--cert=cert",
        "--key=absent.key",
        "--cert=absent.cert",
        "--key=key",
        "--client-ca=absent.ca",
        "--agent-tls=verify",
        "--agent-ca=absent.agents",
        "--htpasswd=users",
        "--access-log=absent/log",
    ];
    let told = ["absent.key", "absent.cert", "absent.ca", "absent.agents", "users: line 1", "absent/log"];
    for command in ["check", "run"] {
        let mut process = Process::start(self::Folder::command(&folder, &[&[command], &flags[..]].concat()));
        assert_eq!(process.wait().code(), Some(2));
        let log = process.log();
        for told in told {
            assert!(
                log.lines().any(|line| line.starts_with("dcv-splice: ") && line.contains(told)),
                "{told}: {log}"
            );
        }
        assert_eq!(log.lines().count(), told.len(), "{log}");
    }
}

#[test]
fn values_that_can_not_be_meant_are_told_of_with_all_else_that_is_wrong() {
    let folder = Folder::new();
    folder.put("f.toml", "agnts = []\nheader-timeout = \"0s\"\ncontrol = \"absent/control\"\ncert = \"absent.cert\"\nkey = \"absent.key\"\n");
    let flags = ["--config=f.toml", "--listen=:8443", "--workers", "0"];
    let told = [
        "f.toml:1:1: there is no agnts",
        "f.toml:2:18: invalid value '0s' for '--header-timeout <TIME>'",
        "invalid value ':8443' for '--listen <ADDR:PORT>': write 0.0.0.0:8443",
        "invalid value '0' for '--workers <N>'",
        "f.toml:4:8: absent.cert: ",
        "f.toml:5:7: absent.key: ",
    ];
    let (code, _, log) = folder.check(&flags);
    assert_eq!((code, log.lines().count()), (Some(2), told.len()), "{log}");
    for (line, told) in log.lines().zip(told) {
        assert!(line.starts_with(&format!("dcv-splice: {told}")), "{told}: {log}");
    }
    let mut run = Process::start(folder.command(&["--config=f.toml"]));
    assert_eq!((run.wait().code(), run.log().lines().count()), (Some(2), 4), "{}", run.log());
    // Flags alone that can be meant.
    let (code, _, log) = folder.check(&flags[..1]);
    assert_eq!(code, Some(2));
    assert!(log.contains("f.toml:3:11: --control absent/control: "), "{log}");
    folder.put("control", "something else");
    folder.refused(&["--control=control"], "--control control: there is something else");
}

/// As root, with an account and a configuration where the package puts them, in a mount namespace of its own.
#[test]
fn root_is_told_what_the_account_of_the_service_may_not_read() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "only root may make a mount namespace");
        eprintln!("skipped: only root may make a mount namespace");
        return;
    }
    let folder = Folder::new();
    folder
        .shell("mkdir -p etc/dcv-splice; cp /etc/group /etc/nsswitch.conf etc; chmod 755 etc etc/dcv-splice");
    folder
        .put("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndcv-splice:x:64999:64998::/nowhere:/bin/false\n");
    folder.put(
        "etc/dcv-splice/dcv-splice.toml",
        "cert = \"/etc/dcv-splice/cert\"\nkey = \"/etc/dcv-splice/key\"\n",
    );
    folder.identity(&Identity::self_signed(KeyKind::Ecdsa, &["one.test"]));
    folder.shell("mv cert key etc/dcv-splice; chmod 600 etc/dcv-splice/key");
    let check = |config: &str| {
        let inner = "mount --bind etc /etc && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", inner, "sh"]).arg(proxy::binary());
        command.args(["check", "--config", config]).current_dir(folder.0.path());
        let mut process = Process::start(command);
        (process.wait().code(), process.log())
    };
    let path = "/etc/dcv-splice/dcv-splice.toml";
    let (code, log) = check(path);
    assert_eq!((code, log.lines().count()), (Some(2), 1), "{log}");
    assert!(log.contains("dcv-splice.toml:2:7: /etc/dcv-splice/key: Permission denied"), "{log}");
    assert!(
        log.contains("(for dcv-splice, the account that the service runs as; `chgrp dcv-splice FILE;"),
        "{log}"
    );
    // Another configuration is none of that account's affair.
    folder.shell("cp etc/dcv-splice/dcv-splice.toml etc/other.toml");
    let (code, log) = check("/etc/other.toml");
    assert_eq!(code, Some(0), "{log}");
    folder.shell("chown 0:64998 etc/dcv-splice/key; chmod 640 etc/dcv-splice/key");
    assert_eq!(check(path).0, Some(0));
    folder.shell("chown 0:64997 etc/dcv-splice/key; echo 'keys:x:64997:dcv-splice' >> etc/group");
    assert_eq!(check(path).0, Some(0));
    folder.shell("chmod 700 etc/dcv-splice");
    let (code, log) = check(path);
    assert!(code == Some(2) && log.contains("Permission denied"), "{log}");
}
