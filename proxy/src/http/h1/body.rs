//! Message bodies: where one ends on the wire, and how it is written again. Pure, and streaming: nothing is
//! collected but a chunk-size line or a trailer section, both limited.
//! A body is always re-framed: chunk extensions are dropped, and no byte reaches the other side as framing
//! that was not understood here first (RFC 9112 6, 7).

use memchr::memmem;

use crate::http::h1::head;
use crate::http::message::{FieldSink, Framing, Header};

/// Bytes of a chunk-size line with its extensions.
const CHUNK_LINE_BYTES_MAX: usize = 1024;
/// Bytes of a trailer section.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Why a body can't be read on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// The chunks or trailers are malformed.
    #[error("The chunked body is malformed.")]
    Malformed,
    /// More bytes than allowed.
    #[error("The body is larger than this proxy accepts.")]
    TooLarge,
}

/// A part of a body.
#[derive(Debug, Eq, PartialEq)]
pub enum BodyChunk<'a> {
    /// Some bytes of it.
    Data(&'a [u8]),
    /// Its end, with the trailers that may be passed on.
    End(Vec<Header<'a>>),
}

/// Takes a body off the wire.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    /// Bytes that may still come.
    allowed: u64,
    /// White space behind a chunk size is let pass.
    padded: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Bytes left of a body of known length.
    Length(u64),
    UntilEnd,
    ChunkSize,
    /// Bytes left of the chunk.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Ended,
}

impl Decoder {
    /// For a body of this framing and at most `allowed` bytes.
    pub fn new(framing: Framing, allowed: u64) -> Self {
        let state = match framing {
            Framing::Empty => State::Length(0),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilEnd => State::UntilEnd,
        };
        Self { state, allowed, padded: false }
    }

    /// For a body of an agent. White space may stand behind its chunk sizes (`5  `), as embedded servers write it. From a
    /// client it is refused: a server that reads such a size otherwise could be led to see another request in the body.
    pub fn of_agent(framing: Framing) -> Self {
        Self { padded: true, ..Self::new(framing, u64::MAX) }
    }

    /// Whether the body ends with the connection, and with nothing else.
    pub fn ends_with_connection(&self) -> bool {
        self.state == State::UntilEnd
    }

    /// Takes the next piece from the front of `bytes`: how many were used, and the piece, `None` where more
    /// bytes are needed. To be called until it gives [`BodyChunk::End`], and never after.
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Option<BodyChunk<'a>>), BodyError> {
        match self.state {
            State::Length(0) => Ok(self.end(0, Vec::new())),
            State::Length(left) => self.data(bytes, left, State::Length),
            State::UntilEnd => self.data(bytes, u64::MAX, |_| State::UntilEnd),
            State::Chunk(0) => {
                self.state = State::ChunkEnd;
                self.next(bytes)
            }
            State::Chunk(left) => self.data(bytes, left, State::Chunk),
            State::ChunkEnd => self.chunk_end(bytes),
            State::ChunkSize => self.chunk_size(bytes),
            State::Trailers => self.trailers(bytes),
            State::Ended => Ok((0, None)),
        }
    }

    fn end<'a>(&mut self, used: usize, trailers: Vec<Header<'a>>) -> (usize, Option<BodyChunk<'a>>) {
        self.state = State::Ended;
        (used, Some(BodyChunk::End(trailers)))
    }

    fn data<'a>(
        &mut self,
        bytes: &'a [u8],
        left: u64,
        state: impl Fn(u64) -> State,
    ) -> Result<(usize, Option<BodyChunk<'a>>), BodyError> {
        if bytes.is_empty() {
            return Ok((0, None));
        }
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        self.allowed = self.allowed.checked_sub(take as u64).ok_or(BodyError::TooLarge)?;
        self.state = state(left - take as u64);
        Ok((take, Some(BodyChunk::Data(&bytes[..take]))))
    }

    fn chunk_end<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Option<BodyChunk<'a>>), BodyError> {
        match bytes {
            [b'\r', b'\n', rest @ ..] => {
                self.state = State::ChunkSize;
                let (used, piece) = self.chunk_size(rest)?;
                Ok((used + 2, piece))
            }
            [] | [b'\r'] => Ok((0, None)),
            _ => Err(BodyError::Malformed),
        }
    }

    fn chunk_size<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Option<BodyChunk<'a>>), BodyError> {
        let Some(line) = line(bytes, CHUNK_LINE_BYTES_MAX)? else { return Ok((0, None)) };
        let size = parse_chunk_size(line, self.padded).ok_or(BodyError::Malformed)?;
        if size > self.allowed {
            return Err(BodyError::TooLarge);
        }
        let used = line.len() + 2;
        self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
        let (more, piece) = self.next(&bytes[used..])?;
        Ok((used + more, piece))
    }

    fn trailers<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Option<BodyChunk<'a>>), BodyError> {
        if bytes.starts_with(b"\r\n") {
            return Ok(self.end(2, Vec::new()));
        }
        let Some(at) = memmem::find(bytes, b"\r\n\r\n") else {
            let patient = bytes.len() < TRAILER_BYTES_MAX && no_bare_line_end(bytes);
            return if patient { Ok((0, None)) } else { Err(BodyError::Malformed) };
        };
        let section = &bytes[..at + 4];
        if section.len() > TRAILER_BYTES_MAX || !no_bare_line_end(section) {
            return Err(BodyError::Malformed);
        }
        let trailers = head::trailers(section).map_err(|_| BodyError::Malformed)?;
        Ok(self.end(section.len(), trailers.into_iter().filter(may_trail).collect()))
    }
}

