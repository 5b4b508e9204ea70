//! A connection of HTTP/2: its requests side by side, each as a connection of its own inside the program, and the limits of
//! the whole. What a request is answered with is decided where it is for HTTP/1.1 too.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request};

use crate::access::rejections::RejectReason;
use crate::http::h1::body::{BodyChunk, Decoder};
use crate::http::h1::head::{HEADER_COUNT_MAX, HeadEnd, HeadLimits};
use crate::http::h2::frame_guard::Violation;
use crate::http::h2::io::{ClientIo, FrameWatch};
use crate::http::h2::{request, response};
use crate::http::message::{Framing, ResponseHead};
use crate::observe::client::ClientConnection;
use crate::runtime::buffer::Buffer;
use crate::runtime::drain::Phase;
use crate::transport::duplex::Duplex;
use crate::transport::net::Runtime;
use crate::transport::stream::Stream;
use crate::worker::context::{CLOSE_TIMEOUT, Generation};
use crate::worker::eviction::EvictionEntry;
use crate::worker::request::{NextStep, Ready};

/// Requests of one connection that may run at a time (RFC 9113 5.1.2).
const STREAMS_MAX: u32 = 128;
/// Bytes of a request's header list (RFC 9113 6.5.2).
const HEADER_LIST_MAX: u32 = 32 * 1024;
/// Bytes of a request's body that may come before the agent takes any.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same of all requests of a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a response that wait for their turn on the connection.
const SEND_BUFFER_MAX: usize = 16 * 1024;
/// Bytes that the kernel takes and has not sent yet: what comes behind them can't overtake them.
const UNSENT_BYTES: usize = 128 * 1024;
/// Requests that were reset and are still remembered; more end the connection (CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 64;
/// Requests that had to be reset for what the client sent (CVE-2025-8671).
const FAULTY_STREAMS_MAX: usize = 256;

/// Requests of a connection that are begun before others have their turn.
const TURN_REQUESTS: usize = 16;

/// The limits of what the proxy itself has written.
const RESPONSE_LIMITS: HeadLimits =
    HeadLimits { header_size_max: 1 << 20, request_line_max: 1 << 20, header_count_max: HEADER_COUNT_MAX };

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(Some(FAULTY_STREAMS_MAX));
    builder
}

/// What a connection has to react to.
enum Event {
    /// Something is asked, where nothing was.
    Asked,
    /// All that was asked is answered.
    Rests,
    /// The client sends what its connection is ended for.
    Violation(Violation),
    /// Nothing was asked for a while.
    Idle,
    Draining,
    Closed,
    Failed(h2::Error),
}

/// Requests of a connection that run, each a task of its own: one finds out by itself when its client is gone, and ends with
/// a record.
#[derive(Debug, Default)]
struct Running {
    count: Cell<usize>,
    /// The connection's task.
    waker: RefCell<Option<Waker>>,
}

/// One of them.
struct Run(Rc<Running>);

impl Run {
    fn begin(running: &Rc<Running>) -> Self {
        running.count.update(|count| count + 1);
        Self(running.clone())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.count.update(|count| count - 1);
        self.0.waker.take().into_iter().for_each(Waker::wake);
    }
}

/// Serves a connection to its end.
pub(super) async fn serve<N: Runtime>(
    generation: &Rc<Generation<N>>,
    ready: Ready<N>,
    place: &EvictionEntry<'_>,
) {
    let Ready { mut endpoint, client, secure, .. } = ready;
    endpoint.stream().bound_unsent(UNSENT_BYTES);
    let watch = Rc::<FrameWatch<N::Stream>>::default();
    let io = ClientIo::new(endpoint, &generation.net, &generation.worker.buffers, watch.clone());
    let limit = generation.config().limits.header_timeout;
    let opened = generation.net.timeout(limit, builder().handshake::<_, Bytes>(io));
    match place.hold(opened).await {
        Some(Ok(Ok(connection))) => {
            let watch = watch.clone();
            let running = Rc::default();
            Served { generation, client, secure, connection, watch, running, is_leaving: false }
                .run(place)
                .await;
        }
        Some(Ok(Err(error))) => note_failure(generation, client, &error),
        Some(Err(_)) => {}
        None => generation.rejections().note(RejectReason::Evicted, client),
    }
    // Or what the client was told last would be lost with what it has sent and nobody has read.
    if let Some(endpoint) = watch.released() {
        place.hold(Ready::of_connection(*endpoint, client, secure).linger(generation)).await;
    }
}

