//! The relay of a desktop's WebSocket after the 101, byte for byte. Never parses what it relays but for a close frame. Uses
//! `transport` and what is below it.

pub(crate) mod close_frame;
mod direction;
pub(crate) mod open_sessions;
pub(crate) mod queue;
pub mod relay;
