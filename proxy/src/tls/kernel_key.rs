//! Keys of an established connection in the form that the kernel takes them (linux/tls.h), after which it opens or seals
//! the records of a socket. Pure: builds the value of a socket option and sets none. Uses the records of this folder.

use zeroize::Zeroizing;

use super::record::{Cipher, Key, KeyParts, RecordSuite, Version};

/// A way through a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// From the peer.
    Receive,
    /// To the peer.
    Send,
}

/// Bytes of a nonce (RFC 8446 5.3, RFC 5288 3).
const NONCE_BYTES: usize = 12;
/// Bytes of a count of records.
const SEQUENCE_BYTES: usize = 8;

/// The key of one way in the form that the kernel takes it: `struct tls12_crypto_info_*` of linux/tls.h, for both versions.
pub struct KernelKey {
    suite: RecordSuite,
    info: Zeroizing<Vec<u8>>,
}

impl KernelKey {
    /// The key as it is now; none where its bytes were not kept.
    pub(super) fn of(key: &Key, way: Way) -> Option<Self> {
        let KeyParts { suite, key, mut iv, sequence } = key.parts()?;
        let has_nonce_in_records =
            suite.version == Version::Tls12 && suite.cipher != Cipher::ChaCha20Poly1305;
        if has_nonce_in_records && way == Way::Send {
            // The kernel counts up from here. What was sealed in the program has the count in the low bits of this part
            // (exclusive or), so that with another highest bit no nonce is ever used twice (RFC 5288 3).
            iv[suite.salt_bytes()] ^= 0x80;
        }
        Some(Self::new(suite, key, iv, sequence))
    }

    /// One to find out with whether the kernel takes it. It protects nothing.
    pub fn of_trial(suite: RecordSuite) -> Self {
        Self::new(suite, &[7; 32][..suite.key_bytes()], [1; NONCE_BYTES], 0)
    }

    fn new(suite: RecordSuite, key: &[u8], iv: [u8; NONCE_BYTES], sequence: u64) -> Self {
        let version: u16 = if suite.version == Version::Tls13 { 0x0304 } else { 0x0303 };
        let cipher: u16 = match suite.cipher {
            Cipher::Aes128Gcm => 51,
            Cipher::Aes256Gcm => 52,
            Cipher::ChaCha20Poly1305 => 54,
        };
        let (salt, iv) = iv.split_at(suite.salt_bytes());
        let header = [version.to_ne_bytes(), cipher.to_ne_bytes()];
        let parts = [header.as_flattened(), iv, key, salt, &sequence.to_be_bytes()];
        Self { suite, info: Zeroizing::new(parts.concat()) }
    }

    /// What is sealed with it.
    pub fn suite(&self) -> RecordSuite {
        self.suite
    }

    /// The value of the socket option.
    pub fn option(&self) -> &[u8] {
        &self.info
    }

    /// The count of records in what the kernel tells of a key that it has.
    pub fn sequence(told: &[u8]) -> Option<u64> {
        told.last_chunk::<SEQUENCE_BYTES>().map(|count| u64::from_be_bytes(*count))
    }
}

/// What the kernel has to be told, where it has keys of a session.
#[derive(Default)]
pub(super) struct InKernel {
    /// The peer has changed its key.
    pub(super) next_opener: Option<KernelKey>,
    /// What the peer has to be told last.
    pub(super) alert: Option<[u8; 2]>,
    /// Records that the key may seal yet, at least.
    pub(super) sealable: u64,
    /// It has sealed as many.
    pub(super) is_used_up: bool,
    /// Records that it may seal in all.
    pub(super) limit: u64,
}
