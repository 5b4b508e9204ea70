//! The order in which tasks run. A round serves every session that is ready, then one step of set-up work (a handshake flight,
//! a head) or a few short ones, then one turn of one bulk transfer: no storm and no flood delays another's input event by
//! more than that. Holds numbers only: tasks are known by their ids.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// The number of a task. It may be given again once the task is gone: a wake too many does no harm.
pub type TaskId = usize;

/// The kind of work of a task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// Everything before a session, which may cost CPU time: accept, handshakes, heads, bodies.
    Setup,
    /// Relays frames and input events.
    Session,
}

/// Calls to sockets that one run of a set-up task may make: some 16 receives of `FILL_BYTES`
/// at the most, which take well below a millisecond.
pub const SETUP_CALLS: u32 = 16;
/// Calls of one run of a session. A relay's own budget is smaller; this one holds where that fails.
pub const SESSION_CALLS: u32 = 256;

impl Class {
    /// Calls to sockets that one run may make.
    fn calls(self) -> u32 {
        match self {
            Self::Setup => SETUP_CALLS,
            Self::Session => SESSION_CALLS,
        }
    }
}

/// The state of a task.
#[derive(Debug)]
struct Entry {
    class: Class,
    /// Whether it waits for a run of that class.
    is_queued: [bool; 2],
    wants_bulk: bool,
}

/// The tasks of one worker that are ready.
#[derive(Debug, Default)]
pub struct Schedule {
    tasks: RefCell<Vec<Option<Entry>>>,
    sessions: RefCell<VecDeque<TaskId>>,
    setups: RefCell<VecDeque<TaskId>>,
    bulk: RefCell<VecDeque<TaskId>>,
    /// The task that runs.
    current: Cell<TaskId>,
    /// Whether it runs because it is its turn to move bulk.
    is_bulk_turn: Cell<bool>,
    /// Calls to sockets that it may still make in this run.
    calls: Cell<u32>,
}

impl Schedule {
    /// Takes on a task, which is ready.
    pub fn add(&self, task: TaskId) {
        let mut tasks = self.tasks.borrow_mut();
        if tasks.len() <= task {
            tasks.resize_with(task + 1, || None);
        }
        tasks[task] = Some(Entry { class: Class::Setup, is_queued: [false; 2], wants_bulk: false });
        drop(tasks);
        self.wake(task);
    }

    /// Forgets a task that has ended.
    pub fn remove(&self, task: TaskId) {
        self.tasks.borrow_mut()[task] = None;
    }

    /// The task that runs.
    pub fn current(&self) -> TaskId {
        self.current.get()
    }

    /// Lets a task run, in the queue of its class.
    pub fn wake(&self, task: TaskId) {
        self.change(task, |entry| self.enqueue(task, entry.class, entry));
    }

    /// Lets a task run for a part of its work that is of another class.
    pub fn wake_as(&self, task: TaskId, class: Class) {
        self.change(task, |entry| self.enqueue(task, class, entry));
    }

    fn enqueue(&self, task: TaskId, class: Class, entry: &mut Entry) {
        if !std::mem::replace(&mut entry.is_queued[class as usize], true) {
            self.queue(class).borrow_mut().push_back(task);
        }
    }

    fn queue(&self, class: Class) -> &RefCell<VecDeque<TaskId>> {
        match class {
            Class::Setup => &self.setups,
            Class::Session => &self.sessions,
        }
    }

    /// Runs `part`, of a class of its own, within the calls of that class.
    pub fn within<T>(&self, class: Class, part: impl FnOnce() -> T) -> T {
        let withheld = self.calls.get().saturating_sub(class.calls());
        self.calls.set(self.calls.get() - withheld);
        let done = part();
        self.calls.set(self.calls.get() + withheld);
        done
    }

    /// Notes what the running task does from here on.
    pub fn set_class(&self, class: Class) {
        self.change(self.current(), |entry| entry.class = class);
    }

