//! One TLS end of a connection, without I/O: ciphertext goes in and comes out, the caller owns the socket.
//! Nothing outside of this directory names rustls: the handshake is its work, the records after it are opened and sealed
//! here, or by the kernel. Plaintext is never kept: every byte that was decrypted has been handed to the caller's sink.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ServerConfig};

use super::error::TlsError;
use super::established::{Session, TlsState};
use super::handshake::Handshake;
use super::kernel_key::{KernelKey, Way};
use super::offload::{BadRecord, ControlRecord};
use super::record::{self, HEADER_BYTES, RecordSuite};
use crate::runtime::buffer::Buffer;

/// Ciphertext that may have to be kept between two receives: one record, or the largest handshake message.
pub const PARTIAL_RECORD_MAX: usize = 64 * 1024 + 18 * 1024;

/// Accepts TLS from clients. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Acceptor(pub(super) Arc<ServerConfig>);

/// Starts TLS to agents. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    pub(super) config: Arc<ClientConfig>,
    /// The name that every agent's certificate must carry; its address where there is none.
    pub(super) name: Option<ServerName<'static>>,
}

impl Acceptor {
    /// A new connection's end.
    pub fn accept(&self) -> Result<TlsEnd, TlsError> {
        let connection = UnbufferedServerConnection::new(self.0.clone())?;
        Ok(TlsEnd::new(Phase::Handshake(Box::new(Handshake::with_client(connection)))))
    }
}

impl Connector {
    /// A new connection's end. An address is never sent as server name (RFC 6066 3).
    pub fn connect(&self, agent: IpAddr) -> Result<TlsEnd, TlsError> {
        let name = self.name.clone().unwrap_or_else(|| ServerName::IpAddress(agent.into()));
        let connection = UnbufferedClientConnection::new(self.config.clone(), name)?;
        Ok(TlsEnd::new(Phase::Handshake(Box::new(Handshake::with_agent(connection)))))
    }
}

/// TLS, or the lack of it, on one socket.
pub struct TlsEnd {
    pub(super) phase: Phase,
    /// Ciphertext received that is no whole record or handshake message yet.
    partial_record: Vec<u8>,
    speaks_http2: bool,
    /// The kernel may be given its keys.
    keeps_keys: bool,
}

pub(super) enum Phase {
    Plain,
    Handshake(Box<Handshake>),
    Session(Box<Session>),
    /// The handshake could not be brought to its end.
    Failed,
}

impl TlsEnd {
    /// No TLS: bytes pass as they are.
    pub fn plain() -> Self {
        Self::new(Phase::Plain)
    }

    fn new(phase: Phase) -> Self {
        Self { phase, partial_record: Vec::new(), speaks_http2: false, keeps_keys: false }
    }

    /// Whether bytes pass as they are.
    pub fn is_plain(&self) -> bool {
        matches!(self.phase, Phase::Plain)
    }

    /// Whether both sides have agreed on HTTP/2.
    pub fn speaks_http2(&self) -> bool {
        self.speaks_http2
    }

