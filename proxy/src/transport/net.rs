//! What a connection asks of the outside world: new streams to agents, the time, and its turn. Production is [`OsRuntime`]; the tests put a simulated wire in its place.
//! Nothing here ever parks a buffer in the kernel: a wait can be given up without losing a byte.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Once};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::sockopt::set_tcp_congestion;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, acceptfrom_with, recv, send, shutdown};
use rustix::pipe::{SpliceFlags, splice};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::observe::agent::Agent;
use crate::observe::agent_stats::{AgentCounters, ByteCounter};
use crate::observe::lag::TcpSample;
use crate::observe::session_stats::TcpProbe;
use crate::observe::stats::WorkerStats;
use crate::runtime::executor::{Executor, Interest, RegisteredFd, Sleep};
use crate::runtime::io_uring::{receive_record, send_record, tcp_info};
use crate::runtime::scheduler::Class;
use crate::tls::{ControlRecord, KernelKey, Way};
use crate::transport::any_stream::{AnyStream, InsideStream};
use crate::transport::congestion::default_name;
use crate::transport::kernel_tls::{KernelRecords, KernelTls};
use crate::transport::networks::canonical;
use crate::transport::own_addresses::{OwnAddresses, OwnConnection};
use crate::transport::pipes::Pipe;
use crate::transport::receive_window::{BODY_BYTES, ReceiveWindow};
use crate::transport::stream::{Opened, Piped, Route, Standing, Stream};

/// The time is over.
#[derive(Debug)]
pub struct Elapsed;

/// Where streams and the time come from.
pub trait Runtime: 'static {
    /// The streams it makes, and those inside the program.
    type Stream: Stream + From<InsideStream>;
    /// A wait for a time.
    type Sleep: Future<Output = ()>;

    /// Connects to an agent. The caller limits the time.
    fn connect(&self, agent: Agent) -> impl Future<Output = io::Result<Self::Stream>>;

    /// The time.
    fn now(&self) -> Instant;

    /// Since when that may be there at the earliest which is found now.
    fn arrived(&self) -> Instant {
        self.now()
    }

    /// Waits for `time` from now on.
    fn sleep(&self, time: Duration) -> Self::Sleep;

    /// Runs `work` as a task of its own, with its own turns.
    fn spawn(&self, work: impl Future<Output = ()> + 'static);

    /// Lets every other task that is ready have its turn before this one goes on.
    fn yield_now(&self) -> impl Future<Output = ()>;

    /// Notes what the running task does from here on, and so when it has its turns.
    fn set_class(&self, class: Class);

    /// Whether it is the running task's turn to move bulk. If not, it will be: then the task is polled again.
    fn may_move_bulk(&self, cx: &Context<'_>) -> bool;

    /// Whether nobody else waits for a turn.
    fn is_idle(&self) -> bool;

    /// Does `work` for as long as `limit` at the most.
    fn timeout<F: Future>(&self, limit: Duration, work: F) -> Timeout<F, Self::Sleep> {
        Timeout { work, limit: self.sleep(limit) }
    }
}

pin_project! {
    /// Work that has a limit of time. A type of its own: an async function would hold the work twice.
    pub struct Timeout<F, S> {
        #[pin]
        work: F,
        #[pin]
        limit: S,
    }
}

impl<F: Future, S: Future<Output = ()>> Future for Timeout<F, S> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.work.poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => this.limit.poll(cx).map(|()| Err(Elapsed)),
        }
    }
}

/// The kernel's network, seen from inside a worker's loop.
#[derive(Clone)]
pub struct OsRuntime {
    executor: Executor,
    /// Of connections to agents.
    options: TcpOptions,
    stats: Rc<WorkerStats>,
    /// Where the proxy itself listens.
    own: OwnAddresses,
    kernel_tls: KernelTls,
    /// For what the kernel opens, a record at a time; always empty between two calls.
    record_pipe: Rc<RefCell<Option<Pipe>>>,
}

