//! A worker's loop: collects the kernel's events, runs the tasks in the order of [`Schedule`], keeps their timers. A wait
//! wakes whoever polled it, by the waker of its `Context`, so that futures within a task that are polled one by one
//! (`FuturesUnordered`, `h2`) work. One thread, no lock: only a wake from another thread goes through one.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use slab::Slab;

use crate::runtime::event::{Event, Token};
use crate::runtime::poller::Poller;
use crate::runtime::scheduler::{Class, Schedule, TaskId};
use crate::runtime::timers::{TimerKey, Timers};

type Task = Pin<Box<dyn Future<Output = ()>>>;

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
    schedule: Schedule,
    tasks: RefCell<Slab<Option<(Task, Waker)>>>,
    poller: RefCell<Poller>,
    sources: RefCell<Slab<Source>>,
    generation: Cell<u32>,
    timers: RefCell<Timers<Waiter>>,
    now: Cell<Instant>,
    inbox: Arc<Inbox>,
    /// Tells the running task's own waker from those within it; nothing is ever read by it.
    own_waker: Cell<*const ()>,
    /// The class of the part that is being woken.
    part_class: Cell<Option<Class>>,
    /// Parts that wait for their task's turn to move bulk.
    bulk_parts: RefCell<Vec<(TaskId, Waker)>>,
}

/// Who is woken: a task, which costs nothing to note, or a part of one.
#[derive(Clone, Debug)]
enum Waiter {
    Task(TaskId),
    Part(Waker),
}

thread_local! {
    /// The loop that runs on this thread: a wake that comes from it needs no lock and no system call.
    static RUNNING: RefCell<Option<Executor>> = const { RefCell::new(None) };
}

/// Makes a loop the one that runs on this thread, until it is dropped.
struct Running(Option<Executor>);

