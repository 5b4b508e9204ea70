//! HTTP/2 (RFC 9113) to clients, by the `h2` crate: each stream is a request like any other, and is passed on as the HTTP/1.1
//! connection that it stands for. Decides nothing about a request. Uses `transport` and what is below it.

pub(crate) mod frame_guard;
pub(crate) mod io;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod stream;
mod websocket_key;

/// What a client that speaks it sends first (RFC 9113 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Its beginning, which looks like a request.
pub(crate) const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
