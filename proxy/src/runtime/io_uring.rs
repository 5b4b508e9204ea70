//! Readiness from a raw `io_uring`: one multishot poll per socket, its completions collected when the worker wants
//! them. All `unsafe` of the program is here, with it the socket options that no library knows. No buffer is ever lent to the
//! kernel for longer than a call.

use std::collections::HashMap;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::runtime::event::{Event, Token};

/// Entries that wait to be submitted; more are submitted early.
const SUBMISSIONS: u32 = 256;
/// Completions that wait to be collected; the kernel keeps more elsewhere (`IORING_FEAT_NODROP`).
const COMPLETIONS: u32 = 4096;
/// In `user_data`: the completion is that of a cancellation.
const CANCELLATION: u64 = 1 << 63;
/// How long sockets have to be let go of at the end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// A ring whose work is done only inside its own calls (`IORING_SETUP_DEFER_TASKRUN`, Linux 6.1), so that no
/// interrupt disturbs a turn. It belongs to the thread that made it.
pub struct Ring {
    ring: IoUring,
    /// Sockets that are closed once their poll has ended: until then it would hold them open, and no FIN would
    /// be sent.
    closing: HashMap<Token, OwnedFd>,
}

impl Ring {
    /// A ring of the calling thread. Fails where the kernel is too old or doesn't allow it.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETIONS)
            .setup_r_disabled()
            .dontfork()
            .build(SUBMISSIONS)?;
        // Nothing else is ever asked of it, and nothing else can be (io_uring_register(2)).
        let mut allowed = [opcode::PollAdd::CODE, opcode::AsyncCancel::CODE].map(Restriction::sqe_op);
        ring.submitter().register_restrictions(&mut allowed)?;
        ring.submitter().register_enable_rings()?;
        Ok(Self { ring, closing: HashMap::new() })
    }

    /// Reports what happens on `socket` from the next [`Ring::wait`] on, until [`Ring::remove`]: each change once.
    pub fn add(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let wanted = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP;
        let poll = opcode::PollAdd::new(Fd(socket.as_raw_fd()), u32::from(wanted.bits())).multi(true);
        self.push(&poll.build().user_data(token.0))
    }

    /// Closes `socket` once the kernel has let go of it.
    pub fn remove(&mut self, socket: OwnedFd, token: Token) -> io::Result<()> {
        self.closing.insert(token, socket);
        let cancel = opcode::AsyncCancel::new(token.0).build();
        self.push(&cancel.user_data(token.0 | CANCELLATION))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the only entries made are polls and cancellations. They hold a descriptor and numbers, and no
        // address that would have to stay valid. The descriptor stays open until the poll has ended: `remove`
        // takes it over.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Whether [`Ring::wait`] has something to do now; costs no system call.
    pub fn has_events(&mut self) -> bool {
        let (_, submission, completion) = self.ring.split();
        submission.taskrun() || !submission.is_empty() || !completion.is_empty()
    }

    /// Waits for the first event, `limit` at the most, and adds all there are to `events`.
    pub fn wait(&mut self, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let entered = match limit {
            None => self.ring.submit_and_wait(1),
            Some(Duration::ZERO) => self.ring.submit(),
            Some(limit) => {
                let limit = Timespec::from(limit);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        match entered.map_err(|error| (Errno::from_io_error(&error), error)) {
            // Completions that the kernel keeps elsewhere make it busy until some are collected.
            Ok(_) | Err((Some(Errno::TIME | Errno::INTR | Errno::BUSY), _)) => {}
            Err((_, error)) => return Err(error),
        }
        let Self { ring, closing } = self;
        events.extend(ring.completion().filter_map(|completion| event(&completion, closing)));
        Ok(())
    }
}

/// What a completion says of a socket that is still in use.
fn event(completion: &cqueue::Entry, closing: &mut HashMap<Token, OwnedFd>) -> Option<Event> {
    let token = Token(completion.user_data() & !CANCELLATION);
    if completion.user_data() & CANCELLATION != 0 {
        // A poll that was found ends with a completion of its own.
        if completion.result() < 0 {
            closing.remove(&token);
        }
        return None;
    }
    let ended = !cqueue::more(completion.flags());
    if ended && closing.remove(&token).is_some() {
        return None;
    }
    Some(Event { ended, ..Event::new(token, completion.result()) })
}

impl Drop for Ring {
    /// Whoever is left is told that it is over, before the program ends.
    fn drop(&mut self) {
        let end = Instant::now() + EXIT_TIMEOUT;
        while !self.closing.is_empty() && Instant::now() < end {
            if self.wait(Some(EXIT_TIMEOUT), &mut Vec::new()).is_err() {
                return;
            }
        }
    }
}
/// Sets the largest receive window that the kernel offers, in bytes (`TCP_WINDOW_CLAMP`, tcp(7)). A larger `SO_RCVBUF` alone
/// does not raise it.
pub(crate) fn set_window_clamp(socket: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
}

/// Lets the kernel choose the window's scale as if no `SO_RCVBUF` had been set (`SO_BUF_LOCK`, Linux 5.14).
pub(crate) fn unlock_buffers(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUF_LOCK, 0)
}

/// Has the kernel leave the receive buffer as large as it is (`SO_BUF_LOCK`, Linux 5.14).
pub(crate) fn lock_receive_buffer(socket: BorrowedFd<'_>) -> io::Result<()> {
    /// `SOCK_RCVBUF_LOCK` of linux/socket.h.
    const RECEIVE: libc::c_int = 2;
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUF_LOCK, RECEIVE)
}

