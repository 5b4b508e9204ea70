//! Asks an agent for the certificate it shows, so that an operator can pin it. Waits; serves nobody.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::{AgentTrust, CertificateError, Connector, Pin};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why an agent shows no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ShownError {
    /// It can't be reached, or does not speak TLS.
    #[error("{0} shows no certificate: {1}")]
    Agent(SocketAddr, io::Error),
    /// TLS can't be set up here.
    #[error("{0}")]
    Tls(#[from] CertificateError),
}

impl Pin {
    /// Of the certificate that `agent` shows, whoever vouches for it.
    pub fn shown_by(agent: SocketAddr) -> Result<Self, ShownError> {
        let connector = Connector::new(&AgentTrust::Anything)?;
        let name = ServerName::IpAddress(agent.ip().into());
        let connection = ClientConnection::new(connector.config, name).map_err(CertificateError::from)?;
        shown(agent, connection).map_err(|error| ShownError::Agent(agent, error))
    }
}

fn shown(agent: SocketAddr, mut connection: ClientConnection) -> io::Result<Pin> {
    let mut stream = TcpStream::connect_timeout(&agent, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    while connection.is_handshaking() {
        if connection.complete_io(&mut stream)? == (0, 0) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let own = connection.peer_certificates().and_then(|chain| chain.first());
    own.map(Pin::of).ok_or_else(|| io::Error::other("it sent none"))
}