fn note_failure<N: Runtime>(generation: &Generation<N>, client: ClientConnection, error: &h2::Error) {
    let is_ours = error.is_library() && !error.is_io();
    if !is_ours {
        tracing::debug!(conn = client.id.number(), client = %client.address, "the client has ended HTTP/2");
        return;
    }
    let reason = match error.reason() {
        Some(Reason::ENHANCE_YOUR_CALM) => RejectReason::Http2Flood,
        _ => RejectReason::Http2Protocol,
    };
    generation.rejections().note(reason, client);
}

struct Served<'a, N: Runtime> {
    generation: &'a Rc<Generation<N>>,
    client: ClientConnection,
    secure: bool,
    connection: Connection<ClientIo<'a, N>, Bytes>,
    watch: Rc<FrameWatch<N::Stream>>,
    running: Rc<Running>,
    /// The client was told to ask for nothing more.
    is_leaving: bool,
}

impl<N: Runtime> Served<'_, N> {
    async fn run(mut self, place: &EvictionEntry<'_>) {
        let Generation { net, drain, .. } = &**self.generation;
        let limits = &self.generation.config().limits;
        let mut idle = pin!(net.sleep(limits.header_timeout));
        let mut draining = pin!(drain.reached(Phase::Draining));
        loop {
            let had = self.running.count.get();
            let event = poll_fn(|cx| {
                if !self.is_leaving && draining.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Event::Draining);
                }
                if let Poll::Ready(event) = self.poll(cx) {
                    return Poll::Ready(event);
                }
                match self.running.count.get() {
                    0 if had > 0 => Poll::Ready(Event::Rests),
                    0 => idle.as_mut().poll(cx).map(|()| Event::Idle),
                    _ if had == 0 => Poll::Ready(Event::Asked),
                    _ => Poll::Pending,
                }
            });
            let Some(event) = place.hold(event).await else {
                return self.generation.rejections().note(RejectReason::Evicted, self.client);
            };
            match event {
                Event::Asked => place.leave(),
                Event::Rests => {
                    place.wait_again();
                    let limit = if self.is_leaving { CLOSE_TIMEOUT } else { limits.client_keepalive_timeout };
                    idle.set(net.sleep(limit));
                }
                Event::Idle if self.is_leaving => return,
                Event::Idle | Event::Draining => {
                    self.is_leaving = true;
                    self.connection.graceful_shutdown();
                    idle.set(net.sleep(CLOSE_TIMEOUT));
                }
                Event::Violation(violation) => return self.end(violation).await,
                Event::Closed => return,
                Event::Failed(error) => return note_failure(self.generation, self.client, &error),
            }
        }
    }

    /// Takes in requests, no more at a time than others can wait for, and sends what they have said since.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.running.waker.replace(Some(cx.waker().clone()));
        for _ in 0..TURN_REQUESTS {
            let accepted = self.connection.poll_accept(cx);
            if let Some(violation) = self.watch.violation() {
                return Poll::Ready(Event::Violation(violation));
            }
            let (request, respond) = match ready!(accepted) {
                Some(Ok(accepted)) => accepted,
                Some(Err(error)) => return Poll::Ready(Event::Failed(error)),
                None => return Poll::Ready(Event::Closed),
            };
            let (generation, client, secure) = (self.generation.clone(), self.client, self.secure);
            let run = Run::begin(&self.running);
            self.generation.net.spawn(async move {
                serve_request(&generation, client, secure, request, respond).await;
                drop(run);
            });
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ends the connection at once, as far as the client listens.
    async fn end(&mut self, violation: Violation) {
        let (reason, why) = match violation {
            Violation::Flood => (Reason::ENHANCE_YOUR_CALM, RejectReason::Http2Flood),
            Violation::FrameSize => (Reason::FRAME_SIZE_ERROR, RejectReason::Http2Protocol),
            Violation::NoSettings => (Reason::PROTOCOL_ERROR, RejectReason::Http2Protocol),
        };
        self.generation.rejections().note(why, self.client);
        self.connection.abrupt_shutdown(reason);
        let closed = poll_fn(|cx| self.connection.poll_closed(cx));
        let _ = self.generation.net.timeout(CLOSE_TIMEOUT, closed).await;
    }
}

