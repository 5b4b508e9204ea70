//! `cargo xtask bench`: the proxy beside what would be run instead of it, on loopback. Peers take turns within each
//! repetition, so that what disturbs the machine disturbs all of them; what counts is CPU per unit of work and the
//! ratio between peers, not a rate. Everything started is ended, and nothing leaves the machine.
// Counts become shares and ratios everywhere in here; none is near 2^53.
#![allow(clippy::cast_precision_loss)]

mod agent;
mod attack;
mod client;
mod http2;
mod latency;
mod load;
pub(crate) mod part;
mod peers;
mod plots;
mod relay;
mod report;
mod run;
mod scenario;
mod system;
mod table;
mod wan;
mod wire;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::packages;
use peers::Peer;
use report::Report;
use run::{Case, Identities, Run, Setting};
use scenario::{SCALES, Scenario};
use table::Summary;
use wire::Tls;

/// Set for the copy of this program that measures, to the network it does so in.
const INSIDE: &str = "DCV_SPLICE_BENCH_NETWORK";
/// Runs the arguments in a network of its own: only loopback, and without BBR, which paces. Reno is what a new
/// namespace may always choose; without loss it does as cubic does.
const NETWORK: &str = "ip link set lo up; chosen=/proc/sys/net/ipv4/tcp_congestion_control; \
    { echo cubic >$chosen || echo reno >$chosen; } 2>/dev/null; exec \"$@\"";

/// What these numbers can't tell.
const NOTES: [&str; 4] = [
    "Client, agent and peer share the machine's cores: rates are no capacities, and latencies include waiting for a core.",
    "Cost is the CPU time of the peer's processes with all their threads; loopback charges some of the kernel's work to whoever runs.",
    "echo and desktop are open loops: messages are due at the same times for every peer, and latency counts from then. get, connect and churn are closed loops.",
    "In noisy and storm the cost of a frame includes what runs beside the desktops.",
];

/// Compare the proxy with what else could do its work
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    apart: Option<Apart>,
    /// What to measure (all when none is named)
    #[arg(value_enum, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,
    /// What to compare, in this order
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Seconds that each run is measured for
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=120))]
    secs: u64,
    /// Runs of each peer in each scenario
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    reps: u64,
    /// Where `results.json` and `report.html` go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Measure echo, desktop, flood, get and connect also with TLS 1.2 to the agent, as DCV servers speak
    #[arg(long)]
    agent_tls12: bool,
    /// With connect, measure resumed sessions too (the scenario resume)
    #[arg(long)]
    resume: bool,
    /// Compare with this other build of the proxy too
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,
    /// Repeat runs in which other programs took more than this share of the machine
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    foreign_max: f64,
}

/// What is measured in another way
#[derive(clap::Subcommand)]
enum Apart {
    Wan(wan::Args),
}

/// Builds, installs what is missing, measures and reports.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    match (env::var(INSIDE), &args.apart) {
        (Ok(_), Some(Apart::Wan(wan))) => wan::measure(wan),
        (Ok(network), None) => measure(args, &network),
        (Err(_), Some(Apart::Wan(wan))) => prepare_wan(wan),
        (Err(_), None) => prepare(args),
    }
}

/// As [`prepare`] does, but its network has to be its own.
fn prepare_wan(args: &wan::Args) -> Result<(), String> {
    let program = build()?.join("xtask");
    let lacks = wan::PROGRAMS.iter().any(|program| !Path::new(program).exists());
    install(&args.peers(), lacks.then_some(wan::PACKAGES).as_slice());
    let mut inside = Command::new("unshare");
    inside
        .args(["--net", "--mount", "--"])
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "own namespaces");
    Err(format!("the measuring process does not start: {}", inside.exec()))
}

