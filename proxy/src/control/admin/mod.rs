//! The admin listener: `/metrics`, `/health` and a page for people. Answers GET and HEAD and changes nothing. Uses `observe`,
//! `http` and the control socket.

mod page;
pub(super) mod server;

pub(super) use server::{Sources, serve};
