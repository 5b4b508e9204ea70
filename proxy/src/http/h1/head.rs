//! Message heads: where one ends, and what it says. Pure: bytes in, values or an error out.
//! One parse, one meaning: what another parser could read in a second way is refused, never repaired
//! (RFC 9112 2.2, 3, 5, 6.3).

use std::mem::MaybeUninit;

use memchr::{memchr, memchr_iter};

use crate::http::message::{
    ConnectionOptions, Framing, Header, RequestHead, ResponseHead, Version, members, split_port, values,
};

/// Limits of a head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HeadLimits {
    /// Bytes of the whole head.
    pub header_size_max: usize,
    /// Bytes of the request line without its end.
    pub request_line_max: usize,
    /// Header lines, at most [`HEADER_COUNT_MAX`].
    pub header_count_max: usize,
}

/// The most header lines that any configuration can allow.
pub const HEADER_COUNT_MAX: usize = 256;

/// Why a head is refused. The text is what the client is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HeadError {
    /// The whole head is longer than allowed.
    #[error("The request head is longer than this proxy accepts.")]
    TooLong,
    /// The request line is longer than allowed.
    #[error("The request line is longer than this proxy accepts.")]
    LineTooLong,
    /// More header lines than allowed.
    #[error("The request has more header lines than this proxy accepts.")]
    TooManyHeaders,
    /// A line that ends without CR, or a CR without LF.
    #[error("Lines of a head must end in CR LF.")]
    BareLineEnd,
    /// No HTTP/1 head.
    #[error("This is no HTTP/1.1 message head.")]
    Syntax,
    /// A version other than HTTP/1.0 and HTTP/1.1.
    #[error("This proxy speaks HTTP/1.1 and HTTP/1.0.")]
    Version,
    /// The target is none that a server of resources can answer.
    #[error(
        "The request target must be a path that starts with a slash, or an absolute URL (http, https, ws, wss)."
    )]
    Target,
    /// HTTP/1.1 without Host, more than one, or one that is no host.
    #[error("A request needs exactly one valid Host header.")]
    Host,
    /// The authority of an absolute target and Host differ.
    #[error("The Host header and the request target name different hosts.")]
    HostDiffers,
    /// Content-Length that is no number, or given more than once.
    #[error("Content-Length must be given once, as decimal digits.")]
    ContentLength,
    /// Transfer-Encoding other than a single `chunked`, or in HTTP/1.0.
    #[error("The only Transfer-Encoding this proxy accepts is a single \"chunked\" in HTTP/1.1.")]
    TransferEncoding,
    /// `Connection` lists more than anybody needs.
    #[error("Connection lists more than this proxy accepts.")]
    ConnectionOptions,
    /// Both ways of saying how long the body is.
    #[error("Content-Length and Transfer-Encoding must not both be given.")]
    TwoLengths,
    /// An upgrade request that also has a body.
    #[error("A request for a WebSocket can't have a body.")]
    UpgradeWithBody,
    /// An `Expect` other than `100-continue`.
    #[error("The only expectation this proxy knows is 100-continue.")]
    Expectation,
    /// A method that makes no sense here.
    #[error("This method is not allowed here.")]
    Method,
}

impl HeadError {
    /// The status of the response.
    pub fn status(self) -> u16 {
        match self {
            Self::TooLong | Self::TooManyHeaders | Self::ConnectionOptions => 431,
            Self::LineTooLong => 414,
            Self::Method => 405,
            Self::Expectation => 417,
            _ => 400,
        }
    }
}

/// Finds the end of a head that arrives bit by bit, looking at each byte once.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadEnd {
    /// Bytes already looked at; the line that is not finished starts at `line`.
    seen: usize,
    line: usize,
    lines: usize,
}

