//! What has to hold for any bytes at all: a function for each way in. The fuzzer calls them with what it makes up, the
//! tests with what a seed does. They panic where it does not hold, and refuse nothing.
// That panic is what they are for.
#![allow(clippy::missing_panics_doc)]

mod life;
mod mutation;
mod tls;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::str::FromStr;

use clap::Parser;
use dcv_splice::access::proxy_protocol::{PROXY_HEADER_BYTES_MAX, ProxyHeader};
use dcv_splice::access::route::{AgentDomain, AllowedAgents, Route};
use dcv_splice::agents::directory::{Directory, DirectoryRules};
use dcv_splice::agents::directory_text::Format;
use dcv_splice::config::{CommandLine, Config, Settings};
use dcv_splice::http::h1::body::{self, BodyChunk, BodyError, Decoder};
use dcv_splice::http::h1::head::{HeadEnd, HeadError, HeadLimits};
use dcv_splice::http::h1::writer;
use dcv_splice::http::message::{Framing, Header, RequestHead, ResponseHead, Version};
use dcv_splice::http::path_prefix::{PathPrefix, Place};
use dcv_splice::http::request_source::RequestSource;
use dcv_splice::http::rewrite::{self, HostHeader, RequestRewrite, ResponseRewrite};
use dcv_splice::observe::request_id::RequestIds;
use dcv_splice::os::files::Files;
use dcv_splice::transport::networks::Networks;

pub use life::{http2_life, whole_life};
pub use mutation::Mutator;
pub use tls::tls_records;

/// Limits of heads, small enough to be reached.
const LIMITS: HeadLimits = HeadLimits { header_size_max: 4096, request_line_max: 1024, header_count_max: 32 };
/// For what the proxy writes, which is longer.
const WIDE: HeadLimits =
    HeadLimits { header_size_max: 1 << 20, request_line_max: 1 << 20, header_count_max: 256 };
/// Bytes of a body.
const BODY_BYTES_MAX: u64 = 1 << 20;
const AGENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
/// What no message on one connection may say of another.
const ONE_HOP: [&str; 4] = ["keep-alive", "proxy-connection", "te", "proxy-authorization"];

/// Another proxy in front, and a client of it.
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// That of the proxy in front, where it is trusted.
fn networks(trusted: bool) -> Networks {
    let network = "192.0.2.0/24".parse().expect("a network");
    Networks::from(if trusted { vec![network] } else { Vec::new() })
}

/// A way in.
pub type Target = fn(&[u8]);

/// Every way in, by the name of its corpus.
pub const TARGETS: [(&str, Target); 12] = [
    ("request_head", request_head),
    ("response_head", response_head),
    ("chunked_body", chunked_body),
    ("route", route),
    ("directory", directory),
    ("proxy_header", proxy_header),
    ("origin", origin),
    ("configuration", configuration),
    ("configuration_file", configuration_file),
    ("tls_records", tls_records),
    ("whole_life", whole_life),
    ("http2_life", http2_life),
];

/// The first byte, for a choice, and the rest.
fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// Where the head ends, and that it ends there in whatever pieces it comes. One that has more than one fault may be
/// refused for another of them.
fn end_of(data: &[u8], step: usize, limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
    let whole = HeadEnd::default().find(data, limits);
    let mut scan = HeadEnd::default();
    let lengths = (0..data.len()).step_by(step.max(1)).chain([data.len()]);
    let pieces = lengths.map(|length| scan.find(&data[..length], limits));
    let first = pieces.into_iter().find(|found| !matches!(found, Ok(None))).unwrap_or(Ok(None));
    assert_eq!(first.is_err(), whole.is_err(), "in pieces of {step}");
    assert_eq!(first.ok(), whole.ok(), "in pieces of {step}");
    whole
}

