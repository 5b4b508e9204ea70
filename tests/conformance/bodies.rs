//! How long a body is: one way to say so, said once. Requests behind a body are the next requests, never part of
//! it; chunks are written anew, without extensions.

use super::row::{Agent, Row, bad_post, forwarded, head, post, refused, seen};

pub(crate) fn rows() -> Vec<Row> {
    [lengths(), bad_lengths(), codings(), bad_codings(), both(), chunks(), bad_chunks(), limits()]
        .into_iter()
        .flatten()
        .collect()
}

fn lengths() -> Vec<Row> {
    let five = |name, field: &str| post(name, (&[field], "hello"), (&["Content-Length: 5"], "hello"));
    let get = head("GET /127.0.0.2/x HTTP/1.1", &["Host: h", "Content-Length: 5"]) + "hello";
    let old = head("POST /127.0.0.2/x HTTP/1.0", &["Host: h", "Content-Length: 5"]) + "hello";
    vec![
        post("no length", (&[], ""), (&[], "")),
        post("a length of 0", (&["A: 1", "Content-Length: 0"], ""), (&["A: 1", "Content-Length: 0"], "")),
        five("a length", "Content-Length: 5"),
        five("a length in odd case", "content-LENGTH:5"),
        five("a length between white space", "Content-Length: \t5 \t"),
        five("a length with leading zeros", "Content-Length: 0005"),
        post(
            "a length behind others",
            (&["A: 1", "Content-Length: 5", "B: 2"], "hello"),
            (&["Content-Length: 5", "A: 1", "B: 2"], "hello"),
        ),
        post(
            "a body that looks like a request",
            (&["Content-Length: 35"], "GET /127.0.0.3/x HTTP/1.1\r\nHost:h\r\n"),
            (&["Content-Length: 35"], "GET /127.0.0.3/x HTTP/1.1\r\nHost:h\r\n"),
        ),
        forwarded("a GET with a body", get, seen("GET /x HTTP/1.1", "h", &["Content-Length: 5"]) + "hello"),
        forwarded(
            "HTTP/1.0 with a body",
            old,
            seen("POST /x HTTP/1.1", "h", &["Content-Length: 5"]) + "hello",
        )
        .closes(),
    ]
}

fn bad_lengths() -> Vec<Row> {
    const BAD: [&str; 22] = [
        "",
        "+5",
        "-5",
        "+0",
        "-0",
        "5x",
        "x5",
        "0x5",
        "5 5",
        "5, 5",
        "5,",
        ",5",
        "5;",
        "5.0",
        "5e0",
        "\"5\"",
        "'5'",
        "\u{665}",
        "18446744073709551616",
        "99999999999999999999999",
        "5\u{b}",
        "NaN",
    ];
    let each = BAD.map(|value| {
        let field = format!("Content-Length: {value}");
        bad_post(&field, 400, &[&field], "hello")
    });
    let others = [
        bad_post("the same length twice", 400, &["Content-Length: 5", "Content-Length: 5"], "hello"),
        bad_post("0 twice", 400, &["Content-Length: 0", "Content-Length: 0"], ""),
        bad_post("two lengths", 400, &["Content-Length: 5", "Content-Length: 6"], "hello!"),
        bad_post("a length, and an empty one", 400, &["Content-Length: 5", "Content-Length:"], "hello"),
        bad_post("two lengths apart", 400, &["Content-Length: 0", "A: 1", "content-length: 5"], "hello"),
        bad_post("the longest length", 413, &["Content-Length: 18446744073709551615"], ""),
    ];
    each.into_iter().chain(others).collect()
}

const HELLO: &str = "5\r\nhello\r\n0\r\n\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked";

fn codings() -> Vec<Row> {
    let chunked = |field: &str| post(field, (&[field], HELLO), (&[CHUNKED], HELLO));
    let get = head("GET /127.0.0.2/x HTTP/1.1", &["Host: h", CHUNKED]) + HELLO;
    vec![
        chunked("Transfer-Encoding: chunked"),
        chunked("Transfer-Encoding: Chunked"),
        chunked("transfer-encoding: CHUNKED"),
        chunked("Transfer-Encoding:\tchunked \t"),
        forwarded("a GET with chunks", get, seen("GET /x HTTP/1.1", "h", &[CHUNKED]) + HELLO),
    ]
}

