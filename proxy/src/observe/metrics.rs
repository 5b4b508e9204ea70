//! The statistics as text for Prometheus, in its classic format or `OpenMetrics` 1.0. Nothing is summed over processes:
//! after an upgrade those that drain have samples of their own. Pure.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::observe::agent::AgentId;
use crate::observe::stats::{
    AgentStats, Bounds, Histogram, KernelStats, QUEUE_BYTES, QueueStats, Stats, TIMES_US, TcpStats,
};

/// How the stats are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Prometheus text 0.0.4, which every reader understands.
    Classic,
    /// `OpenMetrics` 1.0, for those who ask for it.
    OpenMetrics,
}

impl Format {
    /// What a client is given that accepts these media ranges, the members of its `Accept` (RFC 9110 12.5.1):
    /// `OpenMetrics` only where it is named, in a version that is spoken here, and liked no less than plain text.
    pub fn wanted<'a>(accepted: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut open, mut plain) = (0, 0);
        for range in accepted {
            let Ok(range) = std::str::from_utf8(range) else { continue };
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let parameter = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.trim_matches('"'))
            };
            let weight = parameter("q").map_or(1000, thousandths);
            let is_version = |ours: &str| parameter("version").is_none_or(|version| version == ours);
            if kind.eq_ignore_ascii_case("application/openmetrics-text") && is_version("1.0.0") {
                open = open.max(weight);
            } else if kind.eq_ignore_ascii_case("text/plain") && is_version("0.0.4") {
                plain = plain.max(weight);
            }
        }
        if open > 0 && open >= plain { Self::OpenMetrics } else { Self::Classic }
    }

    /// The text's media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A weight from 0 to 1 (RFC 9110 12.4.2); nothing where it is none.
fn thousandths(weight: &str) -> u32 {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match whole {
        "1" => 1000,
        "0" if fraction.len() <= 3 && digits(fraction) => format!("{fraction:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

/// The states of a process: it accepts connections, another process does so after an upgrade, or it was told to stop.
pub const STATES: [&str; 3] = ["serving", "draining", "stopping"];

/// The status of a process.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ProcessStatus {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// One of [`STATES`].
    pub state: String,
    /// Seconds since it serves.
    pub seconds: u64,
    /// Client connections that are open.
    pub connections: u64,
    /// Worker threads.
    pub workers: u64,
    /// Reloads that were applied.
    pub reloads: u64,
    /// Reloads that failed.
    pub reload_failures: u64,
    /// Lines of its log that were dropped.
    pub log_lines_dropped: u64,
    /// Lines of the access log that were dropped.
    pub access_log_lines_dropped: u64,
    /// Rejected connections and requests, by reason.
    pub rejected: Vec<(String, u64)>,
    /// Agents that have names or were probed.
    pub agents: Vec<AgentStatus>,
    /// The sources that list agents, but for the file.
    pub sources: Vec<SourceStatus>,
    /// Statistics of agents and clients.
    pub stats: Stats,
    /// The kernel's TCP statistics, if they are available.
    pub kernel: Option<KernelStats>,
}

/// The status of a source that lists agents.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SourceStatus {
    /// `--agents-command`, or the name in DNS.
    pub source: String,
    /// Agents of its last list that can be used.
    pub agents: u64,
    /// Why its latest one can't; empty where it can.
    pub problem: String,
}

/// The status of an agent that has a name or was probed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct AgentStatus {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its address and port.
    pub address: String,
    /// What the operator has decided: `active`, `drain` or `off`.
    pub state: String,
    /// Whether it lives; nothing where it was not probed.
    pub is_up: Option<bool>,
    /// In what it fails, where it is down.
    pub failure: String,
    /// What was tried, and what came of it, where it is down.
    pub reason: String,
    /// Since when it is down, in seconds since 1970.
    pub down_since_s: u64,
}