impl Runtime for OsRuntime {
    type Stream = AnyStream<TcpStream>;
    type Sleep = Sleep;

    async fn connect(&self, agent: Agent) -> io::Result<Self::Stream> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(agent.address), kind, Some(Protocol::TCP))?;
        set_options(&socket, &self.options)?;
        let is_prepared = note_unbounded(ReceiveWindow::prepare(&socket)).is_some();
        let departure =
            self.own.depart(agent.address, || begin_connecting(&socket, agent.address))?.map(Box::new);
        let socket = RegisteredFd::new(&self.executor, socket.into(), false)?;
        // Writable once it is connected, or has failed (connect(2)).
        poll_fn(|cx| socket.poll_io(cx, Interest::Write, |_| Ok(()))).await?;
        match socket.with(|socket| SockRef::from(&socket).take_error())? {
            Some(error) => Err(error),
            None if departure.as_ref().is_some_and(|departure| departure.is_home()) => {
                Err(io::Error::other("this is the proxy itself"))
            }
            None => {
                let sockets = Metered::Agent { counters: self.stats.agent(agent.id), _departure: departure };
                let segment = socket.with(|socket| SockRef::from(&socket).tcp_mss())?;
                let segment = segment.try_into().unwrap_or(usize::MAX);
                let window = is_prepared.then(|| socket.with(|socket| ReceiveWindow::open(socket, segment)));
                let window = window.and_then(note_unbounded);
                Ok(AnyStream::Outside(TcpStream::new(socket, sockets, window, self)))
            }
        }
    }

    fn now(&self) -> Instant {
        self.executor.now()
    }

    fn arrived(&self) -> Instant {
        self.executor.arrived()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        self.executor.sleep(time)
    }

    fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        self.executor.spawn(work);
    }

    async fn yield_now(&self) {
        self.executor.yield_now().await;
    }

    fn set_class(&self, class: Class) {
        self.executor.set_class(class);
    }

    fn may_move_bulk(&self, cx: &Context<'_>) -> bool {
        self.executor.may_move_bulk(cx)
    }

    fn is_idle(&self) -> bool {
        self.executor.is_idle()
    }
}

/// Connects without waiting for it; where from.
fn begin_connecting(socket: &Socket, agent: SocketAddr) -> io::Result<SocketAddr> {
    match socket.connect(&agent.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => local_address(socket),
    }
}

fn local_address<S: AsFd>(socket: &S) -> io::Result<SocketAddr> {
    let address = SockRef::from(socket).local_addr()?;
    address.as_socket().ok_or_else(|| Errno::AFNOSUPPORT.into())
}

impl OsRuntime {
    /// The network of that loop. `options`: of connections to agents. `own`: where the proxy itself listens, which is never connected to. `stats`: where its bytes are counted.
    pub fn new(executor: Executor, options: TcpOptions, own: OwnAddresses, stats: Rc<WorkerStats>) -> Self {
        Self { executor, options, stats, own, kernel_tls: KernelTls::NONE, record_pipe: Rc::default() }
    }

    /// The same, whose kernel may do TLS. Without a pipe that holds a record it does none.
    #[must_use]
    pub fn with_kernel_tls(mut self, kernel_tls: KernelTls) -> Self {
        if kernel_tls == KernelTls::NONE {
            return self;
        }
        match Pipe::new() {
            Ok(pipe) if pipe.records() > 0 => {
                self.kernel_tls = kernel_tls;
                self.record_pipe = Rc::new(RefCell::new(Some(pipe)));
            }
            small => note_no_pipe(small.err()),
        }
        self
    }

    /// Accepts on a listening socket that doesn't block.
    pub fn listen(&self, listener: std::net::TcpListener) -> io::Result<Acceptor> {
        let socket = RegisteredFd::new(&self.executor, listener.into(), true)?;
        Ok(Acceptor { socket, own: self.own.clone() })
    }

