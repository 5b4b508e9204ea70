//! The real proxy among agents and clients that refuse, stall, break off, lie and vanish: each fault ends in the
//! status of the contract and within its limit, and the proxy serves on and holds nothing of it.
//! Times are upper bounds only, and generous: the machine may be busy.
//! Debian packages: openssl
#![allow(clippy::unwrap_used)]

#[path = "fault_injection/admission.rs"]
mod admission;
#[path = "fault_injection/agents.rs"]
mod agents;
#[path = "fault_injection/bodies.rs"]
mod bodies;
#[path = "fault_injection/clients.rs"]
mod clients;
#[path = "fault_injection/closing.rs"]
mod closing;
#[path = "fault_injection/desync.rs"]
mod desync;
#[path = "fault_injection/flags.rs"]
mod flags;
#[path = "fault_injection/forwarded.rs"]
mod forwarded;
#[path = "fault_injection/halves.rs"]
mod halves;
#[path = "fault_injection/kept.rs"]
mod kept;
#[path = "fault_injection/logins.rs"]
mod logins;
#[path = "fault_injection/material.rs"]
mod material;
#[path = "fault_injection/old_kernel.rs"]
mod old_kernel;
#[path = "fault_injection/own_answers.rs"]
mod own_answers;
#[path = "fault_injection/selfmade.rs"]
mod selfmade;
#[path = "fault_injection/stopping.rs"]
mod stopping;
#[path = "fault_injection/trust.rs"]
mod trust;
#[path = "fault_injection/urgent.rs"]
mod urgent;
