//! Reads of WebSocket frames only what the relay needs: whether a side has said that it ends (RFC 6455 5.5.1). Pure.

/// Frames of one record that are looked at.
const FRAMES_MAX: usize = 16;
/// Bytes of a control frame's payload (RFC 6455 5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// A close frame: its header, a mask and a payload.
pub(crate) const CLOSE_FRAME_BYTES_MAX: usize = 2 + 4 + CONTROL_BYTES_MAX;
/// Codes of a close frame (RFC 6455 7.4.2).
const CODES: std::ops::Range<u16> = 1000..5000;
/// FIN and the opcode of a close frame.
const CLOSE: u8 = 0x88;

/// Whether bytes that begin with a frame end with a close frame, after which its sender has nothing to say (RFC 6455
/// 5.5.1). Bytes that begin within a frame are seldom taken for some that do; no more than a word in a log depends on it.
pub(crate) fn ends_with_close(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for _ in 0..FRAMES_MAX {
        let Some(length) = frame_length(rest) else { return false };
        if length >= rest.len() {
            return length == rest.len() && rest[0] == CLOSE && length <= CLOSE_FRAME_BYTES_MAX;
        }
        rest = &rest[length..];
    }
    false
}

/// The same of bytes that begin anywhere: what looks like a close frame at their end is taken for one. Of a thousand other
/// ends, some do.
pub(crate) fn seems_to_end_with_close(bytes: &[u8]) -> bool {
    let tail = &bytes[bytes.len().saturating_sub(CLOSE_FRAME_BYTES_MAX)..];
    memchr::memrchr_iter(CLOSE, tail).any(|at| {
        let frame = &tail[at..];
        // A payload has a code of two bytes, or is none (RFC 6455 5.5.1).
        let is_whole = frame_length(frame) == Some(frame.len());
        let payload = frame.len().saturating_sub(2);
        let code = frame.get(2..4).and_then(|code| code.first_chunk()).map(|code| u16::from_be_bytes(*code));
        let is_masked = frame.get(1).is_some_and(|length| length & 0x80 != 0);
        is_whole
            && (payload == 0 || is_masked && payload != 5 || code.is_some_and(|code| CODES.contains(&code)))
    })
}

/// The length of the frame that `bytes` begin with, its header and mask included (RFC 6455 5.2).
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let mask = if bytes.get(1)? & 0x80 == 0 { 0 } else { 4 };
    let (header, payload) = match bytes[1] & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?)),
        short => (2, u64::from(short)),
    };
    usize::try_from(payload).ok()?.checked_add(header + mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_frame_counts_where_it_is_whole_and_last() {
        let data = b"\x82\x02hi";
        let masked = b"\x88\x82\x01\x02\x03\x04\x02\xea";
        let long = [&b"\x82\x7e\x01\x00"[..], &[0x88; 256]].concat();
        let longer = [&b"\x82\x7f\0\0\0\0\0\0\x01\x00"[..], &[0x88; 256]].concat();
        let closes: [&[&[u8]]; 5] = [
            &[b"\x88\x00"],
            &[b"\x88\x02\x03\xe8"],
            &[masked],
            &[data, data, masked],
            &[&long, &longer, masked],
        ];
        for frames in closes {
            assert!(ends_with_close(&frames.concat()), "{frames:?}");
        }
        let others: [&[&[u8]]; 9] = [
            &[b""],
            &[b"\x88"],
            &[data],
            &[&long],
            &[masked, data],
            &[b"\x88\x02\x03"],
            &[b"\x88\x00", b"\x88"],
            &[b"\x88\x7f\xff\xff\xff\xff\xff\xff\xff\xff"],
            &[b"\x88\x7e\x00\xff", &[0; 255]],
        ];
        for frames in others {
            assert!(!ends_with_close(&frames.concat()), "{frames:?}");
        }
    }

    #[test]
    fn a_close_frame_is_seen_behind_any_bytes() {
        let frames: [&[u8]; 4] = [
            b"\x88\x00",
            b"\x88\x02\x03\xe8",
            b"\x88\x82\x01\x02\x03\x04\x02\xea",
            b"\x88\x80\x01\x02\x03\x04",
        ];
        for before in [&b""[..], b"the rest of a frame", &[0x88; 500], &[0; 2000]] {
            for frame in frames {
                assert!(seems_to_end_with_close(&[before, frame].concat()), "{frame:?}");
            }
        }
        let others: [&[u8]; 7] = [
            b"",
            b"\x88",
            b"\x88\x02\x00\x01",
            b"\x88\x01x",
            b"\x88\x81\x01\x02\x03\x04x",
            b"\x88\x00data",
            b"\x88\x7e\x00\x02hi",
        ];
        for other in others {
            assert!(!seems_to_end_with_close(&[b"the rest of a frame", other].concat()), "{other:?}");
        }
    }
}