    /// Whether it is the running task's turn to move bulk. If not, it will be: then the task runs again.
    pub fn may_move_bulk(&self) -> bool {
        if self.is_bulk_turn.get() {
            return true;
        }
        self.change(self.current(), |entry| {
            if !std::mem::replace(&mut entry.wants_bulk, true) {
                self.bulk.borrow_mut().push_back(self.current());
            }
        });
        false
    }

    /// Whether the running task may make one more call to a socket. If not, it has to run again once the others had
    /// their turns: a source that is always ready can't keep a worker to itself, whoever forgets to yield.
    pub fn may_call(&self) -> bool {
        let left = self.calls.get();
        self.calls.set(left.saturating_sub(1));
        left > 0
    }

    /// Whether it is the turn of the running task to move bulk.
    pub fn is_bulk_turn(&self) -> bool {
        self.is_bulk_turn.get()
    }

    /// Whether the running task has used up its calls.
    pub fn is_spent(&self) -> bool {
        self.calls.get() == 0
    }

    fn change(&self, task: TaskId, change: impl FnOnce(&mut Entry)) {
        if let Some(Some(entry)) = self.tasks.borrow_mut().get_mut(task) {
            change(entry);
        }
    }

    /// Whether no task is ready but the one that runs.
    pub fn is_idle(&self) -> bool {
        self.sessions.borrow().is_empty() && self.setups.borrow().is_empty() && self.bulk.borrow().is_empty()
    }

    /// Runs a round. Sessions that become ready in its course have theirs in the next one. `has_time`: one more step of
    /// set-up work may be begun.
    pub fn round(&self, has_time: impl Fn() -> bool, mut run: impl FnMut(TaskId)) {
        let sessions = self.sessions.borrow().len();
        for _ in 0..sessions {
            self.run_next(Class::Session, &mut run);
        }
        loop {
            self.run_next(Class::Setup, &mut run);
            let is_alone = self.sessions.borrow().is_empty() && !self.setups.borrow().is_empty();
            if !is_alone || !has_time() {
                break;
            }
        }
        let bulk = self.bulk.borrow_mut().pop_front();
        if let Some(task) = bulk {
            self.change(task, |entry| entry.wants_bulk = false);
            self.is_bulk_turn.set(true);
            self.run(task, Class::Session, &mut run);
            self.is_bulk_turn.set(false);
        }
    }

    fn run_next(&self, class: Class, run: &mut impl FnMut(TaskId)) {
        let Some(task) = self.queue(class).borrow_mut().pop_front() else { return };
        self.change(task, |entry| entry.is_queued[class as usize] = false);
        self.run(task, class, run);
    }

