//! What is said arrives, byte for byte: with every suite, between sides of other suites, in pieces of any size, whatever
//! stood half read when the kernel took over, and while keys change.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use harness::agent::noise::Noise;
use harness::agent::{Agent, AgentConfig, AgentTls};
use harness::process::eventually;
use harness::proxy_under_test::ProxyUnderTest;
use harness::raw_client::RawClient;
use harness::virtual_machine::Kernel;
use tokio_rustls::rustls::SupportedCipherSuite;

use crate::peer::{Heard, Peer, SUITES, TLS12, TLS13, is_tls13};
use crate::scene::{Front, SWITCHING, UPGRADE, with_kernel_tls, with_kernel_tls_of};

const MIB: usize = 1 << 20;
/// Bytes that are on their way at the most: they fit into the buffers, so that two who speak before they hear don't stop.
const WINDOW: usize = 256 * 1024;

pub(crate) fn noise(count: usize) -> Vec<u8> {
    Noise::new(count as u64).bytes()
}

/// Says all of it in pieces of one byte to 100 kB, and hears it again.
pub(crate) fn exchange(peer: &mut Peer, bytes: &[u8]) {
    let (mut said, mut heard) = (0, 0);
    while heard < bytes.len() {
        while said < bytes.len() && said - heard < WINDOW {
            let piece = fastrand::usize(1..=1 << fastrand::u32(0..17)).min(bytes.len() - said);
            assert!(peer.say(&bytes[said..said + piece]));
            said += piece;
        }
        match peer.hear() {
            Heard::Bytes(echo) => {
                assert!(bytes[heard..].starts_with(&echo), "the echo differs behind {heard} bytes");
                heard += echo.len();
            }
            other => panic!("{other:?} behind {heard} bytes"),
        }
    }
}

/// Says again what it hears.
pub(crate) fn echo(mut peer: Peer) -> Heard {
    loop {
        match peer.hear() {
            Heard::Bytes(bytes) => assert!(peer.say(&bytes)),
            end => {
                peer.finish();
                return end;
            }
        }
    }
}

#[test]
fn every_suite_of_both_versions_arrives_whatever_the_other_side_has() {
    with_kernel_tls("bytes::every_suite_of_both_versions_arrives_whatever_the_other_side_has", || {
        let front = Front::new("kernel", &[]);
        for (number, suite) in SUITES.into_iter().enumerate() {
            for legs in [[suite, suite], [suite, SUITES[(number + 4) % SUITES.len()]]] {
                let bytes = noise(MIB);
                let client = |mut peer: Peer| {
                    exchange(&mut peer, &bytes);
                    front.expects_in_kernel(&legs);
                    peer.finish();
                    peer.rest()
                };
                let (rest, end, written) = front.session(legs, client, echo);
                assert_eq!((rest, end), ((Vec::new(), Heard::Goodbye), Heard::Goodbye));
                assert_eq!(
                    (&*written.end_reason, written.bytes),
                    ("client-ended", [MIB as u64; 2]),
                    "{legs:?}"
                );
            }
        }
    });
}

#[test]
fn a_long_echo_arrives() {
    with_kernel_tls("bytes::a_long_echo_arrives", || {
        let front = Front::new("kernel", &[]);
        // Much takes long in an emulated machine: once is enough for it.
        let (suite, count) = if front.renews_keys() { (TLS13, 64 * MIB) } else { (TLS12, 16 * MIB) };
        let bytes = noise(count);
        let client = |mut peer: Peer| {
            exchange(&mut peer, &bytes);
            front.expects_in_kernel(&[suite, suite]);
            peer.finish();
            peer.rest()
        };
        let (rest, end, written) = front.session([suite, suite], client, echo);
        assert_eq!((rest, end), ((Vec::new(), Heard::Goodbye), Heard::Goodbye));
        assert_eq!(written.bytes, [count as u64; 2]);
    });
}

/// The kernel takes over while more is there already, and while a record is cut anywhere.
#[test]
fn bytes_right_behind_the_heads_arrive_wherever_a_record_is_cut() {
    with_kernel_tls("bytes::bytes_right_behind_the_heads_arrive_wherever_a_record_is_cut", || {
        let front = Front::new("kernel", &[]);
        let bytes = noise(40_000);
        for suite in [TLS12, TLS13] {
            for cut in [1, 3, 5, 6, 20, 1000, 16_000, 16_406, 16_407, 30_000] {
                thread::scope(|scope| {
                    let agent = scope.spawn(|| {
                        let mut peer = front.accept(suite);
                        peer.head();
                        // The head is a record of its own: behind it one that is cut.
                        let mut flight = peer.sealed(SWITCHING);
                        let cut = flight.len() + cut;
                        flight.extend(peer.sealed(&bytes));
                        peer.send(&flight[..cut]);
                        thread::sleep(Duration::from_millis(50));
                        peer.send(&flight[cut..]);
                        assert!(peer.bytes(bytes.len()) == bytes);
                        exchange(&mut peer, &bytes);
                        peer.finish();
                    });
                    let mut peer = Peer::client(front.address(), suite);
                    let mut flight = peer.sealed(UPGRADE);
                    let cut = flight.len() + cut;
                    flight.extend(peer.sealed(&bytes));
                    peer.send(&flight[..cut]);
                    thread::sleep(Duration::from_millis(50));
                    peer.send(&flight[cut..]);
                    assert!(peer.head().starts_with("HTTP/1.1 101"));
                    assert!(peer.bytes(bytes.len()) == bytes);
                    front.expects_in_kernel(&[suite, suite]);
                    assert_eq!(echo(peer), Heard::Goodbye);
                    agent.join().unwrap();
                });
            }
        }
    });
}

