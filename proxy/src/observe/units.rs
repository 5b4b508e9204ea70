//! Numbers as people read them. Pure.

/// A time in microseconds, as people read it.
pub(crate) fn short(us: u64) -> String {
    match us {
        ..1000 => format!("{us} us"),
        1000..10_000 => format!("{}.{} ms", us / 1000, us / 100 % 10),
        10_000..10_000_000 => format!("{} ms", us / 1000),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// A number of bytes, with three digits.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = count as f64;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && scaled < 99.95);
    format!("{scaled:.digits$} {}", units[unit])
}

/// A time in seconds, by its two largest units.
pub(crate) fn time(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_people_read_them() {
        assert_eq!(
            [0, 999, 1000, 12_345, 999_499, 5_000_000_000].map(bytes),
            ["0 B", "999 B", "1.0 kB", "12.3 kB", "999 kB", "5.0 GB"]
        );
        assert_eq!([59, 61, 3_700, 90_000].map(time), ["59 s", "1 min", "1 h 1 min", "1 d 1 h"]);
        assert_eq!([999, 9950, 10_000, 9_999_999].map(short), ["999 us", "9.9 ms", "10 ms", "9999 ms"]);
    }
}
