//! How much of one direction may stand in the proxy and its sockets: what the receiver drains in a named time, and what
//! the way to the sender needs to be filled. The rate is what the receiver has taken while it was all that was waited
//! for. Pure: it is told of bytes and times, and touches no socket and no clock.

use std::time::{Duration, Instant};

use crate::observe::side::Side;
use crate::transport::receive_window::segments;
use crate::transport::stream::Route;

/// Bounds of one direction, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct QueueBounds {
    /// Taken by the kernel for the receiver and not sent yet; also what one receive may take in.
    pub(crate) unsent: usize,
    /// What the sender may have on its way to the proxy and unread in it: the receive window. None where nothing is known
    /// of that way.
    pub(crate) unread: Option<usize>,
}

/// The standing queue of one direction.
#[derive(Debug)]
pub(crate) struct Queue {
    target: Duration,
    /// The way to the sender.
    route: Option<Route>,
    bounds: QueueBounds,
    /// Bytes a second that the receiver takes, as far as it was seen.
    rate: Option<u64>,
    /// When and at how many bytes in all the running sample began.
    since: Option<(Instant, u64)>,
    /// The sender had nothing in between: the sample says less than the receiver can take.
    is_starved: bool,
}

/// Of a session that has not shown what its sides can do: as large as the first window of an agent's connection.
const START: usize = 32 * 1024;
/// Less makes each send a part of a TLS record, and a queue of the kernel's empty before it is filled again.
const UNSENT_MIN: usize = 16 * 1024;
/// More makes no flood cheaper; it is what the kernel holds at most for a side that takes nothing.
const UNSENT_MAX: usize = 1024 * 1024;
/// A few segments of an Ethernet; where they are longer, no less than [`segments`].
const UNREAD_MIN: usize = 16 * 1024;
/// Over a gigabit a second at a round trip of 5 ms; on loopback less makes a flood dearer.
pub(crate) const UNREAD_MAX: usize = 1024 * 1024;
/// Receivers take in bursts, and a kernel swallows what fits before it sends: a shorter sample tells of one of them.
const SAMPLE: Duration = Duration::from_millis(20);
/// Round trips of the sender's way that its window holds: it has to be reopened before it is used up, and to let the rate
/// grow.
const ROUND_TRIPS: u32 = 4;
/// Without a receiver that holds back, the sample ends once so many windows have come.
const WINDOWS: u64 = 4;
/// Of a receiver that takes next to nothing.
const DRAIN_TIME_MAX: Duration = Duration::from_mins(1);
/// Bounds that differ by less than one part in so many are left as they are: each is a system call.
const STEP: usize = 4;

impl Queue {
    /// One that is empty. `target`: the time in which the receiver should be able to take all that stands. A client's window
    /// is left to the kernel until the agent holds back.
    pub(crate) fn new(target: Duration, sender: Side, route: Option<Route>) -> Self {
        let route_of_agent = route.filter(|_| sender == Side::Agent);
        let unread = route_of_agent.map(|route| START.max(segments(route.segment)));
        let bounds = QueueBounds { unsent: START, unread };
        Self { target, route, bounds, rate: None, since: None, is_starved: true }
    }

    /// What holds now.
    pub(crate) fn bounds(&self) -> QueueBounds {
        self.bounds
    }

    /// How long the receiver needs to take so many bytes.
    pub(crate) fn drain_time(&self, bytes: u64) -> Duration {
        let rate = self.rate.unwrap_or_default().max(1);
        let micros = u128::from(bytes) * 1_000_000 / u128::from(rate);
        Duration::from_micros(micros.try_into().unwrap_or(u64::MAX)).min(DRAIN_TIME_MAX)
    }

    /// The sender has nothing for now.
    pub(crate) fn starve(&mut self) {
        self.is_starved = true;
    }

    /// Whether so many bytes in all have come that the sample ends without a receiver that holds back.
    pub(crate) fn is_full_sample(&self, moved: u64) -> bool {
        let begun = self.since.map_or(0, |(_, begun)| begun);
        self.bounds.unread.is_some_and(|unread| moved - begun >= WINDOWS * unread as u64)
    }

    /// Looks at how far it has come; `moved`: bytes in all. `is_blocked`: the receiver takes no more for now. Gives bounds
    /// to set: those that have changed, and with a receiver that holds back also those that have not, once a sample.
    pub(crate) fn look(&mut self, now: Instant, moved: u64, is_blocked: bool) -> Option<QueueBounds> {
        let Some((since, before)) = self.since else {
            self.since = Some((now, moved));
            self.is_starved = !is_blocked;
            return None;
        };
        let took = now.duration_since(since);
        if took < SAMPLE {
            return None;
        }
        let sample = per_second(moved - before, took);
        // What was not held back by the receiver can only show that it takes more.
        let is_whole = is_blocked && !self.is_starved;
        self.rate = Some(match self.rate {
            Some(rate) if is_whole => rate.midpoint(sample),
            Some(rate) => rate.max(sample),
            None => sample,
        });
        self.since = Some((now, moved));
        self.is_starved = !is_blocked;
        let (old, new) = (self.bounds, self.wanted(is_blocked));
        let has_changed =
            differs(old.unsent, new.unsent) || differs(old.unread.unwrap_or(0), new.unread.unwrap_or(0));
        if has_changed {
            self.bounds = new;
        }
        // A window becomes smaller by steps, each of which has to be asked for.
        (has_changed || is_blocked).then_some(self.bounds)
    }

