//! Header lines that end at the proxy, those it writes itself, and upgrades. All others reach the agent in their
//! order and as they were written.

use super::row::{Agent, Row, TOLD, bad_line, bad_post, fields, forwarded, head, post, refused, seen};

pub(crate) fn rows() -> Vec<Row> {
    [connection(), one_hop(), origin(false), expect(), kept(), upgrades(), no_upgrades(), pipelines()]
        .into_iter()
        .flatten()
        .collect()
}

fn connection() -> Vec<Row> {
    vec![
        fields("Connection: keep-alive", &["Connection: keep-alive"], &[]),
        fields("Connection: close", &["Connection: close"], &[]).closes(),
        fields("Connection: CLOSE", &["connection:CLOSE"], &[]).closes(),
        fields("close among others", &["Connection: a, close ,b", "A: 1", "c: 3"], &["c: 3"]).closes(),
        fields("close in a second line", &["Connection: keep-alive", "Connection: close"], &[]).closes(),
        fields("closed is not close", &["Connection: closed, clos"], &[]),
        fields("nothing", &["Connection:"], &[]),
        fields("empty members", &["Connection: ,,", "A: 1"], &["A: 1"]),
        fields("a named line", &["Connection: X-Hop", "X-Hop: 1", "X-Hops: 2"], &["X-Hops: 2"]),
        fields("a named line before", &["X-Hop: 1", "Connection: x-hOP"], &[]),
        fields("a line named twice", &["X-Hop: 1", "Connection: X-Hop, X-Hop", "X-Hop: 2"], &[]),
        fields("two named lines", &["Connection: A\t,  B", "A: 1", "B: 1", "C: 1"], &["C: 1"]),
        fields("names in two lines", &["Connection: A", "A: 1", "Connection: B", "B: 1"], &[]),
        fields("a quoted name is none", &["Connection: \"A\"", "A: 1"], &["A: 1"]),
        fields("Host is kept", &["Connection: Host"], &[]),
        fields("Cookie named", &["Connection: Cookie", "Cookie: a=1"], &[]),
        fields("X-Forwarded-For named", &["Connection: X-Forwarded-For, X-Real-IP, X-Forwarded-Proto"], &[]),
        post(
            "Content-Length named",
            (&["Connection: Content-Length", "Content-Length: 5"], "hello"),
            (&["Content-Length: 5"], "hello"),
        ),
        post(
            "Content-Length of 0 named",
            (&["Connection: Content-Length", "Content-Length: 0"], ""),
            (&["Content-Length: 0"], ""),
        ),
        post(
            "Transfer-Encoding named",
            (&["Connection: Transfer-Encoding", "Transfer-Encoding: chunked"], "1\r\na\r\n0\r\n\r\n"),
            (&["Transfer-Encoding: chunked"], "1\r\na\r\n0\r\n\r\n"),
        ),
    ]
}

fn one_hop() -> Vec<Row> {
    let gone = |field: &str| fields(field, &["A: 1", field, "B: 2"], &["A: 1", "B: 2"]);
    vec![
        gone("Keep-Alive: timeout=5"),
        gone("TE: trailers, deflate"),
        gone("Proxy-Connection: keep-alive"),
        gone("Proxy-Authorization: Basic eDp5"),
        gone("proxy-AUTHORIZATION: Basic eDp5"),
        gone("Upgrade: h2c"),
        gone("Upgrade: websocket"),
        fields("Trailer", &["Trailer: X-Sum"], &["Trailer: X-Sum"]),
        fields("names that only begin so", &["TEA: 1", "Upgrades: 1"], &["TEA: 1", "Upgrades: 1"]),
    ]
}

