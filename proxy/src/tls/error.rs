//! Errors of TLS, in an operator's words.

use rustls::{AlertDescription, Error};

use super::reasons::{self, HandshakeFailure};
use super::record::RecordError;

/// An error inside TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer broke the protocol, or offered nothing both sides accept.
    #[error("{}", reasons::plain(.0))]
    Protocol(#[from] rustls::Error),
    /// An agent ended the handshake before it chose anything of what it was offered.
    #[error("{}", reasons::no_common_suite())]
    NothingInCommon,
    /// A client offers this version of TLS at the most (RFC 8446 4.1.2), which is too old.
    #[error("it offers only {}: it needs {} or later", reasons::version(*offered), reasons::version(*least))]
    TooOld {
        /// As it stands in its hello.
        offered: u16,
        /// The offer that it needs.
        least: u16,
    },
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

impl TlsError {
    /// The kind of a failed handshake.
    pub fn handshake_failure(&self) -> HandshakeFailure {
        match self {
            Self::Protocol(error) => reasons::handshake_failure(error),
            Self::NothingInCommon => HandshakeFailure::Suites,
            Self::TooOld { .. } => HandshakeFailure::Version,
            Self::KeyExhausted | Self::TooFragmented | Self::NotReady => HandshakeFailure::ProtocolViolation,
        }
    }
}

/// Why the connection has to end.
pub(super) enum Refusal {
    /// A record can't be used.
    Record(RecordError),
    /// What it says can't be.
    Alert(AlertDescription),
    /// rustls can't use it.
    Rustls(Error),
    /// The peer ends it.
    Told(AlertDescription),
}

impl From<RecordError> for Refusal {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Rustls(error)
    }
}
