//! The heads that the proxy writes: the request the agent sees, the response the client sees. Pure.
//! Only values that the parser has accepted are copied, so no line end can be smuggled in.

use std::borrow::Cow;
use std::io::Write;
use std::net::IpAddr;

use crate::http::h1::head::{
    self, ConnectionOptions, Framing, Header, RequestHead, ResponseHead, bracketed, line, split_port,
};
use crate::http::path_prefix::{self, PathPrefix};
use crate::http::request_source::RequestSource;

/// The `Host` that an agent gets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum HostHeader {
    /// The client's, without its port (as the recipe's `$host`).
    #[default]
    StripPort,
    /// The client's.
    Pass,
    /// The agent's own address.
    Agent,
}

/// Whether the `/<ip>` prefix is taken off before the agent sees the path.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum PrefixMode {
    /// Removed: for agents whose `web-url-path` is `/`.
    #[default]
    Strip,
    /// Kept: for agents whose `web-url-path` is `/<ip>`.
    Keep,
}

/// The changes to a request on its way to the agent, beside its `Host`.
#[derive(Clone, Debug)]
pub struct RequestRewrite<'a> {
    /// Its client and scheme.
    pub source: RequestSource,
    /// Whether the agent must not see passwords. Browsers send one to all of a host's paths, so that of any
    /// `Authorization: Basic` may be for the proxy, and no agent gets one.
    pub hides_passwords: bool,
    /// The path and query that the agent sees.
    pub path: Cow<'a, str>,
}

impl Header<'_> {
    /// Writes the line.
    pub fn write(&self, out: &mut Vec<u8>) {
        line(out, self.name, self.value);
    }
}

/// The `Host` that the agent gets.
pub fn host_for(head: &RequestHead<'_>, mode: HostHeader, agent: IpAddr) -> String {
    match (mode, head.host) {
        (HostHeader::StripPort, Some(host)) => split_port(host).0.to_owned(),
        (HostHeader::Pass, Some(host)) => host.to_owned(),
        (HostHeader::Agent, _) | (_, None) => bracketed(agent),
    }
}

/// Writes the head that the agent sees.
pub fn request(head: &RequestHead<'_>, rewrite: &RequestRewrite<'_>, host: &str, out: &mut Vec<u8>) {
    for part in [head.method, " ", &rewrite.path, " HTTP/1.1\r\nHost: ", host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if head.websocket {
        out.extend_from_slice(b"Upgrade: websocket\r\nConnection: upgrade\r\n");
    }
    out.extend_from_slice(b"X-Real-IP: ");
    let client = out.len();
    let RequestSource { peer, trusted, client: asking, secure } = rewrite.source;
    write_address(asking, out);
    let client = client..out.len();
    out.extend_from_slice(b"\r\nX-Forwarded-For: ");
    let earlier = head::values(&head.headers, "x-forwarded-for").filter(|_| trusted);
    for earlier in earlier.filter(|earlier| !earlier.is_empty()) {
        out.extend_from_slice(earlier);
        out.extend_from_slice(b", ");
    }
    // A client behind a trusted proxy is in the list already: this hop's own entry is its peer.
    if asking == peer {
        out.extend_from_within(client);
    } else {
        write_address(peer, out);
    }
    let scheme: &[u8] = if secure { b"https" } else { b"http" };
    out.extend_from_slice(b"\r\nX-Forwarded-Proto: ");
    out.extend_from_slice(scheme);
    out.extend_from_slice(b"\r\n");
    write_framing(head.framing, out);
    // Anybody can write whom they speak for (RFC 7239 8.1).
    let is_own = |h: &Header<'_>| (!trusted && h.is("forwarded")) || (rewrite.hides_passwords && is_basic(h));
    let passes = |h: &&Header<'_>| passes_to_agent(h, head) && !is_own(h);
    for header in head.headers.iter().filter(passes) {
        header.write(out);
    }
    out.extend_from_slice(b"\r\n");
}

fn is_basic(header: &Header<'_>) -> bool {
    let scheme = header.value.split(|byte| !byte.is_ascii_alphanumeric()).next().unwrap_or_default();
    header.is("authorization") && scheme.eq_ignore_ascii_case(b"basic")
}

/// As `Display` would, at a tenth of the cost.
fn write_address(address: IpAddr, out: &mut Vec<u8>) {
    let IpAddr::V4(v4) = address else {
        // Writing to memory does not fail.
        let _ = write!(out, "{address}");
        return;
    };
    for (index, octet) in v4.octets().into_iter().enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        write_number(octet, out);
    }
}

