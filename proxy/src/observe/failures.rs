//! Failures that a client can cause again and again, by kind and agent: the log tells the 1st, 2nd, 4th, ... of each, with
//! how many there were, so that nobody fills a disk by asking for an agent that is down. Never asked where nothing fails.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::observe::agent::AgentId;

/// Pairs of kind and agent that are counted each by itself; of each kind the other agents are counted together.
const COUNTED_MAX: usize = 4096;

/// The counters, of all workers.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<(&'static str, AgentId), u64>>);

impl Failures {
    /// Counts one. Gives how many there were where it is time to log it.
    pub fn note(&self, kind: &'static str, agent: AgentId) -> Option<u64> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_counted = counts.len() < COUNTED_MAX || counts.contains_key(&(kind, agent));
        let count = counts.entry((kind, if is_counted { agent } else { AgentId::OTHERS })).or_default();
        *count += 1;
        count.is_power_of_two().then_some(*count)
    }

    /// How many there were of each kind.
    pub fn counts(&self) -> Vec<(String, u64)> {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for ((kind, _), count) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            *sums.entry(kind).or_default() += count;
        }
        sums.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_failure_is_told_the_first_time_and_ever_more_seldom_afterwards() {
        let failures = Failures::default();
        let told = |kind, agent: [u8; 4]| -> Vec<u64> {
            (0..1000).filter_map(|_| failures.note(kind, IpAddr::from(agent).into())).collect()
        };
        let powers: Vec<u64> = (0..10).map(|power| 1 << power).collect();
        assert_eq!(told("refused", [10, 0, 0, 1]), powers);
        assert_eq!(told("refused", [10, 0, 0, 2]), powers);
        assert_eq!(told("timed out", [10, 0, 0, 1]), powers);
        assert_eq!(told("refused", [10, 0, 0, 1]), [1024]);
        assert_eq!(failures.counts(), [("refused".to_owned(), 3000), ("timed out".to_owned(), 1000)]);
    }

    #[test]
    fn more_agents_than_are_counted_fill_neither_memory_nor_the_log() {
        let failures = Failures::default();
        let told = (0..100_000_u32).filter(|agent| {
            failures.note("refused", IpAddr::from((0x0a00_0000 + agent).to_be_bytes()).into()).is_some()
        });
        assert!(told.count() < COUNTED_MAX + 20);
        assert!(failures.0.lock().expect("nobody panicked").len() <= COUNTED_MAX + 1);
    }
}