fn bad_codings() -> Vec<Row> {
    const BAD: [&str; 22] = [
        "",
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked, identity",
        "identity, chunked",
        "chunked,",
        ",chunked",
        "chunked;x",
        "chunked;q=0",
        "xchunked",
        "chunkedx",
        "chunk",
        "\"chunked\"",
        "'chunked'",
        "chunked chunked",
        "\u{b}chunked",
        "chunked\u{b}",
        "chunked\u{c}",
        "\u{a0}chunked",
    ];
    let each = BAD.map(|value| {
        let field = format!("Transfer-Encoding: {value}");
        bad_post(&field, 400, &[&field], HELLO)
    });
    let twice = |name, first, second| bad_post(name, 400, &[first, second], HELLO);
    let others = [
        twice("chunked twice", CHUNKED, CHUNKED),
        twice("chunked, then identity", CHUNKED, "Transfer-Encoding: identity"),
        twice("identity, then chunked", "Transfer-Encoding: identity", CHUNKED),
        twice("chunked, then nothing", CHUNKED, "Transfer-Encoding:"),
        twice("chunked, then odd case", CHUNKED, "tRANSFER-eNCODING: x"),
        refused("chunks in HTTP/1.0", 400, head("POST / HTTP/1.0", &["Host: h", CHUNKED]) + HELLO),
    ];
    each.into_iter().chain(others).collect()
}

/// The classic ways to smuggle a request past a proxy.
fn both() -> Vec<Row> {
    const SMUGGLED: &str = "0\r\n\r\nGET /127.0.0.3/x HTTP/1.1\r\nHost: h\r\n\r\n";
    let both = |name, first, second| bad_post(name, 400, &[first, second], SMUGGLED);
    vec![
        both("CL.TE", "Content-Length: 45", CHUNKED),
        both("TE.CL", CHUNKED, "Content-Length: 4"),
        both("CL of 0, TE", "Content-Length: 0", CHUNKED),
        both("CL, TE in odd case", "Content-Length: 4", "tRANSFER-ENCODING: Chunked"),
        both("a bad CL, TE", "Content-Length: x", CHUNKED),
        both("CL, an odd TE", "Content-Length: 4", "Transfer-Encoding: xchunked"),
        both("TE.TE", CHUNKED, "Transfer-Encoding: cow"),
        both("TE named by Connection, and CL", "Connection: Transfer-Encoding", "Transfer-Encoding: x"),
        bad_post(
            "CL.TE with TE named by Connection",
            400,
            &["Connection: Transfer-Encoding, Content-Length", CHUNKED, "Content-Length: 4"],
            SMUGGLED,
        ),
    ]
}

fn chunks() -> Vec<Row> {
    let as_told = |name, body: &str, told: &str| post(name, (&[CHUNKED], body), (&[CHUNKED], told));
    let extension = "e".repeat(1000);
    let trailer = format!("X-Sum: {}", "s".repeat(8000));
    vec![
        as_told("no chunks", "0\r\n\r\n", "0\r\n\r\n"),
        as_told("two chunks", "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"),
        as_told("leading zeros", "0005\r\nhello\r\n000\r\n\r\n", HELLO),
        as_told("upper-case digits", "A\r\n0123456789\r\n0\r\n\r\n", "a\r\n0123456789\r\n0\r\n\r\n"),
        as_told("an extension", "5;a=1\r\nhello\r\n0;b\r\n\r\n", HELLO),
        as_told("a quoted extension", "5;a=\"\\\";\"\r\nhello\r\n0\r\n\r\n", HELLO),
        as_told("a tab in an extension", "5;\ta\t=\t1\r\nhello\r\n0\r\n\r\n", HELLO),
        as_told("a long extension", &format!("5;{extension}\r\nhello\r\n0\r\n\r\n"), HELLO),
        post(
            "empty lines behind a body",
            (&["Content-Length: 5"], "hello\r\n\r\n"),
            (&["Content-Length: 5"], "hello"),
        ),
        as_told("an empty line behind chunks", &format!("{HELLO}\r\n"), HELLO),
        as_told("CR LF in the data", "4\r\n\r\n\r\n\r\n0\r\n\r\n", "4\r\n\r\n\r\n\r\n0\r\n\r\n"),
        as_told("a trailer", "0\r\nX-Sum: 1\r\nB:2 \r\n\r\n", "0\r\nX-Sum: 1\r\nB: 2\r\n\r\n"),
        as_told("a long trailer", &format!("0\r\n{trailer}\r\n\r\n"), &format!("0\r\n{trailer}\r\n\r\n")),
        as_told(
            "trailers that would change the message",
            "0\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\nHost: x\r\nConnection: close\r\nUpgrade: x\r\n\
             Trailer: x\r\nTE: x\r\nKeep-Alive: x\r\nAuthorization: x\r\nSet-Cookie: x\r\nContent-Encoding: x\r\n\
             Location: x\r\nProxy-Authorization: x\r\nProxy-Connection: x\r\nX-Forwarded-For: x\r\n\
             X-Forwarded-Proto: x\r\nX-Request-Id: x\r\nX-Real-IP: x\r\nX_Sum: x\r\nX-Sum: 1\r\n\r\n",
            "0\r\nX-Sum: 1\r\n\r\n",
        ),
        post(
            "a trailer that was announced",
            (&["Trailer: X-Sum", CHUNKED], "0\r\nX-Sum: 1\r\n\r\n"),
            (&[CHUNKED, "Trailer: X-Sum"], "0\r\nX-Sum: 1\r\n\r\n"),
        ),
    ]
}

