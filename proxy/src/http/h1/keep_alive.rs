//! How long an agent promises to keep a connection (`Keep-Alive`).

use std::time::Duration;

use crate::http::message::{self, Header};

/// An agent counts from when it has sent its answer, and the next request takes its time too: of the time that an agent
/// promises so much is not used, but half of it at the most.
const WAY: Duration = Duration::from_secs(1);

/// How long and for how many requests an agent means to keep its connection: `Keep-Alive: timeout=5, max=100`
/// (RFC 2068 19.7.1.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KeepAliveLimits {
    /// How long it may be idle.
    pub idle: Duration,
    /// Further requests.
    pub requests: u32,
}

impl Default for KeepAliveLimits {
    /// Of an agent that has said nothing.
    fn default() -> Self {
        Self { idle: Duration::MAX, requests: u32::MAX }
    }
}

impl KeepAliveLimits {
    /// The promise that is left after another request.
    #[must_use]
    pub fn after_one(self) -> Self {
        Self { requests: self.requests.saturating_sub(1), ..self }
    }

    /// Takes in what the agent says of it now.
    pub fn update(&mut self, headers: &[Header<'_>]) {
        for value in message::values(headers, "keep-alive") {
            // White space, quotes and separators of any kind mean nothing.
            let mut words = value.split(|byte| !byte.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            while let Some(name) = words.next() {
                if name.eq_ignore_ascii_case(b"timeout") {
                    self.idle = number(words.next()).map_or(self.idle, usable);
                } else if name.eq_ignore_ascii_case(b"max") {
                    self.requests = number(words.next()).unwrap_or(self.requests);
                }
            }
        }
    }
}

fn number(word: Option<&[u8]>) -> Option<u32> {
    std::str::from_utf8(word?).ok()?.parse().ok()
}

fn usable(seconds: u32) -> Duration {
    let promised = Duration::from_secs(seconds.into());
    promised.saturating_sub(WAY.min(promised / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_read_in_any_writing_and_what_is_none_is_left_out() {
        let none = KeepAliveLimits::default();
        let idle = |millis| KeepAliveLimits { idle: Duration::from_millis(millis), ..none };
        let cases = [
            ("timeout=5, max=100", KeepAliveLimits { requests: 100, ..idle(4000) }),
            ("max=0;TIMEOUT = \"1\"", KeepAliveLimits { requests: 0, ..idle(500) }),
            ("timeout=2 max=1", KeepAliveLimits { requests: 1, ..idle(1000) }),
            ("timeout=0", idle(0)),
            ("timeout=4294967295", idle(4_294_967_294_000)),
            ("timeout=99999999999999999999, max=-1x", none),
            ("timeout", none),
            ("timeout=, max=", none),
            ("x-timeout5, maximum=1", none),
            ("", none),
        ];
        for (value, promised) in cases {
            let mut keep_alive_limits = none;
            keep_alive_limits.update(&[Header { name: "keep-alive", value: value.as_bytes() }]);
            assert_eq!(keep_alive_limits, promised, "{value}");
        }
    }
}
