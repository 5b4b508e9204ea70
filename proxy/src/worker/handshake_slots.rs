//! The TLS handshakes of a worker's clients that are in flight: so many and no more. The one that has taken longest
//! gives way to a new one, so that clients who stop within theirs keep nobody else out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use tokio::sync::oneshot;

/// Those of one worker.
#[derive(Debug)]
pub struct Handshakes {
    /// The oldest first.
    in_flight: RefCell<BTreeMap<u64, oneshot::Sender<()>>>,
    begun: Cell<u64>,
    max: usize,
}

/// A handshake's place among them, for as long as it takes.
#[derive(Debug)]
pub struct HandshakeSlot<'a> {
    handshakes: &'a Handshakes,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Handshakes {
    /// Room for `max`, at least one.
    pub fn new(max: usize) -> Self {
        Self { in_flight: RefCell::default(), begun: Cell::new(0), max }
    }

    /// A place for one more; where there is none, the oldest loses its own.
    pub fn begin(&self) -> HandshakeSlot<'_> {
        let number = self.begun.get();
        self.begun.set(number + 1);
        let (keep, lost) = oneshot::channel();
        let mut in_flight = self.in_flight.borrow_mut();
        if in_flight.len() >= self.max {
            in_flight.pop_first();
        }
        in_flight.insert(number, keep);
        HandshakeSlot { handshakes: self, number, lost }
    }
}

impl HandshakeSlot<'_> {
    /// Waits until it has to give way.
    pub async fn lost(&mut self) {
        // Nothing is ever said there.
        let _ = (&mut self.lost).await;
    }
}

impl Drop for HandshakeSlot<'_> {
    fn drop(&mut self) {
        self.handshakes.in_flight.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn has_lost(place: &mut HandshakeSlot<'_>) -> bool {
        pin!(place.lost()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_oldest_gives_way_and_those_that_are_done_keep_nobody_out() {
        let handshakes = Handshakes::new(3);
        let mut places: Vec<_> = (0..3).map(|_| handshakes.begin()).collect();
        places.remove(1);
        places.push(handshakes.begin());
        assert!(!places.iter_mut().any(has_lost));
        places.extend([handshakes.begin(), handshakes.begin()]);
        let lost: Vec<_> = places.iter_mut().map(has_lost).collect();
        assert_eq!(lost, [true, true, false, false, false]);
        drop(places);
        assert!(handshakes.in_flight.borrow().is_empty());
    }
}
