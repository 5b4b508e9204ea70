//! Response heads: bad ones, of which the client gets nothing, and good ones with what the client gets of them.

/// What is asked where nothing else matters.
pub(crate) const ASKED: &str = "GET /127.0.0.2/x HTTP/1.1\r\nHost: desk.example\r\nConnection: close\r\n\r\n";

/// Answers that are refused; each has a mark that must not get out.
pub(crate) fn bad() -> Vec<Passed> {
    bad_starts().into_iter().chain(bad_fields()).chain(bad_messages()).chain(bad_upgrades()).collect()
}

fn bad_starts() -> [Passed; 29] {
    let huge = format!("HTTP/1.1 200 leak\r\nA: {}\r\n\r\n", "a".repeat(33 << 10));
    let endless = format!("HTTP/1.1 200 leak\r\nA: {}", "a".repeat(33 << 10));
    let long_line = format!("HTTP/1.1 200 leak{}\r\n\r\n", "k".repeat(17 << 10));
    let many = format!("HTTP/1.1 200 leak\r\n{}\r\n", "A: 1\r\n".repeat(101));
    let starts: [(&str, &[u8]); 29] = [
        ("a huge head", huge.as_bytes()),
        ("an endless head", endless.as_bytes()),
        ("a long status line", long_line.as_bytes()),
        ("101 header lines", many.as_bytes()),
        ("nothing", b""),
        ("an empty line", b"\r\n"),
        ("two empty lines", b"\r\n\r\nleak"),
        ("an empty line first", b"\r\nHTTP/1.1 200 leak\r\n\r\n"),
        ("LF first", b"\nHTTP/1.1 200 leak\r\n\r\n"),
        ("a space first", b" HTTP/1.1 200 leak\r\n\r\n"),
        ("garbage", b"leak\r\n\r\n"),
        ("binary garbage", b"\x16\x03\x01\x00leak\xff\r\n\r\n"),
        ("a banner", b"SSH-2.0-leak\r\n"),
        ("HTTP/0.9", b"<html>leak</html>\r\n\r\n"),
        ("a head without its end", b"HTTP/1.1 200 OK\r\nA: leak\r\n"),
        ("half a status line", b"HTTP/1.1 200 leak"),
        ("no version", b"200 OK\r\nA: leak\r\n\r\n"),
        ("HTTP/2.0", b"HTTP/2.0 200 OK\r\nA: leak\r\n\r\n"),
        ("HTTP/1.2", b"HTTP/1.2 200 OK\r\nA: leak\r\n\r\n"),
        ("a lower-case version", b"http/1.1 200 OK\r\nA: leak\r\n\r\n"),
        ("another protocol", b"ICY 200 OK\r\nA: leak\r\n\r\n"),
        ("status 99", b"HTTP/1.1 99 leak\r\n\r\n"),
        ("status 099", b"HTTP/1.1 099 leak\r\n\r\n"),
        ("status 1000", b"HTTP/1.1 1000 leak\r\n\r\n"),
        ("status abc", b"HTTP/1.1 abc leak\r\n\r\n"),
        ("status -20", b"HTTP/1.1 -20 leak\r\n\r\n"),
        ("no status", b"HTTP/1.1\r\nA: leak\r\n\r\n"),
        ("two spaces before the status", b"HTTP/1.1  200 leak\r\n\r\n"),
        ("NUL in the reason", b"HTTP/1.1 200 leak\0\r\n\r\n"),
    ];
    starts.map(|(name, answer)| passed(name, answer, ""))
}

