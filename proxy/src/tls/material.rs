//! What the operator's PEM files hold: certificates and private keys, and whether they belong together. What is of no
//! use to TLS but does no harm (a key beside a certificate, parameters) is passed over; everything else is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use rustls::server::ParsedCertificate;
use rustls::sign::SigningKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::pem::{Block, PemError, blocks};
use crate::os::files::Files;

/// A certificate chain and its key, both PEM files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificatePair {
    /// The chain, the host's own certificate first.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// What its issuer says of its being still good (DER, RFC 6960), for clients who ask.
    pub ocsp: Option<PathBuf>,
}

/// Why a certificate, key or CA file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file can't be read.
    #[error("{}: {source}; it must hold a PEM {what}", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// The content that it should have.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not understood, or holds what can't be used.
    #[error("{}: {source}", file.display())]
    Pem {
        /// Which file.
        file: PathBuf,
        /// Where, and why not.
        source: PemError,
    },
    /// The file holds nothing of the kind.
    #[error("{}: holds no PEM {what}{}", file.display(), but(found.as_deref()))]
    Empty {
        /// Which file.
        file: PathBuf,
        /// The content that it should have.
        what: &'static str,
        /// The label of what it holds first.
        found: Option<String>,
    },
    /// Certificate and key can't be used together.
    #[error("{} with {}: {says}", pair.certificate.display(), pair.key.display())]
    Mismatch {
        /// Which pair.
        pair: Box<CertificatePair>,
        /// Why not.
        says: String,
    },
    /// The OCSP response can't be used.
    #[error("--ocsp {}: {says}; `openssl ocsp -respout FILE` makes one", file.display())]
    Staple {
        /// Which file.
        file: PathBuf,
        /// Why not.
        says: String,
    },
    /// The CA file holds a certificate that is none of a CA.
    #[error("{}: {source}", file.display())]
    Authority {
        /// Which file.
        file: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// The CA file can't serve for verification.
    #[error("{}: {source}", file.display())]
    Verifier {
        /// Which file.
        file: PathBuf,
        /// Why not.
        source: rustls::server::VerifierBuilderError,
    },
    /// The name is no DNS name or address.
    #[error("{0:?} is no name that a certificate can carry")]
    Name(String),
    /// The self-signed certificate could not be made.
    #[error("no self-signed certificate could be made: {0}")]
    SelfSigned(#[from] rcgen::Error),
    /// The TLS library refuses the whole.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

impl CertificateError {
    /// The file to look at.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Unreadable { file, .. }
            | Self::Pem { file, .. }
            | Self::Empty { file, .. }
            | Self::Staple { file, .. }
            | Self::Authority { file, .. }
            | Self::Verifier { file, .. } => Some(file),
            Self::Mismatch { pair, .. } => Some(&pair.key),
            Self::Name(_) | Self::SelfSigned(_) | Self::Tls(_) => None,
        }
    }
}

fn but(found: Option<&str>) -> String {
    found.map_or_else(String::new, |found| format!(", but {found}"))
}

/// Why a block of that label can't be used, and the command that helps; none where it is merely not asked for.
fn objection(label: &str, file: &Path) -> Option<String> {
    let file = file.display();
    Some(match label {
        "CERTIFICATE" | "X509 CERTIFICATE" | "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => {
            return None;
        }
        "OPENSSH PRIVATE KEY" => {
            format!("an OpenSSH key: `ssh-keygen -p -m PKCS8 -f {file}` rewrites it as TLS needs it")
        }
        "DSA PRIVATE KEY" => "a DSA key, which TLS has no use for".to_owned(),
        label if label.ends_with("PRIVATE KEY") || label.ends_with("PARAMETERS") => return None,
        "TRUSTED CERTIFICATE" => {
            format!(
                "a certificate with openssl's own trust settings: `openssl x509 -in {file}` writes it without"
            )
        }
        "PKCS7" | "PKCS #7 SIGNED DATA" | "CMS" => {
            format!("PKCS#7: `openssl pkcs7 -print_certs -in {file}` writes its certificates as PEM")
        }
        "X509 CRL" => "a revocation list, which is not evaluated: take it out".to_owned(),
        label => format!("{label} is of no use here: take it out"),
    })
}

/// The certificates of a file, in their order, each with the line that it begins on; at least one.
pub(super) fn certificates(
    file: &Path,
    files: &dyn Files,
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let blocks = read(file, "certificate", files)?;
    let is_certificate = |block: &&Block| matches!(&*block.label, "CERTIFICATE" | "X509 CERTIFICATE");
    let certificates = blocks.iter().filter(is_certificate).map(|block| {
        let certificate = CertificateDer::from(block.der.to_vec());
        public_key(&certificate).ok_or_else(|| damaged(file, block.line))?;
        Ok(certificate)
    });
    let certificates = certificates.collect::<Result<Vec<_>, CertificateError>>()?;
    if certificates.is_empty() { Err(nothing(file, "certificate", &blocks)) } else { Ok(certificates) }
}

