//! Stand-in agents and clients for whole-program tests.
pub mod agent;
pub mod certificates;
pub mod debian;
pub mod fuzzed;
pub mod name_server;
pub mod network;
pub mod process;
pub mod proxy;
pub mod proxy_under_test;
pub mod raw;
pub mod raw_client;
pub mod reference;
pub mod scripted_agent;
pub mod simulated;
pub mod sshd;
pub mod stand_in;
pub mod websocket;
