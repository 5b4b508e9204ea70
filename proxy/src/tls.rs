//! One TLS end of a connection, without I/O: ciphertext goes in and comes out, the caller owns the socket.
//! The only file that names rustls. How certificates are read, chosen and verified is in `certificates`.
//! It never keeps plaintext: every byte that was decrypted has been handed to the caller's sink.

mod certificates;

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, ServerConfig};

use crate::buffer::Buffer;

pub use certificates::{AgentTrust, CertificateError, CertificatePair, Pin, PinError};

/// Ciphertext that may have to be kept between two receives: one record, or the largest handshake message.
pub const HELD_BYTES_MAX: usize = 64 * 1024 + 18 * 1024;

/// Bytes that sealing adds to a record at the most: header, explicit nonce, tag, content type, rounded up.
const RECORD_OVERHEAD: usize = 64;
/// Plaintext bytes of a full record (RFC 8446 5.1).
const RECORD_BYTES: usize = 16 * 1024;

/// What went wrong inside TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer broke the protocol, or offered nothing both sides accept.
    #[error("{0}")]
    Protocol(#[from] rustls::Error),
    /// The key has sealed as many records as it may (TLS 1.2 AES-GCM: 2^24); the connection has to end.
    #[error("the TLS key is used up")]
    KeyExhausted,
    /// A handshake message came in more pieces than an honest peer would cut it into.
    #[error("a TLS handshake message in too many pieces")]
    TooFragmented,
    /// Sealing was asked for before the handshake was done.
    #[error("TLS is not ready to send")]
    NotReady,
}

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

/// Accepts TLS from clients. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<ServerConfig>);

/// Starts TLS to agents. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    config: Arc<ClientConfig>,
    /// The name that every agent's certificate must carry; its address where there is none.
    name: Option<ServerName<'static>>,
}

impl Acceptor {
    /// A new connection's end.
    pub fn accept(&self) -> Result<TlsEnd, TlsError> {
        let connection = UnbufferedServerConnection::new(self.0.clone())?;
        Ok(TlsEnd::new(Side::Client(Box::new(connection))))
    }
}

impl Connector {
    /// A new connection's end. An address is never sent as server name (RFC 6066 3).
    pub fn connect(&self, agent: IpAddr) -> Result<TlsEnd, TlsError> {
        let name = self.name.clone().unwrap_or_else(|| ServerName::IpAddress(agent.into()));
        let connection = UnbufferedClientConnection::new(self.config.clone(), name)?;
        Ok(TlsEnd::new(Side::Agent(Box::new(connection))))
    }
}

/// TLS, or the lack of it, on one socket.
pub struct TlsEnd {
    side: Side,
    /// Ciphertext received that is no whole record or handshake message yet.
    held: Vec<u8>,
}

enum Side {
    Plain,
    Agent(Box<UnbufferedClientConnection>),
    Client(Box<UnbufferedServerConnection>),
}

impl TlsEnd {
    /// No TLS: bytes pass as they are.
    pub fn plain() -> Self {
        Self::new(Side::Plain)
    }

    fn new(side: Side) -> Self {
        Self { side, held: Vec::new() }
    }

    /// Whether bytes pass as they are.
    pub fn is_plain(&self) -> bool {
        matches!(self.side, Side::Plain)
    }

    /// Copies the ciphertext that waits for its rest to the front of `incoming`, behind which the caller
    /// receives. Returns its length, at most [`HELD_BYTES_MAX`].
    pub fn put_back(&self, incoming: &mut [u8]) -> usize {
        incoming[..self.held.len()].copy_from_slice(&self.held);
        self.held.len()
    }

    /// Decrypts `incoming`, which starts with what [`TlsEnd::put_back`] put there. Plaintext goes to `sink`;
    /// what has to be answered (handshake, key update, alert) goes behind `outgoing`, also with an error.
    pub fn open(
        &mut self,
        incoming: &mut [u8],
        sink: &mut impl FnMut(&[u8]),
        outgoing: &mut Buffer,
    ) -> Result<TlsState, TlsError> {
        let (used, state) = match &mut self.side {
            Side::Plain => {
                sink(incoming);
                return Ok(TlsState::Open);
            }
            Side::Agent(connection) => open(&mut **connection, incoming, sink, outgoing)?,
            Side::Client(connection) => open(&mut **connection, incoming, sink, outgoing)?,
        };
        // What follows a close_notify is no part of the stream (RFC 8446 6.1).
        let rest = if state == TlsState::PeerEnded { &[] } else { &incoming[used..] };
        self.hold(rest)?;
        Ok(state)
    }

