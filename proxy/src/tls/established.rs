//! TLS once the handshake is done: records are opened and sealed here, with rustls's keys and without its buffers.
//! What a peer may still say of the connection itself (alerts, key updates, tickets) is handled here too; rustls makes
//! the next keys and keeps the tickets. Nothing is ever renegotiated.

use aws_lc_rs::error::Unspecified;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, Error, ExtractedSecrets, HandshakeType, ProtocolVersion,
    SupportedCipherSuite,
};

use super::error::{Refusal, TlsError};
use super::kernel_key::{InKernel, KernelKey, Way};
use super::record::{
    ALERT, Cipher, DATA, HANDSHAKE, KEY_UPDATE, Key, PLAIN_BYTES_MAX, RecordError, RecordSuite, Version,
    length,
};
use crate::runtime::buffer::Buffer;

/// Where a TLS end stands after it was fed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsState {
    /// More of the peer's handshake is needed.
    Handshaking,
    /// Application data may flow.
    Open,
    /// The peer said that it sends no more (`close_notify`); sending is still legal (RFC 8446 6.1).
    PeerEnded,
}

/// A handshake message of an agent's after the handshake: the longest is a ticket (RFC 8446 4.6.1).
const AGENTS_MESSAGE_BYTES_MAX: usize = 4 + 2 * (1 << 16);
/// One of a client's: a key update (RFC 8446 4.6.3).
const CLIENTS_MESSAGE_BYTES_MAX: usize = KEY_UPDATE.len();
/// Records and messages in a row that a peer may spend on the connection itself, or on nothing.
const NON_DATA_RECORDS_MAX: u8 = 32;
/// Alert levels (RFC 8446 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// An established connection.
pub(super) struct Session {
    /// None where the kernel opens.
    pub(super) opener: Option<Key>,
    /// None where the kernel seals.
    pub(super) sealer: Option<Key>,
    pub(super) secrets: Secrets,
    /// Part of a handshake message.
    message: Vec<u8>,
    /// Records and messages since the last data.
    pub(super) silent: u8,
    /// The peer wants what comes next sealed with a new key.
    pub(super) owes_key_update: bool,
    /// Nothing may be sealed any more: the peer was told that it is over.
    pub(super) is_over: bool,
    /// What the kernel has to be told, where it has keys.
    pub(super) in_kernel: Option<Box<InKernel>>,
}

/// The part that rustls keeps: next keys, and where tickets go.
pub(super) enum Secrets {
    /// Of a connection to an agent.
    Agent(KernelConnection<ClientConnectionData>),
    /// Of a client's connection.
    Client(KernelConnection<ServerConnectionData>),
}