impl Running {
    fn begin(executor: &Executor) -> Self {
        Self(RUNNING.replace(Some(executor.clone())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(self.0.take());
    }
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
    /// Who waits for bytes, and who for room.
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

/// Wakes from other threads.
#[derive(Debug)]
struct Inbox {
    woken: Mutex<Vec<TaskId>>,
    wakeup_fd: OwnedFd,
}

impl Inbox {
    fn put(&self, task: TaskId) {
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
        let is_done = on_own_loop(&self.inbox, |inner| match inner.part_class.get() {
            Some(class) => inner.schedule.wake_as(self.task, class),
            None => inner.schedule.wake(self.task),
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
        let is_done = on_own_loop(&self.inbox, |inner| {
            let before = inner.part_class.replace(Some(self.class));
            self.parent.wake_by_ref();
            inner.part_class.set(before);
        });
        if !is_done {
            self.parent.wake_by_ref();
        }
    }
}

/// Does `what` with the loop of that inbox, if it is the one that runs on this thread.
fn on_own_loop(inbox: &Arc<Inbox>, what: impl FnOnce(&Inner)) -> bool {
    let done = RUNNING.try_with(|running| {
        let running = running.borrow();
        let own = running.as_ref().filter(|executor| Arc::ptr_eq(&executor.0.inbox, inbox));
        own.map(|executor| what(&executor.0)).is_some()
    });
    done.unwrap_or(false)
}

/// The inbox's eventfd among the tokens; sockets count from 0.
const INBOX: Token = Token(u32::MAX as u64);

impl Executor {
    /// A loop for the calling thread.
    pub fn new(mut poller: Poller) -> io::Result<Self> {
        let wakeup_fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        poller.add(wakeup_fd.as_fd(), INBOX)?;
        let inbox = Arc::new(Inbox { woken: Mutex::default(), wakeup_fd });
        Ok(Self(Rc::new(Inner {
            schedule: Schedule::default(),
            tasks: RefCell::default(),
            poller: RefCell::new(poller),
            sources: RefCell::default(),
            generation: Cell::new(0),
            timers: RefCell::default(),
            now: Cell::new(Instant::now()),
            inbox,
            own_waker: Cell::new(std::ptr::null()),
            part_class: Cell::new(None),
            bulk_parts: RefCell::default(),
        })))
    }

    /// Runs `main` to its end, and what it spawns meanwhile. What is left then is dropped.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> io::Result<T> {
        let _running = Running::begin(self);
        let result = Rc::new(Cell::new(None));
        let kept = result.clone();
        self.spawn(async move { kept.set(Some(main.await)) });
        let mut events = Vec::new();
        loop {
            self.0.schedule.round(|task| self.poll(task));
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
        let waker = Waker::from(Arc::new(TaskWaker { task, inbox: self.0.inbox.clone() }));
        slot.insert(Some((Box::pin(future), waker)));
        self.0.schedule.add(task);
    }

    /// Notes what the running task does from here on.
    pub fn set_class(&self, class: Class) {
        self.0.schedule.set_class(class);
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
                    let (parent, inbox) = (cx.waker().clone(), self.0.inbox.clone());
                    (parent.clone(), Waker::from(Arc::new(PartWaker { parent, class, inbox })))
                });
            let polled =
                self.0.schedule.within(class, || part.as_mut().poll(&mut Context::from_waker(&waker)));
            own = Some((cx.waker().clone(), waker));
            polled
        })
        .await
    }

    /// Whether the running task may move bulk now. If not, whoever polled is woken when it may.
    pub fn may_move_bulk(&self, cx: &Context<'_>) -> bool {
        if self.0.schedule.may_move_bulk() {
            return true;
        }
        if let Waiter::Part(waker) = self.waiter(cx) {
            self.0.bulk_parts.borrow_mut().push((self.0.schedule.current(), waker));
        }
        false
    }

    /// Who waits here: the running task itself, or a part of it that has a waker of its own.
    fn waiter(&self, cx: &Context<'_>) -> Waiter {
        if cx.waker().data() == self.0.own_waker.get() {
            Waiter::Task(self.0.schedule.current())
        } else {
            Waiter::Part(cx.waker().clone())
        }
    }

    fn wake(&self, waiter: &Waiter) {
        match waiter {
            Waiter::Task(task) => self.0.schedule.wake(*task),
            Waiter::Part(waker) => waker.wake_by_ref(),
        }
    }

    /// Whether nobody waits but the task that runs, as far as can be known without a system call.
    pub fn is_idle(&self) -> bool {
        self.0.schedule.is_idle() && !self.0.poller.borrow_mut().has_events()
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
            self.wake(&self.waiter(cx));
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
        if self.0.schedule.is_bulk_turn() {
            self.wake_bulk_parts(id);
        }
        self.0.own_waker.set(waker.data());
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut()[id] = Some((task, waker));
            return;
        }
        drop(task);
        self.0.tasks.borrow_mut().remove(id);
        self.0.bulk_parts.borrow_mut().retain(|(task, _)| *task != id);
        self.0.schedule.remove(id);
    }

    fn wake_bulk_parts(&self, id: TaskId) {
        let mut parts = self.0.bulk_parts.borrow_mut();
        let due: Vec<_> = parts.extract_if(.., |(task, _)| *task == id).collect();
        drop(parts);
        due.iter().for_each(|(_, waker)| waker.wake_by_ref());
    }

    /// Takes in what has happened; where nobody is ready, waits for it.
    fn collect(&self, events: &mut Vec<Event>) -> io::Result<()> {
        let is_idle = self.0.schedule.is_idle();
        let mut poller = self.0.poller.borrow_mut();
        if is_idle || poller.has_events() {
            let limit = if is_idle { self.next_timer() } else { Some(Duration::ZERO) };
            poller.wait(limit, events)?;
        }
        drop(poller);
        self.0.now.set(Instant::now());
        self.fire_timers();
        events.drain(..).try_for_each(|event| self.note(event))
    }

