//! Reads of WebSocket frames only what the relay needs: whether a side has said that it ends (RFC 6455 5.5.1). Pure.

/// Frames of one record that are looked at.
const FRAMES_MAX: usize = 16;
/// Bytes of a control frame's payload (RFC 6455 5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// FIN and the opcode of a close frame.
const CLOSE: u8 = 0x88;

/// Whether bytes that begin with a frame end with a close frame, after which its sender has nothing to say (RFC 6455
/// 5.5.1). Bytes that begin within a frame are seldom taken for some that do; no more than a word in a log depends on it.
pub(crate) fn ends_with_close(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for _ in 0..FRAMES_MAX {
        let Some(length) = frame_length(rest) else { return false };
        if length >= rest.len() {
            return length == rest.len() && rest[0] == CLOSE && length <= 2 + 4 + CONTROL_BYTES_MAX;
        }
        rest = &rest[length..];
    }
    false
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
}
