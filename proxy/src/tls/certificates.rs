//! Certificates: read from PEM files or made in memory, chosen by server name and key type, and verified on
//! the agent's side as the operator asked. Opens no connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use ::aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    ALL_VERSIONS, CertificateError as RustlsCertificateError, ClientConfig, DigitallySignedStruct,
    ServerConfig, SignatureAlgorithm, SignatureScheme,
};

use super::end::{Acceptor, Connector};
use super::handshake::HTTP2;
use super::material::{CertificateError, CertificatePair, belong_together, certificates, private_key};
use super::trust::{Authorities, Clients, signed_in_tls12, signed_in_tls13};
use crate::os::files::{FileSystem, Files};

/// TLS sessions to agents that are remembered for resumption; each agent keeps up to 8 tickets.
const AGENT_SESSIONS_MAX: usize = 4096;

/// The SHA-256 of a certificate's DER bytes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Pin([u8; 32]);

/// A pin that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("a pin is sha256: and 64 hexadecimal digits, as in `openssl x509 -fingerprint -sha256`")]
pub struct PinError;

/// Which agent certificates are accepted.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum AgentTrust {
    /// Any: the agent's address is all that is trusted.
    Anything,
    /// One that a CA of this PEM file issued for the agent's address, or for `name`.
    Authority {
        /// The CA certificates.
        file: PathBuf,
        /// The name that every agent's certificate carries.
        name: Option<String>,
    },
    /// One of these.
    Pinned(Vec<Pin>),
}

/// The requirements for clients.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientDemands {
    /// TLS 1.3, not 1.2.
    pub tls13: bool,
    /// HTTP/2 may be chosen.
    pub http2: bool,
    /// A certificate of their own.
    pub certificate: Option<ClientAuthority>,
}

/// The authority that clients' certificates are verified with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientAuthority {
    /// The CA certificates.
    pub file: PathBuf,
    /// Whether a client without a certificate is turned away; one with a certificate of somebody else's always is.
    pub required: bool,
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let hex: String =
            text.strip_prefix("sha256:").ok_or(PinError)?.chars().filter(|c| *c != ':').collect();
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(PinError);
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| PinError)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| PinError)?;
        }
        Ok(Self(digest))
    }
}

impl Pin {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut pin = [0; 32];
        pin.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Self(pin)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Acceptor {
    /// From PEM files, chosen by server name and key type; one made in memory where there are none.
    pub fn new(pairs: &[CertificatePair]) -> Result<Self, Vec<CertificateError>> {
        Self::demanding(pairs, &ClientDemands::default(), &FileSystem::default())
    }

    /// The same for clients who do what is asked of them. The errors are all that there are.
    pub fn demanding(
        pairs: &[CertificatePair],
        demands: &ClientDemands,
        files: &dyn Files,
    ) -> Result<Self, Vec<CertificateError>> {
        let mut errors = Vec::new();
        let verifier = match &demands.certificate {
            Some(authority) => kept(client_verifier(authority, files), &mut errors),
            None => Some(WebPkiClientVerifier::no_client_auth()),
        };
        match (load(pairs, files), verifier) {
            (Ok(keys), Some(verifier)) => Self::with(keys, demands, verifier).map_err(|error| vec![error]),
            (keys, _) => {
                errors.splice(0..0, keys.err().unwrap_or_default());
                Err(errors)
            }
        }
    }

    fn with(
        mut keys: Vec<CertifiedKey>,
        demands: &ClientDemands,
        verifier: Arc<dyn ClientCertVerifier>,
    ) -> Result<Self, CertificateError> {
        if keys.is_empty() {
            // Browsers were told once to trust it: it stays the same while the program runs.
            static MADE: Mutex<Option<CertifiedKey>> = Mutex::new(None);
            let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
            let key = if let Some(key) = &*made { key.clone() } else { made.insert(self_signed()?).clone() };
            keys.push(key);
        }
        // A stable sort: ECDSA signs ten times faster than RSA, so it goes first wherever a client takes both.
        keys.sort_by_key(|key| key.key.algorithm() == SignatureAlgorithm::RSA);
        let keys = keys.into_iter().map(Arc::new).collect();
        let versions = if demands.tls13 { &[&TLS13][..] } else { ALL_VERSIONS };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(ByNameAndKey { keys }));
        let http2 = demands.http2.then_some(HTTP2);
        let protocols = http2.into_iter().chain([&b"http/1.1"[..], b"http/1.0"]);
        config.alpn_protocols = protocols.map(<[u8]>::to_vec).collect();
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        // AES-GCM before ChaCha20: with AES instructions it costs the proxy less than half.
        config.ignore_client_order = true;
        config.enable_secret_extraction = true;
        Ok(Self(Arc::new(config)))
    }
}

impl Connector {
    /// A connector that accepts the certificates `trust` says.
    pub fn new(trust: &AgentTrust) -> Result<Self, CertificateError> {
        Self::reading(trust, &FileSystem::default())
    }

    /// The same, with files from `files`.
    pub fn reading(trust: &AgentTrust, files: &dyn Files) -> Result<Self, CertificateError> {
        Self::with_provider(provider(), trust, files)
    }

    /// The same for so many agents: the sessions of no more are remembered.
    pub fn for_agents(
        trust: &AgentTrust,
        agents: usize,
        files: &dyn Files,
    ) -> Result<Self, CertificateError> {
        Self::remembering(provider(), trust, agents.min(AGENT_SESSIONS_MAX), files)
    }

    pub(super) fn with_provider(
        provider: Arc<CryptoProvider>,
        trust: &AgentTrust,
        files: &dyn Files,
    ) -> Result<Self, CertificateError> {
        Self::remembering(provider, trust, AGENT_SESSIONS_MAX, files)
    }