/// What an agent is told of the client: what the client says of it is replaced, unless it is a proxy that is `trusted`.
pub(crate) fn origin(trusted: bool) -> Vec<Row> {
    let believed = |text: &'static str| if trusted { text } else { "" };
    let told = |name, asked: &[&str], chain: &str, kept: &str| {
        let asked = head("GET /127.0.0.2/x HTTP/1.1", &[&["Host: h"], asked].concat());
        let told = TOLD.replace("For: ", &format!("For: {chain}"));
        forwarded(name, asked, format!("GET /x HTTP/1.1\r\nHost: h\r\n{told}{kept}\r\n"))
    };
    let by_trusted = |row: Row, from: &str, to: &str| if trusted { row.seeing(from, to) } else { row };
    let client = |row| by_trusted(row, "Real-IP: 127.0.0.1", "Real-IP: 10.9.8.7");
    let id = |row| by_trusted(row, "Request-Id: *", "Request-Id: Root=1-67891233-abc");
    let https = |row| by_trusted(row, "Proto: http", "Proto: https");
    vec![
        client(told("X-Forwarded-For", &["X-Forwarded-For: 10.9.8.7"], believed("10.9.8.7, "), "")),
        client(told(
            "a forged one",
            &["X-Forwarded-For: 6.6.6.6,10.9.8.7"],
            believed("6.6.6.6,10.9.8.7, "),
            "",
        )),
        client(told(
            "X-Forwarded-For of two hops",
            &["X-Forwarded-For: 10.9.8.7, 127.0.0.7"],
            believed("10.9.8.7, 127.0.0.7, "),
            "",
        )),
        told("X-Forwarded-For of two", &["x-forwarded-for: a, b"], believed("a, b, "), ""),
        told(
            "two X-Forwarded-For",
            &["X-Forwarded-For: a", "A: 1", "X-Forwarded-For: b"],
            believed("a, b, "),
            "A: 1\r\n",
        ),
        client(told(
            "X-Forwarded-For that Connection names",
            &["Connection: X-Forwarded-For", "X-Forwarded-For: 10.9.8.7"],
            believed("10.9.8.7, "),
            "",
        )),
        id(told("X-Request-Id", &["x-request-ID: Root=1-67891233-abc"], "", "")),
        told("X-Request-Id with a space", &["X-Request-Id: a b"], "", ""),
        told("X-Request-Id that is empty", &["X-Request-Id:"], "", ""),
        told("X-Request-Id that is too long", &[&format!("X-Request-Id: {}", "x".repeat(65))], "", ""),
        told("two X-Request-Id", &["X-Request-Id: a", "X-Request-Id: a"], "", ""),
        told("X-Real-IP", &["X-Real-IP: 10.9.8.7"], "", ""),
        told("X-Real-IP twice", &["x-real-ip: 10.9.8.7", "X-REAL-IP: 10.9.8.6"], "", ""),
        https(told("X-Forwarded-Proto", &["X-Forwarded-Proto: https"], "", "")),
        https(told("X-Forwarded-Proto in odd case", &["x-forwarded-PROTO: HTTPS"], "", "")),
        told("another X-Forwarded-Proto", &["X-Forwarded-Proto: ftp"], "", ""),
        told("X-Forwarded-Proto of two", &["X-Forwarded-Proto: https, http"], "", ""),
        told("two X-Forwarded-Proto", &["X-Forwarded-Proto: https", "X-Forwarded-Proto: https"], "", ""),
        told(
            "Forwarded",
            &["Forwarded: for=10.9.8.7;proto=https"],
            "",
            believed("Forwarded: for=10.9.8.7;proto=https\r\n"),
        ),
    ]
}

fn expect() -> Vec<Row> {
    let bad = |name, value: &str| {
        let fields = ["Host: h", "Content-Length: 5", value];
        refused(name, 417, head("POST /127.0.0.2/x HTTP/1.1", &fields) + "hello")
    };
    vec![
        post(
            "Expect: 100-continue",
            (&["Expect: 100-continue", "Content-Length: 5"], "hello"),
            (&["Content-Length: 5", "Expect: 100-continue"], "hello"),
        ),
        post(
            "Expect in odd case",
            (&["expect: 100-CONTINUE", "Content-Length: 5"], "hello"),
            (&["Content-Length: 5", "expect: 100-CONTINUE"], "hello"),
        ),
        bad("Expect: 200-ok", "Expect: 200-ok"),
        bad("Expect: 100", "Expect: 100"),
        bad("an empty Expect", "Expect:"),
        bad("Expect of two", "Expect: 100-continue, 200-ok"),
        bad("two Expects", "Expect: 100-continue\r\nExpect: x"),
    ]
}

