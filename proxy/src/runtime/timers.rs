//! When tasks want to run again whatever happens. A task has one alarm, the earliest it has asked for: most waits are
//! over long before their limit, and a later limit then costs nothing. One that rings too early does no harm, as a task
//! that still waits asks again. Pure: time is told.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::runtime::scheduler::TaskId;

/// The alarms of one worker's tasks.
#[derive(Debug, Default)]
pub struct Timers {
    by_task: Vec<Option<Instant>>,
    in_order: BTreeSet<(Instant, TaskId)>,
}

impl Timers {
    /// Lets `task` run at `time`, if it does not run earlier anyway.
    pub fn set(&mut self, task: TaskId, time: Instant) {
        if self.by_task.len() <= task {
            self.by_task.resize(task + 1, None);
        }
        let alarm = &mut self.by_task[task];
        if alarm.is_some_and(|earlier| earlier <= time) {
            return;
        }
        if let Some(later) = alarm.replace(time) {
            self.in_order.remove(&(later, task));
        }
        self.in_order.insert((time, task));
    }

    /// Forgets a task that has ended.
    pub fn remove(&mut self, task: TaskId) {
        if let Some(time) = self.by_task.get_mut(task).and_then(Option::take) {
            self.in_order.remove(&(time, task));
        }
    }

    /// When the first one rings.
    pub fn next(&self) -> Option<Instant> {
        self.in_order.first().map(|(time, _)| *time)
    }

    /// Takes a task whose alarm rings by `now`.
    pub fn take(&mut self, now: Instant) -> Option<TaskId> {
        self.next().filter(|time| *time <= now)?;
        let (_, task) = self.in_order.pop_first()?;
        self.by_task[task] = None;
        Some(task)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rung(alarms: &mut Timers, now: Instant) -> Vec<TaskId> {
        std::iter::from_fn(|| alarms.take(now)).collect()
    }

    #[test]
    fn the_earliest_alarm_of_a_task_rings_once() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut alarms = Timers::default();
        for (task, seconds) in [(3, 30), (1, 20), (3, 10), (3, 40), (0, 20)] {
            alarms.set(task, after(seconds));
        }
        assert_eq!(alarms.next(), Some(after(10)));
        assert!(rung(&mut alarms, after(9)).is_empty());
        assert_eq!(rung(&mut alarms, after(20)), [3, 0, 1]);
        assert_eq!((alarms.next(), rung(&mut alarms, after(99))), (None, vec![]));
    }

    #[test]
    fn a_task_that_has_rung_may_ask_again_and_one_that_has_ended_rings_no_more() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut alarms = Timers::default();
        alarms.set(2, start);
        assert_eq!(rung(&mut alarms, start), [2]);
        alarms.set(2, later);
        alarms.set(4, later);
        alarms.remove(2);
        alarms.remove(7);
        assert_eq!(rung(&mut alarms, later), [4]);
    }
}
