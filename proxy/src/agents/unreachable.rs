//! Why an agent is not reached, in the words that users are given, and operators by `dcv-splice doctor`: nothing of how this
//! proxy is set up. Pure.

use std::fmt;
use std::io::{self, ErrorKind};

use crate::tls::HandshakeFailure;

/// Why an agent is not reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum UnreachableReason {
    /// Nobody listens at its port.
    PortClosed,
    /// It does not answer.
    NoAnswer,
    /// There is no way to it.
    NoRoute,
    /// The fault is here.
    Local,
    /// It speaks HTTP without TLS.
    PlainHttp,
    /// No version or cipher suite of TLS in common.
    OldTls,
    /// Another certificate than the expected one.
    CertificateChanged,
    /// A certificate that is expired or damaged.
    CertificateInvalid,
    /// The TLS handshake fails for another reason.
    NoTls,
}

impl UnreachableReason {
    /// Of a connection that was not made.
    pub(crate) fn of_connection(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Self::PortClosed,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::NoAnswer,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
                Self::NoRoute
            }
            _ => Self::Local,
        }
    }

    /// Of a TLS handshake.
    pub(crate) fn of_handshake(failure: HandshakeFailure) -> Self {
        match failure {
            HandshakeFailure::Version | HandshakeFailure::Suites => Self::OldTls,
            HandshakeFailure::CertificateUnknown | HandshakeFailure::CertificateMissing => {
                Self::CertificateChanged
            }
            HandshakeFailure::CertificateExpired | HandshakeFailure::CertificateBroken => {
                Self::CertificateInvalid
            }
            _ => Self::NoTls,
        }
    }

    /// What its operator does about it.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::PortClosed => "start its DCV server, or look at its port (--agent-port)",
            Self::NoAnswer => {
                "look whether it runs (`dcv list-sessions` on it), and whether a firewall or security group is in between"
            }
            Self::NoRoute => "look at the routes of this host: `ip route get` with its address",
            Self::Local => "look at the ports, descriptors and memory of this host, and at its firewall",
            Self::PlainHttp => "set --agent-tls off, or tls = \"off\" for this agent in --agents-file",
            Self::OldTls => "update its DCV server, or allow TLS 1.2 with ECDHE and AES-GCM there",
            Self::CertificateChanged => {
                "if it was renewed, put the new one into --agent-pin or --agent-ca (`dcv-splice pin` shows it); if not, \
                 somebody is in between"
            }
            Self::CertificateInvalid => "give the agent a new certificate, or set its clock",
            Self::NoTls => "look what listens there: `dcv-splice doctor` with another port, --agent-port",
        }
    }
}

/// What is seen of it, behind the agent's name.
impl fmt::Display for UnreachableReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortClosed => {
                "nobody listens at its port: its DCV server does not run, or has another port"
            }
            Self::NoAnswer => "it does not answer: it is off or hangs, or a firewall is in between",
            Self::NoRoute => "there is no way to it from here",
            Self::Local => "this proxy can't connect to it just now",
            Self::PlainHttp => "it speaks plain HTTP where TLS is expected",
            Self::OldTls => {
                "it speaks no TLS that is safe: it needs TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305"
            },
            Self::CertificateChanged => "its certificate is not the one that is expected",
            Self::CertificateInvalid => "its certificate is expired or damaged",
            Self::NoTls => "its TLS handshake fails",
        })
    }
}
