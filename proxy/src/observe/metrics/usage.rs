//! What processes use, by the names that every Prometheus client has for it. Pure.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

use super::{Label, pid, whole};
use crate::observe::status::{ProcessStatus, UsageStatus};

#[derive(Debug)]
pub(super) struct Usage(pub(super) Arc<Vec<ProcessStatus>>);

/// A metric: its name, help, kind, and value.
type Row = (&'static str, &'static str, MetricType, fn(&UsageStatus) -> Option<f64>);

const ROWS: [Row; 6] = [
    ("process_cpu_seconds", "Processor time of the process", MetricType::Counter, |it| it.cpu_seconds),
    ("process_resident_memory_bytes", "Memory in use", MetricType::Gauge, |it| it.resident_bytes.map(whole)),
    ("process_virtual_memory_bytes", "Addresses in use", MetricType::Gauge, |it| it.virtual_bytes.map(whole)),
    ("process_open_fds", "Open file descriptors", MetricType::Gauge, |it| it.open_fds.map(whole)),
    ("process_max_fds", "File descriptors that may be open", MetricType::Gauge, |it| it.max_fds.map(whole)),
    (
        "process_start_time_seconds",
        "When the process began, in seconds since 1970",
        MetricType::Gauge,
        |it| it.start_seconds,
    ),
];

impl Collector for Usage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, kind, value) in ROWS {
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for process in self.0.iter() {
                let Some(value) = value(&process.usage) else { continue };
                let labels = &[pid(process)][..];
                let mut family = metric.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => {
                        family.encode_counter(&value, None::<&Exemplar<[Label; 0], f64>>)?;
                    }
                    _ => family.encode_gauge(&value)?,
                }
            }
        }
        Ok(())
    }
}
