//! Sessions handed to a kernel that is a stand-in, which does records by the letter of its documentation and shares no code
//! with those of the program.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::SupportedCipherSuite;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, cipher_suite, default_provider};

use super::*;
use crate::tls::AgentTrust;
use crate::tls::end::{Acceptor, Connector, PARTIAL_RECORD_MAX, Phase, TlsEnd};
use crate::tls::record::DATA;

const TLS13: SupportedCipherSuite = cipher_suite::TLS13_AES_256_GCM_SHA384;
const TLS12: SupportedCipherSuite = cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;

/// The kernel: what it makes of an option's value (linux/tls.h) and of records.
struct Kernel {
    is_tls13: bool,
    aead: LessSafeKey,
    /// Salt and initialization vector.
    iv: [u8; 12],
    /// The part of the nonce that travels with a record, where one does.
    explicit: Option<u64>,
    sequence: u64,
}

impl Kernel {
    fn new(key: &KernelKey) -> Self {
        let option = key.option();
        let number = |at: usize| u16::from_ne_bytes([option[at], option[at + 1]]);
        let (algorithm, iv_bytes, key_bytes) = match number(2) {
            51 => (&AES_128_GCM, 8, 16),
            52 => (&AES_256_GCM, 8, 32),
            54 => (&CHACHA20_POLY1305, 12, 32),
            other => panic!("no cipher: {other}"),
        };
        let (iv, rest) = option[4..].split_at(iv_bytes);
        let (key, rest) = rest.split_at(key_bytes);
        let (salt, sequence) = rest.split_at(12 - iv_bytes);
        let is_tls13 = number(0) == 0x0304;
        let explicit =
            (!is_tls13 && iv_bytes == 8).then(|| u64::from_be_bytes(iv.try_into().expect("8 bytes")));
        Self {
            is_tls13,
            aead: LessSafeKey::new(UnboundKey::new(algorithm, key).expect("a key")),
            iv: [salt, iv].concat().try_into().expect("12 bytes"),
            explicit,
            sequence: u64::from_be_bytes(sequence.try_into().expect("8 bytes")),
        }
    }

    /// RFC 8446 5.3 and RFC 7905 2, or RFC 5288 3.
    fn nonce(&self, explicit: Option<u64>) -> Nonce {
        let mut nonce = self.iv;
        match explicit {
            Some(explicit) => nonce[4..].copy_from_slice(&explicit.to_be_bytes()),
            None => nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()).for_each(|(to, it)| *to ^= it),
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// RFC 8446 5.2, or RFC 5246 6.2.3.3.
    fn authenticated(&self, header: [u8; 5], content_bytes: usize) -> Vec<u8> {
        if self.is_tls13 {
            return header.to_vec();
        }
        let length = u16::try_from(content_bytes).expect("a record").to_be_bytes();
        [&self.sequence.to_be_bytes()[..], &header[..3], &length].concat()
    }

    fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut sealed = content.to_vec();
        if self.is_tls13 {
            sealed.push(kind);
        }
        let explicit = self.explicit.map(u64::to_be_bytes);
        let body = explicit.map_or(0, |it| it.len()) + sealed.len() + 16;
        let [high, low] = u16::try_from(body).expect("a record").to_be_bytes();
        let header = [if self.is_tls13 { DATA } else { kind }, 3, 3, high, low];
        let aad = Aad::from(self.authenticated(header, content.len()));
        self.aead.seal_in_place_append_tag(self.nonce(self.explicit), aad, &mut sealed).expect("a key");
        self.sequence += 1;
        self.explicit = self.explicit.map(|count| count.wrapping_add(1));
        [&header[..], explicit.as_ref().map_or(&[], |it| &it[..]), &sealed].concat()
    }

