//! The figures as text for Prometheus, in its classic format or `OpenMetrics` 1.0. Whatever is summed is left to whoever reads it: after an upgrade
//! the processes that drain have lines of their own. Pure.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::observe::stats::{AgentFigures, Figures, KernelAccount, KernelFigures, OTHERS, TIMES_MS, Times};

/// How the figures are written.
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

/// How it stands with a process.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ProcessStatus {
    /// Its id.
    pub process: u32,
    /// Its version.
    pub version: String,
    /// What it does: serving, draining, stopping.
    pub doing: String,
    /// Since how many seconds it serves.
    pub seconds: u64,
    /// Client connections that are open.
    pub connections: u64,
    /// Threads that serve.
    pub workers: u64,
    /// How often its settings were changed.
    pub reloads: u64,
    /// How often they could not be.
    pub reloads_refused: u64,
    /// Lines of its log that were dropped.
    pub log_lines_dropped: u64,
    /// Lines of the access log that were dropped.
    pub access_log_lines_dropped: u64,
    /// Rejected connections and requests, by reason.
    pub refused: Vec<(String, u64)>,
    /// What is counted of agents and clients.
    pub figures: Figures,
    /// What the kernel has counted, where it does.
    pub kernel: Option<KernelAccount>,
}

/// The text of all processes; the one that serves comes first.
pub fn render(standings: Vec<ProcessStatus>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("dcv_splice");
    registry.register_collector(Box::new(All(Arc::new(standings))));
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

/// A figure: its name, what it says, its kind, and where it is found.
type Row<T> = (&'static str, &'static str, MetricType, fn(&T) -> u64);

const OF_PROCESS: [Row<ProcessStatus>; 9] = [
    ("uptime_seconds", "Time since it serves", MetricType::Gauge, |it| it.seconds),
    ("connections", "Client connections that are open", MetricType::Gauge, |it| it.connections),
    ("workers", "Threads that serve", MetricType::Gauge, |it| it.workers),
    ("reloads", "Times that settings were changed", MetricType::Counter, |it| it.reloads),
    ("reloads_refused", "Times that settings could not be changed", MetricType::Counter, |it| {
        it.reloads_refused
    }),
    ("log_lines_dropped", "Lines of the log that were not taken in time", MetricType::Counter, |it| {
        it.log_lines_dropped
    }),
    (
        "access_log_lines_dropped",
        "Lines of the access log that were not taken in time",
        MetricType::Counter,
        |it| it.access_log_lines_dropped,
    ),
    ("client_received_bytes", "Bytes from clients' sockets, TLS and all", MetricType::Counter, |it| {
        it.figures.clients.received
    }),
    ("client_sent_bytes", "Bytes to clients' sockets, TLS and all", MetricType::Counter, |it| {
        it.figures.clients.sent
    }),
];

const OF_AGENT: [Row<AgentFigures>; 7] = [
    ("sessions", "WebSockets that are open", MetricType::Gauge, |it| it.sessions),
    ("sessions_begun", "WebSockets that were opened", MetricType::Counter, |it| it.sessions_begun),
    ("unreachable", "Connections that could not be made", MetricType::Counter, |it| it.unreachable),
    ("body_received_bytes", "Body and session bytes from it, of what has ended", MetricType::Counter, |it| {
        it.to_client
    }),
    ("body_sent_bytes", "Body and session bytes to it, of what has ended", MetricType::Counter, |it| {
        it.to_agent
    }),
    ("received_bytes", "Bytes from its sockets, TLS and all", MetricType::Counter, |it| it.wire.received),
    ("sent_bytes", "Bytes to its sockets, TLS and all", MetricType::Counter, |it| it.wire.sent),
];

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.build(&mut encoder)?;
        let processes = || self.0.iter().map(|standing| ([process(standing)], standing));
        rows(&mut encoder, "", &OF_PROCESS, processes)?;
        self.refused(&mut encoder)?;
        rows(&mut encoder, "agent_", &OF_AGENT, || self.agents())?;
        self.answers(&mut encoder)?;
        self.times(&mut encoder, "agent_connect_seconds", "Time to connect, with TLS", |it| &it.connect)?;
        let help = "Time of a request, from its head to its end; sessions apart";
        self.times(&mut encoder, "agent_request_seconds", help, |it| &it.request)?;
        self.kernel(&mut encoder)
    }
}

