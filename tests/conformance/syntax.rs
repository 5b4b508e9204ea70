//! The form of a head: line ends, white space, and bytes that have no place in it. What another parser could read
//! in a second way is refused; what is forwarded has one form only.

use super::row::{Row, bad_fields, fields, forwarded, head, refused, seen};

pub(crate) fn rows() -> Vec<Row> {
    [line_ends(), empty_lines(), white_space(), names(), values()].into_iter().flatten().collect()
}

fn line_ends() -> Vec<Row> {
    let bad = |name, bytes: &str| refused(name, 400, bytes);
    vec![
        bad("LF only", "GET /127.0.0.2/x HTTP/1.1\nHost: h\n\n"),
        bad("LF after the request line", "GET /127.0.0.2/x HTTP/1.1\nHost: h\r\n\r\n"),
        bad("LF after a header line", "GET /127.0.0.2/x HTTP/1.1\r\nHost: h\nA: 1\r\n\r\n"),
        bad("LF before the empty line", "GET /127.0.0.2/x HTTP/1.1\r\nHost: h\n\r\n"),
        bad("LF as the empty line", "GET /127.0.0.2/x HTTP/1.1\r\nHost: h\r\n\n"),
        bad("CR after the request line", "GET /127.0.0.2/x HTTP/1.1\rHost: h\r\n\r\n"),
        bad("CR in the target", "GET /127.0.0.2/\rx HTTP/1.1\r\nHost: h\r\n\r\n"),
        bad("CR CR LF after the request line", "GET /127.0.0.2/x HTTP/1.1\r\r\nHost: h\r\n\r\n"),
        bad("CR as the empty line", "GET /127.0.0.2/x HTTP/1.1\r\nHost: h\r\n\r\r\n\r\n"),
        bad("CR before the method", "\rGET /127.0.0.2/x HTTP/1.1\r\nHost: h\r\n\r\n"),
        bad_fields("CR instead of CR LF", "A: 1\rB: 2"),
        bad_fields("CR CR LF", "A: 1\r\r\nB: 2"),
        bad_fields("CR at the end of a value", "A: 1\r"),
        bad_fields("CR at the start of a value", "A:\r1"),
        bad_fields("CR in a name", "A\rB: 1"),
        bad_fields("CR and white space at the end of a value", "A: 1\r \r\nB: 2"),
        bad_fields("LF CR", "A: 1\n\rB: 2"),
    ]
}

fn empty_lines() -> Vec<Row> {
    let request = head("GET /127.0.0.2/x HTTP/1.1", &["Host: h"]);
    let after = |start: &str| format!("{start}{request}");
    vec![
        forwarded("an empty line first", after("\r\n"), seen("GET /x HTTP/1.1", "h", &[])),
        forwarded("two empty lines first", after("\r\n\r\n"), seen("GET /x HTTP/1.1", "h", &[])),
        refused("three empty lines first", 400, after("\r\n\r\n\r\n")),
        refused("LF first", 400, after("\n")),
        refused("LF first, twice", 400, after("\n\n")),
        refused("CR first", 400, after("\r")),
        refused("an empty line and LF first", 400, after("\r\n\n")),
        refused("CR CR LF first", 400, after("\r\r\n")),
        refused("nothing but empty lines", 400, "\r\n\r\n\r\n"),
        refused("an empty line, CR first", 400, after("\r\n\r")),
    ]
}

fn white_space() -> Vec<Row> {
    vec![
        bad_fields("a space before the colon", "A : 1"),
        bad_fields("a tab before the colon", "A\t: 1"),
        bad_fields("a space before Content-Length's colon", "Content-Length : 0"),
        bad_fields("a space before Transfer-Encoding's colon", "Transfer-Encoding : chunked"),
        bad_fields("obs-fold with a space", "A: 1\r\n 2"),
        bad_fields("obs-fold with a tab", "A: 1\r\n\t2"),
        bad_fields("obs-fold of nothing", "A: 1\r\n \r\nB: 2"),
        bad_fields("obs-fold behind an empty value", "A:\r\n 1"),
        bad_fields("a folded Transfer-Encoding", "Transfer-Encoding:\r\n chunked"),
        refused("a space before Host", 400, "GET /127.0.0.2/x HTTP/1.1\r\n Host: h\r\n\r\n"),
        refused("a space before a name", 400, "GET /127.0.0.2/x HTTP/1.1\r\n A: 1\r\nHost: h\r\n\r\n"),
        refused("a tab before a name", 400, "GET /127.0.0.2/x HTTP/1.1\r\n\tA: 1\r\nHost: h\r\n\r\n"),
        fields("no space after the colon", &["A:1"], &["A: 1"]),
        fields("white space around a value", &["A: \t 1 2\t3 \t "], &["A: 1 2\t3"]),
        fields("an empty value", &["A:", "B: ", "C: \t", "D: 1"], &["A: ", "B: ", "C: ", "D: 1"]),
    ]
}

fn names() -> Vec<Row> {
    let separators = b"()<>@,;\\\"/[]?={} ".map(|byte| {
        let name = format!("{:?} in a name", char::from(byte));
        bad_fields(&name, [b"A", &[byte][..], b"B: 1"].concat())
    });
    let controls = [0, 1, 0x0b, 0x1f, 0x7f, 0x80, 0xff]
        .map(|byte| bad_fields(&format!("{byte:#x} in a name"), [b"A", &[byte][..], b"B: 1"].concat()));
    let others = [
        bad_fields("no colon", "A"),
        bad_fields("no colon but a value", "A 1"),
        bad_fields("no name", ": 1"),
        bad_fields("nothing but a colon", ":"),
        bad_fields("a request line among the header lines", "GET /127.0.0.3/x HTTP/1.1"),
        fields("every byte of a token", &["!#$%&'*+-.^`|~09azAZ: 1"], &["!#$%&'*+-.^`|~09azAZ: 1"]),
        fields("the case and order of names", &["b: 1", "A: 2", "b: 3"], &["b: 1", "A: 2", "b: 3"]),
        fields(
            "names with _ are dropped",
            &["X_Forwarded_For: 1", "Content_Length: 5", "_: 1", "A_: 1", "A-B: 1"],
            &["A-B: 1"],
        ),
    ];
    separators.into_iter().chain(controls).chain(others).collect()
}

fn values() -> Vec<Row> {
    let controls = [0, 1, 7, 8, 0x0b, 0x0c, 0x0e, 0x1b, 0x1f, 0x7f]
        .map(|byte| bad_fields(&format!("{byte:#x} in a value"), [b"A: 1", &[byte][..], b"2"].concat()));
    let ends = [0, 0x0b, 0x0c, 0x7f]
        .map(|byte| bad_fields(&format!("{byte:#x} at the end of a value"), [b"A: 1", &[byte][..]].concat()));
    let request = b"GET /127.0.0.2/x HTTP/1.1\r\nHost: h\r\nA: \x80\xff\xc3\xbc\r\n\r\n";
    let start = seen("GET /x HTTP/1.1", "h", &["A: "]);
    let told = [start.trim_end_matches("\r\n").as_bytes(), b"\x80\xff\xc3\xbc\r\n\r\n"].concat();
    let others = [
        forwarded("bytes above ASCII in a value", request, told),
        fields(
            "every printable byte in a value",
            &[r##"A: !"#$%&'()*+,-./:;<=>?@[\]^_`{|}~"##],
            &[r##"A: !"#$%&'()*+,-./:;<=>?@[\]^_`{|}~"##],
        ),
        fields("colons in a value", &["A::1::2:"], &["A: :1::2:"]),
    ];
    controls.into_iter().chain(ends).chain(others).collect()
}
