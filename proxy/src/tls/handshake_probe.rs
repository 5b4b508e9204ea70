//! A TLS handshake with an agent for its own sake, on a socket of somebody else's: whether it begins TLS at all. Whose
//! certificate it has is not looked at, and nothing secret is ever sent.

use std::io;
use std::net::IpAddr;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificates::AgentTrust;
use super::end::Connector;
use super::material::CertificateError;

/// Makes such handshakes. A clone is another handle of the same.
#[derive(Clone, Debug)]
pub struct HandshakeProbe(Connector);

impl HandshakeProbe {
    /// One that accepts any certificate.
    pub fn new() -> Result<Self, CertificateError> {
        Connector::new(&AgentTrust::Anything).map(Self)
    }

    /// The stream once the handshake is done. Waits for as long as the agent takes.
    pub async fn run(&self, stream: TcpStream, agent: IpAddr) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::IpAddress(agent.into());
        TlsConnector::from(self.0.config.clone()).connect(name, stream).await
    }
}