/// The text of all processes; the one that serves comes first.
pub fn render(processes: Vec<ProcessStatus>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("dcv_splice");
    registry.register_collector(Box::new(All(Arc::new(processes))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(match format {
        Format::Classic => classic(&text),
        Format::OpenMetrics => text,
    })
}

/// The same in the classic format: there a family has the name of its lines, `_total` and `_info` included, an info is
/// a gauge, and there are no units and no end.
fn classic(text: &str) -> String {
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let kinds: HashMap<_, _> = kinds.collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let described = line.strip_prefix("# ").and_then(|line| line.split_once(' '));
        let Some((what, (name, rest))) =
            described.and_then(|(what, about)| Some((what, about.split_once(' ')?)))
        else {
            out.extend([line, "\n"]);
            continue;
        };
        let (suffix, kind) = match kinds.get(name) {
            Some(&"counter") => ("_total", "counter"),
            Some(&"info") => ("_info", "gauge"),
            Some(kind) => ("", *kind),
            None => ("", "untyped"),
        };
        let rest = if what == "TYPE" { kind } else { rest };
        out.extend(["# ", what, " ", name, suffix, " ", rest, "\n"]);
    }
    out
}

#[derive(Debug)]
struct All(Arc<Vec<ProcessStatus>>);

/// A label and its value.
type Label = (&'static str, String);

/// A metric: its name, help, kind, and value.
type Row<T> = (&'static str, &'static str, MetricType, fn(&T) -> u64);

const OF_PROCESS: [Row<ProcessStatus>; 9] = [
    ("uptime_seconds", "Time since the process serves", MetricType::Gauge, |it| it.seconds),
    ("client_connections", "Open client connections", MetricType::Gauge, |it| it.connections),
    ("workers", "Worker threads", MetricType::Gauge, |it| it.workers),
    ("config_reloads", "Reloads that were applied", MetricType::Counter, |it| it.reloads),
    ("config_reload_failures", "Reloads that failed", MetricType::Counter, |it| it.reload_failures),
    ("log_lines_dropped", "Log lines that were dropped", MetricType::Counter, |it| it.log_lines_dropped),
    ("access_log_lines_dropped", "Access log lines that were dropped", MetricType::Counter, |it| {
        it.access_log_lines_dropped
    }),
    ("client_received_bytes", "Bytes received on client sockets, TLS included", MetricType::Counter, |it| {
        it.stats.clients.received
    }),
    ("client_sent_bytes", "Bytes sent on client sockets, TLS included", MetricType::Counter, |it| {
        it.stats.clients.sent
    }),
];

const OF_AGENT: [Row<AgentStats>; 7] = [
    ("sessions", "Open sessions (WebSockets)", MetricType::Gauge, |it| it.sessions),
    ("sessions_opened", "Sessions (WebSockets) that were opened", MetricType::Counter, |it| {
        it.sessions_opened
    }),
    ("connect_failures", "Connections that failed", MetricType::Counter, |it| it.connect_failures),
    (
        "body_received_bytes",
        "Body and session bytes from the agent, counted at the end",
        MetricType::Counter,
        |it| it.to_client,
    ),
    (
        "body_sent_bytes",
        "Body and session bytes to the agent, counted at the end",
        MetricType::Counter,
        |it| it.to_agent,
    ),
    ("received_bytes", "Bytes received on agent sockets, TLS included", MetricType::Counter, |it| {
        it.sockets.received
    }),
    ("sent_bytes", "Bytes sent on agent sockets, TLS included", MetricType::Counter, |it| it.sockets.sent),
];

const OF_SOURCE: [Row<SourceStatus>; 2] = [
    ("up", "Whether the latest list of a source of agents can be used: 1, or 0", MetricType::Gauge, |it| {
        u64::from(it.problem.is_empty())
    }),
    ("agents", "Agents of the list that is in use", MetricType::Gauge, |it| it.agents),
];

const OF_QUEUE: [Row<QueueStats>; 1] =
    [("standing_bytes", "Bytes that stand in the proxy and its sockets now", MetricType::Gauge, |it| {
        it.standing
    })];

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.build(&mut encoder)?;
        self.state(&mut encoder)?;
        let processes = || self.0.iter().map(|process| ([pid(process)], process));
        rows(&mut encoder, "", &OF_PROCESS, processes)?;
        self.rejected(&mut encoder)?;
        rows(&mut encoder, "agent_", &OF_AGENT, || self.agents())?;
        self.requests_by_status(&mut encoder)?;
        self.times(
            &mut encoder,
            "agent_connect_seconds",
            "Time to connect to the agent, TLS handshake included",
            |it| &it.connect,
        )?;
        let help = "Time of a request from its head to its end, without sessions";
        self.times(&mut encoder, "agent_request_seconds", help, |it| &it.request)?;
        self.queues(&mut encoder)?;
        self.health(&mut encoder)?;
        self.sources(&mut encoder)?;
        self.kernel(&mut encoder)
    }
}

