//! The rules, each with what a client does and what is due.

use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITISED,
    PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WHOLE, WINDOW_UPDATE, block, frame, get, request, setting,
};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

/// What is due, or was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Due {
    /// A response of that status.
    Answered(u16),
    /// An error of the stream.
    Reset(u32),
    /// An error of the connection.
    Goaway(u32),
    /// Nothing; a request after it is answered.
    Ignored,
    /// The connection ends without a word.
    Closed,
    /// Nothing comes.
    Silent,
    /// An error of the connection of that code, in whose place the `h2` crate tells `PROTOCOL_ERROR`.
    Vague(u32),
    /// An error of the stream or of the connection (RFC 9113 5.4.2 lets both be).
    Failed(u32),
    /// The same, or of one that has ended (5.1).
    FailedOrClosed(u32),
}

impl Due {
    pub(crate) fn allows(self, found: Self) -> bool {
        match (self, found) {
            (Self::Failed(code), Self::Reset(found) | Self::Goaway(found)) => code == found,
            (Self::Vague(code), Self::Goaway(found)) => code == found || found == PROTOCOL_ERROR,
            (Self::FailedOrClosed(code), Self::Reset(found) | Self::Goaway(found)) => {
                code == found || found == STREAM_CLOSED
            }
            (due, found) => due == found,
        }
    }
}

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// The stream whose end tells.
    pub(crate) stream: u32,
    pub(crate) due: Due,
}

fn raw(name: &str, bytes: impl Into<Vec<u8>>, due: Due) -> Case {
    Case { name: name.to_owned(), bytes: bytes.into(), stream: 1, due }
}

/// Frames after a good beginning.
fn after(name: &str, frames: &[Vec<u8>], due: Due) -> Case {
    let start = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, [])];
    raw(name, [start.as_slice(), frames].concat().concat(), due)
}

fn on(stream: u32, case: Case) -> Case {
    Case { stream, ..case }
}

/// A GET of the health page by its fields.
fn fields(name: &str, fields: &[(&str, &str)], due: Due) -> Case {
    after(name, &[frame(HEADERS, WHOLE, 1, block(fields))], due)
}

/// A header block as it stands.
fn packed(name: &str, block: impl AsRef<[u8]>, due: Due) -> Case {
    after(name, &[frame(HEADERS, WHOLE, 1, block)], due)
}

fn health() -> Vec<u8> {
    frame(HEADERS, WHOLE, 1, get("/health", &[]))
}

/// The head of a POST to the agent.
fn post(more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, request("POST", "/127.0.0.1/x", more))
}

/// The same of one that the agent takes its time for.
fn unanswered(flags: u8) -> Vec<u8> {
    frame(HEADERS, flags, 1, request("POST", "/127.0.0.1/silent", &[]))
}

