//! Events of sockets, from `io_uring` or epoll.

use rustix::event::PollFlags;

/// Names a socket to the kernel, for as long as it is watched. The highest bit is not used.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Token(pub u64);

/// An event on a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// The socket.
    pub token: Token,
    /// Its state (poll(2)).
    pub flags: PollFlags,
    /// Nothing more will be reported unless the socket is added again.
    pub ended: bool,
}

impl Event {
    const OVER: PollFlags = PollFlags::HUP.union(PollFlags::ERR);

    /// An event with the flags of poll(2), or an error number below zero.
    pub fn new(token: Token, flags: impl TryInto<u16>) -> Self {
        let flags = flags.try_into().map_or(PollFlags::ERR, PollFlags::from_bits_retain);
        Self { token, flags, ended: false }
    }

    /// Bytes, an end or an error are there to be read.
    pub fn is_readable(self) -> bool {
        self.flags.intersects(Self::OVER | PollFlags::IN | PollFlags::RDHUP)
    }

    /// There is room, or an error to be met.
    pub fn is_writable(self) -> bool {
        self.flags.intersects(Self::OVER | PollFlags::OUT)
    }

    /// The peer sends no more, so that a short read no longer means that nothing is left.
    pub fn is_hung_up(self) -> bool {
        self.flags.intersects(Self::OVER | PollFlags::RDHUP)
    }
}
