//! Ends of sessions, in order and not: both sides hear of them, and they are written down, as where the program does the
//! records.

use std::thread;
use std::time::Duration;

use tokio_rustls::rustls::SupportedCipherSuite;

use crate::peer::{Heard, Peer, TLS12, TLS13};
use crate::scene::{Front, Written, with_kernel_tls};

/// Enough for bytes to be moved inside the kernel.
const BULK: usize = 600_000;
/// A close frame of an agent, and of a client with a mask of zeros (RFC 6455 5.5.1).
const AGENTS_CLOSE: &[u8] = b"\x88\x02\x03\xe8";
const CLIENTS_CLOSE: &[u8] = b"\x88\x82\0\0\0\0\x03\xe8";

/// What a side does, and what it hears until the other has ended.
type Script = fn(Peer) -> (usize, Heard);

fn rest(mut peer: Peer) -> (usize, Heard) {
    let (bytes, end) = peer.rest();
    (bytes.len(), end)
}

fn ends(mut peer: Peer) -> (usize, Heard) {
    peer.finish();
    rest(peer)
}

fn ends_behind_bulk(mut peer: Peer) -> (usize, Heard) {
    assert!(peer.say(&vec![7; BULK]));
    ends(peer)
}

fn says_goodbye_alone(mut peer: Peer) -> (usize, Heard) {
    assert!(peer.say(b"last words"));
    peer.say_goodbye();
    rest(peer)
}

fn hears_then_ends(mut peer: Peer) -> (usize, Heard) {
    let (bytes, end) = peer.rest();
    // It may go on when the other has ended.
    peer.say(&vec![9; BULK]);
    peer.finish();
    (bytes.len(), end)
}

fn is_cut(mut peer: Peer) -> (usize, Heard) {
    assert!(peer.say(b"some"));
    peer.cut();
    rest(peer)
}

fn is_cut_behind_bulk(mut peer: Peer) -> (usize, Heard) {
    assert!(peer.say(&vec![7; BULK]));
    peer.cut();
    rest(peer)
}

fn is_cut_behind_a_close_frame(mut peer: Peer) -> (usize, Heard) {
    assert!(peer.say(CLIENTS_CLOSE));
    peer.cut();
    rest(peer)
}

/// The close frame is a record of its own, or the end of one.
fn is_cut_behind_bulk_and_a_close_frame(mut peer: Peer) -> (usize, Heard) {
    let message = [&b"\x82\x7f\0\0\0\0\0\x09\x27\xc0"[..], &vec![7; BULK]].concat();
    assert!(peer.say(&message) && peer.say(AGENTS_CLOSE));
    peer.cut();
    rest(peer)
}

fn is_cut_behind_frames_and_a_close_frame(mut peer: Peer) -> (usize, Heard) {
    assert!((0..40).all(|_| peer.say(b"\x82\x02hi")) && peer.say(AGENTS_CLOSE));
    peer.cut();
    rest(peer)
}

/// The other side has heard of it before it does anything.
fn is_reset(mut peer: Peer) -> (usize, Heard) {
    assert!(peer.say(b"some"));
    let heard = peer.bytes(4).len();
    peer.reset();
    (heard, Heard::Cut)
}

fn answers_and_hears(mut peer: Peer) -> (usize, Heard) {
    let heard = peer.bytes(4).len();
    assert!(peer.say(b"more"));
    let (bytes, end) = peer.rest();
    (heard + bytes.len(), end)
}

/// What it was sent stands in sockets before it listens.
fn hears_late(peer: Peer) -> (usize, Heard) {
    thread::sleep(Duration::from_millis(600));
    hears_then_ends(peer)
}

const ENDS: [(&str, Script, Script); 13] = [
    ("the client ends, the agent goes on", ends, hears_then_ends),
    ("the agent ends, the client goes on", hears_then_ends, ends),
    ("the client ends behind much", ends_behind_bulk, hears_then_ends),
    ("the client says goodbye without a FIN", says_goodbye_alone, hears_then_ends),
    ("the agent says goodbye without a FIN", hears_then_ends, says_goodbye_alone),
    ("the client is cut", is_cut, hears_then_ends),
    ("the agent is cut behind much", hears_then_ends, is_cut_behind_bulk),
    ("the client leaves with a close frame", is_cut_behind_a_close_frame, hears_then_ends),
    (
        "the agent leaves with a close frame behind much",
        hears_then_ends,
        is_cut_behind_bulk_and_a_close_frame,
    ),
    (
        "the agent leaves with a close frame behind some",
        hears_then_ends,
        is_cut_behind_frames_and_a_close_frame,
    ),
    ("the agent is cut behind much that stands", hears_late, is_cut_behind_bulk),
    ("the client is cut behind much that stands", is_cut_behind_bulk, hears_late),
    ("the client is reset", is_reset, answers_and_hears),
];

type Outcome = ((usize, Heard), (usize, Heard), Written);

fn outcome(front: &Front, suite: SupportedCipherSuite, client: Script, agent: Script) -> Outcome {
    front.session([suite, suite], client, agent)
}

#[test]
fn every_end_is_heard_and_written_as_without_the_kernel() {
    with_kernel_tls("ends::every_end_is_heard_and_written_as_without_the_kernel", || {
        let fronts = ["user", "kernel"].map(|by| Front::new(by, &[]));
        for suite in [TLS12, TLS13] {
            for (what, client, agent) in ENDS {
                let [program, kernel] = fronts.each_ref().map(|front| outcome(front, suite, client, agent));
                println!("{what}: {program:?}");
                assert_eq!(kernel, program, "{what}, {suite:?}");
            }
        }
    });
}
