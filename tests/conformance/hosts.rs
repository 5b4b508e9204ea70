//! Host: exactly one, a host and no more, and the same as an absolute target's.

use super::row::{Row, forwarded, head, path, refused, seen};

pub(crate) fn rows() -> Vec<Row> {
    [good(), bad(), absolute(), bad_absolute(), http10()].into_iter().flatten().collect()
}

fn host(asked: &str, told: &str) -> Row {
    let request = head("GET /127.0.0.2/x HTTP/1.1", &[&format!("Host: {asked}")]);
    forwarded(&format!("Host: {asked}"), request, seen("GET /x HTTP/1.1", told, &[]))
}

fn good() -> Vec<Row> {
    let last = head("GET /127.0.0.2/x HTTP/1.1", &["A: 1", "Host: desk.example", "B: 2"]);
    let lower = head("GET /127.0.0.2/x HTTP/1.1", &["hOsT:desk.example"]);
    vec![
        host("desk.example", "desk.example"),
        host("desk.example:8443", "desk.example"),
        host("desk.example:", "desk.example"),
        host("Desk.EXAMPLE:443", "Desk.EXAMPLE"),
        host("desk.example.", "desk.example."),
        host("127.0.0.3", "127.0.0.3"),
        host("127.0.0.3:8443", "127.0.0.3"),
        host("[::1]", "[::1]"),
        host("[::1]:8443", "[::1]"),
        host("[2001:db8::1]:65535", "[2001:db8::1]"),
        host("a_b-c~d", "a_b-c~d"),
        host("%41!$&'()*+;=", "%41!$&'()*+;="),
        forwarded("Host between others", last, seen("GET /x HTTP/1.1", "desk.example", &["A: 1", "B: 2"])),
        forwarded("Host in odd case", lower, seen("GET /x HTTP/1.1", "desk.example", &[])),
    ]
}

fn bad() -> Vec<Row> {
    const BAD: [&str; 22] = [
        "",
        " ",
        ":8443",
        "user@desk.example",
        "user:pass@desk.example",
        "desk example",
        "desk.example, desk.example",
        "desk.example,",
        "desk.example/",
        "desk.example/x",
        "desk.example?",
        "desk.example#",
        "http://desk.example",
        "desk.example:443:443",
        "desk.example:44x",
        "desk.example:123456",
        "desk.example:-1",
        "[::1",
        "::1",
        "[]",
        "[desk.example]",
        "d\u{e9}sk.example",
    ];
    let each = BAD.map(|host| {
        refused(&format!("Host: {host}"), 400, head("GET / HTTP/1.1", &[&format!("Host: {host}")]))
    });
    let get = |name, fields: &[&str]| refused(name, 400, head("GET /127.0.0.2/x HTTP/1.1", fields));
    let others = [
        get("no Host", &[]),
        get("no Host but others", &["X-Forwarded-Host: desk.example", "Hosts: desk.example"]),
        get("two Hosts", &["Host: desk.example", "Host: other.example"]),
        get("the same Host twice", &["Host: desk.example", "Host: desk.example"]),
        get("the same Host twice, apart", &["Host: desk.example", "A: 1", "host: desk.example"]),
        get("an empty Host and another", &["Host:", "Host: desk.example"]),
        get("[::1]x as Host", &["Host: [::1]x"]),
        get("[::1%25lo] as Host", &["Host: [::1%25lo]"]),
        refused("a Host that is no UTF-8", 400, b"GET / HTTP/1.1\r\nHost: d\xff\r\n\r\n"),
        refused("two Hosts in HTTP/1.0", 400, head("GET / HTTP/1.0", &["Host: a", "Host: a"])),
        refused("a bad Host in HTTP/1.0", 400, head("GET / HTTP/1.0", &["Host: a b"])),
    ];
    each.into_iter().chain(others).collect()
}

fn to(target: &str, host: &str, told: &str) -> Row {
    let request = head(&format!("GET {target} HTTP/1.1"), &[&format!("Host: {host}")]);
    let name = host.split(':').next().unwrap_or_default();
    forwarded(target, request, seen(&format!("GET {told} HTTP/1.1"), name, &[]))
}

