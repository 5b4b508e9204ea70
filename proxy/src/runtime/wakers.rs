//! Wakers of tasks and of parts of tasks. A wake that comes from the loop's own thread costs no lock and no system call; one from another
//! thread goes through an inbox with an eventfd(2). Runs nothing itself.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use rustix::event::{EventfdFlags, eventfd};

use crate::runtime::scheduler::{Class, Schedule, TaskId};

/// A task, which costs nothing to note, or a part of one that has a waker of its own.
#[derive(Clone, Debug)]
pub(super) enum Waiter {
    Task(TaskId),
    Part(Waker),
}

/// The tasks of one loop that are ready, and the ways to make them so.
pub(super) struct Wakes {
    pub(super) schedule: Schedule,
    inbox: Arc<Inbox>,
    /// Tells the running task's own waker from those within it; nothing is ever read by it.
    own_waker: Cell<*const ()>,
    /// The class of the part that is being woken.
    part_class: Cell<Option<Class>>,
    /// Parts that wait for their task's turn to move bulk.
    bulk_parts: RefCell<Vec<(TaskId, Waker)>>,
}

thread_local! {
    /// Those of the loop that runs on this thread.
    static RUNNING: RefCell<Option<Rc<Wakes>>> = const { RefCell::new(None) };
}

/// Makes a loop the one that runs on this thread, until it is dropped.
pub(super) struct Running(Option<Rc<Wakes>>);

impl Running {
    pub(super) fn begin(wakes: &Rc<Wakes>) -> Self {
        Self(RUNNING.replace(Some(wakes.clone())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(self.0.take());
    }
}

impl Wakes {
    pub(super) fn new() -> io::Result<Self> {
        let wakeup_fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            schedule: Schedule::default(),
            inbox: Arc::new(Inbox {
                woken: Mutex::default(),
                wakeup_fd,
                #[cfg(test)]
                puts: std::sync::atomic::AtomicUsize::default(),
            }),
            own_waker: Cell::new(std::ptr::null()),
            part_class: Cell::new(None),
            bulk_parts: RefCell::default(),
        })
    }

    /// Readable once another thread has woken somebody.
    pub(super) fn wakeup_fd(&self) -> BorrowedFd<'_> {
        self.inbox.wakeup_fd.as_fd()
    }

    /// Makes ready who was woken by other threads.
    pub(super) fn collect(&self) {
        self.inbox.take().into_iter().for_each(|task| self.schedule.wake(task));
    }

    /// Wakes that went through the inbox.
    #[cfg(test)]
    pub(super) fn inbox_puts(&self) -> usize {
        self.inbox.puts.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A waker of a task.
    pub(super) fn waker(&self, task: TaskId) -> Waker {
        Waker::from(Arc::new(TaskWaker { task, inbox: self.inbox.clone() }))
    }

    /// A waker of a part of a task, within which `parent` wakes.
    pub(super) fn part_waker(&self, parent: Waker, class: Class) -> Waker {
        Waker::from(Arc::new(PartWaker { parent, class, inbox: self.inbox.clone() }))
    }

    /// Notes the waker of the task that is about to run.
    pub(super) fn begin_run(&self, task: TaskId, waker: &Waker) {
        if self.schedule.is_bulk_turn() {
            self.wake_bulk_parts(task);
        }
        self.own_waker.set(waker.data());
    }

    /// Forgets a task that has ended.
    pub(super) fn remove(&self, task: TaskId) {
        self.bulk_parts.borrow_mut().retain(|(waiting, _)| *waiting != task);
        self.schedule.remove(task);
    }

    /// The waiter of this poll: the running task itself, or a part of it that has a waker of its own.
    pub(super) fn waiter(&self, cx: &Context<'_>) -> Waiter {
        if cx.waker().data() == self.own_waker.get() {
            Waiter::Task(self.schedule.current())
        } else {
            Waiter::Part(cx.waker().clone())
        }
    }

    pub(super) fn wake(&self, waiter: &Waiter) {
        match waiter {
            Waiter::Task(task) => self.schedule.wake(*task),
            Waiter::Part(waker) => waker.wake_by_ref(),
        }
    }

    /// Whether the running task may move bulk now. If not, whoever polled is woken when it may.
    pub(super) fn may_move_bulk(&self, cx: &Context<'_>) -> bool {
        if self.schedule.may_move_bulk() {
            return true;
        }
        if let Waiter::Part(waker) = self.waiter(cx) {
            self.bulk_parts.borrow_mut().push((self.schedule.current(), waker));
        }
        false
    }

    fn wake_bulk_parts(&self, task: TaskId) {
        let mut parts = self.bulk_parts.borrow_mut();
        let due: Vec<_> = parts.extract_if(.., |(waiting, _)| *waiting == task).collect();
        drop(parts);
        for (_, waker) in due {
            waker.wake();
        }
    }
}

/// Wakes from other threads.
#[derive(Debug)]
struct Inbox {
    woken: Mutex<Vec<TaskId>>,
    wakeup_fd: OwnedFd,
    #[cfg(test)]
    puts: std::sync::atomic::AtomicUsize,
}

impl Inbox {
    fn put(&self, task: TaskId) {
        #[cfg(test)]
        self.puts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        // A counter that can't be raised any more is not zero, and so rings already (eventfd(2)).
        let _ = rustix::io::write(&self.wakeup_fd, &1_u64.to_ne_bytes());
    }

    fn take(&self) -> Vec<TaskId> {
        let _ = rustix::io::read(&self.wakeup_fd, &mut [0; 8]);
        std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Wakes a task, from any thread.
struct TaskWaker {
    task: TaskId,
    inbox: Arc<Inbox>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let is_done = on_own_loop(&self.inbox, |wakes| match wakes.part_class.get() {
            Some(class) => wakes.schedule.wake_as(self.task, class),
            None => wakes.schedule.wake(self.task),
        });
        if !is_done {
            self.inbox.put(self.task);
        }
    }
}

/// Wakes a part of a task, which then runs in the queue of the part's class.
struct PartWaker {
    parent: Waker,
    class: Class,
    inbox: Arc<Inbox>,
}

impl Wake for PartWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let is_done = on_own_loop(&self.inbox, |wakes| {
            let before = wakes.part_class.replace(Some(self.class));
            self.parent.wake_by_ref();
            wakes.part_class.set(before);
        });
        if !is_done {
            self.parent.wake_by_ref();
        }
    }
}

/// Does `what` with the loop of that inbox, if it is the one that runs on this thread.
fn on_own_loop(inbox: &Arc<Inbox>, what: impl FnOnce(&Wakes)) -> bool {
    let done = RUNNING.try_with(|running| {
        let running = running.borrow();
        let own = running.as_ref().filter(|wakes| Arc::ptr_eq(&wakes.inbox, inbox));
        own.map(|wakes| what(wakes)).is_some()
    });
    done.unwrap_or(false)
}
