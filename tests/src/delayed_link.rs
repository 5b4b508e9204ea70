//! A link of a test's own network that brings every packet after a time. Both of its ends are this host: an address that nobody
//! has stands for the other side, and what is sent to it comes back, from another one, to the address that listens.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, socket,
};
use nix::sys::time::TimeSpec;

/// `PACKET_OUTGOING` (packet(7)).
const OUTGOING: u8 = 4;
/// How long the link's thread waits at most before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of an Ethernet header, and where an IPv4 header has its length and its addresses (RFC 791).
const ETHERNET: usize = 14;
const SOURCE: usize = ETHERNET + 12;
const DESTINATION: usize = ETHERNET + 16;

/// A link. Ends when it is dropped.
pub struct DelayedLink {
    number: u8,
    delay_us: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DelayedLink {
    /// A link of that number, without delay. Wants a network of the test's own, and to be root in it.
    pub fn new(number: u8) -> Self {
        let script = "set -eu
            ip link add \"near$1\" type veth peer name \"far$1\"
            for end in near far; do
                echo 1 >\"/proc/sys/net/ipv6/conf/$end$1/disable_ipv6\" 2>/dev/null || true
                ip link set \"$end$1\" up
            done
            ip address add \"10.91.$1.1/24\" dev \"near$1\"
            ip address add \"10.91.$1.3/24\" dev \"near$1\"
            there=$(ip -o link show dev \"far$1\" | sed 's/.*ether \\([^ ]*\\).*/\\1/')
            ip neighbour replace \"10.91.$1.2\" lladdr \"$there\" dev \"near$1\"
            ip neighbour replace \"10.91.$1.4\" lladdr \"$there\" dev \"near$1\"";
        let made = Command::new("sh").args(["-c", script, "sh", &number.to_string()]).status();
        assert!(made.expect("a shell").success(), "the link can't be made");
        let socket = open(&format!("far{number}"));
        let (delay_us, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (delay, over) = (delay_us.clone(), is_over.clone());
        let thread = std::thread::spawn(move || carry(&socket, number, &delay, &over));
        Self { number, delay_us, is_over, thread: Some(thread) }
    }

    /// Where a server listens that is to be behind the link.
    pub fn listens_at(&self) -> IpAddr {
        Ipv4Addr::new(10, 91, self.number, 3).into()
    }

    /// Where it is reached through the link.
    pub fn reached_at(&self) -> IpAddr {
        Ipv4Addr::new(10, 91, self.number, 4).into()
    }

    /// Has a packet and its answer take so much longer, both together.
    pub fn delay(&self, round_trip: Duration) {
        let us = u64::try_from(round_trip.as_micros() / 2).expect("a short time");
        self.delay_us.store(us, Ordering::Relaxed);
    }
}

impl Drop for DelayedLink {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a link that carries");
        }
    }
}

fn open(interface: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).expect("root");
    let all = getifaddrs().expect("interfaces");
    let mut named = all.filter(|found| found.interface_name == interface);
    let address = named.find_map(|found| found.address?.as_link_addr().copied()).expect("the interface");
    bind(socket.as_raw_fd(), &address).expect("an interface that is up");
    socket
}

fn carry(socket: &OwnedFd, number: u8, delay_us: &AtomicU64, is_over: &AtomicBool) {
    let mut on_the_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut frame = vec![0; 1 << 16];
    while !is_over.load(Ordering::Relaxed) {
        while on_the_way.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let Some((_, frame)) = on_the_way.pop_front() else { break };
            // A full device queue loses frames, as any link does.
            let _ = send(socket.as_raw_fd(), &frame, MsgFlags::empty());
        }
        let next = on_the_way.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        let wait = next.map_or(LOOK, |next| next.min(LOOK));
        ppoll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], Some(TimeSpec::from(wait)), None)
            .expect("a socket");
        while let Ok((bytes, from)) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
            // What this very socket has sent passes by once more.
            if from.is_some_and(|from| from.pkttype() == OUTGOING) {
                continue;
            }
            if let Some(frame) = turned(&frame[..bytes], number) {
                let delay = Duration::from_micros(delay_us.load(Ordering::Relaxed));
                on_the_way.push_back((Instant::now() + delay, frame));
            }
        }
    }
}

/// The frame as it comes back: from the address that stands for its sender, to the one that listens. The sum of both addresses stays
/// the same, and with it that of the header; the sum of TCP is left to the kernel when it sends, and made here.
fn turned(frame: &[u8], number: u8) -> Option<Vec<u8>> {
    let is_tcp = frame.get(12..14) == Some(&[8, 0]) && frame.get(ETHERNET + 9) == Some(&6);
    let host = |at: usize| frame.get(at..at + 4).filter(|it| it[..3] == [10, 91, number]).map(|it| it[3]);
    let (source, destination) = match (host(SOURCE).filter(|_| is_tcp)?, host(DESTINATION)?) {
        (1, 4) => (2, 3),
        (3, 2) => (4, 1),
        _ => return None,
    };
    let mut turned = frame.to_vec();
    turned[..6].copy_from_slice(&frame[6..12]);
    turned[6..12].copy_from_slice(&frame[..6]);
    (turned[SOURCE + 3], turned[DESTINATION + 3]) = (source, destination);
    let header = usize::from(frame[ETHERNET] & 15) * 4;
    let length = usize::from(u16::from_be_bytes([frame[ETHERNET + 2], frame[ETHERNET + 3]]));
    let segment = ETHERNET + header..ETHERNET + length.min(frame.len() - ETHERNET);
    turned[segment.start + 16..segment.start + 18].fill(0);
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum()
    };
    let pseudo = words(&turned[SOURCE..SOURCE + 8]) + 6 + u32::try_from(segment.len()).ok()?;
    let mut sum = pseudo + words(&turned[segment.clone()]);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).ok()?;
    turned[segment.start + 16..segment.start + 18].copy_from_slice(&sum.to_be_bytes());
    Some(turned)
}
