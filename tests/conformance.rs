//! Raw request heads through the real proxy: for each row the exact bytes that the agent sees, or the refusal with
//! which nothing reaches any agent; and raw response heads: the exact bytes that the client gets, or a 502.
//! Every row is sent whole and in pieces, by plain HTTP and by TLS, and is followed by one more request, so that
//! what a row leaves behind on a connection is seen too.
#![allow(clippy::unwrap_used)]

#[path = "conformance/bodies.rs"]
mod bodies;
#[path = "conformance/hops.rs"]
mod hops;
#[path = "conformance/hosts.rs"]
mod hosts;
#[path = "conformance/http2.rs"]
mod http2;
#[path = "conformance/responses.rs"]
mod responses;
#[path = "conformance/routes.rs"]
mod routes;
#[path = "conformance/row.rs"]
mod row;
#[path = "conformance/syntax.rs"]
mod syntax;
#[path = "conformance/targets.rs"]
mod targets;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use harness::certificates::{Authority, KeyKind};
use harness::process::eventually;
use harness::proxy::Proxy;
use harness::raw::{self, RawAgent};
use responses::Passed;
use row::{AGENT, Agent, Row};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

#[test]
fn every_head_is_forwarded_byte_for_byte_or_refused() {
    let front = ProxyUnderTest::start(&[&format!("--default-agent={AGENT}"), "--agents=127.0.0.3/32"]);
    let rows: Vec<Row> = [targets::rows(), routes::rows(), hosts::rows()]
        .into_iter()
        .chain([syntax::rows(), bodies::rows(), hops::rows()])
        .flatten()
        .collect();
    assert!(rows.len() >= 500, "{} rows", rows.len());
    front.check(&rows);
    assert!(front.proxy.log().contains("reason=agent_not_allowed"), "who is refused is logged");
}

/// The same table by HTTP/2, as far as its rows can be said there.
#[test]
fn a_request_by_http2_is_forwarded_or_refused_as_it_is_by_http1() {
    let flags = [&format!("--default-agent={AGENT}"), "--agents=127.0.0.3/32", "--http2=on"];
    let front = ProxyUnderTest::start(&flags);
    let rows: Vec<Row> = [targets::rows(), routes::rows(), hosts::rows()]
        .into_iter()
        .chain([syntax::rows(), bodies::rows(), hops::rows()])
        .flatten()
        .collect();
    front.agent.answer_with(&[ANSWER.as_bytes()]);
    let mut failures = Vec::new();
    let mut asked = 0;
    for row in &rows {
        let Some(request) = http2::as_http2(&row.request) else { continue };
        asked += 1;
        let got = http2::ask(front.plain(), request);
        let (seen, other) = (front.agent.seen(), front.other.seen());
        let due = match &row.agent {
            Agent::Sees(due) => due.iter().map(|request| http2::normalised(request)).collect(),
            Agent::SeesNoneWhole => Vec::new(),
        };
        let seen: Vec<_> = seen.iter().map(|request| http2::normalised(request)).collect();
        if got != Ok(row.statuses[0]) || seen != due || !other.is_empty() {
            failures.push(format!(
                "{}: {got:?}, {:?} is due\n  the agent saw {seen:?}\n  not {due:?}",
                row.name, row.statuses
            ));
        }
    }
    println!("{asked} of {} rows", rows.len());
    report(&failures);
    assert!(asked >= HTTP2_ROWS_MIN, "{asked} rows");
}

#[test]
fn without_a_default_agent_only_named_agents_are_asked() {
    ProxyUnderTest::start(&[]).check(&routes::without_default());
}

#[test]
fn no_prefix_but_their_own_opens_loopback_and_other_special_addresses() {
    ProxyUnderTest::start(&["--agents=0.0.0.0/0"]).check(&routes::everywhere());
}

#[test]
fn an_agent_that_refuses_the_connection_is_a_502() {
    let rows = [row::answered("/127.0.0.4/x", 502), row::path("/127.0.0.2/x", "/x")];
    ProxyUnderTest::start(&["--agents=127.0.0.4/32"]).check(&rows);
}

