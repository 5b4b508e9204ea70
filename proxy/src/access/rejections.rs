//! Clients and requests that were rejected: a counter for each reason. The log tells the first time of each, the second, the fourth,
//! the eighth and so on, so that nobody fills a disk by being rejected. Never asked where nobody is.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a client or a request is rejected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RejectReason {
    /// The client comes from where none may.
    Denied,
    /// It has as many connections as it may.
    TooMany,
    /// It has made too many lately.
    TooOften,
    /// All clients together have as many as they may.
    Full,
    /// It asked for nothing when all clients together had as many as they may, and gave way to another.
    Waiting,
    /// There is no descriptor left.
    Descriptors,
    /// A handshake that took long gave way to a new one.
    Handshake,
    /// A handshake took longer than one may.
    HandshakeSlow,
    /// A client left in the midst of its handshake. Counted, and not logged: balancers look in like that.
    HandshakeLeft,
    /// It speaks without TLS where TLS is due.
    NotTls,
    /// It speaks no version of TLS that is spoken here.
    TlsVersion,
    /// It knows no cipher suite, group or signature that is known here.
    TlsSuites,
    /// It wants to speak something else than HTTP/1.1 inside of TLS.
    TlsProtocol,
    /// It ended the handshake with an alert: most do who don't trust the proxy's certificate.
    TlsAlert,
    /// It breaks TLS.
    TlsBroken,
    /// It has to show a certificate and shows none.
    CertificateMissing,
    /// It shows one that no authority vouches for.
    CertificateUnknown,
    /// It shows one that is not valid yet, or no longer.
    CertificateExpired,
    /// It shows one that is damaged, or is not its own.
    CertificateBroken,
    /// A balancer did not say whom it speaks for.
    ProxyHeader,
    /// A head that can't be understood, or in more than one way.
    Head,
    /// An address that may not be dialled.
    Stranger,
    /// No password, or a wrong one.
    Password,
    /// Too many wrong passwords.
    Guesses,
    /// Too many passwords at once.
    Busy,
}

impl RejectReason {
    const ALL: [Self; 25] = [
        Self::Denied,
        Self::TooMany,
        Self::TooOften,
        Self::Full,
        Self::Waiting,
        Self::Descriptors,
        Self::Handshake,
        Self::HandshakeSlow,
        Self::HandshakeLeft,
        Self::NotTls,
        Self::TlsVersion,
        Self::TlsSuites,
        Self::TlsProtocol,
        Self::TlsAlert,
        Self::TlsBroken,
        Self::CertificateMissing,
        Self::CertificateUnknown,
        Self::CertificateExpired,
        Self::CertificateBroken,
        Self::ProxyHeader,
        Self::Head,
        Self::Stranger,
        Self::Password,
        Self::Guesses,
        Self::Busy,
    ];

    /// A word for it, as a counter's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::TooMany => "too-many",
            Self::TooOften => "too-often",
            Self::Full => "full",
            Self::Waiting => "waiting",
            Self::Descriptors => "descriptors",
            Self::Handshake => "handshake",
            Self::HandshakeSlow => "handshake-slow",
            Self::HandshakeLeft => "handshake-left",
            Self::NotTls => "not-tls",
            Self::TlsVersion => "tls-version",
            Self::TlsSuites => "tls-suites",
            Self::TlsProtocol => "tls-protocol",
            Self::TlsAlert => "tls-alert",
            Self::TlsBroken => "tls-broken",
            Self::CertificateMissing => "certificate-missing",
            Self::CertificateUnknown => "certificate-unknown",
            Self::CertificateExpired => "certificate-expired",
            Self::CertificateBroken => "certificate-broken",
            Self::ProxyHeader => "proxy_header",
            Self::Head => "head",
            Self::Stranger => "stranger",
            Self::Password => "password",
            Self::Guesses => "guesses",
            Self::Busy => "busy",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denied => "comes from where no client may (--allow-clients, --deny-clients)",
            Self::TooMany => "has as many connections as one may (--client-connections-max)",
            Self::TooOften => "makes connections faster than one may (--client-rate)",
            Self::Full => "comes when as many are here as may (--connections-max)",
            Self::Waiting => "asked for nothing, and others needed its connection (--connections-max)",
            Self::Descriptors => "comes when no file descriptor is left (LimitNOFILE)",
            Self::Handshake => "took long in its handshake, and others came (--handshakes-max)",
            Self::HandshakeSlow => "took too long in its TLS handshake (--header-timeout)",
            Self::HandshakeLeft => "left in the midst of its TLS handshake",
            Self::NotTls => "speaks without TLS where TLS is due (--listen)",
            Self::TlsVersion => "speaks no version of TLS that is spoken here (--tls-min)",
            Self::TlsSuites => "knows no cipher suite that is known here",
            Self::TlsProtocol => "wants something else than HTTP/1.1",
            Self::TlsAlert => "ended its TLS handshake",
            Self::TlsBroken => "breaks TLS",
            Self::CertificateMissing => "shows no certificate (--client-ca)",
            Self::CertificateUnknown => "shows a certificate of nobody who is trusted (--client-ca)",
            Self::CertificateExpired => "shows a certificate at the wrong time",
            Self::CertificateBroken => "shows a broken certificate",
            Self::ProxyHeader => "did not say whom it speaks for (--proxy-protocol)",
            Self::Head => "asks what can't be understood",
            Self::Stranger => "asks for what is in no --agents prefix and was not dialled",
            Self::Password => "shows no password, or a wrong one (--htpasswd)",
            Self::Guesses => "has shown too many wrong passwords (--htpasswd)",
            Self::Busy => "shows a password while too many are looked at (--htpasswd)",
        })
    }
}

/// The counters, of all workers.
#[derive(Debug, Default)]
pub struct RejectCounters([AtomicU64; RejectReason::ALL.len()]);

impl RejectCounters {
    /// Counts `who`, and tells the log if it is time to.
    pub fn note(&self, why: RejectReason, who: impl fmt::Display) {
        self.note_with(why, who, format_args!("it {why}"));
    }

    /// The same with words of the case's own.
    pub fn note_with(&self, why: RejectReason, who: impl fmt::Display, what: impl fmt::Display) {
        let count = self.add(why);
        if count.is_power_of_two() {
            tracing::warn!("{who} is turned away: {what} ({count} so far)");
        }
    }

    /// Counts without a word.
    pub fn note_quietly(&self, why: RejectReason) {
        self.add(why);
    }

    fn add(&self, why: RejectReason) -> u64 {
        self.0[why as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How often that was so.
    pub fn count(&self, why: RejectReason) -> u64 {
        self.0[why as usize].load(Ordering::Relaxed)
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
        if separator.is_empty() { f.write_str("nobody") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_and_a_name_of_its_own() {
        let rejections = RejectCounters::default();
        assert_eq!(rejections.to_string(), "nobody");
        for (times, why) in (1..).zip(RejectReason::ALL) {
            (0..times).for_each(|_| rejections.note(why, "somebody"));
        }
        let counts: Vec<u64> = RejectReason::ALL.map(|why| rejections.count(why)).into();
        assert!(counts.iter().copied().eq(1..=RejectReason::ALL.len() as u64), "{counts:?}");
        let names: std::collections::HashSet<_> =
            RejectReason::ALL.map(RejectReason::name).into_iter().collect();
        assert_eq!(names.len(), RejectReason::ALL.len());
        assert!(rejections.to_string().starts_with("denied 1, too-many 2, "), "{rejections}");
    }
}
