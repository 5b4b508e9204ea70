//! A response of HTTP/1.1, as the proxy has written it, as one of HTTP/2 (RFC 9113 8.3.2). Pure.

use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::http::h2::request::is_of_connection;
use crate::http::message::{Header, ResponseHead};

/// The head; none where it has something that can't be said in HTTP/2.
pub(crate) fn head(head: &ResponseHead<'_>) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = head.status.try_into().ok()?;
    *response.headers_mut() = fields(&head.headers)?;
    Some(response)
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

    #[test]
    fn a_response_is_the_same_without_the_lines_of_its_connection() {
        let limits = HeadLimits { header_size_max: 8192, request_line_max: 100, header_count_max: 20 };
        let bytes = b"HTTP/1.1 404 Gone Fishing\r\nContent-Length: 3\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
                      Connection: close\r\nX-Caf\xe9: \r\n\r\n";
        let parsed = ResponseHead::parse(bytes, &limits, false);
        assert!(parsed.is_err(), "no name has such a byte");
        let bytes = b"HTTP/1.1 404 Gone Fishing\r\nContent-Length: 3\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
                      Connection: close\r\nX: caf\xe9\r\n\r\n";
        let response =
            head(&ResponseHead::parse(bytes, &limits, false).expect("a head")).expect("a response");
        assert_eq!(response.status(), 404);
        let lines: Vec<_> =
            response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let wanted: [(&str, &[u8]); 4] =
            [("content-length", b"3"), ("set-cookie", b"a"), ("set-cookie", b"b"), ("x", b"caf\xe9")];
        assert_eq!(lines, wanted);
    }
}
