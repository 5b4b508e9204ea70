//! Flags and keys that had another name before 0.1.0, and what to write now. They are refused: what is said in two ways is
//! read in two ways. Reads no file.

use std::ffi::OsString;

/// The old name, the new one, and the unit of a number that was written without one.
const RENAMED: [(&str, &str, &str); 19] = [
    ("agent-idle-s", "agent-keepalive-timeout", "s"),
    ("body-bytes-max", "body-max", "B"),
    ("body-gap-s", "body-idle-timeout", "s"),
    ("connect-ms", "connect-timeout", "ms"),
    ("drain-s", "drain-timeout", "s"),
    ("half-closed-s", "half-closed-timeout", "s"),
    ("head-bytes-max", "header-size-max", "B"),
    ("head-s", "header-timeout", "s"),
    ("headers-max", "header-count-max", ""),
    ("hsts-s", "hsts-max-age", "s"),
    ("keep-alive-s", "client-keepalive-timeout", "s"),
    ("line-bytes-max", "request-line-max", "B"),
    ("prefix", "path-prefix", ""),
    ("readiness", "io-backend", ""),
    ("relay-idle-s", "session-idle-timeout", "s"),
    ("response-s", "response-timeout", "s"),
    ("stall-s", "tcp-user-timeout", "s"),
    ("turn-bytes", "relay-budget", "B"),
    ("upgrade-drain-s", "upgrade-drain-timeout", "s"),
];

/// The new name of a key, and what to write for its old value: in a file between quotes, but for a count.
pub(super) fn renamed_key(old: &str, value: &str) -> Option<(&'static str, String)> {
    let (new, value) = renamed(old, value)?;
    let is_count = value.bytes().all(|byte| byte.is_ascii_digit());
    Some((new, if is_count { value } else { format!("{value:?}") }))
}

fn renamed(old: &str, value: &str) -> Option<(&'static str, String)> {
    let (_, new, unit) = RENAMED.iter().find(|(name, ..)| *name == old)?;
    let is_number = value.ends_with(|last: char| last.is_ascii_digit());
    Some((new, format!("{value}{}", if is_number { unit } else { "" })))
}

/// The words without old flags and their values, and what to write for each of those.
pub(super) fn without_renamed_flags(words: &[OsString]) -> (Vec<OsString>, Vec<String>) {
    let (mut kept, mut problems) = (Vec::new(), Vec::new());
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let flag = word.to_str().and_then(|word| word.strip_prefix("--"));
        let (name, joined) = flag.map_or(("", None), |flag| match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        });
        if renamed(name, "").is_none() {
            kept.push(word.clone());
            continue;
        }
        let mut next = || words.next_if(|word| !word.as_encoded_bytes().starts_with(b"--"));
        let value = joined.map(str::to_owned).or_else(|| Some(next()?.to_string_lossy().into_owned()));
        let Some((new, value)) = renamed(name, &value.unwrap_or_default()) else { continue };
        problems.push(format!("--{name} is now --{new}: write --{new}={value}"));
    }
    (kept, problems)
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::super::flags::Flags;
    use super::*;

    #[test]
    fn each_new_name_is_a_flag_and_no_old_one_is() {
        let command = Flags::augment_args(clap::Command::new("dcv-splice"));
        let is_flag = |name: &str| command.get_arguments().any(|argument| argument.get_long() == Some(name));
        for (old, new, _) in RENAMED {
            assert!(is_flag(new) && !is_flag(old), "{old} {new}");
        }
    }

    #[test]
    fn old_flags_are_told_with_what_to_write_and_the_others_stay() {
        let words = ["--listen", "[::]:1", "--head-s", "60", "--connect-ms=5", "--prefix", "--workers=2"];
        let (kept, problems) = without_renamed_flags(&words.map(OsString::from));
        assert_eq!(kept, ["--listen", "[::]:1", "--workers=2"]);
        assert_eq!(
            problems,
            [
                "--head-s is now --header-timeout: write --header-timeout=60s",
                "--connect-ms is now --connect-timeout: write --connect-timeout=5ms",
                "--prefix is now --path-prefix: write --path-prefix=",
            ]
        );
    }
}
