//! The kernel's account of connections, as the eBPF program keeps it. Read by the privileged helper; knows no socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::observe::agent::AgentId;
use crate::observe::agent_stats::SocketBytes;

/// The kernel's TCP statistics of one agent's connections, or of one listener's.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct TcpStats {
    /// Bytes of payload that came in order, each once.
    pub received: u64,
    /// Bytes of payload that the other side has acknowledged.
    pub acknowledged: u64,
    /// Connections that were tried.
    pub tried: u64,
    /// Connections that were made.
    pub opened: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// Connections that have ended.
    pub closed: u64,
    /// Segments that were sent again.
    pub retransmitted_segments: u64,
    /// The smoothed round-trip time of the connection that spoke last.
    pub rtt_us: u64,
    /// Times to connect: the n-th number is of those of 2^n us and more, below 2^(n+1).
    pub connect_times: Vec<u64>,
    /// Smoothed round-trip times, likewise.
    pub rtts: Vec<u64>,
}

impl TcpStats {
    /// Bytes that are in this account and not in the proxy's own, received and sent: they are on their way, or were never
    /// read. Fewer than none where the kernel has still to tell of some.
    pub fn beyond(&self, own: SocketBytes) -> (i64, i64) {
        let differ = |kernel: u64, own: u64| kernel.wrapping_sub(own).cast_signed();
        (differ(self.received, own.received), differ(self.acknowledged, own.sent))
    }

    /// Adds what is counted at another port of the same address.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.acknowledged += other.acknowledged;
        self.tried += other.tried;
        self.opened += other.opened;
        self.failed += other.failed;
        self.closed += other.closed;
        self.retransmitted_segments += other.retransmitted_segments;
        self.rtt_us = self.rtt_us.max(other.rtt_us);
        add_each(&mut self.connect_times, &other.connect_times);
        add_each(&mut self.rtts, &other.rtts);
    }
}

fn add_each(sum: &mut Vec<u64>, more: &[u64]) {
    sum.resize(sum.len().max(more.len()), 0);
    sum.iter_mut().zip(more).for_each(|(count, more)| *count += more);
}

/// The kernel's TCP statistics of a process's connections.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct KernelStats {
    /// By agent.
    pub agents: BTreeMap<AgentId, TcpStats>,
    /// By the port that clients come to.
    pub listeners: BTreeMap<u32, TcpStats>,
}