    /// Takes on an accepted socket.
    pub fn adopt(&self, socket: OwnedFd) -> io::Result<AnyStream<TcpStream>> {
        let socket = RegisteredFd::new(&self.executor, socket, true)?;
        let sockets = Metered::Client(self.stats.clients.clone());
        Ok(AnyStream::Outside(TcpStream::new(socket, sockets, None, self)))
    }
}

const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes that the kernel holds for a side that has not been sent them yet (`TCP_NOTSENT_LOWAT`, tcp(7)); it takes whole
/// segments, up to 64 KiB more. Those on their way are not counted, so that a long way is filled as before. Less makes
/// sends partial, and a flood dearer: 1.07x at 512 KiB, 1.1x at 128 KiB.
const UNSENT_BYTES_MAX: u32 = 1024 * 1024;
/// The options of a leg's connections that are configured.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// How long sent bytes may stay unacknowledged, or a closed window closed (`TCP_USER_TIMEOUT`, tcp(7)).
    pub user_timeout: Duration,
    /// The congestion control; none: the system's.
    pub congestion: Option<Arc<str>>,
}

/// Sets what every connection of the proxy has: no Nagle delay, keepalive, limits on stalling and on what is unsent, urgent
/// data as data.
///
/// A listening socket hands them on to the connections that come by it, from the moment they are set: Linux does so,
/// though tcp(7) does not say it.
pub fn set_options(socket: &Socket, options: &TcpOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    note_unbounded(socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX));
    if let Some(name) = &options.congestion {
        set_tcp_congestion(socket, name)?;
    }
    socket.set_tcp_user_timeout(Some(options.user_timeout))
}

/// A connection that [`Acceptor::accept`] gives up, as the proxy has made it itself; accept(2) fails by no such error.
pub const SELF_CONNECTION: io::ErrorKind = io::ErrorKind::ConnectionRefused;

/// A listening socket.
pub struct Acceptor {
    socket: RegisteredFd,
    own: OwnAddresses,
}

impl Acceptor {
    /// Sets what [`set_options`] has set anew, for connections that come from now on.
    pub fn renew_options(&self, options: &TcpOptions) -> io::Result<()> {
        let congestion = options.congestion.clone().map_or_else(|| default_name().map(Arc::from), Ok)?;
        self.socket.with(|listener| {
            set_tcp_congestion(listener, &congestion)?;
            SockRef::from(&listener).set_tcp_user_timeout(Some(options.user_timeout))
        })
    }

    /// The next client's socket, and its address in its one form ([`canonical`]): at a listener of both families an IPv4
    /// client comes as an IPv6 one (ipv6(7)). A wait that is given up loses none.
    pub async fn accept(&self) -> io::Result<(OwnedFd, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Whether more clients may wait than the running task may accept now.
    pub fn is_put_off(&self) -> bool {
        self.socket.is_put_off()
    }

    /// The next client's socket.
    pub fn poll_accept(&self, cx: &Context<'_>) -> Poll<io::Result<(OwnedFd, SocketAddr)>> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accepted = self.socket.poll_io(cx, Interest::Read, |listener| acceptfrom_with(listener, flags));
        let (socket, client) = ready!(accepted)?;
        let client = client.ok_or(Errno::AFNOSUPPORT)?;
        let client = canonical(SocketAddr::try_from(client)?);
        if self.own.has_departed(client, || local_address(&socket)) {
            let why = "the proxy connects to itself: --agents has an address of this host in it";
            return Poll::Ready(Err(io::Error::new(SELF_CONNECTION, why)));
        }
        Poll::Ready(Ok((socket, client)))
    }
}

/// A TCP socket of the kernel.
pub struct TcpStream {
    socket: RegisteredFd,
    sockets: Metered,
    /// Bytes that the kernel may hold unsent, where that was bounded for a session.
    unsent: Option<u32>,
    /// An agent's, where the kernel can bound it; a client's where it was made smaller than the kernel would have it.
    window: Option<ReceiveWindow>,
    /// What the kernel may do of its TLS.
    kernel_tls: KernelTls,
    /// For what it opens.
    record_pipe: Rc<RefCell<Option<Pipe>>>,
    /// What it does.
    records: Option<Box<KernelRecords>>,
    /// A wait for what it has sealed to be sent, and since when.
    flush: Option<Box<(Sleep, Instant)>>,
}

/// The counters for its bytes.
enum Metered {
    Agent { counters: Rc<AgentCounters>, _departure: Option<Box<OwnConnection>> },
    Client(Rc<ByteCounter>),
}

impl TcpStream {
    fn new(socket: RegisteredFd, sockets: Metered, window: Option<ReceiveWindow>, of: &OsRuntime) -> Self {
        let (kernel_tls, record_pipe) = (of.kernel_tls, of.record_pipe.clone());
        Self { socket, sockets, window, unsent: None, kernel_tls, record_pipe, records: None, flush: None }
    }

