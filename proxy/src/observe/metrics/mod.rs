//! The statistics as text for Prometheus, in its classic format or `OpenMetrics` 1.0. Nothing is summed over processes:
//! after an upgrade those that drain have samples of their own. Never counts anything. Uses the rest of `observe`.

mod format;
mod kernel;
mod usage;

use std::fmt;
use std::sync::Arc;

pub use self::format::Format;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use crate::observe::agent::AgentId;
use crate::observe::agent_stats::{AgentStats, QueueStats};
use crate::observe::histogram::Distribution;
use crate::observe::status::{AgentStatus, ProcessStatus, STATES, SourceStatus};

/// Upper bounds of the buckets of times, in microseconds.
const TIMES_US: [u64; 13] = [
    1000, 2000, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];
/// Those of times within the proxy.
const RESIDENCES_US: [u64; 13] =
    [50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];
/// Those of how long sessions last, in seconds.
const SESSIONS_S: [u64; 9] = [1, 10, 60, 300, 1800, 3600, 4 * 3600, 8 * 3600, 24 * 3600];
/// Those of what stands in a queue, in bytes.
const QUEUE_BYTES: [u64; 11] =
    [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20];

/// The text of all processes; the one that serves comes first.
pub fn render(processes: Vec<ProcessStatus>, format: Format) -> Result<String, fmt::Error> {
    let processes = Arc::new(processes);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(usage::Usage(processes.clone())));
    registry.sub_registry_with_prefix("dcv_splice").register_collector(Box::new(All(processes)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(match format {
        Format::Classic => format::classic(&text),
        Format::OpenMetrics => text,
    })
}

#[derive(Debug)]
struct All(Arc<Vec<ProcessStatus>>);

/// A label and its value.
type Label = (&'static str, String);

/// A metric: its name, help, kind, and value.
type Row<T> = (&'static str, &'static str, MetricType, fn(&T) -> u64);

const OF_PROCESS: [Row<ProcessStatus>; 10] = [
    ("uptime_seconds", "Time since the process serves", MetricType::Gauge, |it| it.seconds),
    ("client_connections", "Open client connections", MetricType::Gauge, |it| it.connections),
    ("workers", "Worker threads", MetricType::Gauge, |it| it.workers),
    ("config_reloads", "Reloads that were applied", MetricType::Counter, |it| it.reloads),
    ("config_reload_failures", "Reloads that failed", MetricType::Counter, |it| it.reload_failures),
    ("log_lines_dropped", "Log lines that were dropped", MetricType::Counter, |it| it.log_lines_dropped),
    ("access_log_lines_dropped", "Access log lines that were dropped", MetricType::Counter, |it| {
        it.access_log_lines_dropped
    }),
    ("client_connections_accepted", "Client connections that were accepted", MetricType::Counter, |it| {
        it.stats.accepted
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

/// A histogram of each agent: its name, help, bounds, what a value is in the unit of the metric, and the values.
type Times = (&'static str, &'static str, &'static [u64], fn(u64) -> f64, fn(&AgentStats) -> &Distribution);

const OF_TIMES: [Times; 5] = [
    (
        "agent_connect_seconds",
        "Time to connect to the agent, TLS handshake included",
        &TIMES_US,
        seconds,
        |it| &it.connect,
    ),
    ("agent_tls_handshake_seconds", "Time of TLS handshakes with the agent", &TIMES_US, seconds, |it| {
        &it.handshake
    }),
    (
        "agent_first_byte_seconds",
        "Time from a request's head to the first byte of the agent's response",
        &TIMES_US,
        seconds,
        |it| &it.first_byte,
    ),
    (
        "agent_request_seconds",
        "Time of a request from its head to its end, without sessions",
        &TIMES_US,
        seconds,
        |it| &it.request,
    ),
    ("agent_session_seconds", "How long sessions lasted that have ended", &SESSIONS_S, whole, |it| {
        &it.session
    }),
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
        self.wake_ups(&mut encoder)?;
        self.rejected(&mut encoder)?;
        self.endings(&mut encoder)?;
        self.handshakes(&mut encoder)?;
        self.configuration(&mut encoder)?;
        rows(&mut encoder, "agent_", &OF_AGENT, || self.agents())?;
        self.requests_by_status(&mut encoder)?;
        for of in OF_TIMES {
            self.times(&mut encoder, of)?;
        }
        self.residences(&mut encoder)?;
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

    /// What the proxy has answered itself, and why sessions have ended.
    fn endings(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = MetricType::Counter;
        let help = "Responses of the proxy itself, by status";
        let mut metric = encoder.encode_descriptor("own_responses", help, None, kind)?;
        for process in self.0.iter() {
            for (status, count) in &process.stats.own_responses {
                number(&mut metric, kind, &[pid(process), ("status", status.to_string())], *count)?;
            }
        }
        let help = "Sessions (WebSockets) that have ended, by reason";
        let mut metric = encoder.encode_descriptor("sessions_ended", help, None, kind)?;
        for process in self.0.iter() {
            for (reason, count) in &process.stats.session_ends {
                number(&mut metric, kind, &[pid(process), ("reason", reason.clone())], *count)?;
            }
        }
        Ok(())
    }

    fn rejected(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Rejected clients and requests";
        self.by_word(encoder, "rejected", help, "reason", |it| &it.rejected)?;
        let help = "Failures to take connections, to reach agents, and of requests; as the log names them";
        self.by_word(encoder, "failures", help, "reason", |it| &it.failures)?;
        let help = "Clients that did again and again what no user does";
        self.by_word(encoder, "security_events", help, "kind", |it| &it.security_events)
    }

    fn by_word(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        label: &'static str,
        counts: fn(&ProcessStatus) -> &Vec<(String, u64)>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for process in self.0.iter() {
            for (word, count) in counts(process) {
                number(&mut metric, MetricType::Counter, &[pid(process), (label, word.clone())], *count)?;
            }
        }
        Ok(())
    }

    fn wake_ups(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "How late the latest worker is woken: how long it waits for a core, mean of some seconds";
        let mut metric =
            encoder.encode_descriptor("worker_wake_up_delay_seconds", help, None, MetricType::Gauge)?;
        for process in self.0.iter() {
            let labels = &[pid(process)][..];
            metric.encode_family(&labels)?.encode_gauge(&seconds(process.stats.wake_up_us))?;
        }
        Ok(())
    }

    fn handshakes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "TLS handshakes that are over, by side, version, result and reason of failure";
        let mut metric = encoder.encode_descriptor("tls_handshakes", help, None, MetricType::Counter)?;
        for process in self.0.iter() {
            for it in &process.stats.handshakes {
                let result = if it.reason.is_empty() { "ok" } else { "failed" };
                let labels = [
                    pid(process),
                    ("side", it.side.clone()),
                    ("version", it.version.clone()),
                    ("result", result.to_owned()),
                    ("reason", it.reason.clone()),
                ];
                number(&mut metric, MetricType::Counter, &labels, it.count)?;
            }
        }
        let help = "Time of TLS handshakes with clients that succeeded";
        let name = "client_tls_handshake_seconds";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for process in self.0.iter() {
            bounded_histogram(
                &mut metric,
                &[pid(process)],
                &process.stats.client_handshake,
                &TIMES_US,
                seconds,
            )?;
        }
        Ok(())
    }

    /// Of the process that serves: the others show their certificates to nobody new, and reload no more.
    fn configuration(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(serving) = self.0.first() else { return Ok(()) };
        let help = "Whether the latest reload was applied: 1, or 0";
        let name = "config_last_reload_successful";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        number(&mut metric, MetricType::Gauge, &[pid(serving)], u64::from(!serving.has_reload_failed))?;
        let help = "Until when a certificate is valid that is shown to clients, in seconds since 1970";
        let mut metric =
            encoder.encode_descriptor("certificate_not_after_seconds", help, None, MetricType::Gauge)?;
        for it in &serving.certificates {
            let labels = [pid(serving), ("name", it.name.clone()), ("file", it.file.clone())];
            let labels = &labels[..];
            metric.encode_family(&labels)?.encode_gauge(&it.not_after_s)?;
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
        (name, help, bounds, unit, values): Times,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, stats) in self.agents() {
            bounded_histogram(&mut metric, &labels, values(stats), bounds, unit)?;
        }
        Ok(())
    }

    /// How long bytes stay in the proxy, each way.
    fn residences(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time of session bytes in the proxy, from readable on one side to taken by the other";
        let mut metric =
            encoder.encode_descriptor("agent_residence_seconds", help, None, MetricType::Histogram)?;
        for ([pid, agent], stats) in self.agents() {
            for (direction, values) in
                [("to_agent", &stats.residence_to_agent), ("to_client", &stats.residence_to_client)]
            {
                let labels = [pid.clone(), agent.clone(), ("direction", direction.to_owned())];
                bounded_histogram(&mut metric, &labels, values, &RESIDENCES_US, seconds)?;
            }
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
    values: &Distribution,
    bounds: &[u64],
    unit: fn(u64) -> f64,
) -> fmt::Result {
    let counts = values.buckets(bounds);
    let bounds = bounds.iter().map(|bound| unit(*bound)).chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(counts).collect();
    histogram(metric, labels, unit(values.sum), &buckets)
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
    use crate::observe::tcp_stats::TcpStats;

    /// Without it readers refuse the whole text.
    #[test]
    fn every_histogram_has_all_of_its_times_in_the_last_bucket() {
        let mut process = ProcessStatus::default();
        let address = AgentId::from(IpAddr::from([10, 0, 0, 5]));
        let connect = Distribution { values: vec![(60_000_000, 1)], sum: 60_000_000 };
        let stats = AgentStats { connect, ..AgentStats::default() };
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
        queue.bytes = Distribution { values: vec![(3000, 1)], sum: 3000 };
        queue.time = Distribution { values: vec![(30_000, 1)], sum: 30_000 };
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
}
