//! A worker's loop: collects the kernel's events, runs the tasks in the order of `Schedule`, keeps their timers. A wait
//! wakes whoever polled it, by the waker of its `Context`, so that futures within a task that are polled one by one
//! (`FuturesUnordered`, `h2`) work. One thread, no lock: only a wake from another thread goes through one.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use slab::Slab;

use crate::runtime::event::{Event, Token};
use crate::runtime::poller::Poller;
use crate::runtime::scheduler::{Class, TaskId};
use crate::runtime::timers::{TimerKey, Timers};
use crate::runtime::wakers::{Running, Waiter, Wakes};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Is told when a round of the loop is over, where it wants that: what was done in it has been done by then.
pub trait RoundObserver {
    /// Whether it is to be told: the clock is read for it.
    fn wants_end(&self) -> bool;

    /// The round was over at `now`.
    fn round_ended(&self, now: Instant);
}

/// Whether a call wants bytes or room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interest {
    /// Bytes, connections, or an end.
    Read,
    /// Room.
    Write,
}

/// A worker's loop. Cheap to clone, for those who run in it.
#[derive(Clone)]
pub struct Executor(Rc<Inner>);

struct Inner {
    wakes: Rc<Wakes>,
    tasks: RefCell<Slab<Option<(Task, Waker)>>>,
    poller: RefCell<Poller>,
    sources: RefCell<Slab<Source>>,
    generation: Cell<u32>,
    timers: RefCell<Timers<Waiter>>,
    now: Cell<Instant>,
    arrived: Cell<Instant>,
    observer: RefCell<Option<Rc<dyn RoundObserver>>>,
}

/// A socket and what is known of its readiness.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is true or not by itself")]
struct Source {
    socket: OwnedFd,
    token: Token,
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// A read came short since it was looked at again last.
    is_doubtful: bool,
    /// The waiters for bytes and for room.
    reader: Option<Waiter>,
    writer: Option<Waiter>,
}

impl Source {
    fn is_ready(&mut self, interest: Interest) -> &mut bool {
        match interest {
            Interest::Read => &mut self.readable,
            Interest::Write => &mut self.writable,
        }
    }

    fn waiter(&mut self, interest: Interest) -> &mut Option<Waiter> {
        match interest {
            Interest::Read => &mut self.reader,
            Interest::Write => &mut self.writer,
        }
    }
}

/// Time after which a round begins no more set-up work: to look for events after each short step costs more than the step.
const SETUP_TIME: Duration = Duration::from_micros(50);
/// The inbox's eventfd among the tokens; sockets count from 0.
const INBOX: Token = Token(u32::MAX as u64);

impl Executor {
    /// A loop for the calling thread.
    pub fn new(mut poller: Poller) -> io::Result<Self> {
        let wakes = Wakes::new()?;
        poller.add(wakes.wakeup_fd(), INBOX)?;
        Ok(Self(Rc::new(Inner {
            wakes: Rc::new(wakes),
            tasks: RefCell::default(),
            poller: RefCell::new(poller),
            sources: RefCell::default(),
            generation: Cell::new(0),
            timers: RefCell::default(),
            now: Cell::new(Instant::now()),
            arrived: Cell::new(Instant::now()),
            observer: RefCell::default(),
        })))
    }

