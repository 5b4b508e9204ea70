//! Clients that do again and again what no user does: the log has a line that fail2ban's own program reads, by the filter of the
//! package, and that of a client who errs once is not there.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use harness::ports::unused_address;
use harness::proxy::Proxy;

fn says(to: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to).unwrap();
    // The proxy may have closed it before all is said.
    let _ = stream.write_all(bytes);
    let _ = stream.read(&mut [0; 1000]);
}

/// How many lines of the log fail2ban finds by the package's filter.
fn found_by_fail2ban(log: &str) -> String {
    let filter =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("packaging/fail2ban/filter.conf");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    fs::write(&path, log).unwrap();
    let output =
        Command::new("fail2ban-regex").args(["--print-all-matched", "-v"]).arg(path).arg(filter).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn clients_that_misbehave_are_found_by_fail2ban_in_both_formats_of_the_log() {
    for format in ["text", "json"] {
        let admin = unused_address();
        let flags = [
            "--listen=127.0.0.1:0".to_owned(),
            "--listen-plain=127.0.0.1:0".to_owned(),
            "--agents=127.0.0.0/30".to_owned(),
            format!("--admin={admin}"),
            format!("--log-format={format}"),
        ];
        let mut proxy = Proxy::start(&flags.each_ref().map(String::as_str));
        let [secure, plain] = *proxy.addresses() else { panic!("two listeners") };
        for _ in 0..4 {
            says(secure, b"\x16\x03\x01\x00\x05hello");
        }
        assert!(!proxy.log().contains("security event"), "{}", proxy.log());
        for _ in 0..5 {
            says(secure, b"\x16\x03\x01\x00\x05hello");
            says(plain, b"GET\t/ HTTP/1.1\r\n\r\n");
            says(plain, b"GET /192.0.2.1/ HTTP/1.1\r\nHost: desk\r\n\r\n");
        }
        proxy.until("tells of all", |log| (log.matches("security event").count() >= 3).then_some(()));
        let log = proxy.log();
        for kind in ["tls_garbage", "malformed_request", "agent_scan"] {
            let is_told = |line: &str| line.contains("security event") && line.contains(kind);
            assert!(log.lines().any(is_told), "{kind}: {log}");
        }
        let lines = log.matches("security event").count();
        let found = found_by_fail2ban(&log);
        assert!(found.contains(&format!("{lines} matched")), "{found}\n{log}");
        assert!(found.contains("127.0.0.1"), "{found}");
        let mut stream = TcpStream::connect(admin).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let is_counted = |kind: &str| {
            text.lines().any(|line| {
                line.starts_with("dcv_splice_security_events_total{")
                    && line.contains(kind)
                    && !line.ends_with(" 0")
            })
        };
        assert!(is_counted("agent_scan") && is_counted("tls_garbage"), "{text}");
        assert!(!is_counted("wrong_password"), "{text}");
    }
}