fn absolute() -> Vec<Row> {
    vec![
        to("http://desk.example/127.0.0.2/x?q", "desk.example", "/x?q"),
        to("https://desk.example/127.0.0.2/x", "desk.example", "/x"),
        to("HTTP://DESK.example/127.0.0.2/x", "desk.EXAMPLE", "/x"),
        to("https://desk.example:8443/127.0.0.2//x", "desk.example:8443", "//x"),
        to("ws://desk.example/127.0.0.2/x", "desk.example", "/x"),
        to("wSs://desk.example:8443/127.0.0.2/x?q", "desk.example:8443", "/x?q"),
        to("http://desk.example", "desk.example", "/"),
        to("http://desk.example/", "desk.example", "/"),
        to("http://desk.example/127.0.0.2/http://x", "desk.example", "/http://x"),
        to("http://127.0.0.3/127.0.0.2/x", "127.0.0.3", "/x"),
        to("http://desk.example//127.0.0.3/x", "desk.example", "//127.0.0.3/x"),
    ]
}

fn bad_absolute() -> Vec<Row> {
    let bad = |target: &str, host: &str| {
        let request = head(&format!("GET {target} HTTP/1.1"), &[&format!("Host: {host}")]);
        refused(&format!("{target} at {host}"), 400, request)
    };
    vec![
        bad("http://other.example/127.0.0.2/x", "desk.example"),
        bad("http://127.0.0.3/127.0.0.2/x", "127.0.0.2"),
        bad("http://desk.example:8443/127.0.0.2/x", "desk.example"),
        bad("http://desk.example/127.0.0.2/x", "desk.example:8443"),
        bad("http://desk.example:80/127.0.0.2/x", "desk.example:81"),
        bad("ftp://desk.example/127.0.0.2/x", "desk.example"),
        bad("wss+x://desk.example/127.0.0.2/x", "desk.example"),
        bad("ws://other.example/127.0.0.2/x", "desk.example"),
        bad("file://desk.example/127.0.0.2/x", "desk.example"),
        bad("://desk.example/127.0.0.2/x", "desk.example"),
        bad("http:/127.0.0.2/x", "desk.example"),
        bad("http:desk.example/127.0.0.2/x", "desk.example"),
        bad("http:///127.0.0.2/x", "desk.example"),
        bad("//desk.example", ""),
        bad("http://user@desk.example/127.0.0.2/x", "desk.example"),
        bad("http://user@desk.example/127.0.0.2/x", "user@desk.example"),
        bad("http://desk.example?q", "desk.example"),
        bad("http://desk.example#x", "desk.example"),
        bad("http://desk.example\\127.0.0.2/x", "desk.example"),
        bad("http://[::1/127.0.0.2/x", "desk.example"),
        refused("absolute, no Host", 400, head("GET http://desk.example/127.0.0.2/x HTTP/1.1", &[])),
    ]
}

fn http10() -> Vec<Row> {
    let old = |name, target: &str, host| {
        let told = seen("GET /x HTTP/1.1", host, &[]);
        forwarded(name, head(&format!("GET {target} HTTP/1.0"), &[]), told).closes()
    };
    vec![
        old("HTTP/1.0 without Host", "/127.0.0.2/x", "127.0.0.2"),
        old("HTTP/1.0 without Host, default agent", "/x", "127.0.0.2"),
        old("HTTP/1.0 without Host, absolute", "http://desk.example:80/127.0.0.2/x", "desk.example"),
        refused("HTTP/1.0 with a user", 400, head("GET http://user@h/127.0.0.2/x HTTP/1.0", &[])),
        refused("HTTP/1.0 with no host at all", 400, head("GET http:///127.0.0.2/x HTTP/1.0", &[])),
        refused(
            "HTTP/1.0 with a differing Host",
            400,
            head("GET http://desk.example/127.0.0.2/x HTTP/1.0", &["Host: other.example"]),
        ),
    ]
}

fn with_host(host: &str, told: &str, version: &str) -> Row {
    let line = format!("GET /127.0.0.2/x {version}");
    let host = if host.is_empty() { head(&line, &[]) } else { head(&line, &[&format!("Host: {host}")]) };
    forwarded(&host, &host, seen("GET /x HTTP/1.1", told, &[]))
}

