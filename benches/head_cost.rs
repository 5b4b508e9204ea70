//! What a head may cost: none takes more than five times the instructions of an ordinary one of its size, whatever a
//! stranger puts into it. Counted by callgrind, so that a busy machine changes nothing (Debian package: valgrind).
//! Each head is taken through all that a worker does with it: its end, the parse, who asks, the rewriting, the log's line.

use std::hint::black_box;
use std::net::IpAddr;
use std::process::{Command, ExitCode};

use dcv_splice::access::route::Route;
use dcv_splice::agents::directory::Directory;
use dcv_splice::http::connection_auth::{self, Login};
use dcv_splice::http::h1::head::{HeadEnd, HeadLimits};
use dcv_splice::http::h1::keep_alive::KeepAliveLimits;
use dcv_splice::http::h1::writer;
use dcv_splice::http::message::{Framing, RequestHead, ResponseHead};
use dcv_splice::http::path_prefix::{PathPrefix, Place};
use dcv_splice::http::request_source::RequestSource;
use dcv_splice::http::rewrite::{self, HostHeader, RequestRewrite, ResponseRewrite};
use dcv_splice::observe::access_log::redact;
use dcv_splice::observe::request_id::RequestIds;
use dcv_splice::transport::networks::Networks;

const LIMITS: HeadLimits =
    HeadLimits { header_size_max: 32 * 1024, request_line_max: 16 * 1024, header_count_max: 100 };
/// The size of every head, a little below the limit.
const HEAD_BYTES: usize = 31 * 1024;
/// The most that one may cost, in times of the ordinary one.
const TIMES_MAX: u64 = 5;
/// Heads that one count takes.
const ROUNDS: u64 = 20;
const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// Everything that is done with a request's head.
#[inline(never)]
fn understand_request(head: &[u8], trusted: &Networks) -> usize {
    let Ok(Some(length)) = HeadEnd::default().find(head, &LIMITS) else { return 0 };
    let Ok(head) = RequestHead::parse(&head[..length], &LIMITS) else { return 1 };
    let directory = Directory::default();
    let route = Route::of_request(head.host, head.path, None, &directory);
    let source = RequestSource::of(PEER, true, &head.headers, trusted);
    let id = source.request_id(&head.headers).unwrap_or_else(|| RequestIds::default().next());
    let rewritten = RequestRewrite { source, hides_passwords: true, path: head.path.into() };
    let host = rewrite::host_for(&head, HostHeader::default(), IpAddr::from([10, 0, 0, 5]));
    let mut out = Vec::new();
    writer::request(&head, &rewritten, &host, &id, &mut out);
    black_box((route, Login::of_request(&head.headers), redact(head.path)));
    out.len()
}

/// Everything that is done with a response's.
#[inline(never)]
fn understand_response(head: &[u8]) -> usize {
    let Ok(Some(length)) = HeadEnd::default().find(head, &LIMITS) else { return 0 };
    let Ok(head) = ResponseHead::parse(&head[..length], &LIMITS, false) else { return 1 };
    let path_prefix = PathPrefix {
        agent: IpAddr::from([10, 0, 0, 5]),
        segment: "10.0.0.5".to_owned(),
        place: Place::Prefix,
        port: 8443,
        host: "desks.test".to_owned(),
        asked: Some("desks.example".to_owned()),
        bare: false,
        web_url_path: String::new(),
    };
    let passing = ResponseRewrite {
        framing: Framing::Chunked,
        keep_alive: true,
        http10: false,
        path_prefix: Some(&path_prefix),
        hsts: None,
    };
    let mut out = Vec::new();
    writer::response(&head, &passing, &mut out);
    let mut keep_alive_limits = KeepAliveLimits::default();
    keep_alive_limits.update(&head.headers);
    black_box((keep_alive_limits, connection_auth::has_connection_login(&head.headers)));
    out.len()
}

/// A head with as many of these lines as there is room for, a hundred at the most.
fn head(start: &str, lines: impl Iterator<Item = String>) -> Vec<u8> {
    let mut head = start.to_owned();
    for line in lines.take(LIMITS.header_count_max - 2) {
        if head.len() + line.len() + 4 > HEAD_BYTES {
            break;
        }
        head += &line;
        head += "\r\n";
    }
    (head + "\r\n").into_bytes()
}

/// One line of `name` that fills the head with `part`.
fn filled(start: &str, name: &str, part: &str) -> Vec<u8> {
    let room = HEAD_BYTES - start.len() - name.len() - 8;
    head(start, std::iter::once(format!("{name}: {}", part.repeat(room / part.len()))))
}

const GET: &str = "GET /10.0.0.5/x HTTP/1.1\r\nHost: p\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\n";

/// A head of that many bytes, a little less or more, whose lines are as long as those of browsers or, where there would be
/// too many of them, longer.
fn ordinary(start: &str, bytes: usize) -> Vec<u8> {
    let count = (bytes / 60).clamp(1, LIMITS.header_count_max - 4);
    let value = "v".repeat((bytes - start.len().min(bytes)) / count - "X-Field-10: ".len() - 2);
    head(start, (10..10 + count).map(|n| format!("X-Field-{n}: {value}")))
}

