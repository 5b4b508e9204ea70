//! Frames of HTTP/2 as bytes (RFC 9113 4.1), also such as no library writes, and header blocks without compression.

use harness::raw_client::RawClient;
use tokio::io::AsyncRead;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITISED: u8 = 0x20;
/// A request without a body.
pub(crate) const WHOLE: u8 = END_STREAM | END_HEADERS;

/// What a client says first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A string of HPACK (RFC 7541 5.2), as it is.
fn string(text: &[u8]) -> Vec<u8> {
    [integer(text.len(), 7), text.to_vec()].concat()
}

/// An integer behind a prefix of so many bits (RFC 7541 5.1).
fn integer(value: usize, bits: u32) -> Vec<u8> {
    let most = (1 << bits) - 1;
    if value < most {
        return vec![u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![u8::try_from(most).unwrap()];
    let mut left = value - most;
    while left >= 128 {
        bytes.push(u8::try_from(left % 128).unwrap() | 128);
        left /= 128;
    }
    bytes.push(u8::try_from(left).unwrap());
    bytes
}

/// A header block, each field a literal that is not indexed (RFC 7541 6.2.2).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let field =
        |(name, value): &(&str, &str)| [vec![0], string(name.as_bytes()), string(value.as_bytes())].concat();
    fields.iter().flat_map(field).collect()
}

/// The pseudo-header fields of a GET, and more fields.
pub(crate) fn get<'a>(path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<u8> {
    request("GET", path, more)
}

pub(crate) fn request<'a>(method: &'a str, path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", "proxy"), (":path", path)];
    block(&[&pseudo, more].concat())
}

/// One setting.
pub(crate) fn setting(identifier: u16, value: u32) -> Vec<u8> {
    [&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A frame of the proxy.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The next one; none at the end.
    pub(crate) async fn next<S: AsyncRead + Unpin>(client: &mut RawClient<S>) -> Option<Self> {
        let header: [u8; 9] = client.bytes(9).await.try_into().ok()?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let stream = u32::from_be_bytes(header[5..].try_into().unwrap());
        let payload = client.bytes(length).await;
        (payload.len() == length).then_some(Self { kind: header[3], flags: header[4], stream, payload })
    }

    /// The error code of an end.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status that a header block begins with, where it is one of the static table (RFC 7541 A).
    pub(crate) fn status(&self) -> Option<u16> {
        // Changes of the table's size come first (6.3).
        let first = self.payload.iter().find(|byte| **byte & 0xe0 != 0x20)?;
        let at = first.checked_sub(0x88)?;
        [200, 204, 206, 304, 400, 404, 500].get(usize::from(at)).copied()
    }
}
