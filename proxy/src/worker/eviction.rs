//! The connections of a worker on which nothing is asked: before TLS, in it, within a head, between requests. When there
//! is no place for a new client, the one that has waited longest gives way. Running requests and sessions are not here.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;
use slab::Slab;

/// Turns in the queue that are over, before it is swept: then a sweep costs each turn a few steps.
const STALE_MAX: usize = 1024;

/// Those of one worker.
#[derive(Debug, Default)]
pub struct EvictionQueue(RefCell<Queue>);

#[derive(Debug, Default)]
struct Queue {
    connections: Slab<Entry>,
    /// The waiting connections, the longest wait first, among turns that are over.
    order: VecDeque<(usize, u64)>,
    turns: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// When its wait began, counted in turns; none while it does not wait.
    turn: Option<u64>,
    is_lost: bool,
    task: Option<Waker>,
}

impl Queue {
    fn begin(&mut self, key: usize) {
        if self.connections[key].is_lost {
            return;
        }
        self.turns += 1;
        self.connections[key].turn = Some(self.turns);
        self.order.push_back((key, self.turns));
        if self.order.len() > 2 * self.connections.len() + STALE_MAX {
            let Self { connections, order, .. } = self;
            order.retain(|(key, turn)| connections.get(*key).is_some_and(|entry| entry.turn == Some(*turn)));
        }
    }
}

impl EvictionQueue {
    /// A connection that waits from now on.
    pub fn enter(&self) -> EvictionEntry<'_> {
        let mut queue = self.0.borrow_mut();
        let key = queue.connections.insert(Entry::default());
        queue.begin(key);
        EvictionEntry { waiting: self, key }
    }

    /// The one that has waited longest loses its place; false where none waits.
    pub fn evict(&self) -> bool {
        let mut queue = self.0.borrow_mut();
        while let Some((key, turn)) = queue.order.pop_front() {
            let Some(entry) = queue.connections.get_mut(key).filter(|entry| entry.turn == Some(turn)) else {
                continue;
            };
            entry.turn = None;
            entry.is_lost = true;
            entry.task.take().into_iter().for_each(Waker::wake);
            return true;
        }
        false
    }
}

/// A connection's place, for as long as it lives.
#[derive(Debug)]
pub struct EvictionEntry<'a> {
    waiting: &'a EvictionQueue,
    key: usize,
}

impl EvictionEntry<'_> {
    /// It has asked for something: nobody takes its place until it waits again.
    pub fn leave(&self) {
        self.waiting.0.borrow_mut().connections[self.key].turn = None;
    }

    /// It waits again, behind the others.
    pub fn wait_again(&self) {
        self.waiting.0.borrow_mut().begin(self.key);
    }

    /// Does `work` unless the place is lost before it is done.
    pub fn hold<F: Future>(&self, work: F) -> Hold<'_, F> {
        Hold { place: self, work }
    }

    fn is_lost(&self, cx: &Context<'_>) -> bool {
        let entry = &mut self.waiting.0.borrow_mut().connections[self.key];
        if !entry.is_lost && !entry.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            entry.task = Some(cx.waker().clone());
        }
        entry.is_lost
    }
}

pin_project! {
    /// Work that ends early where its place is lost. A type of its own: an async function would hold the work twice.
    pub struct Hold<'a, F> {
        place: &'a EvictionEntry<'a>,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for Hold<'_, F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.place.is_lost(cx) { Poll::Ready(None) } else { this.work.poll(cx).map(Some) }
    }
}

impl Drop for EvictionEntry<'_> {
    fn drop(&mut self) {
        self.waiting.0.borrow_mut().connections.remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn lost(places: &[EvictionEntry<'_>]) -> Vec<bool> {
        let cx = Context::from_waker(Waker::noop());
        places.iter().map(|place| place.is_lost(&cx)).collect()
    }

    #[test]
    fn the_one_that_has_waited_longest_gives_way_and_none_that_has_asked() {
        let waiting = EvictionQueue::default();
        assert!(!waiting.evict());
        let mut places: Vec<_> = (0..4).map(|_| waiting.enter()).collect();
        places[0].leave();
        assert!(waiting.evict());
        assert_eq!(lost(&places), [false, true, false, false]);
        places[0].wait_again();
        drop(places.remove(2));
        assert!(waiting.evict() && waiting.evict() && !waiting.evict());
        assert_eq!(lost(&places), [true; 3]);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let waiting = EvictionQueue::default();
        let idle = waiting.enter();
        let busy = waiting.enter();
        for _ in 0..10 * STALE_MAX {
            busy.leave();
            busy.wait_again();
        }
        assert!(waiting.0.borrow().order.len() <= STALE_MAX + 4);
        assert!(waiting.evict());
        assert_eq!(lost(&[idle, busy]), [true, false]);
    }

    #[test]
    fn who_loses_its_place_is_woken() {
        let waiting = EvictionQueue::default();
        let place = waiting.enter();
        let mut held = pin!(place.hold(std::future::pending::<()>()));
        let woken = std::sync::Arc::new(Flag::default());
        let waker = Waker::from(woken.clone());
        assert!(held.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(waiting.evict());
        assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
        assert_eq!(held.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(None));
    }

    #[derive(Default)]
    struct Flag(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Flag {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
