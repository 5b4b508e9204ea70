//! Attacks on HTTP/2, each over and over by several clients: each ends with its connection or is bounded by its windows, costs
//! the proxy little memory, and a neighbour is served meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::{PATIENCE, RawClient};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    WHOLE, WINDOW_UPDATE, block, frame, get, request, setting,
};
use super::{FLAGS, agent};

/// How long an attack lasts, and how many clients take part.
const ATTACK: Duration = Duration::from_secs(2);
const ATTACKERS: usize = 4;
/// What each of them sends at once, and then waits: or they would have the machine to themselves.
const BURST: u32 = 100;
const PAUSE: Duration = Duration::from_millis(2);
/// Requests that a neighbour has answered meanwhile: some hundred times where nothing starves.
const ANSWERS_MIN: usize = 10;
/// What the proxy may grow by, in KiB: its buffers, and those of so many connections and their streams.
const GROWTH_KIB_MAX: usize = 48 * 1024;

/// Something without end: what comes first, and what the n-th time.
struct Attack {
    name: &'static str,
    first: Vec<u8>,
    next: fn(u32) -> Vec<u8>,
}

fn stream(number: u32) -> u32 {
    2 * number + 1
}

fn attacks() -> Vec<Attack> {
    let settings = frame(SETTINGS, 0, 0, []);
    let no_window = [frame(SETTINGS, 0, 0, setting(4, 0))].concat();
    // A name of some KiB in the table, and its index over and over (RFC 7541 7.3).
    let bomb = [&[0x40, 1][..], b"x", &[0x7f, 0x81, 0x1e], &[b'y'; 4000], &[0xbe; 8000]].concat();
    let post = frame(HEADERS, END_HEADERS, 1, request("POST", "/127.0.0.1/x", &[]));
    let attack = |name, first: &[Vec<u8>], next| Attack { name, first: first.concat(), next };
    vec![
        attack("rapid reset", std::slice::from_ref(&settings), |number| {
            let ask = frame(HEADERS, WHOLE, stream(number), get("/127.0.0.1/silent", &[]));
            [ask, frame(RST_STREAM, 0, stream(number), [0, 0, 0, 8])].concat()
        }),
        attack("streams that the proxy has to reset", std::slice::from_ref(&settings), |number| {
            let ask = frame(HEADERS, END_HEADERS, stream(number), request("POST", "/127.0.0.1/silent", &[]));
            [ask, frame(WINDOW_UPDATE, 0, stream(number), [0; 4])].concat()
        }),
        attack("malformed requests", std::slice::from_ref(&settings), |number| {
            frame(HEADERS, WHOLE, stream(number), get("/health", &[("Upper", "x")]))
        }),
        attack(
            "a header block without end",
            &[settings.clone(), frame(HEADERS, END_STREAM, 1, get("/health", &[]))],
            |number| frame(CONTINUATION, 0, 1, block(&[("x", &format!("{number:01000}"))])),
        ),
        attack(
            "an empty header block without end",
            &[settings.clone(), frame(HEADERS, END_STREAM, 1, get("/health", &[]))],
            |_| frame(CONTINUATION, 0, 1, []),
        ),
        attack("PING", std::slice::from_ref(&settings), |_| frame(PING, 0, 0, [0; 8])),
        attack("SETTINGS", std::slice::from_ref(&settings), |number| {
            frame(SETTINGS, 0, 0, setting(4, number % 1000))
        }),
        attack(
            "a table of headers that is full of one",
            &[settings.clone(), frame(HEADERS, WHOLE, 1, bomb)],
            |number| frame(HEADERS, WHOLE, stream(number + 1), [0xbe; 8000]),
        ),
        attack("no window", &[no_window], |number| {
            frame(HEADERS, WHOLE, stream(number), get("/health", &[]))
        }),
        attack("DATA of one byte", &[settings.clone(), post.clone()], |_| frame(DATA, 0, 1, b"x")),
        attack("DATA of no byte", &[settings, post], |_| frame(DATA, 0, 1, [])),
    ]
}

/// Attacks until it is sent away, again and again; tells how often it was, and with which codes. `may_last`: or never; any other
/// goes on until it was, however slow the machine is.
async fn attacks_with(
    front: std::net::SocketAddr,
    first: Vec<u8>,
    next: fn(u32) -> Vec<u8>,
    may_last: bool,
) -> Vec<u32> {
    let (start, was_ended) = (Instant::now(), AtomicBool::new(may_last));
    let goes_on = || {
        let limit = if was_ended.load(Ordering::Relaxed) { ATTACK } else { PATIENCE };
        start.elapsed() < limit
    };
    let mut codes = Vec::new();
    while goes_on() {
        let (mut reader, mut writer) = RawClient::plain(front).await.split();
        let says = async {
            let mut number = 0;
            let mut is_open = writer.write_all(&[PREFACE, &first].concat()).await.is_ok();
            while is_open && goes_on() {
                let burst: Vec<u8> = (number..number + BURST).flat_map(next).collect();
                number += BURST;
                is_open = writer.write_all(&burst).await.is_ok();
                tokio::time::sleep(PAUSE).await;
            }
        };
        let hears = async {
            while let Some(frame) = Frame::next(&mut reader).await {
                if frame.kind == GOAWAY && frame.code() != 0 {
                    codes.push(frame.code());
                    was_ended.store(true, Ordering::Relaxed);
                }
            }
        };
        tokio::select! { () = says => {}, () = hears => {} }
    }
    codes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attack_ends_with_its_connection_and_no_neighbour_notices() {
    let agent = agent().await;
    for attack in attacks() {
        let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
        front.answers().await;
        // One byte at a time is slow, and no more.
        let may_last = attack.name == "DATA of one byte";
        let before = front.proxy.resident_kib();
        let mut attackers = JoinSet::new();
        for _ in 0..ATTACKERS {
            attackers.spawn(attacks_with(front.plain(), attack.first.clone(), attack.next, may_last));
        }
        let (start, mut answers, mut slowest) = (Instant::now(), 0, Duration::ZERO);
        let mut neighbour = RawClient::plain(front.plain()).await;
        while start.elapsed() < ATTACK {
            let asked = Instant::now();
            neighbour.say("GET /health HTTP/1.1\r\nHost: p\r\n\r\n").await;
            assert_eq!(neighbour.answer().await.unwrap().status, 200);
            slowest = slowest.max(asked.elapsed());
            answers += 1;
        }
        let grown = front.proxy.resident_kib().saturating_sub(before);
        let codes: Vec<u32> = attackers.join_all().await.concat();
        println!(
            "{}: {answers} answers, the slowest after {slowest:?}; {grown} KiB; ended {} times {:?}",
            attack.name,
            codes.len(),
            codes.first()
        );
        assert!(answers >= ANSWERS_MIN, "{}: {answers} answers", attack.name);
        assert!(grown < GROWTH_KIB_MAX, "{}: {grown} KiB", attack.name);
        assert!(may_last || !codes.is_empty(), "{}: no connection was ended for it", attack.name);
        front.answers().await;
    }
}