fn bad_fields() -> [Passed; 30] {
    const FIELDS: [(&str, &str); 30] = [
        ("the same length twice", "Content-Length: 4\r\nContent-Length: 4"),
        ("two lengths", "Content-Length: 4\r\nContent-Length: 5"),
        ("a list of lengths", "Content-Length: 4, 4"),
        ("a length with a sign", "Content-Length: +4"),
        ("a length that is no number", "Content-Length: x"),
        ("an empty length", "Content-Length:"),
        ("a length over 64 bits", "Content-Length: 18446744073709551616"),
        ("a length and chunks", "Content-Length: 4\r\nTransfer-Encoding: chunked"),
        ("chunks and a length", "Transfer-Encoding: chunked\r\nContent-Length: 4"),
        ("gzip as the coding", "Transfer-Encoding: gzip"),
        ("gzip, chunked", "Transfer-Encoding: gzip, chunked"),
        ("chunked, chunked", "Transfer-Encoding: chunked, chunked"),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        ("identity", "Transfer-Encoding: identity"),
        ("xchunked", "Transfer-Encoding: xchunked"),
        ("an empty coding", "Transfer-Encoding:"),
        ("obs-fold", "B: 1\r\n 2"),
        ("obs-fold with a tab", "B: 1\r\n\t2"),
        ("a space before the colon", "B : 1"),
        ("a space before a name", " B: 1"),
        ("no colon", "B"),
        ("no name", ": 1"),
        ("NUL in a value", "B: \0"),
        ("NUL in a name", "B\0: 1"),
        ("a control byte in a value", "B: \u{1b}[31m"),
        ("DEL in a value", "B: \u{7f}"),
        ("a bare LF", "B: 1\nC: 2"),
        ("a bare CR", "B: 1\rC: 2"),
        ("CR CR LF", "B: 1\r\r\nC: 2"),
        ("a name that is no token", "B(C): 1"),
    ];
    FIELDS.map(|(name, field)| passed(name, format!("HTTP/1.1 200 OK\r\nA: leak\r\n{field}\r\n\r\nleak"), ""))
}

fn bad_messages() -> [Passed; 8] {
    const MESSAGES: [(&str, &str); 8] = [
        ("LF only", "HTTP/1.1 200 OK\nA: leak\n\nleak"),
        ("LF behind the status line", "HTTP/1.1 200 OK\nA: leak\r\n\r\n"),
        ("LF as the empty line", "HTTP/1.1 200 OK\r\nA: leak\r\n\n"),
        (
            "chunks in HTTP/1.0",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nA: leak\r\n\r\n4\r\nleak\r\n0\r\n\r\n",
        ),
        ("a 101 unasked", "HTTP/1.1 101 leak\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nleak"),
        ("a 101 to nothing", "HTTP/1.1 101 leak\r\n\r\nleak"),
        ("garbage before a 103", "leak HTTP/1.1 103 Early Hints\r\n\r\nleak\r\n\r\n"),
        ("a length with white space in it", "HTTP/1.1 200 leak\r\nContent-Length: 1 0\r\n\r\nleak"),
    ];
    MESSAGES.map(|(name, answer)| passed(name, answer, ""))
}

/// Answers to a WebSocket request.
fn bad_upgrades() -> [Passed; 4] {
    let answer = |name, fields: &str| {
        passed(name, format!("HTTP/1.1 101 leak\r\n{fields}\r\nleak"), "").to(ASKS_WEBSOCKET)
    };
    [
        answer("101 to no protocol", ""),
        answer("101 to another protocol", "Connection: upgrade\r\nUpgrade: h2c\r\n"),
        answer("101 to a protocol that only begins so", "Connection: upgrade\r\nUpgrade: websockets\r\n"),
        answer("101 with chunks twice", "Upgrade: websocket\r\nTransfer-Encoding: chunked, chunked\r\n"),
    ]
}

const ASKS_WEBSOCKET: &str =
    "GET /127.0.0.2/ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

/// An answer, and what the client gets that asked so.
pub(crate) struct Passed {
    pub(crate) name: String,
    pub(crate) asked: String,
    pub(crate) answer: Vec<u8>,
    pub(crate) told: Vec<u8>,
}

/// Of an agent that listens on this port.
pub(crate) fn good(port: u16) -> Vec<Passed> {
    [lines_of_one_hop(), lengths(), without_lengths(), bodiless(), interim(), reasons()]
        .into_iter()
        .chain([locations(port), others(), cookies(), default_route(), upgrades()])
        .flatten()
        .collect()
}

