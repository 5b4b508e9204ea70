//! Congestion control by name, for one leg (`TCP_CONGESTION`, tcp(7)): whether the kernel lets a process without
//! capabilities use one, and which one it uses by itself. The kernel is asked by a socket, as `/proc` does not tell what a
//! network namespace may do. Uses no other file.

use std::io;

use rustix::net::sockopt::{set_tcp_congestion, tcp_congestion};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// Tries `name` on a socket, in a thread that has no capability. Fails where the kernel does not know it, or has it for
/// the administrator alone.
pub fn try_without_capabilities(name: &str) -> io::Result<()> {
    let attempt = || {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        Ok(set_tcp_congestion(socket, name)?)
    };
    // Capabilities are a thread's own (capabilities(7)): those of the others stay.
    std::thread::scope(|scope| scope.spawn(attempt).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that tries it has failed")))
}

/// The name of what a new connection uses.
pub fn default_name() -> io::Result<String> {
    Ok(tcp_congestion(socket(AddressFamily::INET, SocketType::STREAM, None)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_may_be_used_and_an_unknown_one_may_not() -> io::Result<()> {
        try_without_capabilities(&default_name()?)?;
        let refused = try_without_capabilities("no-such-thing").map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::NotFound));
        Ok(())
    }
}
