//! A worker: one thread, one loop, its own listeners, pool and buffers. It accepts connections, serves each
//! as a task, and stops in order. Workers share nothing but the configuration and how many connections each has.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};

use crate::account::AccessLog;
use crate::admission::Admission;
use crate::agents::Pool;
use crate::balance::{Balance, Connection, Desk};
use crate::config::{Config, Readiness};
use crate::conn;
use crate::executor::Executor;
use crate::handshakes::Handshakes;
use crate::net::{Door, Kernel, Net, set_options};
use crate::passwords::Passwords;
use crate::peer::Scratch;
use crate::poller::Poller;
use crate::refusals::{Refusals, Refused};
use crate::splice::Pipes;
use crate::stop::{Phase, Stop};
use crate::syscalls;
use crate::tls::{Acceptor, Connector};

/// Connections that wait to be accepted; the kernel's `somaxconn` may make it less (listen(2)).
const BACKLOG: i32 = 4096;
/// How often idle agent connections are looked after.
const REAP: Duration = Duration::from_secs(1);
/// How long a worker leaves a failing listener alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long connections have to say goodbye once the drain time is over.
const GOODBYE: Duration = Duration::from_secs(5);

/// What all workers share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The configuration.
    pub config: Arc<Config>,
    /// TLS to clients.
    pub acceptor: Acceptor,
    /// TLS to agents; none where they speak plain HTTP.
    pub connector: Option<Connector>,
    /// The access log.
    pub log: AccessLog,
    /// Which clients may come in.
    pub admission: Admission,
    /// Who may ask; everybody where there is none.
    pub passwords: Option<Passwords>,
    /// Client connections of all workers.
    pub balance: Balance,
    /// Who was turned away.
    pub refusals: Arc<Refusals>,
}

/// What the connections of one worker share.
pub struct Worker<N: Net> {
    /// Where streams to agents come from.
    pub net: N,
    /// What all workers share.
    pub shared: Shared,
    /// Idle connections to agents.
    pub pool: RefCell<Pool<N::Stream>>,
    /// Buffers for whose turn it is.
    pub scratch: RefCell<Scratch>,
    /// Spare pipes.
    pub pipes: RefCell<Pipes>,
    /// Clients' TLS handshakes in flight.
    pub handshakes: Handshakes,
    /// How far stopping has come.
    pub stop: Stop,
}

impl<N: Net> Worker<N> {
    /// A worker that has not accepted anything yet.
    pub fn new(net: N, shared: Shared) -> Self {
        let pool = Pool::new(shared.config.pool);
        let handshakes = Handshakes::new(shared.config.front.handshakes_max);
        Self {
            net,
            shared,
            pool: RefCell::new(pool),
            scratch: RefCell::default(),
            pipes: RefCell::default(),
            handshakes,
            stop: Stop::default(),
        }
    }
}

/// A listening socket and what is spoken on it.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Whether clients speak TLS.
    pub secure: bool,
}

/// One listener per worker on the same address (`SO_REUSEPORT`, socket(7)). Port 0 is chosen once for all.
/// `stall`: as for [`set_options`].
pub fn bind(address: SocketAddr, secure: bool, workers: usize, stall: Duration) -> io::Result<Vec<Listener>> {
    // With SO_REUSEPORT a second program would bind unnoticed, so it is tried without first.
    let probe = listen(address, false, stall)?;
    let address = probe.local_addr()?;
    drop(probe);
    (0..workers).map(|_| Ok(Listener { socket: listen(address, true, stall)?, secure })).collect()
}

fn listen(address: SocketAddr, reuse_port: bool, stall: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    set_options(&socket, stall)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves on `listeners` until `phase` says otherwise and every connection has ended. Takes the calling thread;
/// a panic of any connection becomes one of the worker.
pub fn run(
    shared: Shared,
    desk: Desk,
    listeners: Vec<Listener>,
    phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let executor = Executor::new(poller(shared.config.readiness)?)?;
    syscalls::forbid_rings();
    let own = listeners.iter().map(|listener| listener.socket.local_addr()).collect::<io::Result<_>>()?;
    let net = Kernel::new(executor.clone(), shared.config.front.stall, own);
    let worker = Rc::new(Worker::new(net, shared));
    executor.run(serve(worker, executor.clone(), desk, listeners, phase))?
}

fn poller(readiness: Readiness) -> io::Result<Poller> {
    match readiness {
        Readiness::Epoll => Poller::epoll(),
        Readiness::IoUring => Poller::ring().map_err(|error| no_ring(&error)),
        Readiness::Auto => Poller::ring().or_else(|error| {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| tracing::warn!("{}; epoll serves instead, at a higher cost", no_ring(&error)));
            Poller::epoll()
        }),
    }
}

fn no_ring(error: &io::Error) -> io::Error {
    let help = "it needs Linux 6.1, kernel.io_uring_disabled = 0, and a container that allows it";
    io::Error::new(error.kind(), format!("io_uring can't be used: {error}; {help}"))
}

