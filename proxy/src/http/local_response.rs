//! The proxy's own answers: short plain text that says what is wrong and what to do. Pure.

use std::io::Write;

/// An answer that no agent gave.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalResponse {
    /// The status.
    pub status: u16,
    /// The text of the body, without a line end.
    pub text: String,
    /// Its content type.
    pub kind: &'static str,
    /// Header lines of its own, such as `Location: /x`.
    pub headers: Vec<String>,
}

impl LocalResponse {
    /// An answer of this status and text.
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), kind: "text/plain; charset=utf-8", headers: Vec::new() }
    }

    /// The same with one more header line.
    #[must_use]
    pub fn with_header(mut self, header: impl Into<String>) -> Self {
        self.headers.push(header.into());
        self
    }

    /// The same as another kind of text.
    #[must_use]
    pub fn of_type(self, kind: &'static str) -> Self {
        Self { kind, ..self }
    }

    /// Bytes of the body.
    pub fn body_bytes(&self) -> usize {
        self.text.len() + 1
    }

    /// The bytes of the message; without its body as the answer to HEAD.
    pub fn render(&self, keep_alive: bool, head_only: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.text.len());
        let length = self.body_bytes();
        let connection = if keep_alive { "keep-alive" } else { "close" };
        // Writing to memory does not fail.
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        let _ = write!(out, "Content-Type: {}\r\nContent-Length: {length}\r\n", self.kind);
        for header in &self.headers {
            let _ = write!(out, "{header}\r\n");
        }
        let _ = write!(out, "Connection: {connection}\r\n\r\n");
        if !head_only {
            let _ = writeln!(out, "{}", self.text);
        }
        out
    }
}

/// The reason phrase of the statuses that the proxy gives (RFC 9110 15).
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_one_whole_message() {
        let reply = LocalResponse::new(404, "No such desktop.");
        let text = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 17\r\n\
                    Connection: close\r\n\r\nNo such desktop.\n";
        assert_eq!(String::from_utf8_lossy(&reply.render(false, false)), text);
        let head = reply.with_header("Allow: GET").render(true, true);
        assert!(head.ends_with(b"Content-Length: 17\r\nAllow: GET\r\nConnection: keep-alive\r\n\r\n"));
    }
}
