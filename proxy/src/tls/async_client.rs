//! TLS of the network helper, on sockets of its own loop: to agents that are probed, and to a session resolver. No desktop is
//! served by it.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificates::AgentTrust;
use super::end::Connector;
use super::material::CertificateError;
use crate::os::files::Files;

/// Makes such connections. A clone is another handle of the same.
#[derive(Clone, Debug)]
pub struct AsyncClient(Connector);

/// One text, whatever its name.
struct InMemory<'a>(&'a [u8]);

impl Files for InMemory<'_> {
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(self.0.to_vec())
    }

    fn mode(&self, _: &Path) -> io::Result<u32> {
        Ok(0)
    }

    fn append(&self, _: &Path) -> io::Result<std::fs::File> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl AsyncClient {
    /// One that accepts any certificate: for who only wants to know whether TLS is spoken.
    pub fn trusting_anybody() -> Result<Self, CertificateError> {
        Connector::new(&AgentTrust::Anything).map(Self)
    }

    /// One that verifies certificates for `name` by these authorities (PEM).
    pub fn trusting(authorities: &[u8], name: &str) -> Result<Self, CertificateError> {
        let trust =
            AgentTrust::Authority { file: "--session-resolver-ca".into(), name: Some(name.to_owned()) };
        Connector::reading(&trust, &InMemory(authorities)).map(Self)
    }

    /// The stream once the handshake is done. Waits for as long as the other side takes.
    pub async fn connect(&self, stream: TcpStream, server: IpAddr) -> io::Result<TlsStream<TcpStream>> {
        let name = self.0.name.clone().unwrap_or_else(|| ServerName::IpAddress(server.into()));
        TlsConnector::from(self.0.config.clone()).connect(name, stream).await
    }
}