async fn serve(
    worker: Rc<Worker<Kernel>>,
    executor: Executor,
    desk: Desk,
    listeners: Vec<Listener>,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let Desk { worker: number, arrivals } = desk;
    for Listener { socket, secure } in listeners {
        let door = worker.net.listen(socket)?;
        executor.spawn(accept(worker.clone(), executor.clone(), number, door, secure));
    }
    executor.spawn(receive(worker.clone(), executor.clone(), arrivals));
    loop {
        tokio::select! {
            () = worker.net.sleep(REAP) => reap_agents(&worker).await,
            changed = phase.changed() => {
                changed.map_err(io::Error::other)?;
                if *phase.borrow() >= Phase::Draining {
                    break;
                }
            }
        }
    }
    drain(&worker, number, phase).await;
    Ok(())
}

/// No connection is taken on any more; those that are there end by themselves or are ended.
async fn drain(worker: &Worker<Kernel>, number: usize, mut phase: watch::Receiver<Phase>) {
    let gone = || worker.shared.balance.gone(number);
    worker.stop.enter(Phase::Draining);
    worker.pool.borrow_mut().clear();
    tokio::select! {
        () = gone() => return,
        _ = phase.wait_for(|phase| *phase == Phase::Ending) => {}
    }
    worker.stop.enter(Phase::Ending);
    let _ = worker.net.timeout(GOODBYE, gone()).await;
}

async fn reap_agents(worker: &Worker<Kernel>) {
    poll_fn(|cx| {
        worker.pool.borrow_mut().reap(cx, &mut worker.scratch.borrow_mut(), worker.net.now());
        Poll::Ready(())
    })
    .await;
}

/// Accepts at one door until the worker stops.
async fn accept(worker: Rc<Worker<Kernel>>, executor: Executor, number: usize, door: Door, secure: bool) {
    let mut reserve = reserve();
    loop {
        let accepted = tokio::select! {
            biased;
            () = worker.stop.reached(Phase::Draining) => return,
            accepted = door.accept() => accepted,
        };
        match accepted {
            Ok((socket, client)) => admit(&worker, &executor, number, socket, client, secure).await,
            Err(error) if is_clients_fault(&error) => {}
            Err(error) => {
                tracing::error!("a connection can't be accepted: {error}");
                if is_out_of_descriptors(&error) {
                    reserve = shed(&door, &worker.shared.refusals, reserve);
                }
                worker.net.sleep(ACCEPT_PAUSE).await;
            }
        }
        // A burst of connections is one step of front work each.
        worker.net.breathe().await;
    }
}

/// Gives a connection to the worker that has the fewest.
async fn admit(
    worker: &Rc<Worker<Kernel>>,
    executor: &Executor,
    number: usize,
    socket: OwnedFd,
    client: SocketAddr,
    secure: bool,
) {
    let Shared { balance, config, refusals, .. } = &worker.shared;
    let Some(counted) = balance.place(number, config.front.connections_max) else {
        refusals.note(Refused::Full, client.ip());
        if let (false, Ok(stream)) = (secure, worker.net.adopt(socket)) {
            conn::turn_away(worker, stream, Refused::Full).await;
        }
        return;
    };
    let is_own = counted.worker == number;
    let connection = Connection { socket, client, secure, counted };
    if is_own { start(worker, executor, connection) } else { balance.hand_over(connection) }
}

/// Serves what other workers have accepted.
async fn receive(
    worker: Rc<Worker<Kernel>>,
    executor: Executor,
    mut arrivals: mpsc::UnboundedReceiver<Connection>,
) {
    while let Some(connection) = arrivals.recv().await {
        start(&worker, &executor, connection);
    }
}

fn start(worker: &Rc<Worker<Kernel>>, executor: &Executor, connection: Connection) {
    let Connection { socket, client, secure, counted } = connection;
    let worker = worker.clone();
    executor.spawn(async move {
        let _counted = counted;
        match worker.net.adopt(socket) {
            Ok(stream) => conn::serve(&worker, stream, client, secure).await,
            Err(error) => tracing::warn!("{client} can't be served: {error}"),
        }
    });
}

/// A connection that died before it was accepted (accept(2)).
fn is_clients_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset
    )
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    let error = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(error, Some(Errno::MFILE | Errno::NFILE))
}

fn reserve() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

/// Without a free file descriptor those who wait would wait for ever: the reserved one lets them be closed.
fn shed(door: &Door, refusals: &Refusals, reserved: Option<OwnedFd>) -> Option<OwnedFd> {
    drop(reserved);
    for _ in 0..BACKLOG {
        let Poll::Ready(Ok((_, client))) = door.poll_accept() else { break };
        refusals.note(Refused::Descriptors, client.ip());
    }
    reserve()
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::SockRef;

    use super::*;

    #[test]
    fn connections_that_come_before_a_worker_runs_have_their_options_too() {
        const STALL: Duration = Duration::from_secs(77);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = bind(any, false, 1, STALL).expect("a port").remove(0).socket;
        let _client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        listener.set_nonblocking(false).expect("a socket");
        let (socket, _) = listener.accept().expect("a connection");
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().expect("an option"));
        assert!(socket.keepalive().expect("an option"));
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), Duration::from_secs(30));
        assert_eq!(socket.tcp_keepalive_interval().expect("an option"), Duration::from_secs(30));
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(STALL));
    }
}