/// A request that is passed on means the same to the agent.
pub fn request_head(data: &[u8]) {
    let (options, data) = choice(data);
    let Ok(Some(length)) = end_of(data, usize::from(options >> 2), &LIMITS) else { return };
    let Ok(head) = RequestHead::parse(&data[..length], &LIMITS) else { return };
    let rewritten = RequestRewrite {
        source: RequestSource::of(PROXY, true, &head.headers, &networks(options & 1 == 1)),
        hides_passwords: options & 4 == 4,
        path: head.path.into(),
    };
    let host = rewrite::host_for(
        &head,
        if options & 2 == 2 { HostHeader::Pass } else { HostHeader::StripPort },
        IpAddr::from(AGENT),
    );
    let mut out = Vec::new();
    writer::request(&head, &rewritten, &host, &RequestIds::default().next(), &mut out);
    let found = end_of(&out, out.len(), &WIDE).expect("what is passed on is a head");
    assert_eq!(found, Some(out.len()), "and one alone");
    let passed = RequestHead::parse(&out, &WIDE).expect("what is passed on is valid");
    assert_eq!((passed.method, passed.path), (head.method, head.path));
    assert_eq!((passed.framing, passed.websocket), (head.framing, head.websocket));
    assert_eq!(passed.host, Some(&*host));
    assert!(passed.path.starts_with('/') && passed.version == Version::Http11);
    let names = |name: &str| passed.headers.iter().filter(|header| header.is(name)).count();
    assert_eq!(["X-Real-IP", "X-Forwarded-For", "X-Forwarded-Proto", "X-Request-Id"].map(names), [1; 4]);
    assert!(ONE_HOP.iter().all(|name| names(name) == 0));
    assert!(!passed.headers.iter().any(|header| header.name.contains('_')));
    let is_password =
        |value: &[u8]| value.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"basic "));
    let passwords =
        passed.headers.iter().filter(|header| header.is("authorization") && is_password(header.value));
    assert!(passwords.count() == 0 || !rewritten.hides_passwords, "a password that is not the agent's");
}

/// A response that is passed on means the same to the client.
pub fn response_head(data: &[u8]) {
    let (options, data) = choice(data);
    let to_head = options % 3 == 1;
    let Ok(Some(length)) = end_of(data, usize::from(options >> 2), &LIMITS) else { return };
    let Ok(head) = ResponseHead::parse(&data[..length], &LIMITS, to_head) else { return };
    let framing = if head.framing == Framing::UntilEnd { Framing::Chunked } else { head.framing };
    let path_prefix = PathPrefix {
        agent: AGENT.into(),
        segment: AGENT.to_string(),
        place: [Place::Prefix, Place::KeptPrefix, Place::Root, Place::OwnHost][data.len() % 4],
        port: 8443,
        host: "desks.test".to_owned(),
        asked: data.len().is_multiple_of(3).then(|| "desks.example".to_owned()),
        bare: options & 128 == 128,
        web_url_path: if options & 64 == 64 { "/base".to_owned() } else { String::new() },
    };
    let path_prefix = (options & 64 == 64).then_some(&path_prefix);
    let passing = ResponseRewrite {
        framing,
        keep_alive: true,
        http10: false,
        path_prefix,
        hsts: (options & 32 == 32).then_some("Strict-Transport-Security: max-age=1"),
    };
    let mut out = Vec::new();
    writer::response(&head, &passing, &mut out);
    let found = end_of(&out, out.len(), &WIDE).expect("what is passed on is a head");
    assert_eq!(found, Some(out.len()), "and one alone");
    let passed = ResponseHead::parse(&out, &WIDE, to_head).expect("what is passed on is valid");
    assert_eq!((passed.status, passed.framing), (head.status, framing));
    assert!(!passed.headers.iter().any(|header| ONE_HOP.iter().any(|name| header.is(name))));
}

