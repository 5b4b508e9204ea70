//! The real proxy over loopback with real clients and agents of other make: curl, openssl, a WebSocket library,
//! and Debian's nginx as an agent, so that no mistake is shared by both ends.
//! Debian packages: curl iproute2 nginx-light openssl
#![allow(clippy::unwrap_used)]

#[path = "wire/access.rs"]
mod access;
#[path = "wire/books.rs"]
mod books;
#[path = "wire/crowd.rs"]
mod crowd;
#[path = "wire/executor.rs"]
mod executor;
#[path = "wire/http.rs"]
mod http;
#[path = "wire/namespace.rs"]
mod namespace;
#[path = "wire/nginx.rs"]
mod nginx;
#[path = "wire/readiness.rs"]
mod readiness;
#[path = "wire/secure.rs"]
mod secure;
#[path = "wire/sockets.rs"]
mod sockets;
#[path = "wire/tools.rs"]
mod tools;
