//! The certificates that are shown to clients, and when they expire: said in the log once a day while it is soon. Reads no file.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::agents::health::date;
use crate::observe::status::CertificateStatus;
use crate::tls::{CertificateExpiry, EXPIRES_SOON_S};

/// How often it is said.
const AGAIN: Duration = Duration::from_hours(24);

/// The certificates, and when it was looked at them.
#[derive(Debug)]
pub(super) struct ExpiryWatch {
    expiries: Vec<CertificateExpiry>,
    looked: Instant,
}

impl ExpiryWatch {
    /// Of certificates that were just read, when it was said of them.
    pub(super) fn new(expiries: Vec<CertificateExpiry>) -> Self {
        Self { expiries, looked: Instant::now() }
    }

    /// Says it where it is time.
    pub(super) fn look(&mut self) {
        if self.looked.elapsed() < AGAIN {
            return;
        }
        self.looked = Instant::now();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for CertificateExpiry { file, name, not_after_s } in
            self.expiring(i64::try_from(now).unwrap_or(i64::MAX))
        {
            let not_after = humantime::format_rfc3339_seconds(date(not_after_s.unsigned_abs())).to_string();
            tracing::warn!(file = %file.display(), name, not_after, "certificate expires soon, or has expired: renew it");
        }
    }

    fn expiring(&self, now: i64) -> impl Iterator<Item = &CertificateExpiry> {
        self.expiries.iter().filter(move |it| it.not_after_s - now < EXPIRES_SOON_S)
    }

    /// For monitoring.
    pub(super) fn status(&self) -> Vec<CertificateStatus> {
        let status = |it: &CertificateExpiry| CertificateStatus {
            file: it.file.display().to_string(),
            name: it.name.clone(),
            not_after_s: it.not_after_s,
        };
        self.expiries.iter().map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_expiring_two_weeks_before_its_end_and_afterwards() {
        let expiry = |days: i64| CertificateExpiry {
            file: "p.crt".into(),
            name: format!("{days}"),
            not_after_s: 1_000_000_000 + days * 86_400,
        };
        let watch = ExpiryWatch::new([-1, 13, 15].map(expiry).to_vec());
        let names: Vec<_> = watch.expiring(1_000_000_000).map(|it| &*it.name).collect();
        assert_eq!(names, ["-1", "13"]);
    }
}
