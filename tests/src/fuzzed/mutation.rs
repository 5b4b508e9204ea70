//! Bytes near those of a corpus, as a seed says: what a fuzzer does without watching what comes of it.

/// Words that the ways in know.
const WORDS: [&[u8]; 24] = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\0",
    b": ",
    b" ",
    b"/",
    b"HTTP/1.1",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: upgrade, close\r\n",
    b"Upgrade: websocket\r\n",
    b"Host: a\r\n",
    b"Expect: 100-continue\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff",
    b"GET /10.0.0.5/ HTTP/1.1\r\n",
    b"/169.254.169.254/",
    b"%2e%2e",
    b"PROXY TCP4 ",
    b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21",
    b"--agents\n",
    b"\x17\x03\x03\x00\x20",
    b"10-0-0-5.desks.test",
];
/// The most bytes that come of it.
const BYTES_MAX: usize = 8192;

/// Makes bytes from a corpus.
#[derive(Debug)]
pub struct Mutator {
    rng: fastrand::Rng,
}

impl Mutator {
    /// One that always makes the same.
    pub fn new(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed) }
    }

    /// The next bytes.
    pub fn next(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = self.rng.choice(corpus).cloned().unwrap_or_default();
        for _ in 0..self.rng.usize(1..=6) {
            self.step(&mut bytes, corpus);
        }
        bytes.truncate(BYTES_MAX);
        bytes
    }

    fn step(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let from = self.rng.usize(..=bytes.len());
        let to = self.rng.usize(from..=bytes.len().min(from + 32));
        match self.rng.u8(..6) {
            0 if from < bytes.len() => bytes[from] ^= 1 << self.rng.u8(..8),
            1 if from < bytes.len() => bytes[from] = self.rng.u8(..),
            2 => drop(bytes.drain(from..to)),
            3 => bytes.extend_from_within(from..to),
            4 => {
                let other = self.rng.choice(corpus).map_or(&[][..], |other| other);
                let start = self.rng.usize(..=other.len());
                bytes.splice(from..to, other[start..].iter().copied());
            }
            _ => {
                let word = WORDS[self.rng.usize(..WORDS.len())];
                bytes.splice(from..from, word.iter().copied());
            }
        }
    }
}
