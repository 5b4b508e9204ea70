//! The kernel's own account of the process's connections: loads the program of `ebpf/`, attaches it to a cgroup, and reads
//! what it has counted. Whatever is missing for that is said; nothing else depends on it.

use std::error::Error;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use aya::maps::{HashMap, MapData, MapError};
use aya::programs::{CgroupAttachMode, SockOps};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use crate::config::{AGENT_PORTS_MAX, Config};
use crate::observe::agent::AgentId;
use crate::observe::tcp_stats::{KernelStats, TcpStats};

use layout::{
    ACKNOWLEDGED, AGENT, BUCKETS, CLOSED, CONNECT_TIMES, Counts, FAILED, Key, LEG, OPENED, PORT, RECEIVED,
    RETRANSMITTED, ROUND_TRIP_US, ROUND_TRIPS, TRIED,
};

/// Shared with the kernel's part; each side uses its own of it.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../../ebpf/src/account.rs"]
mod layout;

/// Listeners whose clients are counted.
const LISTENERS_MAX: usize = 8;

/// The program at work. It is detached when this is dropped, or the process ends.
pub(super) struct KernelCounters {
    _program: Ebpf,
    counts: HashMap<MapData, Key, Counts>,
}

impl KernelCounters {
    /// Counts the connections of `cgroup` from now on.
    pub(super) fn begin(config: &Config, cgroup: &Path) -> Result<Self, String> {
        let object = &config.ebpf_object;
        let code = std::fs::read(object).map_err(|error| {
            format!("{}: {error} (cargo xtask ebpf builds it, the package has it)", object.display())
        })?;
        let listeners = config.listen.iter().chain(&config.listen_plain).take(LISTENERS_MAX);
        let mut ports = [0_u32; LISTENERS_MAX];
        ports.iter_mut().zip(listeners).for_each(|(port, at)| *port = at.port().into());
        let mut agent_ports = [0_u32; AGENT_PORTS_MAX];
        agent_ports.iter_mut().zip(&config.agent_ports).for_each(|(port, named)| *port = u32::from(*named));
        let mut program = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::DISABLE)
            .override_global("AGENT_PORTS", &agent_ports, true)
            .override_global("LISTEN_PORTS", &ports, true)
            .load(&code)
            .map_err(|error| explain("its maps can't be made", &error))?;
        attach(&mut program, cgroup)?;
        let counts = program.take_map("ACCOUNT").ok_or("it has no map ACCOUNT")?;
        let counts = HashMap::try_from(counts).map_err(|error: MapError| explain("its map", &error))?;
        Ok(Self { _program: program, counts })
    }

    /// The counts so far.
    pub(super) fn read(&self) -> KernelStats {
        let mut account = KernelStats::default();
        for (key, counts) in self.counts.iter().flatten() {
            if key[LEG] == AGENT {
                account.agents.entry(agent(&key)).or_default().add(&stats(&counts));
            } else {
                account.listeners.entry(key[PORT]).or_default().add(&stats(&counts));
            }
        }
        account
    }
}

fn attach(program: &mut Ebpf, cgroup: &Path) -> Result<(), String> {
    let hook = program.program_mut("account").ok_or("it has no program `account`")?;
    let hook: &mut SockOps = hook.try_into().map_err(|error| explain("its program", &error))?;
    hook.load().map_err(|error| explain("the kernel does not take it", &error))?;
    let cgroup = File::open(cgroup).map_err(|error| format!("{}: {error}", cgroup.display()))?;
    hook.attach(cgroup, CgroupAttachMode::Single).map_err(|error| explain("it can't be attached", &error))?;
    Ok(())
}

/// The error and its causes in one line, and what is probably missing.
fn explain(what: &str, error: &(dyn Error + 'static)) -> String {
    let mut text = format!("{what}: {error}");
    let mut cause = Some(error);
    let mut denied = false;
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            denied |= error.kind() == io::ErrorKind::PermissionDenied;
            text = format!("{what}: {error}");
        }
        cause = error.source();
    }
    if denied {
        text.push_str(" (it takes CAP_BPF and CAP_NET_ADMIN, or root)");
    }
    text.lines().next().unwrap_or_default().to_owned()
}

fn agent(key: &Key) -> AgentId {
    let mut bytes = [0; 16];
    bytes.chunks_mut(4).zip(key).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_ne_bytes()));
    match IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical() {
        nobody if nobody.is_unspecified() => AgentId::OTHERS,
        address => address.into(),
    }
}

fn stats(counts: &Counts) -> TcpStats {
    let times = |first: usize| counts[first..first + BUCKETS].to_vec();
    TcpStats {
        received: counts[RECEIVED],
        acknowledged: counts[ACKNOWLEDGED],
        tried: counts[TRIED],
        opened: counts[OPENED],
        failed: counts[FAILED],
        closed: counts[CLOSED],
        retransmitted_segments: counts[RETRANSMITTED],
        rtt_us: counts[ROUND_TRIP_US],
        connect_times: times(CONNECT_TIMES),
        rtts: times(ROUND_TRIPS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_agents() {
        let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
        let v4 = [0, 0, word([0, 0, 0xff, 0xff]), word([10, 0, 0, 5]), 8443, AGENT];
        assert_eq!(agent(&v4), AgentId::from(IpAddr::from([10, 0, 0, 5])));
        let v6 = [word([0x20, 1, 0xd, 0xb8]), 0, 0, word([0, 0, 0, 1]), 8443, AGENT];
        assert_eq!(agent(&v6).to_string(), "2001:db8::1");
        assert_eq!(agent(&[0, 0, 0, 0, 0, AGENT]), AgentId::OTHERS);
    }
}