    fn open(&mut self, record: &[u8]) -> (u8, Vec<u8>) {
        let (header, mut body) = record.split_first_chunk::<5>().expect("a header");
        let mut explicit = None;
        if self.explicit.is_some() {
            let (nonce, rest) = body.split_first_chunk().expect("a nonce");
            (explicit, body) = (Some(u64::from_be_bytes(*nonce)), rest);
        }
        let aad = Aad::from(self.authenticated(*header, body.len() - 16));
        let mut body = body.to_vec();
        let content = self.aead.open_in_place(self.nonce(explicit), aad, &mut body).expect("the same key");
        let mut content = content.to_vec();
        self.sequence += 1;
        let kind = if self.is_tls13 { content.pop().expect("a type") } else { header[0] };
        (kind, content)
    }
}

/// The end that faces a client, which keeps its keys for the kernel, and one that faces an agent, at its other side.
fn pair(suite: SupportedCipherSuite) -> (TlsEnd, TlsEnd) {
    let provider = CryptoProvider { cipher_suites: vec![suite], ..default_provider() };
    let files = crate::os::files::FileSystem::default();
    let connector = Connector::with_provider(Arc::new(provider), &AgentTrust::Anything, &files);
    let mut ours = Acceptor::new(&[]).expect("an acceptor").accept().expect("an end");
    ours.keep_keys();
    let mut peer = connector.expect("a suite").connect(IpAddr::from([10, 0, 0, 5])).expect("an end");
    let mut flight = opened(&mut peer, &[]).2;
    for _ in 0..4 {
        let back = opened(&mut ours, flight.filled()).2;
        flight = opened(&mut peer, back.filled()).2;
    }
    (ours, peer)
}

fn opened(end: &mut TlsEnd, bytes: &[u8]) -> (Result<TlsState, TlsError>, Vec<u8>, Buffer) {
    let mut incoming = vec![0; PARTIAL_RECORD_MAX + bytes.len()];
    let partial = end.put_back(&mut incoming);
    incoming[partial..partial + bytes.len()].copy_from_slice(bytes);
    let (mut plain, mut answer) = (Vec::new(), Buffer::default());
    let mut sink = |bytes: &[u8]| plain.extend_from_slice(bytes);
    let state = end.open(&mut incoming[..partial + bytes.len()], &mut sink, &mut answer);
    (state, plain, answer)
}

fn sealed(end: &mut TlsEnd, plain: &[u8]) -> Vec<u8> {
    let mut outgoing = Buffer::default();
    end.seal(plain, &mut outgoing).expect("an open end");
    outgoing.filled().to_vec()
}

fn given(end: &mut TlsEnd, way: Way) -> Kernel {
    let kernel = Kernel::new(&end.key_for_kernel(way).expect("a key that was kept"));
    end.give_to_kernel(way);
    kernel
}

fn taken_in(end: &mut TlsEnd, (kind, content): (u8, Vec<u8>)) -> (Result<TlsState, TlsError>, Vec<u8>) {
    let mut plain = Vec::new();
    let mut sink = |bytes: &[u8]| plain.extend_from_slice(bytes);
    let state = end.opened_by_kernel(kind, &content, &mut sink, &mut Buffer::default());
    (state, plain)
}

#[test]
fn the_kernel_goes_on_where_the_program_ended_with_every_suite_both_ways() {
    let is_ecdsa = |suite: &&SupportedCipherSuite| !format!("{:?}", suite.suite()).contains("RSA");
    let suites: Vec<_> = ALL_CIPHER_SUITES.iter().filter(is_ecdsa).collect();
    assert_eq!(suites.len(), 6);
    for suite in suites {
        for before in [0, 1, 5] {
            let (mut ours, mut peer) = pair(*suite);
            assert!(ours.suite_for_kernel().is_some_and(|it| RecordSuite::ALL.contains(&it)));
            for _ in 0..before {
                let said = sealed(&mut peer, b"said before");
                assert_eq!(opened(&mut ours, &said).1, b"said before");
                let answered = sealed(&mut ours, b"answered before");
                assert_eq!(opened(&mut peer, &answered).1, b"answered before");
            }
            let (mut opener, mut sealer) = (given(&mut ours, Way::Receive), given(&mut ours, Way::Send));
            for _ in 0..5 {
                let heard = taken_in(&mut ours, opener.open(&sealed(&mut peer, b"said behind")));
                assert!(matches!(heard.0, Ok(TlsState::Open)) && heard.1 == b"said behind", "{suite:?}");
                assert_eq!(sealed(&mut ours, b"as it is"), b"as it is");
                assert_eq!(opened(&mut peer, &sealer.seal(DATA, b"as it is")).1, b"as it is");
            }
            assert!(ours.key_for_kernel(Way::Send).is_none(), "a key has one user");
        }
    }
}