    fn wanted(&self, is_blocked: bool) -> QueueBounds {
        let drained = |time: Duration| drained(self.rate.unwrap_or_default(), time);
        // Only a receiver that holds back lowers what may stand.
        let floor = |bytes: usize, old: usize| if is_blocked { bytes } else { bytes.max(old) };
        let unsent = drained(self.target / 2).clamp(UNSENT_MIN, UNSENT_MAX);
        let unread = self.route.map(|Route { round_trip, segment }| {
            let window = drained(self.target / 4) + drained(round_trip * ROUND_TRIPS);
            floor(
                window.clamp(UNREAD_MIN, UNREAD_MAX).max(segments(segment)),
                self.bounds.unread.unwrap_or(0),
            )
        });
        QueueBounds { unsent: floor(unsent, self.bounds.unsent), unread }
    }
}

/// Where it is more than can be counted, it is as much as can be.
fn per_second(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

fn drained(rate: u64, time: Duration) -> usize {
    let bytes = u128::from(rate) * time.as_micros() / 1_000_000;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn differs(one: usize, other: usize) -> bool {
    one.abs_diff(other) > one.min(other) / STEP
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(20);
    const LAN: Route = Route { round_trip: Duration::from_micros(200), segment: 1448 };

    /// A receiver that takes so many bytes a second and is behind all the time, for so many ms.
    fn drains(queue: &mut Queue, (now, moved): &mut (Instant, u64), rate: u64, ms: u64) {
        for _ in 0..ms {
            *now += Duration::from_millis(1);
            *moved += rate / 1000;
            queue.look(*now, *moved, true);
        }
    }

    #[test]
    fn what_stands_is_what_the_receiver_drains_in_the_target_time() {
        let (mut queue, mut at) = (Queue::new(TARGET, Side::Agent, Some(LAN)), (Instant::now(), 0));
        drains(&mut queue, &mut at, 10_000_000, 1000);
        let QueueBounds { unsent, unread: Some(unread) } = queue.bounds() else { panic!("no window") };
        assert!((90_000..=110_000).contains(&unsent), "{unsent}");
        assert!((50_000..=70_000).contains(&unread), "{unread}");
        drains(&mut queue, &mut at, 400_000, 200);
        let QueueBounds { unsent, unread } = queue.bounds();
        assert!(unsent < UNSENT_MIN * 5 / 4 && unread.is_some_and(|unread| unread < UNREAD_MIN * 5 / 4));
        drains(&mut queue, &mut at, 10_000_000, 200);
        assert!(queue.bounds().unsent > 80_000, "{:?}", queue.bounds());
        drains(&mut queue, &mut at, 10_000_000_000, 200);
        assert_eq!(queue.bounds(), QueueBounds { unsent: UNSENT_MAX, unread: Some(UNREAD_MAX) });
        let mut near = Queue::new(TARGET, Side::Agent, Some(Route { round_trip: Duration::ZERO, ..LAN }));
        drains(&mut near, &mut at, 10_000_000_000, 200);
        assert_eq!(near.bounds().unread, Some(UNREAD_MAX));
    }

    #[test]
    fn a_sender_with_little_to_say_does_not_make_the_receiver_look_slow() {
        let (mut queue, mut at) = (Queue::new(TARGET, Side::Agent, Some(LAN)), (Instant::now(), 0));
        drains(&mut queue, &mut at, 10_000_000, 1000);
        let before = queue.bounds();
        for _ in 0..2500 {
            queue.starve();
            drains(&mut queue, &mut at, 100_000, 1);
        }
        assert_eq!(queue.bounds(), before);
    }

    #[test]
    fn the_window_opens_for_a_far_sender_while_the_receiver_keeps_up() {
        let far = Duration::from_millis(5);
        let (mut queue, mut now, mut moved) =
            (Queue::new(TARGET, Side::Agent, Some(Route { round_trip: far, ..LAN })), Instant::now(), 0);
        // A window each round trip is all that comes.
        for _ in 0..200 {
            now += far;
            moved += queue.bounds().unread.unwrap_or(0) as u64;
            queue.starve();
            if queue.is_full_sample(moved) {
                queue.look(now, moved, false);
            }
        }
        assert_eq!(queue.bounds().unread, Some(UNREAD_MAX));
    }

    /// On loopback a segment has 64 KiB.
    #[test]
    fn the_window_holds_some_segments_however_slow_the_receiver() {
        let segment = 65_483;
        let (mut queue, mut at) =
            (Queue::new(TARGET, Side::Agent, Some(Route { segment, ..LAN })), (Instant::now(), 0));
        assert_eq!(queue.bounds().unread, Some(4 * segment));
        drains(&mut queue, &mut at, 100_000, 1000);
        assert_eq!(queue.bounds().unread, Some(4 * segment));
    }

    #[test]
    fn the_window_stays_where_a_near_sender_does_not_use_it() {
        let (mut queue, mut now, mut moved) = (Queue::new(TARGET, Side::Agent, Some(LAN)), Instant::now(), 0);
        for _ in 0..6000 {
            now += Duration::from_millis(16);
            moved += 30_000;
            queue.starve();
            if queue.is_full_sample(moved) {
                queue.look(now, moved, false);
            }
        }
        assert_eq!(queue.bounds(), QueueBounds { unsent: START, unread: Some(START) });
    }
}