/// To a client that asks for one thing and leaves.
fn passed(name: &str, answer: impl AsRef<[u8]>, told: impl AsRef<[u8]>) -> Passed {
    let (answer, told) = (answer.as_ref().to_vec(), told.as_ref().to_vec());
    Passed { name: name.to_owned(), asked: ASKED.to_owned(), answer, told }
}

impl Passed {
    fn to(self, asked: &str) -> Self {
        Self { asked: asked.to_owned(), ..self }
    }
}

/// Header lines of a 204, and those that the client gets after `Connection`.
fn fields(name: &str, answer: &str, told: &str) -> Passed {
    let answer = format!("HTTP/1.1 204 No Content\r\n{answer}\r\n");
    passed(name, answer, format!("HTTP/1.1 204 No Content\r\nConnection: close\r\n{told}\r\n"))
}

fn lines_of_one_hop() -> Vec<Passed> {
    const KEPT: &str = "Server: dcv\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\nVary: *\r\nserver: 2\r\nA_B: 1\r\n\
        Via: 1.1 x\r\nTrailer: X-Sum\r\nContent-Type: text/html\r\nX-Frame-Options: DENY\r\n";
    let gone = |line: &str| fields(line, &format!("B: 1\r\n{line}\r\nC: 2\r\n"), "B: 1\r\nC: 2\r\n");
    vec![
        fields("what is not the proxy's own affair", KEPT, KEPT),
        gone("Keep-Alive: timeout=5"),
        gone("Connection: keep-alive"),
        gone("Connection: close"),
        gone("Proxy-Connection: close"),
        gone("TE: x"),
        gone("Upgrade: h2c"),
        gone("connection: X-Hop\r\nX-HOP: 1"),
        gone("X-Hop: 1\r\nConnection: a, X-Hop"),
        fields("white space around values", "A:1\r\nB: \t2 3\t\r\nC:\r\n", "A: 1\r\nB: 2 3\r\nC: \r\n"),
        passed(
            "bytes above ASCII",
            b"HTTP/1.1 204 x\r\nA: \xff\x80\r\n\r\n",
            b"HTTP/1.1 204 x\r\nConnection: close\r\nA: \xff\x80\r\n\r\n",
        ),
    ]
}

const OLD: &str = "GET /127.0.0.2/x HTTP/1.0\r\n\r\n";
const OLD_THAT_STAYS: &str =
    "GET /127.0.0.2/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET x HTTP/1.1\r\n\r\n";
const HEAD: &str = "HEAD /127.0.0.2/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
/// A 200's lines and body, and what the client gets after `Connection`.
fn ok(name: &str, answer: &str, told: &str) -> Passed {
    status("200 OK", name, answer, told)
}

fn status(line: &str, name: &str, answer: &str, told: &str) -> Passed {
    let told = format!("HTTP/1.1 {line}\r\nConnection: close\r\n{told}");
    passed(name, format!("HTTP/1.1 {line}\r\n{answer}"), told)
}

fn lengths() -> Vec<Passed> {
    const FIVE: &str = "Content-Length: 5\r\n\r\nhello";
    let behind = format!("{FIVE}HTTP/1.1 200 OK\r\n\r\n");
    vec![
        ok("a length", "A: 1\r\nContent-Length: 005\r\n\r\nhello", "Content-Length: 5\r\nA: 1\r\n\r\nhello"),
        ok("more than its length", &behind, FIVE),
        ok("a length of 0", "A: 1\r\nContent-Length: 0\r\n\r\n", "A: 1\r\nContent-Length: 0\r\n\r\n"),
        ok("a length named by Connection", &format!("Connection: Content-Length\r\n{FIVE}"), FIVE),
        ok("a length to HTTP/1.0", FIVE, FIVE).to(OLD),
        status("999 x", "status 999", "Content-Length: 0\r\n\r\n", "Content-Length: 0\r\n\r\n"),
        passed(
            "HTTP/1.0 with a length",
            format!("HTTP/1.0 200 OK\r\n{FIVE}"),
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{FIVE}"),
        ),
        passed(
            "HTTP/1.0 that stays",
            format!("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n{FIVE}"),
            format!("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n{FIVE}HTTP/1.1 200 OK\r\nConnection: close\r\n{FIVE}"),
        )
        .to(&OLD_THAT_STAYS.replace("GET x HTTP/1.1", "GET /127.0.0.2/x HTTP/1.0")),
    ]
}

