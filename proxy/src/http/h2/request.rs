//! A request of HTTP/2 as the HTTP/1.1 request that it stands for (RFC 9113 8.3). What the `h2` crate has let pass and the
//! RFC forbids is refused here; what is wrong in any version is left to whoever reads the HTTP/1.1 head. Pure.

use h2::ext::Protocol;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, HOST, SEC_WEBSOCKET_KEY};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::http::connection_auth;
use crate::http::h1::body::{self, BodyChunk};
use crate::http::h2::websocket_key::WebSocketKey;
use crate::http::message::{FieldSink, Framing, Header};

/// A request that is none (RFC 9113 8.1.1): its stream is reset.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Malformed;

/// Lines that only HTTP/1 has (RFC 9113 8.2.2).
const OF_CONNECTION: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"];

/// Whether a line says something of a connection, and nothing of the message.
pub(crate) fn is_of_connection(name: &str) -> bool {
    OF_CONNECTION.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Whether a WebSocket is asked for (RFC 8441 4). Any other protocol is refused as CONNECT is.
pub(crate) fn asks_for_websocket(parts: &Parts) -> bool {
    let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str);
    parts.method == Method::CONNECT && protocol.is_some_and(|name| name.eq_ignore_ascii_case("websocket"))
}

/// Whether it logs in by a scheme that holds for a connection to the agent, of which a stream has none.
pub(crate) fn needs_own_connection(parts: &Parts) -> bool {
    let lines = parts.headers.get_all(AUTHORIZATION).iter();
    let lines = lines.map(|value| Header { name: AUTHORIZATION.as_str(), value: value.as_bytes() });
    connection_auth::needs_own_connection(&lines.collect::<Vec<_>>())
}