impl All {
    fn agents(&self) -> impl Iterator<Item = ([Label; 2], &AgentStats)> {
        self.0.iter().flat_map(|process| {
            let agents = process.stats.agents.iter();
            agents.map(|(address, stats)| ([pid(process), agent(*address)], stats))
        })
    }

    fn build(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric =
            encoder.encode_descriptor("build", "Version of the process", None, MetricType::Info)?;
        for process in self.0.iter() {
            let labels = [pid(process), ("version", process.version.clone())];
            metric.encode_info(&&labels[..])?;
        }
        Ok(())
    }

    /// A sample of each state: 1 for the one that the process is in, 0 for the others.
    fn state(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric =
            encoder.encode_descriptor("process_state", "State of the process", None, MetricType::Gauge)?;
        for process in self.0.iter() {
            for state in STATES {
                let labels = [pid(process), ("state", state.to_owned())];
                number(&mut metric, MetricType::Gauge, &labels, u64::from(process.state == state))?;
            }
        }
        Ok(())
    }

    /// Of the agents that the process that serves knows; the others know no more.
    fn health(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(serving) = self.0.first() else { return Ok(()) };
        let agents = || serving.agents.iter();
        let labels =
            |it: &AgentStatus| [pid(serving), ("agent", it.address.clone()), ("name", it.name.clone())];
        let help = "Whether the agent lives, as probes find: 1, or 0";
        let mut metric = encoder.encode_descriptor("agent_up", help, None, MetricType::Gauge)?;
        for (it, is_up) in agents().filter_map(|it| Some((it, it.is_up?))) {
            number(&mut metric, MetricType::Gauge, &labels(it), u64::from(is_up))?;
        }
        let help = "Since when the agent is down, in seconds since 1970, and in what it fails";
        let mut metric = encoder.encode_descriptor("agent_down_since", help, None, MetricType::Gauge)?;
        for it in agents().filter(|it| it.is_up == Some(false)) {
            let [pid, agent, name] = labels(it);
            let labels = [pid, agent, name, ("reason", it.failure.clone())];
            number(&mut metric, MetricType::Gauge, &labels, it.down_since_s)?;
        }
        let help =
            "Whether the operator has the agent take users: 1 for the state that it is in, 0 for the others";
        let mut metric = encoder.encode_descriptor("agent_state", help, None, MetricType::Gauge)?;
        for it in agents().filter(|it| !it.name.is_empty()) {
            for state in ["active", "drain", "off"] {
                let [pid, agent, name] = labels(it);
                let labels = [pid, agent, name, ("state", state.to_owned())];
                number(&mut metric, MetricType::Gauge, &labels, u64::from(it.state == state))?;
            }
        }
        Ok(())
    }

    fn sources(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(serving) = self.0.first() else { return Ok(()) };
        let all = || serving.sources.iter().map(|it| ([pid(serving), ("source", it.source.clone())], it));
        rows(encoder, "agents_source_", &OF_SOURCE, all)
    }

    fn rejected(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Rejected clients and requests";
        let mut metric = encoder.encode_descriptor("rejected", help, None, MetricType::Counter)?;
        for process in self.0.iter() {
            for (reason, count) in &process.rejected {
                let labels = [pid(process), ("reason", reason.clone())];
                number(&mut metric, MetricType::Counter, &labels, *count)?;
            }
        }
        Ok(())
    }