impl All {
    fn agents(&self) -> impl Iterator<Item = ([Label; 2], &AgentFigures)> {
        self.0.iter().flat_map(|standing| {
            let agents = standing.figures.agents.iter();
            agents.map(|(address, figures)| ([process(standing), agent(*address)], figures))
        })
    }

    fn build(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor("build", "What runs", None, MetricType::Info)?;
        for standing in self.0.iter() {
            let labels =
                [process(standing), ("version", standing.version.clone()), ("doing", standing.doing.clone())];
            metric.encode_info(&&labels[..])?;
        }
        Ok(())
    }

    fn refused(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Clients and requests that were turned away";
        let mut metric = encoder.encode_descriptor("refused", help, None, MetricType::Counter)?;
        for standing in self.0.iter() {
            for (reason, count) in &standing.refused {
                let labels = [process(standing), ("reason", reason.clone())];
                number(&mut metric, MetricType::Counter, &labels, *count)?;
            }
        }
        Ok(())
    }

    fn answers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests, by the status that the client was given";
        let mut metric = encoder.encode_descriptor("agent_requests", help, None, MetricType::Counter)?;
        for ([process, agent], figures) in self.agents() {
            for (class, count) in figures.answers.iter().enumerate().filter(|(_, count)| **count > 0) {
                let status = if class == 0 { "none".to_owned() } else { format!("{class}xx") };
                let labels = [process.clone(), agent.clone(), ("status", status)];
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
        times: fn(&AgentFigures) -> &Times,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, figures) in self.agents() {
            let Times { counts, sum_us } = times(figures);
            let bounds = TIMES_MS.iter().map(|ms| seconds(ms * 1000)).chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
            histogram(&mut metric, &labels, *sum_us, &buckets)?;
        }
        Ok(())
    }
}

/// Of each agent, and of each listener.
const OF_KERNEL: [Row<KernelFigures>; 9] = [
    ("received_bytes", "Payload received, by the kernel's account", MetricType::Counter, |it| it.received),
    ("sent_bytes", "Payload acknowledged, by the kernel's account", MetricType::Counter, |it| {
        it.acknowledged
    }),
    ("connections", "Connections that are open", MetricType::Gauge, |it| it.opened.saturating_sub(it.closed)),
    ("connections_tried", "Connections that were tried", MetricType::Counter, |it| it.tried),
    ("connections_opened", "Connections that were made", MetricType::Counter, |it| it.opened),
    ("connections_failed", "Connections that could not be made", MetricType::Counter, |it| it.failed),
    ("connections_closed", "Connections that have ended", MetricType::Counter, |it| it.closed),
    ("retransmitted", "Segments that were sent again", MetricType::Counter, |it| it.retransmitted),
    (
        "round_trip_us",
        "Smoothed round-trip time of the connection that spoke last",
        MetricType::Gauge,
        |it| it.round_trip_us,
    ),
];

impl All {
    fn kernel(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        rows(encoder, "kernel_agent_", &OF_KERNEL, || self.kernel_agents())?;
        rows(encoder, "kernel_client_", &OF_KERNEL, || self.kernel_listeners())?;
        self.powers(encoder, "kernel_agent_connect_seconds", "Time to connect, without TLS", |it| {
            &it.connect_times
        })?;
        self.powers(encoder, "kernel_agent_round_trip_seconds", "Smoothed round-trip times", |it| {
            &it.round_trips
        })?;
        self.unaccounted(encoder)
    }

    fn accounts(&self) -> impl Iterator<Item = (&ProcessStatus, &KernelAccount)> {
        self.0.iter().filter_map(|standing| Some((standing, standing.kernel.as_ref()?)))
    }

    fn kernel_agents(&self) -> impl Iterator<Item = ([Label; 2], &KernelFigures)> {
        self.accounts().flat_map(|(standing, account)| {
            let agents = account.agents.iter();
            agents.map(|(address, figures)| ([process(standing), agent(*address)], figures))
        })
    }

    fn kernel_listeners(&self) -> impl Iterator<Item = ([Label; 2], &KernelFigures)> {
        self.accounts().flat_map(|(standing, account)| {
            let listeners = account.listeners.iter();
            listeners.map(|(port, figures)| ([process(standing), ("port", port.to_string())], figures))
        })
    }

