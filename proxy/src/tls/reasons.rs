//! The errors of rustls in plain words, sorted by what an operator would do about them. "It" is the other side, agent
//! or client.

use rustls::{
    AlertDescription as Alert, CertificateError, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved,
};

/// Suites that are spoken, for who has to name one in another program.
const SUITES: &str = "it needs TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305 (such as \
                      ECDHE-RSA-AES128-GCM-SHA256)";

/// Names of a certificate that are told: it may have thousands.
const NAMES_MAX: usize = 4;
/// Characters of one of them.
const NAME_CHARS: usize = 64;

/// Characters that are told of a certificate.
const TOLD_CHARS: usize = 300;

/// The kind of a failed handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HandshakeFailure {
    /// The other side speaks no version of TLS that this one does.
    Version,
    /// No cipher suite, group or signature that both can.
    Suites,
    /// No protocol inside of TLS that both speak (ALPN).
    Protocol,
    /// It shows no certificate, and has to.
    CertificateMissing,
    /// Nobody who is trusted vouches for its certificate, or not for this use or name.
    CertificateUnknown,
    /// Its certificate is not valid yet, or no longer.
    CertificateExpired,
    /// Its certificate, or what is signed by its key, is wrong.
    CertificateBroken,
    /// It has ended the handshake itself, and said why.
    Alert,
    /// It has said goodbye before the handshake was done.
    Left,
    /// Its bytes are no TLS at all.
    NoTls,
    /// It breaks the protocol.
    ProtocolViolation,
}

/// Sorts an error of a handshake.
pub(super) fn handshake_failure(error: &Error) -> HandshakeFailure {
    match error {
        Error::PeerIncompatible(why) if is_version(why) => HandshakeFailure::Version,
        Error::AlertReceived(Alert::ProtocolVersion) => HandshakeFailure::Version,
        Error::PeerIncompatible(_)
        | Error::AlertReceived(Alert::InsufficientSecurity)
        | Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedCipherSuite) => HandshakeFailure::Suites,
        // No certificate has a key that the client can verify, and rustls has no better error for that.
        Error::General(what) if what == "no server certificate chain resolved" => HandshakeFailure::Suites,
        Error::NoApplicationProtocol | Error::AlertReceived(Alert::NoApplicationProtocol) => {
            HandshakeFailure::Protocol
        }
        Error::NoCertificatesPresented => HandshakeFailure::CertificateMissing,
        Error::InvalidCertificate(why) => of_certificate(why),
        Error::HandshakeNotComplete | Error::AlertReceived(Alert::CloseNotify | Alert::UserCanceled) => {
            HandshakeFailure::Left
        }
        Error::AlertReceived(_) => HandshakeFailure::Alert,
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => HandshakeFailure::NoTls,
        _ => HandshakeFailure::ProtocolViolation,
    }
}

fn is_version(why: &PeerIncompatible) -> bool {
    matches!(
        why,
        PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
    )
}

fn of_certificate(why: &CertificateError) -> HandshakeFailure {
    use CertificateError as C;
    match why {
        C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => {
            HandshakeFailure::CertificateExpired
        }
        C::UnknownIssuer
        | C::NotValidForName
        | C::NotValidForNameContext { .. }
        | C::InvalidPurpose
        | C::InvalidPurposeContext { .. }
        | C::ApplicationVerificationFailure => HandshakeFailure::CertificateUnknown,
        _ => HandshakeFailure::CertificateBroken,
    }
}

/// The problem, with "it" for the other side.
pub(super) fn plain(error: &Error) -> String {
    match (error, handshake_failure(error)) {
        (_, HandshakeFailure::Version) => {
            "it speaks only versions of TLS that are too old: it needs TLS 1.2 or later".to_owned()
        }
        (_, HandshakeFailure::Suites) => {
            format!("it takes none of the cipher suites or curves that are spoken here: {SUITES}")
        }
        (_, HandshakeFailure::Protocol) => "it wants a protocol that is not spoken here (ALPN)".to_owned(),
        (_, HandshakeFailure::CertificateMissing) => "it shows no certificate (--client-ca)".to_owned(),
        (_, HandshakeFailure::Left) => "it left within the handshake".to_owned(),
        (_, HandshakeFailure::NoTls) => "what it sends is no TLS".to_owned(),
        (Error::InvalidCertificate(why), _) => certificate(why),
        (Error::AlertReceived(alert), _) => format!("it ended the handshake: {}", of_alert(*alert)),
        _ => format!("it breaks the protocol: {error}"),
    }
}

fn certificate(why: &CertificateError) -> String {
    use CertificateError as C;
    match why {
        C::Expired | C::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        C::NotValidYet | C::NotValidYetContext { .. } => {
            "its certificate is not valid yet (is the clock of this host right?)".to_owned()
        }
        C::UnknownIssuer => "its certificate is not issued by an authority of --client-ca or --agent-ca".to_owned(),
        C::ApplicationVerificationFailure => "its certificate is none of --agent-pin".to_owned(),
        C::BadSignature => "its certificate does not belong to its key, or is not signed by its issuer".to_owned(),
        C::NotValidForNameContext { expected, presented } => {
            let names = if presented.is_empty() { "nobody".to_owned() } else { listed(presented) };
            format!("its certificate is not for {}, but for {names} (--agent-name)", expected.to_str())
        }
        C::Other(other) => match &*other.to_string() {
            // Of webpki, whose type is not to be had.
            "CaUsedAsEndEntity" => {
                "its certificate is an authority's own (CA:TRUE): put that very certificate into --agent-ca or --client-ca"
                    .to_owned()
            }
            "UnsupportedCertVersion" => {
                "its certificate is of version 1: `openssl x509 -req` makes one of version 3 with -copy_extensions copy"
                    .to_owned()
            }
            flaw => flaw.to_owned(),
        },
        // Some have lists in them that are as long as the certificate.
        why => format!("its certificate is wrong: {why}").chars().take(TOLD_CHARS).collect(),
    }
}

/// The first few, cut and escaped: whoever asked for the certificate chose them.
fn listed(names: &[String]) -> String {
    let shown =
        |name: &String| name.chars().take(NAME_CHARS).flat_map(char::escape_debug).collect::<String>();
    let few = names.iter().take(NAMES_MAX).map(shown).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_MAX { format!("{few} and more") } else { few }
}

fn of_alert(alert: Alert) -> String {
    match alert {
        Alert::UnknownCA | Alert::CertificateUnknown | Alert::BadCertificate => {
            format!("it does not accept the certificate it was shown ({alert:?})")
        }
        Alert::CertificateExpired => "to it, the certificate it was shown has expired".to_owned(),
        Alert::CertificateRequired | Alert::NoCertificate | Alert::AccessDenied => {
            format!("it wants a certificate that this side does not have ({alert:?})")
        }
        alert => format!("alert {alert:?}"),
    }
}

/// Words for an agent or client that found nothing in common with what it was offered.
pub(super) fn no_common_suite() -> String {
    format!("it takes none of the cipher suites or curves that it was offered: {SUITES}")
}

/// A version as it stands in hellos (RFC 8446 4.2.1).
pub(super) fn version(code: u16) -> String {
    match code {
        0x0300 => "SSL 3.0".to_owned(),
        0x0301 => "TLS 1.0".to_owned(),
        0x0302 => "TLS 1.1".to_owned(),
        0x0303 => "TLS 1.2".to_owned(),
        0x0304 => "TLS 1.3".to_owned(),
        code => format!("version {code:#06x}"),
    }
}