    fn requests_by_status(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests by status class";
        let mut metric = encoder.encode_descriptor("agent_requests", help, None, MetricType::Counter)?;
        for ([pid, agent], stats) in self.agents() {
            for (class, count) in stats.answers.iter().enumerate().filter(|(_, count)| **count > 0) {
                let status = if class == 0 { "none".to_owned() } else { format!("{class}xx") };
                let labels = [pid.clone(), agent.clone(), ("status", status)];
                number(&mut metric, MetricType::Counter, &labels, *count)?;
            }
        }
        Ok(())
    }

    fn times(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        times: fn(&AgentStats) -> &Histogram,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, stats) in self.agents() {
            bounded_histogram(&mut metric, &labels, times(stats), &TIMES_US, seconds)?;
        }
        Ok(())
    }

    /// What stands for each direction's receiver.
    fn queues(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let each = || {
            self.agents().flat_map(|([pid, agent], stats)| {
                let directions = [("to_agent", &stats.queue_to_agent), ("to_client", &stats.queue_to_client)];
                directions.map(|(direction, queue)| {
                    ([pid.clone(), agent.clone(), ("direction", direction.to_owned())], queue)
                })
            })
        };
        rows(encoder, "agent_queue_", &OF_QUEUE, each)?;
        let help = "Bytes that stand in the proxy and its sockets, while the receiver holds back";
        let mut metric = encoder.encode_descriptor("agent_queue_bytes", help, None, MetricType::Histogram)?;
        for (labels, queue) in each() {
            bounded_histogram(&mut metric, &labels, &queue.bytes, &QUEUE_BYTES, whole)?;
        }
        let help = "Time in which the receiver takes what stands, while it holds back";
        let mut metric =
            encoder.encode_descriptor("agent_queue_seconds", help, None, MetricType::Histogram)?;
        for (labels, queue) in each() {
            bounded_histogram(&mut metric, &labels, &queue.time, &TIMES_US, seconds)?;
        }
        Ok(())
    }
}

/// Of each agent, and of each listener.
const OF_KERNEL: [Row<TcpStats>; 8] = [
    ("received_bytes", "Payload received in order (kernel)", MetricType::Counter, |it| it.received),
    ("sent_bytes", "Payload acknowledged (kernel)", MetricType::Counter, |it| it.acknowledged),
    ("connections", "Open connections (kernel)", MetricType::Gauge, |it| it.opened.saturating_sub(it.closed)),
    ("connection_attempts", "Connection attempts (kernel)", MetricType::Counter, |it| it.tried),
    ("connections_opened", "Connections opened (kernel)", MetricType::Counter, |it| it.opened),
    ("connections_failed", "Connection attempts that failed (kernel)", MetricType::Counter, |it| it.failed),
    ("connections_closed", "Connections closed (kernel)", MetricType::Counter, |it| it.closed),
    ("retransmitted_segments", "Segments sent again (kernel)", MetricType::Counter, |it| {
        it.retransmitted_segments
    }),
];

impl All {
    fn kernel(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        rows(encoder, "tcp_agent_", &OF_KERNEL, || self.kernel_agents())?;
        rows(encoder, "tcp_client_", &OF_KERNEL, || self.kernel_listeners())?;
        self.power_of_two_histogram(
            encoder,
            "tcp_agent_connect_seconds",
            "Time to connect, without TLS (kernel)",
            |it| &it.connect_times,
        )?;
        self.power_of_two_histogram(
            encoder,
            "tcp_agent_rtt_seconds",
            "Smoothed round-trip times (kernel)",
            |it| &it.rtts,
        )?;
        last_rtts(encoder, "tcp_agent_last_rtt_seconds", self.kernel_agents())?;
        last_rtts(encoder, "tcp_client_last_rtt_seconds", self.kernel_listeners())?;
        self.unaccounted(encoder)
    }