    /// Runs `main` to its end, and what it spawns meanwhile. What is left then is dropped.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> io::Result<T> {
        let _running = Running::begin(&self.0.wakes);
        let result = Rc::new(Cell::new(None));
        let kept = result.clone();
        self.spawn(async move { kept.set(Some(main.await)) });
        let mut events = Vec::new();
        loop {
            let has_time = || self.0.now.get().elapsed() < SETUP_TIME;
            self.0.wakes.schedule.round(has_time, |task| self.poll(task));
            self.end_round();
            if let Some(result) = result.take() {
                let left = std::mem::take(&mut *self.0.tasks.borrow_mut());
                drop(left);
                return Ok(result);
            }
            self.collect(&mut events)?;
        }
    }

    /// Runs `future` as a task of its own.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let mut tasks = self.0.tasks.borrow_mut();
        let slot = tasks.vacant_entry();
        let task = slot.key();
        let waker = self.0.wakes.waker(task);
        slot.insert(Some((Box::pin(future), waker)));
        self.0.wakes.schedule.add(task);
    }

    /// Notes what the running task does from here on.
    pub fn set_class(&self, class: Class) {
        self.0.wakes.schedule.set_class(class);
    }

    /// Runs a part of the running task's work in a class of its own: woken by what it waits for, the task has its turn in
    /// the queue of that class, and the part has no more calls than that class.
    pub async fn with_class<T>(&self, class: Class, part: impl Future<Output = T>) -> T {
        let (mut part, mut own) = (pin!(part), None);
        poll_fn(|cx| {
            let (_, waker) = own
                .take()
                .filter(|(parent, _): &(Waker, Waker)| parent.will_wake(cx.waker()))
                .unwrap_or_else(|| {
                    let parent = cx.waker().clone();
                    (parent.clone(), self.0.wakes.part_waker(parent, class))
                });
            let polled =
                self.0.wakes.schedule.within(class, || part.as_mut().poll(&mut Context::from_waker(&waker)));
            own = Some((cx.waker().clone(), waker));
            polled
        })
        .await
    }

    /// Whether the running task may move bulk now. If not, whoever polled is woken when it may.
    pub fn may_move_bulk(&self, cx: &Context<'_>) -> bool {
        self.0.wakes.may_move_bulk(cx)
    }

    /// Whether nobody waits but the task that runs, as far as can be known without a system call.
    pub fn is_idle(&self) -> bool {
        self.0.wakes.schedule.is_idle() && !self.0.poller.borrow_mut().has_events()
    }

    /// Tells `observer` of the ends of rounds from now on.
    pub fn observe(&self, observer: Rc<dyn RoundObserver>) {
        *self.0.observer.borrow_mut() = Some(observer);
    }

    /// Since when that may be there which was found in this round: since its beginning, where the loop was waiting for
    /// something, and since the beginning of the one before, where it was busy.
    pub fn arrived(&self) -> Instant {
        self.0.arrived.get()
    }

    /// The time at which this round began.
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }

    /// Lets everything else that is ready have its turn.
    pub async fn yield_now(&self) {
        let mut has_yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut has_yielded, true) {
                return Poll::Ready(());
            }
            self.0.wakes.wake(&self.0.wakes.waiter(cx));
            Poll::Pending
        })
        .await;
    }

    /// Waits for `time` from now on.
    pub fn sleep(&self, time: Duration) -> Sleep {
        Sleep { executor: self.clone(), deadline: self.now() + time, timer: None }
    }

    fn poll(&self, id: TaskId) {
        let taken = self.0.tasks.borrow_mut().get_mut(id).and_then(Option::take);
        let Some((mut task, waker)) = taken else { return };
        self.0.wakes.begin_run(id, &waker);
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut()[id] = Some((task, waker));
            return;
        }
        drop(task);
        self.0.tasks.borrow_mut().remove(id);
        self.0.wakes.remove(id);
    }

    /// Takes in what has happened; where nobody is ready, waits for it.
    fn end_round(&self) {
        if let Some(observer) = self.0.observer.borrow().as_ref().filter(|observer| observer.wants_end()) {
            observer.round_ended(Instant::now());
        }
    }

    fn collect(&self, events: &mut Vec<Event>) -> io::Result<()> {
        let is_idle = self.0.wakes.schedule.is_idle();
        let mut poller = self.0.poller.borrow_mut();
        if is_idle || poller.has_events() {
            let limit = if is_idle { self.next_timer() } else { Some(Duration::ZERO) };
            poller.wait(limit, events)?;
        }
        drop(poller);
        let before = self.0.now.replace(Instant::now());
        self.0.arrived.set(if is_idle { self.now() } else { before });
        self.fire_timers();
        events.drain(..).try_for_each(|event| self.note(event))
    }

    fn note(&self, event: Event) -> io::Result<()> {
        if event.token == INBOX {
            self.0.wakes.collect();
            if event.ended {
                self.0.poller.borrow_mut().add(self.0.wakes.wakeup_fd(), INBOX)?;
            }
            return Ok(());
        }
        let mut sources = self.0.sources.borrow_mut();
        let source = sources.get_mut(index(event.token)).filter(|source| source.token == event.token);
        let Some(source) = source else { return Ok(()) };
        source.readable |= event.is_readable();
        source.writable |= event.is_writable();
        source.hung_up |= event.is_hung_up();
        let waiters = [
            source.reader.as_ref().filter(|_| event.is_readable() || event.is_hung_up()),
            source.writer.as_ref().filter(|_| event.is_writable() || event.is_hung_up()),
        ];
        let waiters = waiters.map(Option::<&Waiter>::cloned);
        if event.ended {
            self.0.poller.borrow_mut().add(source.socket.as_fd(), source.token)?;
        }
        // A waker may do anything.
        drop(sources);
        for waiter in waiters.iter().flatten() {
            self.0.wakes.wake(waiter);
        }
        Ok(())
    }

    /// Has each socket read once more whose last read came short. To be called now and then: to ask after each message
    /// whether bytes stand behind an urgent mark would cost a call each, and no event tells of them.
    pub fn look_again(&self) {
        let mut waiters = Vec::new();
        for (_, source) in self.0.sources.borrow_mut().iter_mut().filter(|(_, source)| source.is_doubtful) {
            source.is_doubtful = false;
            source.readable = true;
            waiters.extend(source.reader.clone());
        }
        for waiter in &waiters {
            self.0.wakes.wake(waiter);
        }
    }

    fn next_timer(&self) -> Option<Duration> {
        // Counted from when the round began, which saves a look at the clock: timers are late by a round at the most.
        self.0.timers.borrow().next().map(|time| time.saturating_duration_since(self.now()))
    }

    fn fire_timers(&self) {
        loop {
            let fired = self.0.timers.borrow_mut().take(self.now());
            let Some(waiter) = fired else { return };
            self.0.wakes.wake(&waiter);
        }
    }

    fn watch(&self, socket: OwnedFd, is_ready: bool) -> io::Result<usize> {
        let mut sources = self.0.sources.borrow_mut();
        let slot = sources.vacant_entry();
        let key = slot.key();
        // The highest bit of a token is not used.
        let generation = self.0.generation.get().wrapping_add(1) & (u32::MAX >> 1);
        self.0.generation.set(generation);
        let token = Token((u64::from(generation) << 32) | key as u64);
        self.0.poller.borrow_mut().add(socket.as_fd(), token)?;
        slot.insert(Source {
            socket,
            token,
            readable: is_ready,
            writable: is_ready,
            hung_up: false,
            is_doubtful: false,
            reader: None,
            writer: None,
        });
        Ok(key)
    }
}

