//! Rows of the table as requests of HTTP/2.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, Request};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request and its body.
pub(crate) type Asked = (Request<()>, Vec<u8>);

/// One request of HTTP/1.1, where it can be said in HTTP/2 too: with a path, with lines that are not of a connection, and
/// with nothing that the framing of HTTP/1.1 is about.
pub(crate) fn as_http2(request: &[u8]) -> Option<Asked> {
    let end = request.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&request[..end]).ok()?, &request[end + 4..]);
    let mut lines = head.split("\r\n");
    let line: Vec<_> = lines.next()?.split(' ').collect();
    let [method, path, "HTTP/1.1"] = line[..] else { return None };
    let mut fields = Vec::new();
    let mut host = None;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim_matches([' ', '\t']);
        HeaderName::from_bytes(name.as_bytes()).ok()?;
        match name.to_ascii_lowercase().as_str() {
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "te"
            | "http2-settings" => return None,
            "host" if host.is_some() => return None,
            "host" => host = Some(value),
            // What else is no length, the framing of HTTP/2 tells first.
            "content-length" if value != body.len().to_string() => return None,
            _ => fields.push((name, value)),
        }
    }
    let is_framed = fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if (!body.is_empty() && !is_framed) || !path.starts_with('/') || path.contains('#') {
        return None;
    }
    let request = Request::builder().method(method).uri(format!("http://{}{path}", host?));
    let request = fields.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    let request = request.body(()).ok()?;
    // A library that reads them otherwise would ask something else.
    let uri = request.uri();
    let is_same = uri.path_and_query()?.as_str() == path && uri.authority()?.as_str() == host?;
    // The list of a head of the largest size is beyond its own limit, as each field counts 32 bytes more (RFC 9113 6.5.2).
    let is_small = request_size(&request) <= LIST_MAX;
    (is_same && is_small).then(|| (request, body.to_vec()))
}

/// The header list that the proxy takes.
const LIST_MAX: usize = 32 * 1024;

fn request_size(request: &Request<()>) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    request.uri().to_string().len() + 4 * 40 + fields.sum::<usize>()
}

/// The status that it is answered with.
pub(crate) fn ask(proxy: SocketAddr, (request, body): Asked) -> Result<u16, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = async {
        let stream = tokio::net::TcpStream::connect(proxy).await.map_err(|error| error.to_string())?;
        let (mut client, connection) =
            h2::client::handshake(stream).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let sent = client.send_request(request, body.is_empty()).map_err(|error| error.to_string())?;
        let (response, mut stream) = sent;
        if !body.is_empty() {
            // Who refuses the request does not wait for its body.
            let _ = stream.send_data(body.into(), true);
        }
        let response = response.await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            let length = data.map_err(|error| error.to_string())?.len();
            body.flow_control().release_capacity(length).map_err(|error| error.to_string())?;
        }
        connection.abort();
        Ok(status)
    };
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err("no answer".to_owned()))
    })
}

/// The request that an agent sees, with its lines in an order of their own, names in lower case, as all of them are in
/// HTTP/2, and one line of cookies, to which crumbs are put together (RFC 9113 8.2.3).
pub(crate) fn normalised(request: &[u8]) -> String {
    let text = String::from_utf8_lossy(request);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines: Vec<_> = head.split("\r\n").map(str::to_owned).collect();
    for line in lines.iter_mut().skip(1) {
        if let Some((name, value)) = line.split_once(':') {
            *line = format!("{}:{value}", name.to_ascii_lowercase());
        }
    }
    let crumbs: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("cookie: ")).collect();
    let cookie = format!("cookie: {}", crumbs.join("; "));
    let has_cookie = !crumbs.is_empty();
    lines.retain(|line| !line.starts_with("cookie: "));
    lines.extend(has_cookie.then_some(cookie));
    lines[1..].sort();
    format!("{}\r\n\r\n{body}", lines.join("\r\n"))
}