    fn accounts(&self) -> impl Iterator<Item = (&ProcessStatus, &KernelStats)> {
        self.0.iter().filter_map(|process| Some((process, process.kernel.as_ref()?)))
    }

    fn kernel_agents(&self) -> impl Iterator<Item = ([Label; 2], &TcpStats)> {
        self.accounts().flat_map(|(process, account)| {
            let agents = account.agents.iter();
            agents.map(|(address, stats)| ([pid(process), agent(*address)], stats))
        })
    }

    fn kernel_listeners(&self) -> impl Iterator<Item = ([Label; 2], &TcpStats)> {
        self.accounts().flat_map(|(process, account)| {
            let listeners = account.listeners.iter();
            listeners.map(|(port, stats)| ([pid(process), ("port", port.to_string())], stats))
        })
    }

    /// Times by powers of two, of which the sum is not known: it is what they are at the least.
    fn power_of_two_histogram(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        times: fn(&TcpStats) -> &Vec<u64>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, stats) in self.kernel_agents() {
            let counts = times(stats);
            let least =
                (0..).zip(counts).fold(0_u64, |sum, (power, count)| sum.saturating_add(count << power));
            let highest = counts.len().saturating_sub(1);
            let bound =
                |power: usize| if power == highest { f64::INFINITY } else { seconds(1 << (power + 1)) };
            let buckets: Vec<_> =
                counts.iter().enumerate().map(|(power, count)| (bound(power), *count)).collect();
            histogram(&mut metric, &labels, seconds(least), &buckets)?;
        }
        Ok(())
    }

    /// What the kernel's account and the proxy's own differ by: bytes on their way, and bytes that nobody has read.
    fn unaccounted(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Bytes of an agent that the kernel has counted and the proxy has not";
        let mut metric =
            encoder.encode_descriptor("agent_unaccounted_bytes", help, None, MetricType::Gauge)?;
        for (process, account) in self.accounts() {
            for (address, kernel) in &account.agents {
                let (received, sent) = kernel.beyond(process.stats.sockets(*address));
                for (direction, difference) in [("received", received), ("sent", sent)] {
                    let labels = [pid(process), agent(*address), ("direction", direction.to_owned())];
                    let labels = &labels[..];
                    metric.encode_family(&labels)?.encode_gauge(&difference)?;
                }
            }
        }
        Ok(())
    }
}

fn last_rtts<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    each: impl Iterator<Item = ([Label; 2], &'a TcpStats)>,
) -> fmt::Result {
    let help = "Smoothed round-trip time of the connection that was active last (kernel)";
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, stats) in each {
        let labels = &labels[..];
        metric.encode_family(&labels)?.encode_gauge(&seconds(stats.rtt_us))?;
    }
    Ok(())
}

/// A family for each row, with a line for each of whom it is about.
fn rows<'a, T: 'a, const N: usize, I: Iterator<Item = ([Label; N], &'a T)>>(
    encoder: &mut DescriptorEncoder<'_>,
    prefix: &str,
    rows: &[Row<T>],
    each: impl Fn() -> I,
) -> fmt::Result {
    for (name, help, kind, value) in rows {
        let name = format!("{prefix}{name}");
        let mut metric = encoder.encode_descriptor(&name, help, None, *kind)?;
        for (labels, stats) in each() {
            number(&mut metric, *kind, &labels, value(stats))?;
        }
    }
    Ok(())
}

/// `unit`: what a value is in the unit of the metric.
fn bounded_histogram(
    metric: &mut MetricEncoder<'_>,
    labels: &[Label],
    Histogram { counts, sum }: &Histogram,
    bounds: &Bounds,
    unit: fn(u64) -> f64,
) -> fmt::Result {
    let bounds = bounds.iter().map(|bound| unit(*bound)).chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
    histogram(metric, labels, unit(*sum), &buckets)
}

fn histogram(
    metric: &mut MetricEncoder<'_>,
    labels: &[Label],
    sum: f64,
    buckets: &[(f64, u64)],
) -> fmt::Result {
    let count = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_family(&labels)?.encode_histogram::<[Label; 0]>(sum, count, buckets, None)
}

