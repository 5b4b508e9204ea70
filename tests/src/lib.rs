//! Stand-in agents and clients for whole-program tests.
pub mod agent;
pub mod certificates;
pub mod debian;
pub mod faulty;
pub mod front;
pub mod fuzzed;
pub mod line;
pub mod network;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod simulated;
pub mod sshd;