    /// Whether all that the kernel was given to seal is on its way; a connection that is gone has nothing left.
    fn is_flushed(&mut self) -> bool {
        if self.is_closed() {
            return true;
        }
        let records = self.records.as_mut().filter(|records| records.seals());
        records.is_none_or(|it| self.socket.with(|socket| it.is_flushed(socket)).unwrap_or(true))
    }

    fn seals_records(&self) -> bool {
        self.records.as_ref().is_some_and(|records| records.seals())
    }

    /// Has the kernel send what it holds. It seals what comes out of a pipe as if more would follow at once, and then holds
    /// less than a segment back: where that is as much as may stand unsent, nothing would ever follow (seen with segments of
    /// 32 KiB on Linux 6.1). To set the option is to send (tcp(7)).
    fn push(&self) {
        // A connection that is gone says so to the next call.
        let _ = self.socket.with(|socket| SockRef::from(&socket).set_tcp_nodelay(true));
    }

    fn count_sent(&mut self, bytes: usize) {
        self.sockets().sent(bytes);
        if let Some(records) = &mut self.records {
            records.note_sent(bytes);
        }
    }

    /// An error of receiving would be that of the next call to send too, by which the peer is told why.
    fn clear_error(&self) {
        let _ = self.socket.with(|socket| SockRef::from(&socket).take_error());
    }

    /// Whether what has failed before has to wait for what stands before it: then the task is polled again.
    fn is_failure_waiting(&self, cx: &Context<'_>) -> bool {
        let waits = self.socket.is_put_off()
            && self.records.as_ref().is_some_and(|records| records.failure.is_some());
        if waits {
            cx.waker().wake_by_ref();
        }
        waits
    }

