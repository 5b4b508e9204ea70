//! Heads as bytes of HTTP/1.1. Writes only what the parser took or the proxy itself says, so no line can hold another.

use std::io::Write as _;

use crate::http::local_response::{self, LocalResponse};
use crate::http::message::{FieldSink, Framing, RequestHead, ResponseHead};
use crate::http::rewrite::{self, RequestRewrite, ResponseRewrite};
use crate::observe::request_id::RequestId;

impl FieldSink for Vec<u8> {
    fn field(&mut self, name: &str, value: &[&[u8]]) {
        self.extend_from_slice(name.as_bytes());
        self.extend_from_slice(b": ");
        for part in value {
            self.extend_from_slice(part);
        }
        self.extend_from_slice(b"\r\n");
    }
}

/// Writes the head that the agent sees.
pub fn request(
    head: &RequestHead<'_>,
    rewrite: &RequestRewrite<'_>,
    host: &str,
    id: &RequestId,
    out: &mut Vec<u8>,
) {
    for part in [head.method, " ", &rewrite.path, " HTTP/1.1\r\nHost: ", host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if head.websocket {
        out.extend_from_slice(b"Upgrade: websocket\r\nConnection: upgrade\r\n");
    }
    rewrite::forwarded_fields(head, rewrite, id, out);
    write_framing(head.framing, out);
    rewrite::request_fields(head, rewrite, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes the head that the client sees. An interim response (1xx) gets no framing and no `Connection`, and is
/// not for HTTP/1.0 (RFC 9110 15.2).
pub fn response(head: &ResponseHead<'_>, rewrite: &ResponseRewrite<'_>, out: &mut Vec<u8>) {
    if head.status < 200 && rewrite.http10 {
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(head.status).as_bytes());
    for part in [" ", head.reason, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    if head.status == 101 {
        out.extend_from_slice(b"Upgrade: websocket\r\nConnection: upgrade\r\n");
    } else if head.status >= 200 {
        write_connection(rewrite, out);
        if head.framing != Framing::Empty {
            write_framing(rewrite.framing, out);
        }
    }
    rewrite::response_fields(head, rewrite, out);
    out.extend_from_slice(b"\r\n");
}

/// The bytes of the proxy's own response; without its body as the answer to HEAD.
pub(crate) fn local_response(response: &LocalResponse, keep_alive: bool, head_only: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + response.text.len());
    let LocalResponse { status, text, kind, headers } = response;
    let (length, connection) = (response.body_bytes(), if keep_alive { "keep-alive" } else { "close" });
    // Writing to memory does not fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\n", local_response::reason(*status));
    let _ = write!(out, "Content-Type: {kind}\r\nContent-Length: {length}\r\n");
    for header in headers {
        let _ = write!(out, "{header}\r\n");
    }
    let _ = write!(out, "Connection: {connection}\r\n\r\n");
    if !head_only {
        let _ = writeln!(out, "{text}");
    }
    out
}

/// Writes how the body is framed. An empty body is written only where the length was given as 0.
fn write_framing(framing: Framing, out: &mut Vec<u8>) {
    match framing {
        Framing::Length(length) => {
            out.field("Content-Length", &[itoa::Buffer::new().format(length).as_bytes()]);
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::Empty | Framing::UntilEnd => {}
    }
}

fn write_connection(rewrite: &ResponseRewrite<'_>, out: &mut Vec<u8>) {
    if !rewrite.keep_alive {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if rewrite.http10 {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::head::HeadLimits;

    #[test]
    fn an_interim_response_is_not_for_http_1_0() {
        let limits = HeadLimits { header_size_max: 256, request_line_max: 64, header_count_max: 4 };
        let head = ResponseHead::parse(b"HTTP/1.1 103 x\r\n\r\n", &limits, false).expect("a head");
        for (http10, told) in [(true, &b""[..]), (false, b"HTTP/1.1 103 x\r\n\r\n")] {
            let rewrite = ResponseRewrite {
                framing: Framing::Empty,
                keep_alive: false,
                http10,
                path_prefix: None,
                hsts: None,
            };
            let mut out = Vec::new();
            response(&head, &rewrite, &mut out);
            assert_eq!(out, told);
        }
    }

    #[test]
    fn a_local_response_is_one_whole_message() {
        let response = LocalResponse::new(404, "No such desktop.");
        let text = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 17\r\n\
                    Connection: close\r\n\r\nNo such desktop.\n";
        assert_eq!(String::from_utf8_lossy(&local_response(&response, false, false)), text);
        let head = local_response(&response.with_header("Allow: GET"), true, true);
        assert!(head.ends_with(b"Content-Length: 17\r\nAllow: GET\r\nConnection: keep-alive\r\n\r\n"));
    }
}