impl HeadEnd {
    /// The length of the head with its empty line, once it is whole. `bytes` always starts at the same byte.
    pub fn find(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
        for offset in memchr_iter(b'\n', &bytes[self.seen..]) {
            let end = self.seen + offset;
            if end == 0 || bytes[end - 1] != b'\r' {
                return Err(HeadError::BareLineEnd);
            }
            let line = &bytes[self.line..end - 1];
            self.line = end + 1;
            // One empty line before the request line is an old client's habit (RFC 9112 2.2).
            if line.is_empty() && !(self.lines == 0 && end == 1) {
                return within(end < limits.header_size_max, HeadError::TooLong).map(|()| Some(end + 1));
            }
            if !line.is_empty() {
                within(self.lines > 0 || line.len() <= limits.request_line_max, HeadError::LineTooLong)?;
                self.lines += 1;
            }
        }
        self.seen = bytes.len();
        let unfinished = &bytes[self.line..];
        // A CR may be the first half of the line's end.
        let line_bytes = unfinished.strip_suffix(b"\r").unwrap_or(unfinished).len();
        within(self.lines > 0 || line_bytes <= limits.request_line_max, HeadError::LineTooLong)?;
        within(self.seen < limits.header_size_max, HeadError::TooLong)?;
        Ok(None)
    }
}

fn within(holds: bool, otherwise: HeadError) -> Result<(), HeadError> {
    if holds { Ok(()) } else { Err(otherwise) }
}

/// Members that one `Connection` may have, and bytes of one of them. Browsers and servers send three short ones; each
/// is compared with every header line, so that without limits a head would cost the product of both.
const OPTIONS_MAX: usize = 16;
const OPTION_BYTES_MAX: usize = 64;

impl<'a> ConnectionOptions<'a> {
    fn parse(headers: &[Header<'a>]) -> Result<Self, HeadError> {
        let mut options = Self::default();
        for (index, member) in members(headers, "connection").enumerate() {
            let fits = index < OPTIONS_MAX && member.len() <= OPTION_BYTES_MAX;
            within(fits, HeadError::ConnectionOptions)?;
            match member {
                b"" => {}
                _ if member.eq_ignore_ascii_case(b"close") => options.has_close = true,
                _ if member.eq_ignore_ascii_case(b"keep-alive") => options.has_keep_alive = true,
                _ if member.eq_ignore_ascii_case(b"upgrade") => options.has_upgrade = true,
                field => options.fields.push(field),
            }
        }
        Ok(options)
    }

    fn keeps_alive(&self, version: Version) -> bool {
        !self.has_close && (version == Version::Http11 || self.has_keep_alive)
    }
}

impl<'a> RequestHead<'a> {
    /// Parses a head whose end [`HeadEnd`] has found.
    pub fn parse(head: &'a [u8], limits: &HeadLimits) -> Result<Self, HeadError> {
        let mut room = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
        let room = &mut room[..limits.header_count_max.min(HEADER_COUNT_MAX)];
        let mut parsed = httparse::Request::new(&mut []);
        whole(parsed.parse_with_uninit_headers(head, room), head)?;
        let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(HeadError::Syntax);
        };
        let version = if version == 1 { Version::Http11 } else { Version::Http10 };
        let headers = headers(parsed.headers)?;
        let (authority, path) = split_target(method, target)?;
        let host = host(&headers, version, authority)?;
        let framing = request_framing(&headers, version)?;
        let connection = ConnectionOptions::parse(&headers)?;
        let asks_for_upgrade = method == "GET" && version == Version::Http11 && connection.has_upgrade;
        let websocket = asks_for_upgrade && has_websocket(&headers);
        within(!websocket || framing == Framing::Empty, HeadError::UpgradeWithBody)?;
        within(
            values(&headers, "expect").all(|v| v.eq_ignore_ascii_case(b"100-continue")),
            HeadError::Expectation,
        )?;
        let keep_alive = connection.keeps_alive(version);
        Ok(Self { method, path, version, host, headers, framing, websocket, keep_alive, connection })
    }
}

impl<'a> ResponseHead<'a> {
    /// Parses a head whose end [`HeadEnd`] has found. `to_head`: it answers a HEAD, and so has no body.
    pub fn parse(head: &'a [u8], limits: &HeadLimits, to_head: bool) -> Result<Self, HeadError> {
        // The empty line that a client may send first is none of an agent's.
        within(head.starts_with(b"HTTP/"), HeadError::Syntax)?;
        let mut room = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
        let room = &mut room[..limits.header_count_max.min(HEADER_COUNT_MAX)];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        whole(config.parse_response_with_uninit_headers(&mut parsed, head, room), head)?;
        let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
            return Err(HeadError::Syntax);
        };
        within((100..=999).contains(&status), HeadError::Syntax)?;
        let version = if version == 1 { Version::Http11 } else { Version::Http10 };
        let headers = headers(parsed.headers)?;
        let framing = response_framing(&headers, version, status, to_head)?;
        let connection = ConnectionOptions::parse(&headers)?;
        let keep_alive = connection.keeps_alive(version) && framing != Framing::UntilEnd;
        Ok(Self { status, reason: parsed.reason.unwrap_or(""), headers, framing, keep_alive, connection })
    }
}

