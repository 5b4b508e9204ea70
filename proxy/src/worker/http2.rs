//! A connection of HTTP/2: its requests side by side, each a task of its own (`http2_stream.rs`), and the limits of the
//! whole.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, Connection};

use crate::access::rejections::RejectReason;
use crate::http::h2::frame_guard::Violation;
use crate::http::h2::io::{ClientIo, ClientSide};
use crate::observe::client::ClientConnection;
use crate::observe::session_stats::SharedProbe;
use crate::runtime::drain::Phase;
use crate::runtime::scheduler::Class;
use crate::transport::net::Runtime;
use crate::transport::stream::Stream;
use crate::worker::context::{CLOSE_TIMEOUT, Generation};
use crate::worker::eviction::EvictionEntry;
use crate::worker::http2_stream::{self, OpenStream, OpenStreams};
use crate::worker::request::{Http2Connection, Ready};

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

fn builder(may_websocket: bool) -> Builder {
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
    if may_websocket {
        builder.enable_connect_protocol();
    }
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
    /// The client can't be sent anything any more.
    Unsendable(io::Error),
    Failed(h2::Error),
}

/// Serves a connection to its end.
pub(super) async fn serve<N: Runtime>(generation: &Rc<Generation<N>>, ready: Ready<N>) {
    let Ready { mut endpoint, client, secure, .. } = ready;
    let probe = endpoint.stream().probe().map(SharedProbe::from);
    let shared = Http2Connection { client, secure, tls: endpoint.tls_version(), probe };
    endpoint.stream().bound_unsent(UNSENT_BYTES);
    let place = generation.worker.waiting.enter();
    let side = ClientSide::new(endpoint);
    // What opening and closing need is many KiB, which no connection that rests has to keep.
    if let Some(connection) = Box::pin(open(generation, client, side.clone(), &place)).await {
        let served = Served {
            generation,
            client,
            shared,
            connection,
            side: side.clone(),
            streams: Rc::default(),
            class: Class::Setup,
            was_asked: false,
            is_leaving: false,
        };
        Box::new(served).run(&place).await;
    }
    // Or what the client was told last would be lost with what it has sent and nobody has read.
    if let Some(endpoint) = side.into_endpoint() {
        let linger = Ready::of_connection(*endpoint, client, secure).linger(generation);
        place.hold(Box::pin(linger)).await;
    }
}

/// Hears what a client says first.
async fn open<'a, N: Runtime>(
    generation: &'a Rc<Generation<N>>,
    client: ClientConnection,
    side: Rc<ClientSide<N::Stream>>,
    place: &EvictionEntry<'_>,
) -> Option<Connection<ClientIo<'a, N>, Bytes>> {
    let io = ClientIo::new(side.clone(), &generation.net, &generation.worker.buffers);
    let limit = generation.config().limits.header_timeout;
    let builder = builder(generation.config().http2_websocket);
    let mut opened = pin!(generation.net.timeout(limit, builder.handshake::<_, Bytes>(io)));
    let opened = poll_fn(|cx| {
        let opened = opened.as_mut().poll(cx);
        // A client that takes nothing in comes to the limit.
        let _ = side.poll_send(cx);
        opened
    });
    match place.hold(opened).await {
        Some(Ok(Ok(connection))) => return Some(connection),
        Some(Ok(Err(error))) => note_failure(generation, client, &error, false),
        Some(Err(_)) => generation.rejections().note_quietly(RejectReason::NoRequest),
        None => generation.rejections().note(RejectReason::Evicted, client),
    }
    None
}

/// `was_asked`: there were requests, which have records of their own.
fn note_failure<N: Runtime>(
    generation: &Generation<N>,
    client: ClientConnection,
    error: &h2::Error,
    was_asked: bool,
) {
    let is_ours = error.is_library() && !error.is_io();
    if !is_ours {
        if !was_asked {
            generation.rejections().note_quietly(RejectReason::RequestAborted);
        }
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
    shared: Http2Connection,
    connection: Connection<ClientIo<'a, N>, Bytes>,
    side: Rc<ClientSide<N::Stream>>,
    streams: Rc<OpenStreams>,
    /// The class of the connection's task.
    class: Class,
    /// Something was asked.
    was_asked: bool,
    /// The client was told to ask for nothing more.
    is_leaving: bool,
}

impl<N: Runtime> Served<'_, N> {
    async fn run(mut self: Box<Self>, place: &EvictionEntry<'_>) {
        let Generation { net, drain, .. } = &**self.generation;
        let limits = &self.generation.config().limits;
        let mut idle = pin!(net.sleep(limits.header_timeout));
        let mut draining = pin!(drain.reached(Phase::Draining));
        loop {
            let had = self.streams.count();
            let event = poll_fn(|cx| {
                if !self.is_leaving && draining.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Event::Draining);
                }
                let event = self.poll(cx);
                let sent = self.side.poll_send(cx);
                if event.is_ready() {
                    return event;
                }
                if let Poll::Ready(Err(error)) = sent {
                    return Poll::Ready(Event::Unsendable(error));
                }
                match self.streams.count() {
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
                Event::Asked => {
                    self.was_asked = true;
                    place.leave();
                }
                Event::Rests => {
                    place.wait_again();
                    let limit = if self.is_leaving { CLOSE_TIMEOUT } else { limits.client_keepalive_timeout };
                    idle.set(net.sleep(limit));
                }
                Event::Idle if self.is_leaving => return,
                Event::Idle | Event::Draining => {
                    if matches!(event, Event::Idle) && !self.was_asked {
                        self.generation.rejections().note_quietly(RejectReason::NoRequest);
                    }
                    self.is_leaving = true;
                    self.connection.graceful_shutdown();
                    idle.set(net.sleep(CLOSE_TIMEOUT));
                }
                Event::Violation(violation) => return self.end(violation).await,
                Event::Closed => return,
                Event::Unsendable(error) => {
                    return tracing::debug!(conn = self.client.id.number(), reason = %error, "the client can't be sent to");
                }
                Event::Failed(error) => {
                    return note_failure(self.generation, self.client, &error, self.was_asked);
                }
            }
        }
    }

    /// Takes in requests, no more at a time than others can wait for, and sends what they have said since.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.streams.wake_on_change(cx);
        self.set_class(if self.streams.have_session() { Class::Session } else { Class::Setup });
        for _ in 0..TURN_REQUESTS {
            let accepted = self.connection.poll_accept(cx);
            if let Some(violation) = self.side.violation() {
                return Poll::Ready(Event::Violation(violation));
            }
            let (request, respond) = match ready!(accepted) {
                Some(Ok(accepted)) => accepted,
                Some(Err(error)) => return Poll::Ready(Event::Failed(error)),
                None => return Poll::Ready(Event::Closed),
            };
            let (generation, shared) = (self.generation.clone(), self.shared.clone());
            let stream = OpenStream::new(&self.streams);
            self.generation.net.spawn(async move {
                http2_stream::serve(&generation, shared, request, respond, stream).await;
            });
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn set_class(&mut self, class: Class) {
        if self.class != class {
            self.class = class;
            self.generation.net.set_class(class);
        }
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
        let closed = poll_fn(|cx| {
            let closed = self.connection.poll_closed(cx);
            let _ = self.side.poll_send(cx);
            closed
        });
        let _ = self.generation.net.timeout(CLOSE_TIMEOUT, closed).await;
    }
}