#[test]
fn plain_http_is_told_that_the_port_speaks_https() {
    let front = ProxyUnderTest::start(&[]);
    let row = row::no_path("/127.0.0.2/x", 400);
    let got = raw::ask(raw::connect(front.address("https")), &[&row.request]);
    report(&Vec::from_iter(front.differs(&row, got, "http", 1)));
}

#[test]
fn an_agent_that_keeps_its_prefix_sees_it() {
    ProxyUnderTest::start(&["--path-prefix=keep", &format!("--default-agent={AGENT}")])
        .check(&hosts::kept_prefix());
}

#[test]
fn a_host_name_of_an_agents_own_leads_to_it_with_every_path() {
    let front = ProxyUnderTest::start(&["--agent-domain=desk.test"]);
    front.check(&hosts::under_domain());
    let asked = "GET /x HTTP/1.1\r\nHost: 127-0-0-2.desk.test\r\nConnection: close\r\n\r\n";
    let kept = "Set-Cookie: a=1; Path=/\r\nLocation: ";
    let neighbour = "Set-Cookie: b=1; Domain=";
    for (location, told) in [
        ("/y", "/y"),
        ("https://127.0.0.2/y", "/y"),
        ("https://localhost/y", "/y"),
        ("https://127-0-0-2.desk.test/y", "https://127-0-0-2.desk.test/y"),
        ("https://else.test/y", "https://else.test/y"),
        (&format!("/y\r\n{neighbour}desk.test"), "/y\r\nSet-Cookie: b=1"),
        (&format!("/y\r\n{neighbour}127-0-0-2.desk.test"), &format!("/y\r\n{neighbour}127-0-0-2.desk.test")),
        ("/y\r\nClear-Site-Data: \"*\"\r\nAlt-Svc: clear", "/y\r\nClear-Site-Data: \"*\""),
        ("/y\r\nService-Worker-Allowed: /", "/y\r\nService-Worker-Allowed: /"),
    ] {
        let answer = format!("HTTP/1.1 204 No Content\r\n{kept}{location}\r\n\r\n");
        let got = front.answer(&[answer.as_bytes()], asked.as_bytes());
        assert_eq!(got, format!("HTTP/1.1 204 No Content\r\nConnection: close\r\n{kept}{told}\r\n\r\n"));
    }
}

#[test]
fn a_trusted_proxy_is_believed_whom_it_speaks_for() {
    ProxyUnderTest::start(&["--trust-forwarded=127.0.0.0/8"]).check(&hops::origin(true));
    ProxyUnderTest::start(&["--trust-forwarded=192.0.2.0/24"]).check(&hops::origin(false));
}

#[test]
fn an_agent_is_told_the_host_that_the_operator_chose() {
    ProxyUnderTest::start(&["--host-header=pass"]).check(&hosts::passed());
    ProxyUnderTest::start(&["--host-header=agent"]).check(&hosts::agents_own());
}

#[test]
fn no_byte_of_a_bad_response_head_reaches_the_client() {
    let front = ProxyUnderTest::start(&[]);
    let failures = responses::bad().into_iter().filter_map(|row| {
        let ways = [vec![row.answer.as_slice()], row.answer.split_inclusive(|b| *b == b'\r').collect()];
        ways.iter().find_map(|pieces| {
            let got = front.answer(pieces, row.asked.as_bytes());
            let is_good = got.starts_with("HTTP/1.1 502 Bad Gateway\r\n") && !got.contains("leak");
            (!is_good).then(|| format!("{}: the agent said {:?}\n  {got:?}", row.name, start_of(&row.answer)))
        })
    });
    report(&failures.take(FAILURES_MAX).collect::<Vec<_>>());
}

#[test]
fn every_response_head_is_passed_on_byte_for_byte_but_for_what_belongs_to_one_hop() {
    let front = ProxyUnderTest::start(&[&format!("--default-agent={AGENT}")]);
    front.check_answers(&responses::good(front.port));
}

