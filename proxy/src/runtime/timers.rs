//! Timers. A timer belongs to one wait, and goes with it: most waits are over long before their limit.
//! Pure: time is told.

use std::collections::BTreeMap;
use std::time::Instant;

/// A timer, to change or remove it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct TimerKey {
    time: Instant,
    /// Tells timers of the same time apart.
    number: u64,
}

/// The timers of one worker; `W` is who is woken.
#[derive(Debug)]
pub(crate) struct Timers<W> {
    waiting: BTreeMap<TimerKey, W>,
    added: u64,
}

impl<W> Default for Timers<W> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), added: 0 }
    }
}

impl<W> Timers<W> {
    /// Adds a timer.
    pub(crate) fn add(&mut self, time: Instant, waiter: W) -> TimerKey {
        self.added += 1;
        let key = TimerKey { time, number: self.added };
        self.waiting.insert(key, waiter);
        key
    }

    /// Changes who is woken; nothing where the timer has fired.
    pub(crate) fn change(&mut self, key: TimerKey, waiter: W) {
        if let Some(before) = self.waiting.get_mut(&key) {
            *before = waiter;
        }
    }

    /// Removes a timer; nothing where it has fired.
    pub(crate) fn remove(&mut self, key: TimerKey) {
        self.waiting.remove(&key);
    }

    /// When the next one fires.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(key, _)| key.time)
    }

    /// Takes a waiter whose timer fires by `now`, the earliest first.
    pub(crate) fn take(&mut self, now: Instant) -> Option<W> {
        self.next().filter(|time| *time <= now)?;
        self.waiting.pop_first().map(|(_, waiter)| waiter)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_fire_once_in_their_order_unless_they_are_removed() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        let keys: Vec<_> = [(3, 30), (1, 20), (2, 10), (4, 20)]
            .map(|(name, seconds)| timers.add(after(seconds), name))
            .into();
        timers.remove(keys[1]);
        timers.change(keys[3], 5);
        let fired =
            |timers: &mut Timers<i32>, now| std::iter::from_fn(|| timers.take(now)).collect::<Vec<_>>();
        assert_eq!(timers.next(), Some(after(10)));
        assert!(fired(&mut timers, after(9)).is_empty());
        assert_eq!(fired(&mut timers, after(20)), [2, 5]);
        // What has fired is no longer there to be changed or removed.
        timers.change(keys[3], 6);
        timers.remove(keys[2]);
        assert_eq!((fired(&mut timers, after(99)), timers.next()), (vec![3], None));
    }
}
