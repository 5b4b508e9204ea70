//! The admin listener: `/metrics`, `/health` and a page for people. Answers GET and HEAD and changes nothing. Uses `observe`,
//! `http` and the control socket.

mod page;
pub mod server;

pub use server::{Sources, serve};