pub(crate) fn all() -> Vec<Case> {
    [
        preface(),
        frames(),
        headers(),
        data(),
        windows(),
        settings(),
        others(),
        streams(),
        messages(),
        bodies(),
        hpack(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// RFC 9113 3.4.
fn preface() -> Vec<Case> {
    let settings = frame(SETTINGS, 0, 0, []);
    let with = |preface: &[u8], next: &[u8]| [preface, next].concat();
    vec![
        after("a request", &[health()], Due::Answered(200)),
        raw(
            "settings are acknowledged late",
            [PREFACE, &settings, &health(), &frame(SETTINGS, ACK, 0, [])].concat(),
            Due::Answered(200),
        ),
        raw(
            "a preface that is wrong at its end",
            with(b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n", &settings),
            Due::Closed,
        ),
        raw(
            "a frame before the settings",
            with(PREFACE, &frame(PING, 0, 0, [0; 8])),
            Due::Goaway(PROTOCOL_ERROR),
        ),
        raw("a request before the settings", with(PREFACE, &health()), Due::Goaway(PROTOCOL_ERROR)),
        raw(
            "an acknowledgement instead of settings",
            with(PREFACE, &frame(SETTINGS, ACK, 0, [])),
            Due::Goaway(PROTOCOL_ERROR),
        ),
    ]
}

/// RFC 9113 4.
fn frames() -> Vec<Case> {
    let large = vec![0; 16_385];
    let huge = [&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1][..], &[0; 100]].concat();
    let reserved = frame(HEADERS, WHOLE, 0x8000_0001, get("/health", &[]));
    vec![
        after("a frame of an unknown kind", &[frame(200, 0xff, 0, [1; 20])], Due::Ignored),
        after("a frame of an unknown kind on a stream", &[frame(77, 0, 1, [1; 20])], Due::Ignored),
        after("unknown flags of a PING", &[frame(PING, 0xfe, 0, [0; 8])], Due::Ignored),
        after(
            "unknown flags of HEADERS",
            &[frame(HEADERS, WHOLE | 0x42, 1, get("/health", &[]))],
            Due::Answered(200),
        ),
        after("the reserved bit is set", &[reserved], Due::Answered(200)),
        after(
            "DATA of more than a frame may have",
            &[post(&[]), frame(DATA, 0, 1, &large)],
            Due::Failed(FRAME_SIZE_ERROR),
        ),
        after(
            "HEADERS of more than a frame may have",
            &[frame(HEADERS, WHOLE, 1, &large)],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after(
            "SETTINGS of more than a frame may have",
            &[frame(SETTINGS, 0, 0, &large)],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after(
            "an unknown frame of more than a frame may have",
            &[frame(99, 0, 0, &large)],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after("a frame of 16 MiB", &[post(&[]), huge], Due::Failed(FRAME_SIZE_ERROR)),
        after(
            "another frame within a header block",
            &[frame(HEADERS, END_STREAM, 1, get("/health", &[])), frame(PING, 0, 0, [0; 8])],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "an unknown frame within a header block",
            &[frame(HEADERS, END_STREAM, 1, get("/health", &[])), frame(99, 0, 1, [])],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "another stream within a header block",
            &[frame(HEADERS, END_STREAM, 1, get("/health", &[])), frame(CONTINUATION, END_HEADERS, 3, [])],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "a header block in two frames",
            &[
                frame(HEADERS, END_STREAM, 1, &get("/health", &[])[..9]),
                frame(CONTINUATION, END_HEADERS, 1, &get("/health", &[])[9..]),
            ],
            Due::Answered(200),
        ),
        after(
            "a header block in empty frames too",
            &[
                frame(HEADERS, END_STREAM, 1, []),
                frame(CONTINUATION, 0, 1, get("/health", &[])),
                frame(CONTINUATION, END_HEADERS, 1, []),
            ],
            Due::Answered(200),
        ),
    ]
}

/// RFC 9113 6.2 and 6.10.
fn headers() -> Vec<Case> {
    let padded = |length: u8, padding: usize| [vec![length], get("/health", &[]), vec![0; padding]].concat();
    let prioritised =
        |dependency: u32| [dependency.to_be_bytes().to_vec(), vec![15], get("/health", &[])].concat();
    let weight = |flags, payload: Vec<u8>| frame(HEADERS, WHOLE | flags, 1, payload);
    vec![
        after(
            "HEADERS of stream 0",
            &[frame(HEADERS, WHOLE, 0, get("/health", &[]))],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after("HEADERS with padding", &[weight(PADDED, padded(20, 20))], Due::Answered(200)),
        after("HEADERS with no padding that is told", &[weight(PADDED, padded(0, 0))], Due::Answered(200)),
        after(
            "HEADERS with more padding than there is",
            &[weight(PADDED, padded(255, 0))],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "HEADERS that are too short for padding",
            &[weight(PADDED, Vec::new())],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after("HEADERS with a priority", &[weight(PRIORITISED, prioritised(0))], Due::Answered(200)),
        after(
            "HEADERS that depend on themselves",
            &[weight(PRIORITISED, prioritised(1))],
            Due::Failed(PROTOCOL_ERROR),
        ),
        after(
            "HEADERS that are too short for a priority",
            &[weight(PRIORITISED, vec![0; 3])],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after(
            "CONTINUATION without HEADERS",
            &[frame(CONTINUATION, END_HEADERS, 1, get("/health", &[]))],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "CONTINUATION after the block's end",
            &[health(), frame(CONTINUATION, END_HEADERS, 1, [])],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "CONTINUATION of stream 0",
            &[frame(HEADERS, END_STREAM, 1, []), frame(CONTINUATION, END_HEADERS, 0, [])],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "CONTINUATION after DATA",
            &[post(&[]), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, [])],
            Due::Goaway(PROTOCOL_ERROR),
        ),
    ]
}

/// RFC 9113 6.1.
fn data() -> Vec<Case> {
    let sent = |frames: &[Vec<u8>]| [&[post(&[])], frames].concat();
    vec![
        after("DATA of stream 0", &[frame(DATA, 0, 0, b"x")], Due::Goaway(PROTOCOL_ERROR)),
        after("DATA", &sent(&[frame(DATA, END_STREAM, 1, b"hello")]), Due::Answered(200)),
        after(
            "DATA in pieces",
            &sent(&[frame(DATA, 0, 1, b"he"), frame(DATA, 0, 1, []), frame(DATA, END_STREAM, 1, b"llo")]),
            Due::Answered(200),
        ),
        after(
            "DATA with padding",
            &sent(&[frame(DATA, END_STREAM | PADDED, 1, [&[3][..], b"x", &[0; 3]].concat())]),
            Due::Answered(200),
        ),
        after(
            "DATA of padding alone",
            &sent(&[frame(DATA, END_STREAM | PADDED, 1, [0])]),
            Due::Answered(200),
        ),
        after(
            "DATA with more padding than there is",
            &sent(&[frame(DATA, PADDED, 1, [9, 0])]),
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "DATA that is too short for padding",
            &sent(&[frame(DATA, PADDED, 1, [])]),
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after(
            "DATA of a stream that was never opened",
            &[frame(DATA, 0, 1, b"x")],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "DATA after the end",
            &[unanswered(END_HEADERS), frame(DATA, END_STREAM, 1, b"x"), frame(DATA, 0, 1, b"x")],
            Due::Vague(STREAM_CLOSED),
        ),
        after(
            "DATA after a head that was all",
            &[unanswered(WHOLE), frame(DATA, 0, 1, b"x")],
            Due::Vague(STREAM_CLOSED),
        ),
    ]
}

/// RFC 9113 6.9.
fn windows() -> Vec<Case> {
    let sent = |frames: &[Vec<u8>]| [&[post(&[])], frames].concat();
    let update = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, by.to_be_bytes());
    let most = 0x7fff_ffff;
    vec![
        after("a window that grows", &[update(0, 1), health()], Due::Answered(200)),
        after("a window that grows by nothing", &[update(0, 0)], Due::Goaway(PROTOCOL_ERROR)),
        after("a stream's window that grows by nothing", &sent(&[update(1, 0)]), Due::Failed(PROTOCOL_ERROR)),
        after("a window beyond all", &[update(0, most)], Due::Goaway(FLOW_CONTROL_ERROR)),
        after("a stream's window beyond all", &sent(&[update(1, most)]), Due::Failed(FLOW_CONTROL_ERROR)),
        after(
            "WINDOW_UPDATE that is too short",
            &[frame(WINDOW_UPDATE, 0, 0, [0; 3])],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after(
            "WINDOW_UPDATE that is too long",
            &[frame(WINDOW_UPDATE, 0, 0, [0, 0, 0, 1, 0])],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after(
            "WINDOW_UPDATE of a stream that was never opened",
            &[update(1, 1)],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        on(
            3,
            after(
                "WINDOW_UPDATE of a stream that has ended",
                &[
                    health(),
                    frame(PING, 0, 0, [0; 8]),
                    update(1, 1),
                    frame(HEADERS, WHOLE, 3, get("/health", &[])),
                ],
                Due::Answered(200),
            ),
        ),
    ]
}

/// RFC 9113 6.5.
fn settings() -> Vec<Case> {
    let one = |identifier, value| frame(SETTINGS, 0, 0, setting(identifier, value));
    vec![
        after("SETTINGS that change nothing", &[frame(SETTINGS, 0, 0, [])], Due::Ignored),
        after("SETTINGS of a stream", &[frame(SETTINGS, 0, 1, [])], Due::Goaway(PROTOCOL_ERROR)),
        after("SETTINGS in part", &[frame(SETTINGS, 0, 0, [0; 5])], Due::Goaway(FRAME_SIZE_ERROR)),
        after(
            "an acknowledgement with settings",
            &[frame(SETTINGS, ACK, 0, setting(4, 1))],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after(
            "an acknowledgement of nothing",
            &[frame(SETTINGS, ACK, 0, []), frame(SETTINGS, ACK, 0, [])],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after("push that is neither on nor off", &[one(2, 2)], Due::Goaway(PROTOCOL_ERROR)),
        after("push that is off", &[one(2, 0)], Due::Ignored),
        after("a window beyond all in SETTINGS", &[one(4, 0x8000_0000)], Due::Vague(FLOW_CONTROL_ERROR)),
        after("the largest window", &[one(4, 0x7fff_ffff)], Due::Ignored),
        after("frames that are too small", &[one(5, 16_383)], Due::Goaway(PROTOCOL_ERROR)),
        after("frames that are too large", &[one(5, 16_777_216)], Due::Goaway(PROTOCOL_ERROR)),
        after("the largest frames", &[one(5, 16_777_215)], Due::Ignored),
        after("no table for headers", &[one(1, 0), health()], Due::Answered(200)),
        after("the largest table for headers", &[one(1, u32::MAX), health()], Due::Answered(200)),
        after("no streams of the proxy's", &[one(3, 0)], Due::Ignored),
        after("a small header list", &[one(6, 10), health()], Due::Answered(200)),
        after("an unknown setting", &[one(0xff00, 7)], Due::Ignored),
        after(
            "a setting twice",
            &[frame(SETTINGS, 0, 0, [setting(4, 1), setting(4, 100)].concat()), health()],
            Due::Answered(200),
        ),
        after("WebSockets that nobody has offered", &[one(8, 1)], Due::Ignored),
    ]
}

/// RFC 9113 6.3, 6.4, 6.6 to 6.8.
fn others() -> Vec<Case> {
    let priority = |dependency: u32| [&dependency.to_be_bytes()[..], &[15]].concat();
    let goaway = |payload: &[u8]| frame(GOAWAY, 0, 0, payload);
    vec![
        after("PING", &[frame(PING, 0, 0, *b"12345678")], Due::Ignored),
        after("an answer to no PING", &[frame(PING, ACK, 0, [0; 8])], Due::Ignored),
        after("PING of a stream", &[frame(PING, 0, 1, [0; 8])], Due::Goaway(PROTOCOL_ERROR)),
        after("PING that is too short", &[frame(PING, 0, 0, [0; 6])], Due::Goaway(FRAME_SIZE_ERROR)),
        after("PING that is too long", &[frame(PING, 0, 0, [0; 9])], Due::Goaway(FRAME_SIZE_ERROR)),
        after("PRIORITY of a stream to come", &[frame(PRIORITY, 0, 5, priority(0))], Due::Ignored),
        after("PRIORITY of stream 0", &[frame(PRIORITY, 0, 0, priority(1))], Due::Goaway(PROTOCOL_ERROR)),
        after("PRIORITY that is too short", &[frame(PRIORITY, 0, 1, [0; 4])], Due::Failed(FRAME_SIZE_ERROR)),
        after("PRIORITY that is too long", &[frame(PRIORITY, 0, 1, [0; 6])], Due::Failed(FRAME_SIZE_ERROR)),
        after(
            "RST_STREAM of stream 0",
            &[frame(RST_STREAM, 0, 0, [0, 0, 0, 8])],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "RST_STREAM of a stream that was never opened",
            &[frame(RST_STREAM, 0, 1, [0, 0, 0, 8])],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after(
            "RST_STREAM that is too short",
            &[post(&[]), frame(RST_STREAM, 0, 1, [0; 3])],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after(
            "RST_STREAM that is too long",
            &[post(&[]), frame(RST_STREAM, 0, 1, [0; 5])],
            Due::Goaway(FRAME_SIZE_ERROR),
        ),
        after("RST_STREAM", &[post(&[]), frame(RST_STREAM, 0, 1, [0, 0, 0, 8])], Due::Ignored),
        after(
            "RST_STREAM with an unknown code",
            &[post(&[]), frame(RST_STREAM, 0, 1, [0xff; 4])],
            Due::Ignored,
        ),
        after(
            "PUSH_PROMISE",
            &[post(&[]), frame(PUSH_PROMISE, END_HEADERS, 1, [&[0, 0, 0, 2][..], &get("/", &[])].concat())],
            Due::Goaway(PROTOCOL_ERROR),
        ),
        after("GOAWAY of a stream", &[frame(GOAWAY, 0, 1, [0; 8])], Due::Goaway(PROTOCOL_ERROR)),
        after("GOAWAY that is too short", &[goaway(&[0; 7])], Due::Goaway(FRAME_SIZE_ERROR)),
        after("GOAWAY", &[health(), goaway(&[0; 8])], Due::Answered(200)),
        after("GOAWAY with more to say", &[health(), goaway(&[0; 30])], Due::Answered(200)),
    ]
}

/// RFC 9113 5.
fn streams() -> Vec<Case> {
    let ask = |stream| frame(HEADERS, WHOLE, stream, get("/health", &[]));
    vec![
        on(2, after("a stream with an even number", &[ask(2)], Due::Goaway(PROTOCOL_ERROR))),
        on(
            1,
            after(
                "a stream with a smaller number than before",
                &[ask(5), ask(1)],
                Due::FailedOrClosed(PROTOCOL_ERROR),
            ),
        ),
        on(7, after("a stream that leaves numbers out", &[ask(7)], Due::Answered(200))),
        after("HEADERS after the end", &[unanswered(WHOLE), health()], Due::Vague(STREAM_CLOSED)),
        after(
            "trailers that do not end the stream",
            &[post(&[]), frame(DATA, 0, 1, b"x"), frame(HEADERS, END_HEADERS, 1, block(&[("x", "1")]))],
            Due::Failed(PROTOCOL_ERROR),
        ),
        after(
            "a stream that was reset is reset again",
            &[post(&[]), frame(RST_STREAM, 0, 1, [0, 0, 0, 8]), frame(RST_STREAM, 0, 1, [0, 0, 0, 8])],
            Due::Ignored,
        ),
    ]
}

/// RFC 9113 8.2 and 8.3.
fn messages() -> Vec<Case> {
    const METHOD: (&str, &str) = (":method", "GET");
    const SCHEME: (&str, &str) = (":scheme", "http");
    const AUTHORITY: (&str, &str) = (":authority", "proxy");
    const PATH: (&str, &str) = (":path", "/health");
    let malformed = Due::Failed(PROTOCOL_ERROR);
    let with = |name: &str, more: &[(&str, &str)], due| {
        fields(name, &[&[METHOD, SCHEME, AUTHORITY, PATH], more].concat(), due)
    };
    vec![
        with("a field", &[("x", "1")], Due::Answered(200)),
        with("a name in upper case", &[("X-Y", "1")], malformed),
        with("a name with a space", &[("x y", "1")], malformed),
        with("a name with a colon", &[("x:y", "1")], malformed),
        with("a name with a byte of control", &[("x\n", "1")], malformed),
        with("no name", &[("", "1")], malformed),
        with("a value with a line end", &[("x", "a\r\nb: c")], malformed),
        with("a value with a line feed", &[("x", "a\nb")], malformed),
        with("a value with a NUL", &[("x", "a\0b")], malformed),
        with("a value that begins with a space", &[("x", " a")], malformed),
        with("a value that ends with a tab", &[("x", "a\t")], malformed),
        with("a value with bytes beyond ASCII", &[("x", "caf\u{e9}")], Due::Answered(200)),
        with("an empty value", &[("x", "")], Due::Answered(200)),
        with("Connection", &[("connection", "keep-alive")], malformed),
        with("Keep-Alive", &[("keep-alive", "1")], malformed),
        with("Proxy-Connection", &[("proxy-connection", "keep-alive")], malformed),
        with("Transfer-Encoding", &[("transfer-encoding", "chunked")], malformed),
        with("Upgrade", &[("upgrade", "websocket")], malformed),
        with("TE with trailers", &[("te", "trailers")], Due::Answered(200)),
        with("TE with more", &[("te", "trailers, gzip")], malformed),
        with("a pseudo-header field after the others", &[("x", "1"), (":path", "/health")], malformed),
        with("an unknown pseudo-header field", &[(":x", "1")], malformed),
        with("a pseudo-header field of responses", &[(":status", "200")], malformed),
        with("a pseudo-header field twice", &[PATH], malformed),
        with(":protocol without CONNECT", &[(":protocol", "websocket")], malformed),
        with("Host that is the same", &[("host", "proxy")], Due::Answered(200)),
        with("Host that is another", &[("host", "other")], malformed),
        with("Host twice", &[("host", "proxy"), ("host", "proxy")], malformed),
        fields("no method", &[SCHEME, AUTHORITY, PATH], malformed),
        fields("no scheme", &[METHOD, AUTHORITY, PATH], malformed),
        fields("no path", &[METHOD, SCHEME, AUTHORITY], malformed),
        fields("an empty path", &[METHOD, SCHEME, AUTHORITY, (":path", "")], malformed),
        fields("a path without a slash", &[METHOD, SCHEME, AUTHORITY, (":path", "health")], malformed),
        fields("a path with a space", &[METHOD, SCHEME, AUTHORITY, (":path", "/a b")], malformed),
        fields("a path with a line end", &[METHOD, SCHEME, AUTHORITY, (":path", "/a\r\nX: y")], malformed),
        fields("an empty method", &[(":method", ""), SCHEME, AUTHORITY, PATH], malformed),
        fields("a method with a space", &[(":method", "GET /x"), SCHEME, AUTHORITY, PATH], malformed),
        fields("a scheme that is none of HTTP's", &[METHOD, (":scheme", "ftp"), AUTHORITY, PATH], malformed),
        fields("no authority but Host", &[METHOD, SCHEME, PATH, ("host", "proxy")], Due::Answered(200)),
        fields("neither authority nor Host", &[METHOD, SCHEME, PATH], Due::Answered(400)),
        fields(
            "an authority with a user",
            &[METHOD, SCHEME, (":authority", "u@proxy"), PATH],
            Due::Answered(400),
        ),
        fields("CONNECT", &[(":method", "CONNECT"), (":authority", "proxy:443")], Due::Answered(0)),
        fields("CONNECT with a path", &[(":method", "CONNECT"), SCHEME, AUTHORITY, PATH], malformed),
        fields("only fields", &[("x", "1")], malformed),
        after("no fields at all", &[frame(HEADERS, WHOLE, 1, [])], malformed),
    ]
}

/// RFC 9113 8.1 and 8.1.1.
fn bodies() -> Vec<Case> {
    let malformed = Due::Failed(PROTOCOL_ERROR);
    let body = |more: &[(&str, &str)], data: &[u8]| vec![post(more), frame(DATA, END_STREAM, 1, data)];
    let trailers = |fields: &[(&str, &str)]| {
        vec![post(&[]), frame(DATA, 0, 1, b"x"), frame(HEADERS, WHOLE, 1, block(fields))]
    };
    vec![
        after(
            "a body as long as its head says",
            &body(&[("content-length", "5")], b"hello"),
            Due::Answered(200),
        ),
        after(
            "a body that is shorter than its head says",
            &body(&[("content-length", "6")], b"hello"),
            malformed,
        ),
        after(
            "a body that is longer than its head says",
            &body(&[("content-length", "4")], b"hello"),
            malformed,
        ),
        after(
            "a length and no body",
            &[frame(HEADERS, WHOLE, 1, request("POST", "/127.0.0.1/x", &[("content-length", "4")]))],
            malformed,
        ),
        after(
            "no length and no body",
            &[frame(HEADERS, WHOLE, 1, request("POST", "/127.0.0.1/x", &[("content-length", "0")]))],
            Due::Answered(200),
        ),
        after(
            "two lengths",
            &body(&[("content-length", "5"), ("content-length", "5")], b"hello"),
            Due::Answered(400),
        ),
        after("a length that is no number", &body(&[("content-length", "5x")], b"hello"), malformed),
        after("trailers", &trailers(&[("x", "1")]), Due::Answered(200)),
        // The `h2` crate drops the field, where the RFC wants an error of the stream.
        after("trailers with a pseudo-header field", &trailers(&[(":path", "/")]), Due::Answered(200)),
        after("trailers with a name in upper case", &trailers(&[("X", "1")]), malformed),
        after("trailers of a connection", &trailers(&[("connection", "close")]), malformed),
        after("trailers without a field", &trailers(&[]), Due::Answered(200)),
    ]
}

/// RFC 7541.
fn hpack() -> Vec<Case> {
    let broken = Due::Vague(COMPRESSION_ERROR);
    // Indexed fields of the static table: GET, http, and a literal path with an indexed name.
    let short = |more: &[u8]| [&[0x82, 0x86, 0x04, 7][..], b"/health", &[0x01, 5], b"proxy", more].concat();
    let before = |more: &[u8]| [more, &short(&[])].concat();
    vec![
        packed("fields by index", short(&[]), Due::Answered(200)),
        packed(
            "a field that is added to the table",
            short(&[&[0x40, 1][..], b"x", &[1], b"1", &[0xbe]].concat()),
            Due::Answered(200),
        ),
        packed(
            "a field that is never indexed",
            short(&[&[0x10, 1][..], b"x", &[1], b"1"].concat()),
            Due::Answered(200),
        ),
        packed("a value in Huffman's code", short(&[0x00, 1, b'x', 0x81, 0x1f]), Due::Answered(200)),
        packed("index 0", short(&[0x80]), broken),
        packed("an index beyond the tables", short(&[0xbe]), broken),
        packed("the largest index", short(&[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]), broken),
        packed(
            "an integer without end",
            short(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            broken,
        ),
        packed("a name by an index beyond the tables", short(&[0x7f, 0x7f, 1, b'1']), broken),
        packed("a string that is cut", short(&[0x00, 5, b'x']), broken),
        packed("a value that is missing", short(&[0x00, 1, b'x']), broken),
        packed("Huffman's code with wrong padding", short(&[0x00, 1, b'x', 0x81, 0x00]), broken),
        packed("Huffman's code with a byte of padding", short(&[0x00, 1, b'x', 0x82, 0x1f, 0xff]), broken),
        packed("Huffman's code with its end", short(&[0x00, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]), broken),
        packed("a table that becomes smaller", before(&[0x20]), Due::Answered(200)),
        packed(
            "a table that becomes smaller and larger",
            before(&[0x20, 0x3f, 0xe1, 0x1f]),
            Due::Answered(200),
        ),
        packed("a table that is larger than allowed", before(&[0x3f, 0xe2, 0x1f]), broken),
        packed("a table that changes after a field", short(&[0x20]), broken),
    ]
}
