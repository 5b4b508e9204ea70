//! A link between two interfaces: frames that come in at one end leave at the other when the link would have carried
//! them. Rate, delay, a queue that drops what it has no room for, and losses from a seed; the rate may fade by a
//! schedule. [`Shaper`] decides and touches no socket; [`run`] moves the frames (packet(7)).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::super::wire::now;

/// One way through a link.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Way {
    /// What it carries, in Mbit/s.
    pub(crate) mbit: f64,
    /// At times it carries less.
    pub(crate) fade: Option<Fade>,
    /// What the queue holds at the full rate, in ms; a frame for which it has no room is lost.
    pub(crate) queue_ms: f64,
    /// From one end to the other, in ms.
    pub(crate) delay_ms: f64,
    /// Of all frames, how many are lost on the way.
    pub(crate) loss: f64,
    /// How many frames one loss takes, on average.
    pub(crate) burst: f64,
}

/// In each `every_s`, the first `for_s` at that rate.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Fade {
    pub(crate) every_s: f64,
    pub(crate) for_s: f64,
    pub(crate) mbit: f64,
}

/// What a link's process is told: the interfaces, and the ways from the first to the second and back.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct LinkPlan {
    pub(crate) interfaces: [String; 2],
    pub(crate) ways: [Way; 2],
    pub(crate) seed: u64,
    /// When it begins, in nanoseconds of the machine's clock: fades are due from here.
    pub(crate) epoch: u64,
}

/// Decides when a frame arrives. Times are nanoseconds from the start of the link.
struct Shaper {
    way: Way,
    rng: fastrand::Rng,
    /// When the last frame of the queue will have left it.
    free: u64,
    in_burst: bool,
}

const SECOND: f64 = 1e9;
/// Bytes by which what waits may be off.
const ROUNDING: f64 = 0.1;

impl Shaper {
    fn new(way: Way, seed: u64) -> Self {
        Self { way, rng: fastrand::Rng::with_seed(seed), free: 0, in_burst: false }
    }

    /// When a frame of so many bytes that comes `at` that time arrives; none where it is lost.
    fn arrival(&mut self, at: u64, bytes: usize) -> Option<u64> {
        if self.is_lost() || self.waiting(at) + bytes as f64 > self.queue_bytes() + ROUNDING {
            return None;
        }
        let mut left = bytes as f64 * 8.0;
        let mut time = self.free.max(at);
        // A frame may begin at one rate and end at another.
        loop {
            let (mbit, until) = self.rate(time);
            let room = (until - time) as f64 / SECOND * mbit * 1e6;
            if left <= room {
                time += (left / (mbit * 1e6) * SECOND) as u64;
                break;
            }
            (left, time) = (left - room, until);
        }
        self.free = time;
        Some(time + (self.way.delay_ms * 1e6) as u64)
    }

    /// A loss begins so seldom that all its frames together are the share that is asked for.
    fn is_lost(&mut self) -> bool {
        let Way { loss, burst, .. } = self.way;
        let goes_on = 1.0 - 1.0 / burst.max(1.0);
        let begins = loss * (1.0 - goes_on) / (1.0 - loss);
        self.in_burst = self.rng.f64() < if self.in_burst { goes_on } else { begins };
        self.in_burst
    }

    /// Bytes in the queue.
    fn waiting(&self, at: u64) -> f64 {
        let (mut bits, mut time) = (0.0, at);
        while time < self.free {
            let (mbit, until) = self.rate(time);
            bits += (until.min(self.free) - time) as f64 / SECOND * mbit * 1e6;
            time = until;
        }
        bits / 8.0
    }

    fn queue_bytes(&self) -> f64 {
        self.way.mbit * 1e6 / 8.0 * self.way.queue_ms / 1e3
    }

    /// The rate at that time, and until when it holds.
    fn rate(&self, at: u64) -> (f64, u64) {
        let Some(fade) = self.way.fade else { return (self.way.mbit, u64::MAX) };
        let (every, long) = ((fade.every_s * SECOND) as u64, (fade.for_s * SECOND) as u64);
        let start = at - at % every;
        if at - start < long { (fade.mbit, start + long) } else { (self.way.mbit, start + every) }
    }
}

/// Frames that are on their way, by the time they arrive.
type OnTheWay = BinaryHeap<Reverse<(u64, u64, usize, Vec<u8>)>>;

/// The longest frame of an Ethernet, with room for tags; larger ones were put together by an offload that is on.
const FRAME_BYTES_MAX: usize = 2048;
/// What the kernel keeps for a link that gets no turn for a while.
const SOCKET_BYTES: usize = 8 << 20;
/// Frames of one end before the other has its turn.
const TURN: usize = 64;

