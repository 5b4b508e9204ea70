//! TLS records (RFC 8446 5.2, RFC 5246 6.2.3): one is opened where it lies, and sealed from one buffer into another, so
//! that relaying a byte writes it once for each key. Holds keys and counts; knows neither sockets nor messages.

use aws_lc_rs::aead::{self, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;

use zeroize::Zeroizing;

use crate::runtime::buffer::Buffer;

/// Type, version and length (RFC 8446 5.1).
pub(super) const HEADER_BYTES: usize = 5;
/// Plaintext of a full record (RFC 8446 5.1).
pub(super) const PLAIN_BYTES_MAX: usize = 1 << 14;
/// What sealing may add to a record's plaintext (RFC 5246 6.2.3; TLS 1.3 allows less, and its content is measured).
const EXPANSION_BYTES_MAX: usize = 2048;
/// Every suite's tag.
const TAG_BYTES: usize = 16;
/// The part of a TLS 1.2 AES-GCM nonce that travels with the record (RFC 5288 3).
const EXPLICIT_NONCE_BYTES: usize = 8;
/// The most that is authenticated besides a record's content (RFC 5246 6.2.3.3).
const AAD_BYTES_MAX: usize = 13;
/// The version in each record since TLS 1.2 (RFC 8446 5.1).
const LEGACY_VERSION: [u8; 2] = [3, 3];

/// Content types (RFC 8446 5.1).
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;

/// A key update that asks for none in return (RFC 8446 4.6.3).
pub(super) const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// A version of TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

/// What seals records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cipher {
    /// RFC 5116 5.1.
    Aes128Gcm,
    /// RFC 5116 5.2.
    Aes256Gcm,
    /// RFC 8439.
    ChaCha20Poly1305,
}

/// How the records of a connection are sealed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecordSuite {
    /// The version that both sides have agreed on.
    pub version: Version,
    /// The cipher of their suite.
    pub cipher: Cipher,
}

impl RecordSuite {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self { version: Version::Tls12, cipher: Cipher::Aes128Gcm },
        Self { version: Version::Tls12, cipher: Cipher::Aes256Gcm },
        Self { version: Version::Tls12, cipher: Cipher::ChaCha20Poly1305 },
        Self { version: Version::Tls13, cipher: Cipher::Aes128Gcm },
        Self { version: Version::Tls13, cipher: Cipher::Aes256Gcm },
        Self { version: Version::Tls13, cipher: Cipher::ChaCha20Poly1305 },
    ];

    /// What a record has besides its content: its header, a nonce where it has one, its type and a tag. In bytes.
    pub fn overhead_bytes(self) -> u64 {
        const HEADER_AND_TAG: u64 = 5 + 16;
        match self {
            Self { version: Version::Tls13, .. } => HEADER_AND_TAG + 1,
            Self { cipher: Cipher::ChaCha20Poly1305, .. } => HEADER_AND_TAG,
            Self { version: Version::Tls12, .. } => HEADER_AND_TAG + 8,
        }
    }

    /// Bytes of its key.
    pub(super) fn key_bytes(self) -> usize {
        if self.cipher == Cipher::Aes128Gcm { 16 } else { 32 }
    }

    /// Bytes of the nonce that are told behind the key.
    pub(super) fn salt_bytes(self) -> usize {
        if self.cipher == Cipher::ChaCha20Poly1305 { 0 } else { 4 }
    }
}

/// Why a record can't be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RecordError {
    /// It was not sealed with the key that is due.
    Forged,
    /// It holds more than a record may.
    TooLong,
    /// It has no place after the handshake.
    Unexpected,
}

/// How the records of a suite are laid out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Layout {
    /// The type is sealed behind the content; the nonce follows from the count (RFC 8446 5.2 and 5.3).
    Tls13,
    /// The nonce is partly in the record (RFC 5288 3).
    Tls12Gcm,
    /// The nonce follows from the count (RFC 7905 2).
    Tls12ChaCha,
}

impl Layout {
    fn of(version: Version, cipher: Cipher) -> Self {
        match (version, cipher) {
            (Version::Tls13, _) => Self::Tls13,
            (Version::Tls12, Cipher::ChaCha20Poly1305) => Self::Tls12ChaCha,
            (Version::Tls12, _) => Self::Tls12Gcm,
        }
    }