fn write_number(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Says how the body is framed. An empty body is said only where the length was given as 0.
fn write_framing(framing: Framing, out: &mut Vec<u8>) {
    match framing {
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            write_number(length, out);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::Empty | Framing::UntilEnd => {}
    }
}

/// Header lines that concern one connection only (RFC 9110 7.6.1), or that the proxy writes itself.
const ONE_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "proxy-authorization",
];
const OWN: [&str; 4] = ["host", "x-real-ip", "x-forwarded-for", "x-forwarded-proto"];

fn passes_to_agent(header: &Header<'_>, head: &RequestHead<'_>) -> bool {
    let known = ONE_HOP.iter().chain(&OWN).any(|name| header.is(name));
    // `X_Forwarded_For` is read as `X-Forwarded-For` by many a server, so nothing with `_` passes.
    let underscored = header.name.contains('_');
    let length = header.is("content-length") && head.framing != Framing::Empty;
    !known && !underscored && !length && !is_named_by_connection(header, &head.connection)
}

/// Header lines without which the message means something else are kept, whatever `Connection` says.
fn is_named_by_connection(header: &Header<'_>, connection: &ConnectionOptions<'_>) -> bool {
    !header.is("content-length") && connection.names(header)
}

/// How a response is passed on.
#[derive(Clone, Copy, Debug)]
pub struct ResponseRewrite<'a> {
    /// The framing that the client is told.
    pub framing: Framing,
    /// Whether the client may send another request.
    pub keep_alive: bool,
    /// Whether the client speaks HTTP/1.0, and has to be told of a connection that stays.
    pub http10: bool,
    /// Where the agent's paths are for the client.
    pub path_prefix: Option<&'a PathPrefix>,
    /// The line that holds browsers to HTTPS, in place of the agent's own.
    pub hsts: Option<&'a str>,
}

/// Writes the head that the client sees. An interim response (1xx) gets no framing and no `Connection`, and is
/// not for HTTP/1.0 (RFC 9110 15.2).
pub fn response(head: &ResponseHead<'_>, passing: &ResponseRewrite<'_>, out: &mut Vec<u8>) {
    if head.status < 200 && passing.http10 {
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    write_number(head.status, out);
    for part in [" ", head.reason, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if head.status == 101 {
        out.extend_from_slice(b"Upgrade: websocket\r\nConnection: upgrade\r\n");
    } else if head.status >= 200 {
        write_connection(passing, out);
        if head.framing != Framing::Empty {
            write_framing(passing.framing, out);
        }
    }
    if let Some(line) = passing.hsts.filter(|_| head.status >= 200) {
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let is_own = |h: &Header<'_>| passing.hsts.is_some() && h.is("strict-transport-security");
    for header in head.headers.iter().filter(|h| passes_to_client(h, head) && !is_own(h)) {
        match passing.path_prefix {
            Some(path_prefix) => path_prefix::mounted(header, path_prefix, out),
            None => header.write(out),
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn write_connection(passing: &ResponseRewrite<'_>, out: &mut Vec<u8>) {
    if !passing.keep_alive {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if passing.http10 {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
}

fn passes_to_client(header: &Header<'_>, head: &ResponseHead<'_>) -> bool {
    let one_hop = ONE_HOP.iter().any(|name| header.is(name));
    // The length of a response to HEAD, or of a 304, is news; that of one with a body was written already.
    let length =
        header.is("content-length") && (head.framing != Framing::Empty || no_length_allowed(head.status));
    !one_hop && !length && !is_named_by_connection(header, &head.connection)
}

/// RFC 9110 8.6.
fn no_length_allowed(status: u16) -> bool {
    status < 200 || status == 204
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::head::HeadLimits;

    #[test]
    fn an_interim_response_is_not_for_http_1_0() {
        let limits = HeadLimits { header_size_max: 256, request_line_max: 64, header_count_max: 4 };
        let head = ResponseHead::parse(b"HTTP/1.1 103 x\r\n\r\n", &limits, false).expect("a head");
        for (http10, told) in [(true, &b""[..]), (false, b"HTTP/1.1 103 x\r\n\r\n")] {
            let passing = ResponseRewrite {
                framing: Framing::Empty,
                keep_alive: false,
                http10,
                path_prefix: None,
                hsts: None,
            };
            let mut out = Vec::new();
            response(&head, &passing, &mut out);
            assert_eq!(out, told);
        }
    }
}
