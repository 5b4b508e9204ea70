//! The event loop of one thread: tasks and their order, timers, readiness by `io_uring` or epoll, and what a drain is. Knows
//! nothing of HTTP, TLS or agents. All `unsafe` of the program is in `io_uring.rs`. Uses no other folder.

pub mod buffer;
pub mod drain;
pub(crate) mod event;
pub mod executor;
#[expect(unsafe_code, reason = "the one place for it, reviewed block by block")]
pub(crate) mod io_uring;
pub mod poller;
pub mod scheduler;
pub(crate) mod timers;
mod wakers;
