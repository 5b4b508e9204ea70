//! Records that are no data, or none that a side may send, wherever they stand: the sessions go on or end as where the
//! program opens them, and the sender is told the same.

use std::thread;
use std::time::Duration;

use harness::process::eventually;
use harness::virtual_machine::Kernel;
use tokio_rustls::rustls::SupportedCipherSuite;

use crate::peer::{ALERT, DATA, HANDSHAKE, Heard, Peer, RawPeer, TLS12, TLS13};
use crate::scene::{Front, Written, with_kernel_tls, with_kernel_tls_of};

/// A ticket of an agent's (RFC 8446 4.6.1), and part of one.
const TICKET: &[u8] =
    &[4, 0, 0, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 1, 7, 0, 5, b'a', b'g', b'a', b'i', b'n', 0, 0];
/// As much as fills records, and is moved inside the kernel.
const BULK: usize = 200_000;

/// What a side sends that is no data.
#[derive(Clone, Copy, Debug)]
enum Said {
    /// One record.
    Record(u8, &'static [u8]),
    /// So many that are empty.
    Nothing(usize),
    /// One that was changed on its way.
    Forged,
    /// Bytes as they are.
    Bytes(&'static [u8]),
    /// A message in two records.
    Pieces(u8, &'static [u8]),
}

const SAID: [Said; 19] = [
    Said::Nothing(1),
    Said::Nothing(20),
    Said::Nothing(40),
    Said::Record(ALERT, &[1, 90]),
    Said::Record(ALERT, &[1, 0]),
    Said::Record(ALERT, &[2, 20]),
    Said::Record(ALERT, &[1]),
    Said::Record(ALERT, &[]),
    Said::Record(HANDSHAKE, TICKET),
    Said::Pieces(HANDSHAKE, TICKET),
    Said::Record(HANDSHAKE, &[4, 0, 0]),
    Said::Record(HANDSHAKE, &[0, 0, 0, 0]),
    Said::Record(HANDSHAKE, &[1, 0, 0, 0]),
    Said::Record(HANDSHAKE, &[]),
    Said::Record(20, &[1]),
    Said::Record(99, &[1]),
    Said::Forged,
    Said::Bytes(&[DATA, 3, 3, 0xff, 0xff]),
    Said::Bytes(&[DATA, 9, 9, 0, 1, 1]),
];

/// What the other side says first.
const GO: &[u8] = b"go";
/// How many bytes come before.
const BEFORE: [usize; 3] = [0, 10, BULK];

impl Said {
    fn send(self, peer: &mut RawPeer) {
        match self {
            Self::Record(kind, content) => peer.send(kind, content),
            Self::Nothing(count) => (0..count).for_each(|_| peer.send(DATA, &[])),
            Self::Forged => {
                let mut record = peer.sealed(DATA, b"forged");
                *record.last_mut().unwrap() ^= 1;
                peer.send_bytes(&record);
            }
            Self::Bytes(bytes) => peer.send_bytes(bytes),
            Self::Pieces(kind, content) => {
                let (front, back) = content.split_at(content.len() / 2);
                peer.send(kind, front);
                peer.send(kind, back);
            }
        }
    }
}

/// Says it between bytes; the last alert that is heard.
fn speaks(mut peer: Peer, before: usize, said: Said) -> Option<[u8; 2]> {
    // The session has begun on both sides.
    peer.bytes(GO.len());
    let mut peer = peer.into_records();
    vec![7; before].chunks(16_384).for_each(|piece| peer.send(DATA, piece));
    said.send(&mut peer);
    peer.send(DATA, b"behind");
    peer.send(ALERT, &[1, 0]);
    peer.cut();
    let alert = peer.last_alert();
    match (said, alert) {
        // What is no record is refused by alerts of several names.
        (Said::Bytes(_), Some([2, _])) => Some([2, 0]),
        _ => alert,
    }
}

fn listens(mut peer: Peer) -> (usize, Heard) {
    assert!(peer.say(GO));
    let (bytes, end) = peer.rest();
    peer.finish();
    (bytes.len(), end)
}

type Outcome = (Option<[u8; 2]>, (usize, Heard), Written);

fn outcome(
    front: &Front,
    suite: SupportedCipherSuite,
    is_client: bool,
    before: usize,
    said: Said,
) -> Outcome {
    let suites = [suite, suite];
    if is_client {
        front.session(suites, |peer| speaks(peer, before, said), listens)
    } else {
        let (heard, alert, written) = front.session(suites, listens, |peer| speaks(peer, before, said));
        (alert, heard, written)
    }
}

/// Sends on behind a record that was changed on its way, as much as finds room unread, and listens only then.
fn sends_on(mut peer: Peer) -> (RawPeer, Option<[u8; 2]>) {
    peer.bytes(GO.len());
    let mut peer = peer.into_records();
    Said::Forged.send(&mut peer);
    (0..3).for_each(|_| peer.send(DATA, &[7; 10_000]));
    let alert = peer.last_alert();
    // A socket that is closed with bytes that nobody has read says so at once.
    thread::sleep(Duration::from_millis(200));
    (peer, alert)
}

/// Breaks TLS when nothing more fits into the buffers on the way to it, and listens only then.
fn breaks_off(peer: Peer) -> (u64, Option<[u8; 2]>) {
    let mut peer = peer.into_records();
    peer.send(DATA, GO);
    thread::sleep(Duration::from_secs(1));
    Said::Forged.send(&mut peer);
    let alert = peer.last_alert();
    (peer.heard, alert)
}

fn floods(mut peer: Peer) -> Heard {
    peer.bytes(GO.len());
    // Nobody takes all of it.
    peer.say(&vec![7; 40 * BULK]);
    peer.rest().1
}

#[test]
fn a_side_that_takes_nothing_and_breaks_off_hears_what_was_taken_and_why() {
    const NAME: &str = "records::a_side_that_takes_nothing_and_breaks_off_hears_what_was_taken_and_why";
    with_kernel_tls(NAME, || {
        for by in ["user", "kernel"] {
            let front = Front::new(by, &[]);
            let suite = if front.renews_keys() { TLS13 } else { TLS12 };
            let (told, _, Written { bytes, end_reason }) = front.session([suite, suite], breaks_off, floods);
            assert_eq!((told, &*end_reason), ((bytes[1], Some([2, 20])), "client-broke-tls"), "{by}");
            let (_, told, Written { bytes, end_reason }) = front.session([suite, suite], floods, breaks_off);
            assert_eq!((told, &*end_reason), ((bytes[0], Some([2, 20])), "agent-broke-tls"), "{by}");
        }
    });
}

/// A reset would take from it what it was sent and has not read (RFC 9112 9.6).
#[test]
fn a_side_that_sends_on_behind_a_bad_record_is_told_why_and_not_reset() {
    const NAME: &str = "records::a_side_that_sends_on_behind_a_bad_record_is_told_why_and_not_reset";
    // The kernels don't differ in it: one is enough.
    with_kernel_tls_of(&[Kernel::Backported], NAME, || {
        for by in ["user", "kernel"] {
            let front = Front::new(by, &[]);
            let suite = if front.renews_keys() { TLS13 } else { TLS12 };
            for is_client in [true, false] {
                let (peer, alert) = if is_client {
                    front.session([suite, suite], sends_on, listens).0
                } else {
                    front.session([suite, suite], listens, sends_on).1
                };
                assert_eq!((alert, peer.is_reset()), (Some([2, 20]), false), "{by}, client {is_client}");
                // Who can be read may take its time; whose bytes can't is not waited for, though it stays.
                let stays = (by == "kernel").then_some(peer);
                eventually("the connections are gone", || (front.connections() == 0).then_some(()));
                drop(stays);
            }
        }
    });
}

#[test]
fn every_record_is_taken_or_refused_as_without_the_kernel() {
    with_kernel_tls("records::every_record_is_taken_or_refused_as_without_the_kernel", || {
        let fronts = ["user", "kernel"].map(|by| Front::new(by, &[]));
        // Where a suite stays with the program there is nothing to compare.
        let suites: &[_] = if fronts[1].renews_keys() { &[TLS12, TLS13] } else { &[TLS12] };
        let mut taken = 0;
        for suite in suites {
            for is_client in [true, false] {
                for said in SAID {
                    for before in BEFORE {
                        let [program, kernel] =
                            fronts.each_ref().map(|front| outcome(front, *suite, is_client, before, said));
                        assert_eq!(
                            kernel, program,
                            "{said:?} behind {before}, {suite:?}, client {is_client}"
                        );
                        taken += usize::from(program.1.0 == before + b"behind".len());
                    }
                }
            }
        }
        // Neither all nor none.
        println!("{taken} taken");
        assert!((20..100).contains(&taken), "{taken}");
    });
}
