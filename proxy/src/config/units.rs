//! Times and sizes as they are written: a number and its unit (`60s`, `2500ms`, `16KiB`), each within its range.
//! Reads no file and no clock.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

/// The shortest time that can be written.
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
/// The shortest of most limits.
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// The longest of most limits: `1year`, which is 365.25 days.
pub(super) const YEAR: Duration = Duration::from_hours(8766);

/// Reads a time within `range`.
pub(super) fn time(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        if is_bare(text) {
            return Err(format!("the unit is missing: write {text}s or {text}ms"));
        }
        let time = humantime::parse_duration(text)
            .map_err(|error| format!("{error}: write a number and its unit, such as 60s or 2500ms"))?;
        if range.contains(&time) {
            return Ok(time);
        }
        let [min, max] = [range.start(), range.end()].map(|limit| humantime::format_duration(*limit));
        Err(format!("write a time from {min} to {max}"))
    }
}

/// Reads a size within `range`, in bytes.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<ByteSize, String> + Clone {
    move |text| {
        if is_bare(text) {
            return Err(format!("the unit is missing: write {text}B or {text}KiB"));
        }
        let size: ByteSize = text
            .parse()
            .map_err(|error| format!("{error}: write a number and its unit, such as 16KiB or 1GiB"))?;
        if range.contains(&size.as_u64()) {
            return Ok(size);
        }
        Err(format!("write a size from {:.0} to {:.0}", ByteSize(*range.start()), ByteSize(*range.end())))
    }
}

/// A number without a unit could be meant as seconds or milliseconds, bytes or kilobytes.
fn is_bare(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_lies_in_its_range() {
        let read = time(SECOND..=YEAR);
        for (text, seconds) in [("60s", 60), ("2m", 120), ("1h 30m", 5400), ("1year", 31_557_600)] {
            assert_eq!(read(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(read("2500ms"), Ok(Duration::from_millis(2500)));
        for (text, says) in [
            ("60", "the unit is missing: write 60s or 60ms"),
            ("0s", "write a time from 1s to 1year"),
            ("999ms", "write a time from 1s to 1year"),
            ("2years", "write a time from 1s to 1year"),
            ("99999999999999999999s", "number is too large"),
            ("-1s", "expected number"),
            ("a minute", "expected number"),
            ("5parsecs", "unknown time unit"),
            ("", "value was empty"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_size_has_a_unit_and_lies_in_its_range() {
        let read = size(256..=1 << 20);
        for (text, bytes) in [("256B", 256), ("16KiB", 16 << 10), ("16 kB", 16_000), ("1MiB", 1 << 20)] {
            assert_eq!(read(text), Ok(ByteSize(bytes)), "{text}");
        }
        for (text, says) in [
            ("16384", "the unit is missing: write 16384B or 16384KiB"),
            ("255B", "write a size from 256 B to 1 MiB"),
            ("2MiB", "write a size from 256 B to 1 MiB"),
            ("16KX", "such as 16KiB"),
            ("-1KiB", "such as 16KiB"),
            ("", "such as 16KiB"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }
}
