//! One side of a connection: its stream, its TLS end, and the bytes that are on their way through them.
//! Plaintext that was read past the current message stays here, so it can't be lost between two phases.
//! Every step is a poll: nothing is awaited, so both directions of a session can take turns on both sides.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::sync::Once;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;

use crate::observe::access_log::EndReason;
use crate::observe::side::Side;
use crate::runtime::buffer::Buffer;
use crate::tls::{BadRecord, PARTIAL_RECORD_MAX, TlsEnd, TlsError, TlsState, Way};
use crate::transport::kernel_tls::KernelTls;
use crate::transport::net::Runtime;
use crate::transport::pipes::{PIPE_BYTES, Pipe};
use crate::transport::stream::{Opened, Piped, Stream};

/// Bytes of one receive during heads and bodies, where what was read may have to wait.
pub const FILL_BYTES: usize = 16 * 1024;
/// A connection whose bytes are thrown away is in no hurry.
const LINGER_PAUSE: Duration = Duration::from_millis(1);
/// How often, and how many times, it is looked whether one whose bytes can't be read has closed.
const UNREADABLE_PAUSE: Duration = Duration::from_millis(50);
const UNREADABLE_LOOKS: usize = 40;
/// Content of a full TLS record (RFC 8446 5.1).
const RECORD_BYTES: usize = 16 * 1024;
/// Records that the kernel may make of what one call takes out of a pipe: one of each page at most.
const RECORDS_OF_PIPE: u64 = (PIPE_BYTES / 4096) as u64;
/// The most bytes of one receive.
pub const RECEIVE_BYTES_MAX: usize = 256 * 1024;

/// The buffers of a worker, lent to the connection whose turn it is.
#[derive(Debug)]
pub struct WorkerBuffers {
    /// Where bytes are received and decrypted.
    pub incoming: Box<[u8]>,
    /// Where bytes are encrypted or put for the kernel to encrypt, to be sent at once.
    pub outgoing: Buffer,
    /// Where messages are put together before they are encrypted.
    pub message: Vec<u8>,
}

impl Default for WorkerBuffers {
    fn default() -> Self {
        let incoming = vec![0; PARTIAL_RECORD_MAX + RECEIVE_BYTES_MAX].into_boxed_slice();
        Self { incoming, outgoing: Buffer::default(), message: Vec::new() }
    }
}

/// Why a side can't go on.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// TLS failed.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// It ended where more was due.
    #[error("ended early")]
    EndedEarly,
    /// It spoke without TLS where TLS was due.
    #[error("spoke without TLS")]
    NoTls,
    /// It did not do what was due in time.
    #[error("took too long")]
    TimedOut,
}

impl EndpointError {
    /// Why a request or session has ended by it, as a fault of `side`.
    pub fn ending(&self, side: Side) -> EndReason {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::TimedOut => EndReason::Stalled(side),
            Self::Io(_) => EndReason::Reset(side),
            Self::Tls(TlsError::KeyExhausted) => EndReason::KeyExhausted(side),
            Self::Tls(_) | Self::NoTls => EndReason::BrokeTls(side),
            Self::EndedEarly => EndReason::Truncated(side),
            Self::TimedOut => EndReason::TimedOut(side),
        }
    }
}

/// How the bytes of a side came to their end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamEnd {
    /// With `close_notify`, or FIN where there is no TLS.
    Clean,
    /// With FIN alone, where TLS wants `close_notify` first: somebody may have cut the stream.
    Truncated,
}

/// Who opens or seals the TLS records of one way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RecordLayer {
    /// This program, if there is TLS at all.
    Program,
    /// The kernel will, as soon as no record is half received or half sent.
    SoonKernel,
    /// The kernel.
    Kernel,
    /// The kernel, which has part of what it is to seal and waits for the rest: a record of another type would have to go
    /// between.
    KernelMidRecord,
}

/// One side of a connection.
pub struct Endpoint<S> {
    stream: S,
    tls: TlsEnd,
    opened_by: RecordLayer,
    sealed_by: RecordLayer,
    /// Plaintext received and not yet used.
    pub read_buf: Buffer,
    /// What the side could not take yet: ciphertext, or plaintext where the kernel seals.
    write_buf: Buffer,
    end: Option<StreamEnd>,
    /// Whether it rests between two messages for long, and holds no memory then.
    rests: bool,
    finished: bool,
    /// Sending has failed: whatever the stream says of its end, it was no clean one.
    cut: bool,
}

