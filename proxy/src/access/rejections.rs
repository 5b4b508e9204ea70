//! Clients and requests that were rejected: a counter for each reason. The log tells the first time of each, the second, the fourth,
//! the eighth and so on, so that nobody fills a disk by being rejected. Never asked where nobody is.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::access::offenders::{Offence, Offenders};
use crate::observe::client::ClientConnection;
use crate::observe::recent::{Recent, RecentRejection};

/// Why a client or a request is rejected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RejectReason {
    /// The client's address is not allowed.
    ClientDenied,
    /// It has as many connections as one client may have.
    ClientConnectionsMax,
    /// It opens connections too fast.
    RateLimited,
    /// All clients together have as many connections as they may have.
    MaxConnections,
    /// It sent no request while all connections were in use, and was closed for a new one.
    Evicted,
    /// No file descriptor is left.
    NoFileDescriptors,
    /// Its TLS handshake was slow and gave way to a new one.
    HandshakeEvicted,
    /// Its TLS handshake took too long.
    HandshakeTimeout,
    /// It left during its TLS handshake. Counted, and not logged: load balancers check health like that.
    HandshakeAborted,
    /// It speaks without TLS on a TLS listener.
    NotTls,
    /// It has no TLS version in common with the proxy.
    TlsVersion,
    /// It has no cipher suite, group or signature in common with the proxy.
    TlsCipherSuites,
    /// It wants another protocol than HTTP/1.1.
    TlsAlpn,
    /// It ended the handshake with an alert: most do that don't trust the proxy's certificate.
    TlsAlert,
    /// It violated the TLS protocol.
    TlsError,
    /// It sent no certificate where one is required.
    CertificateMissing,
    /// Its certificate is of no trusted authority.
    CertificateUntrusted,
    /// Its certificate is not valid yet, or no longer.
    CertificateExpired,
    /// Its certificate is damaged, or is not its own.
    CertificateInvalid,
    /// A load balancer sent no valid PROXY header.
    ProxyHeader,
    /// It sent no request in time. Counted, and not logged: browsers open connections that they never use.
    NoRequest,
    /// Its request head was not whole in time.
    RequestTimeout,
    /// It left before its request head was whole. Counted, and not logged.
    RequestAborted,
    /// Its request head is invalid or ambiguous.
    BadRequest,
    /// It breaks a rule of HTTP/2.
    Http2Protocol,
    /// It sends too many frames of HTTP/2 that ask for nothing.
    Http2Flood,
    /// It asks for an agent that may not be reached.
    AgentNotAllowed,
    /// It sent no password: as every browser does at first.
    AuthMissing,
    /// It sent a wrong password.
    AuthFailed,
    /// It sent too many wrong passwords.
    AuthBackoff,
    /// Too many passwords are being checked.
    AuthBusy,
}

impl RejectReason {
    const ALL: [Self; 31] = [
        Self::ClientDenied,
        Self::ClientConnectionsMax,
        Self::RateLimited,
        Self::MaxConnections,
        Self::Evicted,
        Self::NoFileDescriptors,
        Self::HandshakeEvicted,
        Self::HandshakeTimeout,
        Self::HandshakeAborted,
        Self::NotTls,
        Self::TlsVersion,
        Self::TlsCipherSuites,
        Self::TlsAlpn,
        Self::TlsAlert,
        Self::TlsError,
        Self::CertificateMissing,
        Self::CertificateUntrusted,
        Self::CertificateExpired,
        Self::CertificateInvalid,
        Self::ProxyHeader,
        Self::NoRequest,
        Self::RequestTimeout,
        Self::RequestAborted,
        Self::BadRequest,
        Self::Http2Protocol,
        Self::Http2Flood,
        Self::AgentNotAllowed,
        Self::AuthMissing,
        Self::AuthFailed,
        Self::AuthBackoff,
        Self::AuthBusy,
    ];