    /// A record of data, by the way of a pipe: `recvmsg` would open empty ones for as long as they come, and a peer that sends
    /// them would have the worker for itself.
    fn poll_take_record(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.record_pipe.borrow_mut();
        let pipe = shared.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let limit = into.len();
        let call = |socket: BorrowedFd<'_>| splice(socket, None, &pipe.write, None, limit, SPLICE);
        let bytes = ready!(self.socket.poll_io(cx, Interest::Read, call))?;
        if bytes > 0 && !pipe.take(&mut into[..bytes]).is_ok_and(|taken| taken == bytes) {
            // What is left would be the next session's.
            *shared = None;
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Poll::Ready(Ok(bytes))
    }

    /// A record that is no data: one alone, before which nothing stands.
    fn poll_recv_control(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<Opened>> {
        let call = |socket: BorrowedFd<'_>| receive_record(socket, &mut *into);
        match self.socket.poll_io(cx, Interest::Read, call) {
            Poll::Ready(Ok((bytes, Some(kind)))) => {
                self.count_received(bytes);
                Poll::Ready(Ok(Opened::Content { kind, bytes }))
            }
            Poll::Pending if self.socket.is_put_off() => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(Err(error)) => {
                self.clear_error();
                Poll::Ready(Err(error))
            }
            // It was no record at all.
            Poll::Pending | Poll::Ready(Ok((_, None))) => Poll::Ready(Err(Errno::INVAL.into())),
        }
    }

    fn opens_records(&self) -> bool {
        self.records.as_ref().is_some_and(|records| records.opens())
    }

    fn count_overhead(&self, way: Way, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        match way {
            Way::Receive => self.sockets().received(bytes),
            Way::Send => self.sockets().sent(bytes),
        }
    }

    fn sockets(&self) -> &ByteCounter {
        match &self.sockets {
            Metered::Agent { counters, .. } => &counters.sockets,
            Metered::Client(sockets) => sockets,
        }
    }

    fn count_received(&mut self, bytes: usize) {
        self.sockets().received(bytes);
        if let Some(window) = &mut self.window {
            note_unbounded(self.socket.with(|socket| window.count(socket, bytes)));
        }
    }

    /// The kernel has a client's window grow with what is read, up to more than the host may allow to set: it is taken over
    /// only where it is to be small.
    fn bound_window(&mut self, bytes: usize) -> io::Result<()> {
        let is_client = matches!(self.sockets, Metered::Client(_));
        let window = &mut self.window;
        self.socket.with(|socket| match window.take() {
            Some(small) if is_client && bytes > BODY_BYTES => small.give_back(socket),
            None if is_client && bytes > BODY_BYTES => Ok(()),
            mine => {
                let mine = mine.map_or_else(|| ReceiveWindow::take_over(socket), Ok)?;
                window.insert(mine).bound(socket, bytes)
            }
        })
    }
}

impl Stream for TcpStream {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let call = |socket: BorrowedFd<'_>| recv(socket, &mut *into, RecvFlags::empty());
        let (_, received) = ready!(self.socket.poll_io(cx, Interest::Read, call))?;
        self.count_received(received);
        if received < into.len() {
            self.socket.exhausted(Interest::Read);
        }
        Poll::Ready(Ok(received))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let call = |socket: BorrowedFd<'_>| send(socket, bytes, SendFlags::NOSIGNAL);
        let sent = ready!(self.socket.poll_io(cx, Interest::Write, call))?;
        self.count_sent(sent);
        if sent < bytes.len() {
            self.socket.exhausted(Interest::Write);
        }
        Poll::Ready(Ok(sent))
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(self.socket.with(|socket| shutdown(socket, Shutdown::Write))?)
    }

    fn is_put_off(&self) -> bool {
        self.socket.is_put_off()
    }

    fn bound_unsent(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if self.unsent.replace(bytes) != Some(bytes) {
            note_unbounded(self.socket.with(|socket| SockRef::from(&socket).set_tcp_notsent_lowat(bytes)));
        }
    }

    fn bound_unread(&mut self, bytes: usize) {
        note_unbounded(self.bound_window(bytes));
    }

    fn route(&self) -> Option<Route> {
        let info = self.socket.with(tcp_info).ok()?;
        let round_trip = Duration::from_micros(info.tcpi_min_rtt.into());
        Some(Route { round_trip, segment: info.tcpi_snd_mss.try_into().unwrap_or(usize::MAX) })
    }

    fn standing(&self) -> Standing {
        let unread = self.socket.with(|socket| ioctl_fionread(socket)).unwrap_or(0);
        let unsent = self.socket.with(tcp_info).map_or(0, |info| info.tcpi_notsent_bytes);
        Standing { unread, unsent: unsent.into() }
    }

    fn probe(&self) -> Option<TcpProbe> {
        let probe = self.socket.probe();
        Some(Box::new(move || probe.with(tcp_info)?.ok().map(|info| tcp_sample(&info))))
    }

    fn kernel_tls(&self) -> KernelTls {
        self.kernel_tls
    }

    fn set_record_key(&mut self, way: Way, key: &KernelKey) -> io::Result<()> {
        let records = self.records.get_or_insert_default();
        let overhead = self.socket.with(|socket| records.give(socket, way, key))?;
        self.count_overhead(way, overhead);
        Ok(())
    }

    fn poll_recv_records(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<Opened>> {
        let received = self.poll_take_record(cx, into);
        if received.is_pending() && self.is_failure_waiting(cx) {
            return Poll::Pending;
        }
        let failure = self.records.as_mut().and_then(|records| records.failure.take());
        match (received, failure) {
            (Poll::Ready(Ok(0)), None) => {
                let has_ended =
                    self.records.as_mut().map(|it| self.socket.with(|socket| it.has_ended(socket)));
                let is_end = has_ended.transpose()?.unwrap_or(true);
                Poll::Ready(Ok(if is_end { Opened::End } else { Opened::Content { kind: DATA, bytes: 0 } }))
            }
            (Poll::Ready(Ok(bytes @ 1..)), _) => {
                self.count_received(bytes);
                Poll::Ready(Ok(Opened::Content { kind: DATA, bytes }))
            }
            (Poll::Ready(Err(error)), _) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                self.poll_recv_control(cx, into)
            }
            // It is told once.
            (Poll::Pending | Poll::Ready(Ok(_)), Some(failure)) => Poll::Ready(Err(failure.into())),
            (Poll::Ready(Err(error)), _) => {
                self.clear_error();
                Poll::Ready(Err(error))
            }
            (Poll::Pending, None) => Poll::Pending,
        }
    }

    fn poll_send_control(&mut self, cx: &mut Context<'_>, record: ControlRecord) -> Poll<io::Result<()>> {
        let call = |socket: BorrowedFd<'_>| send_record(socket, record.kind(), record.content());
        let sent = ready!(self.socket.poll_io(cx, Interest::Write, call))?;
        self.count_sent(sent);
        Poll::Ready(Ok(()))
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(wait) = &mut self.flush {
                ready!(Pin::new(&mut wait.0).poll(cx));
            }
            let now = self.socket.now();
            let begun = self.flush.as_ref().map_or(now, |wait| wait.1);
            let passed = now - begun;
            if passed > FLUSH_TIMEOUT || self.is_flushed() {
                self.flush = None;
                return Poll::Ready(());
            }
            let pause = FLUSH_PAUSE.max(passed / FLUSH_PAUSE_PART);
            self.flush = Some(Box::new((self.socket.sleep(pause), begun)));
        }
    }

