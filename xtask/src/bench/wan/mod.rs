//! `cargo xtask bench wan`: a desktop over a user's network, through each peer and without one. What counts is how old a
//! frame is when the client has it, and what an input takes to be answered. Hosts are network namespaces, links are a
//! process of this bench's own; the path to an agent without a peer leads through the same hosts.
// Numbers are shares and ratios of counts far below 2^53, and times.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

pub(super) mod link;
mod network;
mod profile;
mod report;
pub(super) mod source;
mod stats;
pub(super) mod viewer;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, thread};

use harness::certificates::{Identity, KeyKind};
use harness::process::Process;
use serde::Serialize;

use super::agent::AgentPlan;
use super::part::{self, Role};
use super::peers::{Peer, Place, free};
use super::run::keep;
use super::system::Usage;
use super::wire::{Tls, now};
use network::Leg;
use profile::Profile;
use source::{Kind, SourcePlan};
use stats::RunStats;
use viewer::{View, ViewerPlan};

/// Compare what a user sees over a bad link
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which networks (all when none is named)
    #[arg(value_enum, value_name = "PROFILE")]
    profiles: Vec<Profile>,
    /// What to compare, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_value = "direct,nginx-tuned,haproxy,dcv-splice")]
    pub(super) peers: Vec<Peer>,
    /// What the agent shows
    #[arg(long, value_enum, value_delimiter = ',', default_value = "filling")]
    sources: Vec<Kind>,
    /// Seconds that a session lasts; the first 4 are not counted
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(8..=120))]
    secs: u64,
    /// Runs of each peer over each network
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    reps: u64,
    /// Congestion control of the agent's sockets (the system's when empty)
    #[arg(long, default_value = "cubic")]
    agent_congestion: String,
    /// Where `wan.json` and `wan.html` go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Compare with this other build of the proxy too
    #[arg(long, value_name = "PROGRAM")]
    pub(super) before: Option<PathBuf>,
    /// Give dcv-splice this flag too; repeatable
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    flag: Vec<String>,
}

/// What it needs beside the peers.
pub(super) const PROGRAMS: [&str; 2] = ["/usr/sbin/ethtool", "/usr/sbin/ip"];
pub(super) const PACKAGES: &str = "ethtool iproute2";

/// Bytes that stand in sockets at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct SocketBytes {
    /// In ms after the link's start.
    at: f64,
    agent_unsent: u64,
    proxy_received: u64,
    proxy_unsent: u64,
}

/// What is run.
#[derive(Clone, Copy, Serialize)]
struct Case {
    profile: Profile,
    kind: Kind,
    peer: Peer,
    repetition: u64,
}

/// What has come of it.
#[derive(Serialize)]
struct Run {
    case: Case,
    stats: RunStats,
    view: View,
    standing: Vec<SocketBytes>,
}

/// Measures in the namespaces that the caller has made.
pub(super) fn measure(args: &Args) -> Result<(), String> {
    network::make()?;
    let own = std::env::current_exe().map_err(|why| format!("this program has no path: {why}"))?;
    let proxy = own.with_file_name("dcv-splice");
    let out = fs::create_dir_all(&args.out).and_then(|()| args.out.canonicalize());
    let out = out.map_err(|why| format!("--out {}: {why}", args.out.display()))?;
    let hosts = [network::AGENT, network::FAR_AGENT, network::PROXY];
    let identity = Identity::self_signed(KeyKind::Ecdsa, &hosts);
    let setting = Setting { args, proxy: &proxy, out: &out, identity: &identity };
    let (mut runs, mut failures) = (Vec::new(), Vec::new());
    for profile in super::chosen(&args.profiles) {
        let kinds = args.sources.iter().filter(|kind| profile.takes(**kind));
        for kind in kinds {
            for (repetition, peer) in (0..args.reps)
                .flat_map(|repetition| args.peers().into_iter().map(move |peer| (repetition, peer)))
                .filter(|(_, peer)| speaks(*peer, *kind))
            {
                let case = Case { profile, kind: *kind, peer, repetition };
                match run(&setting, case) {
                    Ok(run) => {
                        println!("{}", report::line(&run));
                        runs.push(run);
                    }
                    Err(why) => {
                        let why = format!("{} {}: {why}", profile.name(), peer.name());
                        eprintln!("FAILED: {why}");
                        failures.push(why);
                    }
                }
            }
            println!("\n{}", report::table(&runs, profile, *kind));
        }
    }
    report::write(&out, &runs, &failures)?;
    println!("wan.json and wan.html are in {}", args.out.display());
    if failures.is_empty() { Ok(()) } else { Err(format!("{} runs failed", failures.len())) }
}

impl Args {
    pub(super) fn peers(&self) -> Vec<Peer> {
        let mut peers = self.peers.clone();
        peers.retain(|peer| *peer != Peer::DcvSpliceBefore);
        peers.extend(self.before.as_ref().map(|_| Peer::DcvSpliceBefore));
        peers
    }

    fn flags(&self, kind: Kind) -> Vec<String> {
        let websocket = (kind == Kind::ChannelsH2).then(|| "--http2-websocket=on".to_owned());
        self.flag.iter().cloned().chain(websocket).collect()
    }
}

/// Whether the peer speaks what the client does.
fn speaks(peer: Peer, kind: Kind) -> bool {
    match kind {
        Kind::ChannelsH2 => peer == Peer::DcvSplice,
        Kind::PageH2 => peer != Peer::Direct,
        _ => true,
    }
}

struct Setting<'a> {
    args: &'a Args,
    proxy: &'a Path,
    out: &'a Path,
    identity: &'a Identity,
}

/// What a run may take beside its session.
const SLACK: Duration = Duration::from_secs(45);
/// Between two readings of what stands in sockets.
const READING: Duration = Duration::from_millis(100);

