//! Certificates of agents and clients that webpki alone refuses: one that is itself in the operator's file (self-signed,
//! `CA:TRUE` or not), of version 1, or with a common name and no other. What is trusted stays the operator's word: an
//! authority of the file, or the very certificate. Names and times are checked in each case.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    RootCertStore, SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::OID_X509_EXT_NAME_CONSTRAINTS;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::X509Version;

use super::material::parsed;

/// Bits of an RSA key below which aws-lc-rs verifies no signature of RSA-PSS, which TLS 1.3 asks for.
const RSA_BITS_MIN: usize = 2048;

/// Characters of a common name that are told (X.520 allows no more, RFC 5280 appendix A.1).
const COMMON_NAME_CHARS: usize = 64;

/// A problem of a certificate, for the person who makes a better one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Flaw {
    /// It is no X.509.
    #[error("its certificate is damaged")]
    Damaged,
    /// No name, or one that is not allowed to count.
    #[error("its certificate is not for {wanted}: it has no subjectAltName, and its common name is {}", named(common.as_deref()))]
    Name {
        /// The name that it should have.
        wanted: String,
        /// The names that it has.
        common: Option<String>,
    },
    /// The key is too short.
    #[error(
        "its certificate has an RSA key of {0} bits, whose signatures are not verified: it needs {RSA_BITS_MIN} or more"
    )]
    ShortKey(usize),
    /// The key is of another kind.
    #[error(
        "its certificate has a key whose signatures can't be verified: it needs RSA, ECDSA (P-256, P-384, P-521) or Ed25519"
    )]
    StrangeKey,
}

fn named(common: Option<&str>) -> String {
    common.map_or_else(|| "missing".to_owned(), |common| format!("{common:?}"))
}

impl From<Flaw> for Error {
    fn from(flaw: Flaw) -> Self {
        CertificateError::Other(OtherError(Arc::new(flaw))).into()
    }
}

/// The certificates of the operator's file.
pub(super) struct Authorities {
    /// Those that may vouch for others.
    roots: RootCertStore,
    /// All of them: each is trusted where it is shown itself.
    all: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("all", &self.all.len()).finish_non_exhaustive()
    }
}

impl Authorities {
    /// Fails where one can't be an authority though it says so.
    pub(super) fn new(
        all: Vec<CertificateDer<'static>>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in &all {
            // One that only webpki understands is for it to judge.
            if parsed(certificate).is_none_or(|it| may_vouch(&it)) {
                roots.add(certificate.clone())?;
            }
        }
        Ok(Self { roots, all, algorithms })
    }

    /// Whether it is trusted without what webpki has to say: the very one, or of version 1 and signed by one of these.
    fn knows(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<bool, Error> {
        let Some(read) = parsed(certificate) else { return Ok(false) };
        let is_known = self.all.contains(certificate)
            || read.version() == X509Version::V1 && self.all.iter().any(|issuer| self.issued(issuer, &read));
        if is_known {
            in_time(&read, now)?;
        }
        Ok(is_known)
    }

    fn issued(&self, issuer: &CertificateDer<'_>, certificate: &X509Certificate<'_>) -> bool {
        let Some(issuer) = parsed(issuer).filter(may_vouch) else { return false };
        let is_named = issuer.subject().as_raw() == certificate.issuer().as_raw();
        is_named && is_signed(certificate, issuer.public_key().raw, &self.algorithms)
    }

    /// Whether it is for that name, by its subjectAltName; by its common name where it has none (RFC 6125 6.4.4), unless
    /// an authority is constrained: constraints are not about common names.
    fn is_for(
        &self,
        name: &ServerName<'_>,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        let nameless = |it: &X509Certificate<'_>| matches!(it.subject_alternative_name(), Ok(None));
        let Some(read) = parsed(certificate).filter(nameless) else {
            return verify_server_name(&ParsedCertificate::try_from(certificate)?, name);
        };
        let constrained = |der: &CertificateDer<'_>| parsed(der).is_none_or(|it| is_constrained(&it));
        let common = common_name(&read);
        let counts = !intermediates.iter().any(constrained) && !self.all.iter().any(constrained);
        match common.as_deref() {
            Some(common) if counts && common_name_is(common, name) => Ok(()),
            _ => {
                let common = common.map(|common| common.chars().take(COMMON_NAME_CHARS).collect());
                Err(Flaw::Name { wanted: name.to_str().into_owned(), common }.into())
            }
        }
    }
}

/// `CA:TRUE`, or of version 1, which can't say so.
fn may_vouch(certificate: &X509Certificate<'_>) -> bool {
    certificate.version() == X509Version::V1 || certificate.is_ca()
}