/// Moves frames until it is killed.
pub(crate) fn run(plan: &LinkPlan) -> io::Result<()> {
    let sockets = [open(&plan.interfaces[0])?, open(&plan.interfaces[1])?];
    let mut shapers = [0, 1].map(|end| Shaper::new(plan.ways[end], plan.seed + end as u64));
    let mut on_the_way = OnTheWay::new();
    let (start, mut count) = (plan.epoch.min(now()), 0);
    let mut frame = [0; FRAME_BYTES_MAX];
    loop {
        let time = now() - start;
        while on_the_way.peek().is_some_and(|Reverse((arrival, ..))| *arrival <= time) {
            let Some(Reverse((.., end, frame))) = on_the_way.pop() else { break };
            // A full device queue loses frames, as any link does.
            let _ = send(sockets[end].as_raw_fd(), &frame, MsgFlags::empty());
        }
        let next = on_the_way.peek().map(|Reverse((arrival, ..))| Duration::from_nanos(arrival - time));
        let mut polled = [0, 1].map(|end| PollFd::new(sockets[end].as_fd(), PollFlags::POLLIN));
        ppoll(&mut polled, next.map(TimeSpec::from), None)?;
        for end in [0, 1] {
            for _ in 0..TURN {
                let received = recvfrom::<LinkAddr>(sockets[end].as_raw_fd(), &mut frame);
                let Ok((bytes, from)) = received else { break };
                // What this very socket has sent passes by once more.
                if from.is_some_and(|from| from.pkttype() == OUTGOING) {
                    continue;
                }
                if let Some(arrival) = shapers[end].arrival(now() - start, bytes) {
                    count += 1;
                    on_the_way.push(Reverse((arrival, count, 1 - end, frame[..bytes].to_vec())));
                }
            }
        }
    }
}

/// `PACKET_OUTGOING` (packet(7)).
const OUTGOING: u8 = 4;

fn open(interface: &str) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    let named = getifaddrs()?.filter(|found| found.interface_name == interface);
    let mut addresses = named.filter_map(|found| found.address?.as_link_addr().copied());
    let address = addresses.next().ok_or_else(|| io::Error::other(format!("no interface {interface}")))?;
    setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BYTES)?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Way = Way { mbit: 12.0, fade: None, queue_ms: 100.0, delay_ms: 10.0, loss: 0.0, burst: 1.0 };

    #[test]
    fn frames_leave_one_after_the_other_at_the_rate_and_arrive_after_the_delay() {
        let mut link = Shaper::new(WAY, 1);
        assert_eq!(link.arrival(5_000_000, 1500), Some(16_000_000));
        assert_eq!(link.arrival(5_000_000, 1500), Some(17_000_000));
        assert_eq!(link.arrival(500_000_000, 750), Some(510_500_000));
    }

    #[test]
    fn what_the_queue_has_no_room_for_is_lost() {
        let mut link = Shaper::new(WAY, 1);
        assert_eq!((0..1000).filter(|_| link.arrival(0, 1500).is_some()).count(), 100);
        assert!(link.arrival(1_000_000, 1500).is_some(), "one has left");
        assert!(link.arrival(1_000_000, 1500).is_none());
    }

    #[test]
    fn the_rate_fades_and_comes_back() {
        let fade = Fade { every_s: 8.0, for_s: 2.0, mbit: 3.0 };
        let mut link = Shaper::new(Way { fade: Some(fade), delay_ms: 0.0, ..WAY }, 1);
        let ms = |nanoseconds: u64| nanoseconds * 1_000_000;
        let near = |found: Option<u64>, wanted: f64| {
            let found = found.map_or(0.0, |found| found as f64 / 1e6);
            assert!((found - wanted).abs() < 1e-3, "{found} ms, not {wanted}");
        };
        near(link.arrival(ms(500), 1500), 504.0);
        // Half of it at 3, half of it at 12 Mbit/s.
        near(link.arrival(ms(1998), 1500), 2000.5);
        near(link.arrival(ms(3000), 1500), 3001.0);
        near(link.arrival(ms(9000), 1500), 9004.0);
    }

    #[test]
    fn as_many_are_lost_as_asked_for_in_bursts_too() {
        for burst in [1.0, 4.0] {
            let mut link = Shaper::new(Way { loss: 0.05, burst, mbit: 1e6, ..WAY }, 1);
            let lost: Vec<bool> = (0..100_000).map(|_| link.arrival(0, 1).is_none()).collect();
            let count = lost.iter().filter(|lost| **lost).count();
            assert!((4_500..5_500).contains(&count), "{count}");
            let begins = lost.windows(2).filter(|two| !two[0] && two[1]).count();
            let mean = count as f64 / begins as f64;
            assert!((mean / burst - 1.0).abs() < 0.1, "bursts of {mean}, not {burst}");
        }
    }
}
