//! One request of an HTTP/2 connection as the HTTP/1.1 connection that it stands for: what is read of it is the request's head
//! and body, and the response's are written to it. A WebSocket (RFC 8441) goes by as it is, both ways.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request};

use crate::http::h1::body::{BodyChunk, Decoder};
use crate::http::h1::head::{HEADER_COUNT_MAX, HeadEnd, HeadLimits};
use crate::http::h2::websocket_key::WebSocketKey;
use crate::http::h2::{request, response};
use crate::http::message::{Framing, ResponseHead};
use crate::transport::stream::Stream;

/// The limits of what the proxy itself has written.
const RESPONSE_LIMITS: HeadLimits =
    HeadLimits { header_size_max: 1 << 20, request_line_max: 1 << 20, header_count_max: HEADER_COUNT_MAX };

/// Frames of a body that have fewer bytes are put together.
const GATHERED_BYTES: usize = 4 * 1024;
/// Room for the lines around a chunk.
const CHUNK_LINES_BYTES: usize = 16;

/// Why a request is carried no further.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ending {
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
    fn reason(self) -> Option<Reason> {
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
enum Kind {
    Head,
    WebSocket(WebSocketKey),
    Other,
}

/// A request and its response. What is written to it is handed to the crate by [`RequestStream::push`].
pub(crate) struct RequestStream(RefCell<Ways>);

/// Both ways of it.
struct Ways {
    kind: Kind,
    upload: Upload,
    download: Download,
    /// The proxy will say no more.
    has_finished: bool,
}

impl RequestStream {
    /// A request that the client has sent the head of. One that can't be carried is reset.
    pub(crate) fn new(
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Result<Rc<Self>, Ending> {
        match Upload::of(request) {
            Ok((kind, upload)) => {
                let download = Download::Head { respond, text: Vec::new(), scan: HeadEnd::default() };
                Ok(Rc::new(Self(RefCell::new(Ways { kind, upload, download, has_finished: false }))))
            }
            Err(ending) => {
                ending.reason().into_iter().for_each(|reason| respond.send_reset(reason));
                Err(ending)
            }
        }
    }

    /// Hands over what was written: as one frame, where each piece of it would cost both sides more than its bytes do. Whoever
    /// runs the stream does so after each run.
    pub(crate) fn push(&self) {
        let mut ways = self.0.borrow_mut();
        if let Download::Body(body) = &mut ways.download
            && let Err(ending) = body.push()
        {
            ways.end_by(ending);
        }
    }
}

impl Ways {
    fn end_by(&mut self, ending: Ending) -> io::Error {
        ending.reason().into_iter().for_each(|reason| self.download.reset(reason));
        self.download = Download::Broken;
        io::ErrorKind::ConnectionReset.into()
    }

    /// Whether nobody waits for the rest of a request that has come to its end.
    fn is_over(&self) -> bool {
        let is_answered = matches!(&self.download, Download::Body(body) if body.has_ended());
        matches!(self.kind, Kind::WebSocket(_)) || self.has_finished || is_answered
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, Ending>> {
        while self.upload.text.is_empty() {
            if matches!(self.download, Download::Broken) {
                return Poll::Ready(Err(Ending::ClientLeft));
            }
            match ready!(self.upload.poll_next(cx))? {
                Some(text) => self.upload.text = text,
                None if self.is_over() => return Poll::Ready(Ok(0)),
                None => return self.download.poll_refused(cx).map(|()| Err(Ending::ClientLeft)),
            }
        }
        let text = &mut self.upload.text;
        let length = text.len().min(into.len());
        text.copy_to_slice(&mut into[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Ending>> {
        match &mut self.download {
            download if bytes.is_empty() => {
                let is_refused = download.poll_refused(cx).is_ready();
                Poll::Ready(if is_refused { Err(Ending::ClientLeft) } else { Ok(0) })
            }
            Download::Head { .. } => Poll::Ready(self.download.head(bytes, &self.kind)),
            Download::Body(body) => body.poll_take(cx, bytes),
            Download::Broken => Poll::Ready(Err(Ending::ClientLeft)),
        }
    }
}

/// Heads, and the lines around chunks, are written to it whole.
impl Stream for Rc<RequestStream> {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut ways = self.0.borrow_mut();
        ways.poll_recv(cx, into).map_err(|ending| ways.end_by(ending))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut ways = self.0.borrow_mut();
        ways.poll_send(cx, bytes).map_err(|ending| ways.end_by(ending))
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut ways = self.0.borrow_mut();
        ways.has_finished = true;
        if let Download::Body(body) = &mut ways.download {
            body.end_session();
        }
        Ok(())
    }
}

/// A response that was let go of has broken off. A session ends in order also then: a reset would take back what is still to be
/// sent, and a WebSocket tells by its Close frame whether it was ended.
impl Drop for Ways {
    fn drop(&mut self) {
        if let Download::Body(body) = &mut self.download {
            body.end_session();
            // Whoever is gone does not have to be told.
            let _ = body.push();
        }
        let is_whole = matches!(&self.download, Download::Body(body) if body.has_ended());
        if !is_whole {
            self.download.reset(Reason::INTERNAL_ERROR);
        }
    }
}

/// The request's way.
struct Upload {
    /// What has come and was not read.
    text: Bytes,
    framing: Framing,
    /// To be kept to the end of the response: letting go of it resets the stream (RFC 9113 8.1).
    body: RecvStream,
    stage: Stage,
}

/// What comes next of a request.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Stage {
    /// Bytes of a session.
    Session,
    Body,
    Trailers,
    Nothing,
}

impl Upload {
    fn of(request: Request<RecvStream>) -> Result<(Kind, Self), Ending> {
        let (parts, body) = request.into_parts();
        if request::needs_own_connection(&parts) {
            return Err(Ending::NeedsOwnConnection);
        }
        let kind = match parts.method {
            Method::HEAD => Kind::Head,
            _ if request::asks_for_websocket(&parts) => Kind::WebSocket(WebSocketKey::new()),
            _ => Kind::Other,
        };
        let mut head = Vec::with_capacity(512);
        let key = if let Kind::WebSocket(key) = &kind { Some(key) } else { None };
        let framing = request::head(&parts, !body.is_end_stream(), key, &mut head)?;
        let stage = match kind {
            Kind::WebSocket(_) => Stage::Session,
            _ if framing == Framing::Empty => Stage::Nothing,
            _ => Stage::Body,
        };
        Ok((kind, Self { text: head.into(), framing, body, stage }))
    }

    /// What there is, as it is read; none at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Ending>> {
        if matches!(self.stage, Stage::Session | Stage::Body) {
            if let Some(data) = ready!(self.body.poll_data(cx)) {
                let data = self.gather(cx, data?);
                self.body.flow_control().release_capacity(data.len())?;
                if self.framing != Framing::Chunked {
                    return Poll::Ready(Ok(Some(data)));
                }
                let mut text = Vec::with_capacity(data.len() + CHUNK_LINES_BYTES);
                request::data(self.framing, &data, &mut text);
                return Poll::Ready(Ok(Some(text.into())));
            }
            self.stage = if self.stage == Stage::Session { Stage::Nothing } else { Stage::Trailers };
        }
        if self.stage == Stage::Nothing {
            return Poll::Ready(Ok(None));
        }
        let trailers = ready!(self.body.poll_trailers(cx))?;
        self.stage = Stage::Nothing;
        let mut text = Vec::new();
        request::end(self.framing, trailers.as_ref(), &mut text)?;
        Poll::Ready(Ok(Some(text.into())))
    }
}

impl Upload {
    /// Puts what has come behind a small frame to it: each costs the same, however little it has. An error, or the end, is found
    /// again by whoever asks next.
    fn gather(&mut self, cx: &mut Context<'_>, first: Bytes) -> Bytes {
        if first.len() >= GATHERED_BYTES {
            return first;
        }
        let mut all = BytesMut::from(first);
        while all.len() < GATHERED_BYTES
            && let Poll::Ready(Some(Ok(more))) = self.body.poll_data(cx)
        {
            all.extend_from_slice(&more);
        }
        all.freeze()
    }
}

/// The response's way.
enum Download {
    /// What there is of the head, and how far it was looked at.
    Head {
        respond: SendResponse<Bytes>,
        text: Vec<u8>,
        scan: HeadEnd,
    },
    Body(Body),
    Broken,
}

impl Download {
    fn reset(&mut self, reason: Reason) {
        match self {
            Self::Head { respond, .. } => respond.send_reset(reason),
            Self::Body(body) => body.stream.send_reset(reason),
            Self::Broken => {}
        }
    }

    /// Ready once the client does not want the response any more.
    fn poll_refused(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Head { respond, .. } => respond.poll_reset(cx).map(drop),
            Self::Body(body) if body.has_ended() => Poll::Pending,
            Self::Body(body) => body.stream.poll_reset(cx).map(drop),
            Self::Broken => Poll::Ready(()),
        }
    }

    /// Takes in bytes to the end of the head, and sends it once it is whole. Gives how many.
    fn head(&mut self, bytes: &[u8], kind: &Kind) -> Result<usize, Ending> {
        let Self::Head { respond, text, scan } = self else { return Err(Ending::Incomplete) };
        let before = text.len();
        text.extend_from_slice(bytes);
        let Some(length) = scan.find(text, &RESPONSE_LIMITS).map_err(|_| Ending::Incomplete)? else {
            return Ok(bytes.len());
        };
        let used = length - before;
        let head = ResponseHead::parse(&text[..length], &RESPONSE_LIMITS, matches!(kind, Kind::Head))
            .map_err(|_| Ending::Incomplete)?;
        if let Kind::WebSocket(key) = kind {
            if head.status == 101 && key.is_answered_by(&head.headers) {
                let response = response::websocket(&head).ok_or(Ending::Incomplete)?;
                *self = Self::Body(Body::new(respond.send_response(response, false)?, None));
                return Ok(used);
            }
            if matches!(head.status, 101 | 200..300) {
                // To HTTP/2 any 2xx is a session (RFC 8441 5); to HTTP/1.1 none is but an answer to the key.
                return Err(Ending::Incomplete);
            }
        }
        if response::needs_own_connection(&head) {
            return Err(Ending::NeedsOwnConnection);
        }
        let (framing, response) = (head.framing, response::head(&head).ok_or(Ending::Incomplete)?);
        if response.status().is_informational() {
            respond.send_informational(response)?;
            (*scan, *text) = Default::default();
            return Ok(used);
        }
        let is_end = framing == Framing::Empty;
        let stream = respond.send_response(response, is_end)?;
        let mut body = Body::new(stream, Some(Decoder::of_agent(framing)));
        if is_end {
            body.stage = BodyStage::Ended;
        }
        *self = Self::Body(body);
        Ok(used)
    }
}

/// What follows a head: a body, or what an agent says in a session.
struct Body {
    stream: SendStream<Bytes>,
    /// None in a session.
    decoder: Option<Decoder>,
    /// What the client has room for and was not pushed.
    held: BytesMut,
    stage: BodyStage,
}

enum BodyStage {
    Open,
    /// All is written, with these trailers; they were not pushed.
    Written(HeaderMap),
    Ended,
}

impl Body {
    fn new(stream: SendStream<Bytes>, decoder: Option<Decoder>) -> Self {
        Self { stream, decoder, held: BytesMut::new(), stage: BodyStage::Open }
    }

    fn has_ended(&self) -> bool {
        !matches!(self.stage, BodyStage::Open)
    }

    /// An orderly end of a session; nothing where there is none.
    fn end_session(&mut self) {
        if self.decoder.is_none() && !self.has_ended() {
            self.stage = BodyStage::Written(HeaderMap::new());
        }
    }

    /// Ready once the client has room for more than what is held; tells for how many bytes.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Ending>> {
        self.stream.reserve_capacity(self.held.len() + wanted);
        match self.stream.capacity().saturating_sub(self.held.len()) {
            // The crate wakes whoever waits for a reset with more room, too.
            0 => self.stream.poll_reset(cx).map(|_| Err(Ending::ClientLeft)),
            room => Poll::Ready(Ok(room.min(wanted))),
        }
    }

    /// Takes what the client has room for, the end also where it has none. Gives the bytes used.
    fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Ending>> {
        if self.has_ended() {
            return Poll::Ready(Err(Ending::Incomplete));
        }
        let room = match self.poll_room(cx, bytes.len()) {
            Poll::Ready(room) => Some(room?),
            Poll::Pending => None,
        };
        let Some(decoder) = &mut self.decoder else {
            return room.map_or(Poll::Pending, |room| {
                self.held.extend_from_slice(&bytes[..room]);
                Poll::Ready(Ok(room))
            });
        };
        let (used, end) = decode(decoder, bytes, room.unwrap_or(0), &mut self.held)?;
        if let Some(trailers) = end {
            self.stage = BodyStage::Written(trailers);
        } else if used == 0 {
            return if room.is_none() { Poll::Pending } else { Poll::Ready(Err(Ending::Incomplete)) };
        }
        Poll::Ready(Ok(used))
    }

    /// Hands over what is held, and the end once it was written.
    fn push(&mut self) -> Result<(), Ending> {
        let data = self.held.split().freeze();
        match std::mem::replace(&mut self.stage, BodyStage::Ended) {
            BodyStage::Open => {
                self.stage = BodyStage::Open;
                if !data.is_empty() {
                    self.stream.send_data(data, false)?;
                }
            }
            BodyStage::Written(trailers) if trailers.is_empty() => self.stream.send_data(data, true)?,
            BodyStage::Written(trailers) => {
                if !data.is_empty() {
                    self.stream.send_data(data, false)?;
                }
                self.stream.send_trailers(trailers)?;
            }
            BodyStage::Ended => {}
        }
        Ok(())
    }
}

/// Puts what stands in `bytes`, `room` of the body at the most, behind `data`. Gives how many bytes were used, and the trailers
/// at the end.
fn decode(
    decoder: &mut Decoder,
    bytes: &[u8],
    mut room: usize,
    data: &mut BytesMut,
) -> Result<(usize, Option<HeaderMap>), Ending> {
    let mut used = 0;
    loop {
        let mut ahead = decoder.clone();
        let (took, piece) = ahead.next(&bytes[used..]).map_err(|_| Ending::Incomplete)?;
        match piece {
            Some(BodyChunk::Data(piece)) => {
                let fits = piece.len().min(room);
                if fits == 0 {
                    return Ok((used, None));
                }
                let all = used..used + took - (piece.len() - fits);
                let (took, _) = decoder.next(&bytes[all]).map_err(|_| Ending::Incomplete)?;
                data.extend_from_slice(&piece[..fits]);
                (room, used) = (room - fits, used + took);
            }
            Some(BodyChunk::End(trailers)) => {
                return Ok((used + took, Some(response::fields(&trailers).ok_or(Ending::Incomplete)?)));
            }
            None => {
                *decoder = ahead;
                return Ok((used + took, None));
            }
        }
    }
}
