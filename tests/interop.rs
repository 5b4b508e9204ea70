//! The real proxy over loopback with real clients and agents of other make: curl, openssl, a WebSocket library,
//! and Debian's nginx as an agent, so that no mistake is shared by both ends.
//! Debian packages: curl iproute2 nginx-light openssl
#![allow(clippy::unwrap_used)]

#[path = "interop/access.rs"]
mod access;
#[path = "interop/books.rs"]
mod books;
#[path = "interop/crowd.rs"]
mod crowd;
#[path = "interop/executor.rs"]
mod executor;
#[path = "interop/http.rs"]
mod http;
#[path = "interop/http2.rs"]
mod http2;
#[path = "interop/namespace.rs"]
mod namespace;
#[path = "interop/nginx.rs"]
mod nginx;
#[path = "interop/readiness.rs"]
mod readiness;
#[path = "interop/secure.rs"]
mod secure;
#[path = "interop/sockets.rs"]
mod sockets;
#[path = "interop/tools.rs"]
mod tools;
