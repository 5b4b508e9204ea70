//! Listening sockets: bound here, or taken over from systemd or from the process before, and dealt out to the workers.
//! Nothing is accepted here.

use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::Config;
use crate::transport::net::{TcpOptions, set_options};
use crate::transport::networks::canonical;

/// Connections that wait to be accepted; the kernel's `somaxconn` may make it less (listen(2)).
const BACKLOG: i32 = 4096;

/// Receive buffer towards clients (`SO_RCVBUF`, which the kernel doubles): what a client may send ahead of an agent that
/// takes nothing. At a round trip of 60 ms it carries 140 Mbit/s.
const CLIENT_RECEIVE_BYTES: usize = 1024 * 1024;

/// A listening socket and what is spoken on it.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Whether clients speak TLS.
    pub secure: bool,
}

impl Listener {
    /// The same socket once more, for the next process.
    pub(crate) fn try_clone(&self) -> io::Result<TcpListener> {
        self.socket.try_clone()
    }
}

/// Listening sockets that somebody else has bound (`sd_listen_fds(3)`).
#[derive(Debug)]
pub(crate) struct Inherited(Vec<TcpListener>);

impl Inherited {
    /// Those that the environment tells of, which then tells of them no more: before any thread is started.
    pub(crate) fn from_env() -> io::Result<Self> {
        let mut found = ListenFd::from_env();
        let sockets = (0..found.len()).filter_map(|index| found.take_tcp_listener(index).transpose());
        Ok(Self(sockets.collect::<io::Result<_>>()?))
    }

    /// Takes those that listen on `address`.
    fn take(&mut self, address: SocketAddr) -> Vec<TcpListener> {
        let is_there = |socket: &mut TcpListener| {
            socket.local_addr().is_ok_and(|at| at == address || canonical(at) == address)
        };
        self.0.extract_if(.., is_there).collect()
    }
}

/// The sockets that are listened on.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// For desktops.
    pub front: Vec<Listener>,
    /// For operators.
    pub admin: Option<TcpListener>,
    /// Sockets that were inherited and that nothing names.
    pub unwanted: Vec<TcpListener>,
}

/// Listens wherever the configuration says.
pub(crate) fn listen(config: &Config, mut inherited: Inherited) -> io::Result<Listeners> {
    let secure = config.listen.iter().map(|address| (*address, true));
    let plain = config.listen_plain.iter().map(|address| (*address, false));
    let mut front = Vec::new();
    let failed = |error: io::Error, address, help| {
        io::Error::new(error.kind(), format!("can't listen on {address}: {error}{help}"))
    };
    let options = config.client_tcp();
    for (address, secure) in secure.chain(plain) {
        let sockets = on_one(address, inherited.take(address), config.workers, &options)
            .map_err(|error| failed(error, address, ""))?;
        front.extend(sockets.into_iter().map(|socket| Listener { socket, secure }));
    }
    let mut admin = None;
    if let Some(address) = config.admin {
        let sockets = on_one(address, inherited.take(address), 1, &options)
            .map_err(|error| failed(error, address, " (--admin: another address, or off)"))?;
        admin = sockets.into_iter().next();
    }
    Ok(Listeners { front, admin, unwanted: inherited.0 })
}

fn on_one(
    address: SocketAddr,
    inherited: Vec<TcpListener>,
    workers: usize,
    options: &TcpOptions,
) -> io::Result<Vec<TcpListener>> {
    if inherited.is_empty() {
        return bind(address, workers, options);
    }
    for socket in &inherited {
        socket.set_nonblocking(true)?;
        // One that only was bound, or whose backlog is small, is no worse than another.
        rustix::net::listen(socket, BACKLOG)?;
        set_options(&SockRef::from(socket), options)?;
        bound_receiving(&SockRef::from(socket))?;
    }
    Ok(inherited)
}

/// One socket per worker on the same address (`SO_REUSEPORT`, socket(7)). Port 0 is chosen once for all.
fn bind(address: SocketAddr, workers: usize, options: &TcpOptions) -> io::Result<Vec<TcpListener>> {
    // With SO_REUSEPORT a second program would bind unnoticed, so it is tried without first.
    let probe = bind_one(address, false, options)?;
    let address = probe.local_addr()?;
    drop(probe);
    (0..workers).map(|_| bind_one(address, true, options)).collect()
}

fn bind_one(address: SocketAddr, reuse_port: bool, options: &TcpOptions) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    set_options(&socket, options)?;
    bound_receiving(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where the kernel allows less than [`CLIENT_RECEIVE_BYTES`] (`net.core.rmem_max`), its own limit holds
/// (`net.ipv4.tcp_rmem`): less would slow uploads over long ways.
fn bound_receiving(socket: &Socket) -> io::Result<()> {
    let is_allowed = receive_buffer_max().is_some_and(|max| max >= CLIENT_RECEIVE_BYTES);
    if is_allowed { socket.set_recv_buffer_size(CLIENT_RECEIVE_BYTES) } else { Ok(()) }
}

/// The largest receive buffer that the kernel allows, in bytes (`net.core.rmem_max`, socket(7)); none where it does not
/// say so.
pub(crate) fn receive_buffer_max() -> Option<usize> {
    std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok()?.trim().parse().ok()
}

/// Each worker's share, as even as can be; a worker without any gets its connections from the others.
pub(crate) fn deal(listeners: Vec<Listener>, workers: usize) -> Vec<Vec<Listener>> {
    let mut shares: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::new()).collect();
    for (index, listener) in listeners.into_iter().enumerate() {
        shares[index % workers].push(listener);
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    fn options(user_timeout: Duration) -> TcpOptions {
        TcpOptions { user_timeout, congestion: Some("reno".into()) }
    }

    #[test]
    fn connections_that_come_before_a_worker_runs_have_their_options_too() {
        const STALL: Duration = Duration::from_secs(77);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = bind(any, 1, &options(STALL)).expect("a port").remove(0);
        let _client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        listener.set_nonblocking(false).expect("a socket");
        let (socket, _) = listener.accept().expect("a connection");
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().expect("an option"));
        assert!(socket.keepalive().expect("an option"));
        assert!(socket.out_of_band_inline().expect("an option"));
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), Duration::from_secs(30));
        assert_eq!(socket.tcp_keepalive_interval().expect("an option"), Duration::from_secs(30));
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(STALL));
        assert_eq!(rustix::net::sockopt::tcp_congestion(&*socket).expect("an option"), "reno");
    }

    #[test]
    fn every_worker_has_its_share_of_every_address() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sockets = |secure| {
            bind(any, 2, &options(Duration::from_secs(1)))
                .expect("a port")
                .into_iter()
                .map(move |socket| Listener { socket, secure })
        };
        let shares = deal(sockets(true).chain(sockets(false)).collect(), 2);
        for share in &shares {
            assert_eq!(share.iter().map(|listener| listener.secure).collect::<Vec<_>>(), [true, false]);
        }
        let few = deal(sockets(true).collect(), 3);
        assert_eq!(few.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 0]);
    }
}