fn without_lengths() -> Vec<Passed> {
    const CHUNKS: &str =
        "Transfer-Encoding: chunked\r\nA: 1\r\n\r\n5;x\r\nhello\r\n0\r\nX-Sum: 1\r\nHost: x\r\n\r\n";
    const CHUNKS_TOLD: &str = "Transfer-Encoding: chunked\r\nA: 1\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
    const ENDS: &str = "A: 1\r\n\r\nhello";
    const ENDS_TOLD: &str = "Transfer-Encoding: chunked\r\nA: 1\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let padded = |white: &str| {
        let size = |digit: &str| format!("\r\n{digit}{white}");
        CHUNKS.replace("\r\n5", &size("5")).replace("\r\n0\r\n", &format!("{}\r\n", size("0")))
    };
    vec![
        ok("chunks", CHUNKS, CHUNKS_TOLD),
        ok("white space behind a size", &padded(" \t "), CHUNKS_TOLD),
        ok("a lot of white space behind a size", &padded(&" ".repeat(900)), CHUNKS_TOLD),
        ok("chunks to HTTP/1.0", CHUNKS, ENDS).to(OLD),
        ok("chunks to HTTP/1.0 that would stay", CHUNKS, ENDS).to(OLD_THAT_STAYS),
        ok("until the end", ENDS, ENDS_TOLD),
        ok("until the end to HTTP/1.0", ENDS, ENDS).to(OLD),
        passed(
            "HTTP/1.0 until the end",
            format!("HTTP/1.0 200 OK\r\n{ENDS}"),
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{ENDS_TOLD}"),
        ),
    ]
}

fn bodiless() -> Vec<Passed> {
    const FIVE: &str = "Content-Length: 5\r\n\r\n";
    let no_content = |name, answer, told| status("204 No Content", name, answer, told);
    let same = |name, answer, told| status("304 Not Modified", name, answer, told);
    vec![
        no_content("204 with a length", "Content-Length: 5\r\nA: 1\r\n\r\n", "A: 1\r\n\r\n"),
        no_content("204 with chunks", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "\r\n"),
        same("304 with a length", FIVE, FIVE),
        same("304 with chunks", "Transfer-Encoding: chunked\r\nA: 1\r\n\r\n", "A: 1\r\n\r\n"),
        same("304 with more", "\r\nhello", "\r\n"),
        ok("HEAD with a length", FIVE, FIVE).to(HEAD),
        ok("HEAD with chunks", "Transfer-Encoding: chunked\r\nA: 1\r\n\r\n", "A: 1\r\n\r\n").to(HEAD),
        ok("HEAD with a body", "Content-Length: 5\r\n\r\nhello", FIVE).to(HEAD),
        ok("HEAD until the end", "\r\n", "\r\n").to(HEAD),
    ]
}

fn interim() -> Vec<Passed> {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n";
    let last = "HTTP/1.1 204 No Content\r\n\r\n";
    let told = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    let with_length = "HTTP/1.1 103 x\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
    vec![
        passed("103", format!("{HINTS}{last}"), format!("{HINTS}{told}")),
        passed("100", format!("{go_on}{last}"), format!("{go_on}{told}")),
        passed(
            "100 and two 103",
            format!("{go_on}{HINTS}{HINTS}{last}"),
            format!("{go_on}{HINTS}{HINTS}{told}"),
        ),
        passed("103 with a length", format!("{with_length}{last}"), format!("HTTP/1.1 103 x\r\n\r\n{told}")),
        passed("103 is none of HTTP/1.0's", format!("{HINTS}{last}"), told).to(OLD),
        passed("100 is none of HTTP/1.0's", format!("{go_on}{last}"), told).to(OLD),
    ]
}

