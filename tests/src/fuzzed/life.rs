//! A whole life of a connection on a simulated wire, in which client and agent say whatever the bytes say, when they
//! say it, by HTTP/1.1 or in frames of HTTP/2. It has to end, an agent must never be sent what is no request, and a client
//! of HTTP/2 nothing but frames.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use clap::Parser;
use dcv_splice::access::admission::Admission;
use dcv_splice::access::pool_cookie::PoolCookies;
use dcv_splice::agents::health::FailureMarks;
use dcv_splice::agents::known::KnownAgents;
use dcv_splice::agents::session_resolver::SessionResolver;
use dcv_splice::config::CommandLine;
use dcv_splice::http::h1::head::{HeadEnd, HeadLimits};
use dcv_splice::http::message::RequestHead;
use dcv_splice::observe::access_log::AccessLog;
use dcv_splice::tls::Acceptor;
use dcv_splice::transport::stream::Stream;
use dcv_splice::worker::context::{Generation, ProcessState, SharedState};
use dcv_splice::worker::load_balancer::LoadBalancer;
use tokio::task::LocalSet;

use crate::simulated::{NetworkConditions, Wire, World, serve, wire};

use super::choice;

/// No life may take longer on virtual time: every limit of the flags, one after the other, and more.
const BOUND: Duration = Duration::from_hours(3);
const FLAGS: [&str; 9] = [
    "dcv-splice",
    "--agents=10.0.0.0/8",
    "--workers=1",
    "--header-timeout=5s",
    "--body-idle-timeout=5s",
    "--response-timeout=5s",
    "--client-keepalive-timeout=5s",
    "--session-idle-timeout=20s",
    "--half-closed-timeout=5s",
];
const HTTP2: [&str; 2] = ["--http2=on", "--http2-websocket=on"];
/// What a client of HTTP/2 says first (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's header, and the most behind it, as nobody has asked for more (RFC 9113 4.1, 4.2).
const FRAME_HEAD_BYTES: usize = 9;
const FRAME_BYTES_MAX: usize = 16_384;
/// Kinds of frames (RFC 9113 6).
const RST_STREAM: u8 = 3;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
/// For what agents are sent.
const WIDE: HeadLimits =
    HeadLimits { header_size_max: 1 << 20, request_line_max: 1 << 20, header_count_max: 256 };

/// What happens next.
enum Step<'a> {
    ClientSays(&'a [u8]),
    AgentSays(&'a [u8]),
    ClientEnds,
    AgentEnds,
    Reset,
    Passes(Duration),
}

/// Steps as the bytes say: what, how much, and what is said.
fn steps(mut data: &[u8]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    while let [what, length, rest @ ..] = data {
        let (said, left) = rest.split_at((usize::from(*length) * 4).min(rest.len()));
        data = rest;
        steps.push(match what % 8 {
            0..3 => {
                data = left;
                Step::ClientSays(said)
            }
            3..5 => {
                data = left;
                Step::AgentSays(said)
            }
            5 => [Step::ClientEnds, Step::AgentEnds, Step::Reset]
                .into_iter()
                .nth(usize::from(*length) % 3)
                .unwrap_or(Step::Reset),
            _ => Step::Passes(Duration::from_millis(1 << (length % 15))),
        });
    }
    steps
}

/// The agent's end of each connection that was made, and what came of it.
#[derive(Default)]
struct Agents {
    wires: RefCell<Vec<Wire>>,
    received: RefCell<Vec<Vec<u8>>>,
}

impl Agents {
    /// Says that on the connection made last, where there is one.
    fn say(&self, bytes: &[u8]) {
        if let Some(wire) = self.wires.borrow_mut().last_mut() {
            say(wire, bytes);
        }
    }

    fn listen(&self) {
        let mut received = self.received.borrow_mut();
        let mut wires = self.wires.borrow_mut();
        received.resize(wires.len(), Vec::new());
        for (wire, received) in wires.iter_mut().zip(received.iter_mut()) {
            hear(wire, received);
        }
    }
}

/// What does not fit is lost: this side does not wait.
fn say(wire: &mut Wire, mut bytes: &[u8]) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while let (false, Poll::Ready(Ok(sent))) = (bytes.is_empty(), wire.poll_send(&mut cx, bytes)) {
        bytes = &bytes[sent..];
    }
}

/// The wire may put it off.
async fn say_all(wire: &mut Wire, mut bytes: &[u8]) {
    while let (false, Ok(sent)) = (bytes.is_empty(), poll_fn(|cx| wire.poll_send(cx, bytes)).await) {
        bytes = &bytes[sent..];
    }
}

fn hear(wire: &mut Wire, received: &mut Vec<u8>) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut room = [0; 4096];
    while let Poll::Ready(Ok(got @ 1..)) = wire.poll_recv(&mut cx, &mut room) {
        received.extend_from_slice(&room[..got]);
    }
}