/// As a browser and DCV's client send them.
fn kept() -> Vec<Row> {
    const KEPT: [&str; 14] = [
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64)",
        "accept: */*",
        "Accept-Encoding: gzip, deflate, br",
        "Cookie: a=1; b=2",
        "Cookie: c=\"3\"",
        "Origin: https://desk.example:8443",
        "Referer: https://desk.example/127.0.0.2/?q",
        "Authorization: Basic eDp5",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "sec-websocket-protocol: dcv",
        "Cache-Control: no-cache",
        "Range: bytes=0-5",
        "X-Forwarded-Host: desk.example",
    ];
    let mut backwards = KEPT;
    backwards.reverse();
    vec![
        fields("what a browser sends", &KEPT, &KEPT),
        fields("the same backwards", &backwards, &backwards),
        fields("a line twice", &["Accept: a", "Accept: a"], &["Accept: a", "Accept: a"]),
    ]
}

const KEYS: [&str; 4] = [
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-VERSION: 13",
    "Sec-WebSocket-Protocol: dcv",
    "Origin: https://desk.example",
];

/// The agent answers 204, so the client's connection ends: what comes behind may be no HTTP.
fn upgrades() -> Vec<Row> {
    let good = |name, asked: &[&str], told: &[&str]| {
        let asked = head("GET /127.0.0.2/ws?s=1 HTTP/1.1", &[&["Host: h"], asked, &KEYS].concat());
        let host = "h\r\nUpgrade: websocket\r\nConnection: upgrade";
        forwarded(name, asked, seen("GET /ws?s=1 HTTP/1.1", host, &[told, &KEYS].concat())).closes()
    };
    vec![
        good("an upgrade", &["Upgrade: websocket", "Connection: Upgrade"], &[]),
        good("the other order", &["Connection: upgrade", "Upgrade: websocket"], &[]),
        good("odd case", &["uPGRADE: WebSocket", "connection: UPGRADE"], &[]),
        good("Firefox", &["Connection: keep-alive, Upgrade", "Upgrade: websocket"], &[]),
        good("two lines", &["Connection: keep-alive", "Connection: Upgrade", "Upgrade: websocket"], &[]),
        good("several protocols", &["Connection: Upgrade", "Upgrade: h2c, websocket"], &[]),
        good("two Upgrades", &["Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"], &[]),
        good(
            "a named line",
            &["Connection: Upgrade, X-Hop", "Upgrade: websocket", "X-Hop: 1", "A: 1"],
            &["A: 1"],
        ),
        good(
            "a length of 0",
            &["Upgrade: websocket", "Connection: Upgrade", "Content-Length: 0"],
            &["Content-Length: 0"],
        ),
    ]
}

