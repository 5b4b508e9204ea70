//! What stands in the request line: targets byte for byte, methods, versions, and how long all of it may be.

use super::row::{Row, bad_line, fields, forwarded, head, line, no_path, path, refused, seen};

pub(crate) fn rows() -> Vec<Row> {
    [verbatim(), methods(), versions(), rejections(), limits()].into_iter().flatten().collect()
}

/// Nothing after the prefix is decoded, merged, normalised or encoded.
fn verbatim() -> Vec<Row> {
    const TAILS: [&str; 30] = [
        "/",
        "/a/b?q",
        "//",
        "//x",
        "/x//y/../z",
        "/.",
        "/..",
        "/../10.0.0.6/x",
        "/../127.0.0.3/x",
        "/./127.0.0.3/../x",
        "//127.0.0.3/x",
        "/%2f%2F",
        "/%2e%2E/127.0.0.3",
        "/%20",
        "/a+b",
        "/a;b=c;d",
        "/?",
        "/x?",
        "/x?a?b",
        "/x?a=1&b=%26&a=2",
        "/x?/127.0.0.3/",
        "/x?http://127.0.0.3/",
        "/|{}^\"<>\\`",
        "/\\..\\127.0.0.3",
        "/%",
        "/%zz",
        "/%00",
        "/@127.0.0.3/",
        "/Grüße/桌面?ä",
        "/*",
    ];
    let prefixed = TAILS.map(|tail| path(&format!("/127.0.0.2{tail}"), tail));
    let default = TAILS.map(|tail| path(tail, tail));
    let token = format!("/auth?token={}", "t".repeat(15_000));
    let long = path(&format!("/127.0.0.2{token}"), &token);
    prefixed.into_iter().chain(default).chain([long]).collect()
}

fn methods() -> Vec<Row> {
    const FORWARDED: [&str; 11] = [
        "HEAD",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
        "PROPFIND",
        "M-SEARCH",
        "get",
        "connect",
        "!#$%&'*+-.^_`|~9",
    ];
    const BAD: [&str; 9] =
        ["G@T", "GE\x01T", "(GET)", "G:ET", "GE,T", "GE/T", "G\u{e9}T", "\"GET\"", "G\x7fT"];
    let forwarded = FORWARDED
        .map(|method| line(&format!("{method} /127.0.0.2/x HTTP/1.1"), &format!("{method} /x HTTP/1.1")));
    let bad = BAD.map(|method| bad_line(&format!("{method} /127.0.0.2/x HTTP/1.1"), 400));
    let not_here = [
        bad_line("OPTIONS * HTTP/1.1", 400),
        bad_line("GET * HTTP/1.1", 400),
        bad_line("CONNECT 127.0.0.2:443 HTTP/1.1", 405).with_line("Allow: GET, HEAD, POST"),
        bad_line("CONNECT /127.0.0.2/x HTTP/1.1", 405),
        bad_line("TRACE /127.0.0.2/x HTTP/1.1", 405).with_line("Allow: GET, HEAD, POST"),
        bad_line("TRACE * HTTP/1.1", 405),
    ];
    forwarded.into_iter().chain(bad).chain(not_here).collect()
}