/// Writes the head to `out`. `has_body`: more will come than the head. `key`: for a WebSocket, where one is asked for. Gives the
/// framing of the body.
pub(crate) fn head(
    parts: &Parts,
    has_body: bool,
    key: Option<&WebSocketKey>,
    out: &mut Vec<u8>,
) -> Result<Framing, Malformed> {
    let Parts { method, uri, headers, .. } = parts;
    if uri.scheme_str().is_some_and(|scheme| scheme != "https" && scheme != "http") {
        return Err(Malformed);
    }
    if !headers.iter().all(|(name, value)| is_well_formed(name, value)) {
        return Err(Malformed);
    }
    // CONNECT has no path but an authority, and is refused as in HTTP/1.
    let target = uri.path_and_query().map(http::uri::PathAndQuery::as_str);
    let target = target.or(uri.authority().map(http::uri::Authority::as_str)).ok_or(Malformed)?;
    let is_websocket = key.is_some();
    out.extend_from_slice(if is_websocket { b"GET" } else { method.as_str().as_bytes() });
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(host) = host(parts)? {
        out.field("Host", &[host]);
    }
    for (name, value) in headers {
        if name != HOST && name != COOKIE && !(is_websocket && name == SEC_WEBSOCKET_KEY) {
            out.field(name.as_str(), &[value.as_bytes()]);
        }
    }
    // Crumbs are put together again (RFC 9113 8.2.3).
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if !crumbs.is_empty() {
        out.field("Cookie", &[&crumbs.join(&b"; "[..])]);
    }
    if let Some(key) = key {
        out.field("Connection", &[b"Upgrade"]);
        out.field("Upgrade", &[b"websocket"]);
        out.field("Sec-WebSocket-Key", &[key.text().as_bytes()]);
    }
    let framing = match (has_body && !is_websocket, headers.contains_key(CONTENT_LENGTH)) {
        (false, _) => Framing::Empty,
        // How long it is, the head's reader finds out.
        (true, true) => Framing::UntilEnd,
        (true, false) => {
            out.field("Transfer-Encoding", &[b"chunked"]);
            Framing::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    Ok(framing)
}

/// RFC 9113 8.2.1 and 8.2.2.
fn is_well_formed(name: &HeaderName, value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let is_trimmed = bytes.trim_ascii().len() == bytes.len();
    let is_allowed = !is_of_connection(name.as_str()) && (name != "te" || bytes == b"trailers");
    is_trimmed && is_allowed
}

/// What the client asked, where `:authority` and `Host` agree (RFC 9113 8.3.1).
fn host(parts: &Parts) -> Result<Option<&[u8]>, Malformed> {
    let mut lines = parts.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let (line, another) = (lines.next(), lines.next());
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    match (authority, line) {
        _ if another.is_some() => Err(Malformed),
        (Some(authority), Some(line)) if !authority.eq_ignore_ascii_case(line) => Err(Malformed),
        (authority, line) => Ok(authority.or(line)),
    }
}

/// Writes some bytes of the body.
pub(crate) fn data(framing: Framing, bytes: &[u8], out: &mut Vec<u8>) {
    // An empty chunk would end it.
    if !bytes.is_empty() {
        body::encode(framing, &BodyChunk::Data(bytes), out);
    }
}

/// Writes its end.
pub(crate) fn end(
    framing: Framing,
    trailers: Option<&HeaderMap>,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let fields = || trailers.into_iter().flatten();
    if !fields().all(|(name, value)| is_well_formed(name, value)) {
        return Err(Malformed);
    }
    let trailers = fields().map(|(name, value)| Header { name: name.as_str(), value: value.as_bytes() });
    body::encode(framing, &BodyChunk::End(trailers.collect()), out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(request: http::request::Builder, has_body: bool) -> Result<(Framing, String), Malformed> {
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let mut out = Vec::new();
        let key = asks_for_websocket(&parts).then(WebSocketKey::new);
        let framing = head(&parts, has_body, key.as_ref(), &mut out)?;
        Ok((framing, String::from_utf8(out).expect("text")))
    }

    fn get(uri: &str) -> http::request::Builder {
        http::Request::builder().uri(uri)
    }

    #[test]
    fn a_request_is_the_same_in_both_versions() {
        let request = get("https://h:8443/10.0.0.1/a%2Fb?x=1&y={z}").header("accept", "*/*");
        let request = request.header("cookie", "a=1").header("x", "1").header("cookie", "b=2");
        let wanted = "GET /10.0.0.1/a%2Fb?x=1&y={z} HTTP/1.1\r\nHost: h:8443\r\naccept: */*\r\nx: 1\r\n\
                      Cookie: a=1; b=2\r\n\r\n";
        assert_eq!(written(request, false), Ok((Framing::Empty, wanted.to_owned())));
    }

    #[test]
    fn a_body_is_as_long_as_its_head_says_or_comes_in_chunks() {
        let request = || get("https://h/").method("POST");
        let (framing, head) = written(request(), true).expect("a head");
        assert_eq!(framing, Framing::Chunked);
        assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
        let (framing, head) = written(request().header("content-length", "5"), true).expect("a head");
        assert_eq!(framing, Framing::UntilEnd);
        assert!(head.contains("\r\ncontent-length: 5\r\n") && !head.contains("chunked"), "{head}");
        let mut out = Vec::new();
        data(Framing::Chunked, b"hello", &mut out);
        data(Framing::Chunked, b"", &mut out);
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("x"), HeaderValue::from_static("1"))]);
        end(Framing::Chunked, Some(&trailers), &mut out).expect("an end");
        assert_eq!(out, b"5\r\nhello\r\n0\r\nx: 1\r\n\r\n");
        out.clear();
        data(Framing::UntilEnd, b"hello", &mut out);
        end(Framing::UntilEnd, None, &mut out).expect("an end");
        assert_eq!(out, b"hello");
    }

    #[test]
    fn host_and_authority_have_to_agree() {
        let host = |request| {
            let (_, head) = written(request, false)?;
            Ok(head.lines().find_map(|line| line.strip_prefix("Host: ").map(str::to_owned)))
        };
        assert_eq!(host(get("https://h:1/").header("host", "H:1")), Ok(Some("h:1".to_owned())));
        assert_eq!(host(get("/").header("host", "h")), Ok(Some("h".to_owned())));
        assert_eq!(host(get("/")), Ok(None));
        assert_eq!(host(get("https://h/").header("host", "other")), Err(Malformed));
        assert_eq!(host(get("/").header("host", "h").header("host", "h")), Err(Malformed));
    }

    #[test]
    fn a_websocket_is_asked_for_as_in_http1() {
        let connect = |protocol| {
            let request =
                get("https://h/10.0.0.1/ws").method("CONNECT").header("sec-websocket-version", "13");
            request.header("sec-websocket-key", "its own").extension(Protocol::from_static(protocol))
        };
        let (framing, head) = written(connect("websocket"), true).expect("a head");
        assert_eq!(framing, Framing::Empty);
        let lines: Vec<_> = head.lines().collect();
        let wanted =
            ["GET /10.0.0.1/ws HTTP/1.1", "Host: h", "sec-websocket-version: 13", "Connection: Upgrade"];
        assert_eq!(lines[..4], wanted);
        assert_eq!(lines[4], "Upgrade: websocket");
        assert!(lines[5].starts_with("Sec-WebSocket-Key: "), "{lines:?}");
        assert_eq!(lines[6..], [""]);
        let (_, head) = written(connect("connect-udp"), true).expect("a head");
        assert!(head.starts_with("CONNECT "), "{head}");
    }

    #[test]
    fn a_login_of_a_connection_is_seen() {
        let needs = |value: &str| {
            let (parts, ()) =
                get("https://h/").header("authorization", value).body(()).expect("a request").into_parts();
            needs_own_connection(&parts)
        };
        assert!(needs("NTLM TlRMTVNTUAABAAAA") && needs("negotiate YII="));
        assert!(!needs("Basic eDp5") && !needs("Bearer negotiate") && !needs("Custom x"));
    }

    #[test]
    fn lines_of_a_connection_make_a_request_malformed() {
        for (name, value) in [
            ("connection", "close"),
            ("keep-alive", "1"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("te", "gzip"),
            ("x", " a"),
            ("x", "a\t"),
        ] {
            assert_eq!(
                written(get("https://h/").header(name, value), false),
                Err(Malformed),
                "{name}: {value}"
            );
        }
        assert!(written(get("https://h/").header("te", "trailers"), false).is_ok());
        assert_eq!(written(get("ftp://h/"), false), Err(Malformed));
        let trailers =
            HeaderMap::from_iter([(HeaderName::from_static("upgrade"), HeaderValue::from_static("x"))]);
        assert_eq!(end(Framing::Chunked, Some(&trailers), &mut Vec::new()), Err(Malformed));
    }
}
