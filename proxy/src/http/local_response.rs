//! The proxy's own answers: short plain text that says what is wrong and what to do. Pure.

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
}

/// The reason phrase of the statuses that the proxy gives (RFC 9110 15).
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        307 => "Temporary Redirect",
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