/// The line at the front of `bytes` without its CR LF, once it is whole.
fn line(bytes: &[u8], request_line_max: usize) -> Result<Option<&[u8]>, BodyError> {
    match memchr::memchr(b'\n', bytes) {
        Some(0) => Err(BodyError::Malformed),
        Some(end) if bytes[end - 1] != b'\r' || end > request_line_max => Err(BodyError::Malformed),
        Some(end) => Ok(Some(&bytes[..end - 1])),
        None if bytes.len() > request_line_max => Err(BodyError::Malformed),
        None => Ok(None),
    }
}

fn no_bare_line_end(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes).all(|at| at > 0 && bytes[at - 1] == b'\r')
}

/// Hexadecimal digits, white space where it is let pass, then extensions of printable bytes or nothing (RFC 9112 7.1.1).
fn parse_chunk_size(line: &[u8], padded: bool) -> Option<u64> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(digits);
    let padding = rest.iter().take_while(|b| padded && matches!(b, b' ' | b'\t')).count();
    let extensions = &rest[padding..];
    let clean = extensions.iter().all(|b| *b == b'\t' || (*b >= b' ' && *b != 0x7f));
    if digits.is_empty() || digits.len() > 16 || !clean || !(extensions.is_empty() || extensions[0] == b';') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Fields that say how a message is framed or routed, or where it came from, have no say in its trailers
/// (RFC 9110 6.5.1): many a server adds them to the header.
fn may_trail(header: &Header<'_>) -> bool {
    const NEVER: [&str; 19] = [
        "content-length",
        "transfer-encoding",
        "host",
        "connection",
        "upgrade",
        "trailer",
        "te",
        "keep-alive",
        "authorization",
        "set-cookie",
        "content-encoding",
        "location",
        "proxy-authorization",
        "proxy-connection",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-request-id",
        "x-real-ip",
    ];
    !header.name.contains('_') && !NEVER.iter().any(|name| header.is(name))
}

