//! What the `h2` crate lets pass and tells nobody of, by the headers of frames alone: too many that ask for work and carry no
//! request (RFC 9113 10.5), sizes that no frame of its kind has, and a beginning without settings. Pure.

use std::time::Instant;

use crate::http::h2::PREFACE;

/// Frames without a request that may come at once: more than any page that is left in the middle of its loading makes.
const BURST: u32 = 1000;
/// How many more may come in a second from then on.
const PER_SECOND: u32 = 100;

/// Bytes of a frame's header (RFC 9113 4.1).
const HEADER_BYTES: usize = 9;

/// Bytes of one header block, compressed, in all of its frames: a list may be no longer than it is taken.
const HEADER_BLOCK_MAX: u32 = 64 * 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 0x01;
const PADDED: u8 = 0x08;
const PRIORITISED: u8 = 0x20;

/// What a connection is ended for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Violation {
    /// Too many frames that ask for nothing.
    Flood,
    /// A frame is too short or too long for its kind (RFC 9113 4.2).
    FrameSize,
    /// It does not begin with settings (RFC 9113 3.4).
    NoSettings,
}

/// The guard of one connection.
#[derive(Debug)]
pub(crate) struct FrameGuard {
    /// Bytes that are passed over before the next header: the preface, or what is left of a payload.
    skipped: usize,
    /// The header that has come in part.
    header: [u8; HEADER_BYTES],
    seen: usize,
    has_begun: bool,
    /// Bytes of the running header block.
    block: u32,
    /// Frames without a request that may still come.
    left: u32,
    filled: Instant,
}

impl FrameGuard {
    /// Of a connection that begins.
    pub(crate) fn new(now: Instant) -> Self {
        let header = [0; HEADER_BYTES];
        Self { skipped: PREFACE.len(), header, seen: 0, has_begun: false, block: 0, left: BURST, filled: now }
    }

