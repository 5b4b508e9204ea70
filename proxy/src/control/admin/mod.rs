//! The admin listener: `/metrics`, `/health` and live pages for people. Answers GET and HEAD and changes nothing. Uses `observe`,
//! `http`, the reports of the fleet and the control socket.

mod pages;
mod sampler;
mod server;

pub(super) use sampler::Sources;
pub(super) use server::serve;
