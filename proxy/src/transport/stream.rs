//! A connected byte stream, whatever it is made of. Decides nothing.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::observe::session_stats::TcpProbe;
use crate::tls::{ControlRecord, KernelKey, Way};
use crate::transport::kernel_tls::KernelTls;
use crate::transport::pipes::Pipe;

/// The way to a side.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The shortest that was seen.
    pub round_trip: Duration,
    /// Payload of a full segment, in bytes.
    pub segment: usize,
}

/// Bytes that stand in a stream's own buffers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// Received and not read.
    pub unread: u64,
    /// Taken and not sent.
    pub unsent: u64,
}

/// Bytes that were moved into a pipe.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Piped {
    /// All of them; 0 at the end.
    pub bytes: usize,
    /// Those of the last record, or of the part of it that was asked for, where the kernel opens records.
    pub last_record: usize,
}

/// What was received of records that the kernel opens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opened {
    /// The stream has ended.
    End,
    /// Content of one record, or of several that are data.
    Content {
        /// Their type (RFC 8446 5.1).
        kind: u8,
        /// Bytes.
        bytes: usize,
    },
}

/// A connected byte stream.
pub trait Stream {
    /// Receives what is there; 0 at the peer's end. Wakes the task once there is something.
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Sends what fits. Wakes the task once there is room.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Says that no more bytes will be sent.
    fn finish(&mut self) -> io::Result<()>;

    /// Whether a call that was pending may only have been put off, as the task has done enough for now. It is then
    /// polled again by itself.
    fn is_put_off(&self) -> bool {
        false
    }

    /// Bounds what the kernel takes for this side and has not sent yet, in bytes. It may take one more send. Streams that
    /// can't be bounded are left as they are.
    fn bound_unsent(&mut self, _bytes: usize) {}

    /// Bounds what this side may have on its way and unread, in bytes. What it was allowed before may still come.
    fn bound_unread(&mut self, _bytes: usize) {}

    /// The way to this side, where it is known.
    fn route(&self) -> Option<Route> {
        None
    }

    /// What stands in its buffers now.
    fn standing(&self) -> Standing {
        Standing::default()
    }

    /// A way to ask the kernel of its connection, where it is one.
    fn probe(&self) -> Option<TcpProbe> {
        None
    }

    /// Which TLS the kernel may do on this stream.
    fn kernel_tls(&self) -> KernelTls {
        KernelTls::NONE
    }

    /// Has the kernel open or seal the records of a way from here on, or do so with another key.
    fn set_record_key(&mut self, _: Way, _: &KernelKey) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Receives what is there of records that the kernel opens. Wakes the task once there is something.
    fn poll_recv_records(&mut self, _: &mut Context<'_>, _into: &mut [u8]) -> Poll<io::Result<Opened>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Has the kernel seal and send a record of its own. Wakes the task once there is room.
    fn poll_send_control(&mut self, _: &mut Context<'_>, _: ControlRecord) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Ready once all that the kernel was given to seal is on its way, so that a FIN comes behind it.
    fn poll_flushed(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// Whether both sides have ended, or the peer is gone: closing can't reset it any more.
    fn is_closed(&self) -> bool {
        true
    }

    /// Records that the kernel has sealed with the present key.
    fn sealed_records(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether bytes can be moved inside the kernel.
    fn can_splice(&self) -> bool {
        false
    }

    /// Moves up to `limit` received bytes into `pipe` inside the kernel; `None` where that can't be done now.
    fn poll_recv_pipe(
        &mut self,
        _: &mut Context<'_>,
        _: &Pipe,
        _limit: usize,
    ) -> Option<Poll<io::Result<Piped>>> {
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
