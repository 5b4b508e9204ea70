//! The id of a request: in the access log, in the head that the agent sees, and on the proxy's own answers, so that all of
//! them can be brought together. Knows no socket.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::io::Write;

/// Bytes of an id that another proxy has given.
const BYTES_MAX: usize = 64;
/// Bytes of one that is made here: 128 bits in hex.
const MADE_BYTES: usize = 32;

/// The id of a request: 1 to 64 printable characters of ASCII that need no quotes anywhere.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct RequestId {
    text: [u8; BYTES_MAX],
    length: u8,
}

impl RequestId {
    /// One that a trusted proxy has given; nothing where it can't stand in a log, a header or a page as it is.
    pub fn given(value: &[u8]) -> Option<Self> {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:=+/@".contains(byte);
        let is_id = (1..=BYTES_MAX).contains(&value.len()) && value.iter().all(is_plain);
        is_id.then(|| Self::of(value))
    }

    fn of(value: &[u8]) -> Self {
        let mut text = [0; BYTES_MAX];
        let length = value.len().min(BYTES_MAX);
        text[..length].copy_from_slice(&value[..length]);
        // It is BYTES_MAX at most.
        Self { text, length: u8::try_from(length).unwrap_or_default() }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        // All of its bytes are ASCII.
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Makes ids of 128 bits, of which none tells how many there were before.
#[derive(Debug, Default)]
pub struct RequestIds {
    /// Its keys are random, and differ from worker to worker.
    hasher: RandomState,
    last: std::cell::Cell<u64>,
}

impl RequestIds {
    /// The next one.
    pub fn next(&self) -> RequestId {
        let number = self.last.get().wrapping_add(1);
        self.last.set(number);
        let halves = [0_u8, 1].map(|half| self.hasher.hash_one((number, half)));
        let mut text = [0; MADE_BYTES];
        // Writing to memory that is large enough does not fail.
        let _ = write!(&mut text[..], "{:016x}{:016x}", halves[0], halves[1]);
        RequestId::of(&text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_made_of_32_hex_digits_and_none_twice() {
        let (ids, others) = (RequestIds::default(), RequestIds::default());
        let made: HashSet<_> =
            (0..1000).flat_map(|_| [ids.next(), others.next()]).map(|id| id.to_string()).collect();
        assert_eq!(made.len(), 2000);
        assert!(made.iter().all(|id| id.len() == MADE_BYTES && id.bytes().all(|it| it.is_ascii_hexdigit())));
    }

    #[test]
    fn an_id_of_another_proxy_is_kept_where_it_is_plain() {
        for id in ["a", "Root=1-67891233-abcdef012345678912345678", &"x".repeat(64), "5f2b:9/a+b=@~._"] {
            assert_eq!(RequestId::given(id.as_bytes()).expect("an id").as_str(), id);
        }
        for no_id in ["", " ", "a b", "a\"", "a\\", "<b>", "a\n", "a;b", "\u{e4}", &"x".repeat(65)] {
            assert_eq!(RequestId::given(no_id.as_bytes()), None, "{no_id:?}");
        }
    }
}