    fn remembering(
        provider: Arc<CryptoProvider>,
        trust: &AgentTrust,
        sessions_max: usize,
        files: &dyn Files,
    ) -> Result<Self, CertificateError> {
        let (verifier, name) = verifier(trust, files)?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        config.resumption = Resumption::in_memory_sessions(sessions_max);
        Ok(Self { config: Arc::new(config), name })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// All pairs, or why not, each that can't be used.
fn load(pairs: &[CertificatePair], files: &dyn Files) -> Result<Vec<CertifiedKey>, Vec<CertificateError>> {
    let mut errors = Vec::new();
    let read = |pair: &CertificatePair| certificates(&pair.certificate, files);
    let chains = pairs.iter().map(|pair| (pair, kept(read(pair), &mut errors).unwrap_or_default()));
    let chains: Vec<_> = chains.collect();
    let mut loaded = Vec::new();
    for (pair, chain) in &chains {
        let key = kept(private_key(&pair.key, files), &mut errors);
        let ocsp = kept(pair.ocsp.as_deref().map(|file| staple(file, files)).transpose(), &mut errors);
        if let (Some(key), Some(ocsp), false) = (key, ocsp, chain.is_empty())
            && kept(belong_together(pair, chain, &*key, &chains), &mut errors).is_some()
        {
            loaded.push(CertifiedKey { cert: chain.clone(), key, ocsp });
        }
    }
    if errors.is_empty() { Ok(loaded) } else { Err(errors) }
}

/// The value; an error is added to the others.
fn kept<T>(result: Result<T, CertificateError>, errors: &mut Vec<CertificateError>) -> Option<T> {
    result.map_err(|error| errors.push(error)).ok()
}

/// A successful OCSP response (RFC 6960 4.2.1). Who signed it and until when it holds is for clients to find out.
fn staple(file: &Path, files: &dyn Files) -> Result<Vec<u8>, CertificateError> {
    let wrong = |says| CertificateError::Staple { file: file.to_owned(), says };
    let staple = files.read(file).map_err(|error| wrong(error.to_string()))?;
    // A SEQUENCE whose length has two bytes, and in it an ENUMERATED of one byte, 0.
    match staple[..] {
        [0x30, 0x82, high, low, 0x0a, 1, 0, ..]
            if staple.len() == 4 + usize::from(u16::from_be_bytes([high, low])) =>
        {
            Ok(staple)
        }
        _ => Err(wrong("holds no successful OCSP response in DER".to_owned())),
    }
}

fn self_signed() -> Result<CertifiedKey, CertificateError> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    Ok(CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider())?)
}

/// Takes the first certificate for the asked name that the client can verify; the first that it can verify
/// where none has the name.
#[derive(Debug)]
struct ByNameAndKey {
    keys: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ByNameAndKey {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = hello.server_name().and_then(|name| {
            let name = ServerName::try_from(name).ok()?;
            self.keys.iter().filter(usable).find(|key| is_for(key, &name))
        });
        named.or_else(|| self.keys.iter().find(usable)).cloned()
    }
}

fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let parsed = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    parsed.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}

fn client_verifier(
    authority: &ClientAuthority,
    files: &dyn Files,
) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let file = &authority.file;
    let authorities = authorities(file, files)?;
    let clients = Clients::new(authorities, authority.required, provider())
        .map_err(|source| CertificateError::Verifier { file: file.clone(), source })?;
    Ok(Arc::new(clients))
}

fn authorities(file: &Path, files: &dyn Files) -> Result<Authorities, CertificateError> {
    Authorities::new(certificates(file, files)?, provider().signature_verification_algorithms)
        .map_err(|source| CertificateError::Authority { file: file.to_owned(), source })
}

type Verifier = (Arc<dyn ServerCertVerifier>, Option<ServerName<'static>>);

fn verifier(trust: &AgentTrust, files: &dyn Files) -> Result<Verifier, CertificateError> {
    match trust {
        AgentTrust::Anything => Ok((Arc::new(WithoutAuthority::new(None)), None)),
        AgentTrust::Pinned(pins) => Ok((Arc::new(WithoutAuthority::new(Some(pins.clone()))), None)),
        AgentTrust::Authority { file, name } => {
            let verifier = Arc::new(authorities(file, files)?);
            let name = name.as_deref().map(server_name).transpose()?;
            Ok((verifier, name))
        }
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, CertificateError> {
    ServerName::try_from(name.to_owned()).map_err(|_| CertificateError::Name(name.to_owned()))
}

/// Asks no authority: accepts the certificates whose digest the operator named, whatever they say of
/// themselves, or every certificate, as the recipe does.
#[derive(Debug)]
struct WithoutAuthority {
    pins: Option<Vec<Pin>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl WithoutAuthority {
    fn new(pins: Option<Vec<Pin>>) -> Self {
        Self { pins, algorithms: aws_lc_rs::default_provider().signature_verification_algorithms }
    }

    /// A signature by a key that nobody vouches for proves nothing, and checking it costs time.
    fn signature(
        &self,
        check: impl FnOnce(&WebPkiSupportedAlgorithms) -> Result<HandshakeSignatureValid, rustls::Error>,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.pins.is_some() { check(&self.algorithms) } else { Ok(HandshakeSignatureValid::assertion()) }
    }
}

impl ServerCertVerifier for WithoutAuthority {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pins.as_ref().is_none_or(|pins| pins.contains(&Pin::of(certificate))) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(RustlsCertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(|algorithms| signed_in_tls12(message, certificate, signed, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(|algorithms| signed_in_tls13(message, certificate, signed, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