/// What a decoder makes of a body that comes in such pieces: its bytes, and what follows it.
fn decoded(framing: Framing, wire: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, BodyError> {
    let mut decoder = Decoder::new(framing, BODY_BYTES_MAX);
    let (mut body, mut start, mut end) = (Vec::new(), 0, 0);
    loop {
        let (used, piece) = decoder.next(&wire[start..end])?;
        start += used;
        match piece {
            Some(BodyChunk::Data(data)) => body.extend_from_slice(data),
            Some(BodyChunk::End(_)) => return Ok(Some((body, start))),
            None if end == wire.len() => return Ok(None),
            None => end = end.saturating_add(step).min(wire.len()),
        }
    }
}

/// A body is the same in whatever pieces it comes, and the same when it has been written again.
pub fn chunked_body(data: &[u8]) {
    let (step, wire) = choice(data);
    let whole = decoded(Framing::Chunked, wire, wire.len().max(1));
    let pieces = decoded(Framing::Chunked, wire, usize::from(step).max(1));
    assert_eq!(pieces.is_ok(), whole.is_ok());
    let (Ok(pieces), Ok(whole)) = (pieces, whole) else { return };
    assert_eq!(pieces, whole);
    let Some((body, _)) = whole else { return };
    let mut again = Vec::new();
    if !body.is_empty() {
        body::encode(Framing::Chunked, &BodyChunk::Data(&body), &mut again);
    }
    body::encode(Framing::Chunked, &BodyChunk::End(Vec::new()), &mut again);
    let length = again.len();
    again.extend_from_slice(b"GET / HTTP/1.1\r\n");
    assert_eq!(decoded(Framing::Chunked, &again, again.len()), Ok(Some((body, length))));
}

/// An address is read in one way only, and no other than those named may be dialled.
pub fn route(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (host, path) = text.split_once('\n').unwrap_or(("h", text));
    let path = format!("/{path}");
    let domain = AgentDomain::from_str("desks.test").ok();
    let agents =
        AllowedAgents::new(["10.0.0.0/8", "0.0.0.0/0", "::/0"].map(|net| net.parse().expect("a net")).into());
    let pools = r#"{"agent": [{"name": "d", "address": "10.0.0.5", "pools": ["p"]}]}"#;
    let rules = DirectoryRules { ports: &[8443], is_allowed: &|_| true, names_files: false };
    let directory = Directory::parse(pools, Format::Json, rules).expect("a directory");
    if let Some(Route::Session { session, segment, rest }) = Route::of_session(&path) {
        assert_eq!(format!("/{segment}{rest}"), path);
        assert!(segment == format!("s/{session}") && !session.contains(['/', '?']));
    }
    let agent = match Route::of_request(Some(host), &path, domain.as_ref(), &directory) {
        Route::Agent { agent, segment, rest } => {
            assert_eq!(format!("/{segment}{rest}"), path);
            assert!(rest.starts_with('/'));
            agent.ip()
        }
        Route::MissingSlash { agent, segment, query } => {
            assert_eq!(format!("/{segment}{query}"), path);
            assert!(query.is_empty() || query.starts_with('?'));
            agent.ip()
        }
        Route::Host(agent) => {
            let name = host.split(':').next().unwrap_or_default().to_ascii_lowercase();
            assert!(name.ends_with(".desks.test"), "{host}");
            agent.ip()
        }
        Route::Pool { pool, segment, rest } => {
            assert_eq!(format!("/{segment}{rest}"), path);
            assert_eq!(segment, format!("pool/{pool}"));
            assert!(rest.is_empty() || rest.starts_with(['/', '?']));
            return;
        }
        Route::Health { .. } => {
            assert!(path == "/health" || path.starts_with("/health?"));
            return;
        }
        Route::UnknownHost | Route::InvalidAddress | Route::Session { .. } | Route::Default => return,
    };
    let v4 = match agent {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => {
            assert!(v6.to_ipv4_mapped().is_none(), "an IPv4 address in disguise");
            let special =
                v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local();
            assert!(!(special && agents.allows(agent)), "{agent}");
            return;
        }
    };
    let special = v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.octets()[0] == 0;
    assert!(!(special && agents.allows(agent)), "{agent}");
}

/// A directory is refused with places that are in it, or each of its agents is found by its name and its address.
pub fn directory(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let rules = DirectoryRules {
        ports: &[8443, 9443],
        is_allowed: &|address| !address.is_loopback(),
        names_files: true,
    };
    for format in [Format::Toml, Format::Json] {
        match Directory::parse(text, format, rules) {
            Ok(directory) => directory.agents().iter().for_each(|agent| {
                assert_eq!(directory.named(&agent.name), Some(agent));
                assert_eq!(directory.at(agent.address), Some(agent));
                assert!(!agent.address.ip().is_loopback() && rules.ports.contains(&agent.address.port()));
                let path = format!("/{}/x", agent.name);
                assert!(matches!(Route::of(&path, &directory), Route::Agent { rest: "/x", .. }), "{path}");
            }),
            Err(problems) => {
                assert!(!problems.is_empty());
                assert!(problems.iter().all(|problem| problem.at <= text.len()), "{problems:?}");
            }
        }
    }
}

/// A PROXY header ends where it ends, whatever follows and however much of it has come.
pub fn proxy_header(data: &[u8]) {
    let read = ProxyHeader::read(data);
    let Ok(Some(proxy_header)) = read else {
        assert!(read != Ok(None) || data.len() < PROXY_HEADER_BYTES_MAX, "it waits without end");
        return;
    };
    assert!(proxy_header.length <= data.len());
    assert_eq!(ProxyHeader::read(&data[..proxy_header.length]), Ok(Some(proxy_header)));
    for length in 0..proxy_header.length.min(256) {
        assert_eq!(ProxyHeader::read(&data[..length]), Ok(None), "{length} of it");
    }
}

/// Nobody but a trusted proxy says for whom it speaks, and what stands before the client that one names says nothing.
pub fn origin(data: &[u8]) {
    let (options, data) = choice(data);
    let lines: Vec<_> = data.split(|byte| *byte == b'\n').collect();
    let chain: Vec<_> = lines.iter().map(|value| Header { name: "X-Forwarded-For", value }).collect();
    let scheme = Header { name: "X-Forwarded-Proto", value: lines[0] };
    let headers = [&chain[..], &[scheme]].concat();
    let secure = options & 1 == 1;
    let direct = RequestSource { peer: PROXY, trusted: false, client: PROXY, secure };
    assert_eq!(RequestSource::of(PROXY, secure, &headers, &networks(false)), direct);
    let trusted = networks(true);
    let told = RequestSource::of(PROXY, secure, &headers, &trusted);
    assert!((told.peer, told.trusted) == (PROXY, true));
    assert_eq!(told.client, told.client.to_canonical());
    let said = String::from_utf8_lossy(data).to_ascii_lowercase();
    assert!(told.secure == secure || said.starts_with("http"));
    assert!(!told.is_forwarded() || data.contains(&b'.') || data.contains(&b':'), "an address nobody wrote");
    // A proxy appends whom it was asked by, in a line of its own or not.
    let client = CLIENT.to_string();
    let appended = Header { name: "x-forwarded-for", value: client.as_bytes() };
    assert_eq!(
        RequestSource::of(PROXY, secure, &[&headers[..], &[appended]].concat(), &trusted).client,
        CLIENT
    );
    let value = [data, b", ", client.as_bytes(), b",192.0.2.9"].concat();
    let appended = [Header { name: "X-Forwarded-For", value: &value }];
    assert_eq!(RequestSource::of(PROXY, secure, &appended, &trusted).client, CLIENT);
}

/// What the command line means is found, or refused with a text.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let line = ["dcv-splice"].into_iter().chain(text.split('\n'));
    match CommandLine::try_parse_from(line) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(line) => match line.flags.resolve() {
            Err(errors) => assert!(!errors.is_empty()),
            Ok(config) => can_be_meant(&config),
        },
    }
}

