//! Where the proxy itself is reached, so that it never asks itself: a request to its own address would come back for
//! ever. Looks at addresses alone: at those a connection is made to, and at both ends of those that are accepted.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::SockRef;

use crate::transport::networks::canonical;

/// The proxy's own listeners, and its connections to agents that may end at one of them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OwnAddresses(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    listeners: Vec<SocketAddr>,
    departed: Mutex<HashSet<Ends>>,
}

/// A connection: where it comes from, and where it goes.
type Ends = (SocketAddr, SocketAddr);

/// A connection of the proxy to a port that it listens on, for as long as it lives.
#[derive(Debug)]
pub struct OwnConnection {
    own: OwnAddresses,
    ends: Ends,
}

impl OwnAddresses {
    /// Those that listen here, for desktops and for operators.
    pub fn new<'a>(listeners: impl IntoIterator<Item = &'a TcpListener>) -> io::Result<Self> {
        let reached = listeners.into_iter().map(reached_at).collect::<io::Result<Vec<_>>>()?;
        let mut listeners: Vec<_> = reached.concat();
        listeners.sort_unstable();
        listeners.dedup();
        Ok(Self(Arc::new(Inner { listeners, departed: Mutex::default() })))
    }

    /// Begins a connection to `agent` by `connect`, which gives the address that it comes from. None where nothing of the
    /// proxy's listens on that port. The connection may be accepted before `connect` returns: who asks
    /// [`OwnAddresses::has_departed`] waits for it.
    pub fn depart<E>(
        &self,
        agent: SocketAddr,
        connect: impl FnOnce() -> Result<SocketAddr, E>,
    ) -> Result<Option<OwnConnection>, E> {
        if !self.0.listeners.iter().any(|own| own.port() == agent.port()) {
            return connect().map(|_| None);
        }
        let mut departed = self.departed();
        let ends = (canonical(connect()?), meant(agent));
        departed.insert(ends);
        Ok(Some(OwnConnection { own: self.clone(), ends }))
    }

    /// Whether a connection that came from `from` to the address that `to` gives is the proxy's own.
    pub fn has_departed(&self, from: SocketAddr, to: impl FnOnce() -> io::Result<SocketAddr>) -> bool {
        let departed = self.departed();
        !departed.is_empty() && to().is_ok_and(|to| departed.contains(&(canonical(from), canonical(to))))
    }

    fn departed(&self) -> MutexGuard<'_, HashSet<Ends>> {
        self.0.departed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OwnConnection {
    /// Whether it certainly goes to the proxy itself. Who connects to an address of its own host comes from it, but for
    /// loopback ones and for further addresses of one network, of which [`OwnAddresses::has_departed`] tells.
    pub fn is_home(&self) -> bool {
        let (from, to) = self.ends;
        let is_here = to.ip().is_loopback() || from.ip() == to.ip();
        let is_own = |own: &SocketAddr| {
            let everywhere = own.ip().is_unspecified() && own.is_ipv4() == to.is_ipv4();
            own.port() == to.port() && (own.ip() == to.ip() || (everywhere && is_here))
        };
        self.own.0.listeners.iter().any(is_own)
    }
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        self.own.departed().remove(&self.ends);
    }
}

/// Where the kernel connects to: the unspecified address is this host's loopback one (ip(7), ipv6(7)).
fn meant(agent: SocketAddr) -> SocketAddr {
    let agent = canonical(agent);
    match agent.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => (Ipv4Addr::LOCALHOST, agent.port()).into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => (Ipv6Addr::LOCALHOST, agent.port()).into(),
        _ => agent,
    }
}

