//! TLS to clients and agents: handshakes, records, certificates and whom to trust. The only folder that names rustls. It
//! turns bytes into bytes: it owns no socket and never waits. Uses `os` and `runtime`.

mod async_client;
mod blocking_client;
mod certificates;
mod end;
mod error;
mod established;
mod fetch_certificate;
mod handshake;
mod kernel_key;
mod material;
mod offload;
mod pem;
mod reasons;
mod record;
mod trust;
mod warnings;

pub use async_client::AsyncClient;
pub use blocking_client::{BlockingTls, BlockingTlsError};
pub use certificates::{AgentTrust, ClientAuthority, ClientDemands, Pin, PinError};
pub use end::{Acceptor, Connector, PARTIAL_RECORD_MAX, TlsEnd};
pub use error::TlsError;
pub use established::TlsState;
pub use fetch_certificate::ShownError;
pub use kernel_key::{KernelKey, Way};
pub use material::{CertificateError, CertificatePair};
pub use offload::{BadRecord, ControlRecord};
pub use pem::PemError;
pub use reasons::HandshakeFailure;
pub use record::{Cipher, RecordSuite, Version};
pub use warnings::{CertificateExpiry, CertificateWarning, EXPIRES_SOON_S, expiries, warnings};
