//! The heads that the proxy writes: the request the agent sees, the response the client sees. Pure.
//! Only values that the parser has accepted are copied, so no line end can be smuggled in.

use std::borrow::Cow;
use std::io::Write;
use std::net::IpAddr;

use crate::http::message::{
    ConnectionOptions, FieldSink, Framing, Header, RequestHead, ResponseHead, bracketed, split_port,
};
use crate::http::path_prefix::{self, PathPrefix};
use crate::http::request_source::RequestSource;
use crate::observe::request_id::RequestId;

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

/// The `Host` that the agent gets.
pub fn host_for(head: &RequestHead<'_>, mode: HostHeader, agent: IpAddr) -> String {
    match (mode, head.host) {
        (HostHeader::StripPort, Some(host)) => split_port(host).0.to_owned(),
        (HostHeader::Pass, Some(host)) => host.to_owned(),
        (HostHeader::Agent, _) | (_, None) => bracketed(agent),
    }
}

/// Gives the fields that say whom a request comes from, and which one it is.
pub fn forwarded_fields(
    head: &RequestHead<'_>,
    rewrite: &RequestRewrite<'_>,
    id: &RequestId,
    out: &mut impl FieldSink,
) {
    let RequestSource { peer, trusted, client, secure } = rewrite.source;
    let client = Address::new(client);
    out.field("X-Real-IP", &[client.text()]);
    let earlier = head.headers.iter().filter(|header| trusted && header.is("x-forwarded-for"));
    // A client behind a trusted proxy is in the list already: this hop's own entry is its peer.
    let peer = Address::new(peer);
    let mut list: Vec<&[u8]> = Vec::new();
    for earlier in earlier.filter(|earlier| !earlier.value.is_empty()) {
        list.extend([earlier.value, b", "]);
    }
    list.push(peer.text());
    out.field("X-Forwarded-For", &list);
    out.field("X-Forwarded-Proto", &[if secure { b"https" } else { b"http" }]);
    out.field("X-Request-Id", &[id.bytes()]);
}

/// Gives the client's fields that the agent gets.
pub fn request_fields(head: &RequestHead<'_>, rewrite: &RequestRewrite<'_>, out: &mut impl FieldSink) {
    let trusted = rewrite.source.trusted;
    // Anybody can write whom they speak for (RFC 7239 8.1).
    let is_own = |h: &Header<'_>| (!trusted && h.is("forwarded")) || (rewrite.hides_passwords && is_basic(h));
    let passes = |h: &&Header<'_>| passes_to_agent(h, head) && !is_own(h);
    for header in head.headers.iter().filter(passes) {
        out.field(header.name, &[header.value]);
    }
}

fn is_basic(header: &Header<'_>) -> bool {
    let scheme = header.value.split(|byte| !byte.is_ascii_alphanumeric()).next().unwrap_or_default();
    header.is("authorization") && scheme.eq_ignore_ascii_case(b"basic")
}

/// An address as text, without memory of its own.
struct Address {
    text: [u8; Self::BYTES_MAX],
    length: usize,
}

impl Address {
    /// Of an IPv4 address mapped to IPv6, in full.
    const BYTES_MAX: usize = 45;

    fn new(address: IpAddr) -> Self {
        let mut text = [0; Self::BYTES_MAX];
        let mut rest = &mut text[..];
        // As `Display` would, at a tenth of the cost. Writing to memory that is large enough does not fail.
        let _ = match address {
            IpAddr::V4(v4) => v4.octets().into_iter().enumerate().try_for_each(|(index, octet)| {
                let dot: &[u8] = if index > 0 { b"." } else { b"" };
                rest.write_all(dot)?;
                rest.write_all(itoa::Buffer::new().format(octet).as_bytes())
            }),
            IpAddr::V6(v6) => write!(rest, "{v6}"),
        };
        let length = Self::BYTES_MAX - rest.len();
        Self { text, length }
    }

    fn text(&self) -> &[u8] {
        &self.text[..self.length]
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
const OWN: [&str; 5] = ["host", "x-real-ip", "x-forwarded-for", "x-forwarded-proto", "x-request-id"];

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

/// Gives the agent's fields that the client gets, and those in their place.
pub fn response_fields(head: &ResponseHead<'_>, rewrite: &ResponseRewrite<'_>, out: &mut impl FieldSink) {
    let hsts = rewrite.hsts.filter(|_| head.status >= 200);
    if let Some(value) = hsts {
        out.field("Strict-Transport-Security", &[value.as_bytes()]);
    }
    let is_own = |h: &Header<'_>| rewrite.hsts.is_some() && h.is("strict-transport-security");
    for header in head.headers.iter().filter(|h| passes_to_client(h, head) && !is_own(h)) {
        match rewrite.path_prefix {
            Some(path_prefix) => path_prefix::placed(header, path_prefix, out),
            None => out.field(header.name, &[header.value]),
        }
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
