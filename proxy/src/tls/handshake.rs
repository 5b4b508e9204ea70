//! The TLS handshake, by rustls: ciphertext goes in and comes out until both sides may send, and a [`Session`] takes
//! over. Early data is neither offered nor accepted: it could be replayed.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};

use super::session::{Secrets, Session};
use super::{TlsError, TlsState};
use crate::buffer::Buffer;

/// Content types whose records are no alert (RFC 8446 5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;

/// A handshake, and what side of it this is.
pub(super) enum Handshake {
    /// With an agent.
    Agent(UnbufferedClientConnection),
    /// With a client.
    Client(UnbufferedServerConnection),
}

impl Handshake {
    /// Takes `incoming` in. Gives the bytes used, and where it stands; the data that came with the last flight goes to
    /// `sink`, what has to be answered behind `outgoing`, also with an error.
    pub(super) fn open(
        &mut self,
        incoming: &mut [u8],
        sink: &mut impl FnMut(&[u8]),
        outgoing: &mut Buffer,
    ) -> Result<(usize, TlsState), TlsError> {
        match self {
            Self::Agent(connection) => open(connection, incoming, sink, outgoing),
            Self::Client(connection) => open(connection, incoming, sink, outgoing),
        }
    }

    /// What comes after it.
    pub(super) fn finish(self) -> Result<Session, TlsError> {
        match self {
            Self::Agent(connection) => {
                let (now, kernel) = connection.dangerous_into_kernel_connection()?;
                Session::new(now, Secrets::Agent(kernel))
            }
            Self::Client(connection) => {
                let (now, kernel) = connection.dangerous_into_kernel_connection()?;
                Session::new(now, Secrets::Client(kernel))
            }
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
    let mut has_ended = false;
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process(&mut incoming[used..]);
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                encode_alert(connection, &mut incoming[used + discard..], outgoing);
                return Err(error.into());
            }
        };
        let step = step(state, sink, outgoing)?;
        used += discard;
        match step {
            Step::More => {}
            Step::PeerEnded => has_ended = true,
            Step::Blocked => return Ok((used, TlsState::Handshaking)),
            Step::Done if has_ended => return Ok((used, TlsState::PeerEnded)),
            Step::Done => return Ok((used, TlsState::Open)),
        }
    }
}

/// What follows from one state.
enum Step {
    More,
    /// The peer said all it had to with its last flight.
    PeerEnded,
    /// It is the peer's turn.
    Blocked,
    /// Both sides may send, and nothing waits to be.
    Done,
}

fn step<D>(
    state: ConnectionState<'_, '_, D>,
    sink: &mut impl FnMut(&[u8]),
    outgoing: &mut Buffer,
) -> Result<Step, TlsError> {
    match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                sink(record?.payload);
            }
            Ok(Step::More)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            encode(&mut data, outgoing);
            Ok(Step::More)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::More)
        }
        ConnectionState::PeerClosed => Ok(Step::PeerEnded),
        ConnectionState::BlockedHandshake => Ok(Step::Blocked),
        ConnectionState::WriteTraffic(_) => Ok(Step::Done),
        _ => Err(TlsError::NotReady),
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
