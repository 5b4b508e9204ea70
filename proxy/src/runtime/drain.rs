//! How far a worker has come in stopping, for its connections to wait on. Asking costs one read of a cell;
//! no lock and no atomic, because a relay asks at every turn.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// The steps of an orderly end, in their order.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// New connections are accepted.
    #[default]
    Running,
    /// Who is there gets one more answer, and no request is taken on after it; sessions go on.
    Draining,
    /// What still runs is ended cleanly.
    Ending,
}

/// A worker's phase and the connections that wait for the next one.
#[derive(Debug, Default)]
pub struct Drain {
    phase: Cell<Phase>,
    waiting: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
}

/// A connection's place among those that wait.
#[derive(Debug)]
pub struct Watch<'a> {
    drain: &'a Drain,
    place: Option<usize>,
}

impl Drain {
    /// Goes on to `phase` and wakes whoever waits.
    pub fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.waiting.borrow().iter().flatten().for_each(Waker::wake_by_ref);
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// A place to wait in.
    pub fn watch(&self) -> Watch<'_> {
        Watch { drain: self, place: None }
    }

    /// Waits for `phase`.
    pub async fn reached(&self, phase: Phase) {
        let mut watch = self.watch();
        poll_fn(|cx| watch.poll(cx, phase)).await;
    }
}

impl Watch<'_> {
    /// Ready once `phase` is reached. The first call registers the task, the later ones only look.
    pub fn poll(&mut self, cx: &mut Context<'_>, phase: Phase) -> Poll<()> {
        if self.drain.phase.get() >= phase {
            return Poll::Ready(());
        }
        if self.place.is_none() {
            self.place = Some(self.drain.free.borrow_mut().pop().unwrap_or_else(|| self.drain.grow()));
        }
        if let Some(place) = self.place {
            let mut waiting = self.drain.waiting.borrow_mut();
            if !waiting[place].as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                waiting[place] = Some(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Drain {
    fn grow(&self) -> usize {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push(None);
        waiting.len() - 1
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.drain.waiting.borrow_mut()[place] = None;
            self.drain.free.borrow_mut().push(place);
        }
    }
}