impl<S: Stream> Endpoint<S> {
    /// A side that has not said anything yet.
    pub fn new(stream: S, mut tls: TlsEnd) -> Self {
        if stream.kernel_tls() != KernelTls::NONE {
            tls.keep_keys();
        }
        Self {
            stream,
            tls,
            opened_by: RecordLayer::Program,
            sealed_by: RecordLayer::Program,
            read_buf: Buffer::default(),
            write_buf: Buffer::default(),
            end: None,
            rests: false,
            finished: false,
            cut: false,
        }
    }

    /// How its bytes ended, if they have.
    pub fn end(&self) -> Option<StreamEnd> {
        self.end
    }

    /// Whether the running task has done enough for now ([`Stream::is_put_off`]).
    pub fn is_put_off(&self) -> bool {
        self.stream.is_put_off()
    }

    /// Bytes that its stream has not taken yet, TLS included.
    pub fn unsent(&self) -> usize {
        self.write_buf.len()
    }

    /// Whether both sides have agreed on HTTP/2 in the TLS handshake (RFC 7301).
    pub fn speaks_http2(&self) -> bool {
        self.tls.speaks_http2()
    }

    /// The version of TLS, `1.2` or `1.3`; empty without it, and during its handshake.
    pub fn tls_version(&self) -> &'static str {
        self.tls.version()
    }

    /// Whether it has said anything of its TLS handshake.
    pub fn was_heard(&self) -> bool {
        self.tls.was_heard()
    }

    /// Gives the records of both ways to the kernel, each as soon as none is half received or half sent, where it takes
    /// them.
    pub fn offload(&mut self) {
        // Other keys were not kept.
        if self.tls.suite_for_kernel().is_some() {
            (self.opened_by, self.sealed_by) = (RecordLayer::SoonKernel, RecordLayer::SoonKernel);
        }
    }

    fn give_to_kernel(&mut self, way: Way) {
        let key = self.tls.key_for_kernel(way).ok_or_else(|| io::ErrorKind::Unsupported.into());
        let given = key.and_then(|key| self.stream.set_record_key(way, &key));
        let by = match given {
            Ok(()) => {
                self.tls.give_to_kernel(way);
                RecordLayer::Kernel
            }
            Err(error) => {
                note_refused(&error);
                self.tls.forget_keys();
                RecordLayer::Program
            }
        };
        match way {
            Way::Receive => self.opened_by = by,
            Way::Send => self.sealed_by = by,
        }
    }

    /// Whether its bytes may be moved inside the kernel: it is a socket, and this program has no TLS to open or seal for it,
    /// or soon none any more.
    pub fn can_splice(&self) -> bool {
        let is_program = [self.opened_by, self.sealed_by].contains(&RecordLayer::Program);
        (self.tls.is_plain() || !is_program) && self.stream.can_splice()
    }

    /// Whether the socket gives content of records, or has none.
    pub fn gives_plaintext(&self) -> bool {
        self.tls.is_plain() || self.opened_by == RecordLayer::Kernel
    }

    /// Whether the socket takes content of records, or has none.
    pub fn takes_plaintext(&self) -> bool {
        self.tls.is_plain() || self.is_sealed_by_kernel() && !self.tls.is_used_up()
    }

    fn is_sealed_by_kernel(&self) -> bool {
        matches!(self.sealed_by, RecordLayer::Kernel | RecordLayer::KernelMidRecord)
    }

    /// Keeps no keys for the kernel that it would never be given.
    fn forget_useless_keys(&mut self) {
        let suite = self.tls.suite_for_kernel();
        if self.tls.speaks_http2() || !suite.is_some_and(|suite| self.stream.kernel_tls().takes(suite)) {
            self.tls.forget_keys();
        }
    }

    /// Whether a FIN alone ends it in order. With TLS only a `close_notify` does (RFC 8446 6.1).
    pub fn is_clean_by_fin(&self) -> bool {
        self.tls.is_plain()
    }

    /// The same side with TLS from here on: what was read of it and not used is the beginning of that.
    #[must_use]
    pub fn begin_tls(self, mut tls: TlsEnd) -> Self {
        tls.begin_with(self.read_buf.filled());
        Self::new(self.stream, tls)
    }

    /// The same side without TLS, for an answer to one that did not speak it.
    #[must_use]
    pub fn into_plain(self) -> Self {
        Self::new(self.stream, TlsEnd::plain())
    }

    /// Holds no memory between two messages from here on.
    pub fn release_buffers(&mut self) {
        self.rests = true;
        self.read_buf.free();
        self.write_buf.free();
    }

    /// The stream, for moving bytes inside the kernel ([`Endpoint::can_splice`]).
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Notes that the stream ended outside of [`Endpoint::poll_open`].
    pub fn note_end(&mut self) {
        let clean = self.is_clean_by_fin() && !self.cut;
        self.end = Some(if clean { StreamEnd::Clean } else { StreamEnd::Truncated });
    }

    /// Receives once, at most `bytes_max`, and hands the plaintext to `sink`. Gives the bytes received: 0 at
    /// the end, which [`Endpoint::end`] then tells.
    pub fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut [u8],
        bytes_max: usize,
        sink: &mut impl FnMut(&[u8]),
    ) -> Poll<Result<usize, EndpointError>> {
        if self.end.is_some() {
            return Poll::Ready(Ok(0));
        }
        let mut bytes_max = bytes_max;
        if self.opened_by == RecordLayer::SoonKernel {
            match self.tls.missing_bytes() {
                0 => self.give_to_kernel(Way::Receive),
                missing => bytes_max = bytes_max.min(missing),
            }
        }
        if self.opened_by == RecordLayer::Kernel {
            return self.poll_take_opened(cx, incoming, bytes_max, sink);
        }
        let partial = self.tls.put_back(incoming);
        let until = incoming.len().min(partial + bytes_max);
        let received = ready!(self.stream.poll_recv(cx, &mut incoming[partial..until]))?;
        if received == 0 {
            self.note_end();
            return Poll::Ready(Ok(0));
        }
        let opened = self.tls.open(&mut incoming[..partial + received], sink, &mut self.write_buf);
        self.note_opened(opened)?;
        Poll::Ready(Ok(received))
    }

    fn note_opened(&mut self, opened: Result<TlsState, TlsError>) -> Result<(), TlsError> {
        match opened {
            Ok(TlsState::PeerEnded) => self.end = Some(StreamEnd::Clean),
            Ok(_) => {}
            Err(error) => {
                // What comes after broken TLS is nothing, and after its alert nothing more may be said.
                self.end = Some(StreamEnd::Truncated);
                self.finished = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// The same where the kernel opens.
    fn poll_take_opened(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut [u8],
        bytes_max: usize,
        sink: &mut impl FnMut(&[u8]),
    ) -> Poll<Result<usize, EndpointError>> {
        let until = incoming.len().min(bytes_max);
        let received = match ready!(self.stream.poll_recv_records(cx, &mut incoming[..until])) {
            Ok(Opened::Content { kind, bytes }) => {
                let content = &incoming[..bytes];
                let opened = self.tls.opened_by_kernel(kind, content, sink, &mut self.write_buf);
                self.note_opened(opened)?;
                bytes
            }
            Ok(Opened::End) => {
                self.note_end();
                return Poll::Ready(Ok(0));
            }
            Err(error) => {
                let Some(bad) = bad_record(&error) else { return Poll::Ready(Err(error.into())) };
                let refused = self.tls.refuse_record(bad, &mut self.write_buf);
                self.note_opened(Err(refused))?;
                0
            }
        };
        if let Some(key) = self.tls.take_next_opener() {
            self.stream.set_record_key(Way::Receive, &key)?;
        }
        Poll::Ready(Ok(received))
    }

    /// Moves up to `limit` received bytes into `pipe`, where the socket gives plaintext; `None` where that can't be done now.
    pub fn poll_recv_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<io::Result<Piped>>> {
        let is_opened = self.opened_by == RecordLayer::Kernel;
        if is_opened && !self.tls.may_take_data() {
            return None;
        }
        let moved = self.stream.poll_recv_pipe(cx, pipe, limit);
        if is_opened && matches!(moved, Some(Poll::Ready(Ok(Piped { bytes: 1.., .. })))) {
            self.tls.note_data();
        }
        moved
    }

    /// Moves up to `limit` bytes from `pipe` to the side, where the socket takes plaintext and nothing older waits.
    pub fn poll_send_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &Pipe,
        limit: usize,
    ) -> Option<Poll<Result<usize, EndpointError>>> {
        let moved = self.stream.poll_send_pipe(cx, pipe, limit)?;
        if self.is_sealed_by_kernel() {
            self.tls.note_sealed(RECORDS_OF_PIPE);
            if let Poll::Ready(Ok(moved)) = moved {
                self.sealed_by =
                    if moved < limit { RecordLayer::KernelMidRecord } else { RecordLayer::Kernel };
            }
        }
        Some(moved.map_err(|error| self.cut_by(error)))
    }

    /// Receives once behind [`Endpoint::read_buf`]. Gives the plaintext bytes gained; 0 only at the end.
    pub fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut WorkerBuffers,
    ) -> Poll<Result<usize, EndpointError>> {
        let before = self.read_buf.len();
        loop {
            let mut read_buf = std::mem::take(&mut self.read_buf);
            let opened =
                self.poll_open(cx, &mut buffers.incoming, FILL_BYTES, &mut |bytes| read_buf.push(bytes));
            self.read_buf = read_buf;
            // A side that takes no more may have said why: whoever writes to it finds that out.
            let _ = self.poll_flush(cx);
            ready!(opened)?;
            let gained = self.read_buf.len() - before;
            if gained > 0 || self.end.is_some() {
                return Poll::Ready(Ok(gained));
            }
        }
    }

    /// Sends what waits; ready when nothing does.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndpointError>> {
        ready!(self.poll_control(cx))?;
        while !self.write_buf.is_empty() {
            match ready!(self.stream.poll_send(cx, self.write_buf.filled())) {
                Ok(sent) => {
                    self.note_sent(sent);
                    self.write_buf.consume(sent);
                }
                Err(error) => return Poll::Ready(Err(self.cut_by(error))),
            }
        }
        if self.sealed_by == RecordLayer::SoonKernel {
            self.give_to_kernel(Way::Send);
        }
        ready!(self.poll_control(cx))?;
        if self.rests {
            self.write_buf.free();
        } else {
            self.write_buf.release();
        }
        Poll::Ready(Ok(()))
    }

    /// Has the kernel, where it seals, send the records that are no data and whose turn it is.
    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndpointError>> {
        if self.sealed_by != RecordLayer::Kernel {
            return Poll::Ready(Ok(()));
        }
        if self.tls.is_count_due() {
            let sealed = self.stream.sealed_records()?;
            self.tls.recount(sealed);
        }
        while let Some(record) = self.tls.control(!self.write_buf.is_empty()) {
            if let Err(error) = ready!(self.stream.poll_send_control(cx, record)) {
                return Poll::Ready(Err(self.cut_by(error)));
            }
            let key = self.tls.control_sent(record)?;
            if let Err(error) = key.map_or(Ok(()), |key| self.stream.set_record_key(Way::Send, &key)) {
                // The peer expects the new key: with the old one nothing can be said any more.
                self.tls.abandon();
                self.write_buf.clear();
                self.finished = true;
                return Poll::Ready(Err(self.cut_by(error)));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Counts the records that the kernel may have made of so many bytes.
    fn note_sent(&mut self, bytes: usize) {
        if self.is_sealed_by_kernel() {
            self.tls.note_sealed((bytes / RECORD_BYTES) as u64 + 1);
        }
    }

    /// Encrypts `bytes`, where the kernel does not, to be sent by the next flush.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), EndpointError> {
        if bytes.is_empty() {
            return Ok(());
        }
        Ok(self.tls.seal(bytes, &mut self.write_buf)?)
    }

    /// Sends `bytes` behind what waits, or has them sent by the next flush. Without TLS of the program they are not copied
    /// for it.
    pub fn send(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> Result<(), EndpointError> {
        while self.takes_plaintext() && self.write_buf.is_empty() && !bytes.is_empty() {
            match self.stream.poll_send(cx, bytes) {
                Poll::Ready(Ok(sent)) => {
                    self.note_sent(sent);
                    bytes = &bytes[sent..];
                }
                Poll::Ready(Err(error)) => return Err(self.cut_by(error)),
                Poll::Pending => break,
            }
        }
        self.write(bytes)
    }

    /// Whether bytes wait for the side to take them.
    pub fn has_pending_write(&self) -> bool {
        !self.write_buf.is_empty()
    }

    /// Encrypts `bytes`, where the kernel does not, behind a buffer of the worker's, for [`Endpoint::send_sealed`].
    pub fn seal(&mut self, bytes: &[u8], outgoing: &mut Buffer) -> Result<(), TlsError> {
        self.tls.seal(bytes, outgoing)
    }

    /// Sends what was sealed into `outgoing`, which is left empty: what the side can't take is kept here.
    /// Nothing older may wait.
    pub fn send_sealed(&mut self, cx: &mut Context<'_>, outgoing: &mut Buffer) -> Result<(), EndpointError> {
        debug_assert!(self.write_buf.is_empty(), "sealed records go out in the order they were sealed");
        while !outgoing.is_empty() {
            match self.stream.poll_send(cx, outgoing.filled()) {
                Poll::Ready(Ok(sent)) => {
                    self.note_sent(sent);
                    outgoing.consume(sent);
                }
                Poll::Ready(Err(error)) => {
                    // The buffer is the worker's: what one side could not be sent must not reach another.
                    outgoing.clear();
                    return Err(self.cut_by(error));
                }
                Poll::Pending => {
                    self.write_buf.push(outgoing.filled());
                    outgoing.clear();
                }
            }
        }
        Ok(())
    }

    /// Why a side that has ended its bytes does not listen either, if so. Reading would no longer tell a reset; sending
    /// nothing does (tcp(7): `EPIPE`).
    pub fn reset(&mut self, cx: &mut Context<'_>) -> Option<EndpointError> {
        match self.stream.poll_send(cx, &[]) {
            Poll::Ready(Err(error)) => Some(self.cut_by(error)),
            _ => None,
        }
    }

    fn cut_by(&mut self, error: io::Error) -> EndpointError {
        self.cut = true;
        error.into()
    }

    /// Says that no more will be sent: `close_notify` where `clean`, and FIN, after what still waits.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>, clean: bool) -> Poll<Result<(), EndpointError>> {
        if !self.finished {
            self.finished = true;
            if clean {
                self.tls.close(&mut self.write_buf)?;
            }
        }
        ready!(self.poll_flush(cx))?;
        if self.sealed_by == RecordLayer::Kernel {
            ready!(self.stream.poll_flushed(cx));
        }
        match self.stream.finish() {
            // The peer has gone altogether meanwhile: nobody is left to be told.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(Ok(done?)),
        }
    }

    /// Drives the TLS handshake to its end.
    pub async fn handshake(&mut self, buffers: &RefCell<WorkerBuffers>) -> Result<(), EndpointError> {
        let begun = self.begin_handshake(&mut buffers.borrow_mut().incoming);
        let mut state = match begun {
            Ok(state) => state,
            Err(error) => {
                // The alert that says why, as below.
                poll_fn(|cx| Poll::Ready(self.poll_flush(cx).is_ready())).await;
                return Err(error);
            }
        };
        while state == TlsState::Handshaking {
            state = poll_fn(|cx| self.poll_handshake(cx, &mut buffers.borrow_mut())).await?;
        }
        self.forget_useless_keys();
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// With what is there already, if anything is.
    fn begin_handshake(&mut self, incoming: &mut [u8]) -> Result<TlsState, EndpointError> {
        let partial = self.tls.put_back(incoming);
        if is_text(&incoming[..partial]) {
            return Err(EndpointError::NoTls);
        }
        let read_buf = &mut self.read_buf;
        let sink = &mut |bytes: &[u8]| read_buf.push(bytes);
        Ok(self.tls.open(&mut incoming[..partial], sink, &mut self.write_buf)?)
    }

    fn poll_handshake(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut WorkerBuffers,
    ) -> Poll<Result<TlsState, EndpointError>> {
        ready!(self.poll_flush(cx))?;
        let incoming = &mut buffers.incoming;
        let partial = self.tls.put_back(incoming);
        let received = ready!(self.stream.poll_recv(cx, &mut incoming[partial..partial + FILL_BYTES]))?;
        if received == 0 {
            return Poll::Ready(Err(EndpointError::EndedEarly));
        }
        if partial == 0 && is_text(&incoming[..received]) {
            return Poll::Ready(Err(EndpointError::NoTls));
        }
        let read_buf = &mut self.read_buf;
        let opened = self.tls.open(
            &mut incoming[..partial + received],
            &mut |p| read_buf.push(p),
            &mut self.write_buf,
        );
        if opened.is_err() {
            // The alert that says why; the peer may not be there to take it.
            let _ = self.poll_flush(cx);
        }
        if matches!(opened, Ok(TlsState::PeerEnded)) {
            self.end = Some(StreamEnd::Clean);
        }
        Poll::Ready(Ok(opened?))
    }

    /// [`Endpoint::poll_fill`], awaited.
    pub async fn fill(&mut self, buffers: &RefCell<WorkerBuffers>) -> Result<usize, EndpointError> {
        poll_fn(|cx| self.poll_fill(cx, &mut buffers.borrow_mut())).await
    }

    /// [`Endpoint::poll_flush`], awaited.
    pub async fn flush(&mut self) -> Result<(), EndpointError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// [`Endpoint::poll_finish`], awaited.
    pub async fn finish(&mut self) -> Result<(), EndpointError> {
        poll_fn(|cx| self.poll_finish(cx, true)).await
    }

    /// Throws away what still comes until the side has ended too, `limit` at the most: a socket that is closed
    /// with unread bytes is reset, and what was sent before is lost with it (RFC 9112 9.6). Nothing is decrypted
    /// any more, but by a kernel that opens.
    pub async fn linger<N: Runtime>(&mut self, net: &N, buffers: &RefCell<WorkerBuffers>, limit: Duration) {
        let discard = async {
            while poll_fn(|cx| self.poll_discard(cx, &mut buffers.borrow_mut().incoming)).await {
                net.sleep(LINGER_PAUSE).await;
            }
            if self.opened_by != RecordLayer::Kernel {
                return;
            }
            // What stands behind a record that the kernel can't open can't be thrown away either: until TCP has closed, the
            // peer would be reset.
            for _ in 0..UNREADABLE_LOOKS {
                if self.stream.is_closed() {
                    break;
                }
                net.sleep(UNREADABLE_PAUSE).await;
            }
        };
        // Whether a side listens to the end is its own affair.
        let _ = net.timeout(limit, discard).await;
    }

    /// Whether more may come.
    fn poll_discard(&mut self, cx: &mut Context<'_>, incoming: &mut [u8]) -> Poll<bool> {
        if self.opened_by == RecordLayer::Kernel {
            let received = ready!(self.stream.poll_recv_records(cx, incoming));
            return Poll::Ready(received.is_ok_and(|received| received != Opened::End));
        }
        let received = ready!(self.stream.poll_recv(cx, incoming));
        Poll::Ready(received.is_ok_and(|received| received > 0))
    }

    /// Whether an idle side is still there and has said nothing: it may be used for another request. None where that
    /// can't be told in this run of the task.
    pub fn is_reusable(&mut self, cx: &mut Context<'_>, buffers: &mut WorkerBuffers) -> Option<bool> {
        let quiet = self.read_buf.is_empty() && self.write_buf.is_empty() && self.end.is_none();
        // Session tickets and the like are no answer; they are taken in and the socket is empty then.
        let quiet = quiet && self.poll_fill(cx, buffers).is_pending();
        (!quiet || !self.stream.is_put_off()).then_some(quiet)
    }
}

/// What the kernel's TLS says of a record that it can't open.
fn bad_record(error: &io::Error) -> Option<BadRecord> {
    match Errno::from_io_error(error)? {
        Errno::BADMSG => Some(BadRecord::Forged),
        Errno::MSGSIZE => Some(BadRecord::TooLong),
        // A message that the kernel takes for a change of keys, and that is none, or none in one record.
        Errno::INVAL | Errno::KEYEXPIRED => Some(BadRecord::Unexpected),
        _ => None,
    }
}

/// That way of the connection goes on with the program's TLS. Said once: it is a property of the host.
fn note_refused(error: &io::Error) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::warn!(detail = %error, "the kernel refuses the TLS of a session, which it took at the start");
    });
}

/// No TLS record starts with a letter (RFC 8446 5.1), but every HTTP message does.
fn is_text(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
}