/// All that needs the outside; then the release build of this program goes on, in a network of its own if it may.
fn prepare(args: &Args) -> Result<(), String> {
    let program = build()?.join("xtask");
    let perf = (!Path::new(system::PERF).exists()).then_some(system::PERF_PACKAGE);
    install(&args.peers(), perf.as_slice());
    let network = |words: &[&OsStr]| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-ec", NETWORK, "sh"]).args(words);
        command
    };
    let is_own = network(&["true".as_ref()]).output().is_ok_and(|tried| tried.status.success());
    let mut inside = if is_own { network(&[program.as_os_str()]) } else { Command::new(program) };
    inside.args(env::args_os().skip(1)).env(INSIDE, if is_own { "own namespace" } else { "the machine's" });
    Err(format!("the measuring process does not start: {}", inside.exec()))
}

/// The proxy and this program as users get it; returns the directory they are in.
fn build() -> Result<PathBuf, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = crate::root();
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--package", "dcv-splice", "--package", "xtask"]).current_dir(root);
    match build.status() {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(format!("the release build fails: cargo ended with {status}")),
        Err(error) => return Err(format!("cargo does not start: {error}")),
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    Ok(target.join("release"))
}

/// What can't be installed is skipped later, and named there.
fn install(peers: &[Peer], beside: &[&str]) {
    let mut lists: Vec<String> = peers.iter().filter_map(|peer| missing(*peer)).map(str::to_owned).collect();
    lists.dedup();
    lists.extend(beside.iter().map(|list| (*list).to_owned()));
    if lists.is_empty() || !rustix::process::geteuid().is_root() {
        return;
    }
    println!("installing {}", lists.join(" "));
    if let Err(why) = packages::install(&lists) {
        eprintln!("cargo xtask bench: {why}");
    }
}

/// The package that a peer needs and this machine lacks.
fn missing(peer: Peer) -> Option<&'static str> {
    peer.needs().filter(|(program, _)| !Path::new(program).exists()).map(|(_, package)| package)
}

impl Args {
    fn scenarios(&self) -> Vec<Scenario> {
        let mut chosen = chosen(&self.scenarios);
        let has = |scenario| chosen.contains(&scenario);
        if self.resume && has(Scenario::Connect) && !has(Scenario::Resume) {
            chosen.push(Scenario::Resume);
        }
        chosen
    }

    /// Which versions of TLS a peer speaks to the agent in a scenario.
    fn agent_tls(&self, scenario: Scenario, peer: Peer) -> &'static [Tls] {
        let ends_tls = !matches!(peer, Peer::Direct | Peer::L4 | Peer::L4Splice);
        if self.agent_tls12 && ends_tls && scenario.is_headline() {
            &[Tls::Tls13, Tls::Tls12]
        } else {
            &[Tls::Tls13]
        }
    }

    /// The one with the kernel's account only where it is named: it takes root and an object that is built apart. Another
    /// build only where there is one.
    fn peers(&self) -> Vec<Peer> {
        let mut peers = chosen(&self.peers);
        peers.retain(|peer| *peer != Peer::DcvSpliceEbpf || self.peers.contains(peer));
        peers.retain(|peer| *peer != Peer::DcvSpliceBefore);
        peers.extend(self.before.as_ref().map(|_| Peer::DcvSpliceBefore));
        peers
    }
}

/// All, where none is named.
fn chosen<T: ValueEnum + PartialEq>(named: &[T]) -> Vec<T> {
    let all = if named.is_empty() { T::value_variants() } else { named };
    let mut once: Vec<T> = Vec::new();
    for one in all {
        if !once.contains(one) {
            once.push(one.clone());
        }
    }
    once
}