/// Why a request is carried no further.
enum Ending {
    /// The client does not want it any more.
    ClientLeft,
    /// The proxy has let go of it in the middle of the response.
    Incomplete,
    /// The request breaks a rule of HTTP/2.
    Malformed,
}

impl From<h2::Error> for Ending {
    fn from(_: h2::Error) -> Self {
        Self::ClientLeft
    }
}

impl From<request::Malformed> for Ending {
    fn from(_: request::Malformed) -> Self {
        Self::Malformed
    }
}

/// Serves one request to its end.
async fn serve_request<N: Runtime>(
    generation: &Generation<N>,
    client: ClientConnection,
    secure: bool,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (parts, body) = request.into_parts();
    let mut head = Vec::with_capacity(512);
    let Ok(framing) = request::head(&parts, !body.is_end_stream(), &mut head) else {
        generation.rejections().note(RejectReason::Http2Protocol, client);
        return respond.send_reset(Reason::PROTOCOL_ERROR);
    };
    let (near, far) = Duplex::pair();
    let answered = async {
        let place = generation.worker.waiting.enter();
        if let NextStep::Closing(ready) =
            Ready::of_stream(near, client, secure).one_request(generation, &place).await
        {
            ready.linger(generation).await;
        }
    };
    let carried = async move {
        let is_head = parts.method == Method::HEAD;
        carry(&generation.net, &far, head, framing, body, respond, is_head).await;
    };
    tokio::join!(answered, carried);
}

/// Takes the request to the far end, and the response from there.
async fn carry<N: Runtime>(
    net: &N,
    far: &Duplex,
    head: Vec<u8>,
    framing: Framing,
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
    is_head: bool,
) {
    let ended: Result<(), Ending> = {
        let mut sent = pin!(upload(far, head, framing, body));
        let mut is_sent = false;
        let ended = {
            let mut taken = pin!(Download { far, read: Buffer::default() }.run(&mut respond, is_head));
            poll_fn(|cx| {
                if !is_sent && let Poll::Ready(upload) = sent.as_mut().poll(cx) {
                    is_sent = true;
                    upload?;
                }
                taken.as_mut().poll(cx)
            })
            .await
        };
        if ended.is_ok() && !is_sent {
            // The stream is reset once the body is let go of (RFC 9113 8.1), and some clients then forget the response.
            let _ = net.timeout(CLOSE_TIMEOUT, poll_fn(|cx| respond.poll_reset(cx))).await;
        }
        ended
    };
    if ended.is_err() {
        far.reset();
    }
    match ended {
        Ok(()) | Err(Ending::ClientLeft) => {}
        Err(Ending::Incomplete) => respond.send_reset(Reason::INTERNAL_ERROR),
        Err(Ending::Malformed) => respond.send_reset(Reason::PROTOCOL_ERROR),
    }
}

/// The request's way. Comes to its end with the request alone: what nobody takes any more is kept, as letting go of it resets
/// the stream.
async fn upload(
    far: &Duplex,
    mut out: Vec<u8>,
    framing: Framing,
    mut body: RecvStream,
) -> Result<(), Ending> {
    put_all(far, &out).await;
    if framing == Framing::Empty {
        return Ok(());
    }
    while let Some(data) = poll_fn(|cx| body.poll_data(cx)).await {
        let data = data?;
        out.clear();
        request::data(framing, &data, &mut out);
        put_all(far, &out).await;
        body.flow_control().release_capacity(data.len())?;
    }
    let trailers = poll_fn(|cx| body.poll_trailers(cx)).await?;
    out.clear();
    request::end(framing, trailers.as_ref(), &mut out)?;
    put_all(far, &out).await;
    Ok(())
}