fn reasons() -> Vec<Passed> {
    let reason = |name: &str, line: &str, told: &str| {
        passed(name, format!("{line}\r\n\r\n"), format!("{told}\r\nConnection: close\r\n\r\n"))
    };
    vec![
        reason("a reason", "HTTP/1.1 204 Nothing at all, sorry", "HTTP/1.1 204 Nothing at all, sorry"),
        reason("an empty reason", "HTTP/1.1 204 ", "HTTP/1.1 204 "),
        reason("no reason", "HTTP/1.1 204", "HTTP/1.1 204 "),
        reason("another status's reason", "HTTP/1.1 204 200 OK", "HTTP/1.1 204 200 OK"),
    ]
}

/// What points at the agent itself, by its address or by the host that it was told, gets the prefix.
fn locations(port: u16) -> Vec<Passed> {
    const MOUNTED: [(&str, &str); 30] = [
        ("/", "/127.0.0.2/"),
        ("/a/../b?q#c", "/127.0.0.2/a/../b?q#c"),
        ("/127.0.0.2/x", "/127.0.0.2/x"),
        ("/127.0.0.2", "/127.0.0.2"),
        ("/127.0.0.2?q", "/127.0.0.2?q"),
        ("/127.0.0.22/x", "/127.0.0.2/127.0.0.22/x"),
        ("https://desk.example/127.0.0.2/x", "/127.0.0.2/x"),
        ("https://127.0.0.2:443/x", "/127.0.0.2/x"),
        ("http://127.0.0.2:80/x", "/127.0.0.2/x"),
        ("https://desk.example:443/x", "/127.0.0.2/x"),
        ("//desk.example:443/x", "/127.0.0.2/x"),
        ("https://localhost/x", "/127.0.0.2/x"),
        ("http://LOCALHOST:80?q", "/127.0.0.2/?q"),
        ("https://127.0.0.1/x", "/127.0.0.2/x"),
        ("https://[::1]/x", "/127.0.0.2/x"),
        ("//localhost", "/127.0.0.2/"),
        ("https://127.0.0.2/x", "/127.0.0.2/x"),
        ("http://127.0.0.2/x?q", "/127.0.0.2/x?q"),
        ("HTTPS://127.0.0.2", "/127.0.0.2/"),
        ("https://127.0.0.2?q", "/127.0.0.2/?q"),
        ("https://127.0.0.2#c", "/127.0.0.2/#c"),
        ("//127.0.0.2/x", "/127.0.0.2/x"),
        ("https://desk.example/x", "/127.0.0.2/x"),
        ("https://DESK.example", "/127.0.0.2/"),
        ("//desk.example/x", "/127.0.0.2/x"),
        ("https://127.0.0.2//x", "/127.0.0.2//x"),
        ("https://127.0.0.2:/x", "/127.0.0.2/x"),
        ("//127.0.0.2:?q", "/127.0.0.2/?q"),
        ("https://desk.example:/x", "/127.0.0.2/x"),
        ("/\\x", "/127.0.0.2/\\x"),
    ];
    const KEPT: [&str; 21] = [
        "",
        "x",
        "../x",
        "?q",
        "#c",
        "https://127.0.0.3/x",
        "https://127.0.0.2:1/x",
        "https://127.0.0.2:80/x",
        "http://127.0.0.2:443/x",
        "https://localhost:1/x",
        "https://localhost.example/x",
        "https://127.0.0.3:/x",
        "https://desk.example:1/x",
        "https://127.0.0.22/x",
        "https://127.0.0.2.example/x",
        "https://desk.example.com/x",
        "https://user@127.0.0.2/x",
        "//other.example/x",
        "ftp://127.0.0.2/x",
        "https:/127.0.0.2/x",
        "mailto:a@127.0.0.2",
    ];
    let each = MOUNTED.into_iter().chain(KEPT.map(|at| (at, at)));
    let each =
        each.map(|(from, to)| fields(from, &format!("Location: {from}\r\n"), &format!("Location: {to}\r\n")));
    let own_port = ["https://127.0.0.2", "//127.0.0.2", "http://desk.example", "//DESK.example"]
        .map(|at| fields(at, &format!("Location: {at}:{port}/x\r\n"), "Location: /127.0.0.2/x\r\n"));
    let other_port = format!("Location: https://127.0.0.2:{port}0/x\r\n");
    let others = [
        fields("a port that only begins so", &other_port, &other_port),
        fields("its name in odd case", "location: /x\r\n", "location: /127.0.0.2/x\r\n"),
        fields("Content-Location", "Content-Location: /x\r\n", "Content-Location: /127.0.0.2/x\r\n"),
        fields("another name", "X-Location: /x\r\nLinks: </x>\r\n", "X-Location: /x\r\nLinks: </x>\r\n"),
    ];
    each.chain(own_port).chain(others).collect()
}