    /// The version that both sides have agreed on, `1.2` or `1.3`; empty without TLS, and before.
    pub fn version(&self) -> &'static str {
        if let Phase::Session(session) = &self.phase { session.version() } else { "" }
    }

    /// Whether anything of the peer's handshake has come.
    pub fn was_heard(&self) -> bool {
        if let Phase::Handshake(handshake) = &self.phase { handshake.was_heard() } else { true }
    }

    /// Takes ciphertext that was received before there was an end for it.
    pub fn begin_with(&mut self, ciphertext: &[u8]) {
        self.partial_record.extend_from_slice(ciphertext);
    }

    /// Copies the ciphertext that waits for its rest to the front of `incoming`, behind which the caller
    /// receives. Returns its length, at most [`PARTIAL_RECORD_MAX`].
    pub fn put_back(&self, incoming: &mut [u8]) -> usize {
        if !self.partial_record.is_empty() {
            incoming[..self.partial_record.len()].copy_from_slice(&self.partial_record);
        }
        self.partial_record.len()
    }

    /// Decrypts `incoming`, which starts with what [`TlsEnd::put_back`] put there. Plaintext goes to `sink`;
    /// what has to be answered (handshake, alert) goes behind `outgoing`, also with an error.
    pub fn open(
        &mut self,
        incoming: &mut [u8],
        sink: &mut impl FnMut(&[u8]),
        outgoing: &mut Buffer,
    ) -> Result<TlsState, TlsError> {
        let mut used = 0;
        if let Phase::Handshake(handshake) = &mut self.phase {
            let is_done;
            (used, is_done) = handshake.open(incoming, outgoing)?;
            if !is_done {
                self.hold(&incoming[used..])?;
                return Ok(TlsState::Handshaking);
            }
            self.end_handshake()?;
        }
        let (more, state) = match &mut self.phase {
            Phase::Plain => {
                sink(incoming);
                return Ok(TlsState::Open);
            }
            Phase::Session(session) => session.open(&mut incoming[used..], sink, outgoing)?,
            Phase::Handshake(_) | Phase::Failed => return Err(TlsError::NotReady),
        };
        // What follows a close_notify is no part of the stream (RFC 8446 6.1).
        let rest = if state == TlsState::PeerEnded { &[] } else { &incoming[used + more..] };
        self.hold(rest)?;
        Ok(state)
    }

    fn end_handshake(&mut self) -> Result<(), TlsError> {
        if let Phase::Handshake(handshake) = std::mem::replace(&mut self.phase, Phase::Failed) {
            self.speaks_http2 = handshake.speaks_http2();
            self.phase = Phase::Session(Box::new(handshake.finish(self.keeps_keys)?));
        }
        Ok(())
    }

    /// An idle connection holds no memory for records that are yet to come.
    fn hold(&mut self, rest: &[u8]) -> Result<(), TlsError> {
        if rest.len() > PARTIAL_RECORD_MAX {
            return Err(TlsError::TooFragmented);
        }
        if rest.is_empty() {
            self.partial_record = Vec::new();
        } else {
            self.partial_record.clear();
            self.partial_record.extend_from_slice(rest);
        }
        Ok(())
    }

    fn session(&self) -> Option<&Session> {
        if let Phase::Session(session) = &self.phase { Some(session) } else { None }
    }

    fn session_mut(&mut self) -> Option<&mut Session> {
        if let Phase::Session(session) = &mut self.phase { Some(session) } else { None }
    }

    /// Keeps the keys of the connection that is about to be made, for the kernel.
    pub fn keep_keys(&mut self) {
        self.keeps_keys = true;
    }

    /// Keeps no keys for the kernel any more, but those that it has.
    pub fn forget_keys(&mut self) {
        self.keeps_keys = false;
        if let Some(session) = self.session_mut() {
            session.forget_keys();
        }
    }

    /// How the records are sealed of a connection whose keys the kernel may be given.
    pub fn suite_for_kernel(&self) -> Option<RecordSuite> {
        self.session()?.suite_for_kernel()
    }

    /// Bytes that are missing from the record that was received in part; 0 where none was.
    pub fn missing_bytes(&self) -> usize {
        let held = self.partial_record.len();
        match record::length(&self.partial_record) {
            _ if held == 0 => 0,
            Ok(Some(length)) => length.saturating_sub(held),
            Ok(None) => HEADER_BYTES - held,
            // It can't be opened, which is found out with the next bytes.
            Err(_) => 1,
        }
    }

    /// The key of that way for the kernel, which goes on where no record is half received or waits to be sent.
    pub fn key_for_kernel(&self, way: Way) -> Option<KernelKey> {
        self.session()?.key_for_kernel(way)
    }

    /// From here on the kernel opens or seals.
    pub fn give_to_kernel(&mut self, way: Way) {
        if let Some(session) = self.session_mut() {
            session.give_to_kernel(way);
        }
    }

    /// Takes in a record that the kernel has opened, or the data of several: data goes to `sink`. An error has the kernel
    /// seal an alert ([`TlsEnd::control`]), or leaves one behind `outgoing`.
    pub fn opened_by_kernel(
        &mut self,
        kind: u8,
        content: &[u8],
        sink: &mut impl FnMut(&[u8]),
        outgoing: &mut Buffer,
    ) -> Result<TlsState, TlsError> {
        self.session_mut().ok_or(TlsError::NotReady)?.opened_by_kernel(kind, content, sink, outgoing)
    }

    /// Whether data may come now that nobody looks at: not within a message of the handshake.
    pub fn may_take_data(&self) -> bool {
        self.session().is_none_or(Session::may_take_data)
    }

    /// Notes that such data has come.
    pub fn note_data(&mut self) {
        if let Some(session) = self.session_mut() {
            session.silent = 0;
        }
    }

    /// Ends the connection over a record that the kernel could not open.
    pub fn refuse_record(&mut self, bad: BadRecord, outgoing: &mut Buffer) -> TlsError {
        self.session_mut().map_or(TlsError::NotReady, |session| session.refuse_record(bad, outgoing))
    }

    /// The peer's new key, if it has changed it: the kernel opens nothing more before it has it.
    pub fn take_next_opener(&mut self) -> Option<KernelKey> {
        self.session_mut()?.in_kernel.as_mut()?.next_opener.take()
    }

    /// The record that the kernel has to seal by itself next. `has_unsent`: data waits, behind which the last word has to
    /// come.
    pub fn control(&self, has_unsent: bool) -> Option<ControlRecord> {
        self.session()?.control(has_unsent)
    }

    /// Notes that the kernel has taken it; the key for what comes behind it.
    pub fn control_sent(&mut self, sent: ControlRecord) -> Result<Option<KernelKey>, TlsError> {
        self.session_mut().ok_or(TlsError::NotReady)?.control_sent(sent)
    }

    /// Counts records that the kernel has sealed, or fewer.
    pub fn note_sealed(&mut self, records: u64) {
        if let Some(session) = self.session_mut() {
            session.note_sealed(records);
        }
    }

    /// Whether the kernel has to be asked how many records it has sealed, for [`TlsEnd::recount`].
    pub fn is_count_due(&self) -> bool {
        self.session().is_some_and(Session::is_count_due)
    }

    /// Goes by the kernel's count of sealed records: a key that is used up is renewed, or takes nothing more.
    pub fn recount(&mut self, sealed: u64) {
        if let Some(session) = self.session_mut() {
            session.recount(sealed);
        }
    }

    /// Whether the kernel's key has sealed as many records as it may.
    pub fn is_used_up(&self) -> bool {
        let kernel = self.session().and_then(|session| session.in_kernel.as_ref());
        kernel.is_some_and(|kernel| kernel.is_used_up)
    }

    /// Has nothing sealed any more, the last word included.
    pub fn abandon(&mut self) {
        if let Some(session) = self.session_mut() {
            session.is_over = true;
            if let Some(kernel) = &mut session.in_kernel {
                (kernel.alert, kernel.is_used_up) = (None, true);
            }
        }
    }

    /// Encrypts `plain` behind `outgoing`, or puts it there for the kernel to encrypt.
    pub fn seal(&mut self, plain: &[u8], outgoing: &mut Buffer) -> Result<(), TlsError> {
        match &mut self.phase {
            Phase::Plain => {
                outgoing.push(plain);
                Ok(())
            }
            Phase::Session(session) => session.seal(plain, outgoing),
            Phase::Handshake(_) | Phase::Failed => Err(TlsError::NotReady),
        }
    }

    /// Puts `close_notify` behind `outgoing`. Nothing can be sealed after it.
    pub fn close(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        match &mut self.phase {
            Phase::Plain => Ok(()),
            Phase::Session(session) => session.close(outgoing),
            Phase::Handshake(_) | Phase::Failed => Err(TlsError::NotReady),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::AgentTrust;
    use super::*;

    /// Both ends of a connection, and the ciphertext between them.
    struct Pair {
        agent: TlsEnd,
        client: TlsEnd,
    }

    /// What an end said, and what it has to send.
    type Fed = (Result<TlsState, TlsError>, Vec<u8>, Buffer);

    fn feed(end: &mut TlsEnd, bytes: &[u8]) -> Fed {
        let mut incoming = vec![0; PARTIAL_RECORD_MAX + bytes.len()];
        let partial_record = end.put_back(&mut incoming);
        incoming[partial_record..partial_record + bytes.len()].copy_from_slice(bytes);
        let (mut plain, mut outgoing) = (Vec::new(), Buffer::default());
        let state = end.open(
            &mut incoming[..partial_record + bytes.len()],
            &mut |bytes: &[u8]| plain.extend_from_slice(bytes),
            &mut outgoing,
        );
        (state, plain, outgoing)
    }

    fn sealed(end: &mut TlsEnd, plain: &[u8]) -> Buffer {
        let mut outgoing = Buffer::default();
        end.seal(plain, &mut outgoing).expect("an open end");
        outgoing
    }

    fn connected() -> Pair {
        let connector = Connector::new(&AgentTrust::Anything).expect("a connector");
        let mut client = connector.connect(IpAddr::from([10, 0, 0, 5])).expect("an end");
        let mut agent = Acceptor::new(&[]).expect("an acceptor").accept().expect("an end");
        let (_, _, mut to_agent) = feed(&mut client, b"");
        for _ in 0..4 {
            // A byte at a time: every part record has to be kept.
            let mut to_client = Buffer::default();
            for byte in to_agent.filled() {
                to_client.push(feed(&mut agent, &[*byte]).2.filled());
            }
            to_agent = feed(&mut client, to_client.filled()).2;
        }
        Pair { agent, client }
    }

    #[test]
    fn records_cut_anywhere_arrive_whole_and_nothing_is_held_afterwards() {
        let Pair { mut agent, mut client } = connected();
        let plain: Vec<u8> = (0..40_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let ciphertext = sealed(&mut client, &plain);
        let mut got = Vec::new();
        for piece in ciphertext.filled().chunks(1009) {
            let (state, some, _) = feed(&mut agent, piece);
            assert_eq!(state.expect("an open end"), TlsState::Open);
            got.extend(some);
        }
        assert!(got == plain);
        assert_eq!(agent.partial_record.capacity(), 0);
    }

    #[test]
    fn what_comes_with_close_notify_is_read_and_answering_it_is_still_legal() {
        let Pair { mut agent, mut client } = connected();
        let mut last = sealed(&mut client, b"last words");
        client.close(&mut last).expect("a close");
        last.push(b"and junk");
        let (state, plain, _) = feed(&mut agent, last.filled());
        assert_eq!(
            (state.expect("an open end"), plain.as_slice()),
            (TlsState::PeerEnded, &b"last words"[..])
        );
        assert!(agent.partial_record.is_empty(), "junk is no part of the stream");
        let reply = sealed(&mut agent, b"still here");
        assert_eq!(feed(&mut client, reply.filled()).1, b"still here");
    }

    #[test]
    fn a_forged_record_is_an_error_with_an_alert_and_no_plaintext() {
        let Pair { mut agent, mut client } = connected();
        let mut ciphertext = sealed(&mut client, b"secret").filled().to_vec();
        ciphertext[9] ^= 1;
        let (state, plain, alert) = feed(&mut agent, &ciphertext);
        assert!(matches!(state, Err(TlsError::Protocol(_))) && plain.is_empty() && !alert.is_empty());
    }

    #[test]
    fn a_handshake_message_in_endless_pieces_is_refused() {
        let mut agent = Acceptor::new(&[]).expect("an acceptor").accept().expect("an end");
        // A ClientHello of 64 KiB in records of one byte each (RFC 8446 5.1).
        let pieces = [1, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat(0));
        let error = pieces.take(100_000).find_map(|byte| feed(&mut agent, &[22, 3, 3, 0, 1, byte]).0.err());
        assert!(error.is_some());
        assert!(agent.partial_record.len() <= PARTIAL_RECORD_MAX);
    }
}
