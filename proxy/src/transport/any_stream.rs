//! A stream of the outside world, or one that is made inside the program of something else: a request that has no connection
//! of its own. Adds nothing to either.

use std::io;
use std::task::{Context, Poll};

use crate::observe::session_stats::TcpProbe;
use crate::tls::{ControlRecord, KernelKey, Way};
use crate::transport::kernel_tls::KernelTls;
use crate::transport::pipes::Pipe;
use crate::transport::stream::{Opened, Piped, Route, Standing, Stream};

/// A stream that is made inside the program.
pub type InsideStream = Box<dyn Stream>;

/// One or the other.
pub enum AnyStream<S> {
    /// Of the outside world.
    Outside(S),
    /// Made inside the program.
    Inside(InsideStream),
}

impl<S> From<InsideStream> for AnyStream<S> {
    fn from(stream: InsideStream) -> Self {
        Self::Inside(stream)
    }
}

impl<S: Stream> AnyStream<S> {
    fn any(&self) -> &dyn Stream {
        match self {
            Self::Outside(stream) => stream,
            Self::Inside(stream) => &**stream,
        }
    }

    fn any_mut(&mut self) -> &mut dyn Stream {
        match self {
            Self::Outside(stream) => stream,
            Self::Inside(stream) => &mut **stream,
        }
    }
}

impl<S: Stream> Stream for AnyStream<S> {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.any_mut().poll_recv(cx, into)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.any_mut().poll_send(cx, bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.any_mut().finish()
    }

    fn is_put_off(&self) -> bool {
        self.any().is_put_off()
    }

    fn bound_unsent(&mut self, bytes: usize) {
        self.any_mut().bound_unsent(bytes);
    }

    fn bound_unread(&mut self, bytes: usize) {
        self.any_mut().bound_unread(bytes);
    }

    fn route(&self) -> Option<Route> {
        self.any().route()
    }

    fn standing(&self) -> Standing {
        self.any().standing()
    }

    fn probe(&self) -> Option<TcpProbe> {
        self.any().probe()
    }

    fn kernel_tls(&self) -> KernelTls {
        self.any().kernel_tls()
    }

    fn set_record_key(&mut self, way: Way, key: &KernelKey) -> io::Result<()> {
        self.any_mut().set_record_key(way, key)
    }

    fn poll_recv_records(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<Opened>> {
        self.any_mut().poll_recv_records(cx, into)
    }

    fn poll_send_control(&mut self, cx: &mut Context<'_>, record: ControlRecord) -> Poll<io::Result<()>> {
        self.any_mut().poll_send_control(cx, record)
    }

    fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.any_mut().poll_flushed(cx)
    }

    fn is_closed(&self) -> bool {
        self.any().is_closed()
    }

    fn sealed_records(&self) -> io::Result<u64> {
        self.any().sealed_records()
    }

    fn can_splice(&self) -> bool {
        self.any().can_splice()
    }

    fn poll_recv_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<Piped>>> {
        self.any_mut().poll_recv_pipe(cx, pipe, limit)
    }

    fn poll_send_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        self.any_mut().poll_send_pipe(cx, pipe, limit)
    }
}
