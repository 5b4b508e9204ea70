//! HTTP/2 frame by frame, by a client that keeps to no rule: for each case the answer that RFC 9113 and RFC 7541 want, and
//! a neighbour that notices nothing.
#![allow(clippy::unwrap_used)]

#[path = "http2/cases.rs"]
mod cases;
#[path = "http2/floods.rs"]
mod floods;
#[path = "http2/frames.rs"]
mod frames;
#[path = "http2/websocket.rs"]
mod websocket;

use std::time::Duration;

use cases::{Case, Due};
use frames::{
    ACK, DATA, END_STREAM, Frame, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, WHOLE, frame, get,
};
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;
use harness::scripted_agent::ScriptedAgent;

/// After so long no answer is expected any more; there always is one.
const SILENCE: Duration = Duration::from_secs(10);
/// A stream that no case uses.
const PROBE_STREAM: u32 = 4001;

pub(crate) const FLAGS: [&str; 3] =
    ["--agent-tls=off", "--client-rate=1000000", "--client-connections-max=4000"];

/// One that takes whole requests, and says how long their bodies were.
pub(crate) async fn agent() -> ScriptedAgent {
    ScriptedAgent::plain(|_, mut line| async move {
        while let Some(head) = line.head().await {
            if head.contains("/silent") {
                return std::future::pending().await;
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            line.bytes(length.unwrap_or(0)).await;
            if head.contains("\r\nTransfer-Encoding: chunked\r\n") {
                takes_chunks(&mut line).await;
            }
            if !line.try_say("HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\nok").await {
                return;
            }
        }
    })
    .await
}

/// Takes chunks and trailers, or what there is of them.
async fn takes_chunks(line: &mut RawClient) {
    loop {
        let size = text_line(line).await;
        match usize::from_str_radix(&size, 16) {
            Ok(0) => break,
            Ok(size) => drop(line.bytes(size + 2).await),
            Err(_) => return,
        }
    }
    while !text_line(line).await.is_empty() {}
}

async fn text_line(line: &mut RawClient) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n") {
        let byte = line.bytes(1).await;
        if byte.is_empty() {
            break;
        }
        text.extend(byte);
    }
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// What has become of a case.
async fn outcome(client: &mut RawClient, stream: u32) -> Due {
    let mut status = None;
    loop {
        let Some(frame) = Frame::next(client).await else { return Due::Closed };
        match frame.kind {
            GOAWAY if frame.code() != 0 => return Due::Goaway(frame.code()),
            RST_STREAM if frame.stream == stream => return Due::Reset(frame.code()),
            HEADERS if frame.stream == stream => status = status.or(Some(frame.status())),
            RST_STREAM if frame.stream == PROBE_STREAM => return Due::Reset(frame.code() + 1000),
            HEADERS if frame.stream == PROBE_STREAM && frame.status() == Some(200) => return Due::Ignored,
            _ => {}
        }
        let is_end = matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0;
        if is_end && frame.stream == stream {
            return Due::Answered(status.flatten().unwrap_or(0));
        }
    }
}

async fn heard(client: &mut RawClient, stream: u32) -> Due {
    tokio::time::timeout(SILENCE, outcome(client, stream)).await.unwrap_or(Due::Silent)
}

/// Sends a case in pieces of that size, and tells what has come of it. A case that is to be ignored is followed by a request.
async fn tried(front: &ProxyUnderTest, case: &Case, piece: usize) -> Due {
    let mut client = RawClient::plain(front.plain()).await;
    client.tcp().set_nodelay(true).unwrap();
    let mut bytes = case.bytes.clone();
    if matches!(case.due, Due::Ignored) {
        bytes.extend(frame(HEADERS, WHOLE, PROBE_STREAM, get("/health", &[])));
    }
    for piece in bytes.chunks(piece) {
        if !client.try_say(piece).await {
            break;
        }
    }
    let found = heard(&mut client, case.stream).await;
    if matches!(found, Due::Reset(_)) {
        // An error of a stream is none of the connection.
        client.try_say(frame(HEADERS, WHOLE, PROBE_STREAM, get("/health", &[]))).await;
        let after = heard(&mut client, PROBE_STREAM).await;
        if after != Due::Answered(200) {
            return after;
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_of_http2_is_kept_to_whole_and_byte_by_byte() {
    let agent = agent().await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let cases = cases::all();
    let mut failures = Vec::new();
    for case in &cases {
        for piece in [usize::MAX, 1] {
            if piece == 1 && case.bytes.len() > 2000 {
                continue;
            }
            let found = tried(&front, case, piece).await;
            if !case.due.allows(found) {
                failures.push(format!("{} ({piece}): {found:?}, {:?} is due", case.name, case.due));
            }
        }
    }
    println!("{} cases", cases.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(cases.len() >= 120, "{} cases", cases.len());
    front.answers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_is_off_nothing_but_http1_is_spoken() {
    let agent = agent().await;
    let front = ProxyUnderTest::start(agent.address, &["--agent-tls=off", "--http2=off"]).await;
    let mut client = RawClient::plain(front.plain()).await;
    client.say([PREFACE, &frame(SETTINGS, 0, 0, [])].concat()).await;
    let answer = client.answer().await.unwrap();
    assert!(
        answer.head.starts_with("HTTP/1.1 505 ") || answer.head.starts_with("HTTP/1.1 400 "),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_it_is_spoken_only_where_the_handshake_says_so() {
    let agent = agent().await;
    let front = ProxyUnderTest::start(agent.address, &FLAGS).await;
    let mut client = RawClient::secure(front.secure()).await;
    client.say(PREFACE).await;
    assert_eq!(client.answer().await.unwrap().status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_told_to_go() {
    let agent = agent().await;
    let front = ProxyUnderTest::start(
        agent.address,
        &[&FLAGS[..], &["--client-keepalive-timeout=1s", "--header-timeout=1s"]].concat(),
    )
    .await;
    let mut client = RawClient::plain(front.plain()).await;
    client.say([PREFACE, &frame(SETTINGS, 0, 0, []), &frame(SETTINGS, ACK, 0, [])].concat()).await;
    let mut was_told = false;
    while let Some(frame) = Frame::next(&mut client).await {
        was_told |= frame.kind == GOAWAY && frame.code() == 0;
    }
    assert!(was_told);
}
