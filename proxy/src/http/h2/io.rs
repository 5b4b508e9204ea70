//! A side of a connection as the `h2` crate wants it, which reads and writes by copying. Looks at the frames that it reads.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::h2::frame_guard::{FrameGuard, Violation};
use crate::transport::endpoint::{Endpoint, EndpointError, WorkerBuffers};
use crate::transport::net::Runtime;

/// Bytes that are sealed at a time: what one TLS record holds (RFC 8446 5.1).
const WRITE_BYTES_MAX: usize = 16 * 1024;
/// Room for what is written that an idle connection keeps.
const KEPT_BYTES: usize = 1024;

/// What the connection's owner is told by its reader, which the `h2` crate keeps.
pub(crate) struct FrameWatch<S> {
    violation: Cell<Option<Violation>>,
    released: RefCell<Option<Box<Endpoint<S>>>>,
}

impl<S> Default for FrameWatch<S> {
    fn default() -> Self {
        Self { violation: Cell::default(), released: RefCell::default() }
    }
}

impl<S> FrameWatch<S> {
    /// What the client has done that its connection is ended for.
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    /// The client's side once the crate has let go of it.
    pub(crate) fn released(&self) -> Option<Box<Endpoint<S>>> {
        self.released.take()
    }
}

/// A client's side.
pub(crate) struct ClientIo<'a, N: Runtime> {
    /// There until it is dropped.
    endpoint: Option<Box<Endpoint<N::Stream>>>,
    net: &'a N,
    buffers: &'a RefCell<WorkerBuffers>,
    /// What was written and is sent by the next flush: the crate writes a frame in pieces.
    written: Vec<u8>,
    guard: FrameGuard,
    /// Something was received, and not put off since.
    was_filled: bool,
    watch: Rc<FrameWatch<N::Stream>>,
}

impl<N: Runtime> Drop for ClientIo<'_, N> {
    fn drop(&mut self) {
        self.watch.released.replace(self.endpoint.take());
    }
}

impl<'a, N: Runtime> ClientIo<'a, N> {
    /// A side that has not said anything of HTTP/2 yet, or has it in its buffer.
    pub(crate) fn new(
        endpoint: Box<Endpoint<N::Stream>>,
        net: &'a N,
        buffers: &'a RefCell<WorkerBuffers>,
        watch: Rc<FrameWatch<N::Stream>>,
    ) -> Self {
        Self {
            endpoint: Some(endpoint),
            net,
            buffers,
            written: Vec::new(),
            guard: FrameGuard::new(net.now()),
            was_filled: false,
            watch,
        }
    }
}

impl<N: Runtime> ClientIo<'_, N> {
    /// Sends what was written, once what was sent before is taken.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(endpoint) = &mut self.endpoint else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        ready!(endpoint.poll_flush(cx)).map_err(as_io)?;
        endpoint.write(&self.written).map_err(as_io)?;
        self.written.clear();
        self.written.shrink_to(KEPT_BYTES);
        endpoint.poll_flush(cx).map_err(as_io)
    }

    fn endpoint(&mut self) -> io::Result<&mut Endpoint<N::Stream>> {
        self.endpoint.as_deref_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

fn as_io(error: EndpointError) -> io::Error {
    match error {
        EndpointError::Io(error) => error,
        error => io::Error::other(error),
    }
}

impl<N: Runtime> AsyncRead for ClientIo<'_, N> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { endpoint: Some(endpoint), net, buffers, guard, was_filled, watch, .. } = self.get_mut()
        else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if watch.violation().is_some() {
            // The connection is about to be ended: nothing more is taken in.
            return Poll::Pending;
        }
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
            watch.violation.set(Some(violation));
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
        let this = self.get_mut();
        if this.written.len() >= WRITE_BYTES_MAX {
            ready!(this.poll_send(cx))?;
        }
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES_MAX - this.written.len())];
        this.written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        this.endpoint()?.poll_finish(cx, true).map_err(as_io)
    }
}