/// Both scanners have to agree on where the head ends.
fn whole(parsed: httparse::Result<usize>, head: &[u8]) -> Result<(), HeadError> {
    match parsed.map_err(reason)? {
        httparse::Status::Complete(length) => within(length == head.len(), HeadError::Syntax),
        httparse::Status::Partial => Err(HeadError::Syntax),
    }
}

fn reason(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooManyHeaders,
        httparse::Error::Version => HeadError::Version,
        httparse::Error::NewLine => HeadError::BareLineEnd,
        _ => HeadError::Syntax,
    }
}

fn headers<'a>(parsed: &[httparse::Header<'a>]) -> Result<Vec<Header<'a>>, HeadError> {
    // httparse lets a CR pass at the end of some values; nothing here may.
    within(parsed.iter().all(|h| h.value.iter().all(|b| *b >= b' ' || *b == b'\t')), HeadError::Syntax)?;
    Ok(parsed.iter().map(|h| Header { name: h.name, value: h.value.trim_ascii() }).collect())
}

/// Whether `Upgrade` names the one protocol that is passed on.
pub fn has_websocket(headers: &[Header<'_>]) -> bool {
    members(headers, "upgrade").take(OPTIONS_MAX).any(|member| member.eq_ignore_ascii_case(b"websocket"))
}

/// The authority of an absolute target, and path and query (RFC 9112 3.2).
fn split_target<'a>(method: &str, target: &'a str) -> Result<(Option<&'a str>, &'a str), HeadError> {
    within(!matches!(method, "CONNECT" | "TRACE"), HeadError::Method)?;
    within(memchr(b'#', target.as_bytes()).is_none(), HeadError::Target)?;
    if target.starts_with('/') {
        return Ok((None, target));
    }
    let Some((scheme, rest)) = target.split_once("://") else { return Err(HeadError::Target) };
    within(["http", "https", "ws", "wss"].iter().any(|s| scheme.eq_ignore_ascii_case(s)), HeadError::Target)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    within(is_host(authority), HeadError::Target)?;
    match path.as_bytes().first() {
        None => Ok((Some(authority), "/")),
        Some(b'/') => Ok((Some(authority), path)),
        // "http://a?q" would need bytes that were not sent.
        Some(_) => Err(HeadError::Target),
    }
}

fn host<'a>(
    headers: &[Header<'a>],
    version: Version,
    authority: Option<&'a str>,
) -> Result<Option<&'a str>, HeadError> {
    let mut hosts = values(headers, "host");
    let host = match (hosts.next(), hosts.next()) {
        (None, _) if version == Version::Http10 => return Ok(authority),
        (Some(host), None) => std::str::from_utf8(host).map_err(|_| HeadError::Host)?,
        _ => return Err(HeadError::Host),
    };
    within(is_host(host), HeadError::Host)?;
    within(authority.is_none_or(|a| a.eq_ignore_ascii_case(host)), HeadError::HostDiffers)?;
    Ok(Some(host))
}

/// `host[:port]`, where the host is a name or an address, in brackets if it has colons (RFC 3986 3.2.2).
fn is_host(text: &str) -> bool {
    let (name, port) = split_port(text);
    let name_ok = match name.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&b))
        }
    };
    name_ok && port.is_none_or(|port| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()))
}