    fn run(&self, task: TaskId, class: Class, run: &mut impl FnMut(TaskId)) {
        self.current.set(task);
        self.calls.set(class.calls());
        run(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What runs in one round, with `during` done by each task.
    fn round(schedule: &Schedule, during: impl Fn(TaskId)) -> Vec<TaskId> {
        let mut order = Vec::new();
        schedule.round(
            || false,
            |task| {
                order.push(task);
                during(task);
            },
        );
        order
    }

    fn sessions(schedule: &Schedule, count: usize) -> Vec<TaskId> {
        let tasks: Vec<_> = (0..count).inspect(|task| schedule.add(*task)).collect();
        for _ in &tasks {
            round(schedule, |_| schedule.set_class(Class::Session));
        }
        tasks
    }

    #[test]
    fn sessions_go_first_then_one_set_up_step_then_one_bulk_turn() {
        let schedule = Schedule::default();
        let session = sessions(&schedule, 3);
        let setup = [3, 4];
        for task in setup {
            schedule.add(task);
        }
        session.iter().rev().for_each(|task| schedule.wake(*task));
        let floods = |task| {
            if task != session[1] && session.contains(&task) {
                schedule.may_move_bulk();
            }
        };
        assert_eq!(round(&schedule, floods), [session[2], session[1], session[0], setup[0], session[2]]);
        schedule.wake(session[1]);
        assert_eq!(round(&schedule, |_| ()), [session[1], setup[1], session[0]]);
        assert!(schedule.is_idle());
    }

    #[test]
    fn short_steps_of_set_up_work_share_a_round_until_its_time_is_over_or_a_session_is_ready() {
        let schedule = Schedule::default();
        let session = sessions(&schedule, 1)[0];
        (1..6).for_each(|task| schedule.add(task));
        let order = RefCell::new(Vec::new());
        let run = |task| order.borrow_mut().push(task);
        schedule.round(|| order.borrow().len() < 2, run);
        assert_eq!(order.take(), [1, 2]);
        let wakes = |task| {
            run(task);
            if task == 4 {
                schedule.wake(session);
            }
        };
        schedule.round(|| true, wakes);
        assert_eq!(order.take(), [3, 4]);
        schedule.round(|| true, run);
        assert_eq!(order.take(), [session, 5]);
        assert!(schedule.is_idle());
    }

    #[test]
    fn who_may_move_bulk_is_told_so_only_in_a_turn_of_its_own() {
        let schedule = Schedule::default();
        let session = sessions(&schedule, 1);
        schedule.wake(session[0]);
        let told = RefCell::new(Vec::new());
        round(&schedule, |_| told.borrow_mut().push((schedule.may_move_bulk(), schedule.may_move_bulk())));
        assert_eq!(told.into_inner(), [(false, false), (true, true)]);
        assert!(schedule.is_idle());
    }

    #[test]
    fn a_task_that_could_go_on_for_ever_makes_way_after_its_calls_and_runs_again() {
        let schedule = Schedule::default();
        let session = sessions(&schedule, 1);
        schedule.add(1);
        schedule.wake(session[0]);
        let calls = RefCell::new(Vec::new());
        let greedy = |_| {
            let made = (0..1000).take_while(|_| schedule.may_call()).count();
            assert!(schedule.is_spent());
            schedule.wake(schedule.current());
            calls.borrow_mut().push(u32::try_from(made).expect("a small number"));
        };
        assert_eq!(round(&schedule, greedy), [session[0], 1]);
        assert_eq!(round(&schedule, greedy), [session[0], 1]);
        assert_eq!(calls.into_inner(), [SESSION_CALLS, SETUP_CALLS].repeat(2));
    }

    #[test]
    fn a_part_of_another_class_has_its_turn_and_its_calls_by_that_class() {
        let schedule = Schedule::default();
        let session = sessions(&schedule, 1)[0];
        schedule.add(1);
        round(&schedule, |_| ());
        // Set-up work of a session waits behind sessions; a session within a set-up task does not wait with it.
        schedule.add(2);
        schedule.wake_as(session, Class::Setup);
        schedule.wake_as(1, Class::Session);
        assert_eq!(round(&schedule, |_| ()), [1, 2]);
        let calls = Cell::new((0, 0));
        let spend = |_| {
            let all = || (0..1000).take_while(|_| schedule.may_call()).count();
            calls.set((schedule.within(Class::Setup, all), all()));
        };
        schedule.wake(session);
        assert_eq!(round(&schedule, spend), [session, session]);
        assert_eq!(calls.get(), (SETUP_CALLS as usize, 0), "a run of set-up work");
        schedule.wake(session);
        round(&schedule, spend);
        assert_eq!(calls.get(), (SETUP_CALLS as usize, (SESSION_CALLS - SETUP_CALLS) as usize));
    }

    #[test]
    fn a_task_is_queued_once_however_often_it_is_woken_and_never_after_its_end() {
        let schedule = Schedule::default();
        let task = 7;
        schedule.add(task);
        schedule.wake(task);
        assert_eq!(round(&schedule, |task| schedule.wake(task)), [task]);
        schedule.remove(task);
        schedule.wake(task);
        // What it had been woken for before is run, and finds nothing.
        assert_eq!(round(&schedule, |_| ()), [task]);
        assert!(schedule.is_idle());
    }
}