#[expect(clippy::cast_precision_loss, reason = "after nine petabytes")]
fn whole(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "after 285 years of microseconds")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn number(metric: &mut MetricEncoder<'_>, kind: MetricType, labels: &[Label], value: u64) -> fmt::Result {
    let mut family = metric.encode_family(&labels)?;
    match kind {
        MetricType::Counter => family.encode_counter(&value, None::<&Exemplar<[Label; 0], u64>>),
        _ => family.encode_gauge(&value),
    }
}

fn pid(process: &ProcessStatus) -> Label {
    ("pid", process.pid.to_string())
}

fn agent(id: AgentId) -> Label {
    ("agent", id.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// Without it readers refuse the whole text.
    #[test]
    fn every_histogram_has_all_of_its_times_in_the_last_bucket() {
        let mut process = ProcessStatus::default();
        let address = AgentId::from(IpAddr::from([10, 0, 0, 5]));
        let mut stats = AgentStats::default();
        stats.connect.note_time(std::time::Duration::from_secs(100));
        process.stats.agents.insert(address, stats);
        let kernel = TcpStats { connect_times: vec![1, 2, 3], rtts: vec![4, 5], ..TcpStats::default() };
        process.kernel.get_or_insert_default().agents.insert(address, kernel);
        let text = render(vec![process], Format::OpenMetrics).expect("text");
        for (name, count) in
            [("agent_connect", 1), ("agent_request", 0), ("tcp_agent_connect", 6), ("tcp_agent_rtt", 9)]
        {
            for line in [
                format!("dcv_splice_{name}_seconds_count{{pid=\"0\",agent=\"10.0.0.5\"}} {count}\n"),
                format!(
                    "dcv_splice_{name}_seconds_bucket{{le=\"+Inf\",pid=\"0\",agent=\"10.0.0.5\"}} {count}\n"
                ),
            ] {
                assert!(text.contains(&line), "{line} is not in\n{text}");
            }
        }
    }

    #[test]
    fn what_stands_is_told_for_each_direction_in_bytes_and_seconds() {
        let mut process = ProcessStatus::default();
        let mut stats = AgentStats::default();
        let queue = &mut stats.queue_to_client;
        queue.standing = 7;
        queue.bytes.note(&QUEUE_BYTES, 3000);
        queue.time.note_time(std::time::Duration::from_millis(30));
        process.stats.agents.insert(AgentId::from(IpAddr::from([10, 0, 0, 5])), stats);
        let text = render(vec![process], Format::Classic).expect("text");
        let labels = "pid=\"0\",agent=\"10.0.0.5\",direction=\"to_client\"";
        for line in [
            format!("standing_bytes{{{labels}}} 7\n"),
            format!("bytes_sum{{{labels}}} 3000.0\n"),
            format!("bytes_bucket{{le=\"2048.0\",{labels}}} 0\n"),
            format!("bytes_bucket{{le=\"4096.0\",{labels}}} 1\n"),
            format!("seconds_sum{{{labels}}} 0.03\n"),
            format!("seconds_bucket{{le=\"0.025\",{labels}}} 0\n"),
            format!("seconds_bucket{{le=\"0.05\",{labels}}} 1\n"),
        ] {
            assert!(text.contains(&format!("dcv_splice_agent_queue_{line}")), "{line} is not in\n{text}");
        }
    }

    /// A process with something of everything.
    fn full() -> ProcessStatus {
        let address = AgentId::from(IpAddr::from([10, 0, 0, 5]));
        let mut process =
            ProcessStatus { rejected: vec![("max_connections".to_owned(), 2)], ..ProcessStatus::default() };
        process.stats.agents.insert(address, AgentStats { answers: [1; 6], ..AgentStats::default() });
        let kernel = TcpStats { connect_times: vec![1, 2], rtts: vec![3], ..TcpStats::default() };
        let account = process.kernel.get_or_insert_default();
        account.agents.insert(address, kernel.clone());
        account.listeners.insert(8443, kernel);
        process
    }

    /// Reads the text as strictly as the format is defined; gives the names of families with their kinds.
    fn read(text: &str, format: Format) -> Vec<(String, String)> {
        let mut families: Vec<(String, String)> = Vec::new();
        let (mut helps, mut samples) = (Vec::new(), Vec::new());
        let open = format == Format::OpenMetrics;
        let body = if open { text.strip_suffix("# EOF\n").expect("an end") } else { text };
        assert!(body.ends_with('\n') && !body.contains("# EOF"));
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a kind");
                let kinds: &[&str] = if open {
                    &["counter", "gauge", "histogram", "info"]
                } else {
                    &["counter", "gauge", "histogram", "untyped"]
                };
                assert!(kinds.contains(&kind), "{line}");
                assert!(!families.iter().any(|(known, _)| known == name), "twice: {line}");
                assert!(open || kind != "counter" || name.ends_with("_total"), "{line}");
                assert!(!open || kind != "counter" || !name.ends_with("_total"), "{line}");
                families.push((name.to_owned(), kind.to_owned()));
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split_once(' ').expect("a text").0.to_owned();
                assert!(!helps.contains(&name), "twice: {line}");
                helps.push(name);
            } else {
                assert!(!line.starts_with('#'), "{line}");
                let (name, rest) = line.split_once('{').expect("labels");
                let (labels, value) = rest.split_once("} ").expect("a value");
                value.parse::<f64>().expect("a number");
                let (family, kind) = families.last().expect("a family before its lines");
                assert_eq!(helps.last(), Some(family), "one text for each family");
                let suffixes: &[&str] = match kind.as_str() {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    "counter" if open => &["_total"],
                    "info" => &["_info"],
                    _ => &[""],
                };
                assert!(suffixes.iter().any(|suffix| format!("{family}{suffix}") == name), "{line}");
                for label in labels.split(',') {
                    let (_, value) = label.split_once('=').expect("a label");
                    assert!(value.len() >= 2 && value.starts_with('"') && value.ends_with('"'), "{line}");
                }
                samples.push((name.to_owned(), labels.to_owned()));
            }
        }
        let all = samples.len();
        samples.sort_unstable();
        samples.dedup();
        assert_eq!(samples.len(), all, "a line is there twice");
        families
    }

    #[test]
    fn each_format_is_written_by_its_own_rules_and_says_the_same() {
        let text = |format| render(vec![full()], format).expect("text");
        let open = read(&text(Format::OpenMetrics), Format::OpenMetrics);
        let classic = read(&text(Format::Classic), Format::Classic);
        let translated = open.into_iter().map(|(name, kind)| match kind.as_str() {
            "counter" => (format!("{name}_total"), kind),
            "info" => (format!("{name}_info"), "gauge".to_owned()),
            _ => (name, kind),
        });
        assert_eq!(translated.collect::<Vec<_>>(), classic);
        let samples = |format| {
            let text = text(format);
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(samples(Format::OpenMetrics), samples(Format::Classic));
    }

    #[test]
    fn who_does_not_ask_for_open_metrics_is_given_the_classic_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,\
                          application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, wanted) in [
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("text/plain", Format::Classic),
            ("text/html, application/xhtml+xml, */*;q=0.8", Format::Classic),
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"", Format::OpenMetrics),
            ("application/openmetrics-text; version=0.0.1", Format::Classic),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("application/openmetrics-text;q=0.000, */*", Format::Classic),
            ("application/openmetrics-text;q=x", Format::Classic),
            ("application/openmetrics-text;q=0.3, text/plain;q=0.5", Format::Classic),
            ("application/openmetrics-text;q=0.5, text/plain;q=0.50", Format::OpenMetrics),
            ("text/plain, application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-textual", Format::Classic),
        ] {
            let members = accept.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            assert_eq!(Format::wanted(members), wanted, "{accept}");
        }
        assert_eq!(Format::wanted([&b"\xff"[..]].into_iter()), Format::Classic);
    }
}
