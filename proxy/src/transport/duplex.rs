//! A byte stream inside the program: what is sent into one end comes out of the other. It carries a request that has no
//! connection of its own. Of one thread; each direction holds a bounded number of bytes, and touches no socket.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::runtime::buffer::Buffer;
use crate::transport::pipes::Pipe;
use crate::transport::stream::{Route, Standing, Stream};

/// Bytes that one direction holds.
const CAPACITY: usize = 32 * 1024;

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    bytes: Buffer,
    /// No more will be sent.
    has_ended: bool,
    /// The receiver is gone, or the sender without having ended.
    is_broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

/// One end.
#[derive(Debug)]
pub struct Duplex {
    incoming: Rc<RefCell<Lane>>,
    outgoing: Rc<RefCell<Lane>>,
}

impl Duplex {
    /// The two ends of a stream.
    pub fn pair() -> (Self, Self) {
        let (one, other) = <(Rc<RefCell<Lane>>, Rc<RefCell<Lane>>)>::default();
        (Self { incoming: one.clone(), outgoing: other.clone() }, Self { incoming: other, outgoing: one })
    }

    /// Shows what has come to `take`, which tells how much of it it has used. None at the end; an error where the other end
    /// has gone without having ended.
    pub fn poll_take<T>(
        &self,
        cx: &Context<'_>,
        take: impl FnOnce(&[u8]) -> (usize, T),
    ) -> Poll<io::Result<Option<T>>> {
        let mut lane = self.incoming.borrow_mut();
        if lane.is_broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if lane.bytes.is_empty() {
            if lane.has_ended {
                return Poll::Ready(Ok(None));
            }
            lane.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let (used, taken) = take(lane.bytes.filled());
        lane.bytes.consume(used);
        lane.bytes.release();
        lane.writer.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(Some(taken)))
    }

    /// Sends what fits.
    pub fn poll_put(&self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut lane = self.outgoing.borrow_mut();
        if lane.is_broken || lane.has_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let fits = bytes.len().min(CAPACITY.saturating_sub(lane.bytes.len()));
        if fits == 0 && !bytes.is_empty() {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        lane.bytes.push(&bytes[..fits]);
        lane.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(fits))
    }