impl Session {
    /// What both sides have agreed on: `1.2` or `1.3`.
    pub(super) fn version(&self) -> &'static str {
        match self.secrets.version() {
            Version::Tls12 => "1.2",
            Version::Tls13 => "1.3",
        }
    }

    /// Goes on where the handshake ended. `keeps_keys`: the kernel may be given them.
    pub(super) fn new(now: ExtractedSecrets, secrets: Secrets, keeps_keys: bool) -> Result<Self, TlsError> {
        Ok(Self {
            opener: Some(secrets.key(now.rx, keeps_keys)?),
            sealer: Some(secrets.key(now.tx, keeps_keys)?),
            secrets,
            message: Vec::new(),
            silent: 0,
            owes_key_update: false,
            is_over: false,
            in_kernel: None,
        })
    }

    /// Opens every whole record of `incoming` and hands its data to `sink`. Gives the bytes used. An error leaves its
    /// alert behind `outgoing`, after which nothing may be sealed.
    pub(super) fn open(
        &mut self,
        incoming: &mut [u8],
        sink: &mut impl FnMut(&[u8]),
        outgoing: &mut Buffer,
    ) -> Result<(usize, TlsState), TlsError> {
        let mut used = 0;
        while let Some(record) = whole(&mut incoming[used..]).map_err(|error| self.refuse(error, outgoing))? {
            used += record.len();
            match self.opened(record, sink) {
                Ok(TlsState::Open) => {}
                Ok(state) => return Ok((used, state)),
                Err(fault) => return Err(self.refuse(fault, outgoing)),
            }
        }
        Ok((used, TlsState::Open))
    }

    fn opened(&mut self, record: &mut [u8], sink: &mut impl FnMut(&[u8])) -> Result<TlsState, Refusal> {
        let opener = self.opener.as_mut().ok_or(RecordError::Unexpected)?;
        let (kind, content) = opener.open(record)?;
        self.take_in(kind, content, sink)
    }

    /// Takes in the content of a record.
    pub(super) fn take_in(
        &mut self,
        kind: u8,
        content: &[u8],
        sink: &mut impl FnMut(&[u8]),
    ) -> Result<TlsState, Refusal> {
        if kind == DATA && !content.is_empty() {
            self.silent = 0;
        } else {
            self.count_non_data_record()?;
        }
        match kind {
            DATA if self.message.is_empty() && content.is_empty() => {}
            DATA if self.message.is_empty() => sink(content),
            ALERT => return self.alert(content),
            HANDSHAKE => self.handshake(content)?,
            _ => return Err(Refusal::Alert(AlertDescription::UnexpectedMessage)),
        }
        Ok(TlsState::Open)
    }

    /// Whether data may come now: not within a message.
    pub(super) fn may_take_data(&self) -> bool {
        self.message.is_empty()
    }

    fn count_non_data_record(&mut self) -> Result<(), Refusal> {
        self.silent += 1;
        if self.silent > NON_DATA_RECORDS_MAX {
            Err(Refusal::Alert(AlertDescription::UnexpectedMessage))
        } else {
            Ok(())
        }
    }

    /// An end, an error, or, in TLS 1.2, a warning (RFC 5246 7.2, RFC 8446 6).
    fn alert(&self, content: &[u8]) -> Result<TlsState, Refusal> {
        let &[level, description] = content else {
            return Err(Refusal::Alert(AlertDescription::DecodeError));
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => Ok(TlsState::PeerEnded),
            AlertDescription::UserCanceled => Ok(TlsState::Open),
            _ if level == WARNING && self.secrets.version() == Version::Tls12 => Ok(TlsState::Open),
            description => Err(Refusal::Told(description)),
        }
    }

    /// Takes in part of a message, one, or several.
    fn handshake(&mut self, content: &[u8]) -> Result<(), Refusal> {
        let bytes_max = match self.secrets {
            Secrets::Agent(_) => AGENTS_MESSAGE_BYTES_MAX,
            Secrets::Client(_) => CLIENTS_MESSAGE_BYTES_MAX,
        };
        if content.is_empty() || self.message.len() + content.len() > bytes_max {
            return Err(Refusal::Alert(AlertDescription::UnexpectedMessage));
        }
        let mut message = std::mem::take(&mut self.message);
        message.extend_from_slice(content);
        let mut rest = message.as_slice();
        while let Some((kind, payload, after)) = split_message(rest) {
            rest = after;
            self.count_non_data_record()?;
            self.message(kind, payload, rest.is_empty())?;
        }
        if !rest.is_empty() {
            self.message = rest.to_vec();
        }
        Ok(())
    }

    fn message(&mut self, kind: HandshakeType, payload: &[u8], is_last: bool) -> Result<(), Refusal> {
        match (self.secrets.version(), kind, &mut self.secrets) {
            (Version::Tls13, HandshakeType::KeyUpdate, _) => self.update(payload, is_last),
            (Version::Tls13, HandshakeType::NewSessionTicket, Secrets::Agent(agent)) => {
                Ok(agent.handle_new_session_ticket(payload)?)
            }
            // An agent may ask for a renegotiation and need not be answered (RFC 5246 7.4.1.1).
            (Version::Tls12, HandshakeType::HelloRequest, Secrets::Agent(_)) if payload.is_empty() => Ok(()),
            _ => Err(Refusal::Alert(AlertDescription::UnexpectedMessage)),
        }
    }

    /// The peer's next record has a new key (RFC 8446 4.6.3). One answer is enough however often it asks, before the
    /// next data that is sealed.
    fn update(&mut self, payload: &[u8], is_last: bool) -> Result<(), Refusal> {
        match payload {
            [0 | 1] if is_last => {}
            [_] if is_last => return Err(Refusal::Alert(AlertDescription::IllegalParameter)),
            _ => return Err(Refusal::Alert(AlertDescription::UnexpectedMessage)),
        }
        match (&mut self.opener, &mut self.in_kernel) {
            (None, Some(kernel)) => {
                kernel.next_opener = KernelKey::of(&self.secrets.next_opener(true)?, Way::Receive);
            }
            (Some(opener), _) => *opener = self.secrets.next_opener(opener.is_kept())?,
            (None, None) => return Err(Refusal::Alert(AlertDescription::InternalError)),
        }
        self.owes_key_update |= payload == [1];
        Ok(())
    }

    /// Seals `plain` behind `outgoing`, in as few records as hold it.
    pub(super) fn seal(&mut self, plain: &[u8], outgoing: &mut Buffer) -> Result<(), TlsError> {
        if self.is_over {
            return Err(TlsError::NotReady);
        }
        if self.in_kernel.as_ref().is_some_and(|kernel| kernel.is_used_up) {
            return Err(TlsError::KeyExhausted);
        }
        for plain in plain.chunks(PLAIN_BYTES_MAX) {
            let Some(sealer) = &self.sealer else {
                outgoing.push(plain);
                continue;
            };
            if self.owes_key_update || sealer.is_used_up() {
                self.renew_sealer(outgoing)?;
            }
            self.seal_record(DATA, plain, outgoing)?;
        }
        Ok(())
    }

    pub(super) fn seal_record(
        &mut self,
        kind: u8,
        content: &[u8],
        outgoing: &mut Buffer,
    ) -> Result<(), TlsError> {
        let sealer = self.sealer.as_mut().ok_or(TlsError::NotReady)?;
        Ok(sealer.seal(kind, content, outgoing).map_err(no_key)?)
    }

    fn renew_sealer(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        if self.secrets.version() == Version::Tls12 {
            return Err(TlsError::KeyExhausted);
        }
        self.seal_record(HANDSHAKE, &KEY_UPDATE, outgoing)?;
        let keeps_key = self.sealer.as_ref().is_some_and(Key::is_kept);
        self.sealer = Some(self.secrets.next_sealer(keeps_key)?);
        self.owes_key_update = false;
        Ok(())
    }

    /// Seals `close_notify`. A key that is used up is good for one last record.
    pub(super) fn close(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        if std::mem::replace(&mut self.is_over, true) {
            return Err(TlsError::NotReady);
        }
        self.say([WARNING, AlertDescription::CloseNotify.into()], outgoing)
    }

    /// Seals an alert, or has the kernel seal it behind what waits.
    fn say(&mut self, alert: [u8; 2], outgoing: &mut Buffer) -> Result<(), TlsError> {
        match &mut self.in_kernel {
            Some(kernel) if self.sealer.is_none() => kernel.alert = Some(alert),
            _ => self.seal_record(ALERT, &alert, outgoing)?,
        }
        Ok(())
    }

    /// Tells the peer, unless it was the peer that gave up.
    pub(super) fn refuse(&mut self, refusal: impl Into<Refusal>, outgoing: &mut Buffer) -> TlsError {
        let is_told = std::mem::replace(&mut self.is_over, true);
        let (description, error) = match refusal.into() {
            Refusal::Told(description) => return Error::AlertReceived(description).into(),
            Refusal::Rustls(error) => (AlertDescription::DecodeError, error),
            Refusal::Alert(description) => (description, Error::General(format!("{description:?}"))),
            Refusal::Record(RecordError::Forged) => (AlertDescription::BadRecordMac, Error::DecryptError),
            Refusal::Record(RecordError::TooLong) => {
                (AlertDescription::RecordOverflow, Error::PeerSentOversizedRecord)
            }
            Refusal::Record(RecordError::Unexpected) => {
                (AlertDescription::UnexpectedMessage, Error::General("an unexpected record".into()))
            }
        };
        if is_told {
            return error.into();
        }
        // An error that can't be told is still one.
        let _ = self.say([FATAL, description.into()], outgoing);
        error.into()
    }
}

