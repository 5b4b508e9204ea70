//! Flags and files that can't be meant so, and ports that are taken: the exit code and what the operator is told.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use harness::certificates::{Identity, KeyKind};
use harness::process::Process;
use harness::proxy::{self, Proxy};
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// Runs the proxy to its end: the exit code, stdout and stderr.
fn run(flags: &[&str]) -> (i32, String, String) {
    let mut process = Process::start(proxy::command(flags)).without_grace();
    let status = process.wait();
    (status.code().expect("it exits by itself"), process.output(), process.log())
}

/// The flags are refused with a text that names what is wrong, by `check` too, and nothing is bound before.
#[track_caller]
fn unusable(flags: &[&str], named: &str) {
    for command in [&["check"][..], &["run"], &[]] {
        let all: Vec<&str> = command.iter().chain(flags).copied().collect();
        let (code, output, log) = run(&all);
        assert_eq!((code, output.as_str()), (2, ""), "{all:?}: {log}");
        assert!(log.contains(named), "{all:?} should name {named}: {log}");
        assert!(!log.contains("listening") && !log.contains("panicked"), "{log}");
    }
}

struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn put(&self, flag: &str, name: &str, text: &str) -> String {
        fs::write(self.folder.path().join(name), text).unwrap();
        self.flag(flag, name)
    }

    fn flag(&self, flag: &str, name: &str) -> String {
        format!("{flag}={}", Path::new(self.folder.path()).join(name).display())
    }
}

#[test]
fn a_certificate_without_its_key_is_unusable() {
    let files = Files::new();
    let identity = Identity::self_signed(KeyKind::Ecdsa, &["localhost"]);
    let cert = files.put("--cert", "cert.pem", &identity.cert_pem);
    let key = files.put("--key", "key.pem", &identity.key_pem);
    unusable(&[&cert], "--key");
    unusable(&[&key], "--cert");
    unusable(&[&cert, &cert, &key], "--key");
}

#[test]
fn a_certificate_that_can_not_be_read_is_unusable() {
    let files = Files::new();
    let identity = Identity::self_signed(KeyKind::Ecdsa, &["localhost"]);
    let key = files.put("--key", "key.pem", &identity.key_pem);
    let cert = files.put("--cert", "cert.pem", &identity.cert_pem);
    unusable(&[&files.flag("--cert", "absent.pem"), &key], "absent.pem");
    unusable(&[&files.put("--cert", "empty.pem", ""), &key], "empty.pem");
    unusable(&[&files.put("--cert", "noise.pem", "no PEM at all"), &key], "noise.pem");
    unusable(&[&cert, &files.flag("--key", "absent.pem")], "absent.pem");
    unusable(&[&cert, &files.put("--key", "swapped.pem", &identity.cert_pem)], "swapped.pem");
}

#[test]
fn a_key_of_another_certificate_is_unusable() {
    let files = Files::new();
    let [one, other] = [(), ()].map(|()| Identity::self_signed(KeyKind::Ecdsa, &["localhost"]));
    let cert = files.put("--cert", "cert.pem", &one.cert_pem);
    unusable(&[&cert, &files.put("--key", "key.pem", &other.key_pem)], "key.pem");
}

#[test]
fn a_default_agent_outside_the_agents_is_unusable() {
    unusable(&["--agents=10.0.0.0/8", "--default-agent=192.0.2.1"], "192.0.2.1");
    unusable(&["--default-agent=10.0.0.1"], "--agents 10.0.0.1/32");
}

#[test]
fn verification_without_anything_to_verify_by_is_unusable_and_so_is_the_reverse() {
    let files = Files::new();
    let pin = format!("--agent-pin=sha256:{}", "ab".repeat(32));
    unusable(&["--agent-tls=verify"], "--agent-ca");
    unusable(&[&pin], "--agent-tls verify");
    unusable(&["--agent-tls=verify", "--agent-pin=sha256:abc"], "sha256");
    unusable(&["--agent-tls=verify", &files.flag("--agent-ca", "absent.pem")], "absent.pem");
    unusable(&["--agent-tls=verify", &files.put("--agent-ca", "empty.pem", "")], "empty.pem");
}

#[test]
fn a_password_file_or_a_staple_that_can_not_be_meant_is_unusable() {
    let files = Files::new();
    unusable(&[&files.flag("--htpasswd", "absent")], "absent");
    unusable(&[&files.put("--htpasswd", "users", "# staff\nann:secret\n")], "users: line 2: ");
    fs::write(files.folder.path().join("wide"), [0xff, 0xfe, b'a', 0, b':', 0]).unwrap();
    unusable(&[&files.flag("--htpasswd", "wide")], "is UTF-16 text: `iconv");
    unusable(&["--htpasswd-agents=10.0.0.0/8"], "--htpasswd");
    let identity = Identity::self_signed(KeyKind::Ecdsa, &["localhost"]);
    let cert = files.put("--cert", "cert.pem", &identity.cert_pem);
    let key = files.put("--key", "key.pem", &identity.key_pem);
    let word = files.put("--ocsp", "word.der", "0\u{2}no word");
    unusable(&[&cert, &key, &word], "word.der");
    unusable(&[&cert, &key, &cert, &key, &word], "1 --ocsp but 2 --cert");
}