    fn is_closed(&self) -> bool {
        self.socket.with(tcp_info).map_or(true, |info| info.tcpi_state == CLOSED)
    }

    fn sealed_records(&self) -> io::Result<u64> {
        let records = self.records.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        self.socket.with(|socket| records.sealed(socket))
    }

    fn can_splice(&self) -> bool {
        true
    }

    fn poll_recv_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<Piped>>> {
        if self.opens_records() {
            return self.poll_pipe_records(cx, pipe, limit);
        }
        let call = |socket: BorrowedFd<'_>| splice(socket, None, &pipe.write, None, limit, SPLICE);
        let moved = self.socket.poll_io(cx, Interest::Read, call);
        match moved {
            // An urgent mark stops splice(2), which then finds nothing, or an end that is behind more bytes: receiving tells.
            Poll::Ready(Ok(0)) => return None,
            Poll::Ready(Ok(bytes)) => {
                self.count_received(bytes);
            }
            Poll::Ready(Err(_)) => {}
            // Where it is only put off, nothing is known of what waits.
            Poll::Pending if self.socket.is_put_off() => {}
            Poll::Pending => self.socket.exhausted(Interest::Read),
        }
        Some(moved.map_ok(|bytes| Piped { bytes, last_record: 0 }))
    }

    fn poll_send_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        let call = |socket: BorrowedFd<'_>| splice(&pipe.read, None, socket, None, limit, SPLICE);
        let moved = self.socket.poll_io(cx, Interest::Write, call);
        if moved.is_pending() && self.seals_records() {
            self.push();
        }
        Some(moved.map_ok(|bytes| {
            self.count_sent(bytes);
            bytes
        }))
    }
}