/// The record at the front, once it is all there.
fn whole(incoming: &mut [u8]) -> Result<Option<&mut [u8]>, RecordError> {
    let length = length(incoming)?;
    Ok(length.and_then(|length| incoming.get_mut(..length)))
}

/// The message at the front, once it is all there, and what follows it (RFC 8446 4).
fn split_message(bytes: &[u8]) -> Option<(HandshakeType, &[u8], &[u8])> {
    let (&[kind, high, middle, low], rest) = bytes.split_first_chunk()?;
    let length = u32::from_be_bytes([0, high, middle, low]);
    let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((HandshakeType::from(kind), payload, rest))
}

fn no_key(Unspecified: Unspecified) -> Error {
    Error::EncryptError
}

impl Secrets {
    fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Agent(kernel) => kernel.negotiated_cipher_suite(),
            Self::Client(kernel) => kernel.negotiated_cipher_suite(),
        }
    }

    pub(super) fn version(&self) -> Version {
        let version = match self {
            Self::Agent(kernel) => kernel.protocol_version(),
            Self::Client(kernel) => kernel.protocol_version(),
        };
        if version == ProtocolVersion::TLSv1_3 { Version::Tls13 } else { Version::Tls12 }
    }

    fn next_opener(&mut self, keeps_key: bool) -> Result<Key, Error> {
        let next = match self {
            Self::Agent(kernel) => kernel.update_rx_secret(),
            Self::Client(kernel) => kernel.update_rx_secret(),
        };
        self.key(next?, keeps_key)
    }

    pub(super) fn next_sealer(&mut self, keeps_key: bool) -> Result<Key, Error> {
        let next = match self {
            Self::Agent(kernel) => kernel.update_tx_secret(),
            Self::Client(kernel) => kernel.update_tx_secret(),
        };
        self.key(next?, keeps_key)
    }

    fn key(
        &self,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
        keeps_key: bool,
    ) -> Result<Key, Error> {
        let limit = match self.suite() {
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
        };
        let (cipher, secret, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::ChaCha20Poly1305, key, iv),
            _ => return Err(Error::General("a suite without records of its own".into())),
        };
        let iv = iv.as_ref().try_into().map_err(|_| Error::EncryptError)?;
        let suite = RecordSuite { version: self.version(), cipher };
        let mut key = Key::new(suite, secret.as_ref(), iv, sequence, limit).map_err(no_key)?;
        if keeps_key {
            key.keep(secret.as_ref());
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::IpAddr;
    use std::sync::Arc;

    use rustls::crypto::CryptoProvider;
    use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, cipher_suite, default_provider};
    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, Connection, ServerConnection};

    use super::*;
    use crate::tls::AgentTrust;
    use crate::tls::end::{Acceptor, Connector, PARTIAL_RECORD_MAX, Phase, TlsEnd};

    const TLS13: SupportedCipherSuite = cipher_suite::TLS13_AES_256_GCM_SHA384;
    const TLS12: SupportedCipherSuite = cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;

    /// One of our ends, and rustls by itself at the other.
    struct Pair {
        ours: TlsEnd,
        theirs: Connection,
    }

    fn connector(suite: SupportedCipherSuite) -> Connector {
        let provider = CryptoProvider { cipher_suites: vec![suite], ..default_provider() };
        Connector::with_provider(
            Arc::new(provider),
            &AgentTrust::Anything,
            &crate::os::files::FileSystem::default(),
        )
        .expect("a suite that is known")
    }

    /// Our end is the one that faces an agent.
    fn agent_pair(suite: SupportedCipherSuite) -> Pair {
        let server = Acceptor::new(&[]).expect("an acceptor").0;
        let ours = connector(suite).connect(IpAddr::from([10, 0, 0, 5])).expect("an end");
        Pair { ours, theirs: ServerConnection::new(server).expect("an end").into() }.connected()
    }

    /// Our end is the one that faces a client.
    fn client_pair(suite: SupportedCipherSuite) -> Pair {
        begun_client_pair(suite).connected()
    }

    /// The same before anything was said.
    fn begun_client_pair(suite: SupportedCipherSuite) -> Pair {
        let name = ServerName::try_from("desktops.example").expect("a name");
        let theirs = ClientConnection::new(connector(suite).config, name).expect("an end").into();
        let ours = Acceptor::new(&[]).expect("an acceptor").accept().expect("an end");
        Pair { ours, theirs }
    }

    impl Pair {
        fn connected(mut self) -> Self {
            self.feed(&[]).0.expect("a hello");
            for _ in 0..4 {
                let flight = self.their_flight();
                self.feed(&flight).0.expect("a handshake");
            }
            assert!(!self.theirs.is_handshaking());
            self
        }

        fn session(&mut self) -> &mut Session {
            let Phase::Session(session) = &mut self.ours.phase else { panic!("it connected") };
            session
        }

        fn their_flight(&mut self) -> Vec<u8> {
            let mut bytes = Vec::new();
            while self.theirs.wants_write() {
                self.theirs.write_tls(&mut bytes).expect("memory");
            }
            bytes
        }

        /// Brings ciphertext to our end, what it answers to theirs, and gives the plaintext.
        fn feed(&mut self, bytes: &[u8]) -> (Result<TlsState, TlsError>, Vec<u8>) {
            let mut incoming = vec![0; PARTIAL_RECORD_MAX + bytes.len()];
            let partial = self.ours.put_back(&mut incoming);
            incoming[partial..partial + bytes.len()].copy_from_slice(bytes);
            let (mut plain, mut answer) = (Vec::new(), Buffer::default());
            let mut sink = |bytes: &[u8]| plain.extend_from_slice(bytes);
            let state = self.ours.open(&mut incoming[..partial + bytes.len()], &mut sink, &mut answer);
            self.bring(answer.filled());
            (state, plain)
        }

        /// Brings ciphertext to their end, which must have no objection but an alert's.
        fn bring(&mut self, mut ciphertext: &[u8]) {
            while !ciphertext.is_empty() {
                self.theirs.read_tls(&mut ciphertext).expect("memory");
                match self.theirs.process_new_packets() {
                    Ok(_) | Err(Error::AlertReceived(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }

        /// What their end makes of `plain`, sealed by ours.
        fn sent(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut got = Vec::new();
            // They keep no more than a few records unread.
            for plain in plain.chunks(PLAIN_BYTES_MAX) {
                let mut outgoing = Buffer::default();
                self.ours.seal(plain, &mut outgoing).expect("an open end");
                self.bring(outgoing.filled());
                let mut piece = vec![0; plain.len()];
                self.theirs.reader().read_exact(&mut piece).expect("as many bytes");
                got.extend(piece);
            }
            got
        }

        /// What our end makes of `plain`, sealed by theirs.
        fn received(&mut self, plain: &[u8]) -> Vec<u8> {
            self.theirs.writer().write_all(plain).expect("memory");
            let ciphertext = self.their_flight();
            let (state, plain) = self.feed(&ciphertext);
            assert_eq!(state.expect("an open end"), TlsState::Open);
            plain
        }
    }

    fn numbers(count: u32) -> Vec<u8> {
        (0..count).flat_map(u32::to_le_bytes).collect()
    }

    /// What a peer that has one of our sessions could send.
    fn sealed_as(peer: &mut TlsEnd, kind: u8, content: &[u8]) -> Buffer {
        let Phase::Session(session) = &mut peer.phase else { panic!("it connected") };
        let mut outgoing = Buffer::default();
        session.seal_record(kind, content, &mut outgoing).expect("a record");
        outgoing
    }

    /// Both ends are ours: the one that faces a client, and the one that faces an agent.
    fn own_pair() -> (TlsEnd, TlsEnd) {
        let mut to_client = Acceptor::new(&[]).expect("an acceptor").accept().expect("an end");
        let mut to_agent = connector(TLS13).connect(IpAddr::from([10, 0, 0, 5])).expect("an end");
        let mut flight = open(&mut to_agent, &[]).2;
        for _ in 0..4 {
            let back = open(&mut to_client, flight.filled()).2;
            flight = open(&mut to_agent, back.filled()).2;
        }
        (to_client, to_agent)
    }

    fn open(end: &mut TlsEnd, bytes: &[u8]) -> (Result<TlsState, TlsError>, Vec<u8>, Buffer) {
        let mut incoming = vec![0; PARTIAL_RECORD_MAX + bytes.len()];
        let partial = end.put_back(&mut incoming);
        incoming[partial..partial + bytes.len()].copy_from_slice(bytes);
        let (mut plain, mut answer) = (Vec::new(), Buffer::default());
        let mut sink = |bytes: &[u8]| plain.extend_from_slice(bytes);
        let state = end.open(&mut incoming[..partial + bytes.len()], &mut sink, &mut answer);
        (state, plain, answer)
    }

    #[test]
    fn every_suite_is_understood_by_rustls_on_both_sides() {
        let is_ecdsa = |suite: &&SupportedCipherSuite| !format!("{:?}", suite.suite()).contains("RSA");
        let suites: Vec<_> = ALL_CIPHER_SUITES.iter().filter(is_ecdsa).collect();
        assert_eq!(suites.len(), 6);
        for suite in suites {
            for mut pair in [agent_pair(*suite), client_pair(*suite)] {
                assert_eq!(pair.theirs.negotiated_cipher_suite().map(|it| it.suite()), Some(suite.suite()));
                for plain in [numbers(10_000), b"x".to_vec(), numbers(4096)] {
                    assert!(pair.sent(&plain) == plain && pair.received(&plain) == plain, "{suite:?}");
                }
                let mut goodbye = Buffer::default();
                pair.ours.close(&mut goodbye).expect("an open end");
                pair.bring(goodbye.filled());
                assert!(matches!(pair.theirs.reader().read(&mut [0]), Ok(0)), "a clean end");
                pair.theirs.send_close_notify();
                let ciphertext = pair.their_flight();
                assert!(matches!(pair.feed(&ciphertext).0, Ok(TlsState::PeerEnded)));
            }
        }
    }

    #[test]
    fn new_keys_are_taken_and_answered_with_new_ones_before_the_next_data() {
        for mut pair in [agent_pair(TLS13), client_pair(TLS13)] {
            for _ in 0..3 {
                pair.theirs.refresh_traffic_keys().expect("TLS 1.3");
                assert_eq!(pair.received(b"one"), b"one");
                assert!(pair.session().owes_key_update);
                assert_eq!(pair.sent(b"two"), b"two");
                assert!(!pair.session().owes_key_update);
            }
        }
    }

    #[test]
    fn a_key_that_is_used_up_is_renewed_in_tls_13_and_ends_the_connection_in_tls_12() {
        let mut pair = client_pair(TLS13);
        pair.session().sealer.as_mut().expect("a key").limit_to(2);
        assert_eq!(pair.sent(&numbers(30_000)), numbers(30_000));

        let mut pair = client_pair(TLS12);
        pair.session().sealer.as_mut().expect("a key").limit_to(2);
        assert_eq!(pair.sent(&numbers(2048)), numbers(2048));
        let mut outgoing = Buffer::default();
        let more = pair.ours.seal(&numbers(10_000), &mut outgoing);
        assert!(matches!(more, Err(TlsError::KeyExhausted)));
        // What could be sealed still counts, and so does the end.
        pair.ours.close(&mut outgoing).expect("one last record");
        pair.bring(outgoing.filled());
        let mut got = Vec::new();
        pair.theirs.reader().read_to_end(&mut got).expect("a clean end");
        assert!(got == numbers(10_000)[..PLAIN_BYTES_MAX]);
    }

    #[test]
    fn what_was_not_sealed_with_the_key_is_refused_with_an_alert_that_the_peer_understands() {
        for suite in [TLS13, TLS12] {
            for at in [0, 5, 12, 20] {
                let mut pair = client_pair(suite);
                pair.theirs.writer().write_all(b"secret").expect("memory");
                let mut ciphertext = pair.their_flight();
                ciphertext[at] ^= 1;
                let (state, plain) = pair.feed(&ciphertext);
                assert!(matches!(state, Err(TlsError::Protocol(_))) && plain.is_empty(), "{state:?}");
                let more = pair.ours.seal(b"more", &mut Buffer::default());
                assert!(matches!(more, Err(TlsError::NotReady)), "nothing goes behind an alert");
                let told = pair.theirs.process_new_packets().expect_err("an alert");
                assert!(matches!(told, Error::AlertReceived(_)), "{told:?}");
            }
        }
    }

    #[test]
    fn an_alert_of_the_peer_ends_the_connection_without_an_answer() {
        for suite in [TLS13, TLS12] {
            let mut pair = client_pair(suite);
            let mut broken = Buffer::default();
            pair.ours.seal(b"x", &mut broken).expect("an open end");
            let mut broken = broken.filled().to_vec();
            *broken.last_mut().expect("a record") ^= 1;
            pair.theirs.read_tls(&mut broken.as_slice()).expect("memory");
            pair.theirs.process_new_packets().expect_err("a broken record");
            let alert = pair.their_flight();
            let (state, _, answer) = open(&mut pair.ours, &alert);
            let Err(TlsError::Protocol(Error::AlertReceived(AlertDescription::BadRecordMac))) = state else {
                panic!("{state:?}")
            };
            assert!(answer.is_empty());
        }
    }

    #[test]
    fn a_client_may_say_all_it_has_to_with_the_end_of_its_handshake() {
        let mut pair = begun_client_pair(TLS13);
        let hello = pair.their_flight();
        pair.feed(&hello).0.expect("a hello");
        pair.theirs.writer().write_all(b"all of it").expect("memory");
        pair.theirs.send_close_notify();
        let flight = pair.their_flight();
        let (state, plain) = pair.feed(&flight);
        assert_eq!((state.expect("a handshake"), plain.as_slice()), (TlsState::PeerEnded, &b"all of it"[..]));
        assert_eq!(pair.sent(b"an answer"), b"an answer");
    }

    #[test]
    fn new_keys_right_behind_the_handshake_are_taken() {
        let mut pair = begun_client_pair(TLS13);
        let hello = pair.their_flight();
        pair.feed(&hello).0.expect("a hello");
        pair.theirs.refresh_traffic_keys().expect("a handshake that is done");
        pair.theirs.writer().write_all(b"asked").expect("memory");
        let flight = pair.their_flight();
        assert_eq!(pair.feed(&flight).1, b"asked");
        assert_eq!(pair.sent(b"answered"), b"answered");
        assert_eq!(pair.received(b"and again"), b"and again");
    }

    #[test]
    fn what_a_peer_says_of_itself_between_data_does_no_harm() {
        let (mut to_client, mut to_agent) = own_pair();
        for _ in 0..2 * NON_DATA_RECORDS_MAX {
            for (kind, content) in [(DATA, &[][..]), (ALERT, &[WARNING, 90]), (DATA, b"data")] {
                let (state, plain, answer) =
                    open(&mut to_agent, sealed_as(&mut to_client, kind, content).filled());
                assert_eq!(state.expect("an open end"), TlsState::Open);
                assert!(answer.is_empty() && (kind == ALERT || plain == content));
            }
        }
    }

    #[test]
    fn padding_is_no_content_and_nothing_but_padding_is_refused() {
        let (mut to_client, mut to_agent) = own_pair();
        // The type of a record stands behind its content (RFC 8446 5.2), so that zeros as type are padding of it.
        let padded = sealed_as(&mut to_client, 0, &[b'h', b'i', DATA, 0, 0, 0]);
        assert_eq!(open(&mut to_agent, padded.filled()).1, b"hi");
        let (mut sender, mut receiver) = own_pair();
        let much = [&[b'x', DATA][..], &vec![0; PLAIN_BYTES_MAX]].concat();
        open(&mut receiver, sealed_as(&mut sender, 0, &much).filled())
            .0
            .expect_err("more than a record holds");
        let nothing = sealed_as(&mut to_client, 0, &[0; 100]);
        assert!(open(&mut to_agent, nothing.filled()).0.is_err());
    }

    #[test]
    fn a_ticket_may_come_in_pieces_but_nothing_may_come_between_them() {
        let ticket = [&[4, 0, 0, 0x13][..], &[0; 8], &[1, 7], &[0, 5], b"again", &[0, 0]].concat();
        let (mut to_client, mut to_agent) = own_pair();
        for piece in ticket.chunks(3) {
            let (state, plain, answer) =
                open(&mut to_agent, sealed_as(&mut to_client, HANDSHAKE, piece).filled());
            assert!(
                matches!(state, Ok(TlsState::Open)) && plain.is_empty() && answer.is_empty(),
                "{state:?}"
            );
        }
        open(&mut to_agent, sealed_as(&mut to_client, HANDSHAKE, &ticket[..9]).filled()).0.expect("a piece");
        open(&mut to_agent, sealed_as(&mut to_client, DATA, b"data").filled()).0.expect_err("data in it");
    }

    #[test]
    fn a_peer_that_speaks_of_the_connection_only_is_refused() {
        for (kind, content) in [(DATA, &[][..]), (ALERT, &[WARNING, 90]), (HANDSHAKE, &[4, 0, 0, 200])] {
            let (mut to_client, mut to_agent) = own_pair();
            let mut accepted = 0;
            while accepted < 1000
                && open(&mut to_agent, sealed_as(&mut to_client, kind, content).filled()).0.is_ok()
            {
                accepted += 1;
            }
            assert!(accepted <= usize::from(NON_DATA_RECORDS_MAX), "{kind}: {accepted}");
        }
        // Nor may a message be longer than any has a reason to be.
        let (mut to_client, mut to_agent) = own_pair();
        let long = [&[4, 0xff, 0xff, 0xff][..], &[0; PLAIN_BYTES_MAX - 4]].concat();
        let mut pieces =
            (0..9).map(|_| open(&mut to_agent, sealed_as(&mut to_client, HANDSHAKE, &long).filled()).0);
        assert_eq!(pieces.position(|state| state.is_err()), Some(8));
        // Many small ones in one record are as many.
        let (mut to_client, mut to_agent) = own_pair();
        let tickets =
            [&[4, 0, 0, 0x13][..], &[0; 8], &[1, 7], &[0, 5], b"again", &[0, 0]].concat().repeat(40);
        open(&mut to_agent, sealed_as(&mut to_client, HANDSHAKE, &tickets).filled())
            .0
            .expect_err("40 tickets");
    }

    #[test]
    fn what_has_no_place_after_the_handshake_is_refused() {
        // A client's hello, a key update that is none, one that is not the last, a ticket from a client, and types
        // that are not known or not sealed.
        let too_much = vec![1; PLAIN_BYTES_MAX + 1];
        let cases: [(u8, &[u8]); 11] = [
            (HANDSHAKE, &[1, 0, 0, 0]),
            (HANDSHAKE, &[24, 0, 0, 1, 2]),
            (HANDSHAKE, &[24, 0, 0, 1, 0, 24]),
            (HANDSHAKE, &[4, 0, 0, 0]),
            (HANDSHAKE, &[1, 0, 1, 0, 3, 3]),
            (HANDSHAKE, &[]),
            (ALERT, &[WARNING, 100]),
            (ALERT, &[WARNING]),
            (DATA, &too_much),
            (20, &[1]),
            (99, &[1]),
        ];
        for (kind, content) in cases {
            let (mut to_client, mut to_agent) = own_pair();
            let record = sealed_as(&mut to_agent, kind, content);
            let (state, plain, answer) = open(&mut to_client, record.filled());
            assert!(state.is_err() && plain.is_empty(), "{kind} {content:?}");
            if content != [WARNING, 100] {
                open(&mut to_agent, answer.filled()).0.expect_err("an alert");
            }
        }
        // The first is not sealed; of the others the header is enough.
        for (header, alert) in [
            (&[20, 3, 3, 0, 1, 1][..], AlertDescription::UnexpectedMessage),
            (&[DATA, 9, 9, 0, 1], AlertDescription::UnexpectedMessage),
            (&[DATA, 3, 3, 0xff, 0xff], AlertDescription::RecordOverflow),
        ] {
            let (mut to_client, mut to_agent) = own_pair();
            let (state, _, answer) = open(&mut to_client, header);
            state.expect_err("no record");
            let told = open(&mut to_agent, answer.filled()).0;
            assert!(
                matches!(&told, Err(TlsError::Protocol(Error::AlertReceived(told))) if *told == alert),
                "{told:?}"
            );
        }
    }

    #[test]
    fn nothing_is_renegotiated_in_tls_12() {
        // What a peer would seal can be had from its keys alone, so the message is handed in opened.
        let mut pair = client_pair(TLS12);
        assert!(pair.session().handshake(&[1, 0, 0, 0]).is_err());
        let mut pair = agent_pair(TLS12);
        assert!(pair.session().handshake(&[0, 0, 0, 0]).is_ok());
        assert_eq!(pair.received(b"still here"), b"still here");
        assert_eq!(pair.sent(b"so am I"), b"so am I");
        assert!(pair.session().handshake(&[0, 0, 0, 0].repeat(40)).is_err());
    }
}