    /// Ready once nobody takes any more what is sent.
    pub fn poll_refused(&self, cx: &Context<'_>) -> Poll<()> {
        let mut lane = self.outgoing.borrow_mut();
        if lane.is_broken {
            return Poll::Ready(());
        }
        lane.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Says that no more bytes will be sent.
    pub fn end(&self) {
        let mut lane = self.outgoing.borrow_mut();
        lane.has_ended = true;
        lane.wake();
    }

    /// Breaks the stream, both ways, as the reset of a connection does.
    pub fn reset(&self) {
        for lane in [&self.incoming, &self.outgoing] {
            let mut lane = lane.borrow_mut();
            lane.is_broken = true;
            lane.wake();
        }
    }
}

/// What was sent before still arrives; what would be sent here is refused.
impl Drop for Duplex {
    fn drop(&mut self) {
        self.end();
        let mut incoming = self.incoming.borrow_mut();
        incoming.is_broken = true;
        incoming.wake();
    }
}

impl Stream for Duplex {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let received = self.poll_take(cx, |bytes| {
            let fits = bytes.len().min(into.len());
            into[..fits].copy_from_slice(&bytes[..fits]);
            (fits, fits)
        });
        received.map_ok(|received| received.unwrap_or(0))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_put(cx, bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.end();
        Ok(())
    }
}

/// A stream of the outside world, or one inside the program.
#[derive(Debug)]
pub enum AnyStream<S> {
    /// Of the outside world.
    Outside(S),
    /// Inside the program.
    Inside(Duplex),
}

impl<S> From<Duplex> for AnyStream<S> {
    fn from(stream: Duplex) -> Self {
        Self::Inside(stream)
    }
}

impl<S: Stream> Stream for AnyStream<S> {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Outside(stream) => stream.poll_recv(cx, into),
            Self::Inside(stream) => stream.poll_recv(cx, into),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Outside(stream) => stream.poll_send(cx, bytes),
            Self::Inside(stream) => stream.poll_send(cx, bytes),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Outside(stream) => stream.finish(),
            Self::Inside(stream) => stream.finish(),
        }
    }

    fn is_put_off(&self) -> bool {
        match self {
            Self::Outside(stream) => stream.is_put_off(),
            Self::Inside(_) => false,
        }
    }

    fn bound_unsent(&mut self, bytes: usize) {
        if let Self::Outside(stream) = self {
            stream.bound_unsent(bytes);
        }
    }

    fn bound_unread(&mut self, bytes: usize) {
        if let Self::Outside(stream) = self {
            stream.bound_unread(bytes);
        }
    }

    fn route(&self) -> Option<Route> {
        match self {
            Self::Outside(stream) => stream.route(),
            Self::Inside(_) => None,
        }
    }

    fn standing(&self) -> Standing {
        match self {
            Self::Outside(stream) => stream.standing(),
            Self::Inside(_) => Standing::default(),
        }
    }

    fn can_splice(&self) -> bool {
        match self {
            Self::Outside(stream) => stream.can_splice(),
            Self::Inside(_) => false,
        }
    }

    fn poll_recv_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        match self {
            Self::Outside(stream) => stream.poll_recv_pipe(cx, pipe, limit),
            Self::Inside(_) => None,
        }
    }

    fn poll_send_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        match self {
            Self::Outside(stream) => stream.poll_send_pipe(cx, pipe, limit),
            Self::Inside(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(end: &Duplex, bytes: &[u8]) -> Poll<Result<usize, io::ErrorKind>> {
        end.poll_put(&Context::from_waker(Waker::noop()), bytes).map_err(|error| error.kind())
    }

    fn received(end: &mut Duplex) -> Poll<Result<Vec<u8>, io::ErrorKind>> {
        let mut room = vec![0; CAPACITY];
        let got = end.poll_recv(&mut Context::from_waker(Waker::noop()), &mut room);
        got.map_ok(|got| room[..got].to_vec()).map_err(|error| error.kind())
    }

    #[test]
    fn it_holds_so_much_and_no_more() {
        let (near, mut far) = Duplex::pair();
        assert_eq!(sent(&near, &vec![1; CAPACITY + 10]), Poll::Ready(Ok(CAPACITY)));
        assert_eq!(sent(&near, &[2]), Poll::Pending);
        assert_eq!(received(&mut far), Poll::Ready(Ok(vec![1; CAPACITY])));
        assert_eq!(received(&mut far), Poll::Pending);
        assert_eq!(sent(&near, &[2]), Poll::Ready(Ok(1)));
    }

    #[test]
    fn what_was_sent_before_an_end_arrives_and_what_was_sent_before_a_reset_does_not() {
        let (near, mut far) = Duplex::pair();
        assert_eq!(sent(&near, b"last"), Poll::Ready(Ok(4)));
        drop(near);
        assert_eq!(sent(&far, b"x"), Poll::Ready(Err(io::ErrorKind::BrokenPipe)));
        assert_eq!(received(&mut far), Poll::Ready(Ok(b"last".to_vec())));
        assert_eq!(received(&mut far), Poll::Ready(Ok(Vec::new())));
        let (near, mut far) = Duplex::pair();
        assert_eq!(sent(&near, b"last"), Poll::Ready(Ok(4)));
        assert!(near.poll_refused(&Context::from_waker(Waker::noop())).is_pending());
        near.reset();
        assert!(near.poll_refused(&Context::from_waker(Waker::noop())).is_ready());
        assert_eq!(received(&mut far), Poll::Ready(Err(io::ErrorKind::ConnectionReset)));
    }
}