fn run(setting: &Setting, case: Case) -> Result<Run, String> {
    let Setting { args, identity, .. } = *setting;
    let network = case.profile.network();
    let directory = tempfile::Builder::new().prefix("wan-").tempdir_in(setting.out);
    let directory = directory.map_err(|why| format!("no temporary directory: {why}"))?;
    keep(directory.path(), identity).map_err(|why| format!("no certificate files: {why}"))?;
    let epoch = now();
    let _links = [
        Some(network::link(Leg::Client, network.client, case.repetition, epoch)?),
        network
            .agent
            .map(|way| network::link(Leg::FarAgent, [way, way], case.repetition, epoch))
            .transpose()?,
    ];
    let proxy_address: Ipv4Addr = address(network::PROXY)?;
    let (host, agent) =
        if network.agent.is_some() { ("far-agent", network::FAR_AGENT) } else { ("agent", network::AGENT) };
    let agent = SocketAddr::from((address(agent)?, free(proxy_address)?.port()));
    let agent_process = start_agent(args, identity, host, agent)?;
    let flags = args.flags(case.kind);
    let place = Place {
        directory: directory.path(),
        identity,
        agents: [agent; 3],
        is_secure: true,
        is_http2: case.kind.is_http2(),
        listen: proxy_address,
        proxy: setting.proxy,
        before: args.before.as_deref(),
        flags: &flags,
    };
    let running = case.peer.start(&place)?;
    let entrance = &running.entrances[0];
    let plan = ViewerPlan {
        connect: entrance.address,
        prefix: entrance.prefix.clone(),
        cert_pem: identity.cert_pem.clone(),
        source: case.profile.source(case.kind),
        download: network.download,
        seconds: args.secs as f64,
        epoch,
    };
    let viewer =
        Process::start(network::on("client", &part::command(Role::WanViewer, &plan)?)).without_grace();
    let pids: Vec<u32> = running.process.iter().map(Process::pid).collect();
    let before = Usage::of(&pids);
    let is_over = AtomicBool::new(false);
    let ports = (agent.port(), entrance.address.port());
    let (view, standing) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut standing = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                standing.push(reading(epoch, agent_process.pid(), ports));
                thread::sleep(READING);
            }
            standing
        });
        let view = part::outcome::<View>(viewer, Duration::from_secs(args.secs) + SLACK);
        is_over.store(true, Ordering::Relaxed);
        (view, reader.join().unwrap_or_default())
    });
    let view = view.map_err(|why| {
        let words = running.process.iter().chain([&agent_process]).map(part::last_words);
        [why].into_iter().chain(words).filter(|words| !words.is_empty()).collect::<Vec<_>>().join("; ")
    })?;
    let cores = Usage::of(&pids).since(before).cpu_s / args.secs as f64;
    let end = view.bytes.len() as f64 * 100.0;
    let stats = stats::run_stats(&view, &standing, network.client[0].fade, end, cores);
    Ok(Run { case, stats, view, standing })
}

fn address(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|why| format!("{text}: {why}"))
}

fn start_agent(args: &Args, identity: &Identity, host: &str, listen: SocketAddr) -> Result<Process, String> {
    let Identity { cert_pem, key_pem } = identity.clone();
    let agent = AgentPlan { listen, tls: Tls::Tls13, cert_pem, key_pem };
    let congestion = Some(args.agent_congestion.clone()).filter(|name| !name.is_empty());
    let command = part::command(Role::WanAgent, &SourcePlan { agent, congestion })?;
    part::listening(Process::start(network::on(host, &command)).without_grace(), listen)
}

/// What the kernel says of the agent's sockets, and of the proxy's two (proc(5), `/proc/net/tcp`).
fn reading(epoch: u64, agent: u32, (agent_port, proxy_port): (u16, u16)) -> SocketBytes {
    let table = |path: String| fs::read_to_string(path).unwrap_or_default();
    let (agent, own) = (table(format!("/proc/{agent}/net/tcp")), table("/proc/self/net/tcp".into()));
    let sum = |table: &str, which: fn(&Socket) -> u64, is: &dyn Fn(&Socket) -> bool| {
        table.lines().filter_map(socket).filter(is).map(|socket| which(&socket)).sum()
    };
    SocketBytes {
        at: (now() - epoch) as f64 / 1e6,
        agent_unsent: sum(&agent, |it| it.unsent, &|it| it.local == agent_port),
        proxy_received: sum(&own, |it| it.received, &|it| it.remote == agent_port),
        proxy_unsent: sum(&own, |it| it.unsent, &|it| it.local == proxy_port),
    }
}

/// An established socket: its ports and what stands in it.
struct Socket {
    local: u16,
    remote: u16,
    unsent: u64,
    received: u64,
}

fn socket(line: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, "01", queues, ..] = fields[..] else { return None };
    let port = |address: &str| u16::from_str_radix(address.split(':').nth(1)?, 16).ok();
    let (unsent, received) = queues.split_once(':')?;
    let bytes = |text| u64::from_str_radix(text, 16).ok();
    Some(Socket {
        local: port(local)?,
        remote: port(remote)?,
        unsent: bytes(unsent)?,
        received: bytes(received)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_says_what_stands_in_a_socket() {
        let line =
            "   1: 0100007F:1F90 0200007F:0050 01 00000010:00000400 00:00000000 00000000     0        0 1 1";
        let found = socket(line).expect("a socket");
        assert_eq!((found.local, found.remote, found.unsent, found.received), (8080, 80, 16, 1024));
        assert!(socket(&line.replace(" 01 ", " 0A ")).is_none(), "one that listens");
        assert!(socket("  sl  local_address rem_address   st tx_queue rx_queue").is_none());
    }
}