/// Or whoever looks what it is would open a port to the world.
#[test]
fn without_flags_it_tells_its_flags_and_serves_nothing() {
    let output = std::process::Command::new(proxy::binary()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("--listen") && said.contains("--agents") && !said.contains("listening on"),
        "{said}"
    );
}

#[test]
fn flags_that_make_no_sense_are_unusable() {
    unusable(&["--listen=nowhere"], "--listen");
    unusable(&["--listen=:8443"], "write 0.0.0.0:8443");
    unusable(&["--listen-plain=localhost:8443"], "write 127.0.0.1:8443");
    unusable(&["--admin=9443"], "write 0.0.0.0:9443");
    unusable(&["--agents=10.0.0.0/40"], "--agents");
    unusable(&["--workers=0"], "--workers");
    unusable(&["--header-timeout=0s"], "--header-timeout");
    unusable(&["--header-timeout=60"], "the unit is missing: write 60s or 60ms");
    unusable(&["--head-s=60"], "--head-s is now --header-timeout: write --header-timeout=60s");
    unusable(
        &["run", "--line-bytes-max", "9"],
        "--line-bytes-max is now --request-line-max: write --request-line-max=9B",
    );
    unusable(&["--header-size-max=1B"], "--header-size-max");
    unusable(&["--header-count-max=0"], "--header-count-max");
    unusable(&["--connections-max=0"], "--connections-max");
    unusable(&["--handshakes-max=0"], "--handshakes-max");
    // The kernel takes it in milliseconds, of which there are not so many.
    unusable(&["--tcp-user-timeout=3000000s"], "--tcp-user-timeout");
    unusable(&["--tcp-user-timeout=2147484s"], "--tcp-user-timeout");
    unusable(&["--agent-prot=1"], "--agent-port");
    unusable(&["--listen=127.0.0.1:4433", "--listen-plain=127.0.0.1:4433"], "127.0.0.1:4433");
    unusable(&["--access-log=/nowhere/at/all"], "/nowhere/at/all");
}

#[test]
fn check_prints_what_it_would_run_by_and_binds_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--listen={}", taken.local_addr().unwrap());
    let (code, output, log) = run(&["check", &listen, "--agents=10.0.0.0/8", "--connect-timeout=1234ms"]);
    assert_eq!(code, 0, "{log}");
    assert!(output.contains("agents = [\"10.0.0.0/8\"]  # flag"), "{output}");
    assert!(
        output.contains("connect-timeout = \"1234ms\"  # flag")
            && output.contains("header-timeout = \"60s\"  # default"),
        "{output}"
    );
}

#[track_caller]
fn taken(address: SocketAddr) {
    for flag in ["--listen", "--listen-plain"] {
        let (code, _, log) = run(&[&format!("{flag}={address}"), "--workers=2"]);
        assert_eq!(code, 1, "{log}");
        assert!(log.contains(&format!("can't listen on {address}")), "{log}");
    }
}

#[test]
fn a_taken_port_is_an_error_that_names_the_address() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    taken(other.local_addr().unwrap());
}

#[tokio::test]
async fn a_port_is_taken_also_where_it_would_be_shared() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let other = socket.listen(8).unwrap();
    taken(other.local_addr().unwrap());
}

#[test]
fn a_port_is_taken_also_by_another_proxy() {
    let other = Proxy::start(&["--listen-plain=127.0.0.1:0"]);
    taken(other.address());
}

#[test]
fn help_and_version_are_no_errors() {
    let (code, output, _) = run(&["--help"]);
    assert!(code == 0 && output.contains("--default-agent"), "{output}");
    let (code, output, _) = run(&["--version"]);
    assert!(code == 0 && output.starts_with("dcv-splice "), "{output}");
}

/// The kernel is asked as the service will ask it: without capabilities, also where the one who checks has them.
#[test]
fn a_congestion_control_that_can_not_be_used_is_refused_with_what_to_do() {
    for (name, says) in
        [("no_such_thing", "the kernel has none of this name"), ("a/b", "must be a name such as")]
    {
        let flag = format!("--client-congestion={name}");
        unusable(&[&flag], "--client-congestion");
        unusable(&[&flag], says);
    }
    let names = |file: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{file}")).unwrap();
    let allowed = names("tcp_allowed_congestion_control");
    for name in names("tcp_available_congestion_control").split_whitespace() {
        let flag = format!("--agent-congestion={name}");
        if allowed.split_whitespace().any(|allowed| allowed == name) {
            let (code, _, log) = run(&["check", "--agents=10.0.0.0/8", &flag]);
            assert_eq!(code, 0, "{log}");
        } else {
            unusable(&[&flag], "net.ipv4.tcp_allowed_congestion_control");
        }
    }
}
