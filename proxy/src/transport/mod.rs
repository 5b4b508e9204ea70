//! Byte streams of both sides: what a connection asks of the outside world, TCP, an endpoint (a stream with its TLS and the
//! bytes in flight), pipes, and networks as operators write them. Knows no HTTP. Uses `os`, `runtime`, `tls` and `observe`.

pub mod any_stream;
pub mod congestion;
pub mod endpoint;
pub mod kernel_tls;
pub mod net;
pub mod networks;
pub(crate) mod own_addresses;
pub mod pipes;
pub(crate) mod receive_window;
pub mod stream;