/// Whether it says something of constraints, if only what can't be read.
fn is_constrained(certificate: &X509Certificate<'_>) -> bool {
    certificate.iter_extensions().any(|it| it.oid == OID_X509_EXT_NAME_CONSTRAINTS)
}

fn in_time(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() { Err(CertificateError::Expired.into()) } else { Ok(()) }
}

/// The only one; several would leave open which is meant.
fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    if names.next().is_some() { None } else { Some(name.to_owned()) }
}

/// Exactly, or by a `*` in place of the first label.
fn common_name_is(common: &str, name: &ServerName<'_>) -> bool {
    match name {
        ServerName::IpAddress(address) => {
            common.parse().is_ok_and(|common: IpAddr| common == IpAddr::from(*address))
        }
        ServerName::DnsName(name) => {
            let name = name.as_ref();
            let parent = |name: &str| name.split_once('.').map(|(_, parent)| parent.to_ascii_lowercase());
            let wild = common.strip_prefix("*.").filter(|rest| rest.contains('.'));
            common.eq_ignore_ascii_case(name)
                || wild.is_some_and(|rest| parent(name) == Some(rest.to_ascii_lowercase()))
        }
        _ => false,
    }
}

/// The content of a DER element, and what follows it (X.690 8.1).
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = der.get(1..)?.split_first()?;
    if length < 0x80 {
        return rest.split_at_checked(length.into());
    }
    let (length, rest) =
        rest.split_at_checked((length & 0x7f).into()).filter(|(length, _)| length.len() <= 4)?;
    let length = length.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    rest.split_at_checked(length)
}

/// Whether a certificate is signed by that key.
fn is_signed(certificate: &X509Certificate<'_>, spki: &[u8], algorithms: &WebPkiSupportedAlgorithms) -> bool {
    let tbs = certificate.tbs_certificate.as_ref();
    let after_tbs = element(certificate.as_raw()).and_then(|(content, _)| content.get(tbs.len()..));
    let Some((algorithm, _)) = after_tbs.and_then(element) else { return false };
    let fitting = algorithms.all.iter().filter(|it| it.signature_alg_id().as_ref() == algorithm);
    verify(fitting, spki, tbs, &certificate.signature_value.data).is_ok()
}

/// Whether a signature is that of a key, by the first of these that are for such keys and agree.
fn verify<'a>(
    mut algorithms: impl Iterator<Item = &'a &'static dyn SignatureVerificationAlgorithm>,
    spki: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), Error> {
    let (kind, key) = element(spki).and_then(|(content, _)| element(content)).ok_or(Flaw::Damaged)?;
    // A BIT STRING, whose first byte tells that no bit of the last one is unused.
    let key = element(key).and_then(|(bits, _)| bits.strip_prefix(&[0])).ok_or(Flaw::Damaged)?;
    let is_good = algorithms.any(|it| {
        it.public_key_alg_id().as_ref() == kind && it.verify_signature(key, message, signature).is_ok()
    });
    if is_good { Ok(()) } else { Err(CertificateError::BadSignature.into()) }
}

/// Fails where no signature of the certificate's key could be verified.
fn usable(certificate: &X509Certificate<'_>, algorithms: &WebPkiSupportedAlgorithms) -> Result<(), Error> {
    let key = certificate.public_key();
    if let Ok(PublicKey::RSA(rsa)) = key.parsed()
        && rsa.key_size() < RSA_BITS_MIN
    {
        return Err(Flaw::ShortKey(rsa.key_size()).into());
    }
    let kind = element(key.raw).and_then(|(content, _)| element(content)).map(|(kind, _)| kind);
    let is_known = algorithms.all.iter().any(|it| Some(it.public_key_alg_id().as_ref()) == kind);
    if is_known { Ok(()) } else { Err(Flaw::StrangeKey.into()) }
}

/// Whether a handshake of TLS 1.2 is signed by the certificate's key, whatever the certificate says otherwise.
pub(super) fn signed_in_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let Some(read) = parsed(certificate) else {
        return verify_tls12_signature(message, certificate, signed, algorithms);
    };
    usable(&read, algorithms)?;
    let schemes = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
    let (_, fitting) = schemes.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    verify(fitting.iter(), read.public_key().raw, message, signed.signature())?;
    Ok(HandshakeSignatureValid::assertion())
}

