//! HTTP/1.1 on the wire: heads, bodies, and one exchange of a request and its response. Strict: what is ambiguous is refused.
//! Uses `http` beside it and the folders below.

pub mod body;
pub mod exchange;
pub mod head;
pub mod keep_alive;
pub mod writer;