/// Where a token's source is kept.
fn index(token: Token) -> usize {
    usize::try_from(token.0 & u64::from(u32::MAX)).unwrap_or(usize::MAX)
}

/// A wait for a time, with a timer of its own once it is polled before that.
pub struct Sleep {
    executor: Executor,
    deadline: Instant,
    /// The timer, and the waker and task that it is for: a waker's address alone may be another's later.
    timer: Option<(TimerKey, (*const (), TaskId))>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { executor, deadline, timer } = self.get_mut();
        let inner = &executor.0;
        if *deadline <= inner.now.get() {
            return Poll::Ready(());
        }
        let waiter = (cx.waker().data(), inner.wakes.schedule.current());
        let key = match *timer {
            Some((_, known)) if known == waiter => return Poll::Pending,
            Some((key, _)) => {
                inner.timers.borrow_mut().change(key, inner.wakes.waiter(cx));
                key
            }
            None => inner.timers.borrow_mut().add(*deadline, inner.wakes.waiter(cx)),
        };
        *timer = Some((key, waiter));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((key, _)) = self.timer {
            self.executor.0.timers.borrow_mut().remove(key);
        }
    }
}

/// A socket whose readiness is known. Calls are made only when they may succeed; the task that meets one that
/// can't be made yet is the one that is woken.
pub struct RegisteredFd {
    executor: Executor,
    key: usize,
}