/// Every other header line with a path, a host or a reach of its own, as docs/operations.md has them.
fn others() -> Vec<Passed> {
    const CHANGED: [(&str, &str, &str); 24] = [
        ("Refresh", "0; url=/login", "0; url=/127.0.0.2/login"),
        ("Refresh", "5;URL='/x'; y", "5;URL='/127.0.0.2/x'; y"),
        ("Refresh", "0.5 , url = \"https://127.0.0.2/x\"", "0.5 , url = \"/127.0.0.2/x\""),
        ("refresh", "1;/x", "1;/127.0.0.2/x"),
        ("Refresh", "1; url=https://else.test/x", "1; url=https://else.test/x"),
        ("Refresh", "5", "5"),
        ("Refresh", "5; url", "5; url"),
        ("Refresh", "/x", "/x"),
        ("Link", "</x>; rel=preload", "</127.0.0.2/x>; rel=preload"),
        (
            "Link",
            "</a>;t=\"<\\\"</b>\", <https://localhost/c>",
            "</127.0.0.2/a>;t=\"<\\\"</b>\", </127.0.0.2/c>",
        ),
        ("Link", "<x>, <//else.test/y>, </z", "<x>, <//else.test/y>, </127.0.0.2/z"),
        ("Content-Location", "https://127.0.0.2:443/x", "/127.0.0.2/x"),
        ("SourceMap", "/x.map", "/127.0.0.2/x.map"),
        ("X-SourceMap", "/x.map", "/127.0.0.2/x.map"),
        ("Service-Worker-Allowed", "/", "/127.0.0.2/"),
        ("Service-Worker-Allowed", "/127.0.0.2/x/", "/127.0.0.2/x/"),
        ("Access-Control-Allow-Origin", "https://127.0.0.2", "https://127.0.0.2"),
        ("Access-Control-Allow-Origin", "*", "*"),
        ("Content-Security-Policy", "default-src 'self'; report-uri /x", "default-src 'self'; report-uri /x"),
        ("WWW-Authenticate", "Digest domain=\"/x\", nonce=y", "Digest domain=\"/x\", nonce=y"),
        ("Strict-Transport-Security", "max-age=1", "max-age=1"),
        ("Reporting-Endpoints", "a=\"/x\"", "a=\"/x\""),
        ("Referrer-Policy", "origin", "origin"),
        ("Destination", "/x", "/x"),
    ];
    const GONE: [(&str, &str); 12] = [
        ("Alt-Svc", "h3=\":443\"; ma=86400, h2=\"127.0.0.2:8443\""),
        ("alt-svc", "clear"),
        ("Public-Key-Pins", "pin-sha256=\"x\"; max-age=1"),
        ("Public-Key-Pins-Report-Only", "pin-sha256=\"x\""),
        ("Clear-Site-Data", "\"*\""),
        ("NEL", "{\"report_to\":\"a\",\"max_age\":1}"),
        ("Report-To", "{\"group\":\"a\"}"),
        ("Service-Worker-Allowed", "/../"),
        ("Service-Worker-Allowed", "/%2e%2e/"),
        ("Service-Worker-Allowed", "../"),
        ("Service-Worker-Allowed", "https://else.test/"),
        ("Service-Worker-Allowed", ""),
    ];
    let changed = CHANGED.map(|(name, from, to)| {
        fields(&format!("{name}: {from}"), &format!("{name}: {from}\r\n"), &format!("{name}: {to}\r\n"))
    });
    let gone = GONE.map(|(name, value)| fields(&format!("no {name}"), &format!("{name}: {value}\r\n"), ""));
    changed.into_iter().chain(gone).collect()
}