/// What the kernel knows of a connection (`TCP_INFO`, tcp(7)). Fields that it is too old for are 0.
pub(crate) fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or(0);
    let fd = socket.as_raw_fd();
    // SAFETY: the descriptor is open for as long as it is borrowed, the kernel writes at most `length` bytes to `info`,
    // which lives until the call has returned, and every field of it is a number, for which all bits may be 0.
    let (got, info) = unsafe {
        let place = info.as_mut_ptr().cast();
        (libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length), info.assume_init())
    };
    if got == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// Prepares an established connection for keys of TLS (`TCP_ULP`, Linux 4.13; Documentation/networking/tls.rst). Without
/// any it goes on as it was. Fails where the kernel has no TLS, or not yet and may not load it (`CAP_NET_ADMIN`).
pub(crate) fn prepare_tls(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option_bytes(socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")
}

/// One of the two keys of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TlsKey {
    /// Seals what is sent.
    Send = 1,
    /// Opens what is received.
    Receive = 2,
}

/// Has the kernel seal or open the records of a connection from here on. `info`: `struct tls12_crypto_info_*` of linux/tls.h.
pub(crate) fn set_tls_key(socket: BorrowedFd<'_>, key: TlsKey, info: &[u8]) -> io::Result<()> {
    set_option_bytes(socket, libc::SOL_TLS, key as libc::c_int, info)
}

/// The same as the kernel has it, with the count of records. `info` has as many bytes as it was set with.
pub(crate) fn tls_key(socket: BorrowedFd<'_>, key: TlsKey, info: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(info.len()).unwrap_or(0);
    let place = info.as_mut_ptr().cast();
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel writes at most `length` bytes to `info`,
    // which is borrowed until the call has returned.
    let got = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_TLS, key as libc::c_int, place, &raw mut length)
    };
    if got == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Control messages of the kernel's TLS (linux/tls.h).
const SET_RECORD_TYPE: libc::c_int = 1;
const GET_RECORD_TYPE: libc::c_int = 2;

/// Room for a control message of one byte.
#[repr(C)]
struct RecordType {
    header: libc::cmsghdr,
    kind: u8,
}

/// Receives records that the kernel opens: the content of one that is no data, or of as many as there are of data. Gives the
/// bytes and the type (RFC 8446 5.1); there is none at the end of the stream.
pub(crate) fn receive_record(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<(usize, Option<u8>), Errno> {
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let header = libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 };
    let mut told = RecordType { header, kind: 0 };
    let mut message = message(&mut part, &mut told);
    // SAFETY: the descriptor is open for as long as it is borrowed. The kernel writes at most `iov_len` bytes to `into` and
    // `msg_controllen` bytes to `told`; both live until the call has returned.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let received = usize::try_from(received).map_err(|_| last_error())?;
    let RecordType { header: libc::cmsghdr { cmsg_level, cmsg_type, .. }, kind } = told;
    let is_told = (cmsg_level, cmsg_type) == (libc::SOL_TLS, GET_RECORD_TYPE);
    Ok((received, is_told.then_some(kind)))
}

/// Has the kernel seal `content` as a record of that type.
pub(crate) fn send_record(socket: BorrowedFd<'_>, kind: u8, content: &[u8]) -> Result<usize, Errno> {
    // The kernel reads what a call for both directions takes as writable.
    let mut part = libc::iovec { iov_base: content.as_ptr().cast_mut().cast(), iov_len: content.len() };
    let cmsg_len = (mem::offset_of!(RecordType, kind) + 1) as _;
    let header = libc::cmsghdr { cmsg_len, cmsg_level: libc::SOL_TLS, cmsg_type: SET_RECORD_TYPE };
    let mut told = RecordType { header, kind };
    let message = message(&mut part, &mut told);
    // SAFETY: the descriptor is open for as long as it is borrowed. The kernel reads `iov_len` bytes of `content`, and the
    // control message, both of which live until the call has returned, and writes to neither (sendmsg(2)).
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| last_error())
}

/// A message of one part with room for one control message.
fn message(part: &mut libc::iovec, told: &mut RecordType) -> libc::msghdr {
    // SAFETY: every field of it is a number or a pointer, for which all bits may be 0.
    let mut message = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    (message.msg_iov, message.msg_iovlen) = (part, 1);
    (message.msg_control, message.msg_controllen) = ((&raw mut *told).cast(), size_of::<RecordType>() as _);
    message
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Options that no library sets.
fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set_option_bytes(socket, level, name, &value.to_ne_bytes())
}

fn set_option_bytes(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads `length` bytes of `value`, which is
    // borrowed until the call has returned.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
