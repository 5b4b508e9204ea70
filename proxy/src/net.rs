//! What a connection asks of the outside world: streams that are read and written once they are ready, new
//! streams to agents, the time, and its turn. Production is [`Kernel`]; the tests put a simulated wire in its place.
//! Nothing here ever parks a buffer in the kernel: a wait can be given up without losing a byte.

use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::pipe::{SpliceFlags, splice};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::splice::Pipe;

/// A connected byte stream.
pub trait Stream {
    /// Receives what is there; 0 at the peer's end. Wakes the task once there is something.
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Sends what fits. Wakes the task once there is room.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Says that no more bytes will be sent.
    fn finish(&mut self) -> io::Result<()>;

    /// Moves up to `limit` received bytes into `pipe` inside the kernel; `None` where streams can't do that.
    fn poll_recv_pipe(
        &mut self,
        _: &mut Context<'_>,
        _: &Pipe,
        _limit: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        None
    }

    /// Moves up to `limit` bytes from `pipe` to the peer inside the kernel.
    fn poll_send_pipe(
        &mut self,
        _: &mut Context<'_>,
        _: &Pipe,
        _limit: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        None
    }
}

/// What was waited for did not come in time.
#[derive(Debug)]
pub struct Elapsed;

/// Where streams and the time come from.
pub trait Net {
    /// The streams it makes.
    type Stream: Stream;
    /// A wait for a time.
    type Sleep: Future<Output = ()>;

    /// Connects to an agent. The caller limits the time.
    fn connect(&self, agent: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>>;

    /// The time.
    fn now(&self) -> Instant;

    /// Waits for `time` from now on.
    fn sleep(&self, time: Duration) -> Self::Sleep;

    /// Lets every other task that is ready have its turn before this one goes on.
    fn breathe(&self) -> impl Future<Output = ()>;

    /// Does `work` for as long as `limit` at the most.
    fn timeout<F: Future>(
        &self,
        limit: Duration,
        work: F,
    ) -> impl Future<Output = Result<F::Output, Elapsed>> {
        async move {
            let (mut work, mut limit) = (pin!(work), pin!(self.sleep(limit)));
            poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Ok(done)),
                Poll::Pending => limit.as_mut().poll(cx).map(|()| Err(Elapsed)),
            })
            .await
        }
    }
}

/// The kernel's network, seen from inside a tokio-uring runtime.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// How long sent bytes may stay unacknowledged, or a closed window closed (`TCP_USER_TIMEOUT`, tcp(7)).
    pub stall: Duration,
}

impl Net for Kernel {
    type Stream = KernelStream;
    type Sleep = tokio::time::Sleep;

    async fn connect(&self, agent: SocketAddr) -> io::Result<KernelStream> {
        self.adopt(TcpStream::connect(agent).await?)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        tokio::time::sleep(time)
    }

    /// A task that only puts itself back on the run queue keeps the runtime from looking at the kernel; a
    /// round trip through the ring does not.
    async fn breathe(&self) {
        let _ = tokio_uring::no_op().await;
    }
}

impl Kernel {
    const KEEPALIVE: Duration = Duration::from_secs(30);

    /// Sets what every connection of the proxy has: no Nagle delay, keepalive, a limit on stalling.
    pub fn adopt(&self, socket: TcpStream) -> io::Result<KernelStream> {
        let options = SockRef::from(&socket);
        options.set_tcp_nodelay(true)?;
        options.set_tcp_keepalive(
            &TcpKeepalive::new().with_time(Self::KEEPALIVE).with_interval(Self::KEEPALIVE),
        )?;
        options.set_tcp_user_timeout(Some(self.stall))?;
        Ok(KernelStream(socket))
    }
}

/// A TCP socket of the kernel.
#[derive(Debug)]
pub struct KernelStream(TcpStream);

impl Stream for KernelStream {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut into = ReadBuf::new(into);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut into))?;
        Poll::Ready(Ok(into.filled().len()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        SockRef::from(&self.0).shutdown(Shutdown::Write)
    }

    fn poll_recv_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        let into = |socket: &TcpStream| Ok(splice(socket, None, &pipe.write, None, limit, SPLICE)?);
        Some(when_ready(&self.0, Interest::READABLE, || self.0.poll_read_ready(cx), into))
    }

    fn poll_send_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        let from = |socket: &TcpStream| Ok(splice(&pipe.read, None, socket, None, limit, SPLICE)?);
        Some(when_ready(&self.0, Interest::WRITABLE, || self.0.poll_write_ready(cx), from))
    }
}

/// Does `call` once the socket is ready; where it turns out not to be, the task is woken when it is.
fn when_ready(
    socket: &TcpStream,
    interest: Interest,
    mut poll_ready: impl FnMut() -> Poll<io::Result<()>>,
    call: impl Fn(&TcpStream) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(poll_ready())?;
        match socket.try_io(interest, || call(socket)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            done => return Poll::Ready(done),
        }
    }
}

const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
