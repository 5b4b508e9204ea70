//! Whole lives of a connection over a simulated wire on virtual time: the proxy's real code from accept to close,
//! a client and agents that say what a seed planned, and wires that cut, delay, hold back and break. Every life
//! is bounded in virtual time.
// A test's future may be large: there is one.
#![allow(clippy::unwrap_used, clippy::large_futures)]

#[path = "simulation/http2.rs"]
mod http2;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/queue.rs"]
mod queue;
#[path = "simulation/talk.rs"]
mod talk;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use dcv_splice::access::admission::Admission;
use dcv_splice::access::pool_cookie::PoolCookies;
use dcv_splice::agents::connectors::Connectors;
use dcv_splice::agents::health::FailureMarks;
use dcv_splice::agents::known::KnownAgents;
use dcv_splice::agents::session_resolver::SessionResolver;
use dcv_splice::config::CommandLine;
use dcv_splice::observe::access_log::AccessLog;
use dcv_splice::runtime::drain::Phase;
use dcv_splice::tls::{Acceptor, AgentTrust, Connector, TlsEnd};
use dcv_splice::transport::endpoint::Endpoint;
use dcv_splice::transport::stream::Stream;
use dcv_splice::worker::context::{Generation, ProcessState, SharedState};
use dcv_splice::worker::load_balancer::LoadBalancer;
use harness::simulated::{NetworkConditions, Wire, World, serve, wire};
use plan::{Body, Ends, Exchange, Plan, Session};
use talk::{FarEnd, decode, far_agent, far_client};
use tokio::task::LocalSet;
use tokio::time::Instant;

/// The agent of every request.
const AGENT: &str = "10.1.2.3:8443";

/// What the lives of one test share; making a certificate takes longer than living.
struct Fixture {
    proxy: Acceptor,
    agent: Acceptor,
    connector: Connector,
}

impl Fixture {
    fn new() -> Self {
        Self {
            proxy: Acceptor::new(&[]).unwrap(),
            agent: Acceptor::new(&[]).unwrap(),
            connector: Connector::new(&AgentTrust::Anything).unwrap(),
        }
    }

    fn shared(&self, plan: &Plan, flags: &[&str]) -> SharedState {
        let line = ["dcv-splice", "--agents", "10.0.0.0/8", "--workers", "1"].iter().chain(flags);
        let config = CommandLine::parse_from(line).flags.resolve().unwrap();
        let admission = Admission::new(config.clients.clone(), config.client_limits);
        SharedState {
            config: Arc::new(config),
            acceptor: self.proxy.clone(),
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
            agents: KnownAgents {
                connectors: Connectors::for_all(plan.agent_tls.then(|| self.connector.clone())),
                ..KnownAgents::default()
            },
        }
    }
}

/// What is left of a life.
struct Life {
    client: FarEnd,
    agents: Vec<FarEnd>,
    start: Instant,
    took: Duration,
    asked: Vec<SocketAddr>,
}

/// Where a life's wires break, counted in receives and sends of the proxy.
#[derive(Clone, Default)]
struct Breaks {
    client: Option<Rc<Cell<u32>>>,
    agent: Option<Rc<Cell<u32>>>,
}

