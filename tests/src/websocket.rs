//! How an agent accepts a WebSocket.

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The head that accepts what `request` asks for, without its last line: `more` are further lines of it.
pub fn accepted(request: &str, more: &str) -> String {
    let lines = request.lines().filter_map(|line| line.split_once(": "));
    let key =
        lines.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")).map(|(_, key)| key).next();
    let accept = key.map(|key| format!("Sec-WebSocket-Accept: {}\r\n", derive_accept_key(key.as_bytes())));
    let accept = accept.unwrap_or_default();
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{accept}{more}\r\n"
    )
}
