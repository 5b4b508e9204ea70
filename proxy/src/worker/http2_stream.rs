//! One request of an HTTP/2 connection, as a connection of HTTP/1.1 inside the program: what it is answered with is decided
//! where it is for HTTP/1.1 too. A WebSocket (RFC 8441) becomes a session like any other.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request};

use crate::access::rejections::RejectReason;
use crate::http::h1::body::{BodyChunk, Decoder};
use crate::http::h1::head::{HEADER_COUNT_MAX, HeadEnd, HeadLimits};
use crate::http::h2::{request, response};
use crate::http::message::{Framing, ResponseHead};
use crate::observe::client::ClientConnection;
use crate::runtime::buffer::Buffer;
use crate::transport::duplex::Duplex;
use crate::transport::net::Runtime;
use crate::worker::context::{CLOSE_TIMEOUT, Generation};
use crate::worker::request::{NextStep, Ready};

/// The limits of what the proxy itself has written.
const RESPONSE_LIMITS: HeadLimits =
    HeadLimits { header_size_max: 1 << 20, request_line_max: 1 << 20, header_count_max: HEADER_COUNT_MAX };

/// Those of a connection, each a task of its own: one finds out by itself when its client is gone, and ends with a record.
#[derive(Debug, Default)]
pub(super) struct OpenStreams {
    count: Cell<usize>,
    /// Those of them that have become sessions.
    sessions: Cell<usize>,
    /// The connection's task.
    waker: RefCell<Option<Waker>>,
}

impl OpenStreams {
    pub(super) fn count(&self) -> usize {
        self.count.get()
    }

    pub(super) fn have_session(&self) -> bool {
        self.sessions.get() > 0
    }

    /// Wakes the task with the next stream that ends or becomes a session.
    pub(super) fn wake_on_change(&self, cx: &Context<'_>) {
        self.waker.replace(Some(cx.waker().clone()));
    }

    fn wake(&self) {
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}

/// One of them.
pub(super) struct OpenStream {
    streams: Rc<OpenStreams>,
    is_session: bool,
}

impl OpenStream {
    pub(super) fn new(streams: &Rc<OpenStreams>) -> Self {
        streams.count.update(|count| count + 1);
        Self { streams: streams.clone(), is_session: false }
    }