async fn live(fixture: &Fixture, plan: Plan, seed: u64, flags: &[&str], breaks: Breaks) -> Life {
    let plan = Rc::new(plan);
    let mut rng = fastrand::Rng::with_seed(seed);
    let (conditions, agent_conditions) =
        (NetworkConditions::of(&mut rng, plan.size()), NetworkConditions::of(&mut rng, plan.size()));
    let agents = Rc::new(RefCell::new(Vec::new()));
    let next = Rc::new(Cell::new(0));
    let on_connect = {
        let (plan, agents, next, acceptor) =
            (plan.clone(), agents.clone(), next.clone(), fixture.agent.clone());
        let rng = RefCell::new(rng.fork());
        move |_| {
            let (near, far) = wire(agent_conditions, rng.borrow_mut().u64(..), breaks.agent.clone());
            let tls = if plan.agent_tls { acceptor.accept().unwrap() } else { TlsEnd::plain() };
            let (plan, agents, next) = (plan.clone(), agents.clone(), next.clone());
            tokio::task::spawn_local(async move {
                let talk = far_agent(Endpoint::new(far, tls), &plan, &next).await;
                agents.borrow_mut().push(talk);
            });
            Ok(near)
        }
    };
    let world = World::new(Duration::from_millis(1), on_connect);
    let generation = Rc::new(Generation::new(world, fixture.shared(&plan, flags), Rc::default()));
    // The real loop allows 16 calls to set-up work; fewer find more places to be interrupted in.
    generation.net.tighten([3, 5, 16][rng.usize(..3)]);
    let (near, far) = wire(conditions, seed, breaks.client);
    let tls = if plan.client_tls {
        fixture.connector.connect(IpAddr::from([192, 0, 2, 9])).unwrap()
    } else {
        TlsEnd::plain()
    };
    let start = Instant::now();
    let local = LocalSet::new();
    let whole = local.run_until(async {
        let client = SocketAddr::from(([192, 0, 2, 1], 40_000));
        let served = serve(&generation, near, client, plan.client_tls);
        let talks = async {
            if plan.http2 {
                http2::far_client(far, &plan).await
            } else {
                far_client(Endpoint::new(far, tls), &plan).await
            }
        };
        let (client, ()) = tokio::join!(talks, served);
        generation.drain.enter(Phase::Draining);
        generation.pool.borrow_mut().clear();
        client
    });
    let client =
        tokio::time::timeout(BOUND, whole).await.unwrap_or_else(|_| panic!("seed {seed}: no end in sight"));
    let _ = tokio::time::timeout(BOUND, local).await;
    let asked = generation.net.asked.borrow().clone();
    Life { client, agents: agents.take(), start, took: start.elapsed(), asked }
}

/// No life may take longer than this, whatever breaks in it: the limits of the flags below, and some more.
const BOUND: Duration = Duration::from_secs(400);

/// All seeds below `count`; or the one in the environment's `SEED`, to replay a life that has failed.
fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..count,
    }
}

fn on_virtual_time(lives: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(lives);
}

#[test]
fn every_byte_arrives_under_all_conditions() {
    on_virtual_time(async {
        let fixture = Fixture::new();
        for seed in seeds(2000) {
            let plan = Plan::of(seed);
            let life = live(&fixture, plan.clone(), seed, &[], Breaks::default()).await;
            check_whole(&plan, &life, seed);
            let plan = plan.with_http2();
            let life = live(&fixture, plan.clone(), seed, HTTP2, Breaks::default()).await;
            check_whole(&plan, &life, seed);
        }
    });
}

const HTTP2: &[&str] = &["--http2", "on", "--http2-websocket", "on"];

fn check_whole(plan: &Plan, life: &Life, seed: u64) {
    let agents: Vec<&FarEnd> = life.agents.iter().collect();
    let asked: Vec<_> = agents.iter().flat_map(|talk| &talk.messages).collect();
    assert_eq!(asked.len(), plan.exchanges.len(), "seed {seed}: requests seen by agents, {plan:?}");
    assert_eq!(life.client.messages.len(), plan.exchanges.len(), "seed {seed}: answers");
    for (number, exchange) in plan.exchanges.iter().enumerate() {
        let request = asked.iter().find(|message| message.starts_with(&format!("{number}:"))).unwrap();
        assert!(request.ends_with(&exchange.request.digest()), "seed {seed}: request {number}: {request}");
        let answer = &life.client.messages[number];
        assert!(answer.ends_with(&exchange.response.digest()), "seed {seed}: answer {number}: {answer}");
    }
    if let Some(session) = &plan.session {
        let agent = agents.iter().find_map(|talk| talk.session.as_ref()).unwrap();
        let client = life.client.session.as_ref().unwrap();
        let (up, down) = (agent.0 == session.to_agent, client.0 == session.to_client);
        assert!(
            up && down,
            "seed {seed}: {} to the agent, {} to the client of {plan:?}",
            agent.0.len(),
            client.0.len()
        );
        assert_eq!((agent.1, client.1), session.ends_seen(plan), "seed {seed}: {plan:?}");
    }
    assert!(life.asked.iter().all(|agent| agent.to_string() == AGENT), "seed {seed}: {:?}", life.asked);
    assert!(life.took < Duration::from_secs(10), "seed {seed} took {:?}", life.took);
}

