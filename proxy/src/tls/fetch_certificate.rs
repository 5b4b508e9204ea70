//! Asks an agent for the certificate it shows, so that an operator can pin it. Waits; serves nobody.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::certificates::{AgentTrust, Pin};
use super::end::Connector;
use super::handshake::of_agent;
use super::material::CertificateError;

/// How long each step may take.
const IO_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an agent shows no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ShownError {
    /// It can't be reached, or does not speak TLS.
    #[error("{0} shows no certificate: {1}")]
    Agent(SocketAddr, io::Error),
    /// Its certificate can't be verified, so that pinning it would shut the agent out.
    #[error(
        "{0} shows a certificate that can't be pinned: {1}. Give the agent another one, \
         `openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=dcv -keyout dcv.key -out dcv.pem` makes it"
    )]
    Unusable(SocketAddr, io::Error),
    /// TLS can't be set up here.
    #[error("{0}")]
    Tls(#[from] CertificateError),
}

impl Pin {
    /// Of the certificate that `agent` shows, whoever vouches for it. It is shown twice: the second time it is verified
    /// as by `--agent-pin`.
    pub fn shown_by(agent: SocketAddr) -> Result<Self, ShownError> {
        let pin = shown(agent, begin(agent, &AgentTrust::Anything)?);
        let pin = pin.map_err(|error| ShownError::Agent(agent, error))?;
        let verified = begin(agent, &AgentTrust::Pinned(vec![pin]))?;
        shown(agent, verified).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => ShownError::Unusable(agent, error),
            _ => ShownError::Agent(agent, error),
        })
    }
}

fn begin(agent: SocketAddr, trust: &AgentTrust) -> Result<ClientConnection, CertificateError> {
    let name = ServerName::IpAddress(agent.ip().into());
    Ok(ClientConnection::new(Connector::new(trust)?.config, name)?)
}

fn shown(agent: SocketAddr, mut connection: ClientConnection) -> io::Result<Pin> {
    let mut stream = TcpStream::connect_timeout(&agent, IO_TIMEOUT)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    while connection.is_handshaking() {
        let done = connection.complete_io(&mut stream);
        let has_chosen = connection.negotiated_cipher_suite().is_some();
        if done.map_err(|error| plainly(error, has_chosen))? == (0, 0) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let own = connection.peer_certificates().and_then(|chain| chain.first());
    own.map(Pin::of).ok_or_else(|| io::Error::other("it sent none"))
}

/// An error of rustls inside, in plain words.
fn plainly(error: io::Error, has_chosen: bool) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let told = tls.map(|tls| of_agent(tls.clone().into(), has_chosen).to_string());
    told.map_or(error, |told| io::Error::new(io::ErrorKind::InvalidData, told))
}
