//! What an operator should know of certificates and keys that can be used: that they have expired, or that others may
//! read them.

use std::path::{Path, PathBuf};

use rustls::pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::certificates::{AgentTrust, ClientDemands};
use super::material::{CertificatePair, certificates, parsed};
use crate::os::files::Files;

/// Permission of everybody to read (inode(7)).
const READ_BY_OTHERS: u32 = 0o004;

/// How long before it expires a certificate is warned of, in seconds: 14 days.
pub const EXPIRES_SOON_S: i64 = 14 * 86_400;
/// Characters of a name that are shown.
const NAME_CHARS_MAX: usize = 100;

/// Until when a certificate can be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateExpiry {
    /// Its file.
    pub file: PathBuf,
    /// The first name that it is for.
    pub name: String,
    /// In seconds since 1970.
    pub not_after_s: i64,
}

/// Something that is worth a warning, and the file that it is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateWarning {
    /// Which file.
    pub file: PathBuf,
    /// The warning.
    pub says: String,
}

/// Looks at files that were found to be usable; what can't be read any more is passed over.
pub fn warnings(
    pairs: &[CertificatePair],
    demands: &ClientDemands,
    trust: Option<&AgentTrust>,
    files: &dyn Files,
) -> Vec<CertificateWarning> {
    let agents = match trust {
        Some(AgentTrust::Authority { file, .. }) => Some(file),
        _ => None,
    };
    let authorities = demands.certificate.iter().map(|authority| &authority.file).chain(agents);
    let mut warnings = Vec::new();
    for pair in pairs {
        times(&pair.certificate, files, &mut warnings);
        names(&pair.certificate, files, &mut warnings);
        order(&pair.certificate, files, &mut warnings);
        readers(&pair.key, files, &mut warnings);
    }
    authorities.for_each(|file| times(file, files, &mut warnings));
    warnings
}

fn times(file: &Path, files: &dyn Files, warnings: &mut Vec<CertificateWarning>) {
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    let all = certificates(file, files).unwrap_or_default();
    for (number, der) in (1..).zip(&all) {
        let Some(says) = parsed(der).and_then(|certificate| untimely(&certificate, now)) else { continue };
        let which =
            if all.len() > 1 { format!("certificate {number}") } else { "the certificate".to_owned() };
        let says = format!("{}: {which} {says}", file.display());
        warnings.push(CertificateWarning { file: file.to_owned(), says });
    }
}

/// The own certificates of pairs, for whoever has to renew them; what can't be read any more is passed over.
pub fn expiries(pairs: &[CertificatePair], files: &dyn Files) -> Vec<CertificateExpiry> {
    let expiry = |pair: &CertificatePair| {
        let all = certificates(&pair.certificate, files).unwrap_or_default();
        let own = parsed(all.first()?)?;
        let not_after_s = own.validity().not_after.timestamp();
        Some(CertificateExpiry { file: pair.certificate.clone(), name: first_name(&own), not_after_s })
    };
    pairs.iter().filter_map(expiry).collect()
}

/// The first host name that a certificate is for, or else its common name.
fn first_name(certificate: &X509Certificate<'_>) -> String {
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let dns = alternatives.iter().flat_map(|names| &names.value.general_names).find_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let common = || certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned);
    let name = dns.or_else(common).unwrap_or_default();
    // It came from whoever issued it.
    name.chars().filter(char::is_ascii_graphic).take(NAME_CHARS_MAX).collect()
}

fn untimely(certificate: &X509Certificate<'_>, now: i64) -> Option<String> {
    let validity = certificate.validity();
    if now > validity.not_after.timestamp() {
        return Some(format!("has expired ({})", validity.not_after));
    }
    if now < validity.not_before.timestamp() {
        return Some(format!("is not valid yet (from {} on)", validity.not_before));
    }
    let left = validity.not_after.timestamp() - now;
    (left < EXPIRES_SOON_S).then(|| format!("expires soon ({}): renew it", validity.not_after))
}

fn names(file: &Path, files: &dyn Files, warnings: &mut Vec<CertificateWarning>) {
    let all = certificates(file, files).unwrap_or_default();
    let own = all.first().and_then(|der| parsed(der));
    if own.is_some_and(|own| matches!(own.subject_alternative_name(), Ok(None))) {
        let says = format!(
            "{}: the certificate has no subjectAltName, so browsers take it for no host's: `openssl req -x509` puts one in \
             with -addext subjectAltName=DNS:HOST, `openssl x509 -req` with -copy_extensions copy",
            file.display()
        );
        warnings.push(CertificateWarning { file: file.to_owned(), says });
    }
}

/// Each certificate of a chain is issued by the next (RFC 5246 7.4.2); some clients look for no other.
fn order(file: &Path, files: &dyn Files, warnings: &mut Vec<CertificateWarning>) {
    let all = certificates(file, files).unwrap_or_default();
    let read: Vec<_> = all.iter().filter_map(|der| parsed(der)).collect();
    let wrong = read.windows(2).position(|two| two[0].issuer().as_raw() != two[1].subject().as_raw());
    if let Some(place) = wrong {
        let (this, next) = (place + 1, place + 2);
        let says = format!(
            "{}: certificate {next} of the chain is not the issuer of certificate {this}: put each one's issuer behind it",
            file.display()
        );
        warnings.push(CertificateWarning { file: file.to_owned(), says });
    }
}

fn readers(file: &Path, files: &dyn Files, warnings: &mut Vec<CertificateWarning>) {
    if files.mode(file).is_ok_and(|mode| mode & READ_BY_OTHERS != 0) {
        let file_name = file.display();
        let says =
            format!("{file_name}: everybody on this host may read this private key: `chmod o= {file_name}`");
        warnings.push(CertificateWarning { file: file.to_owned(), says });
    }
}