/// Breaks one wire after 1, 2, 3, ... receives and sends, until a life goes through whole.
fn break_everywhere(over_http2: bool, breaks: impl Fn(Rc<Cell<u32>>) -> Breaks) {
    on_virtual_time(async {
        let fixture = Fixture::new();
        let mut broken = 0;
        for seed in seeds(60) {
            let plan = if over_http2 { Plan::of(seed).with_http2() } else { Plan::of(seed) };
            let flags = [LIMITS, if over_http2 { HTTP2 } else { &[] }].concat();
            let step = 1 + u32::try_from(seed % 3).unwrap();
            for at in (1..120).step_by(step as usize) {
                let left = Rc::new(Cell::new(at));
                let life = live(&fixture, plan.clone(), seed, &flags, breaks(left.clone())).await;
                check_prefix(&plan, &life, seed, at);
                if left.get() > 0 {
                    break;
                }
                broken += 1;
            }
        }
        assert!(broken > 1000 || seeds(2).count() == 1, "only {broken} lives were broken");
    });
}

const LIMITS: &[&str] = &[
    "--header-timeout",
    "5s",
    "--body-idle-timeout",
    "5s",
    "--response-timeout",
    "5s",
    "--client-keepalive-timeout",
    "5s",
    "--session-idle-timeout",
    "20s",
    "--half-closed-timeout",
    "5s",
];

/// Nothing may be made up: what arrived is the beginning of what was sent.
fn check_prefix(plan: &Plan, life: &Life, seed: u64, at: u32) {
    let what = format!("seed {seed} broken at {at}");
    for (number, answer) in life.client.messages.iter().enumerate() {
        let planned = plan.exchanges[number].response.digest();
        assert!(answer.ends_with(&planned) || is_refusal(answer), "{what}: answer {number}: {answer}");
    }
    let Some(session) = &plan.session else { return };
    if let Some((got, _)) = &life.client.session {
        let at = got.iter().zip(&session.to_client).position(|(a, b)| a != b);
        assert!(
            session.to_client.starts_with(got),
            "{what}: to the client: {} {} {at:?} {plan:?}",
            got.len(),
            session.to_client.len()
        );
    }
    for (got, _) in life.agents.iter().filter_map(|talk| talk.session.as_ref()) {
        assert!(session.to_agent.starts_with(got), "{what}: to the agent");
    }
    assert!(life.took < Duration::from_mins(2), "{what} took {:?}", life.took);
}

fn is_refusal(answer: &str) -> bool {
    ["502 ", "504 ", "408 "].iter().any(|status| answer.starts_with(status))
}

#[test]
fn a_client_that_breaks_anywhere_is_a_clear_end() {
    break_everywhere(false, |left| Breaks { client: Some(left), agent: None });
    break_everywhere(true, |left| Breaks { client: Some(left), agent: None });
}

#[test]
fn an_agent_that_breaks_anywhere_is_a_clear_end() {
    break_everywhere(false, |left| Breaks { client: None, agent: Some(left) });
    break_everywhere(true, |left| Breaks { client: None, agent: Some(left) });
}

/// A client that says nothing at all, or only the beginning of something, is ended by its limit.
#[test]
fn a_silent_client_is_dropped_after_the_head_time() {
    on_virtual_time(async {
        let fixture = Fixture::new();
        for (client_tls, said, limit) in [
            (true, &b""[..], 60),
            (false, b"", 62),
            (false, b"GET /10.1.2.3/ HTTP/1.1\r\nHo", 62),
            (true, b"\x16\x03\x01", 60),
        ] {
            let plan =
                Plan { client_tls, agent_tls: false, http2: false, exchanges: Vec::new(), session: None };
            let generation = Rc::new(Generation::new(nobody(), fixture.shared(&plan, &[]), Rc::default()));
            let (near, mut far) =
                wire(NetworkConditions { chunk_max: 100, capacity: 1000, reluctance: 0 }, 1, None);
            let start = Instant::now();
            let client = SocketAddr::from(([192, 0, 2, 1], 40_000));
            say(&mut far, said).await;
            tokio::time::timeout(BOUND, serve(&generation, near, client, client_tls)).await.unwrap();
            let took = start.elapsed().as_secs();
            assert!((60..=limit).contains(&took), "{took} s after {said:?}");
        }
    });
}

