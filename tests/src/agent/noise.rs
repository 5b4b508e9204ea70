//! Bytes that both ends can make and check without keeping them.
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The largest piece of a body of noise.
const PIECE: usize = 64 * 1024;

/// The same pseudo-random bytes each time, in pieces: what `/bytes/<n>` and `/chunked/<n>` answer.
#[derive(Clone, Debug)]
pub struct Noise {
    left: u64,
    state: u64,
}

impl Noise {
    /// The first `length` bytes.
    pub fn new(length: u64) -> Self {
        Self { left: length, state: 0x9e37_79b9_7f4a_7c15 }
    }

    /// All of them at once.
    pub fn bytes(self) -> Vec<u8> {
        self.flatten().collect()
    }

    fn word(&mut self) -> [u8; 8] {
        // xorshift64: each byte differs from its neighbours, which is all that matters.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.to_be_bytes()
    }
}

impl Iterator for Noise {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        self.left -= length as u64;
        let mut piece = Vec::with_capacity(PIECE);
        while piece.len() < length {
            piece.extend(self.word());
        }
        piece.truncate(length);
        (length > 0).then(|| piece.into())
    }
}

/// Noise as a body of known length.
pub(super) struct Sized(pub(super) Noise);

impl Body for Sized {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.left)
    }
}

/// Noise as a body of unknown length, which HTTP/1.1 sends in chunks.
pub(super) struct Unsized(pub(super) Noise);

impl Body for Unsized {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece))))
    }
}

/// A cheap checksum (FNV-1a) that notices a lost, added, changed or moved byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Bytes added so far.
    pub length: u64,
    /// Their checksum.
    pub sum: u64,
}

impl Default for Checksum {
    fn default() -> Self {
        Self { length: 0, sum: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Checksum {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        let step = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.sum = bytes.iter().fold(self.sum, step);
    }

    /// The checksum of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::default();
        sum.add(bytes);
        sum
    }

    /// Reads a body to its end; none if it broke off.
    pub(super) async fn of_body(mut body: hyper::body::Incoming) -> Option<Self> {
        let mut sum = Self::default();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.ok()?.into_data() {
                sum.add(&data);
            }
        }
        Some(sum)
    }
}

/// As `/sink` answers: the length, a space, the sum in hexadecimal.
impl std::fmt::Display for Checksum {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(out, "{} {:016x}", self.length, self.sum)
    }
}