#[test]
fn no_nonce_of_tls_1_2_is_used_by_the_program_and_by_the_kernel() {
    let (mut ours, _) = pair(TLS12);
    let nonces = |records: &[Vec<u8>]| records.iter().map(|it| it[5..13].to_vec()).collect::<Vec<_>>();
    let program: Vec<_> = (0..40).map(|_| sealed(&mut ours, b"x")).collect();
    let mut kernel = given(&mut ours, Way::Send);
    let kernel: Vec<_> = (0..40).map(|_| kernel.seal(DATA, b"x")).collect();
    let all: BTreeSet<_> = [nonces(&program), nonces(&kernel)].concat().into_iter().collect();
    assert_eq!(all.len(), 80);
}

#[test]
fn a_key_that_the_peer_changes_is_changed_in_the_kernel_and_answered() {
    let (mut ours, mut peer) = pair(TLS13);
    let (mut opener, mut sealer) = (given(&mut ours, Way::Receive), given(&mut ours, Way::Send));
    for _ in 0..3 {
        let Phase::Session(session) = &mut peer.phase else { panic!("it connected") };
        // It changes its own key, and asks for another of ours.
        let mut flight = Buffer::default();
        session.seal_record(HANDSHAKE, &[24, 0, 0, 1, 1], &mut flight).expect("a key");
        session.sealer = Some(session.secrets.next_sealer(false).expect("TLS 1.3"));
        assert!(matches!(taken_in(&mut ours, opener.open(flight.filled())).0, Ok(TlsState::Open)));
        opener = Kernel::new(&ours.take_next_opener().expect("a new key"));
        assert!(ours.take_next_opener().is_none());
        assert_eq!(taken_in(&mut ours, opener.open(&sealed(&mut peer, b"behind"))).1, b"behind");

        let control = ours.control(true).expect("an answer");
        assert_eq!(control, ControlRecord::KeyUpdate);
        let answer = sealer.seal(control.kind(), control.content());
        sealer = Kernel::new(&ours.control_sent(control).expect("TLS 1.3").expect("a new key"));
        assert_eq!(ours.control(false), None);
        assert!(matches!(opened(&mut peer, &answer).0, Ok(TlsState::Open)));
        assert_eq!(opened(&mut peer, &sealer.seal(DATA, b"new")).1, b"new");
    }
}

#[test]
fn a_used_up_key_is_renewed_in_tls_13_and_ends_the_connection_in_tls_12() {
    for (suite, is_renewed) in [(TLS13, true), (TLS12, false)] {
        let (mut ours, _) = pair(suite);
        given(&mut ours, Way::Send);
        assert!(!ours.is_count_due());
        // It was counted what the kernel may have sealed at the most; it has sealed less.
        ours.note_sealed(1 << 24);
        assert!(ours.is_count_due());
        ours.recount(1 << 20);
        assert!(!ours.is_count_due() && ours.control(false).is_none());
        ours.note_sealed(1 << 24);
        ours.recount((1 << 24) - 1);
        let more = ours.seal(b"more", &mut Buffer::default());
        if is_renewed {
            more.expect("TLS 1.3");
            assert_eq!(ours.control(true), Some(ControlRecord::KeyUpdate));
            ours.control_sent(ControlRecord::KeyUpdate).expect("TLS 1.3").expect("a new key");
            assert!(!ours.is_count_due());
        } else {
            assert!(matches!(more, Err(TlsError::KeyExhausted)) && ours.is_used_up());
            // The end is still told.
            ours.close(&mut Buffer::default()).expect("an open end");
            assert!(!ours.is_count_due());
            assert_eq!(ours.control(false), Some(ControlRecord::Alert([1, 0])));
        }
    }
}