#[test]
fn a_location_at_the_host_that_an_agent_was_told_is_its_own() {
    ProxyUnderTest::start(&["--host-header=pass"]).check_answers(&responses::with_host_passed());
}

#[test]
fn what_a_browser_takes_is_decided_by_the_host_it_sees_and_not_by_the_one_that_an_agent_was_told() {
    let fields = [
        ("Set-Cookie: a=1; Domain=127.0.0.2", "Set-Cookie: a=1"),
        ("Set-Cookie: a=1; Domain=desk.example", "Set-Cookie: a=1; Domain=desk.example"),
        ("Location: https://127.0.0.2/x", "Location: /127.0.0.2/x"),
        ("Location: https://desk.example/127.0.0.2/x", "Location: /127.0.0.2/x"),
    ];
    let front = ProxyUnderTest::start(&["--host-header=agent"]);
    for (from, to) in fields {
        let answer = format!("HTTP/1.1 204 No Content\r\n{from}\r\n\r\n");
        let got = front.answer(&[answer.as_bytes()], responses::ASKED.as_bytes());
        assert_eq!(got, format!("HTTP/1.1 204 No Content\r\nConnection: close\r\n{to}\r\n\r\n"));
    }
}

#[test]
fn an_agent_that_keeps_its_prefix_has_its_paths_untouched() {
    let front = ProxyUnderTest::start(&["--path-prefix=keep"]);
    let fields = "Location: /127.0.0.2/x\r\nSet-Cookie: a=1; Path=/127.0.0.2/\r\nLink: </127.0.0.2/x>\r\n";
    let own = "Content-Location: https://127.0.0.2:443/127.0.0.2/x\r\nSet-Cookie: a=1; Domain=127.0.0.2\r\n\
        Clear-Site-Data: \"*\"\r\nService-Worker-Allowed: /\r\nservice-worker-allowed: /127.0.0.2/\r\n";
    let told = "Content-Location: /127.0.0.2/x\r\nSet-Cookie: a=1\r\nservice-worker-allowed: /127.0.0.2/\r\n";
    let answer = format!("HTTP/1.1 204 No Content\r\n{fields}{own}\r\n");
    let got = front.answer(&[answer.as_bytes()], responses::ASKED.as_bytes());
    assert_eq!(got, format!("HTTP/1.1 204 No Content\r\nConnection: close\r\n{fields}{told}\r\n"));
}

/// So many rows at least can be said in HTTP/2.
const HTTP2_ROWS_MIN: usize = 200;
/// So many tell what is wrong; each may have cost seconds of waiting.
const FAILURES_MAX: usize = 20;
/// What the agent answers to every row.
const ANSWER: &str = "HTTP/1.1 204 No Content\r\nServer: raw\r\n\r\n";
/// A request that follows a row whose client may go on asking, and how its answer ends.
const PROBE: &[u8] = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
const PROBED: &str = "Connection: close\r\n\r\nDCV Proxy OK\n";

/// A proxy with a plain and a TLS listener, the agent that the rows ask for, and one that none asks for.
struct ProxyUnderTest {
    proxy: Proxy,
    agent: RawAgent,
    other: RawAgent,
    port: u16,
    tls: Arc<ClientConfig>,
    _certificate: TempDir,
}

impl ProxyUnderTest {
    fn start(flags: &[&str]) -> Self {
        let (agent, other, port) = listeners();
        let (certificate, tls) = certificate();
        let path = |name| certificate.path().join(name).to_str().unwrap().to_owned();
        let more = [
            "--listen=127.0.0.1:0",
            "--listen-plain=127.0.0.1:0",
            "--agents=127.0.0.2/32",
            &format!("--agent-port={port}"),
            "--agent-tls=off",
            // The agents serve one connection at a time.
            "--agent-idle-max=0",
            "--body-max=65536B",
            &format!("--cert={}", path("cert.pem")),
            &format!("--key={}", path("key.pem")),
        ];
        let proxy = Proxy::start(&[flags, &more].concat());
        Self { proxy, agent, other, port, tls, _certificate: certificate }
    }

