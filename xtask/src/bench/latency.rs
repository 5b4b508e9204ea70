//! Latencies by name: recorded in histograms in the client's process, read as percentiles in microseconds.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Where the curve of a plot has its points.
const CURVE: [f64; 14] =
    [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.99];
/// A minute in nanoseconds: no run waits longer.
const HIGHEST: u64 = 60_000_000_000;

/// Histograms of nanoseconds.
#[derive(Default)]
pub(super) struct Latencies(Mutex<BTreeMap<&'static str, Histogram<u64>>>);

impl Latencies {
    /// Adds one latency, in nanoseconds.
    pub(super) fn record(&self, name: &'static str, nanoseconds: u64) {
        let mut histograms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Histogram::new_with_bounds(1_000, HIGHEST, 3);
        if !histograms.contains_key(name) {
            histograms.extend(fresh().ok().map(|histogram| (name, histogram)));
        }
        if let Some(histogram) = histograms.get_mut(name) {
            histogram.saturating_record(nanoseconds);
        }
    }

    /// Everything recorded so far.
    pub(super) fn read(&self) -> BTreeMap<String, Latency> {
        let histograms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        histograms.iter().map(|(name, histogram)| ((*name).to_owned(), Latency::of(histogram))).collect()
    }
}

/// A distribution, in microseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Latency {
    pub(super) count: u64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
    /// Percentile and value.
    pub(super) curve: Vec<(f64, f64)>,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |percentile| histogram.value_at_percentile(percentile) as f64 / 1_000.0;
        Self {
            count: histogram.len(),
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            max: histogram.max() as f64 / 1_000.0,
            curve: CURVE.into_iter().map(|percentile| (percentile, at(percentile))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_microseconds() {
        let latencies = Latencies::default();
        (1..=1000).for_each(|microseconds| latencies.record("echo", microseconds * 1_000));
        let all = latencies.read();
        let echo = &all["echo"];
        let near = |value: f64, wanted: f64| (value - wanted).abs() < wanted * 0.01;
        assert_eq!(echo.count, 1000);
        assert!(near(echo.p50, 500.0) && near(echo.p99, 990.0) && near(echo.max, 1000.0), "{echo:?}");
    }
}