impl TcpStream {
    /// One call moves one record at most.
    fn poll_pipe_records(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<Piped>>> {
        let mut moved = Piped::default();
        for _ in 0..pipe.records() {
            if moved.bytes >= limit {
                break;
            }
            let left = limit - moved.bytes;
            let call = |socket: BorrowedFd<'_>| match splice(socket, None, &pipe.write, None, left, SPLICE) {
                // It may be the pipe that is full.
                Err(Errno::AGAIN) if moved.bytes > 0 => Ok(0),
                moved => moved,
            };
            match self.socket.poll_io(cx, Interest::Read, call) {
                Poll::Ready(Ok(bytes)) if bytes > 0 => {
                    self.count_received(bytes);
                    moved = Piped { bytes: moved.bytes + bytes, last_record: bytes };
                }
                Poll::Pending if moved.bytes == 0 => return Some(Poll::Pending),
                // A record that is no data, or can't be opened: receiving tells which.
                Poll::Ready(Err(error)) => {
                    self.clear_error();
                    if let Some(records) = &mut self.records {
                        records.failure = Errno::from_io_error(&error);
                    }
                    break;
                }
                // One that is empty, or the end.
                Poll::Pending | Poll::Ready(Ok(_)) => break,
            }
        }
        (moved.bytes > 0).then_some(Poll::Ready(Ok(moved)))
    }
}

impl Drop for TcpStream {
    /// Bytes were counted as the program saw them; those that the kernel has added to them are counted here.
    fn drop(&mut self) {
        let Some(mut records) = self.records.take() else { return };
        for way in [Way::Receive, Way::Send] {
            self.count_overhead(way, self.socket.with(|socket| records.overhead(socket, way)));
        }
    }
}

fn tcp_sample(info: &libc::tcp_info) -> TcpSample {
    TcpSample {
        rtt_us: info.tcpi_rtt,
        rtt_variation_us: info.tcpi_rttvar,
        delivery_rate: info.tcpi_delivery_rate,
        retransmitted_segments: info.tcpi_total_retrans,
        unsent: info.tcpi_notsent_bytes,
    }
}

/// Without an option sessions go on, with what the kernel lets stand. Said once: it is a property of the host.
fn note_unbounded<T>(bounded: io::Result<T>) -> Option<T> {
    static ONCE: Once = Once::new();
    match bounded {
        Ok(done) => Some(done),
        Err(error) => {
            // The first listeners are made before there is a log.
            if tracing::enabled!(tracing::Level::WARN) {
                ONCE.call_once(|| {
                    tracing::warn!(detail = %error, "the kernel can't bound the queues of sessions");
                });
            }
            None
        }
    }
}

fn note_no_pipe(error: Option<io::Error>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let detail = error.map_or_else(|| "it is too small".to_owned(), |error| error.to_string());
        tracing::warn!(
            detail,
            "no pipe for records that the kernel opens: sessions' TLS is done by this program"
        );
    });
}

/// The content type of application data (RFC 8446 5.1).
const DATA: u8 = 23;
/// The state of a connection that is over, as `TCP_INFO` tells it (RFC 9293 3.3.2).
const CLOSED: u8 = 7;
/// How soon it is looked whether what the kernel has sealed was sent, before a FIN; later ones take a part of the time that
/// has passed. And for how long.
const FLUSH_PAUSE: Duration = Duration::from_millis(5);
const FLUSH_PAUSE_PART: u32 = 8;
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