fn cookies() -> Vec<Passed> {
    const COOKIES: [(&str, &str); 31] = [
        ("a=1; Path=/", "a=1; Path=/127.0.0.2/"),
        ("a=1; Path=/x; Secure", "a=1; Path=/127.0.0.2/x; Secure"),
        ("a=1;path=/x", "a=1;path=/127.0.0.2/x"),
        ("a=1; PATH =/x", "a=1; PATH =/127.0.0.2/x"),
        ("a=1; Path= /x", "a=1; Path= /127.0.0.2/x"),
        ("a=1; Path=\t/x", "a=1; Path=\t/127.0.0.2/x"),
        ("a=1; Path=/127.0.0.2/", "a=1; Path=/127.0.0.2/"),
        ("a=1; Path=/127.0.0.2", "a=1; Path=/127.0.0.2"),
        ("a=1; Path=/127.0.0.22", "a=1; Path=/127.0.0.2/127.0.0.22"),
        ("a=1; Path=/; Domain=127.0.0.2", "a=1; Path=/127.0.0.2/"),
        ("a=1; domain = .127.0.0.2 ; Secure", "a=1; Secure"),
        ("a=1; Domain=other.example", "a=1"),
        ("a=1; Domain=xdesk.example", "a=1"),
        ("a=1; Domain=sub.desk.example", "a=1"),
        ("a=1; Domain=desk.example", "a=1; Domain=desk.example"),
        ("a=1; Domain=.DESK.example", "a=1; Domain=.DESK.example"),
        ("a=1; Domain=example; Path=/", "a=1; Domain=example; Path=/127.0.0.2/"),
        ("a=1; Domain=", "a=1; Domain="),
        ("Domain=127.0.0.2", "Domain=127.0.0.2"),
        ("a=1; Path=/x; Path=/y", "a=1; Path=/127.0.0.2/x; Path=/127.0.0.2/y"),
        ("a=1; HttpOnly; SameSite=None; Path=/x", "a=1; HttpOnly; SameSite=None; Path=/127.0.0.2/x"),
        ("a=1", "a=1"),
        ("a=1; Path", "a=1; Path"),
        ("a=1; Path=", "a=1; Path="),
        ("a=1; Path=x", "a=1; Path=x"),
        ("a=1; Pathx=/x; XPath=/x", "a=1; Pathx=/x; XPath=/x"),
        ("Path=/x", "Path=/x"),
        ("Path=/x; Path=/x", "Path=/x; Path=/127.0.0.2/x"),
        ("a=/x; Domain=/x; Expires=Mon, 23 Nov 2026", "a=/x; Expires=Mon, 23 Nov 2026"),
        ("a=1;;Path=/;", "a=1;;Path=/127.0.0.2/;"),
        ("", ""),
    ];
    let each = COOKIES
        .map(|(from, to)| fields(from, &format!("Set-Cookie: {from}\r\n"), &format!("Set-Cookie: {to}\r\n")));
    let two = fields(
        "two cookies",
        "set-cookie: a=1; Path=/\r\nSet-Cookie: b=2; Path=/b\r\n",
        "set-cookie: a=1; Path=/127.0.0.2/\r\nSet-Cookie: b=2; Path=/127.0.0.2/b\r\n",
    );
    let other = fields("Cookie is none", "Cookie: a=1; Path=/\r\n", "Cookie: a=1; Path=/\r\n");
    each.into_iter().chain([two, other]).collect()
}

