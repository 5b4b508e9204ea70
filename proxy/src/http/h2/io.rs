//! A side of a connection as the `h2` crate wants it, which reads and writes by copying. Looks at the frames that it reads.
//! What the crate has written is sent when the connection's owner says so: the crate would send after each frame.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::h2::frame_guard::{FrameGuard, Violation};
use crate::transport::endpoint::{Endpoint, EndpointError, WorkerBuffers};
use crate::transport::net::Runtime;
use crate::transport::stream::Stream;

/// Bytes that are sealed at a time: what one TLS record holds (RFC 8446 5.1).
const WRITE_BYTES_MAX: usize = 16 * 1024;
/// Room for what is written that an idle connection keeps.
const KEPT_BYTES: usize = 1024;

/// A client's side, which the crate reads and writes and its owner sends.
pub(crate) struct ClientSide<S> {
    endpoint: RefCell<Box<Endpoint<S>>>,
    /// What was written and not sent.
    written: RefCell<Vec<u8>>,
    violation: Cell<Option<Violation>>,
}

impl<S: Stream> ClientSide<S> {
    /// A side that has not said anything of HTTP/2 yet, or has it in its buffer.
    pub(crate) fn new(endpoint: Box<Endpoint<S>>) -> Rc<Self> {
        let endpoint = RefCell::new(endpoint);
        Rc::new(Self { endpoint, written: RefCell::default(), violation: Cell::default() })
    }

    /// What the client has done that its connection is ended for.
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    /// The side alone, once the crate has let go of it, with what is still to be sent.
    pub(crate) fn into_endpoint(self: Rc<Self>) -> Option<Box<Endpoint<S>>> {
        let Self { endpoint, written, .. } = Rc::into_inner(self)?;
        let mut endpoint = endpoint.into_inner();
        endpoint.write(&written.into_inner()).ok()?;
        Some(endpoint)
    }

    /// Sends what was written, once what was sent before is taken.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (mut endpoint, mut written) = (self.endpoint.borrow_mut(), self.written.borrow_mut());
        ready!(endpoint.poll_flush(cx)).map_err(as_io)?;
        if written.is_empty() {
            return Poll::Ready(Ok(()));
        }
        endpoint.write(&written).map_err(as_io)?;
        written.clear();
        written.shrink_to(KEPT_BYTES);
        endpoint.poll_flush(cx).map_err(as_io)
    }
}

fn as_io(error: EndpointError) -> io::Error {
    match error {
        EndpointError::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// The crate's end of a client's side.
pub(crate) struct ClientIo<'a, N: Runtime> {
    side: Rc<ClientSide<N::Stream>>,
    net: &'a N,
    buffers: &'a RefCell<WorkerBuffers>,
    guard: FrameGuard,
    /// Something was received, and not put off since.
    was_filled: bool,
}

impl<'a, N: Runtime> ClientIo<'a, N> {
    pub(crate) fn new(
        side: Rc<ClientSide<N::Stream>>,
        net: &'a N,
        buffers: &'a RefCell<WorkerBuffers>,
    ) -> Self {
        Self { side, net, buffers, guard: FrameGuard::new(net.now()), was_filled: false }
    }
}

impl<N: Runtime> AsyncRead for ClientIo<'_, N> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { side, net, buffers, guard, was_filled } = self.get_mut();
        if side.violation().is_some() {
            // The connection is about to be ended: nothing more is taken in.
            return Poll::Pending;
        }
        let mut endpoint = side.endpoint.borrow_mut();
        if endpoint.read_buf.is_empty() {
            // Hundreds of requests may be in one receive: others have their turn before the next.
            if std::mem::take(was_filled) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let gained = ready!(endpoint.poll_fill(cx, &mut buffers.borrow_mut())).map_err(as_io)?;
            *was_filled = true;
            if gained == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let bytes = endpoint.read_buf.filled();
        let bytes = &bytes[..bytes.len().min(into.remaining())];
        if let Err(violation) = guard.look(bytes, net.now()) {
            side.violation.set(Some(violation));
            // Whoever ends the connection is the same task.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        into.put_slice(bytes);
        let used = bytes.len();
        endpoint.read_buf.consume(used);
        endpoint.read_buf.release();
        Poll::Ready(Ok(()))
    }
}

impl<N: Runtime> AsyncWrite for ClientIo<'_, N> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.side.written.borrow().len() >= WRITE_BYTES_MAX {
            ready!(self.side.poll_send(cx))?;
        }
        let mut written = self.side.written.borrow_mut();
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES_MAX - written.len())];
        written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Leaves it to the owner, who sends after each run of the crate.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.side.poll_send(cx))?;
        self.side.endpoint.borrow_mut().poll_finish(cx, true).map_err(as_io)
    }
}