fn no_upgrades() -> Vec<Row> {
    let websocket = ["Host: h", "Upgrade: websocket", "Connection: Upgrade"];
    let with = |more: &'static str| [&websocket[..], &[more]].concat();
    let get = "GET /127.0.0.2/ws HTTP/1.1";
    vec![
        fields("h2c", &["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: A"], &[]),
        fields("no Connection", &["Upgrade: websocket"], &[]),
        fields("Connection without it", &["Upgrade: websocket", "Connection: keep-alive"], &[]),
        fields("no Upgrade", &["Connection: Upgrade"], &[]),
        fields("another protocol", &["Connection: Upgrade", "Upgrade: websockets"], &[]),
        fields("a protocol's version", &["Connection: Upgrade", "Upgrade: websocket/13"], &[]),
        forwarded(
            "a POST",
            head("POST /127.0.0.2/x HTTP/1.1", &websocket),
            seen("POST /x HTTP/1.1", "h", &[]),
        ),
        forwarded(
            "HTTP/1.0",
            head("GET /127.0.0.2/x HTTP/1.0", &websocket),
            seen("GET /x HTTP/1.1", "h", &[]),
        )
        .closes(),
        post(
            "a POST with a body",
            (&["Upgrade: websocket", "Connection: Upgrade", "Content-Length: 5"], "hello"),
            (&["Content-Length: 5"], "hello"),
        ),
        refused("an upgrade with a body", 400, head(get, &with("Content-Length: 5")) + "hello"),
        refused(
            "an upgrade with chunks",
            400,
            head(get, &with("Transfer-Encoding: chunked")) + "1\r\na\r\n0\r\n\r\n",
        ),
    ]
}

fn pipelines() -> Vec<Row> {
    let get = |path: &str| head(&format!("GET /127.0.0.2{path} HTTP/1.1"), &["Host: h"]);
    let told = |path: &str| seen(&format!("GET {path} HTTP/1.1"), "h", &[]).into_bytes();
    let body = head("POST /127.0.0.2/b HTTP/1.1", &["Host: h", "Content-Length: 5"]) + "hello";
    let told_body = (seen("POST /b HTTP/1.1", "h", &["Content-Length: 5"]) + "hello").into_bytes();
    let chunks = head("PUT /127.0.0.2/c HTTP/1.1", &["Host: h", "Transfer-Encoding: chunked"]) + "0\r\n\r\n";
    let told_chunks = seen("PUT /c HTTP/1.1", "h", &["Transfer-Encoding: chunked"]) + "0\r\n\r\n";
    let told_chunks = told_chunks.into_bytes();
    let bad = bad_line("GET x HTTP/1.1", 400).request;
    let bad = String::from_utf8_lossy(&bad).into_owned();
    let health = head("GET /health HTTP/1.1", &["Host: h"]);
    let stranger = head("GET /127.0.0.1/x HTTP/1.1", &["Host: h"]);
    let over = bad_post("", 413, &["Content-Length: 65537"], "").request;
    let over = String::from_utf8_lossy(&over).into_owned();
    let row = |name, requests: &[&String], told: &[&Vec<u8>], statuses: &[u16]| {
        let agent = Agent::Sees(told.iter().map(|told| (*told).clone()).collect());
        let requests: String = requests.iter().map(|request| request.as_str()).collect();
        Row { agent, statuses: statuses.to_vec(), ..refused(name, 0, requests) }
    };
    let (a, b) = (get("/a"), get("/b"));
    let (told_a, told_b) = (told("/a"), told("/b"));
    vec![
        row("two requests", &[&a, &b], &[&told_a, &told_b], &[204, 204]).stays(),
        row("a body between two", &[&a, &body, &b], &[&told_a, &told_body, &told_b], &[204; 3]).stays(),
        row("chunks between two", &[&a, &chunks, &b], &[&told_a, &told_chunks, &told_b], &[204; 3]).stays(),
        row("own answers between", &[&health, &a, &stranger, &b], &[&told_a, &told_b], &[200, 204, 403, 204])
            .stays(),
        row("a bad one last", &[&a, &b, &bad], &[&told_a, &told_b], &[204, 204, 400]),
        row("a bad one between", &[&a, &bad, &b], &[&told_a], &[204, 400]),
        row("a refused body between", &[&a, &over, &b], &[&told_a], &[204, 413]),
        row("empty lines between", &[&a, &"\r\n".to_owned(), &b], &[&told_a, &told_b], &[204, 204]).stays(),
        row("two empty lines between", &[&a, &"\r\n".repeat(2), &b], &[&told_a, &told_b], &[204, 204])
            .stays(),
        row("three empty lines between", &[&a, &"\r\n".repeat(3), &b], &[&told_a], &[204, 400]),
    ]
}