/// The same for TLS 1.3.
pub(super) fn signed_in_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let Some(read) = parsed(certificate) else {
        return verify_tls13_signature(message, certificate, signed, algorithms);
    };
    usable(&read, algorithms)?;
    let spki = SubjectPublicKeyInfoDer::from(read.public_key().raw);
    verify_tls13_signature_with_raw_key(message, &spki, signed, algorithms)
}

/// Agents, by the authorities of a file.
impl ServerCertVerifier for Authorities {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.knows(certificate, now)? {
            let parsed = ParsedCertificate::try_from(certificate)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        }
        self.is_for(name, certificate, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed_in_tls12(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed_in_tls13(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Clients, by the authorities of a file.
#[derive(Debug)]
pub(super) struct Clients {
    authorities: Authorities,
    required: bool,
    /// What webpki says of chains; none where no authority may vouch for others.
    chains: Option<Arc<dyn ClientCertVerifier>>,
    hints: Vec<DistinguishedName>,
}

impl Clients {
    pub(super) fn new(
        authorities: Authorities,
        required: bool,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let roots = Arc::new(authorities.roots.clone());
        let chains = if roots.is_empty() {
            None
        } else {
            Some(WebPkiClientVerifier::builder_with_provider(roots, provider).build()?)
        };
        let hints = authorities.all.iter().filter_map(|der| parsed(der)).map(|it| hint(&it)).collect();
        Ok(Self { authorities, required, chains, hints })
    }
}

/// By which a browser finds the certificates to offer: who has issued them (RFC 8446 4.2.4).
fn hint(certificate: &X509Certificate<'_>) -> DistinguishedName {
    let issuer = if may_vouch(certificate) { certificate.subject() } else { certificate.issuer() };
    DistinguishedName::from(issuer.as_raw().to_vec())
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.authorities.knows(certificate, now)? {
            return Ok(ClientCertVerified::assertion());
        }
        let unknown = CertificateError::UnknownIssuer;
        self.chains.as_ref().ok_or(unknown)?.verify_client_cert(certificate, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed_in_tls12(message, certificate, signed, &self.authorities.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed_in_tls13(message, certificate, signed, &self.authorities.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::crypto::aws_lc_rs::{default_provider, sign::any_supported_type};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::version::{TLS12, TLS13};

    use super::super::{Acceptor, AgentTrust, Connector, Pin, TlsEnd, TlsState};
    use crate::runtime::buffer::Buffer;

    fn open(end: &mut TlsEnd, bytes: &[u8]) -> (Result<TlsState, String>, Buffer) {
        let mut incoming = vec![0; super::super::PARTIAL_RECORD_MAX + bytes.len()];
        let partial = end.put_back(&mut incoming);
        incoming[partial..partial + bytes.len()].copy_from_slice(bytes);
        let mut outgoing = Buffer::default();
        let state = end.open(&mut incoming[..partial + bytes.len()], &mut |_: &[u8]| {}, &mut outgoing);
        (state.map_err(|error| error.to_string()), outgoing)
    }

    /// What a proxy that pins a certificate makes of an agent that shows it and signs by this key.
    fn outcome(
        shown: &rcgen::Certificate,
        key: &rcgen::KeyPair,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Result<TlsState, String> {
        let signing = any_supported_type(&PrivateKeyDer::Pkcs8(key.serialize_der().into())).expect("a key");
        let certified = CertifiedKey::new(vec![shown.der().clone()], signing);
        let mut config = ServerConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_no_client_auth()
            .with_cert_resolver(std::sync::Arc::new(SingleCertAndKey::from(certified)));
        config.enable_secret_extraction = true;
        let pins = vec![Pin::of(shown.der())];
        let connector = Connector::new(&AgentTrust::Pinned(pins)).expect("a connector");
        let mut proxy = connector.connect([10, 0, 0, 5].into()).expect("an end");
        let mut agent = Acceptor(config.into()).accept().expect("an end");
        let (mut state, mut to_agent) = open(&mut proxy, b"");
        for _ in 0..4 {
            let to_proxy = open(&mut agent, to_agent.filled()).1;
            (state, to_agent) = open(&mut proxy, to_proxy.filled());
            if state.is_err() {
                break;
            }
        }
        state
    }

    #[test]
    fn who_shows_a_pinned_certificate_and_has_another_key_is_not_taken_for_its_owner() {
        let [key, other] = [(), ()].map(|()| rcgen::KeyPair::generate().expect("a key"));
        let shown = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
        for version in [&TLS12, &TLS13] {
            assert_eq!(outcome(&shown, &key, version), Ok(TlsState::Open));
            let error = outcome(&shown, &other, version).expect_err("a wrong signature");
            assert!(error.contains("does not belong to its key"), "{error}");
        }
    }
}