fn damaged(file: &Path, line: usize) -> CertificateError {
    pem(file, PemError::new(line, "the certificate is damaged: its bytes are no X.509"))
}

fn pem(file: &Path, source: PemError) -> CertificateError {
    CertificateError::Pem { file: file.to_owned(), source }
}

/// The private key of a file, which holds no other.
pub(super) fn private_key(file: &Path, files: &dyn Files) -> Result<Arc<dyn SigningKey>, CertificateError> {
    let blocks = read(file, "private key", files)?;
    let mut keys = blocks.iter().filter(|block| block.label.ends_with("PRIVATE KEY"));
    let key = keys.next().ok_or_else(|| nothing(file, "private key", &blocks))?;
    if let Some(second) = keys.next() {
        let says = format!("a second private key, beside that of line {}: leave one", key.line);
        return Err(pem(file, PemError::new(second.line, says)));
    }
    let der = key.der.as_slice();
    let der = match &*key.label {
        _ if key.is_encrypted => return Err(encrypted(file, key.line)),
        "ENCRYPTED PRIVATE KEY" => return Err(encrypted(file, key.line)),
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(der)),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(der)),
        _ => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)),
    };
    any_supported_type(&der).map_err(|_| {
        let says =
            "the key can't be used: RSA of 2048 to 8192 bits, ECDSA (P-256, P-384, P-521) and Ed25519 can";
        pem(file, PemError::new(key.line, says))
    })
}

fn encrypted(file: &Path, line: usize) -> CertificateError {
    let file_name = file.display();
    let says = format!(
        "the key is encrypted, and nobody is there to type its password: \
         `openssl pkey -in {file_name} -out {file_name}.plain` writes it decrypted"
    );
    pem(file, PemError::new(line, says))
}

fn read(file: &Path, what: &'static str, files: &dyn Files) -> Result<Vec<Block>, CertificateError> {
    let unreadable = |source| CertificateError::Unreadable { file: file.to_owned(), what, source };
    let text = files.read(file).map(Zeroizing::new).map_err(unreadable)?;
    let blocks = blocks(&text).map_err(|error| pem(file, error))?;
    let objection = blocks.iter().find_map(|block| Some((block.line, objection(&block.label, file)?)));
    match objection {
        Some((line, says)) => Err(pem(file, PemError::new(line, says))),
        None => Ok(blocks),
    }
}

fn nothing(file: &Path, what: &'static str, blocks: &[Block]) -> CertificateError {
    let found = blocks.first().map(|block| block.label.clone());
    CertificateError::Empty { file: file.to_owned(), what, found }
}

/// The fields of a certificate, if the bytes are one and nothing more.
pub(super) fn parsed(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der)
        .ok()
        .filter(|(rest, _)| rest.is_empty())
        .map(|(_, certificate)| certificate)
}

/// The public key of a certificate (`SubjectPublicKeyInfo`), as either parser reads it.
fn public_key(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let read = parsed(der).map(|it| it.tbs_certificate.subject_pki.raw.to_vec());
    read.or_else(|| Some(ParsedCertificate::try_from(der).ok()?.subject_public_key_info().to_vec()))
}

/// Where in a chain the certificate of that key stands, from 0.
fn position(key: &dyn SigningKey, chain: &[CertificateDer<'_>]) -> Option<usize> {
    let public = key.public_key()?;
    chain.iter().position(|der| public_key(der).as_deref() == Some(public.as_ref()))
}

/// Whether a chain begins with the certificate of that key. `others`: the other pairs' chains, to say what was meant.
pub(super) fn belong_together(
    pair: &CertificatePair,
    chain: &[CertificateDer<'_>],
    key: &dyn SigningKey,
    others: &[(&CertificatePair, Vec<CertificateDer<'static>>)],
) -> Result<(), CertificateError> {
    let mismatch = |says| CertificateError::Mismatch { pair: Box::new(pair.clone()), says };
    match position(key, chain) {
        Some(0) => Ok(()),
        Some(place) => Err(mismatch(format!(
            "the key belongs to certificate {} of the chain: put the host's own certificate first",
            place + 1
        ))),
        None => {
            let meant = others.iter().find(|(_, other)| position(key, other) == Some(0));
            Err(mismatch(meant.map_or_else(
                || "the key belongs to another certificate".to_owned(),
                |(other, _)| {
                    let other = other.certificate.display();
                    format!("the key belongs to {other}: give each --cert its --key in the same order")
                },
            )))
        }
    }
}