    /// The connection is part of the session from here on: by it goes what the session says.
    fn become_session(&mut self) {
        self.is_session = true;
        self.streams.sessions.update(|count| count + 1);
        self.streams.wake();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.streams.count.update(|count| count - 1);
        self.streams.sessions.update(|count| count - usize::from(self.is_session));
        self.streams.wake();
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
    /// The login holds for a connection, which the client has with HTTP/1.1 alone.
    NeedsOwnConnection,
}

impl Ending {
    /// What the client is told, if it listens.
    fn reason(&self) -> Option<Reason> {
        match self {
            Self::ClientLeft => None,
            Self::Incomplete => Some(Reason::INTERNAL_ERROR),
            Self::Malformed => Some(Reason::PROTOCOL_ERROR),
            Self::NeedsOwnConnection => Some(Reason::HTTP_1_1_REQUIRED),
        }
    }
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

/// What the response depends on.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Head,
    WebSocket,
    Other,
}

/// A request as the far end is to see it.
struct Upload {
    head: Vec<u8>,
    framing: Framing,
    body: RecvStream,
    kind: Kind,
}

impl Upload {
    fn of(request: Request<RecvStream>) -> Result<Self, Ending> {
        let (parts, body) = request.into_parts();
        if request::needs_own_connection(&parts) {
            return Err(Ending::NeedsOwnConnection);
        }
        let kind = match parts.method {
            Method::HEAD => Kind::Head,
            _ if request::asks_for_websocket(&parts) => Kind::WebSocket,
            _ => Kind::Other,
        };
        let mut head = Vec::with_capacity(512);
        let framing = request::head(&parts, !body.is_end_stream(), &mut head)?;
        Ok(Self { head, framing, body, kind })
    }
}

/// Serves one request, or the session that it becomes, to its end.
pub(super) async fn serve<N: Runtime>(
    generation: &Generation<N>,
    client: ClientConnection,
    secure: bool,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    mut stream: OpenStream,
) {
    let upload = match Upload::of(request) {
        Ok(upload) => upload,
        Err(ending) => {
            match ending {
                Ending::Malformed => generation.rejections().note(RejectReason::Http2Protocol, client),
                _ => {
                    tracing::debug!(conn = client.id.number(), "a login of a connection is sent to HTTP/1.1");
                }
            }
            return ending.reason().into_iter().for_each(|reason| respond.send_reset(reason));
        }
    };
    let (near, far) = Duplex::pair();
    let answered = async {
        let next = {
            // Whoever makes way gives up a connection, and a stream has none: its place is no one's to take.
            let place = generation.worker.waiting.enter();
            place.leave();
            Ready::of_stream(near, client, secure).one_request(generation, &place).await
        };
        match next {
            NextStep::Closing(ready) => Box::pin(ready.linger(generation)).await,
            NextStep::Upgraded(upgraded) => {
                stream.become_session();
                Box::pin(upgraded.relay(generation)).await;
            }
            NextStep::Next(_) | NextStep::Http2(_) | NextStep::Closed => {}
        }
    };
    let carried = async move { carry(&generation.net, &far, upload, respond).await };
    tokio::join!(answered, carried);
}

/// Takes the request to the far end, and the response from there.
async fn carry<N: Runtime>(net: &N, far: &Duplex, upload: Upload, mut respond: SendResponse<Bytes>) {
    let ended: Result<(), Ending> = {
        let kind = upload.kind;
        let mut sent = pin!(upload.run(far));
        let mut is_sent = false;
        let ended = {
            let mut taken = pin!(Download { far, read: Buffer::default(), kind }.run(&mut respond));
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
            let rest = poll_fn(|cx| {
                let has_ended = sent.as_mut().poll(cx).is_ready()
                    || respond.poll_reset(cx).is_ready()
                    || (kind == Kind::WebSocket && far.poll_refused(cx).is_ready());
                if has_ended { Poll::Ready(()) } else { Poll::Pending }
            });
            if kind == Kind::WebSocket {
                // Who has ended its own side may still be told something; the session has its limits for that.
                rest.await;
            } else {
                // The stream is reset once the body is let go of (RFC 9113 8.1), and some clients then forget the response.
                let _ = net.timeout(CLOSE_TIMEOUT, rest).await;
            }
        }
        ended
    };
    if let Err(ending) = ended {
        far.reset();
        ending.reason().into_iter().for_each(|reason| respond.send_reset(reason));
    }
}

impl Upload {
    /// The request's way. Comes to its end with the request alone: what nobody takes any more is kept, as letting go of it
    /// resets the stream.
    async fn run(self, far: &Duplex) -> Result<(), Ending> {
        let Self { head: mut out, framing, mut body, kind } = self;
        put_all(far, &out).await;
        if kind != Kind::WebSocket && framing == Framing::Empty {
            return Ok(());
        }
        while let Some(data) = poll_fn(|cx| body.poll_data(cx)).await {
            let data = data?;
            if kind == Kind::WebSocket {
                put_all(far, &data).await;
            } else {
                out.clear();
                request::data(framing, &data, &mut out);
                put_all(far, &out).await;
            }
            body.flow_control().release_capacity(data.len())?;
        }
        if kind == Kind::WebSocket {
            far.end();
            return Ok(());
        }
        let trailers = poll_fn(|cx| body.poll_trailers(cx)).await?;
        out.clear();
        request::end(framing, trailers.as_ref(), &mut out)?;
        put_all(far, &out).await;
        Ok(())
    }
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
    kind: Kind,
}

impl Download<'_> {
    async fn run(mut self, respond: &mut SendResponse<Bytes>) -> Result<(), Ending> {
        let is_head = self.kind == Kind::Head;
        let (framing, response) = loop {
            let length = self.head(respond).await?;
            let head = ResponseHead::parse(&self.read.filled()[..length], &RESPONSE_LIMITS, is_head);
            let head = head.map_err(|_| Ending::Incomplete)?;
            if head.status == 101 {
                let response = response::websocket(&head).ok_or(Ending::Incomplete)?;
                self.read.consume(length);
                return self.session(respond.send_response(response, false)?).await;
            }
            if self.kind == Kind::WebSocket && (200..300).contains(&head.status) {
                // To HTTP/2 any 2xx is a session (RFC 8441 5), to HTTP/1.1 none but 101: this one the agent has not accepted.
                return Err(Ending::Incomplete);
            }
            if response::needs_own_connection(&head) {
                return Err(Ending::NeedsOwnConnection);
            }
            let (framing, response) = (head.framing, response::head(&head).ok_or(Ending::Incomplete)?);
            self.read.consume(length);
            if !response.status().is_informational() {
                break (framing, response);
            }
            respond.send_informational(response)?;
        };
        let stream = respond.send_response(response, framing == Framing::Empty)?;
        if framing == Framing::Empty { Ok(()) } else { self.body(stream, Decoder::of_agent(framing)).await }
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

    /// Passes on what the agent says until it has said all. A session that breaks off ends in order here: a reset would take back
    /// what is still to be sent, and a WebSocket tells by its Close frame whether it was ended.
    async fn session(mut self, mut stream: SendStream<Bytes>) -> Result<(), Ending> {
        let early = Bytes::copy_from_slice(self.read.filled());
        self.read = Buffer::default();
        send(&mut stream, early, false).await?;
        loop {
            let taken = poll_fn(|cx| {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Ending::ClientLeft));
                }
                let taken = self.far.poll_take(cx, |bytes| (bytes.len(), Bytes::copy_from_slice(bytes)));
                taken.map_err(|_| Ending::ClientLeft)
            });
            match taken.await? {
                Some(bytes) => send(&mut stream, bytes, false).await?,
                None => return send(&mut stream, Bytes::new(), true).await,
            }
        }
    }

    async fn body(mut self, mut stream: SendStream<Bytes>, mut decoder: Decoder) -> Result<(), Ending> {
        let (used, mut taken) = decode(&mut decoder, self.read.filled());
        self.read.consume(used);
        loop {
            let (data, end) = taken?;
            match end {
                Some(trailers) if trailers.is_empty() => return send(&mut stream, data, true).await,
                Some(trailers) => {
                    send(&mut stream, data, false).await?;
                    return Ok(stream.send_trailers(trailers)?);
                }
                None => send(&mut stream, data, false).await?,
            }
            taken = poll_fn(|cx| {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Ending::ClientLeft));
                }
                self.poll_decode(cx, &mut decoder)
            })
            .await;
        }
    }

    /// Takes in what there is and decodes it; there has to be more.
    fn poll_decode(&mut self, cx: &Context<'_>, decoder: &mut Decoder) -> Poll<Result<Decoded, Ending>> {
        let read = &mut self.read;
        let taken = ready!(self.far.poll_take(cx, |bytes| {
            let piece = if read.is_empty() {
                let (used, piece) = decode(decoder, bytes);
                read.push(&bytes[used..]);
                piece
            } else {
                read.push(bytes);
                let (used, piece) = decode(decoder, read.filled());
                read.consume(used);
                piece
            };
            (bytes.len(), piece)
        }));
        Poll::Ready(taken.ok().flatten().unwrap_or(Err(Ending::Incomplete)))
    }
}

/// Some bytes of a body, and the trailers where it ends with them.
type Decoded = (Bytes, Option<HeaderMap>);

/// All that stands in `bytes` as one piece: chunks may be small, and a frame of each would cost both sides more than its
/// bytes do. Tells how many were used.
fn decode(decoder: &mut Decoder, bytes: &[u8]) -> (usize, Result<Decoded, Ending>) {
    let (mut used, mut data) = (0, BytesMut::with_capacity(bytes.len()));
    loop {
        let Ok((took, chunk)) = decoder.next(&bytes[used..]) else { return (used, Err(Ending::Incomplete)) };
        used += took;
        match chunk {
            Some(BodyChunk::Data(chunk)) => data.extend_from_slice(chunk),
            Some(BodyChunk::End(trailers)) => {
                let end = response::fields(&trailers).ok_or(Ending::Incomplete);
                return (used, end.map(|trailers| (data.freeze(), Some(trailers))));
            }
            None => return (used, Ok((data.freeze(), None))),
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
