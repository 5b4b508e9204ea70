//! The kernel's own account of connections, as metrics. Pure.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{All, Label, Row, agent, histogram, pid, rows, seconds};
use crate::observe::status::ProcessStatus;
use crate::observe::tcp_stats::{KernelStats, TcpStats};

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
    pub(super) fn kernel(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
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
