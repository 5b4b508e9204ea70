//! TLS to an agent on a socket that blocks, for the commands of an operator: what was agreed on, what it shows, and why it failed. No
//! desktop is served by it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::certificates::{AgentTrust, Pin};
use super::end::Connector;
use super::handshake::of_agent;
use super::material::{CertificateError, parsed};
use super::reasons::HandshakeFailure;

/// A stream with TLS, once the handshake is done.
pub struct BlockingTls {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// Why there is none.
#[derive(Debug)]
pub enum BlockingTlsError {
    /// The handshake has failed: in what way, and how it is told.
    Handshake(HandshakeFailure, String),
    /// The connection has.
    Io(io::Error),
}

impl Connector {
    /// One that accepts any certificate, to see what is shown.
    pub fn trusting_anybody() -> Result<Self, CertificateError> {
        Self::new(&AgentTrust::Anything)
    }

    /// Does the handshake, with the limits of time that the socket has.
    pub fn connect_blocking(
        &self,
        mut stream: TcpStream,
        agent: IpAddr,
    ) -> Result<BlockingTls, BlockingTlsError> {
        let name = self.name.clone().unwrap_or_else(|| ServerName::IpAddress(agent.into()));
        let told = |error: rustls::Error, has_chosen| {
            let error = of_agent(error.into(), has_chosen);
            BlockingTlsError::Handshake(error.handshake_failure(), error.to_string())
        };
        let mut connection =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(|error| told(error, false))?;
        while connection.is_handshaking() {
            let done = connection.complete_io(&mut stream);
            let has_chosen = connection.negotiated_cipher_suite().is_some();
            match done {
                Ok((0, 0)) => return Err(BlockingTlsError::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => {
                    let tls = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>()).cloned();
                    return Err(tls.map_or(BlockingTlsError::Io(error), |tls| told(tls, has_chosen)));
                }
            }
        }
        Ok(BlockingTls { stream: StreamOwned::new(connection, stream) })
    }
}

impl BlockingTls {
    /// The version and the cipher suite.
    pub fn agreed(&self) -> String {
        let version = self.stream.conn.protocol_version().and_then(|version| version.as_str());
        let suite = self.stream.conn.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
        format!("{}, {}", version.unwrap_or("unknown version"), suite.unwrap_or("unknown suite"))
    }

    /// The pin of the certificate that is shown, and until when it is valid.
    pub fn certificate(&self) -> Option<(Pin, String)> {
        let shown = self.stream.conn.peer_certificates()?.first()?;
        let until = parsed(shown).map(|it| it.validity().not_after.to_string());
        Some((Pin::of(shown), until.unwrap_or_else(|| "an unknown time".to_owned())))
    }
}

impl Read for BlockingTls {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.read(into)
    }
}

impl Write for BlockingTls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