    /// Times by powers of two, of which the sum is not known: it is what they are at the least.
    fn powers(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        times: fn(&KernelFigures) -> &Vec<u64>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, figures) in self.kernel_agents() {
            let counts = times(figures);
            let least =
                (0..).zip(counts).fold(0_u64, |sum, (power, count)| sum.saturating_add(count << power));
            let highest = counts.len().saturating_sub(1);
            let bound =
                |power: usize| if power == highest { f64::INFINITY } else { seconds(1 << (power + 1)) };
            let buckets: Vec<_> =
                counts.iter().enumerate().map(|(power, count)| (bound(power), *count)).collect();
            histogram(&mut metric, &labels, least, &buckets)?;
        }
        Ok(())
    }

    /// What the kernel's account and the proxy's own differ by: bytes on their way, and bytes that nobody has read.
    fn unaccounted(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Bytes of an agent in the kernel's account and not in the proxy's own";
        let mut metric =
            encoder.encode_descriptor("agent_unaccounted_bytes", help, None, MetricType::Gauge)?;
        for (standing, account) in self.accounts() {
            for (address, kernel) in &account.agents {
                let (received, sent) = kernel.beyond(standing.figures.wire(*address));
                for (direction, difference) in [("received", received), ("sent", sent)] {
                    let labels = [process(standing), agent(*address), ("direction", direction.to_owned())];
                    let labels = &labels[..];
                    metric.encode_family(&labels)?.encode_gauge(&difference)?;
                }
            }
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
        for (labels, figures) in each() {
            number(&mut metric, *kind, &labels, value(figures))?;
        }
    }
    Ok(())
}

fn histogram(
    metric: &mut MetricEncoder<'_>,
    labels: &[Label],
    sum_us: u64,
    buckets: &[(f64, u64)],
) -> fmt::Result {
    let count = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_family(&labels)?.encode_histogram::<[Label; 0]>(seconds(sum_us), count, buckets, None)
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

fn process(standing: &ProcessStatus) -> Label {
    ("process", standing.process.to_string())
}

fn agent(address: IpAddr) -> Label {
    ("agent", if address == OTHERS { "others".to_owned() } else { address.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without it readers refuse the whole text.
    #[test]
    fn every_histogram_has_all_of_its_times_in_the_last_bucket() {
        let mut standing = ProcessStatus::default();
        let address = IpAddr::from([10, 0, 0, 5]);
        let mut figures = AgentFigures::default();
        figures.connect.note(std::time::Duration::from_secs(100));
        standing.figures.agents.insert(address, figures);
        let kernel = KernelFigures {
            connect_times: vec![1, 2, 3],
            round_trips: vec![4, 5],
            ..KernelFigures::default()
        };
        standing.kernel.get_or_insert_default().agents.insert(address, kernel);
        let text = render(vec![standing], Format::OpenMetrics).expect("text");
        for (name, count) in [
            ("agent_connect", 1),
            ("agent_request", 0),
            ("kernel_agent_connect", 6),
            ("kernel_agent_round_trip", 9),
        ] {
            for line in [
                format!("dcv_splice_{name}_seconds_count{{process=\"0\",agent=\"10.0.0.5\"}} {count}\n"),
                format!(
                    "dcv_splice_{name}_seconds_bucket{{le=\"+Inf\",process=\"0\",agent=\"10.0.0.5\"}} {count}\n"
                ),
            ] {
                assert!(text.contains(&line), "{line} is not in\n{text}");
            }
        }
    }

    /// A process with something of everything.
    fn full() -> ProcessStatus {
        let address = IpAddr::from([10, 0, 0, 5]);
        let mut standing =
            ProcessStatus { refused: vec![("full".to_owned(), 2)], ..ProcessStatus::default() };
        standing.figures.agents.insert(address, AgentFigures { answers: [1; 6], ..AgentFigures::default() });
        let kernel =
            KernelFigures { connect_times: vec![1, 2], round_trips: vec![3], ..KernelFigures::default() };
        let account = standing.kernel.get_or_insert_default();
        account.agents.insert(address, kernel.clone());
        account.listeners.insert(8443, kernel);
        standing
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
