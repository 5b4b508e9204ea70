//! Requests and responses as values, whatever version of HTTP they came by. Pure: parses and writes nothing.

use std::net::IpAddr;

/// How a body is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// This many bytes, at least one.
    Length(u64),
    /// Chunks, with trailers.
    Chunked,
    /// Everything until the connection ends; only in responses.
    UntilEnd,
}

/// The version that a client speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

/// One header line, as it was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header<'a> {
    /// The name as it was written.
    pub name: &'a str,
    /// The value without the white space around it.
    pub value: &'a [u8],
}

impl Header<'_> {
    /// Whether it has this name, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// A request head in which every ambiguity has been refused.
#[derive(Debug)]
pub struct RequestHead<'a> {
    /// The method as it was written.
    pub method: &'a str,
    /// Path and query, as they were written; starts with a slash.
    pub path: &'a str,
    /// The version that the client speaks.
    pub version: Version,
    /// The host and port that the client asked; `None` only in HTTP/1.0.
    pub host: Option<&'a str>,
    /// The header lines in their order.
    pub headers: Vec<Header<'a>>,
    /// How the body is delimited.
    pub framing: Framing,
    /// Whether a WebSocket is asked for.
    pub websocket: bool,
    /// Whether the client would send another request on the connection.
    pub keep_alive: bool,
    /// The options that concern the connection alone.
    pub connection: ConnectionOptions<'a>,
}

/// A response head in which every ambiguity has been refused.
#[derive(Debug)]
pub struct ResponseHead<'a> {
    /// The status, 100 to 999.
    pub status: u16,
    /// The reason phrase as it was written.
    pub reason: &'a str,
    /// The header lines in their order.
    pub headers: Vec<Header<'a>>,
    /// How the body is delimited.
    pub framing: Framing,
    /// Whether the agent takes another request on the connection.
    pub keep_alive: bool,
    /// The options that concern the connection alone.
    pub connection: ConnectionOptions<'a>,
}

/// The members of `Connection` (RFC 9110 7.6.1).
#[derive(Debug, Default)]
pub struct ConnectionOptions<'a> {
    pub(super) has_close: bool,
    pub(super) has_keep_alive: bool,
    pub(super) has_upgrade: bool,
    /// Names of header lines that concern the connection alone.
    pub(super) fields: Vec<&'a [u8]>,
}

impl ConnectionOptions<'_> {
    /// Whether it names this header line.
    pub fn names(&self, header: &Header<'_>) -> bool {
        self.fields.iter().any(|field| field.eq_ignore_ascii_case(header.name.as_bytes()))
    }
}

/// The values of every header line of this name.
pub fn values<'a>(headers: &[Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.is(name)).map(|header| header.value)
}

/// The comma-separated members of every header line of this name.
pub fn members<'a>(headers: &[Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    values(headers, name).flat_map(|value| value.split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

/// Host and port of an authority without user information.
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    let is_bracketed = authority.starts_with('[');
    let end = if is_bracketed { memchr::memrchr(b']', authority.as_bytes()) } else { None };
    let after_bracket = end.map_or(0, |at| at + 1);
    match memchr::memchr(b':', &authority.as_bytes()[after_bracket..]) {
        Some(at) => (&authority[..after_bracket + at], Some(&authority[after_bracket + at + 1..])),
        None => (authority, None),
    }
}

/// An address as it stands in a URL (RFC 3986 3.2.2).
pub(crate) fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Takes the fields of a message that is being written, each with a value in parts.
pub trait FieldSink {
    /// Takes one field.
    fn field(&mut self, name: &str, value: &[&[u8]]);
}