#[test]
fn a_side_that_takes_nothing_for_a_while_gets_all_of_it() {
    with_kernel_tls("bytes::a_side_that_takes_nothing_for_a_while_gets_all_of_it", || {
        let front = Front::new("kernel", &[]);
        let bytes = noise(8 * MIB);
        for suite in [TLS12, TLS13] {
            let client = |mut peer: Peer| {
                thread::sleep(Duration::from_secs(1));
                let some = peer.bytes_of(MIB);
                thread::sleep(Duration::from_secs(1));
                let (rest, end) = peer.rest();
                (some + rest.len(), bytes.ends_with(&rest), end)
            };
            let agent = |mut peer: Peer| {
                assert!(peer.say(&bytes));
                peer.finish();
                peer.rest()
            };
            let (heard, _, written) = front.session([suite, suite], client, agent);
            assert_eq!(heard, (bytes.len(), true, Heard::Goodbye));
            assert_eq!(written.bytes, [0, bytes.len() as u64]);
        }
    });
}

/// What a client takes at a time, and how often: some 1 MB/s.
const SIP: usize = 10_000;
const SIP_TIME: Duration = Duration::from_millis(10);
/// Before what stands is measured, and while it is.
const SIPS: [usize; 2] = [100, 100];

/// The most bytes that stand between an agent that floods and a client that is slow.
fn standing(front: &Front, suite: SupportedCipherSuite) -> usize {
    let (said, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let agent = |peer: Peer| {
        let (mut peer, bytes) = (peer.with_small_buffers(), noise(SIP));
        while !is_over.load(Ordering::Relaxed) && peer.say(&bytes) {
            said.fetch_add(bytes.len(), Ordering::Relaxed);
        }
        peer.finish();
        peer.rest().1
    };
    let client = |peer: Peer| {
        let (mut peer, mut heard, mut most) = (peer.with_small_buffers(), 0, 0);
        for sip in 0..SIPS[0] + SIPS[1] {
            thread::sleep(SIP_TIME);
            heard += peer.bytes(SIP).len();
            if sip >= SIPS[0] {
                most = most.max(said.load(Ordering::Relaxed).saturating_sub(heard));
            }
        }
        is_over.store(true, Ordering::Relaxed);
        let end = peer.rest().1;
        peer.finish();
        (most, end)
    };
    let ((most, client), agent, _) = front.session([suite, suite], client, agent);
    assert_eq!((client, agent), (Heard::Goodbye, Heard::Goodbye));
    most
}

#[test]
fn no_more_stands_for_a_slow_client_than_where_the_program_does_the_tls() {
    with_kernel_tls("bytes::no_more_stands_for_a_slow_client_than_where_the_program_does_the_tls", || {
        let [user, kernel] = ["user", "kernel"].map(|by| Front::new(by, &[]));
        let unbounded = Front::new("kernel", &["--queue-target=0s"]);
        let suite = if kernel.renews_keys() { TLS13 } else { TLS12 };
        let [user, kernel, unbounded] = [user, kernel, unbounded].map(|front| standing(&front, suite));
        let found = format!("{user} bytes stand, in the kernel {kernel}, without a bound {unbounded}");
        println!("{found}");
        assert!(kernel <= user + user / 2, "{found}");
        // What is counted besides, in the sides' own sockets, is the smaller part of it.
        assert!(kernel <= unbounded / 2, "{found}");
    });
}

/// A pipe has places for so many records, whatever their size.
#[test]
fn small_records_among_large_ones_arrive_at_a_side_that_is_slow() {
    with_kernel_tls("bytes::small_records_among_large_ones_arrive_at_a_side_that_is_slow", || {
        let front = Front::new("kernel", &[]);
        let bytes = noise(MIB);
        for suite in [TLS12, TLS13] {
            let mut sizes = [100_000, 40_000].into_iter().chain(std::iter::repeat_n(7, 200)).cycle();
            let agent = |mut peer: Peer| {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                    assert!(peer.say(now));
                    rest = later;
                }
                peer.finish();
                peer.rest().1
            };
            let client = |mut peer: Peer| {
                let mut heard = Vec::new();
                loop {
                    thread::sleep(Duration::from_millis(1));
                    match peer.hear() {
                        Heard::Bytes(more) => heard.extend(more),
                        end => return (heard == bytes, end),
                    }
                }
            };
            let (heard, _, _) = front.session([suite, suite], client, agent);
            assert_eq!(heard, (true, Heard::Goodbye));
        }
    });
}

