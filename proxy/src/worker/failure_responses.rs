//! The response of the proxy to each failure, its reject reason, and its log line. Decides nothing and waits for nothing;
//! the details are in the operator's log only.

use std::io::{self, ErrorKind};

use crate::access::rejections::{RejectCounters, RejectReason};
use crate::agents::health::{Failure as AgentFailure, FailureKind};
use crate::agents::pool::ConnectError;
use crate::agents::unreachable::UnreachableReason;
use crate::http::h1::body::BodyError;
use crate::http::h1::exchange::Failure;
use crate::http::local_response::LocalResponse;
use crate::observe::agent::Agent;
use crate::observe::client::ClientConnection;
use crate::observe::side::Side;
use crate::tls::HandshakeFailure;
use crate::transport::endpoint::EndpointError;
use crate::transport::net::Runtime;
use crate::worker::context::Generation;

/// Logs the 1st, 2nd, 4th, ... failure of each kind to connect to an agent.
pub(super) fn log_connect_failure<N: Runtime>(
    generation: &Generation<N>,
    client: ClientConnection,
    agent: Agent,
    error: &ConnectError,
) {
    if let Some(count) = generation.shared.process.failures.note(error.kind(), agent.id) {
        tracing::warn!(
            conn = client.id.number(),
            client = %client.address,
            %agent,
            reason = %error.kind(),
            count,
            detail = &*error.to_string(),
            "agent connect failed",
        );
    }
}

/// Tells those who probe agents of a failure that says that this one may be down.
pub(super) fn mark_if_down<N: Runtime>(generation: &Generation<N>, agent: Agent, error: &ConnectError) {
    let kind = match error {
        ConnectError::TimedOut => Some(FailureKind::Timeout),
        ConnectError::Refused(error) => connect_failure(error),
        ConnectError::Handshake(error) => handshake_failure(error),
    };
    if let (Some(kind), true) = (kind, generation.config().probe.is_some()) {
        let detail = format!("a connection {error}");
        generation.shared.process.marks.note(agent.address, AgentFailure { kind, detail });
    }
}

/// What a connection that was not made says of the agent; nothing where the reason may lie here.
fn connect_failure(error: &io::Error) -> Option<FailureKind> {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Some(FailureKind::Refused),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Some(FailureKind::Unreachable),
        ErrorKind::TimedOut => Some(FailureKind::Timeout),
        _ => None,
    }
}

/// The same of a handshake. An agent whose certificate or version is not accepted here lives.
fn handshake_failure(error: &EndpointError) -> Option<FailureKind> {
    match error {
        EndpointError::TimedOut => Some(FailureKind::Timeout),
        EndpointError::Io(_) | EndpointError::EndedEarly | EndpointError::NoTls => {
            Some(FailureKind::Handshake)
        }
        EndpointError::Tls(error) => match error.handshake_failure() {
            HandshakeFailure::Left | HandshakeFailure::NoTls => Some(FailureKind::Handshake),
            _ => None,
        },
    }
}

/// Logs the 1st, 2nd, 4th, ... request of each kind that failed. Not a warning: clients leave.
pub(super) fn log_failure<N: Runtime>(
    generation: &Generation<N>,
    client: ClientConnection,
    agent: Agent,
    reason: &'static str,
    detail: &str,
) {
    if let Some(count) = generation.shared.process.failures.note(reason, agent.id) {
        tracing::info!(
            conn = client.id.number(),
            client = %client.address,
            %agent,
            %reason,
            count,
            detail,
            "request failed",
        );
    }
}

/// Counts a handshake that failed. One who has said nothing of it is no client: it only looked whether the port is open.
pub(super) fn note_failed_handshake(
    rejections: &RejectCounters,
    client: ClientConnection,
    error: &EndpointError,
    was_heard: bool,
) {
    match (handshake_failure_reason(error), error) {
        (RejectReason::HandshakeAborted, EndpointError::Tls(_)) => {
            rejections.note_quietly(RejectReason::HandshakeAborted);
        }
        (RejectReason::HandshakeAborted, _) if !was_heard => {}
        (RejectReason::HandshakeAborted, _) => rejections.note_quietly(RejectReason::HandshakeAborted),
        (reason, EndpointError::Tls(error)) => rejections.note_with(reason, client, error),
        (reason, _) => rejections.note(reason, client),
    }
}