    /// Looks at the frames that begin in what has come.
    pub(crate) fn look(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Violation> {
        while !bytes.is_empty() {
            let skipped = self.skipped.min(bytes.len());
            bytes = &bytes[skipped..];
            self.skipped -= skipped;
            let taken = bytes.len().min(HEADER_BYTES - self.seen);
            self.header[self.seen..self.seen + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.seen += taken;
            if self.seen == HEADER_BYTES {
                self.seen = 0;
                self.judge(now)?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, now: Instant) -> Result<(), Violation> {
        let [high, middle, low, kind, flags, ..] = self.header;
        let length = u32::from_be_bytes([0, high, middle, low]);
        self.skipped = length as usize;
        if !self.has_begun && (kind != SETTINGS || flags & ACK != 0) {
            return Err(Violation::NoSettings);
        }
        self.has_begun = true;
        if !has_right_size(kind, flags, length) {
            return Err(Violation::FrameSize);
        }
        self.block = if kind == CONTINUATION { self.block + length } else { length };
        if self.block > HEADER_BLOCK_MAX && kind == CONTINUATION {
            return Err(Violation::Flood);
        }
        if costs(kind, length) && !self.spend(now) { Err(Violation::Flood) } else { Ok(()) }
    }

    fn spend(&mut self, now: Instant) -> bool {
        if self.left == 0 {
            let earned = now.duration_since(self.filled).as_millis() * u128::from(PER_SECOND) / 1000;
            if earned > 0 {
                self.left = u32::try_from(earned).unwrap_or(BURST).min(BURST);
                self.filled = now;
            }
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// RFC 9113 6. What is longer than any frame may be, the crate finds itself.
fn has_right_size(kind: u8, flags: u8, length: u32) -> bool {
    let has = |flag| flags & flag != 0;
    match kind {
        DATA => length > 0 || !has(PADDED),
        HEADERS => length >= u32::from(has(PADDED)) + 5 * u32::from(has(PRIORITISED)),
        PRIORITY => length == 5,
        RST_STREAM | WINDOW_UPDATE => length == 4,
        SETTINGS => length.is_multiple_of(6) && (length == 0 || !has(ACK)),
        PING => length == 8,
        GOAWAY => length >= 8,
        _ => true,
    }
}

/// Whether a frame is one of those that are counted. Requests and their bodies have limits of their own, and windows have to
/// be opened as often as bodies are taken.
fn costs(kind: u8, length: u32) -> bool {
    match kind {
        HEADERS | WINDOW_UPDATE => false,
        DATA | CONTINUATION => length == 0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, flags, 0, 0, 0, 1][..], &vec![0; length.into()]].concat()
    }

    fn begun(now: Instant) -> FrameGuard {
        let mut guard = FrameGuard::new(now);
        assert_eq!(guard.look(&[PREFACE, &frame(SETTINGS, 0, 0)].concat(), now), Ok(()));
        guard
    }

    /// How many of those frames may come at once, cut into pieces of that size.
    fn allowed(frame: &[u8], piece: usize) -> usize {
        let now = Instant::now();
        let mut guard = begun(now);
        (0..5000).take_while(|_| frame.chunks(piece).all(|bytes| guard.look(bytes, now).is_ok())).count()
    }

    #[test]
    fn frames_that_only_ask_for_work_are_counted_however_they_come() {
        // The settings of the beginning are one of them.
        let burst = BURST as usize - 1;
        for (kind, length, most) in [
            (DATA, 0, burst),
            (DATA, 8, 5000),
            (CONTINUATION, 0, burst),
            (HEADERS, 8, 5000),
            (WINDOW_UPDATE, 4, 5000),
            (PRIORITY, 5, burst),
            (RST_STREAM, 4, burst),
            (SETTINGS, 6, burst),
            (PING, 8, burst),
            (GOAWAY, 8, burst),
            (200, 3, burst),
        ] {
            for piece in [1, 7, 100] {
                assert_eq!(allowed(&frame(kind, 0, length), piece), most, "frame {kind} of {length} bytes");
            }
        }
    }

    #[test]
    fn a_header_block_has_a_size() {
        let now = Instant::now();
        let mut guard = begun(now);
        assert_eq!(guard.look(&frame(HEADERS, 0, 200), now), Ok(()));
        let frames =
            (1..1000).find(|_| guard.look(&frame(CONTINUATION, 0, 200), now) == Err(Violation::Flood));
        assert_eq!(frames, Some(HEADER_BLOCK_MAX / 200));
        assert_eq!(guard.look(&frame(HEADERS, 0, 200), now), Ok(()), "another block");
    }

    #[test]
    fn a_client_that_waits_may_send_more() {
        let now = Instant::now();
        let mut guard = begun(now);
        let ping = frame(PING, 0, 8);
        let mut sends = |count: u32, now| (0..count).all(|_| guard.look(&ping, now).is_ok());
        assert!(sends(BURST - 1, now));
        let later = now + Duration::from_secs(2);
        assert!(sends(2 * PER_SECOND, later));
        assert!(!sends(1, later));
        assert!(sends(BURST, later + Duration::from_hours(1)));
    }

    #[test]
    fn a_frame_has_a_size_of_its_kind() {
        let wrong: [(u8, u8, &[u8]); 10] = [
            (DATA, PADDED, &[0]),
            (HEADERS, PADDED, &[0]),
            (HEADERS, PADDED | PRIORITISED, &[0, 5]),
            (PRIORITY, 0, &[0, 4, 6]),
            (RST_STREAM, 0, &[0, 3, 5]),
            (SETTINGS, 0, &[1, 5, 7]),
            (SETTINGS, ACK, &[1, 6]),
            (PING, 0, &[0, 7, 9]),
            (GOAWAY, 0, &[0, 7]),
            (WINDOW_UPDATE, 0, &[0, 3, 5]),
        ];
        for (kind, flags, lengths) in wrong {
            for length in lengths {
                let found = begun(Instant::now()).look(&frame(kind, flags, *length), Instant::now());
                assert_eq!(found, Err(Violation::FrameSize), "frame {kind} of {length} bytes");
            }
        }
    }

    #[test]
    fn a_connection_begins_with_settings() {
        for first in [frame(PING, 0, 8), frame(HEADERS, 5, 20), frame(SETTINGS, ACK, 0)] {
            let mut guard = FrameGuard::new(Instant::now());
            let found = guard.look(&[PREFACE, &first].concat(), Instant::now());
            assert_eq!(found, Err(Violation::NoSettings));
        }
    }
}