#[test]
fn keys_that_a_side_changes_amid_its_bytes_are_followed() {
    with_kernel_tls("bytes::keys_that_a_side_changes_amid_its_bytes_are_followed", || {
        let front = Front::new("kernel", &[]);
        // The other leg may be the program's, or the kernel's with keys that never change.
        for legs in [[TLS13, TLS13], [TLS13, TLS12], [TLS12, TLS13]] {
            let bytes = noise(300_000);
            let client = |mut peer: Peer| {
                for turn in 0..12 {
                    if turn % 3 != 2 && is_tls13(legs[0]) {
                        peer.renew_keys();
                    }
                    exchange(&mut peer, &bytes[..if turn % 2 == 0 { bytes.len() } else { 100 }]);
                }
                front.expects_in_kernel(&legs);
                peer.finish();
                peer.rest()
            };
            let agent = |mut peer: Peer| {
                let mut count = 0;
                loop {
                    match peer.hear() {
                        Heard::Bytes(bytes) => {
                            count += 1;
                            if count % 7 == 0 && is_tls13(legs[1]) {
                                peer.renew_keys();
                            }
                            assert!(peer.say(&bytes));
                        }
                        end => {
                            peer.finish();
                            return end;
                        }
                    }
                }
            };
            let (rest, end, written) = front.session(legs, client, agent);
            assert_eq!((rest, end), ((Vec::new(), Heard::Goodbye), Heard::Goodbye), "{legs:?}");
            let count = 6 * (bytes.len() as u64 + 100);
            assert_eq!((&*written.end_reason, written.bytes), ("client-ended", [count; 2]));
        }
    });
}

/// Runs something of tokio's.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

/// One side without TLS, whose bytes need no key.
#[test]
fn sides_without_tls_are_spliced_with_sides_that_have_it() {
    with_kernel_tls("bytes::sides_without_tls_are_spliced_with_sides_that_have_it", || {
        block_on(async {
            for (tls, mode) in [(AgentTls::Off, "--agent-tls=off"), (AgentTls::Tls12, "--agent-tls=insecure")]
            {
                let agent = Agent::start(AgentConfig { tls, ..AgentConfig::default() }).await.unwrap();
                let front = ProxyUnderTest::start(agent.address, &[mode, "--session-tls=kernel"]).await;
                for _ in 0..2 {
                    echoes(RawClient::plain(front.plain()).await, &front).await;
                    echoes(RawClient::secure(front.secure()).await, &front).await;
                }
            }
        });
    });
}

async fn echoes<S: harness::raw_client::Wire>(mut client: RawClient<S>, front: &ProxyUnderTest) {
    client.say(front.upgrade("/echo")).await;
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 101"));
    let payload = noise(60_000);
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    // Binary and whole, with a mask of zeros (RFC 6455 5.2).
    let frame = [&[0x82, 0xfe, length[0], length[1], 0, 0, 0, 0], &payload[..]].concat();
    for _ in 0..20 {
        client.say(&frame).await;
        let echo = client.bytes(4 + payload.len()).await;
        assert!(echo.ends_with(&payload), "{} bytes", echo.len());
    }
}

#[test]
fn five_hundred_sessions_run_at_a_time() {
    const SESSIONS: usize = 500;
    // Handshakes are slow in an emulated machine: one is enough for them.
    with_kernel_tls_of(&[Kernel::Backported], "bytes::five_hundred_sessions_run_at_a_time", || {
        block_on(async {
            let agent =
                Agent::start(AgentConfig { tls: AgentTls::Tls12, ..AgentConfig::default() }).await.unwrap();
            let flags = [
                "--session-tls=kernel",
                "--workers=2",
                "--client-connections-max=1000",
                "--client-rate=10000",
            ];
            let front = ProxyUnderTest::start(agent.address, &flags).await;
            let mut clients = Vec::new();
            for _ in 0..SESSIONS {
                let mut client = RawClient::secure(front.secure()).await;
                client.say(front.upgrade("/echo")).await;
                assert!(client.head().await.unwrap().starts_with("HTTP/1.1 101"));
                clients.push(client);
            }
            for turn in 0..2_u8 {
                for client in &mut clients {
                    client.say([0x82, 0x82, 0, 0, 0, 0, b'h', turn]).await;
                }
                for client in &mut clients {
                    assert_eq!(client.bytes(4).await, [0x82, 2, b'h', turn]);
                }
            }
            eventually("the sessions are over", || {
                clients.clear();
                (agent.seen.websockets_open() == 0).then_some(())
            });
            front.recovers().await;
        });
    });
}