fn versions() -> Vec<Row> {
    const BAD: [&str; 14] = [
        "HTTP/0.9",
        "HTTP/1.2",
        "HTTP/2.0",
        "HTTP/2",
        "HTTP/1.",
        "HTTP/1.11",
        "HTTP/01.1",
        "HTTP/1,1",
        "HTTP/ 1.1",
        "http/1.1",
        "HTTPS/1.1",
        "XHTTP/1.1",
        "HTTP/1.1x",
        "HTTP",
    ];
    let bad = BAD.map(|version| bad_line(&format!("GET /127.0.0.2/x {version}"), 400));
    let others = [
        line("GET /127.0.0.2/x HTTP/1.0", "GET /x HTTP/1.1").closes(),
        forwarded(
            "HTTP/1.0 with keep-alive",
            head("GET /127.0.0.2/x HTTP/1.0", &["Host: desk.example", "Connection: keep-alive"]),
            seen("GET /x HTTP/1.1", "desk.example", &[]),
        )
        .with_line("Connection: keep-alive"),
        forwarded(
            "HTTP/1.0 with keep-alive and close",
            head("GET /127.0.0.2/x HTTP/1.0", &["Host: desk.example", "Connection: keep-alive, close"]),
            seen("GET /x HTTP/1.1", "desk.example", &[]),
        )
        .closes(),
        bad_line("GET /127.0.0.2/x", 400),
        refused("HTTP/0.9", 400, "GET /127.0.0.2/x\r\n\r\n"),
        refused("TLS where none is spoken", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    ];
    bad.into_iter().chain(others).collect()
}

fn rejections() -> Vec<Row> {
    let bytes = [b'\0', 0x01, 0x08, b'\t', 0x0b, 0x0c, 0x1b, 0x1f, 0x7f, b' '];
    let controls = bytes.map(|byte| no_path(&format!("/127.0.0.2/a{}b", char::from(byte)), 400));
    let others = [
        no_path("x", 400),
        no_path("127.0.0.2/x", 400),
        no_path("?q", 400),
        no_path("desk.example:443", 400),
        no_path("/127.0.0.2/x#part", 400),
        no_path("#", 400),
        refused("a target that is no UTF-8", 400, b"GET /127.0.0.2/\xff\xfe HTTP/1.1\r\nHost: h\r\n\r\n"),
        refused("no target", 400, "GET HTTP/1.1\r\nHost: h\r\n\r\n"),
        refused("an empty target", 400, "GET  HTTP/1.1\r\nHost: h\r\n\r\n"),
        refused("no method", 400, "/127.0.0.2/x HTTP/1.1\r\nHost: h\r\n\r\n"),
        bad_line("GET  /127.0.0.2/x HTTP/1.1", 400),
        bad_line("GET /127.0.0.2/x  HTTP/1.1", 400),
        bad_line("GET\t/127.0.0.2/x HTTP/1.1", 400),
        bad_line("GET /127.0.0.2/x\tHTTP/1.1", 400),
        bad_line("GET /127.0.0.2/x HTTP/1.1 ", 400),
        bad_line("GET /127.0.0.2/x HTTP/1.1\t", 400),
        bad_line(" GET /127.0.0.2/x HTTP/1.1", 400),
        bad_line("\tGET /127.0.0.2/x HTTP/1.1", 400),
        bad_line("\0GET /127.0.0.2/x HTTP/1.1", 400),
    ];
    controls.into_iter().chain(others).collect()
}

const LINE_BYTES_MAX: usize = 16 * 1024;
const HEAD_BYTES_MAX: usize = 32 * 1024;

fn limits() -> Vec<Row> {
    let target = |line_bytes: usize| "x".repeat(line_bytes - "GET /127.0.0.2/ HTTP/1.1".len());
    let at_most = target(LINE_BYTES_MAX);
    let request = |line_bytes| head(&format!("GET /127.0.0.2/{} HTTP/1.1", target(line_bytes)), &["Host: h"]);
    let told = seen(&format!("GET /{at_most} HTTP/1.1"), "h", &[]);
    let padding = |head_bytes: usize| {
        let rest = head("GET /127.0.0.2/x HTTP/1.1", &["Host: desk.example", "X-Padding: "]);
        format!("X-Padding: {}", "p".repeat(head_bytes - rest.len()))
    };
    let whole = padding(HEAD_BYTES_MAX);
    let too_long = padding(HEAD_BYTES_MAX + 1);
    let many = |count| (0..count).map(|at| format!("X-{at}: {at}")).collect::<Vec<_>>();
    let (hundred, one_more) = (many(99), many(100));
    let hundred: Vec<&str> = hundred.iter().map(String::as_str).collect();
    let one_more: Vec<&str> = one_more.iter().map(String::as_str).collect();
    let over = |name, status, row: Row| refused(name, status, row.request);
    vec![
        forwarded("a line of 16 KiB", request(LINE_BYTES_MAX), &told),
        forwarded("a line of 16 KiB behind an empty one", "\r\n".to_owned() + &request(LINE_BYTES_MAX), told),
        refused("a line of 16 KiB and a byte", 414, request(LINE_BYTES_MAX + 1)),
        refused("a line of 17 KiB without an end", 414, "G".repeat(17 * 1024)),
        fields("a head of 32 KiB", &[&whole], &[&whole]),
        over("a head of 32 KiB and a byte", 431, fields("", &[&too_long], &[])),
        refused(
            "a head of 40 KiB without an end",
            431,
            format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(40 << 10)),
        ),
        fields("100 header lines", &hundred, &hundred),
        over("101 header lines", 431, fields("", &one_more, &[])),
    ]
}
