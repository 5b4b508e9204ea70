//! The loop on real sockets and timers: what wakes whom, in which order, and what is left at the end.

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
        assert_eq!(executor.0.timers.borrow().next(), None, "a timer goes with its wait");
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
    let inbox_puts = run(|executor| async move {
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
        executor.0.wakes.inbox_puts()
    });
    assert_eq!(inbox_puts, 0, "wakes that went through the inbox");
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