    /// A word for it, as a counter's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientDenied => "client_denied",
            Self::ClientConnectionsMax => "client_connections_max",
            Self::RateLimited => "rate_limited",
            Self::MaxConnections => "max_connections",
            Self::Evicted => "evicted",
            Self::NoFileDescriptors => "no_file_descriptors",
            Self::HandshakeEvicted => "handshake_evicted",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakeAborted => "handshake_aborted",
            Self::NotTls => "not_tls",
            Self::TlsVersion => "tls_version",
            Self::TlsCipherSuites => "tls_cipher_suites",
            Self::TlsAlpn => "tls_alpn",
            Self::TlsAlert => "tls_alert",
            Self::TlsError => "tls_error",
            Self::CertificateMissing => "certificate_missing",
            Self::CertificateUntrusted => "certificate_untrusted",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateInvalid => "certificate_invalid",
            Self::ProxyHeader => "proxy_header",
            Self::NoRequest => "no_request",
            Self::RequestTimeout => "request_timeout",
            Self::RequestAborted => "request_aborted",
            Self::BadRequest => "bad_request",
            Self::Http2Protocol => "http2_protocol",
            Self::Http2Flood => "http2_flood",
            Self::AgentNotAllowed => "agent_not_allowed",
            Self::AuthMissing => "auth_missing",
            Self::AuthFailed => "auth_failed",
            Self::AuthBackoff => "auth_backoff",
            Self::AuthBusy => "auth_busy",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientDenied => "its address is not allowed (--allow-clients, --deny-clients)",
            Self::ClientConnectionsMax => "it has too many connections (--client-connections-max)",
            Self::RateLimited => "it opens connections too fast (--client-rate)",
            Self::MaxConnections => "all connections are in use (--connections-max)",
            Self::Evicted => "it sent no request, and others needed its connection (--connections-max)",
            Self::NoFileDescriptors => "no file descriptor is left (LimitNOFILE)",
            Self::HandshakeEvicted => "its TLS handshake was slow, and others came (--handshakes-max)",
            Self::HandshakeTimeout => "its TLS handshake took too long (--header-timeout)",
            Self::HandshakeAborted => "it left during its TLS handshake",
            Self::NotTls => "it speaks without TLS on a TLS listener (--listen)",
            Self::TlsVersion => "it has no TLS version in common with the proxy (--tls-min)",
            Self::TlsCipherSuites => "it has no cipher suite, group or signature in common with the proxy",
            Self::TlsAlpn => "it wants another protocol than HTTP/1.1 (ALPN)",
            Self::TlsAlert => "it ended its TLS handshake with an alert",
            Self::TlsError => "it violated the TLS protocol",
            Self::CertificateMissing => "it sent no certificate (--client-ca)",
            Self::CertificateUntrusted => "its certificate is of no trusted authority (--client-ca)",
            Self::CertificateExpired => "its certificate is expired, or not valid yet",
            Self::CertificateInvalid => "its certificate is invalid",
            Self::ProxyHeader => "it sent no valid PROXY header (--proxy-protocol)",
            Self::NoRequest => "it sent no request in time (--header-timeout)",
            Self::RequestTimeout => "its request head took too long (--header-timeout)",
            Self::RequestAborted => "it left before its request head was whole",
            Self::BadRequest => "its request is invalid",
            Self::Http2Protocol => "it breaks a rule of HTTP/2",
            Self::Http2Flood => "it sends too many frames of HTTP/2 that ask for nothing",
            Self::AgentNotAllowed => "the agent is in no --agents network",
            Self::AuthMissing => "it sent no password (--htpasswd)",
            Self::AuthFailed => "it sent a wrong password (--htpasswd)",
            Self::AuthBackoff => "it must wait after repeated wrong passwords (--htpasswd)",
            Self::AuthBusy => "too many passwords are being checked (--htpasswd)",
        })
    }
}

/// What a rejection is a sign of, if of anything.
fn offence(reason: RejectReason) -> Option<Offence> {
    match reason {
        RejectReason::AuthFailed | RejectReason::AuthBackoff => Some(Offence::WrongPassword),
        RejectReason::AgentNotAllowed => Some(Offence::AgentScan),
        RejectReason::BadRequest | RejectReason::Http2Protocol | RejectReason::Http2Flood => {
            Some(Offence::MalformedRequest)
        }
        RejectReason::NotTls | RejectReason::TlsError => Some(Offence::TlsGarbage),
        _ => None,
    }
}

/// The counters, of all workers.
#[derive(Debug, Default)]
pub struct RejectCounters {
    counts: [AtomicU64; RejectReason::ALL.len()],
    offenders: Mutex<Offenders>,
    events: [AtomicU64; Offence::ALL.len()],
    recent: Recent<RecentRejection>,
}

