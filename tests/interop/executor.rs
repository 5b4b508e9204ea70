//! A worker's loop with the kernel under it: what is left of a task that has ended.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use dcv_splice::runtime::executor::Executor;
use dcv_splice::runtime::poller::Poller;
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