/// Writes a piece of a body to `out` in a framing that the receiver was told of.
pub fn encode(framing: Framing, piece: &BodyChunk<'_>, out: &mut Vec<u8>) {
    match (framing, piece) {
        (Framing::Chunked, BodyChunk::Data(data)) => {
            out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            out.extend_from_slice(data);
            out.extend_from_slice(b"\r\n");
        }
        (Framing::Chunked, BodyChunk::End(trailers)) => {
            out.extend_from_slice(b"0\r\n");
            for trailer in trailers {
                out.field(trailer.name, &[trailer.value]);
            }
            out.extend_from_slice(b"\r\n");
        }
        (_, BodyChunk::Data(data)) => out.extend_from_slice(data),
        (_, BodyChunk::End(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `wire` in steps of `step` bytes and writes the body again in the framing `out`.
    fn pass(framing: Framing, out: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, usize), BodyError> {
        let mut decoder = Decoder::new(framing, 1 << 20);
        let (mut written, mut start, mut end) = (Vec::new(), 0, 0);
        loop {
            let (used, piece) = decoder.next(&wire[start..end])?;
            start += used;
            match piece {
                Some(piece) => {
                    encode(out, &piece, &mut written);
                    if matches!(piece, BodyChunk::End(_)) {
                        return Ok((written, start));
                    }
                }
                None if end == wire.len() => return Ok((written, start)),
                None => end = (end + step).min(wire.len()),
            }
        }
    }

    #[test]
    fn a_length_takes_just_its_bytes() {
        for step in 1..8 {
            let (body, used) =
                pass(Framing::Length(5), Framing::Length(5), b"helloGET /", step).expect("a body");
            assert_eq!((body.as_slice(), used), (&b"hello"[..], 5));
        }
    }

    #[test]
    fn chunks_lose_extensions_and_keep_data_and_trailers_at_any_cut() {
        let wire =
            b"5;a=\"b\"\r\nhello\r\n00a\r\n0123456789\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\nNEXT";
        for step in 1..wire.len() {
            let (body, used) = pass(Framing::Chunked, Framing::UntilEnd, wire, step).expect("a body");
            assert_eq!(body, b"hello0123456789");
            assert_eq!(&wire[used..], b"NEXT");
            let (again, _) = pass(Framing::Chunked, Framing::Chunked, wire, step).expect("a body");
            assert!(again.ends_with(b"0\r\nX-Sum: 1\r\n\r\n"), "{}", String::from_utf8_lossy(&again));
            let (twice, _) = pass(Framing::Chunked, Framing::UntilEnd, &again, 3).expect("a body");
            assert_eq!(twice, b"hello0123456789");
        }
    }

    #[test]
    fn what_another_parser_could_read_otherwise_is_refused() {
        let malformed: [&[u8]; 16] = [
            b"5\nhello\r\n",
            b"5 \r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"g\r\n",
            b"\r\n",
            b"\n",
            b"11111111111111111\r\n",
            b"5;a=\x00\r\nhello\r\n",
            b"0\r\nX: 1\n\r\n\r\n",
            b"0\r\n X: 1\r\n\r\n",
            b"0\r\nX : 1\r\n\r\n",
            b"0\r\nX\r\n\r\n",
        ];
        for wire in malformed {
            let got = pass(Framing::Chunked, Framing::Chunked, wire, wire.len());
            assert_eq!(got, Err(BodyError::Malformed), "{}", String::from_utf8_lossy(wire));
        }
    }

    #[test]
    fn white_space_behind_a_chunk_size_is_taken_from_agents_alone() {
        for size in ["5 ", "5\t \t", "05  ;a=1", "5 \t;"] {
            let wire = format!("{size}\r\nhello\r\n0 \r\n\r\n");
            let mut of_agent = Decoder::of_agent(Framing::Chunked);
            assert_eq!(
                of_agent.next(wire.as_bytes()),
                Ok((size.len() + 7, Some(BodyChunk::Data(b"hello")))),
                "{size}"
            );
            let of_client = Decoder::new(Framing::Chunked, 9).next(wire.as_bytes());
            assert_eq!(of_client, Err(BodyError::Malformed), "{size}");
        }
        for size in [" 5", "5 5", "5 a", "5 \r", "5\u{b}", "5\u{a0}", " ", "5 ,a"] {
            let wire = format!("{size}\r\nhello\r\n");
            let got = Decoder::of_agent(Framing::Chunked).next(wire.as_bytes());
            assert_eq!(got, Err(BodyError::Malformed), "{size:?}");
        }
    }

    #[test]
    fn trailers_say_nothing_of_where_a_message_came_from() {
        let wire = b"0\r\nX-Forwarded-For: 1\r\nx-real-ip: 1\r\nX_Real_IP: 1\r\nX-Sum: 1\r\n\r\n";
        let (body, _) = pass(Framing::Chunked, Framing::Chunked, wire, 7).expect("a body");
        assert_eq!(body, b"0\r\nX-Sum: 1\r\n\r\n");
    }

    #[test]
    fn lines_and_trailers_are_limited() {
        let mut endless = Decoder::new(Framing::Chunked, 1 << 20);
        assert_eq!(endless.next(&[b'0'; CHUNK_LINE_BYTES_MAX + 1]), Err(BodyError::Malformed));
        let mut trailers = Decoder::new(Framing::Chunked, 1 << 20);
        let wire = [b"0\r\nX: ".to_vec(), vec![b'x'; TRAILER_BYTES_MAX]].concat();
        assert_eq!(trailers.next(&wire), Err(BodyError::Malformed));
    }

    #[test]
    fn a_body_over_the_limit_is_refused_at_the_chunk_that_breaks_it() {
        let mut decoder = Decoder::new(Framing::Chunked, 8);
        assert_eq!(decoder.next(b"5\r\nhello\r\n"), Ok((8, Some(BodyChunk::Data(b"hello")))));
        assert_eq!(decoder.next(b"\r\n4\r\n"), Err(BodyError::TooLarge));
        assert_eq!(Decoder::new(Framing::Chunked, 8).next(b"ffffffffffffffff\r\n"), Err(BodyError::TooLarge));
    }
}
