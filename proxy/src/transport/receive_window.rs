//! How much a side may send ahead: the receive window of its connection. The kernel never takes back a window that
//! it has offered, and drops what comes beyond the buffer, so that a buffer is made smaller only when all that was
//! offered before has come (tcp(7), `SO_RCVBUF` in socket(7)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{SockRef, Socket};

use crate::runtime::io_uring::{lock_receive_buffer, set_window_clamp, unlock_buffers};

/// What is offered in the handshake: less than an agent's first flights, so that its own buffer, which grows with them
/// and never shrinks, stays small.
const FIRST_BYTES: usize = 32 * 1024;
/// For a body before a session that is longer than the first window: at a round trip of a millisecond over a gigabit a
/// second. Every kernel allows it (`net.core.rmem_max`), and so much may stand for a client that takes nothing.
pub(super) const BODY_BYTES: usize = 208 * 1024;

/// What a window has to hold at least: with fewer segments a sender waits for acknowledgements that are put off (RFC 1122
/// 4.2.3.2 and 4.2.3.4), 40 ms each.
pub(crate) fn segments(segment: usize) -> usize {
    4 * segment
}

/// The window of one connection.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    /// Bytes received in all.
    received: u64,
    /// The buffer (`SO_RCVBUF`, which the kernel doubles for its own needs).
    buffer: usize,
    /// The largest window that is offered.
    clamp: usize,
    /// What had been received when buffer or clamp were made smaller: as much as the buffer may still be on its way.
    since: u64,
    /// A session decides.
    is_bounded: bool,
}

impl ReceiveWindow {
    /// Makes the first window small, and lets it grow later: the handshake tells its scale, once and for all.
    pub(super) fn prepare(socket: &Socket) -> io::Result<()> {
        // A kernel that does not know how would hold the connection to the first window for ever.
        unlock_buffers(socket.as_fd())?;
        socket.set_recv_buffer_size(FIRST_BYTES)?;
        unlock_buffers(socket.as_fd())
    }

    /// That of a connection which has just been made. `segment`: payload of a full segment, in bytes.
    pub(super) fn open(socket: BorrowedFd<'_>, segment: usize) -> io::Result<Self> {
        let mut window =
            Self { received: 0, buffer: FIRST_BYTES, clamp: FIRST_BYTES, since: 0, is_bounded: false };
        window.enlarge(socket, FIRST_BYTES.max(segments(segment)))?;
        Ok(window)
    }

    /// Takes over that of a connection whose window the kernel has chosen so far.
    pub(super) fn take_over(socket: BorrowedFd<'_>) -> io::Result<Self> {
        lock_receive_buffer(socket)?;
        // The kernel tells twice what was asked for (socket(7)).
        let buffer = SockRef::from(&socket).recv_buffer_size()? / 2;
        Ok(Self { received: 0, buffer, clamp: buffer, since: 0, is_bounded: true })
    }

    /// Lets the kernel choose again.
    pub(super) fn give_back(mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        unlock_buffers(socket)?;
        self.set_clamp(socket, usize::MAX)
    }

    /// Counts received bytes; a body that is longer than the first window opens it.
    pub(super) fn count(&mut self, socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
        self.received += bytes as u64;
        if self.is_bounded || self.buffer >= BODY_BYTES || self.received < 2 * FIRST_BYTES as u64 {
            return Ok(());
        }
        self.enlarge(socket, BODY_BYTES)
    }

    /// Comes as near to so many bytes as it can without losing what was offered: once is enough to make it larger, and
    /// some times while bytes come to make it smaller.
    pub(super) fn bound(&mut self, socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
        self.is_bounded = true;
        if bytes > self.buffer {
            return self.enlarge(socket, bytes);
        }
        if bytes < self.buffer && self.clamp >= self.buffer {
            self.since = self.received;
        }
        if bytes != self.clamp || bytes < self.buffer {
            // Again, too: the kernel forgets it when it learns that segments are larger than it took them for.
            self.set_clamp(socket, bytes)?;
        }
        // A half at a time: with a full buffer nothing more is offered, so that nothing is on its way.
        if bytes < self.buffer && self.received - self.since >= self.buffer as u64 {
            self.set_buffer(socket, bytes.max(self.buffer / 2))?;
        }
        Ok(())
    }

    fn enlarge(&mut self, socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
        self.set_buffer(socket, bytes)?;
        self.set_clamp(socket, bytes)
    }

    fn set_clamp(&mut self, socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
        self.clamp = bytes;
        set_window_clamp(socket, bytes.try_into().unwrap_or(i32::MAX))
    }

    fn set_buffer(&mut self, socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
        SockRef::from(&socket).set_recv_buffer_size(bytes)?;
        (self.buffer, self.since) = (bytes, self.received);
        Ok(())
    }
}