    fn plain(&self) -> SocketAddr {
        self.address("http")
    }

    fn address(&self, scheme: &str) -> SocketAddr {
        let log = self.proxy.log();
        let url =
            log.lines().find_map(|line| line.split_once(&format!("listening on {scheme}://"))).unwrap().1;
        url.split([' ', '/']).next().unwrap().parse().unwrap()
    }

    /// Sends every row in every way and says which came to something else.
    fn check(&self, rows: &[Row]) {
        self.agent.answer_with(&[ANSWER.as_bytes()]);
        let (plain, secure) = (self.plain(), self.address("https"));
        let mut failures = Vec::new();
        for (seed, row) in (0..).zip(rows) {
            let message = [row.request.as_slice(), if row.stays { PROBE } else { b"" }].concat();
            for pieces in raw::cuts(&message, seed) {
                let got = raw::ask(raw::connect(plain), &pieces);
                failures.extend(self.differs(row, got, "http", pieces.len()));
            }
            failures.extend(self.differs(row, self.ask_by_tls(secure, &message), "https", 1));
            if failures.len() >= FAILURES_MAX {
                break;
            }
        }
        report(&failures);
    }

    fn ask_by_tls(&self, address: SocketAddr, message: &[u8]) -> Result<Vec<u8>, String> {
        let name = ServerName::try_from("desk.example").unwrap();
        let tls = ClientConnection::new(self.tls.clone(), name).unwrap();
        raw::ask(StreamOwned::new(tls, raw::connect(address)), &[message])
    }

    fn differs(
        &self,
        row: &Row,
        got: Result<Vec<u8>, String>,
        scheme: &str,
        pieces: usize,
    ) -> Option<String> {
        let (agent, other) = (self.agent.seen(), self.other.seen());
        let wrong = got
            .and_then(|got| row.is_answered(&lossy(&got)))
            .and_then(|()| row.is_seen(&agent, scheme, pieces == 1))
            .and_then(
                |()| if other.is_empty() { Ok(()) } else { Err(format!("another agent saw {other:?}")) },
            );
        let asked = start_of(&row.request);
        wrong.err().map(|why| format!("{} ({scheme}, {pieces} pieces): {asked:?}\n  {why}", row.name))
    }

    /// Has the agent give every answer and says which the client got otherwise.
    fn check_answers(&self, rows: &[Passed]) {
        let failures = rows.iter().filter_map(|row| {
            let got = self.answer(&[&row.answer], row.asked.as_bytes());
            (got != lossy(&row.told)).then(|| format!("{}\n  {got:?}\n  {:?}", row.name, lossy(&row.told)))
        });
        report(&failures.take(FAILURES_MAX).collect::<Vec<_>>());
    }

    /// What a client gets that asks so while the agent answers so.
    fn answer(&self, pieces: &[&[u8]], asked: &[u8]) -> String {
        self.agent.answer_with(pieces);
        let got = raw::ask(raw::connect(self.plain()), &[asked]).map_or_else(|why| why, |got| lossy(&got));
        self.agent.seen();
        got
    }
}

/// Listeners of the same port on both agents' addresses.
fn listeners() -> (RawAgent, RawAgent, u16) {
    eventually("a port is free on both addresses", || {
        let agent = TcpListener::bind((AGENT, 0)).ok()?;
        let port = agent.local_addr().ok()?.port();
        let other = TcpListener::bind(("127.0.0.3", port)).ok()?;
        Some((RawAgent::start(agent), RawAgent::start(other), port))
    })
}

