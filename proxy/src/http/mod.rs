//! HTTP messages as values, what is changed in them on the way, and responses of the proxy's own; `h1` alone reads and
//! writes bytes of HTTP/1.1; `h2` puts those of HTTP/2 into its words.
//! Never chooses an agent and never decides who may ask. Uses `transport` and what is below it.

pub mod connection_auth;
pub mod error_page;
pub mod h1;
pub(crate) mod h2;
pub(crate) mod local_response;
pub mod message;
pub mod path_prefix;
pub mod request_source;
pub mod rewrite;
