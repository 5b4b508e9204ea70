//! Ports that nobody listens at and that the kernel gives to nobody by itself: one that was bound as port 0 and let
//! go of is the next connection's, and who was told to listen there no longer can.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, process};

/// Below it are the ports of well-known services.
const FIRST: u32 = 10_000;

/// A port that is free at every address of this host, for this test alone.
pub fn unused_port() -> u16 {
    static END: OnceLock<u32> = OnceLock::new();
    // Test programs that run beside each other begin at different places.
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    let end = *END.get_or_init(first_given);
    let next = NEXT.get_or_init(|| AtomicU32::new(process::id().wrapping_mul(61)));
    let span = end.checked_sub(FIRST).expect("the kernel leaves ports to listeners");
    let mut drawn = (0..span).map(|_| FIRST + next.fetch_add(1, Ordering::Relaxed) % span);
    let port = drawn.find_map(|port| port.try_into().ok().filter(|port| is_unused(*port)));
    port.expect("a port is unused")
}

/// That port at 127.0.0.1.
pub fn unused_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, unused_port()).into()
}

/// The first port that the kernel gives to who asks for none (ip-sysctl, `ip_local_port_range`).
fn first_given() -> u32 {
    let range =
        fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("the kernel tells its range");
    range
        .split_whitespace()
        .next()
        .and_then(|first| first.parse().ok())
        .expect("the range begins with a number")
}

/// A host may have no IPv6.
fn is_unused(port: u16) -> bool {
    let addresses: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()];
    let taken =
        |address| TcpListener::bind((address, port)).is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
    !addresses.into_iter().any(taken)
}
