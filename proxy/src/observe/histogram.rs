//! How values are distributed: counted by a worker in an HDR histogram, with a relative error of a sixteenth, and handed on
//! as the values that occurred. Knows no unit and no clock.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Decimal digits that a value is counted by.
const DIGITS: u8 = 1;
/// Of times: a minute, in microseconds. What takes longer counts as this.
const TIME_MAX_US: u64 = 60_000_000;

/// Counts values. Holds no memory before the first one; then it grows with the largest, up to 1.5 KiB for a minute in
/// microseconds.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    values: Option<Box<Histogram<u32>>>,
    sum: u64,
    /// What was counted before the numbers of `values` became large.
    before: Distribution,
}

/// Values that are counted before their numbers are moved: fewer than a number can hold.
const MOVED_AT: u64 = 1 << 31;

impl Counts {
    /// Counts a value.
    #[expect(clippy::missing_panics_doc, reason = "no value makes it panic")]
    pub fn note(&mut self, value: u64) {
        let values = self.values.get_or_insert_with(|| {
            let mut values = Histogram::new(DIGITS).expect("so many digits are possible");
            values.auto(true);
            Box::new(values)
        });
        // It is no less than 1, and grows with the value.
        let _ = values.record(value.max(1));
        self.sum = self.sum.saturating_add(value);
    }

    /// Counts a time.
    pub fn note_time(&mut self, time: Duration) {
        self.note(micros(time).min(TIME_MAX_US));
    }

    /// The values so far. Wanted now and then, or numbers that are too large stay as they are.
    pub fn read(&mut self) -> Distribution {
        let Some(counted) = &mut self.values else { return Distribution::default() };
        let values = counted.iter_recorded();
        let values = values.map(|it| (it.value_iterated_to(), it.count_since_last_iteration())).collect();
        let mut read = Distribution { values, sum: self.sum };
        read.add(&Distribution { sum: 0, ..self.before.clone() });
        if counted.len() >= MOVED_AT {
            self.before = read.clone();
            counted.reset();
        }
        read
    }
}

/// A time in microseconds; more than can be counted is as much as can be.
pub(crate) fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

/// Values that occurred, and how often.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Distribution {
    /// Each value, rounded up by a sixteenth at the most, and how often it occurred; in their order.
    pub values: Vec<(u64, u64)>,
    /// All values together, not rounded.
    pub sum: u64,
}

impl Distribution {
    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.values.iter().map(|(_, count)| count).sum()
    }

    /// Below or at what value `percent` of them are.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let wanted = (self.count() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.values.iter().find(|(_, count)| {
            seen += count;
            seen >= wanted
        });
        found.map(|(value, _)| *value)
    }

    /// How many were no more than each bound and more than the one before; then how many were more than all.
    pub fn buckets(&self, bounds: &[u64]) -> Vec<u64> {
        let mut buckets = vec![0; bounds.len() + 1];
        for (value, count) in &self.values {
            buckets[bounds.partition_point(|bound| bound < value)] += count;
        }
        buckets
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.sum = self.sum.saturating_add(other.sum);
        if other.values.is_empty() {
            return;
        }
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.values.len().max(other.values.len()));
        let (mut own, mut others) = (self.values.iter().peekable(), other.values.iter().peekable());
        while let Some(next) =
            own.next_if(|own| others.peek().is_none_or(|it| own.0 <= it.0)).or_else(|| others.next())
        {
            match merged.last_mut().filter(|last| last.0 == next.0) {
                Some(last) => last.1 += next.1,
                None => merged.push(*next),
            }
        }
        self.values = merged;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_with_a_small_error_and_never_made_smaller() {
        let mut counts = Counts::default();
        let values = [0, 1, 15, 16, 31, 32, 33, 999, 1000, 123_456, 59_999_999];
        for value in values {
            counts.note(value);
        }
        let read = counts.read();
        assert_eq!((read.count(), read.sum), (11, values.iter().sum()));
        for value in &values[1..] {
            let counted = read.values.iter().map(|(counted, _)| *counted).find(|counted| counted >= value);
            let counted = counted.expect("a value");
            assert!(counted - value <= value / 15, "{value}: {counted}");
        }
    }

    #[test]
    fn a_time_beyond_a_minute_is_a_minute_and_the_memory_is_bounded() {
        let mut counts = Counts::default();
        counts.note_time(Duration::MAX);
        assert!(counts.read().percentile(50).is_some_and(|us| (60_000_000..64_000_000).contains(&us)));
        let values = counts.values.expect("values");
        assert!(values.distinct_values() * size_of::<u32>() <= 3 << 9, "{}", values.distinct_values());
    }

    #[test]
    fn more_values_than_a_number_holds_are_counted() {
        let mut counts = Counts::default();
        counts.note(7);
        counts.values.as_mut().expect("values").record_n(7, u32::MAX - 1).expect("a value");
        assert_eq!(counts.read().count(), u64::from(u32::MAX));
        counts.note(7);
        counts.note(9);
        assert_eq!(counts.read().values, [(7, u64::from(u32::MAX) + 1), (9, 1)]);
    }

    #[test]
    fn percentiles_and_buckets_are_of_what_was_counted() {
        let mut counts = Counts::default();
        (0..99).for_each(|_| counts.note(4));
        assert_eq!(Distribution::default().percentile(50), None);
        assert_eq!(counts.read().percentile(99), Some(4));
        counts.note(4000);
        counts.note(4000);
        let read = counts.read();
        assert_eq!(read.percentile(50), Some(4));
        assert!(read.percentile(99).is_some_and(|value| (4000..4300).contains(&value)));
        assert_eq!(read.buckets(&[3, 4, 5000]), [0, 99, 2, 0]);
        assert_eq!(read.buckets(&[3]), [0, 101]);
    }

    #[test]
    fn what_several_have_counted_is_added_up() {
        let mut one = Distribution { values: vec![(1, 1), (5, 2), (9, 1)], sum: 20 };
        let other = Distribution { values: vec![(2, 4), (5, 1), (20, 7)], sum: 153 };
        one.add(&other);
        assert_eq!(one, Distribution { values: vec![(1, 1), (2, 4), (5, 3), (9, 1), (20, 7)], sum: 173 });
        one.add(&Distribution::default());
        assert_eq!(one.count(), 16);
    }
}
