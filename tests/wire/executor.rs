//! A worker's loop with the kernel under it: what the kernel ends by itself, and what is left of a task that has ended.

use std::future::{pending, poll_fn};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use std::{cell::Cell, io};

use dcv_splice::executor::{Executor, Interest, Watched};
use dcv_splice::poller::Poller;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::crowd::many_files;

/// More than the kernel keeps events for (`COMPLETIONS` of the proxy's ring).
const CROWD: usize = 5000;
/// How long all of them may take to be heard of.
const LIMIT: Duration = Duration::from_secs(20);

/// The kernel ends polls whose events find no room.
#[test]
fn sockets_whose_events_found_no_room_are_heard_of_still() {
    many_files();
    let Ok(poller) = Poller::ring() else { return eprintln!("skipped: there is no io_uring here") };
    let executor = Executor::new(poller).unwrap();
    assert_eq!(executor.run(crowd(executor.clone())).unwrap(), CROWD);
}

/// How many of a crowd of sockets are found readable once all are.
async fn crowd(executor: Executor) -> usize {
    let (near, mut far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let watch = |_| Watched::new(&executor, near.try_clone().unwrap().into(), false).unwrap();
    let sockets: Vec<_> = (0..CROWD).map(watch).collect();
    // All can be written to, which are the events that find no room.
    executor.sleep(Duration::from_millis(100)).await;
    far.write_all(b"x").unwrap();
    let mut limit = pin!(executor.sleep(LIMIT));
    let peek = |socket: BorrowedFd<'_>| -> Result<_, Errno> { recv(socket, &mut [0; 1], RecvFlags::PEEK) };
    poll_fn(|cx| {
        let heard = sockets.iter().filter(|socket| socket.poll_io(Interest::Read, peek).is_ready()).count();
        let is_over = heard == CROWD || limit.as_mut().poll(cx).is_ready();
        if is_over { Poll::Ready(heard) } else { Poll::Pending }
    })
    .await
}

#[test]
fn a_task_is_not_woken_for_what_the_one_in_its_place_before_has_waited_for() {
    for poller in [Poller::ring as fn() -> io::Result<Poller>, Poller::epoll] {
        let Ok(poller) = poller() else { continue };
        let executor = Executor::new(poller).unwrap();
        assert_eq!(executor.run(replaced(executor.clone())).unwrap(), 1);
    }
}

/// How often a task runs that waits for nothing, in the place of one that had an alarm.
async fn replaced(executor: Executor) -> usize {
    let before = executor.clone();
    executor.spawn(async move {
        let mut alarm = pin!(before.sleep(Duration::from_millis(50)));
        poll_fn(|cx| Poll::Ready(alarm.as_mut().poll(cx).is_ready())).await;
    });
    executor.sleep(Duration::from_millis(5)).await;
    let polls = Rc::new(Cell::new(0));
    let counted = polls.clone();
    executor.spawn(async move {
        let mut rest = pin!(pending::<()>());
        poll_fn(|cx| {
            counted.set(counted.get() + 1);
            rest.as_mut().poll(cx)
        })
        .await;
    });
    executor.sleep(Duration::from_millis(200)).await;
    polls.get()
}