/// The heads by name.
fn requests() -> Vec<(String, Vec<u8>)> {
    let long = "x".repeat(60);
    let members: Vec<String> = (0..14).map(|n| format!("{long}{n:02}")).collect();
    let named = format!("Connection: {}\r\n", members.join(","));
    let same_length = (0..).map(move |n| format!("{}{n:04}: {}", "x".repeat(58), "v".repeat(240)));
    let path = |part: &str| {
        let path = part.repeat(15_000 / part.len());
        head(
            &format!("GET /{path} HTTP/1.1\r\nHost: p\r\n"),
            (0..).map(|n| format!("X-{n}: {}", "v".repeat(250))),
        )
    };
    let mut heads = vec![
        ("members as long as names".to_owned(), head(&format!("{GET}{named}"), same_length)),
        ("tiny lines".to_owned(), head(GET, (0..).map(|n| format!("a{n}:")))),
        ("path of slashes".to_owned(), path("/")),
        ("path of parameters".to_owned(), path("?a=b&token=c&")),
        ("path of percents".to_owned(), path("?%74oken=%41&")),
    ];
    let parts = [
        ("Connection", ","),
        ("Connection", "a,"),
        ("Upgrade", ","),
        ("Expect", ","),
        ("Transfer-Encoding", ","),
        ("Content-Length", "1"),
        ("X-Forwarded-For", "192.0.2.1,"),
        ("X-Forwarded-For", ","),
        ("X-Forwarded-Proto", "https,"),
        ("Cookie", "a=b;"),
        ("Authorization", "NTLM "),
        ("Authorization", "Basic,"),
        ("Host", "p"),
        ("Referer", "?token=a&"),
        ("Keep-Alive", "timeout=5,"),
    ];
    heads.extend(parts.map(|(name, part)| (format!("{name} of {part:?}"), filled(GET, name, part))));
    heads
}

fn responses() -> Vec<(String, Vec<u8>)> {
    let parts = [
        ("Connection", ","),
        ("Connection", "a,"),
        ("Set-Cookie", ";"),
        ("Set-Cookie", "Path=/;"),
        ("Set-Cookie", "Domain=10.0.0.5;"),
        ("Location", "/"),
        ("Location", "https://10.0.0.5/"),
        ("Refresh", "0;url=/,"),
        ("Link", "</a>;rel=x,"),
        ("Alt-Svc", "h3=\":443\","),
        ("Access-Control-Allow-Origin", "https://10.0.0.5,"),
        ("Content-Security-Policy", "default-src https://10.0.0.5;"),
        ("WWW-Authenticate", "NTLM,"),
        ("WWW-Authenticate", "\\\""),
        ("WWW-Authenticate", "Basic realm=\"x\","),
        ("Keep-Alive", "timeout=5,"),
    ];
    let mut heads = vec![
        ("tiny lines".to_owned(), head(OK, (0..).map(|n| format!("a{n}:")))),
        (
            "cookies".to_owned(),
            head(OK, (0..).map(|n| format!("Set-Cookie: a{n}={}; Path=/", "v".repeat(270)))),
        ),
        (
            "redirects".to_owned(),
            head(OK, (0..).map(|_| format!("Location: https://10.0.0.5/{}", "v".repeat(270)))),
        ),
    ];
    heads.extend(parts.map(|(name, part)| (format!("{name} of {part:?}"), filled(OK, name, part))));
    heads
}

fn understand(is_request: bool, head: &[u8]) {
    let trusted = Networks::from(vec!["192.0.2.0/24".parse().expect("a network")]);
    for _ in 0..ROUNDS {
        black_box(if is_request {
            understand_request(black_box(head), &trusted)
        } else {
            understand_response(black_box(head))
        });
    }
}

/// Instructions that a head takes, by another run of this program; an ordinary one of its size where that is asked for.
fn cost(is_request: bool, index: usize, is_ordinary: bool) -> u64 {
    let counted = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*understand_re*"])
        .arg(std::env::current_exe().expect("a running program has a path"))
        .args([if is_request { REQUEST } else { RESPONSE }, &index.to_string()])
        .args(is_ordinary.then_some(ORDINARY))
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&counted.stderr);
    let count = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<u64>().ok());
    let count = count.unwrap_or_else(|| panic!("callgrind did not count:\n{said}"));
    assert!(count > 0, "nothing was counted");
    count / ROUNDS
}

const REQUEST: &str = "request";
const RESPONSE: &str = "response";
const ORDINARY: &str = "ordinary";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let heads = |is_request| if is_request { requests() } else { responses() };
    if let [kind, index, rest @ ..] = &words[..] {
        let is_request = kind == REQUEST;
        let mut head = heads(is_request).swap_remove(index.parse::<usize>().expect("a number")).1;
        if !rest.is_empty() {
            head = ordinary(if is_request { GET } else { OK }, head.len());
        }
        understand(is_request, &head);
        return ExitCode::SUCCESS;
    }
    let mut is_good = true;
    for is_request in [true, false] {
        for (index, (name, head)) in heads(is_request).iter().enumerate() {
            let [own, ordinary] = [false, true].map(|is_ordinary| cost(is_request, index, is_ordinary));
            is_good &= own <= TIMES_MAX * ordinary;
            let kind = if is_request { REQUEST } else { RESPONSE };
            let percent = 100 * own / ordinary;
            println!(
                "{kind:8} {:6} B {own:8} instructions {percent:4} % of an ordinary one  {name}",
                head.len()
            );
        }
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