/// Ready once all was taken; where nothing is taken any more, the response says why.
async fn put_all(far: &Duplex, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match poll_fn(|cx| far.poll_put(cx, bytes)).await {
            Ok(sent) => bytes = &bytes[sent..],
            Err(_) => std::future::pending().await,
        }
    }
}

/// The response's way.
struct Download<'a> {
    far: &'a Duplex,
    /// What has come and was not passed on.
    read: Buffer,
}

impl Download<'_> {
    async fn run(mut self, respond: &mut SendResponse<Bytes>, is_head: bool) -> Result<(), Ending> {
        let (framing, response) = loop {
            let length = self.head(respond).await?;
            let head = ResponseHead::parse(&self.read.filled()[..length], &RESPONSE_LIMITS, is_head);
            let head = head.map_err(|_| Ending::Incomplete)?;
            let (framing, response) = (head.framing, response::head(&head).ok_or(Ending::Incomplete)?);
            self.read.consume(length);
            if !response.status().is_informational() {
                break (framing, response);
            }
            respond.send_informational(response)?;
        };
        let mut stream = respond.send_response(response, framing == Framing::Empty)?;
        if framing == Framing::Empty {
            Ok(())
        } else {
            self.body(&mut stream, Decoder::of_agent(framing)).await
        }
    }

    /// Waits for a whole head.
    async fn head(&mut self, respond: &mut SendResponse<Bytes>) -> Result<usize, Ending> {
        let mut scan = HeadEnd::default();
        loop {
            let found = scan.find(self.read.filled(), &RESPONSE_LIMITS).map_err(|_| Ending::Incomplete)?;
            if let Some(length) = found {
                return Ok(length);
            }
            poll_fn(|cx| {
                if respond.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Ending::ClientLeft));
                }
                self.poll_fill(cx)
            })
            .await?;
        }
    }

    /// Takes in what there is; there has to be more.
    fn poll_fill(&mut self, cx: &Context<'_>) -> Poll<Result<(), Ending>> {
        let read = &mut self.read;
        let taken = ready!(self.far.poll_take(cx, |bytes| (bytes.len(), read.push(bytes))));
        Poll::Ready(taken.ok().flatten().ok_or(Ending::Incomplete))
    }

    async fn body(&mut self, stream: &mut SendStream<Bytes>, mut decoder: Decoder) -> Result<(), Ending> {
        // Sent once it is known whether it is the last.
        let mut last: Option<Bytes> = None;
        loop {
            let mut used = 0;
            let (took, piece) = decoder.next(&self.read.filled()[used..]).map_err(|_| Ending::Incomplete)?;
            used += took;
            let step = match piece {
                Some(BodyChunk::Data(data)) => Some(Ok(Bytes::copy_from_slice(data))),
                Some(BodyChunk::End(trailers)) => {
                    Some(Err(response::fields(&trailers).ok_or(Ending::Incomplete)?))
                }
                None => None,
            };
            self.read.consume(used);
            match step {
                Some(Ok(data)) => {
                    if let Some(before) = last.replace(data) {
                        send(stream, before, false).await?;
                    }
                }
                Some(Err(trailers)) if trailers.is_empty() => {
                    return send(stream, last.unwrap_or_default(), true).await;
                }
                Some(Err(trailers)) => {
                    send(stream, last.unwrap_or_default(), false).await?;
                    return Ok(stream.send_trailers(trailers)?);
                }
                None => {
                    if let Some(before) = last.take() {
                        send(stream, before, false).await?;
                    }
                    poll_fn(|cx| {
                        if stream.poll_reset(cx).is_ready() {
                            return Poll::Ready(Err(Ending::ClientLeft));
                        }
                        self.poll_fill(cx)
                    })
                    .await?;
                }
            }
        }
    }
}

/// Sends all of it, as the client has room.
async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, is_last: bool) -> Result<(), Ending> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await.ok_or(Ending::ClientLeft)??;
        let part = data.split_to(room.min(data.len()));
        let is_all = data.is_empty();
        stream.send_data(part, is_last && is_all)?;
        if is_all {
            return Ok(());
        }
    }
    if is_last { Ok(stream.send_data(data, true)?) } else { Ok(()) }
}
