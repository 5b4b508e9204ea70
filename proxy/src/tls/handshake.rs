//! The TLS handshake, by rustls: ciphertext goes in and comes out until both sides may send, and a [`Session`] takes
//! over. rustls is shown a record at a time, so that it never sees one that follows the handshake: what it made of such
//! a one would be lost with it. Early data is neither offered nor accepted: it could be replayed.

use rustls::AlertDescription;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};

use super::error::TlsError;
use super::established::{Secrets, Session};
use super::reasons::HandshakeFailure;
use super::record::{HANDSHAKE, length};
use crate::runtime::buffer::Buffer;

/// A content type (RFC 8446 5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;

/// The name of HTTP/2 with TLS (RFC 9113 3.2).
pub(super) const HTTP2: &[u8] = b"h2";

/// A handshake message (RFC 8446 4).
const CLIENT_HELLO: u8 = 1;

/// Versions, as they stand in hellos (RFC 8446 4.2.1).
const TLS12: u16 = 0x0303;
const TLS13: u16 = 0x0304;

/// A handshake.
pub(super) struct Handshake {
    side: Side,
    /// Bytes at the front of what comes that rustls has seen and wants to see again.
    seen: usize,
    heard: bool,
}

/// The side of the handshake.
enum Side {
    /// With an agent.
    Agent(UnbufferedClientConnection),
    /// With a client.
    Client(UnbufferedServerConnection),
}

impl Handshake {
    /// With an agent.
    pub(super) fn with_agent(connection: UnbufferedClientConnection) -> Self {
        Self { side: Side::Agent(connection), seen: 0, heard: false }
    }

    /// With a client.
    pub(super) fn with_client(connection: UnbufferedServerConnection) -> Self {
        Self { side: Side::Client(connection), seen: 0, heard: false }
    }

    /// Takes `incoming` in, which starts with what was not used before. Gives the bytes used, and whether it is done.
    /// What has to be answered goes behind `outgoing`, also with an error.
    pub(super) fn open(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Buffer,
    ) -> Result<(usize, bool), TlsError> {
        self.heard |= !incoming.is_empty();
        let seen = self.seen;
        let opened = match &mut self.side {
            Side::Agent(connection) => {
                let opened = open(connection, incoming, seen, outgoing);
                opened.map_err(|error| of_agent(error, connection.negotiated_cipher_suite().is_some()))
            }
            Side::Client(connection) => {
                open(connection, incoming, seen, outgoing).map_err(|error| of_client(error, incoming))
            }
        };
        let (used, seen, is_done) = opened?;
        self.seen = seen - used;
        Ok((used, is_done))
    }

    /// Whether anything of the peer's has come.
    pub(super) fn was_heard(&self) -> bool {
        self.heard
    }

    /// Whether a client and the proxy have agreed on HTTP/2.
    pub(super) fn speaks_http2(&self) -> bool {
        match &self.side {
            Side::Agent(_) => false,
            Side::Client(connection) => connection.alpn_protocol() == Some(HTTP2),
        }
    }

    /// The state after it. `keeps_keys`: the kernel may be given them.
    pub(super) fn finish(self, keeps_keys: bool) -> Result<Session, TlsError> {
        match self.side {
            Side::Agent(connection) => {
                let (now, kernel) = connection.dangerous_into_kernel_connection()?;
                Session::new(now, Secrets::Agent(kernel), keeps_keys)
            }
            Side::Client(connection) => {
                let (now, kernel) = connection.dangerous_into_kernel_connection()?;
                Session::new(now, Secrets::Client(kernel), keeps_keys)
            }
        }
    }
}

/// An alert that comes in answer to the first hello is about what that offers (RFC 8446 4.1.1).
pub(super) fn of_agent(error: TlsError, has_chosen: bool) -> TlsError {
    match error {
        TlsError::Protocol(rustls::Error::AlertReceived(AlertDescription::HandshakeFailure))
            if !has_chosen =>
        {
            TlsError::NothingInCommon
        }
        error => error,
    }
}

/// `incoming` starts with the client's hello where that is what failed. A hello of before TLS 1.2 lacks more than the
/// version, of which rustls may complain first.
fn of_client(error: TlsError, incoming: &[u8]) -> TlsError {
    let [HANDSHAKE, _, _, _, _, CLIENT_HELLO, _, _, _, major, minor, ..] = *incoming else { return error };
    let offered = u16::from_be_bytes([major, minor]);
    match error.handshake_failure() {
        HandshakeFailure::Suites if offered < TLS12 => TlsError::TooOld { offered, least: TLS12 },
        HandshakeFailure::Version => {
            TlsError::TooOld { offered, least: if offered < TLS12 { TLS12 } else { TLS13 } }
        }
        _ => error,
    }
}

/// The functions that rustls has on both sides without a common trait.
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

/// Gives the bytes used, those that were shown, and whether the handshake is done.
fn open<C: Records>(
    connection: &mut C,
    incoming: &mut [u8],
    mut seen: usize,
    outgoing: &mut Buffer,
) -> Result<(usize, usize, bool), TlsError> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process(&mut incoming[used..seen]);
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                encode_alert(connection, &mut incoming[used + discard..seen], outgoing);
                return Err(error.into());
            }
        };
        let step = step(state, outgoing)?;
        used += discard;
        match step {
            Step::More => {}
            Step::Blocked => match next(&incoming[seen..]) {
                0 => return Ok((used, seen, false)),
                record => seen += record,
            },
            Step::Done => return Ok((used, seen, true)),
        }
    }
}

/// The length of the whole record at the front, or of everything where that is none: rustls says why.
fn next(incoming: &[u8]) -> usize {
    match length(incoming) {
        Ok(Some(length)) if length <= incoming.len() => length,
        Ok(_) => 0,
        Err(_) => incoming.len(),
    }
}

/// The result of one state.
enum Step {
    More,
    /// It is the peer's turn.
    Blocked,
    /// Both sides may send, and nothing waits to be.
    Done,
}

fn step<D>(state: ConnectionState<'_, '_, D>, outgoing: &mut Buffer) -> Result<Step, TlsError> {
    match state {
        ConnectionState::EncodeTlsData(mut data) => {
            encode(&mut data, outgoing);
            Ok(Step::More)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::More)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Blocked),
        ConnectionState::WriteTraffic(_) => Ok(Step::Done),
        // A peer that is done before the handshake is.
        _ => Err(rustls::Error::HandshakeNotComplete.into()),
    }
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, outgoing: &mut Buffer) {
    let mut wanted = 1024;
    loop {
        match data.encode(outgoing.room(wanted)) {
            Ok(written) => return outgoing.advance(written),
            Err(EncodeError::InsufficientSize(size)) => wanted = size.required_size,
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

/// After an error rustls may still have an alert for the peer, behind a hello that it was about to send.
/// Once the alert is out, it must not be shown the broken bytes again.
fn encode_alert<C: Records>(connection: &mut C, incoming: &mut [u8], outgoing: &mut Buffer) {
    while let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process(incoming).state {
        let start = outgoing.len();
        encode(&mut data, outgoing);
        if !matches!(outgoing.filled().get(start), Some(&(CHANGE_CIPHER_SPEC | HANDSHAKE))) {
            return;
        }
    }
}
