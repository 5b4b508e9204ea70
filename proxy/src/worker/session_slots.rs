//! The sessions of a worker, for ending one before its time: by a command, as its user or network may no longer be here, as it
//! has lasted long enough, or with the worker. Ends nothing itself: a session watches its slot.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use crate::observe::access_log::EndReason;
use crate::runtime::drain::{Drain, Phase};

/// The slots, by the sessions' numbers.
#[derive(Debug, Default)]
pub(super) struct SessionSlots(Rc<RefCell<HashMap<u64, Rc<Slot>>>>);

#[derive(Debug)]
struct Slot {
    drain: Drain,
    reason: Cell<EndReason>,
    /// How long it may last.
    until: Option<Instant>,
}

impl Slot {
    fn end(&self, reason: EndReason) {
        if self.drain.phase() != Phase::Ending {
            self.reason.set(reason);
            self.drain.enter(Phase::Ending);
        }
    }
}

impl SessionSlots {
    /// A slot for a session that begins.
    pub(super) fn enter(&self, number: u64, until: Option<Instant>) -> SessionSlot {
        let slot = Rc::new(Slot { drain: Drain::default(), reason: Cell::new(EndReason::Drained), until });
        self.0.borrow_mut().insert(number, slot.clone());
        SessionSlot { slots: self.0.clone(), number, slot }
    }

    /// Ends a session, if it is this worker's.
    pub(super) fn end(&self, number: u64, reason: EndReason) {
        let slot = self.0.borrow().get(&number).cloned();
        if let Some(slot) = slot {
            slot.end(reason);
        }
    }

    /// Ends those that have lasted as long as they may.
    pub(super) fn end_overdue(&self, now: Instant) {
        let slots = self.0.borrow();
        let overdue = slots.values().filter(|slot| slot.until.is_some_and(|until| until <= now));
        overdue.for_each(|slot| slot.end(EndReason::MaxDuration));
    }

    /// Ends all, as the worker does.
    pub(super) fn end_all(&self) {
        self.0.borrow().values().for_each(|slot| slot.end(EndReason::Drained));
    }
}

/// The slot of one session, until it is dropped.
#[derive(Debug)]
pub(super) struct SessionSlot {
    slots: Rc<RefCell<HashMap<u64, Rc<Slot>>>>,
    number: u64,
    slot: Rc<Slot>,
}

impl SessionSlot {
    /// Goes on to [`Phase::Ending`] once the session is to end.
    pub(super) fn drain(&self) -> &Drain {
        &self.slot.drain
    }

    /// Why it was ended.
    pub(super) fn reason(&self) -> EndReason {
        self.slot.reason.get()
    }
}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        self.slots.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_session_is_ended_once_and_for_the_first_reason() {
        let (slots, now) = (SessionSlots::default(), Instant::now());
        let one = slots.enter(1, None);
        let other = slots.enter(2, Some(now + Duration::from_secs(1)));
        slots.end_overdue(now);
        slots.end(3, EndReason::EndedByOperator);
        assert_eq!((one.drain().phase(), other.drain().phase()), (Phase::Running, Phase::Running));
        slots.end_overdue(now + Duration::from_secs(1));
        assert_eq!((one.drain().phase(), other.drain().phase()), (Phase::Running, Phase::Ending));
        slots.end(1, EndReason::EndedByOperator);
        slots.end_all();
        assert_eq!((one.reason(), other.reason()), (EndReason::EndedByOperator, EndReason::MaxDuration));
        drop((one, other));
        assert!(slots.0.borrow().is_empty());
    }
}