fn can_be_meant(config: &Config) {
    assert!(!config.listen.is_empty() || !config.listen_plain.is_empty());
    assert!(config.policy.default_agent.is_none_or(|agent| config.policy.agents.allows(agent)));
    assert!(config.workers > 0 && config.limits.connections_max > 0);
    assert!(config.limits.head.header_count_max <= 256);
}

/// A file whatever it is called.
struct OneFile<'a>(&'a [u8]);

impl Files for OneFile<'_> {
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(self.0.to_owned())
    }

    fn mode(&self, _: &Path) -> io::Result<u32> {
        Ok(0o600)
    }

    fn append(&self, _: &Path) -> io::Result<File> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// What a configuration file means is found, or refused in a line for each thing that is wrong; and what is shown of it
/// means the same.
pub fn configuration_file(data: &[u8]) {
    let settings = Settings::of(["dcv-splice", "--config=f.toml"].map(OsString::from));
    match settings.resolve(&OneFile(data)) {
        Err(told) => assert!(told.split('\n').all(|line| !line.is_empty()), "{told}"),
        Ok(resolved) => {
            can_be_meant(&resolved.config);
            let again = settings.resolve(&OneFile(resolved.show().as_bytes())).expect("it was shown");
            assert_eq!(format!("{:?}", again.config), format!("{:?}", resolved.config));
        }
    }
}
