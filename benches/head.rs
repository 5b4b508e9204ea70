//! The head of a DCV client's upgrade request: parsed, routed, and rewritten for the agent.

use std::hint::black_box;
use std::net::IpAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use dcv_splice::access::route::{AllowedAgents, Route};
use dcv_splice::agents::directory::Directory;
use dcv_splice::http::h1::head::{HeadEnd, HeadLimits};
use dcv_splice::http::h1::writer;
use dcv_splice::http::message::RequestHead;
use dcv_splice::http::request_source::RequestSource;
use dcv_splice::http::rewrite::{self, HostHeader, RequestRewrite};
use dcv_splice::observe::request_id::RequestId;
use dcv_splice::transport::networks::Networks;

const HEAD: &[u8] = b"GET /10.150.248.181/ws?v=2 HTTP/1.1\r\n\
    Host: desktops.example.com:8443\r\n\
    Connection: Upgrade\r\n\
    Pragma: no-cache\r\n\
    Cache-Control: no-cache\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n\
    Upgrade: websocket\r\n\
    Origin: https://desktops.example.com:8443\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
    Sec-WebSocket-Protocol: dcv\r\n\r\n";
const REQUEST_ID: &[u8] = b"0123456789abcdef0123456789abcdef";
const LIMITS: HeadLimits =
    HeadLimits { header_size_max: 32 * 1024, request_line_max: 16 * 1024, header_count_max: 100 };

/// The head that the agent is to see.
fn rewritten(agents: &AllowedAgents, directory: &Directory, out: &mut Vec<u8>) {
    let length = HeadEnd::default().find(HEAD, &LIMITS).expect("a head").expect("a whole one");
    let head = RequestHead::parse(&HEAD[..length], &LIMITS).expect("a valid head");
    let Route::Agent { agent, rest: path, .. } = Route::of(head.path, directory) else {
        panic!("an agent's path")
    };
    assert!(agents.allows(agent.ip()));
    let rewritten = RequestRewrite {
        source: RequestSource::of(IpAddr::from([192, 0, 2, 1]), true, &head.headers, &Networks::default()),
        hides_passwords: false,
        path: path.into(),
    };
    let host = rewrite::host_for(&head, HostHeader::default(), agent.ip());
    out.clear();
    let id = RequestId::given(REQUEST_ID).expect("an id");
    writer::request(&head, &rewritten, &host, &id, out);
}

fn request(criterion: &mut Criterion) {
    let agents = AllowedAgents::new(vec!["10.150.248.0/24".parse().expect("a prefix")]);
    let (directory, mut out) = (Directory::default(), Vec::new());
    rewritten(&agents, &directory, &mut out);
    assert!(out.starts_with(b"GET /ws?v=2 HTTP/1.1\r\nHost: desktops.example.com\r\n"));
    criterion.bench_function("parse, route and rewrite a head", |bencher| {
        bencher.iter(|| {
            rewritten(black_box(&agents), &directory, &mut out);
            black_box(out.len())
        });
    });
}

criterion_group!(benches, request);
criterion_main!(benches);