    /// An idle connection holds no memory for records that are yet to come.
    fn hold(&mut self, rest: &[u8]) -> Result<(), TlsError> {
        if rest.len() > HELD_BYTES_MAX {
            return Err(TlsError::TooFragmented);
        }
        if rest.is_empty() {
            self.held = Vec::new();
        } else {
            self.held.clear();
            self.held.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Encrypts `plain` behind `outgoing`.
    pub fn seal(&mut self, plain: &[u8], outgoing: &mut Buffer) -> Result<(), TlsError> {
        match &mut self.side {
            Side::Plain => {
                outgoing.push(plain);
                Ok(())
            }
            Side::Agent(connection) => seal(&mut **connection, &mut self.held, plain, outgoing),
            Side::Client(connection) => seal(&mut **connection, &mut self.held, plain, outgoing),
        }
    }

    /// Puts `close_notify` behind `outgoing`. Nothing can be sealed after it.
    pub fn close(&mut self, outgoing: &mut Buffer) -> Result<(), TlsError> {
        match &mut self.side {
            Side::Plain => Ok(()),
            Side::Agent(connection) => close(&mut **connection, &mut self.held, outgoing),
            Side::Client(connection) => close(&mut **connection, &mut self.held, outgoing),
        }
    }
}

/// What rustls calls alike on both sides without a common trait.
trait Records {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Records for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

fn open<C: Records>(
    connection: &mut C,
    incoming: &mut [u8],
    sink: &mut impl FnMut(&[u8]),
    outgoing: &mut Buffer,
) -> Result<(usize, TlsState), TlsError> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process(&mut incoming[used..]);
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                encode_alert(connection, &mut incoming[used + discard..], outgoing);
                return Err(error.into());
            }
        };
        let stop = step(state, sink, outgoing)?;
        used += discard;
        if let Some(stop) = stop {
            return Ok((used, stop));
        }
    }
}

/// Handles one state; `Some` where nothing more can be done without the peer.
fn step<D>(
    state: ConnectionState<'_, '_, D>,
    sink: &mut impl FnMut(&[u8]),
    outgoing: &mut Buffer,
) -> Result<Option<TlsState>, TlsError> {
    match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                sink(record?.payload);
            }
            Ok(None)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            encode(&mut data, outgoing);
            Ok(None)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(None)
        }
        ConnectionState::BlockedHandshake => Ok(Some(TlsState::Handshaking)),
        ConnectionState::WriteTraffic(_) => Ok(Some(TlsState::Open)),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Some(TlsState::PeerEnded)),
        // Early data is never offered or accepted: it could be replayed.
        _ => Err(TlsError::NotReady),
    }
}

fn encode<D>(data: &mut rustls::unbuffered::EncodeTlsData<'_, D>, outgoing: &mut Buffer) {
    let mut wanted = 1024;
    loop {
        match data.encode(outgoing.room(wanted)) {
            Ok(written) => return outgoing.advance(written),
            Err(EncodeError::InsufficientSize(size)) => wanted = size.required_size,
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

/// After an error rustls may still have an alert for the peer.
fn encode_alert<C: Records>(connection: &mut C, incoming: &mut [u8], outgoing: &mut Buffer) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process(incoming).state {
        encode(&mut data, outgoing);
    }
}

/// Brings the connection to where it may send, and does `send` there.
///
/// `held` is what rustls has seen and not consumed: it must be shown again, because it may have noted
/// positions in it.
fn when_writable<C: Records>(
    connection: &mut C,
    held: &mut Vec<u8>,
    outgoing: &mut Buffer,
    mut send: impl FnMut(
        &mut rustls::unbuffered::WriteTraffic<'_, C::Data>,
        &mut [u8],
    ) -> Result<usize, EncryptError>,
    mut wanted: usize,
) -> Result<(), TlsError> {
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process(held);
        match state? {
            ConnectionState::WriteTraffic(mut traffic) => match send(&mut traffic, outgoing.room(wanted)) {
                Ok(written) => {
                    outgoing.advance(written);
                    held.drain(..discard);
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(size)) => wanted = size.required_size,
                Err(EncryptError::EncryptExhausted) => return Err(TlsError::KeyExhausted),
            },
            ConnectionState::EncodeTlsData(mut data) => encode(&mut data, outgoing),
            ConnectionState::TransmitTlsData(data) => data.done(),
            // Seen by `open` as well; here it only stands before the state that may write.
            ConnectionState::PeerClosed => {}
            _ => return Err(TlsError::NotReady),
        }
        held.drain(..discard);
    }
}

fn seal<C: Records>(
    connection: &mut C,
    held: &mut Vec<u8>,
    plain: &[u8],
    outgoing: &mut Buffer,
) -> Result<(), TlsError> {
    let wanted = plain.len() + (plain.len() / RECORD_BYTES + 1) * RECORD_OVERHEAD;
    when_writable(connection, held, outgoing, |traffic, room| traffic.encrypt(plain, room), wanted)
}

// The method itself is not general enough over its lifetimes.
#[allow(clippy::redundant_closure_for_method_calls)]
fn close<C: Records>(connection: &mut C, held: &mut Vec<u8>, outgoing: &mut Buffer) -> Result<(), TlsError> {
    when_writable(
        connection,
        held,
        outgoing,
        |traffic, room| traffic.queue_close_notify(room),
        RECORD_OVERHEAD,
    )
}