    fn note(&self, event: Event) -> io::Result<()> {
        if event.token == INBOX {
            self.0.inbox.take().into_iter().for_each(|task| self.0.schedule.wake(task));
            if event.ended {
                self.0.poller.borrow_mut().add(self.0.inbox.wakeup_fd.as_fd(), INBOX)?;
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
        waiters.iter().flatten().for_each(|waiter| self.wake(waiter));
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
        waiters.iter().for_each(|waiter| self.wake(waiter));
    }

    fn next_timer(&self) -> Option<Duration> {
        // Counted from when the round began, which saves a look at the clock: timers are late by a round at the most.
        self.0.timers.borrow().next().map(|time| time.saturating_duration_since(self.now()))
    }

    fn fire_timers(&self) {
        loop {
            let fired = self.0.timers.borrow_mut().take(self.now());
            let Some(waiter) = fired else { return };
            self.wake(&waiter);
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
    /// The timer, and the waker that it is for.
    timer: Option<(TimerKey, *const ())>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let inner = self.executor.0.clone();
        if self.deadline <= inner.now.get() {
            return Poll::Ready(());
        }
        let waker = cx.waker().data();
        let key = match self.timer {
            Some((_, known)) if known == waker => return Poll::Pending,
            Some((key, _)) => {
                inner.timers.borrow_mut().change(key, self.executor.waiter(cx));
                key
            }
            None => inner.timers.borrow_mut().add(self.deadline, self.executor.waiter(cx)),
        };
        self.timer = Some((key, waker));
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
    /// calls waits for its next run ([`Schedule::may_call`]).
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
            if !inner.schedule.may_call() {
                drop(sources);
                self.executor.wake(&self.executor.waiter(cx));
                return Poll::Pending;
            }
            match call(source.socket.as_fd()) {
                Err(Errno::AGAIN) => *source.is_ready(interest) = false,
                Err(Errno::INTR) => {}
                done => return Poll::Ready(Ok(done?)),
            }
        }
        *source.waiter(interest) = Some(self.executor.waiter(cx));
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
        self.executor.0.schedule.is_spent()
    }

    /// The socket, for calls that don't depend on its readiness.
    pub fn with<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        call(self.executor.0.sources.borrow()[self.key].socket.as_fd())
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
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use futures_util::stream::FuturesUnordered;
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::runtime::scheduler;

    fn run<T: 'static, F: Future<Output = T> + 'static>(main: impl FnOnce(Executor) -> F) -> T {
        run_on(Poller::epoll(), main)
    }

    fn run_on<T: 'static, F: Future<Output = T> + 'static>(
        poller: io::Result<Poller>,
        main: impl FnOnce(Executor) -> F,
    ) -> T {
        let _bound = Bound::new();
        let executor = Executor::new(poller.expect("a poller")).expect("a loop");
        executor.run(main(executor.clone())).expect("a poller that works")
    }

    /// A loop that stands still ends the tests, which would hang otherwise.
    struct Bound(#[expect(dead_code, reason = "its end is what is heard")] std::sync::mpsc::Sender<()>);

    impl Bound {
        const LIMIT: Duration = Duration::from_mins(1);

        fn new() -> Self {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            std::thread::spawn(move || {
                if ended.recv_timeout(Self::LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    eprintln!("{name}: the loop did not end within {:?}", Self::LIMIT);
                    std::process::abort();
                }
            });
            Self(end)
        }
    }

    /// A watched socket, and the other end of it.
    fn watched(executor: &Executor) -> (RegisteredFd, UnixStream) {
        let (near, far) = UnixStream::pair().expect("a pair");
        near.set_nonblocking(true).expect("a socket");
        (RegisteredFd::new(executor, near.into(), false).expect("a socket"), far)
    }

    async fn byte(socket: &RegisteredFd) -> u8 {
        let mut byte = [0];
        poll_fn(|cx| socket.poll_io(cx, Interest::Read, |socket| rustix::io::read(socket, &mut byte)))
            .await
            .expect("a byte");
        byte[0]
    }

    #[test]
    fn a_wake_from_another_thread_is_heard_while_the_loop_sleeps() {
        let heard = run(|_| async {
            let (say, hear) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                say.send(42)
            });
            hear.await
        });
        assert_eq!(heard, Ok(42));
    }

    #[test]
    fn a_task_whose_socket_is_always_ready_keeps_neither_its_own_timer_nor_others_waiting() {
        const BYTES: usize = 50_000;
        let (rounds, read) = run(|executor| async move {
            let (socket, mut far) = watched(&executor);
            far.write_all(&vec![1; BYTES]).expect("room");
            let read = Rc::new(Cell::new(0));
            let counted = read.clone();
            executor.spawn(async move {
                loop {
                    byte(&socket).await;
                    counted.set(counted.get() + 1);
                }
            });
            let mut rounds = 0;
            while read.get() < BYTES / 2 {
                executor.yield_now().await;
                rounds += 1;
            }
            (rounds, read.get())
        });
        assert!(rounds >= read / scheduler::SETUP_CALLS as usize, "{rounds} rounds for {read} calls");
        let is_timed_out = run(|executor| async move {
            let (socket, mut far) = watched(&executor);
            far.write_all(&vec![1; BYTES]).expect("room");
            let mut limit = Box::pin(executor.sleep(Duration::ZERO));
            let mut always = Box::pin(async {
                for _ in 0..BYTES {
                    byte(&socket).await;
                }
            });
            poll_fn(|cx| match always.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(false),
                Poll::Pending => limit.as_mut().poll(cx).map(|()| true),
            })
            .await
        });
        assert!(is_timed_out, "it read to the end without a look at its limit");
    }

