//! Certificates made in memory: self-signed ones, as DCV servers have them, and a small authority for the tests
//! that verify. Everything is PEM text, because the proxy reads PEM files.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, RsaKeySize, date_time_ymd,
};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The kind of key that a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256, the cheap one.
    Ecdsa,
    /// RSA with 2048 bits; making one takes a noticeable fraction of a second.
    Rsa,
}

/// A certificate and its private key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate as PEM, without its issuer.
    pub cert_pem: String,
    /// The private key as PKCS#8 PEM.
    pub key_pem: String,
}

impl Identity {
    /// A certificate that vouches for itself, for the given DNS names and IP addresses.
    pub fn self_signed(kind: KeyKind, names: &[&str]) -> Self {
        let key = key(kind);
        let certificate = leaf(names).self_signed(&key).expect("a fresh key signs its own certificate");
        Self { cert_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }

    /// The same, but that it could be used in 2001 alone.
    pub fn expired(kind: KeyKind, names: &[&str]) -> Self {
        let key = key(kind);
        let mut params = leaf(names);
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        let certificate = params.self_signed(&key).expect("a fresh key signs its own certificate");
        Self { cert_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }

    /// The certificate chain as rustls takes it.
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
        CertificateDer::pem_slice_iter(self.cert_pem.as_bytes()).collect()
    }

    /// The private key as rustls takes it.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, pem::Error> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
    }
}

/// A small certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority with an ECDSA key.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, key(KeyKind::Ecdsa));
        Self { issuer: issuer.expect("a fresh key signs its own certificate") }
    }

    /// The authority's certificate, to be trusted by whoever verifies.
    pub fn cert_pem(&self) -> String {
        self.issuer.pem()
    }

    /// The authority's own key as PKCS#8 PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate of this authority for the given DNS names and IP addresses.
    pub fn issue(&self, kind: KeyKind, names: &[&str]) -> Identity {
        let key = key(kind);
        let certificate = leaf(names).signed_by(&key, &self.issuer).expect("the authority signs");
        Identity { cert_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

fn leaf(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let common = names.first().cloned().unwrap_or_default();
    let mut params = CertificateParams::new(names).expect("names that fit in a certificate");
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

fn key(kind: KeyKind) -> KeyPair {
    let made = match kind {
        KeyKind::Ecdsa => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyKind::Rsa => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
    };
    made.expect("the system has random numbers")
}
