//! The real proxy among agents and clients that refuse, stall, break off, lie and vanish: each fault ends in the
//! status of the contract and within its limit, and the proxy serves on and holds nothing of it.
//! Times are upper bounds only, and generous: the machine may be busy.
//! Debian packages: openssl
#![allow(clippy::unwrap_used)]

#[path = "faults/admission.rs"]
mod admission;
#[path = "faults/agents.rs"]
mod agents;
#[path = "faults/bodies.rs"]
mod bodies;
#[path = "faults/clients.rs"]
mod clients;
#[path = "faults/closing.rs"]
mod closing;
#[path = "faults/desync.rs"]
mod desync;
#[path = "faults/flags.rs"]
mod flags;
#[path = "faults/forwarded.rs"]
mod forwarded;
#[path = "faults/halves.rs"]
mod halves;
#[path = "faults/kept.rs"]
mod kept;
#[path = "faults/logins.rs"]
mod logins;
#[path = "faults/material.rs"]
mod material;
#[path = "faults/selfmade.rs"]
mod selfmade;
#[path = "faults/stopping.rs"]
mod stopping;
#[path = "faults/trust.rs"]
mod trust;
#[path = "faults/urgent.rs"]
mod urgent;