    /// Before the content.
    fn explicit_bytes(self) -> usize {
        if self == Self::Tls12Gcm { EXPLICIT_NONCE_BYTES } else { 0 }
    }

    /// Sealed behind the content.
    fn inner_type(self, kind: &u8) -> &[u8] {
        if self == Self::Tls13 { std::slice::from_ref(kind) } else { &[] }
    }
}

/// The key of one direction, and how often it was used.
pub(super) struct Key {
    aead: LessSafeKey,
    layout: Layout,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    /// Records that the key may seal.
    limit: u64,
    cipher: Cipher,
    /// Its bytes, as long as the kernel may be given them.
    kept: Option<Zeroizing<Box<[u8]>>>,
}

impl Key {
    /// A key that has been used for `sequence` records of the `limit` that it may seal.
    pub(super) fn new(
        RecordSuite { version, cipher }: RecordSuite,
        key: &[u8],
        iv: [u8; NONCE_LEN],
        sequence: u64,
        limit: u64,
    ) -> Result<Self, Unspecified> {
        let aead = LessSafeKey::new(UnboundKey::new(algorithm(cipher), key)?);
        let layout = Layout::of(version, cipher);
        Ok(Self { aead, layout, iv, sequence, limit, cipher, kept: None })
    }

    /// Keeps the bytes of the key, for [`Key::parts`].
    pub(super) fn keep(&mut self, key: &[u8]) {
        self.kept = Some(Zeroizing::new(key.into()));
    }

    /// Whether they are kept.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Keeps them no longer.
    pub(super) fn forget(&mut self) {
        self.kept = None;
    }

