//! The key that a WebSocket is asked for with, and the answer to it (RFC 6455 4.1). HTTP/2 has neither (RFC 8441 5): towards an
//! agent the proxy is the client, and has to see itself that the agent has understood. Pure, but for chance.

use std::hash::{BuildHasher, RandomState};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::http::message::{Header, values};

/// What every server puts behind a key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A key of one request. Nothing that has to be secret.
pub(crate) struct WebSocketKey(String);

impl WebSocketKey {
    /// A key that no request before had.
    pub(crate) fn new() -> Self {
        let halves = [(); 2].map(|()| RandomState::new().hash_one(()));
        Self(STANDARD.encode(halves.map(u64::to_ne_bytes).concat()))
    }

    /// As it is written.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Whether these lines of a response answer it, and nothing else.
    pub(crate) fn is_answered_by(&self, headers: &[Header<'_>]) -> bool {
        let answer = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{}{GUID}", self.0).as_bytes());
        let answer = STANDARD.encode(answer);
        let mut lines = values(headers, "sec-websocket-accept");
        lines.next().is_some_and(|line| line == answer.as_bytes()) && lines.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_the_rfc_is_taken_and_no_other() {
        let key = WebSocketKey("dGhlIHNhbXBsZSBub25jZQ==".to_owned());
        let line = |value: &'static str| Header { name: "Sec-WebSocket-Accept", value: value.as_bytes() };
        let right = line("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(key.is_answered_by(&[right]));
        assert!(!key.is_answered_by(&[]));
        assert!(!key.is_answered_by(&[line("S3pPLMBiTxaQ9kYGzzhZRbK+xOo=")]));
        assert!(!key.is_answered_by(&[right, right]));
    }

    #[test]
    fn a_key_is_sixteen_bytes_that_differ_each_time() {
        let (one, other) = (WebSocketKey::new(), WebSocketKey::new());
        assert_eq!(STANDARD.decode(one.text()).expect("Base64").len(), 16);
        assert_ne!(one.text(), other.text());
    }
}
