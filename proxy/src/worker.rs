//! A worker: one thread, one runtime, its own listeners, pool and buffers. It accepts connections, serves each
//! as a task, and stops in order. Workers share nothing but the configuration and the count of connections.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::account::AccessLog;
use crate::agents::Pool;
use crate::config::Config;
use crate::conn;
use crate::net::{Kernel, Net};
use crate::peer::Scratch;
use crate::splice::Pipes;
use crate::stop::{Phase, Stop};
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
    /// Client connections of all workers.
    pub connections: Arc<AtomicUsize>,
    /// Requests for addresses that may not be dialled, of all workers.
    pub forbidden: Arc<AtomicUsize>,
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
    /// How far stopping has come.
    pub stop: Stop,
}

impl<N: Net> Worker<N> {
    /// A worker that has not accepted anything yet.
    pub fn new(net: N, shared: Shared) -> Self {
        let pool = Pool::new(shared.config.pool);
        Self {
            net,
            shared,
            pool: RefCell::new(pool),
            scratch: RefCell::default(),
            pipes: RefCell::default(),
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
pub fn bind(address: SocketAddr, secure: bool, workers: usize) -> io::Result<Vec<Listener>> {
    // With SO_REUSEPORT a second program would bind unnoticed, so it is tried without first.
    let probe = listen(address, false)?;
    let address = probe.local_addr()?;
    drop(probe);
    (0..workers).map(|_| Ok(Listener { socket: listen(address, true)?, secure })).collect()
}

fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves on `listeners` until `phase` says otherwise and every connection has ended. Runs the calling
/// thread's runtime; a panic of any connection becomes one of the worker.
pub fn run(shared: Shared, listeners: Vec<Listener>, phase: watch::Receiver<Phase>) -> io::Result<()> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun();
    let mut runtime = tokio_uring::builder();
    runtime.uring_builder(&ring);
    let runtime = tokio_uring::Runtime::new(&runtime).map_err(|error| no_runtime(&error))?;
    let net = Kernel { stall: shared.config.front.stall };
    runtime.block_on(serve(Rc::new(Worker::new(net, shared)), listeners, phase))
}

fn no_runtime(error: &io::Error) -> io::Error {
    let help = "it needs Linux 5.19, kernel.io_uring_disabled = 0, and a container that allows io_uring";
    io::Error::new(error.kind(), format!("no io_uring runtime can be made: {error}; {help}"))
}

async fn serve(
    worker: Rc<Worker<Kernel>>,
    listeners: Vec<Listener>,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let (accepted, mut connections) = mpsc::channel(1);
    let mut doors = JoinSet::new();
    for listener in listeners {
        doors.spawn_local(accept(listener, accepted.clone()));
    }
    let mut reap = tokio::time::interval(REAP);
    loop {
        tokio::select! {
            Some(connection) = connections.recv() => admit(&worker, &mut tasks, connection),
            Some(done) = tasks.join_next() => done.map_err(io::Error::other)?,
            Some(door) = doors.join_next() => door.map_err(io::Error::other)??,
            _ = reap.tick() => reap_agents(&worker).await,
            changed = phase.changed() => {
                changed.map_err(io::Error::other)?;
                if *phase.borrow() >= Phase::Draining {
                    break;
                }
            }
        }
    }
    drop(doors);
    drain(&worker, &mut tasks, phase).await
}

/// No connection is taken on any more; those that are there end by themselves or are ended.
async fn drain(
    worker: &Worker<Kernel>,
    tasks: &mut JoinSet<()>,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    worker.stop.enter(Phase::Draining);
    worker.pool.borrow_mut().clear();
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                None => return Ok(()),
                Some(done) => done.map_err(io::Error::other)?,
            },
            _ = phase.wait_for(|phase| *phase == Phase::Ending) => break,
        }
    }
    worker.stop.enter(Phase::Ending);
    let goodbye = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    Ok(())
}

async fn reap_agents(worker: &Worker<Kernel>) {
    poll_fn(|cx| {
        worker.pool.borrow_mut().reap(cx, &mut worker.scratch.borrow_mut(), worker.net.now());
        Poll::Ready(())
    })
    .await;
}

/// A connection that was accepted.
struct Connection {
    socket: TcpStream,
    client: SocketAddr,
    secure: bool,
}

/// Counts a client connection for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn admit(worker: &Rc<Worker<Kernel>>, tasks: &mut JoinSet<()>, connection: Connection) {
    let Connection { socket, client, secure } = connection;
    let connections = &worker.shared.connections;
    let counted = Counted(connections.clone());
    let limit = worker.shared.config.front.connections_max;
    if connections.fetch_add(1, Ordering::Relaxed) >= limit {
        tracing::warn!("{client} is turned away: {limit} connections are open (--connections-max)");
        return;
    }
    let worker = worker.clone();
    tasks.spawn_local(async move {
        let _counted = counted;
        match worker.net.adopt(socket) {
            Ok(stream) => conn::serve(&worker, stream, client, secure).await,
            Err(error) => tracing::warn!("{client} can't be served: {error}"),
        }
    });
}

/// Accepts on one listener for ever. Only readiness is ever waited for, so giving up the wait can't lose a
/// connection.
async fn accept(listener: Listener, accepted: mpsc::Sender<Connection>) -> io::Result<()> {
    let secure = listener.secure;
    let listener = tokio::net::TcpListener::from_std(listener.socket)?;
    let mut reserve = reserve();
    loop {
        match listener.accept().await {
            Ok((socket, client)) => {
                if accepted.send(Connection { socket, client, secure }).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) if is_clients_fault(&error) => {}
            Err(error) => {
                tracing::error!("a connection can't be accepted: {error}");
                if is_out_of_descriptors(&error) {
                    reserve = shed(&listener, reserve).await;
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
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
/// They are taken by way of the runtime, so that it waits for the next one once there is none.
async fn shed(listener: &tokio::net::TcpListener, reserved: Option<OwnedFd>) -> Option<OwnedFd> {
    drop(reserved);
    let turned_away = poll_fn(|cx| {
        let accepted = |_: &i32| matches!(listener.poll_accept(cx), Poll::Ready(Ok(_)));
        Poll::Ready((0..BACKLOG).take_while(accepted).count())
    });
    let turned_away = turned_away.await;
    tracing::warn!("{turned_away} connections were turned away for want of a file descriptor");
    reserve()
}