/// A certificate for the proxy, and how a client trusts it.
fn certificate() -> (TempDir, Arc<ClientConfig>) {
    let authority = Authority::new("heads");
    let identity = authority.issue(KeyKind::Ecdsa, &["desk.example"]);
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("cert.pem"), identity.cert_pem).unwrap();
    std::fs::write(directory.path().join("key.pem"), identity.key_pem).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.cert_pem().as_bytes()).unwrap()).unwrap();
    (directory, Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

impl Row {
    /// Whether the client was given the statuses due, a text with each that is the proxy's own, and the end due.
    fn is_answered(&self, got: &str) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{what}: the client got {got:?}"));
        let mut answers = answers(got);
        if self.stays {
            if !answers.pop().is_some_and(|answer| answer.ends_with(PROBED)) {
                return wrong("the connection should have stayed");
            }
        } else if !answers.last().is_some_and(|answer| answer.contains("\r\nConnection: close\r\n")) {
            return wrong("the connection should have been closed");
        }
        let statuses: Vec<u16> = answers.iter().map(|answer| answer[9..12].parse().unwrap()).collect();
        if statuses != self.statuses {
            return wrong(&format!("{:?} are due", self.statuses));
        }
        if !answers.iter().all(|answer| answer[9..].starts_with("204") || self.has_text(answer)) {
            return wrong("an answer of the proxy's own has no text of its length");
        }
        match &self.line {
            Some(line) if !got.contains(&format!("\r\n{line}")) => wrong(&format!("{line:?} is due")),
            _ => Ok(()),
        }
    }

    fn has_text(&self, answer: &str) -> bool {
        let Some((head, text)) = answer.split_once("\r\n\r\n") else { return false };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
        let is_whole = if self.request.starts_with(b"HEAD ") {
            text.is_empty() && length > Some(1)
        } else {
            text.len() > 1 && length == Some(text.len())
        };
        is_whole && head.contains("\r\nContent-Type: text/plain; charset=utf-8")
    }

    /// Whether the agent saw what is due; what is long or sent in pieces may be cut into chunks in any way.
    fn is_seen(&self, got: &[Vec<u8>], scheme: &str, sent_whole: bool) -> Result<(), String> {
        let shown = |all: &[Vec<u8>]| all.iter().map(|one| start_of(one)).collect::<Vec<_>>();
        let Agent::Sees(due) = &self.agent else {
            let is_due = got.len() <= 1 && !got.iter().any(|got| got.ends_with(b"0\r\n\r\n"));
            return if is_due { Ok(()) } else { Err(format!("the agent saw {:?}", shown(got))) };
        };
        let due: Vec<_> = due.iter().map(|due| told_of(scheme, due)).collect();
        let unchunked = |all: &[Vec<u8>]| all.iter().map(|one| raw::without_chunks(one)).collect::<Vec<_>>();
        let exact = sent_whole && self.request.len() < 4096;
        let is_due = if exact { got == due } else { unchunked(got) == unchunked(&due) };
        if is_due { Ok(()) } else { Err(format!("the agent saw {:?}\n  not {:?}", shown(got), shown(&due))) }
    }
}

/// The same request by a client that came by this scheme; one that a trusted proxy has said to be HTTPS is.
fn told_of(scheme: &str, request: &[u8]) -> Vec<u8> {
    const PROTO: &[u8] = b"X-Forwarded-Proto: http\r\n";
    let place = request.windows(PROTO.len()).position(|bytes| bytes == PROTO);
    let Some(place) = place else { return request.to_vec() };
    let line = format!("X-Forwarded-Proto: {scheme}\r\n");
    [&request[..place], line.as_bytes(), &request[place + PROTO.len()..]].concat()
}

/// The answers of one connection. No body has what looks like a status line.
fn answers(got: &str) -> Vec<&str> {
    const START: &str = "HTTP/1.1 ";
    let is_status = |at: usize| got[at + START.len()..].starts_with(|c: char| c.is_ascii_digit());
    let starts: Vec<usize> = got.match_indices(START).map(|(at, _)| at).filter(|at| is_status(*at)).collect();
    let ends = starts.iter().skip(1).copied().chain([got.len()]);
    starts.iter().zip(ends).map(|(start, end)| &got[*start..end]).collect()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Enough of it to find the row by.
fn start_of(bytes: &[u8]) -> String {
    lossy(&bytes[..bytes.len().min(500)])
}

#[track_caller]
fn report(failures: &[String]) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