#[test]
fn the_last_word_comes_behind_what_waits_and_once() {
    let (mut ours, mut peer) = pair(TLS13);
    let mut sealer = given(&mut ours, Way::Send);
    ours.close(&mut Buffer::default()).expect("an open end");
    assert_eq!(ours.control(true), None);
    let last = ours.control(false).expect("a last word");
    ours.control_sent(last).expect("it was sent");
    assert_eq!(ours.control(false), None);
    assert!(matches!(
        opened(&mut peer, &sealer.seal(last.kind(), last.content())).0,
        Ok(TlsState::PeerEnded)
    ));
    assert!(matches!(ours.close(&mut Buffer::default()), Err(TlsError::NotReady)));
}

#[test]
fn a_record_that_the_kernel_can_not_open_ends_the_connection_with_its_alert() {
    for (bad, alert) in [(BadRecord::Forged, 20), (BadRecord::TooLong, 22), (BadRecord::Unexpected, 10)] {
        let (mut ours, _) = pair(TLS13);
        given(&mut ours, Way::Receive);
        given(&mut ours, Way::Send);
        let refused = ours.refuse_record(bad, &mut Buffer::default());
        assert!(matches!(refused, TlsError::Protocol(_)), "{refused:?}");
        assert_eq!(ours.control(false), Some(ControlRecord::Alert([2, alert])));
        assert!(matches!(ours.seal(b"more", &mut Buffer::default()), Err(TlsError::NotReady)));
    }
}

#[test]
fn where_only_one_way_is_the_kernels_the_program_says_the_last_word_itself() {
    let (mut ours, mut peer) = pair(TLS13);
    let mut opener = given(&mut ours, Way::Receive);
    let mut forged = opener.open(&sealed(&mut peer, b"x"));
    forged.0 = 99;
    let mut outgoing = Buffer::default();
    ours.opened_by_kernel(forged.0, &forged.1, &mut |_: &[u8]| (), &mut outgoing).expect_err("no such type");
    assert!(ours.control(false).is_none());
    let told = opened(&mut peer, outgoing.filled()).0;
    assert!(matches!(told, Err(TlsError::Protocol(rustls::Error::AlertReceived(_)))), "{told:?}");
}

#[test]
fn keys_that_were_not_to_be_kept_are_not_there() {
    let (_, peer) = pair(TLS13);
    assert!(peer.suite_for_kernel().is_none() && peer.key_for_kernel(Way::Send).is_none());
    let (mut ours, _) = pair(TLS13);
    ours.forget_keys();
    assert!(ours.suite_for_kernel().is_none() && ours.key_for_kernel(Way::Send).is_none());
}

#[test]
fn the_rest_of_a_record_is_known_as_soon_as_its_header_is() {
    let (mut ours, mut peer) = pair(TLS13);
    let record = sealed(&mut peer, b"some bytes");
    assert_eq!(ours.missing_bytes(), 0);
    for cut in 1..record.len() {
        let (mut ours, mut peer) = pair(TLS13);
        let record = sealed(&mut peer, b"some bytes");
        opened(&mut ours, &record[..cut]).0.expect("part of a record");
        assert_eq!(ours.missing_bytes(), if cut < 5 { 5 - cut } else { record.len() - cut });
        if cut > 8 && cut + 3 < record.len() {
            break;
        }
    }
    opened(&mut ours, &record).0.expect("a record");
    assert_eq!(ours.missing_bytes(), 0);
}