impl RejectCounters {
    /// Counts a rejection of `client`, and logs it if it is time to.
    pub fn note(&self, reason: RejectReason, client: ClientConnection) {
        self.note_with(reason, client, &reason);
    }

    /// The same with a detail of this case.
    pub fn note_with(&self, reason: RejectReason, client: ClientConnection, detail: &dyn fmt::Display) {
        self.log(reason, client, None, detail);
    }

    /// Counts a request for an agent that may not be reached.
    pub fn note_agent(&self, client: ClientConnection, agent: IpAddr) {
        self.log(RejectReason::AgentNotAllowed, client, Some(agent), &RejectReason::AgentNotAllowed);
    }

    fn log(
        &self,
        reason: RejectReason,
        client: ClientConnection,
        agent: Option<IpAddr>,
        detail: &dyn fmt::Display,
    ) {
        if let Some(offence) = offence(reason) {
            self.note_offence(offence, client);
        }
        self.recent.rejected(client.address, reason.name());
        let count = self.add(reason);
        if count.is_power_of_two() {
            tracing::warn!(
                conn = client.id.number(),
                client = %client.address,
                agent = agent.map(tracing::field::display),
                reason = %reason.name(),
                count,
                detail = &*detail.to_string(),
                "client rejected",
            );
        }
    }

    /// The line is read by programs that shut clients out, as fail2ban does.
    fn note_offence(&self, offence: Offence, client: ClientConnection) {
        let mut offenders = self.offenders.lock().unwrap_or_else(PoisonError::into_inner);
        let told = offenders.note(client.address, offence, Instant::now());
        drop(offenders);
        if let Some(count) = told {
            self.events[offence as usize].fetch_add(1, Ordering::Relaxed);
            tracing::warn!(client = %client.address, kind = %offence.name(), count, "security event");
        }
    }

    /// How many events there were, by kind.
    pub fn events(&self) -> Vec<(String, u64)> {
        let count = |it: &Offence| self.events[*it as usize].load(Ordering::Relaxed);
        Offence::ALL.iter().map(|it| (it.name().to_owned(), count(it))).collect()
    }

    /// The latest ones, without those that are counted alone.
    pub fn recent(&self) -> Vec<RecentRejection> {
        self.recent.list()
    }

    /// Counts without a log line.
    pub fn note_quietly(&self, reason: RejectReason) {
        self.add(reason);
    }

    fn add(&self, why: RejectReason) -> u64 {
        self.counts[why as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How often that was so.
    pub fn count(&self, why: RejectReason) -> u64 {
        self.counts[why as usize].load(Ordering::Relaxed)
    }
}

impl RejectCounters {
    /// All of them, by name.
    pub fn counts(&self) -> Vec<(String, u64)> {
        RejectReason::ALL.iter().map(|why| (why.name().to_owned(), self.count(*why))).collect()
    }
}

/// Those that there were: `denied 3, full 1`.
impl fmt::Display for RejectCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = RejectReason::ALL.map(|why| (why, self.count(why)));
        let mut separator = "";
        for (why, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            write!(f, "{separator}{} {count}", why.name())?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::client::ConnectionIds;

    #[test]
    fn each_reason_has_a_counter_and_a_name_of_its_own() {
        let rejections = RejectCounters::default();
        let client = ClientConnection {
            id: ConnectionIds::default().next(),
            address: [192, 0, 2, 1].into(),
            port: 50_000,
        };
        assert_eq!(rejections.to_string(), "none");
        for (times, why) in (1..).zip(RejectReason::ALL) {
            (0..times).for_each(|_| rejections.note(why, client));
        }
        let counts: Vec<u64> = RejectReason::ALL.map(|why| rejections.count(why)).into();
        assert!(counts.iter().copied().eq(1..=RejectReason::ALL.len() as u64), "{counts:?}");
        let names: std::collections::HashSet<_> =
            RejectReason::ALL.map(RejectReason::name).into_iter().collect();
        assert_eq!(names.len(), RejectReason::ALL.len());
        assert!(
            rejections.to_string().starts_with("client_denied 1, client_connections_max 2, "),
            "{rejections}"
        );
    }
}