/// Others have their turn between requests that were sent ahead, however many there are.
#[test]
fn requests_that_were_sent_ahead_are_answered_a_turn_at_a_time() {
    on_virtual_time(async {
        let plan =
            Plan { client_tls: false, agent_tls: false, http2: false, exchanges: Vec::new(), session: None };
        let generation = Rc::new(Generation::new(nobody(), Fixture::new().shared(&plan, &[]), Rc::default()));
        let (near, mut far) =
            wire(NetworkConditions { chunk_max: 100_000, capacity: 100_000, reluctance: 0 }, 1, None);
        let said = b"GET /health HTTP/1.1\r\nHost: p\r\n\r\n".repeat(10);
        say(&mut far, &said).await;
        let client = SocketAddr::from(([192, 0, 2, 1], 40_000));
        tokio::time::timeout(BOUND, serve(&generation, near, client, false)).await.unwrap();
        assert_eq!(generation.net.breaths.get(), 9);
    });
}

fn nobody() -> World {
    World::new(Duration::ZERO, |_| Err(std::io::ErrorKind::ConnectionRefused.into()))
}

/// A wire that takes `capacity` bytes and cuts nothing.
fn calm(capacity: usize) -> (Wire, Wire) {
    wire(NetworkConditions { chunk_max: 1 << 20, capacity, reluctance: 0 }, 1, None)
}

async fn say(wire: &mut Wire, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let sent = poll_fn(|cx| wire.poll_send(cx, bytes)).await.unwrap();
        bytes = &bytes[sent..];
    }
}

/// Receives until `end` has come, or the wire has ended or broken.
async fn hear(wire: &mut Wire, end: &[u8]) -> Vec<u8> {
    let (mut heard, mut room) = (Vec::new(), vec![0; 1 << 20]);
    while !heard.ends_with(end) {
        match poll_fn(|cx| wire.poll_recv(cx, &mut room)).await {
            Ok(received @ 1..) => heard.extend_from_slice(&room[..received]),
            _ => break,
        }
    }
    heard
}