/// Rows of a proxy with `--host-header pass`.
pub(crate) fn passed() -> Vec<Row> {
    vec![
        with_host("desk.example:8443", "desk.example:8443", "HTTP/1.1"),
        with_host("Desk.example", "Desk.example", "HTTP/1.1"),
        with_host("[::1]:8443", "[::1]:8443", "HTTP/1.1"),
        with_host("", "127.0.0.2", "HTTP/1.0").closes(),
        with_host("desk.example:80", "desk.example:80", "HTTP/1.0").closes(),
    ]
}

/// Rows of a proxy with `--host-header agent`.
pub(crate) fn agents_own() -> Vec<Row> {
    vec![
        with_host("desk.example:8443", "127.0.0.2", "HTTP/1.1"),
        with_host("127.0.0.3", "127.0.0.2", "HTTP/1.1"),
        with_host("", "127.0.0.2", "HTTP/1.0").closes(),
        refused("no Host", 400, head("GET /127.0.0.2/x HTTP/1.1", &[])),
    ]
}

/// Rows of a proxy with `--path-prefix keep`.
pub(crate) fn kept_prefix() -> Vec<Row> {
    let same = |target: &str, told: &str| {
        let request = head(&format!("GET {target} HTTP/1.1"), &["Host: h"]);
        forwarded(target, request, seen(&format!("GET {told} HTTP/1.1"), "h", &[]))
    };
    vec![
        same("/127.0.0.2/", "/127.0.0.2/"),
        same("/127.0.0.2/a//../b?q", "/127.0.0.2/a//../b?q"),
        same("/127.0.0.2/../127.0.0.3/x", "/127.0.0.2/../127.0.0.3/x"),
        same("http://h/127.0.0.2/x", "/127.0.0.2/x"),
        same("/x", "/x"),
        super::row::answered("/127.0.0.2?q", 308).with_line("Location: /127.0.0.2/?q"),
    ]
}

/// Rows of a proxy whose agents have host names of their own, under `desk.test`.
pub(crate) fn under_domain() -> Vec<Row> {
    let ask = |target: &str, host: &str| head(&format!("GET {target} HTTP/1.1"), &[&format!("Host: {host}")]);
    let agent = |target: &str, host: &str, told: &str| {
        forwarded(
            &format!("{host}{target}"),
            ask(target, host),
            seen(&format!("GET {target} HTTP/1.1"), told, &[]),
        )
    };
    let own = |target: &str, host: &str, status| {
        refused(&format!("{host}{target}"), status, ask(target, host)).stays()
    };
    vec![
        agent("/", "127-0-0-2.desk.test", "127-0-0-2.desk.test"),
        agent("/a//b/../c%2F?q", "127-0-0-2.Desk.Test:8443", "127-0-0-2.Desk.Test"),
        // On an agent's host all is the agent's: what would be another's prefix elsewhere, and the proxy's own path.
        agent("/127.0.0.3/x", "127-0-0-2.desk.test", "127-0-0-2.desk.test"),
        agent("/health", "127-0-0-2.desk.test", "127-0-0-2.desk.test"),
        forwarded(
            "an absolute target",
            ask("http://127-0-0-2.desk.test/x", "127-0-0-2.desk.test"),
            seen("GET /x HTTP/1.1", "127-0-0-2.desk.test", &[]),
        ),
        own("/x", "127-0-0-1.desk.test", 403),
        own("/x", "127-0-0-02.desk.test", 404),
        own("/x", "a.desk.test", 404),
        own("/x", "a.127-0-0-2.desk.test", 404),
        own("/127.0.0.2/x", "127-0-0-256.desk.test", 404),
        path("/127.0.0.2/x", "/x"),
        forwarded(
            "the domain itself",
            ask("/127.0.0.2/x", "desk.test"),
            seen("GET /x HTTP/1.1", "desk.test", &[]),
        ),
        own("/health", "desk.test", 200),
        own("/x", "desk.test", 404),
        own("/x", "127-0-0-2.other.test", 404),
    ]
}