/// Why a handshake with a client failed.
pub(super) fn handshake_failure_reason(error: &EndpointError) -> RejectReason {
    match error {
        EndpointError::Tls(error) => reject_reason(error.handshake_failure()),
        EndpointError::TimedOut => RejectReason::HandshakeTimeout,
        _ => RejectReason::HandshakeAborted,
    }
}

fn reject_reason(failure: HandshakeFailure) -> RejectReason {
    match failure {
        HandshakeFailure::Version => RejectReason::TlsVersion,
        HandshakeFailure::Suites => RejectReason::TlsCipherSuites,
        HandshakeFailure::Protocol => RejectReason::TlsAlpn,
        HandshakeFailure::CertificateMissing => RejectReason::CertificateMissing,
        HandshakeFailure::CertificateUnknown => RejectReason::CertificateUntrusted,
        HandshakeFailure::CertificateExpired => RejectReason::CertificateExpired,
        HandshakeFailure::CertificateBroken => RejectReason::CertificateInvalid,
        HandshakeFailure::Alert => RejectReason::TlsAlert,
        HandshakeFailure::Left => RejectReason::HandshakeAborted,
        HandshakeFailure::NoTls => RejectReason::NotTls,
        HandshakeFailure::ProtocolViolation => RejectReason::TlsError,
    }
}

pub(super) fn not_tls() -> LocalResponse {
    LocalResponse::new(400, "This port speaks HTTPS: write https:// in front of the address.")
}

pub(super) fn head_took_too_long() -> LocalResponse {
    LocalResponse::new(408, "The request head did not come in time.")
}

/// What the client is told where the agent is not reached; the details are for the operator.
pub(super) fn unreachable(agent: Agent, error: &ConnectError) -> LocalResponse {
    let reason = match error {
        ConnectError::Refused(error) => UnreachableReason::of_connection(error),
        ConnectError::TimedOut | ConnectError::Handshake(EndpointError::TimedOut) => {
            UnreachableReason::NoAnswer
        }
        ConnectError::Handshake(EndpointError::Tls(error)) => {
            UnreachableReason::of_handshake(error.handshake_failure())
        }
        ConnectError::Handshake(_) => UnreachableReason::NoTls,
    };
    LocalResponse::new(error.status(), format!("The desktop at {} is not reached: {reason}.", agent.id))
}

pub(super) fn bad_gateway(agent: Agent, what: &str) -> LocalResponse {
    LocalResponse::new(502, format!("The desktop at {} {what}.", agent.id))
}

/// What the client is told of a failure; nothing where it is gone itself, or everything ends.
pub(super) fn response_to(failure: &Failure, agent: Agent) -> Option<LocalResponse> {
    match failure {
        Failure::BadHead(_) => Some(bad_gateway(agent, "answered with what is no valid HTTP response")),
        Failure::UnaskedUpgrade => Some(bad_gateway(agent, "switched to a protocol that nobody asked for")),
        Failure::TooManyInterim => Some(bad_gateway(agent, "sent interim responses without end")),
        Failure::Body(Side::Client, error, _) => {
            Some(LocalResponse::new(if *error == BodyError::TooLarge { 413 } else { 400 }, error.to_string()))
        }
        Failure::Body(Side::Agent, ..) => {
            Some(bad_gateway(agent, "answered with what is no valid HTTP response"))
        }
        Failure::Endpoint(Side::Client, EndpointError::TimedOut, _) => {
            Some(LocalResponse::new(408, "The request's body did not come in time."))
        }
        Failure::Endpoint(Side::Client, _, _) | Failure::Stopped => None,
        Failure::Endpoint(Side::Agent, EndpointError::TimedOut, _) => {
            Some(LocalResponse::new(504, format!("The desktop at {} did not answer in time.", agent.id)))
        }
        Failure::Endpoint(Side::Agent, _, _) => {
            Some(bad_gateway(agent, "closed the connection without an answer"))
        }
    }
}