fn measure(args: &Args, network: &str) -> Result<(), String> {
    raise_descriptors();
    let own = env::current_exe().map_err(|why| format!("this program has no path: {why}"))?;
    let proxy = own.with_file_name("dcv-splice");
    let out = fs::create_dir_all(&args.out).and_then(|()| args.out.canonicalize());
    let out = out.map_err(|why| format!("--out {}: {why}", args.out.display()))?;
    let (skipped, peers): (Vec<Peer>, Vec<Peer>) =
        args.peers().into_iter().partition(|peer| missing(*peer).is_some());
    let setting = Setting {
        proxy: &proxy,
        before: args.before.as_deref(),
        out: &out,
        identities: &Identities::new(),
        window: Duration::from_secs(args.secs),
        foreign_max: args.foreign_max / 100.0,
    };
    let facts = facts(args, network, &peers, &proxy);
    for (name, value) in &facts {
        println!("{name:>20}  {value}");
    }
    let mut notes = NOTES.map(str::to_owned).to_vec();
    notes.extend(
        skipped.iter().map(|peer| format!("{} is skipped: its program is not installed", peer.name())),
    );
    let (scenarios, runs) = (args.scenarios(), Vec::new());
    let mut report = Report { facts, notes, peers, scenarios, runs };
    let failures = all_runs(&setting, args, &mut report);
    report.notes.extend(left_out(&report));
    report.notes.extend(saturation(&setting, &report));
    report.notes.extend(scale(&report));
    if report.peers.iter().any(|peer| *peer != Peer::Direct)
        && report.runs.iter().all(|run| run.outcome.syscalls.is_none())
    {
        report
            .notes
            .push(format!("System calls were not counted: it takes {} and leave to use it.", system::PERF));
    }
    report.notes.extend(failures.iter().map(|why| format!("FAILED: {why}")));
    report.notes.extend(noisy(&report.runs, setting.foreign_max));
    report.write(&args.out)?;
    report.notes.iter().for_each(|note| println!("- {note}"));
    println!("results.json and report.html are in {}", args.out.display());
    if failures.is_empty() { Ok(()) } else { Err(format!("{} runs failed", failures.len())) }
}

/// Takes the peers in turn, shows a table after each scenario, and returns what has failed.
fn all_runs(setting: &Setting, args: &Args, report: &mut Report) -> Vec<String> {
    let mut failures = Vec::new();
    let cases: Vec<Vec<Case>> = report.scenarios.iter().map(|it| cases(args, *it, &report.peers)).collect();
    let bar = ProgressBar::new(cases.iter().map(Vec::len).sum::<usize>() as u64).with_style(style());
    bar.enable_steady_tick(Duration::from_millis(500));
    for (scenario, cases) in report.scenarios.clone().into_iter().zip(cases) {
        for case in cases {
            bar.set_message(format!("{} {}", scenario.name(), case.peer.name()));
            match run::run(setting, case) {
                Ok(run) => report.runs.push(run),
                Err(why) => {
                    bar.suspend(|| eprintln!("FAILED: {why}"));
                    failures.push(why);
                }
            }
            bar.inc(1);
        }
        let rows = report.rows(scenario);
        let table = table::text(&table::cells(scenario, &rows));
        bar.suspend(|| println!("\n{}: {}\n{table}", scenario.name(), scenario.about()));
    }
    bar.finish_and_clear();
    failures
}

/// Peer after peer within each repetition.
fn cases(args: &Args, scenario: Scenario, peers: &[Peer]) -> Vec<Case> {
    let able = || peers.iter().filter(move |peer| scenario.leaves_out(**peer).is_none());
    let of = |repetition| {
        able().flat_map(move |peer| {
            let versions = args.agent_tls(scenario, *peer).iter();
            versions.map(move |agent_tls| Case { scenario, peer: *peer, agent_tls: *agent_tls, repetition })
        })
    };
    (0..args.reps).flat_map(of).collect()
}

/// Who was not measured, and why.
fn left_out(report: &Report) -> Vec<String> {
    let pairs = report.scenarios.iter().flat_map(|it| report.peers.iter().map(move |peer| (*it, *peer)));
    let why = |(scenario, peer): (Scenario, Peer)| {
        Some(format!("{} is left out of {}: {}", peer.name(), scenario.name(), scenario.leaves_out(peer)?))
    };
    pairs.filter_map(why).collect()
}