/// The head was good and may have been passed on; a whole request never is.
fn bad_chunks() -> Vec<Row> {
    let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "e".repeat(1200));
    let trailer = format!("0\r\nX-Sum: {}\r\n\r\n", "s".repeat(8400));
    let bad = [
        ("a size that is no number", "g\r\nhello\r\n0\r\n\r\n"),
        ("no size", "\r\nhello\r\n0\r\n\r\n"),
        ("a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a minus", "-5\r\nhello\r\n0\r\n\r\n"),
        ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a space before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        ("a space behind the size", "5 \r\nhello\r\n0\r\n\r\n"),
        ("a space before an extension", "5 ;a\r\nhello\r\n0\r\n\r\n"),
        ("an extension without a semicolon", "5,a\r\nhello\r\n0\r\n\r\n"),
        ("LF behind the size", "5\nhello\r\n0\r\n\r\n"),
        ("LF behind two digits", "50\nhello\r\n0\r\n\r\n"),
        ("LF behind an extension", "5;a\nhello\r\n0\r\n\r\n"),
        ("LF behind the data", "5\r\nhello\n0\r\n\r\n"),
        ("CR behind the data", "5\r\nhello\r0\r\n\r\n"),
        ("CR in the size", "5\r5\r\nhello\r\n0\r\n\r\n"),
        ("CR in an extension", "5;\ra\r\nhello\r\n0\r\n\r\n"),
        ("NUL in an extension", "5;\0\r\nhello\r\n0\r\n\r\n"),
        ("DEL in an extension", "5;\x7f\r\nhello\r\n0\r\n\r\n"),
        ("nothing behind the data", "5\r\nhello0\r\n\r\n"),
        ("a size right behind the data", "5\r\nhello5\r\nhello\r\n0\r\n\r\n"),
        ("more data than said", "5\r\nhello!\r\n0\r\n\r\n"),
        ("less data than said", "6\r\nhello\r\n0\r\n\r\n"),
        ("a size of 17 digits", "00000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("a size over 64 bits", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("a long extension", &extension),
        ("a long trailer", &trailer),
        ("an endless extension", &extension[..1100]),
        ("an endless trailer", &trailer[..8300]),
        ("LF behind a trailer that goes on", "0\r\nA: 1\nB: 2"),
        ("LF behind the last chunk", "0\n\r\n\r\n"),
        ("LF behind a trailer", "0\r\nA: 1\n\r\n\r\n"),
        ("LF as the last line", "0\r\nA: 1\r\n\n\r\n\r\n"),
        ("a folded trailer", "0\r\nA: 1\r\n 2\r\n\r\n"),
        ("a trailer with a space before the colon", "0\r\nA : 1\r\n\r\n"),
        ("a trailer without a colon", "0\r\nA\r\n\r\n"),
        ("a trailer with NUL", "0\r\nA: \0\r\n\r\n"),
    ];
    bad.into_iter()
        .map(|(name, body)| {
            let row = bad_post(&format!("chunks with {name}"), 400, &[CHUNKED], body);
            Row { agent: Agent::SeesNoneWhole, ..row }
        })
        .collect()
}

/// Of a proxy with `--body-max 65536B`.
fn limits() -> Vec<Row> {
    let most = "b".repeat(65536);
    let chunk = format!("10000\r\n{most}\r\n0\r\n\r\n");
    let over = [
        ("a chunk over the limit", "10001\r\n".to_owned()),
        ("the longest chunk", "ffffffffffffffff\r\n".to_owned()),
        ("chunks over the limit", format!("10000\r\n{most}\r\n1\r\nb\r\n0\r\n\r\n")),
    ];
    let over = over
        .map(|(name, body)| Row { agent: Agent::SeesNoneWhole, ..bad_post(name, 413, &[CHUNKED], &body) });
    let length = "Content-Length: 65536";
    let at = [
        post("a body at the limit", (&[length], &most), (&[length], &most)),
        post("chunks at the limit", (&[CHUNKED], &chunk), (&[CHUNKED], &chunk)),
        bad_post("a body over the limit", 413, &["Content-Length: 65537"], ""),
        bad_post(
            "a body over the limit that waits",
            413,
            &["Content-Length: 65537", "Expect: 100-continue"],
            "",
        ),
    ];
    over.into_iter().chain(at).collect()
}