fn shared(is_http2: bool) -> SharedState {
    let flags = FLAGS.iter().chain(if is_http2 { &HTTP2[..] } else { &[] });
    let config = CommandLine::parse_from(flags).flags.resolve().expect("flags that can be meant");
    thread_local! {
        static ACCEPTOR: Acceptor = Acceptor::new(&[]).expect("an acceptor");
    }
    let admission = Admission::new(config.clients.clone(), config.client_limits);
    SharedState {
        config: Arc::new(config),
        acceptor: ACCEPTOR.with(Acceptor::clone),
        log: AccessLog::default(),
        admission,
        passwords: None,
        process: ProcessState::new(
            LoadBalancer::new(1).0,
            FailureMarks::default(),
            SessionResolver::default(),
        ),
        resolver_ca: None,
        pool_cookies: PoolCookies::default(),
        agents: KnownAgents::default(),
    }
}

/// A life as the bytes say.
pub fn whole_life(data: &[u8]) {
    life(data, false);
}

/// A life as the bytes say, by a client that has begun with HTTP/2.
pub fn http2_life(data: &[u8]) {
    check_frames(&life(data, true));
}

/// What the client has heard.
fn life(data: &[u8], is_http2: bool) -> Vec<u8> {
    let (options, data) = choice(data);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let (agents, heard) = runtime.expect("a runtime").block_on(live(options, data, is_http2));
    for received in agents.received.borrow().iter().filter(|received| !received.is_empty()) {
        check(received);
    }
    heard
}

/// What a client is sent are frames that a server may send, to streams that a client may open (RFC 9113 5.1.1, 6).
fn check_frames(mut heard: &[u8]) {
    while let Some((head, rest)) = heard.split_at_checked(FRAME_HEAD_BYTES) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        assert!(length <= FRAME_BYTES_MAX && head[3] != PUSH_PROMISE && head[3] <= CONTINUATION, "{head:?}");
        // What has no right to be there may be reset all the same.
        assert!(stream == 0 || stream % 2 == 1 || head[3] == RST_STREAM, "{head:?}");
        heard = rest.get(length..).unwrap_or_default();
    }
}

/// What an agent is sent begins with a request to it, or with the beginning of one that was given up.
fn check(received: &[u8]) {
    let found = HeadEnd::default().find(received, &WIDE).expect("a head");
    let Some(length) = found else { return };
    let head = RequestHead::parse(&received[..length], &WIDE).expect("a valid head");
    assert!(head.headers.iter().any(|header| header.is("X-Real-IP") && header.value == b"192.0.2.1"));
}

async fn live(options: u8, data: &[u8], is_http2: bool) -> (Rc<Agents>, Vec<u8>) {
    let agents = Rc::new(Agents::default());
    let conditions = NetworkConditions {
        chunk_max: 1 + usize::from(options) * 8,
        capacity: 1 << 20,
        reluctance: options % 40,
    };
    let made = agents.clone();
    let on_connect = move |_| {
        let (near, far) = wire(conditions, 7, None);
        made.wires.borrow_mut().push(far);
        Ok(near)
    };
    let world = World::new(Duration::from_millis(1), on_connect);
    let generation = Rc::new(Generation::new(world, shared(is_http2), Rc::default()));
    let (near, mut far) = wire(conditions, 9, None);
    if is_http2 {
        say_all(&mut far, PREFACE).await;
    }
    let client = SocketAddr::from(([192, 0, 2, 1], 40_000));
    let both = async { tokio::join!(serve(&generation, near, client, false), act(far, data, &agents)) };
    let whole = tokio::time::timeout(BOUND, LocalSet::new().run_until(both)).await;
    let ((), heard) = whole.expect("an end is in sight");
    generation.pool.borrow_mut().clear();
    agents.listen();
    let asked = generation.net.asked.take();
    assert!(asked.iter().all(|agent| agent.to_string().starts_with("10.")), "{asked:?}");
    (agents, heard)
}

/// Lets it happen.
async fn act(mut client: Wire, data: &[u8], agents: &Agents) -> Vec<u8> {
    let mut heard = Vec::new();
    for step in steps(data) {
        match step {
            Step::ClientSays(bytes) => say(&mut client, bytes),
            Step::AgentSays(bytes) => agents.say(bytes),
            Step::ClientEnds => drop(client.finish()),
            Step::AgentEnds => drop(agents.wires.borrow_mut().last_mut().map(Wire::finish)),
            Step::Reset => client.reset(),
            Step::Passes(time) => tokio::time::sleep(time).await,
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        hear(&mut client, &mut heard);
        agents.listen();
    }
    // Nobody is there any more, and nobody has said so: what ends it now is a limit.
    tokio::time::sleep(Duration::from_secs(200)).await;
    hear(&mut client, &mut heard);
    heard
}