/// RFC 9112 6.3, without its leniency.
fn request_framing(headers: &[Header<'_>], version: Version) -> Result<Framing, HeadError> {
    Ok(match (is_chunked(headers, version)?, content_length(headers)?) {
        (true, Some(_)) => return Err(HeadError::TwoLengths),
        (true, None) => Framing::Chunked,
        (false, None | Some(0)) => Framing::Empty,
        (false, Some(length)) => Framing::Length(length),
    })
}

fn response_framing(
    headers: &[Header<'_>],
    version: Version,
    status: u16,
    to_head: bool,
) -> Result<Framing, HeadError> {
    let stated = match (is_chunked(headers, version)?, content_length(headers)?) {
        (true, Some(_)) => return Err(HeadError::TwoLengths),
        (true, None) => Framing::Chunked,
        (false, Some(0)) => Framing::Empty,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilEnd,
    };
    let bodiless = to_head || status < 200 || status == 204 || status == 304;
    Ok(if bodiless { Framing::Empty } else { stated })
}

fn is_chunked(headers: &[Header<'_>], version: Version) -> Result<bool, HeadError> {
    let mut codings = values(headers, "transfer-encoding");
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(one), None) if version == Version::Http11 && one.eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(HeadError::TransferEncoding),
    }
}

fn content_length(headers: &[Header<'_>]) -> Result<Option<u64>, HeadError> {
    let mut lengths = values(headers, "content-length");
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(None),
        (Some(digits), None) => decimal(digits).map(Some).ok_or(HeadError::ContentLength),
        _ => Err(HeadError::ContentLength),
    }
}

/// Digits only: no sign, no white space, no list.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Parses a trailer section up to and with its empty line.
pub fn trailers(section: &[u8]) -> Result<Vec<Header<'_>>, HeadError> {
    let mut room = [httparse::EMPTY_HEADER; 64];
    match httparse::parse_headers(section, &mut room).map_err(reason)? {
        httparse::Status::Complete((_, parsed)) => headers(parsed),
        httparse::Status::Partial => Err(HeadError::Syntax),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_at_the_limit_may_be_cut_anywhere() {
        let limits = HeadLimits { header_size_max: 64, request_line_max: 14, header_count_max: 4 };
        for head in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\r\nGET / HTTP/1.1\r\n\r\n"] {
            let mut scan = HeadEnd::default();
            let found: Vec<_> = (1..=head.len()).map(|end| scan.find(&head[..end], &limits)).collect();
            assert_eq!(found.iter().position(|found| *found != Ok(None)), Some(head.len() - 1), "{found:?}");
        }
        let refused = HeadEnd::default().find(b"GET /x HTTP/1.1\r", &limits);
        assert_eq!(refused, Err(HeadError::LineTooLong));
    }

    #[test]
    fn connection_lists_a_few_short_names_and_no_more() {
        let limits = HeadLimits { header_size_max: 8192, request_line_max: 32, header_count_max: 4 };
        let parse = |lines: &str| {
            let head = format!("HTTP/1.1 200 x\r\n{lines}\r\n\r\n");
            ResponseHead::parse(head.as_bytes(), &limits, false).map(|head| head.keep_alive)
        };
        let many = |count| format!("Content-Length: 0\r\nConnection: {}", vec!["x"; count].join(","));
        let long = |bytes| format!("Content-Length: 0\r\nConnection: {}", "x".repeat(bytes));
        assert_eq!(parse(&many(OPTIONS_MAX)), Ok(true));
        assert_eq!(parse(&(many(OPTIONS_MAX - 1) + ",close")), Ok(false));
        assert_eq!(parse(&long(OPTION_BYTES_MAX)), Ok(true));
        for lines in [
            many(OPTIONS_MAX + 1),
            format!("{}\r\nConnection: close", many(OPTIONS_MAX)),
            format!("Connection: {}", ",".repeat(OPTIONS_MAX)),
            long(OPTION_BYTES_MAX + 1),
        ] {
            assert_eq!(parse(&lines), Err(HeadError::ConnectionOptions), "{lines}");
        }
    }

    #[test]
    fn an_empty_line_may_come_before_a_request_and_not_before_a_response() {
        let limits = HeadLimits { header_size_max: 64, request_line_max: 32, header_count_max: 4 };
        assert!(RequestHead::parse(b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", &limits).is_ok());
        let response = b"\r\nHTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(ResponseHead::parse(response, &limits, false).err(), Some(HeadError::Syntax));
        assert!(ResponseHead::parse(&response[2..], &limits, false).is_ok());
    }
}