    #[test]
    fn timers_fire_in_their_order_and_those_dropped_never() {
        let order = run(|executor| async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            for wait in [30, 10, 20] {
                let (after, order) = (executor.clone(), order.clone());
                executor.spawn(async move {
                    after.sleep(Duration::from_millis(wait)).await;
                    order.borrow_mut().push(wait);
                });
            }
            let mut dropped = Box::pin(executor.sleep(Duration::from_millis(1)));
            poll_fn(|cx| Poll::Ready(dropped.as_mut().poll(cx).is_ready())).await;
            drop(dropped);
            executor.sleep(Duration::from_millis(100)).await;
            assert_eq!(executor.0.timers.borrow().next(), None);
            order.take()
        });
        assert_eq!(order, [10, 20, 30]);
    }

    #[test]
    fn a_task_that_turns_to_something_else_is_not_woken_for_what_it_has_waited_for() {
        let polls = run(|executor| async move {
            let mut before = Box::pin(executor.sleep(Duration::from_millis(5)));
            poll_fn(|cx| Poll::Ready(before.as_mut().poll(cx).is_ready())).await;
            drop(before);
            executor.set_class(Class::Session);
            let mut after = Box::pin(executor.sleep(Duration::from_millis(30)));
            let mut polls = 0;
            poll_fn(|cx| {
                polls += 1;
                after.as_mut().poll(cx)
            })
            .await;
            polls
        });
        assert_eq!(polls, 2, "the first and the last");
    }

    /// Futures within a task that are polled one by one are woken by wakers of their own.
    #[test]
    fn each_of_many_waits_within_a_task_is_woken_by_what_it_waits_for() {
        let got = run(|executor| async move {
            let mut ends = Vec::new();
            let waits = FuturesUnordered::new();
            for _ in 0..8 {
                let (socket, far) = watched(&executor);
                ends.push(far);
                waits.push(async move { byte(&socket).await }.boxed_local());
            }
            let timer = executor.clone();
            waits.push(
                async move {
                    timer.sleep(Duration::from_millis(30)).await;
                    timer.yield_now().await;
                    b't'
                }
                .boxed_local(),
            );
            std::thread::spawn(move || {
                for (number, far) in (0..8).zip(&mut ends).rev() {
                    std::thread::sleep(Duration::from_millis(1));
                    far.write_all(&[number]).expect("room");
                }
                std::thread::sleep(Duration::from_millis(100));
            });
            waits.collect::<Vec<u8>>().await
        });
        assert_eq!(got, [7, 6, 5, 4, 3, 2, 1, 0, b't']);
    }

    /// It would be told to start again and nobody would hear it: the run ends before its turn comes.
    #[test]
    fn a_wait_within_a_task_that_has_used_up_its_calls_goes_on_in_the_next_run() {
        const BYTES: usize = 1000;
        let read = run(|executor| async move {
            let (socket, mut far) = watched(&executor);
            far.write_all(&[1; BYTES]).expect("room");
            let mut waits = FuturesUnordered::new();
            waits.push(async {
                for _ in 0..BYTES {
                    byte(&socket).await;
                }
            });
            waits.next().await
        });
        assert_eq!(read, Some(()));
    }

    #[test]
    fn of_two_timers_of_a_task_the_one_that_is_left_fires() {
        run(|executor| async move {
            let mut limit = pin!(executor.sleep(Duration::from_millis(20)));
            poll_fn(|cx| Poll::Ready(limit.as_mut().poll(cx).is_ready())).await;
            {
                let mut shorter = pin!(executor.sleep(Duration::from_millis(1)));
                poll_fn(|cx| Poll::Ready(shorter.as_mut().poll(cx).is_ready())).await;
                executor.set_class(Class::Session);
            }
            limit.await;
            assert_eq!(executor.0.timers.borrow().next(), None);
        });
    }

    #[test]
    fn a_timer_that_changes_hands_wakes_who_has_it_now() {
        run(|executor| async move {
            let mut sleep = Box::pin(executor.sleep(Duration::from_millis(5)));
            poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx).is_ready())).await;
            executor.spawn(sleep);
            let mut other = Box::pin(executor.sleep(Duration::from_millis(5)));
            poll_fn(|cx| Poll::Ready(other.as_mut().poll(cx).is_ready())).await;
            let mut waits = FuturesUnordered::new();
            waits.push(other);
            waits.next().await
        });
    }

    #[test]
    fn a_wake_from_the_same_thread_takes_no_lock_and_no_system_call() {
        let rung = run(|executor| async move {
            let (say, mut hear) = tokio::sync::mpsc::unbounded_channel();
            let yields = executor.clone();
            executor.spawn(async move {
                for number in 0..10 {
                    say.send(number).expect("somebody who hears");
                    yields.yield_now().await;
                }
            });
            let mut heard = 0;
            while hear.recv().await.is_some() {
                heard += 1;
            }
            assert_eq!(heard, 10);
            rustix::io::read(&executor.0.inbox.wakeup_fd, &mut [0; 8])
        });
        assert_eq!(rung, Err(Errno::AGAIN), "its eventfd was written to");
    }

    #[test]
    fn a_part_of_a_task_has_its_turn_in_the_queue_of_its_class() {
        let order = run(|executor| async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            let (say, hear) = tokio::sync::watch::channel(false);
            let part = |name: &'static str, class| {
                let (executor, order, mut hear) = (executor.clone(), order.clone(), hear.clone());
                let work = executor.clone();
                executor.spawn(async move {
                    let part = async {
                        hear.wait_for(|said| *said).await.map(drop).expect("somebody who says it");
                        order.borrow_mut().push(name);
                    };
                    let mut parts = FuturesUnordered::new();
                    parts.push(work.with_class(class, part));
                    parts.next().await;
                });
            };
            part("set-up", Class::Setup);
            part("session", Class::Session);
            executor.sleep(Duration::from_millis(5)).await;
            say.send_replace(true);
            executor.sleep(Duration::from_millis(5)).await;
            order.take()
        });
        assert_eq!(order, ["session", "set-up"]);
    }

    #[test]
    fn who_yields_lets_the_others_run_first() {
        let order = run(|executor| async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            for task in 0..3 {
                let (yielding, order) = (executor.clone(), order.clone());
                executor.spawn(async move {
                    for _ in 0..2 {
                        order.borrow_mut().push(task);
                        yielding.yield_now().await;
                    }
                });
            }
            executor.sleep(Duration::from_millis(20)).await;
            order.take()
        });
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    /// Where the kernel does its part only when it is asked to (`IORING_SETUP_DEFER_TASKRUN`), a loop that never
    /// waits has to ask as well.
    #[test]
    fn a_loop_that_is_never_idle_hears_of_its_sockets() {
        for poller in [Poller::ring(), Poller::epoll()] {
            let got = run_on(poller, |executor| async move {
                let (socket, mut far) = watched(&executor);
                let busy = executor.clone();
                executor.spawn(async move {
                    loop {
                        busy.yield_now().await;
                    }
                });
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(20));
                    far.write_all(b"x").map(|()| far)
                });
                byte(&socket).await
            });
            assert_eq!(got, b'x');
        }
    }

    #[test]
    fn what_has_happened_to_a_socket_is_not_told_to_the_one_that_takes_its_place() {
        for poller in [Poller::ring(), Poller::epoll()] {
            run_on(poller, |executor| async move {
                let (before, mut far) = watched(&executor);
                let name = |socket: &RegisteredFd| executor.0.sources.borrow()[socket.key].token;
                let (key, token) = (before.key, name(&before));
                // Its news is there, but not collected yet.
                executor.sleep(Duration::from_millis(1)).await;
                far.write_all(b"x").expect("room");
                drop(before);
                let (after, _far) = watched(&executor);
                assert_eq!(after.key, key);
                // The kernel may still speak of the one before, which is closed only then.
                assert_ne!(name(&after), token);
                executor.sleep(Duration::from_millis(5)).await;
                let mut calls = 0;
                let polled = after.poll_io(&Context::from_waker(Waker::noop()), Interest::Read, |_| {
                    calls += 1;
                    Err::<(), _>(Errno::AGAIN)
                });
                assert!(polled.is_pending() && calls == 0, "it was told that it is readable");
            });
        }
    }

    #[test]
    fn a_call_that_a_signal_interrupts_is_made_again() {
        run(|executor| async move {
            let (near, _far) = UnixStream::pair().expect("a pair");
            let socket = RegisteredFd::new(&executor, near.into(), true).expect("a socket");
            let mut results = [Err(Errno::INTR), Err(Errno::INTR), Ok(7)].into_iter();
            let call = |_: BorrowedFd<'_>| results.next().expect("no more calls");
            assert!(matches!(
                socket.poll_io(&Context::from_waker(Waker::noop()), Interest::Read, call),
                Poll::Ready(Ok(7))
            ));
        });
    }

    #[test]
    fn what_is_left_at_the_end_is_dropped() {
        let kept = Rc::new(());
        let held = kept.clone();
        run(|executor| async move {
            executor.spawn(async move {
                std::future::pending::<()>().await;
                drop(held);
            });
            executor.sleep(Duration::from_millis(5)).await;
        });
        assert_eq!(Rc::strong_count(&kept), 1);
    }

    /// It does so where events find no room, for one (`IORING_CQE_F_MORE`, `io_uring_enter(2)`).
    #[test]
    fn a_socket_whose_poll_the_kernel_has_ended_is_heard_of_still() {
        let got = run_on(Poller::ring(), |executor| async move {
            let (socket, mut far) = watched(&executor);
            let token = executor.0.sources.borrow()[socket.key].token;
            executor.sleep(Duration::from_millis(1)).await;
            let same = socket.with(|socket| socket.try_clone_to_owned()).expect("a descriptor");
            executor.0.poller.borrow_mut().remove(same, token).expect("a poll");
            executor.sleep(Duration::from_millis(5)).await;
            let ended = Event { ended: true, ..Event::new(token, 0) };
            executor.note(ended).expect("another poll");
            executor.sleep(Duration::from_millis(1)).await;
            far.write_all(b"x").expect("room");
            byte(&socket).await
        });
        assert_eq!(got, b'x');
    }
}