    /// What another needs to go on with the key; none where its bytes were not kept.
    pub(super) fn parts(&self) -> Option<KeyParts<'_>> {
        let version = if self.layout == Layout::Tls13 { Version::Tls13 } else { Version::Tls12 };
        let suite = RecordSuite { version, cipher: self.cipher };
        Some(KeyParts { suite, key: self.kept.as_deref()?, iv: self.iv, sequence: self.sequence })
    }

    /// Records that it may seal yet.
    pub(super) fn left(&self) -> u64 {
        self.limit.saturating_sub(self.sequence)
    }

    /// Records that it may seal in all.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether it has sealed as many records as it may.
    pub(super) fn is_used_up(&self) -> bool {
        self.sequence >= self.limit
    }

    /// Lets it seal so many more.
    #[cfg(test)]
    pub(super) fn limit_to(&mut self, more: u64) {
        self.limit = self.sequence + more;
    }

    /// Opens a whole record where it lies: its content type and its content.
    pub(super) fn open<'r>(&mut self, record: &'r mut [u8]) -> Result<(u8, &'r [u8]), RecordError> {
        let (header, body) = record.split_at_mut(HEADER_BYTES);
        let is_tls13 = self.layout == Layout::Tls13;
        if is_tls13 && header[0] != DATA {
            return Err(RecordError::Unexpected);
        }
        let sealed_bytes = body.len().checked_sub(self.layout.explicit_bytes() + TAG_BYTES);
        let sealed_bytes = sealed_bytes.ok_or(RecordError::Forged)?;
        let (explicit, body) = body.split_at_mut(self.layout.explicit_bytes());
        let (content, tag) = body.split_at_mut(sealed_bytes);
        let mut nonce = self.nonce();
        nonce[NONCE_LEN - explicit.len()..].copy_from_slice(explicit);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (aad, aad_bytes) = self.authenticated(header, sealed_bytes);
        let aad = Aad::from(&aad[..aad_bytes]);
        let opened = self.aead.open_in_place_separate_tag(nonce, aad, tag, content);
        let content = opened.map_err(|Unspecified| RecordError::Forged)?;
        self.sequence += 1;
        // The type and any padding count too (RFC 8446 5.4).
        if is_tls13 && content.len() > PLAIN_BYTES_MAX + 1 {
            return Err(RecordError::TooLong);
        }
        let (kind, content) = match self.layout {
            Layout::Tls13 => without_padding(content)?,
            _ => (header[0], &*content),
        };
        if content.len() > PLAIN_BYTES_MAX { Err(RecordError::TooLong) } else { Ok((kind, content)) }
    }

    /// Seals one record behind `outgoing`. `plain`: at most [`PLAIN_BYTES_MAX`]. Whether the key may still be used is
    /// for the caller to ask.
    pub(super) fn seal(&mut self, kind: u8, plain: &[u8], outgoing: &mut Buffer) -> Result<(), Unspecified> {
        let explicit_bytes = self.layout.explicit_bytes();
        let inner_type = self.layout.inner_type(&kind);
        let body_bytes = explicit_bytes + plain.len() + inner_type.len() + TAG_BYTES;
        let (header, body) =
            outgoing.room(HEADER_BYTES + body_bytes)[..HEADER_BYTES + body_bytes].split_at_mut(HEADER_BYTES);
        let [length_high, length_low] = u16::try_from(body_bytes).map_err(|_| Unspecified)?.to_be_bytes();
        let outer_kind = if self.layout == Layout::Tls13 { DATA } else { kind };
        let [major, minor] = LEGACY_VERSION;
        header.copy_from_slice(&[outer_kind, major, minor, length_high, length_low]);
        let nonce = self.nonce();
        let (explicit, body) = body.split_at_mut(explicit_bytes);
        explicit.copy_from_slice(&nonce[NONCE_LEN - explicit_bytes..]);
        let (sealed, rest) = body.split_at_mut(plain.len());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (aad, aad_bytes) = self.authenticated(header, plain.len());
        let aad = Aad::from(&aad[..aad_bytes]);
        self.aead.seal_out_of_place_scatter(nonce, aad, plain, sealed, inner_type, rest)?;
        self.sequence += 1;
        outgoing.advance(HEADER_BYTES + body_bytes);
        Ok(())
    }

    /// Never the same twice: the count, in what the handshake agreed on (RFC 8446 5.3).
    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        let count = self.sequence.to_be_bytes();
        nonce[NONCE_LEN - count.len()..].iter_mut().zip(count).for_each(|(byte, count)| *byte ^= count);
        nonce
    }

    /// What is authenticated besides the content, and its length: the header as it is (RFC 8446 5.2), or the count and
    /// a header that tells the length of the content (RFC 5246 6.2.3.3).
    fn authenticated(&self, header: &[u8], content_bytes: usize) -> ([u8; AAD_BYTES_MAX], usize) {
        let mut aad = [0; AAD_BYTES_MAX];
        if self.layout == Layout::Tls13 {
            aad[..HEADER_BYTES].copy_from_slice(header);
            return (aad, HEADER_BYTES);
        }
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8..11].copy_from_slice(&header[..3]);
        // A record's length has two bytes, so its content's has no more.
        let content_bytes = content_bytes.to_be_bytes();
        aad[11..].copy_from_slice(&content_bytes[content_bytes.len() - 2..]);
        (aad, AAD_BYTES_MAX)
    }
}

/// A key, taken apart.
pub(super) struct KeyParts<'k> {
    pub(super) suite: RecordSuite,
    pub(super) key: &'k [u8],
    pub(super) iv: [u8; NONCE_LEN],
    /// Records that it was used for.
    pub(super) sequence: u64,
}

fn algorithm(cipher: Cipher) -> &'static Algorithm {
    match cipher {
        Cipher::Aes128Gcm => &aead::AES_128_GCM,
        Cipher::Aes256Gcm => &aead::AES_256_GCM,
        Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
    }
}

/// The content and its type, which is the last byte that is no zero (RFC 8446 5.4).
fn without_padding(content: &[u8]) -> Result<(u8, &[u8]), RecordError> {
    let at = content.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected)?;
    Ok((content[at], &content[..at]))
}

/// The length of the record at the front of `incoming`, header and all, once its header is there.
pub(super) fn length(incoming: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(&[_, major, _, length_high, length_low]) = incoming.first_chunk() else { return Ok(None) };
    if major != LEGACY_VERSION[0] {
        return Err(RecordError::Unexpected);
    }
    let body_bytes = usize::from(u16::from_be_bytes([length_high, length_low]));
    if body_bytes > PLAIN_BYTES_MAX + EXPANSION_BYTES_MAX {
        return Err(RecordError::TooLong);
    }
    Ok(Some(HEADER_BYTES + body_bytes))
}