/// A socket for all IPv6 addresses is one for all IPv4 addresses too, unless it was told otherwise (`IPV6_V6ONLY`, ipv6(7)).
fn reached_at(listener: &TcpListener) -> io::Result<Vec<SocketAddr>> {
    let at = canonical(listener.local_addr()?);
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port()));
    let both = at.is_ipv6() && at.ip().is_unspecified() && !SockRef::from(listener).only_v6()?;
    Ok(if both { vec![at, everywhere] } else { vec![at] })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    /// Listeners at these addresses, which don't have to be the host's.
    fn listening(at: &[&str]) -> OwnAddresses {
        let listeners = at.iter().map(|at| at.parse().expect("an address")).collect();
        OwnAddresses(Arc::new(Inner { listeners, departed: Mutex::default() }))
    }

    fn depart(own: &OwnAddresses, agent: &str, from: &str) -> Option<OwnConnection> {
        let Ok(departure) = own.depart(at(agent), || Ok::<_, Infallible>(at(from)));
        departure
    }

    #[test]
    fn a_connection_home_is_known_by_its_ends() {
        for (listener, agent, from, is_home) in [
            ("10.0.0.1:1", "10.0.0.1:1", "10.0.0.1:9", true),
            ("10.0.0.1:1", "[::ffff:10.0.0.1]:1", "[::ffff:10.0.0.1]:9", true),
            ("10.0.0.1:1", "10.0.0.2:1", "10.0.0.1:9", false),
            ("127.0.0.1:1", "0.0.0.0:1", "127.0.0.1:9", true),
            ("[::1]:1", "[::]:1", "[::1]:9", true),
            ("0.0.0.0:1", "0.0.0.0:1", "127.0.0.1:9", true),
            ("0.0.0.0:1", "127.0.0.7:1", "127.0.0.1:9", true),
            ("0.0.0.0:1", "10.0.0.2:1", "10.0.0.2:9", true),
            ("0.0.0.0:1", "10.0.0.2:1", "10.0.0.1:9", false),
            ("0.0.0.0:1", "[2001:db8::1]:1", "[2001:db8::1]:9", false),
            ("[::]:1", "[2001:db8::1]:1", "[2001:db8::1]:9", true),
            ("[::]:1", "10.0.0.2:1", "10.0.0.2:9", false),
        ] {
            let departure =
                depart(&listening(&[listener]), agent, from).expect("the port is the proxy's own");
            assert_eq!(departure.is_home(), is_home, "{listener} {agent} {from}");
        }
        assert!(depart(&listening(&["0.0.0.0:1"]), "127.0.0.1:2", "127.0.0.1:9").is_none());
    }

    #[test]
    fn a_socket_of_both_families_listens_for_both() {
        let [both, v6] = [false, true].map(|only_v6| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("a socket");
            socket.set_only_v6(only_v6).expect("a new socket");
            socket.bind(&at("[::]:0").into()).expect("a port");
            socket.listen(1).expect("a bound socket");
            TcpListener::from(socket)
        });
        for (listener, is_home) in [(both, true), (v6, false)] {
            let port = listener.local_addr().expect("a bound socket").port();
            let own = OwnAddresses::new([&listener]).expect("a listener");
            let departure = depart(&own, &format!("127.0.0.1:{port}"), "127.0.0.1:9");
            assert_eq!(departure.expect("the port is its own").is_home(), is_home);
        }
    }

    #[test]
    fn a_connection_that_has_departed_is_known_where_it_arrives_until_it_ends() {
        let own = listening(&["0.0.0.0:1"]);
        let arrived = |from: &str, to: &str| own.has_departed(at(from), || Ok(at(to)));
        assert!(!arrived("10.0.0.1:9", "10.0.0.2:1"));
        let departure = depart(&own, "10.0.0.2:1", "10.0.0.1:9");
        assert!(arrived("10.0.0.1:9", "10.0.0.2:1"));
        assert!(arrived("[::ffff:10.0.0.1]:9", "[::ffff:10.0.0.2]:1"));
        // Others of the host may have the same port, to another address.
        assert!(!arrived("10.0.0.1:9", "10.0.0.3:1"));
        assert!(!arrived("10.0.0.1:8", "10.0.0.2:1"));
        drop(departure);
        assert!(!arrived("10.0.0.1:9", "10.0.0.2:1"));
    }
}