impl RegisteredFd {
    /// Watches a socket that doesn't block. `is_ready`: it may be used at once, as far as is known.
    pub fn new(executor: &Executor, socket: OwnedFd, is_ready: bool) -> io::Result<Self> {
        let key = executor.watch(socket, is_ready)?;
        Ok(Self { executor: executor.clone(), key })
    }

    /// Makes `call` once the socket is ready for it, and again where it was not after all. A task that has used up its
    /// calls waits for its next run (`Schedule::may_call`).
    pub fn poll_io<T>(
        &self,
        cx: &Context<'_>,
        interest: Interest,
        mut call: impl FnMut(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Poll<io::Result<T>> {
        let inner = &self.executor.0;
        let mut sources = inner.sources.borrow_mut();
        let source = &mut sources[self.key];
        while *source.is_ready(interest) {
            if !inner.wakes.schedule.may_call() {
                drop(sources);
                inner.wakes.wake(&inner.wakes.waiter(cx));
                return Poll::Pending;
            }
            match call(source.socket.as_fd()) {
                Err(Errno::AGAIN) => *source.is_ready(interest) = false,
                Err(Errno::INTR) => {}
                done => return Poll::Ready(Ok(done?)),
            }
        }
        *source.waiter(interest) = Some(self.executor.0.wakes.waiter(cx));
        Poll::Pending
    }

    /// Notes that less was moved than was asked for: there is no more until the kernel says otherwise. An end may
    /// stand behind the last bytes, though, of which it has told once and for all. So may bytes behind an urgent mark, at
    /// which the kernel cuts what it hands out: [`Executor::look_again`] finds them.
    pub fn exhausted(&self, interest: Interest) {
        let mut sources = self.executor.0.sources.borrow_mut();
        let source = &mut sources[self.key];
        source.is_doubtful |= interest == Interest::Read;
        if interest == Interest::Write || !source.hung_up {
            *source.is_ready(interest) = false;
        }
    }

    /// Whether it may be ready for more than the running task may do now.
    pub fn is_put_off(&self) -> bool {
        self.executor.0.wakes.schedule.is_spent()
    }

    /// A way to the socket for others than its owner, for as long as it is there.
    pub fn probe(&self) -> FdProbe {
        let token = self.executor.0.sources.borrow()[self.key].token;
        FdProbe { executor: self.executor.clone(), token }
    }

    /// The time, as the loop knows it.
    pub fn now(&self) -> Instant {
        self.executor.now()
    }

    /// Waits for `time` from now on.
    pub fn sleep(&self, time: Duration) -> Sleep {
        self.executor.sleep(time)
    }

    /// The socket, for calls that don't depend on its readiness.
    pub fn with<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        call(self.executor.0.sources.borrow()[self.key].socket.as_fd())
    }
}

/// A way to a socket of a loop, which its owner may have closed.
pub struct FdProbe {
    executor: Executor,
    token: Token,
}

impl FdProbe {
    /// Calls `call` with the socket, if it is there still.
    pub fn with<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        let sources = self.executor.0.sources.borrow();
        let source = sources.get(index(self.token)).filter(|source| source.token == self.token)?;
        Some(call(source.socket.as_fd()))
    }
}

impl Drop for RegisteredFd {
    fn drop(&mut self) {
        let inner = &self.executor.0;
        let Source { socket, token, .. } = inner.sources.borrow_mut().remove(self.key);
        if let Err(error) = inner.poller.borrow_mut().remove(socket, token) {
            tracing::error!(reason = &*error.to_string(), "a socket can't be removed from the poller");
        }
    }
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