/// Of a proxy with `--host-header pass`: the agent is told a port that is not its own.
pub(crate) fn with_host_passed() -> Vec<Passed> {
    const ROWS: [(&str, &str); 5] = [
        ("https://desk.example:9/x", "/127.0.0.2/x"),
        ("//DESK.example:9?q", "/127.0.0.2/?q"),
        ("https://desk.example/x", "/127.0.0.2/x"),
        ("https://desk.example:99/x", "https://desk.example:99/x"),
        ("https://other.example:9/x", "https://other.example:9/x"),
    ];
    let asked = ASKED.replace("desk.example", "desk.example:9");
    ROWS.map(|(from, to)| {
        fields(from, &format!("Location: {from}\r\n"), &format!("Location: {to}\r\n")).to(&asked)
    })
    .into()
}

/// Where no prefix was taken off, none is put back.
fn default_route() -> Vec<Passed> {
    const SAME: [&str; 6] = [
        "Location: /x\r\n",
        "Location: https://desk.example/x\r\n",
        "Clear-Site-Data: \"cookies\"\r\n",
        "Content-Location: /x\r\n",
        "Set-Cookie: a=1; Path=/x\r\n",
        "Set-Cookie: a=1\r\n",
    ];
    const CHANGED: [(&str, &str); 4] = [
        ("Location: https://127.0.0.2/x\r\n", "Location: /x\r\n"),
        ("Refresh: 0;url=http://localhost/x\r\n", "Refresh: 0;url=/x\r\n"),
        ("Set-Cookie: a=1; Domain=127.0.0.2\r\n", "Set-Cookie: a=1\r\n"),
        ("Alt-Svc: h3=\":443\"\r\n", ""),
    ];
    let asked = ASKED.replace("/127.0.0.2", "");
    let same = SAME.map(|line| fields(line, line, line).to(&asked));
    same.into_iter().chain(CHANGED.map(|(from, to)| fields(from, from, to).to(&asked))).collect()
}

/// The agent ends right behind its first bytes, and so does the session.
fn upgrades() -> Vec<Passed> {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: WebSocket\r\n\
        Sec-WebSocket-Accept: x\r\nsec-websocket-protocol: dcv\r\nContent-Length: 5\r\n\r\n\x01\x02HTTP";
    let told = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
        Sec-WebSocket-Accept: x\r\nsec-websocket-protocol: dcv\r\n\r\n\x01\x02HTTP";
    let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
    let refused = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
    vec![
        passed("101 and what rides behind it", answer, told).to(ASKS_WEBSOCKET),
        passed(
            "103, then 101",
            format!("HTTP/1.1 103 x\r\n\r\n{answer}"),
            format!("HTTP/1.1 103 x\r\n\r\n{told}"),
        )
        .to(ASKS_WEBSOCKET),
        passed("an upgrade refused", refusal, refused).to(ASKS_WEBSOCKET),
        bare_cookies(),
    ]
}

/// Asked for `/<ip>` without a slash, a browser would take a cookie without a path for one of all desktops.
fn bare_cookies() -> Passed {
    const COOKIES: [(&str, &str); 6] = [
        ("a=1", "a=1; Path=/127.0.0.2/"),
        ("a=1; Secure", "a=1; Secure; Path=/127.0.0.2/"),
        ("a=1; Path", "a=1; Path; Path=/127.0.0.2/"),
        ("a=1; Path=", "a=1; Path=; Path=/127.0.0.2/"),
        ("a=1; Path=/", "a=1; Path=/127.0.0.2/"),
        ("a=1; Path=/x", "a=1; Path=/127.0.0.2/x"),
    ];
    let lines = |each: [&str; 6]| each.map(|cookie| format!("Set-Cookie: {cookie}\r\n")).concat();
    let start = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n";
    let [from, to] = [COOKIES.map(|(from, _)| from), COOKIES.map(|(_, to)| to)]
        .map(|each| format!("{start}{}\r\n", lines(each)));
    let asked = ASKS_WEBSOCKET.replacen("/127.0.0.2/ws ", "/127.0.0.2 ", 1);
    assert_ne!(asked, ASKS_WEBSOCKET);
    passed("cookies without a path, of a bare request", from, to).to(&asked)
}
