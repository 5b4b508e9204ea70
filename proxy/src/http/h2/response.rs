//! A response of HTTP/1.1, as the proxy has written it, as one of HTTP/2 (RFC 9113 8.3.2). Pure.

use http::header::SEC_WEBSOCKET_ACCEPT;
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::http::connection_auth;
use crate::http::h2::request::is_of_connection;
use crate::http::message::{Header, ResponseHead};

/// The head; none where it has something that can't be said in HTTP/2.
pub(crate) fn head(head: &ResponseHead<'_>) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = head.status.try_into().ok()?;
    *response.headers_mut() = fields(&head.headers)?;
    Some(response)
}

/// The answer to a client whose WebSocket the agent has accepted (RFC 8441 5).
pub(crate) fn websocket(accepted: &ResponseHead<'_>) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.headers_mut() = fields(&accepted.headers)?;
    response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
    Some(response)
}

/// Whether the agent wants a login that holds for a connection to it, of which a stream has none.
pub(crate) fn needs_own_connection(head: &ResponseHead<'_>) -> bool {
    head.status == 401 && connection_auth::needs_own_connection(&head.headers)
}

/// Header lines, or trailers, without those of the connection.
pub(crate) fn fields(headers: &[Header<'_>]) -> Option<HeaderMap> {
    let mut fields = HeaderMap::with_capacity(headers.len());
    for Header { name, value } in headers.iter().filter(|header| !is_of_connection(header.name)) {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        fields.append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::head::HeadLimits;

    const LIMITS: HeadLimits =
        HeadLimits { header_size_max: 8192, request_line_max: 100, header_count_max: 20 };

    #[test]
    fn an_accepted_websocket_is_a_response_that_goes_on() {
        let bytes = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
                      Sec-WebSocket-Accept: abc=\r\nSec-WebSocket-Protocol: dcv\r\n\r\n";
        let accepted = ResponseHead::parse(bytes, &LIMITS, false).expect("a head");
        let response = websocket(&accepted).expect("a response");
        assert_eq!(response.status(), 200);
        let lines: Vec<_> = response.headers().iter().collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(response.headers()["sec-websocket-protocol"], "dcv");
    }

    #[test]
    fn a_login_of_a_connection_is_seen() {
        let needs = |head: &str| {
            needs_own_connection(&ResponseHead::parse(head.as_bytes(), &LIMITS, false).expect("a head"))
        };
        assert!(needs("HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"x\", NTLM\r\n\r\n"));
        assert!(!needs("HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"a, NTLM\"\r\n\r\n"));
        assert!(!needs("HTTP/1.1 200 OK\r\nWWW-Authenticate: Negotiate b2s=\r\n\r\n"));
    }

    #[test]
    fn a_response_is_the_same_without_the_lines_of_its_connection() {
        let bytes = b"HTTP/1.1 404 Gone Fishing\r\nContent-Length: 3\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
                      Connection: close\r\nX-Caf\xe9: \r\n\r\n";
        let parsed = ResponseHead::parse(bytes, &LIMITS, false);
        assert!(parsed.is_err(), "no name has such a byte");
        let bytes = b"HTTP/1.1 404 Gone Fishing\r\nContent-Length: 3\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
                      Connection: close\r\nX: caf\xe9\r\n\r\n";
        let response =
            head(&ResponseHead::parse(bytes, &LIMITS, false).expect("a head")).expect("a response");
        assert_eq!(response.status(), 404);
        let lines: Vec<_> =
            response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let wanted: [(&str, &[u8]); 4] =
            [("content-length", b"3"), ("set-cookie", b"a"), ("set-cookie", b"b"), ("x", b"caf\xe9")];
        assert_eq!(lines, wanted);
    }
}