/// A client that has its whole answer may leave: the agent still gets the rest of what it was sent.
#[test]
fn an_upload_arrives_whole_though_its_client_is_gone_after_the_answer() {
    /// Less than one receive, and more than the wire to the agent takes.
    const BODY: usize = 10_000;
    on_virtual_time(async {
        let plan =
            Plan { client_tls: false, agent_tls: false, http2: false, exchanges: Vec::new(), session: None };
        let agents = Rc::new(RefCell::new(Vec::new()));
        let accepted = agents.clone();
        let world = World::new(Duration::ZERO, move |_| {
            let (near, far) = calm(1000);
            accepted.borrow_mut().push(far);
            Ok(near)
        });
        let generation = Rc::new(Generation::new(world, Fixture::new().shared(&plan, &[]), Rc::default()));
        let (near, mut client) = calm(1 << 20);
        let talk = async {
            let head = format!("POST /10.1.2.3/ HTTP/1.1\r\nHost: p\r\nContent-Length: {BODY}\r\n\r\n");
            let body = [&[b'x'; BODY - 3][..], b"end"].concat();
            say(&mut client, &[head.as_bytes(), &body].concat()).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut agent = agents.borrow_mut().pop().unwrap();
            say(&mut agent, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            hear(&mut client, b"ok").await;
            client.reset();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let upload = hear(&mut agent, b"end").await;
            assert!(upload.ends_with(&body), "the agent got {} bytes, head and all", upload.len());
        };
        let served = serve(&generation, near, SocketAddr::from(([192, 0, 2, 1], 40_000)), false);
        tokio::time::timeout(BOUND, async { tokio::join!(talk, served) }).await.unwrap();
    });
}

/// A connection that one client has logged in on is kept no longer than any other, also while that client asks another
/// agent.
#[test]
fn a_login_that_is_not_used_ends_while_its_client_asks_another_agent() {
    on_virtual_time(async {
        let plan =
            Plan { client_tls: false, agent_tls: false, http2: false, exchanges: Vec::new(), session: None };
        let login_ended = Rc::new(Cell::new(None));
        let ended = login_ended.clone();
        let world = World::new(Duration::ZERO, move |address| {
            let ((near, mut far), ended) = (calm(1 << 20), ended.clone());
            tokio::task::spawn_local(async move {
                while hear(&mut far, b"\r\n\r\n").await.ends_with(b"\r\n\r\n") {
                    say(&mut far, b"HTTP/1.1 204 No Content\r\n\r\n").await;
                }
                if address.ip() == IpAddr::from([10, 0, 0, 1]) {
                    ended.set(Some(Instant::now()));
                }
            });
            Ok(near)
        });
        let shared = Fixture::new().shared(&plan, &["--agent-keepalive-timeout=10s"]);
        let generation = Rc::new(Generation::new(world, shared, Rc::default()));
        let (near, mut client) = calm(1 << 20);
        let talk = async {
            let start = Instant::now();
            for agent in [1, 2, 2, 2, 2, 2] {
                let login = if agent == 1 { "Authorization: NTLM alice\r\n" } else { "" };
                say(
                    &mut client,
                    format!("GET /10.0.0.{agent}/ HTTP/1.1\r\nHost: p\r\n{login}\r\n").as_bytes(),
                )
                .await;
                let answer = hear(&mut client, b"\r\n\r\n").await;
                assert!(answer.starts_with(b"HTTP/1.1 204"), "{}", String::from_utf8_lossy(&answer));
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
            let took = login_ended.get().map(|end| end - start);
            drop(client);
            took
        };
        let local = LocalSet::new();
        let served = serve(&generation, near, SocketAddr::from(([192, 0, 2, 1], 40_000)), false);
        let whole = local.run_until(async { tokio::join!(talk, served) });
        let (took, ()) = tokio::time::timeout(BOUND, whole).await.unwrap();
        // It is looked at when the next request comes.
        assert_eq!(took, Some(Duration::from_secs(12)));
    });
}

/// One exchange whose answer waits until the client's body has come whole, or does not.
#[test]
fn an_early_answer_arrives_while_the_request_is_still_sent() {
    on_virtual_time(async {
        let fixture = Fixture::new();
        for seed in seeds(50) {
            let mut plan = Plan::of(seed);
            plan.session = None;
            let mut rng = fastrand::Rng::with_seed(seed);
            let request = Body::chunked(&mut rng, 300_000);
            let response = Body::length(&mut rng, 10_000);
            plan.exchanges = vec![Exchange { request, response, early: true, interim: 0 }];
            let life = live(&fixture, plan.clone(), seed, &[], Breaks::default()).await;
            check_whole(&plan, &life, seed);
        }
    });
}

/// One side stops reading: the other is held back and nothing is lost once it reads on.
#[test]
fn a_reader_that_stops_holds_the_sender_back() {
    on_virtual_time(async {
        let fixture = Fixture::new();
        for seed in 0..20 {
            let mut plan = Plan::of(seed);
            let mut rng = fastrand::Rng::with_seed(seed);
            let ends = Ends::AgentFirst;
            let to_client = Body::length(&mut rng, 3_000_000).bytes;
            plan.exchanges.clear();
            plan.session = Some(Session {
                to_agent: vec![7; 10],
                to_client,
                early: (5, 5),
                ends,
                pause: Duration::from_mins(1),
            });
            let life = live(&fixture, plan.clone(), seed, &[], Breaks::default()).await;
            let got = &life.client.session.as_ref().unwrap().0;
            assert_eq!(got, &plan.session.as_ref().unwrap().to_client, "seed {seed}");
            // The wires take 2 MiB of it at the most; the rest must wait with the agent, not in the proxy.
            let said = life.agents.iter().find_map(|talk| talk.said).unwrap();
            assert!(
                said - life.start >= Duration::from_mins(1),
                "seed {seed}: said after {:?}",
                said - life.start
            );
        }
    });
}

#[test]
fn the_decoder_of_the_test_knows_a_broken_message() {
    assert!(decode(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "GET", true).is_none());
    assert!(
        decode(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "GET", true).is_none()
    );
}
