//! What `/proc` tells about processes and the machine: CPU time, context switches, memory, names and versions.
//! Reading is apart from parsing, so that the parsers are tested with text.

use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What counts system calls, and its package.
pub(super) const PERF: &str = "/usr/bin/perf";
pub(super) const PERF_PACKAGE: &str = "linux-perf";

/// What a group of processes has used since each began.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Usage {
    /// Of all threads, the kernel's `io_uring` workers included: they are threads of the process.
    pub(super) cpu_s: f64,
    /// Waits.
    pub(super) voluntary: u64,
    /// Preemptions.
    pub(super) involuntary: u64,
}

impl Usage {
    /// Of these processes and all they have started.
    pub(super) fn of(roots: &[u32]) -> Self {
        tree(roots).into_iter().map(Self::of_one).fold(Self::default(), |sum, one| Self {
            cpu_s: sum.cpu_s + one.cpu_s,
            voluntary: sum.voluntary + one.voluntary,
            involuntary: sum.involuntary + one.involuntary,
        })
    }

    /// What was used between two readings.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            cpu_s: (self.cpu_s - before.cpu_s).max(0.0),
            voluntary: self.voluntary.saturating_sub(before.voluntary),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
        }
    }

    fn of_one(pid: u32) -> Self {
        let mut sum = Self::default();
        for thread in numbers(&format!("/proc/{pid}/task")) {
            let read = |file: &str| read(&format!("/proc/{pid}/task/{thread}/{file}"));
            sum.cpu_s += schedstat_s(&read("schedstat"));
            let status = read("status");
            sum.voluntary += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
            sum.involuntary += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        // Threads that have ended are counted only here, in ticks: it matters where it says clearly more.
        let ticks = stat_ticks(&read(&format!("/proc/{pid}/stat")));
        let by_ticks = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        if by_ticks > sum.cpu_s + 0.05 {
            sum.cpu_s = by_ticks;
        }
        sum
    }
}

/// Memory of these processes and all they have started, shared pages counted once (PSS).
pub(super) fn pss_kib(roots: &[u32]) -> u64 {
    let rollup = |pid| field(&read(&format!("/proc/{pid}/smaps_rollup")), "Pss:").unwrap_or(0);
    tree(roots).into_iter().map(rollup).sum()
}

/// System calls a second of these processes and all they have started; none where `perf` isn't there or may not
/// count them.
pub(super) async fn syscalls_per_second(roots: &[u32], during: Duration) -> Option<f64> {
    let pids: Vec<String> = tree(roots).iter().map(u32::to_string).collect();
    let mut perf = tokio::process::Command::new(PERF);
    perf.args(["stat", "--field-separator", ",", "--event", "raw_syscalls:sys_enter", "--pid"]);
    perf.arg(pids.join(",")).arg("--").args(["sleep", &during.as_secs_f64().to_string()]);
    let output = perf.kill_on_drop(true).output().await.ok()?;
    Some(counted(&String::from_utf8_lossy(&output.stderr))? / during.as_secs_f64())
}

/// The first field of the one line of figures.
fn counted(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

/// The kernel's own objects, machine-wide: sockets are in there.
pub(super) fn slab_kib() -> u64 {
    field(&read("/proc/meminfo"), "Slab:").unwrap_or(0)
}

/// Open files of these processes and all they have started.
pub(super) fn descriptors(roots: &[u32]) -> usize {
    tree(roots).iter().map(|pid| numbers(&format!("/proc/{pid}/fd")).len()).sum()
}

/// Seconds in which the machine's cores were busy, summed over the cores.
pub(super) fn busy_s() -> f64 {
    busy_ticks(&read("/proc/stat")) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// The number of cores.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The machine in words, for the report.
pub(super) fn machine() -> Vec<(String, String)> {
    let file = |path: &str| read(path).trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    vec![
        ("kernel".into(), file("/proc/sys/kernel/osrelease")),
        ("CPU".into(), model.map_or_else(|| "unknown".into(), |(_, model)| model.to_owned())),
        ("cores".into(), cores().to_string()),
        ("congestion control".into(), file("/proc/sys/net/ipv4/tcp_congestion_control")),
    ]
}

fn read(path: &str) -> String {
    // A process or thread may have ended in the meantime.
    fs::read_to_string(path).unwrap_or_default()
}

fn numbers(directory: &str) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The roots and all below them.
fn tree(roots: &[u32]) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = numbers("/proc")
        .into_iter()
        .filter_map(|pid| Some((pid, stat_parent(&read(&format!("/proc/{pid}/stat")))?)))
        .collect();
    below(roots, &parents)
}

fn below(roots: &[u32], parents: &[(u32, u32)]) -> Vec<u32> {
    let mut found = roots.to_vec();
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| pid));
        at += 1;
    }
    found
}

/// The first number of a thread's schedstat: nanoseconds on a CPU.
fn schedstat_s(text: &str) -> f64 {
    let nanoseconds: u64 = text.split_whitespace().next().and_then(|it| it.parse().ok()).unwrap_or(0);
    nanoseconds as f64 / 1e9
}

/// The fields of a `stat` behind the name, which may hold spaces and brackets.
fn stat_fields(text: &str) -> Vec<&str> {
    text.rsplit_once(") ").map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect())
}

fn stat_parent(text: &str) -> Option<u32> {
    stat_fields(text).get(1)?.parse().ok()
}

/// User and system time.
fn stat_ticks(text: &str) -> u64 {
    let fields = stat_fields(text);
    [11, 12].into_iter().filter_map(|at| fields.get(at)?.parse::<u64>().ok()).sum()
}

/// All of the first line's columns but idle, waiting for a disk, and guests (which are in user and nice).
fn busy_ticks(text: &str) -> u64 {
    let columns = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let numbered = columns.enumerate().filter(|(at, _)| [0, 1, 2, 5, 6].contains(at));
    numbered.filter_map(|(_, ticks)| ticks.parse::<u64>().ok()).sum()
}

/// The number of a line such as `Pss:   12 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_proc() {
        let stat = "42 (a) b) S 7 1 1 0 -1 4 5 6 7 8 30 12 0 0 20 0 3 0 99";
        assert_eq!(stat_parent(stat), Some(7));
        assert_eq!(stat_ticks(stat), 42);
        assert!((schedstat_s("1500000000 7 3\n") - 1.5).abs() < 1e-9);
        assert_eq!(busy_ticks("cpu  1 2 4 800 900 8 16 700 5 6\ncpu0 1 1 1"), 31);
        assert_eq!((stat_ticks(""), busy_ticks(""), stat_parent("")), (0, 0, None));
    }

    #[test]
    fn a_field_is_found_by_the_start_of_its_line() {
        let status = "Threads:\t3\nnonvoluntary_ctxt_switches:\t5\nvoluntary_ctxt_switches:\t9\n";
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(9));
        assert_eq!(field("Pss:     1234 kB\n", "Pss:"), Some(1234));
        assert_eq!(field("", "Pss:"), None);
    }

    #[test]
    fn a_tree_is_its_roots_and_all_below() {
        let parents = [(2, 1), (3, 2), (4, 3), (5, 1), (9, 8)];
        assert_eq!(below(&[2], &parents), [2, 3, 4]);
        assert_eq!(below(&[5, 8], &parents), [5, 8, 9]);
        assert!(Usage::of(&[std::process::id()]).cpu_s > 0.0);
    }
}