/// How much the load itself can do, where it was measured: near that, a peer's rate says little.
fn saturation(setting: &Setting, report: &Report) -> Vec<String> {
    let direct = |scenario| report.rows(scenario).into_iter().find(|row| row.peer == Peer::Direct);
    let closed = [Scenario::Get, Scenario::Flood].into_iter().filter_map(|scenario| {
        let row = direct(scenario)?;
        let (rate, unit) = (table::short(row.rate.median), scenario.unit().name);
        Some(format!("The load saturates at {rate} {unit}/s in {} (direct).", scenario.name()))
    });
    let mut notes: Vec<String> = closed.collect();
    if let Some(row) = direct(Scenario::Echo) {
        notes.push(match run::saturation(setting) {
            Ok(rate) => format!(
                "The load saturates at {} echo/s (direct, 20 sessions one after the other); the scenario asks for {}.",
                table::short(rate),
                table::short(row.rate.median)
            ),
            Err(why) => format!("The load's own limit in echo is not known: {why}"),
        });
    }
    notes
}

/// How far the cost of the same traffic depends on the number of sessions.
fn scale(report: &Report) -> Vec<String> {
    let of = |peer: &Peer| {
        let rows = SCALES.iter().filter_map(|it| report.rows(*it).into_iter().find(|row| row.peer == *peer));
        let costs: Vec<f64> = rows.filter_map(|row| row.cost.map(|cost| cost.median)).collect();
        let summary = Summary::of(costs.iter().copied()).filter(|_| costs.len() == SCALES.len())?;
        let listed: Vec<String> = costs.iter().map(|cost| table::short(*cost)).collect();
        let spread = (summary.max / summary.min - 1.0) * 100.0;
        Some(format!(
            "scale, {}: {} us/echo over 10 / 1,000 / 9,000 sessions, {spread:.0} % apart",
            peer.name(),
            listed.join(" / ")
        ))
    };
    report.peers.iter().filter_map(of).collect()
}

fn style() -> ProgressStyle {
    let wanted = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} (left {eta}) {msg}");
    wanted.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Thousands of sessions hold twice as many sockets; what is started from here inherits it.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Where it may not be raised, the run that needs it says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn facts(args: &Args, network: &str, peers: &[Peer], proxy: &Path) -> Vec<(String, String)> {
    let mut facts = system::machine();
    let mut add = |name: &str, value: String| facts.push((name.to_owned(), value));
    add("network", format!("loopback, {network}"));
    add("source", source());
    let version = |peer: &Peer| peer.version(proxy, args.before.as_deref());
    for peer in peers.iter().filter(|peer| version(peer) != "-") {
        add(&peer.name(), version(peer));
    }
    let agent = if args.agent_tls12 { "1.3 and 1.2" } else { "1.3" };
    add(
        "TLS",
        format!("1.3 from the client, {agent} to the agent, AES-256-GCM, ECDSA P-256; 2 workers each"),
    );
    add("runs", format!("{} of {} s each, peers in turn", args.reps, args.secs));
    facts
}

/// The commit, and whether the tree has gone on since.
fn source() -> String {
    let described = ["describe", "--always", "--dirty"];
    let output = Command::new("git").args(described).current_dir(crate::root()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".into())
}

/// Says so where the machine was not quiet even after repeating.
fn noisy(runs: &[Run], foreign_max: f64) -> Option<String> {
    let is_noisy = |run: &&Run| run.outcome.foreign > foreign_max;
    let count = runs.iter().filter(is_noisy).count();
    let highest = runs.iter().map(|run| run.outcome.foreign).fold(0.0, f64::max) * 100.0;
    let limit = foreign_max * 100.0;
    (count > 0).then(|| {
        let of = runs.len();
        format!("NOISE: in {count} of {of} runs others took over {limit:.0} % of the machine, at most {highest:.0} %")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_named_is_all_and_each_is_taken_once() {
        assert_eq!(chosen::<Peer>(&[]).len(), Peer::value_variants().len());
        let named = [Peer::Haproxy, Peer::Direct, Peer::Haproxy];
        assert_eq!(chosen(&named), [Peer::Haproxy, Peer::Direct]);
    }
}
