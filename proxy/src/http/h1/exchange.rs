//! One request and its response, both bodies on their way at the same time: an answer is passed on as soon as
//! the agent gives it, also while the client is still sending. Nothing is buffered whole.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::http::connection_auth::{self, Login};
use crate::http::error_page::{self, AnswerForm};
use crate::http::h1::body::{self, BodyChunk, BodyError, Decoder};
use crate::http::h1::head::{self, HeadEnd, HeadError, HeadLimits};
use crate::http::h1::keep_alive::KeepAliveLimits;
use crate::http::h1::writer;
use crate::http::message::{self, Framing, RequestHead, ResponseHead, Version};
use crate::http::path_prefix::PathPrefix;
use crate::http::rewrite::ResponseRewrite;
use crate::observe::side::Side;
use crate::runtime::drain::{Drain, Phase};
use crate::transport::endpoint::{Endpoint, EndpointError, FILL_BYTES, StreamEnd, WorkerBuffers};
use crate::transport::net::Runtime;
use crate::transport::stream::Stream;

/// Limits of an exchange.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeLimits {
    /// Of the response head.
    pub head: HeadLimits,
    /// How long a request body may pause.
    pub body_idle_timeout: Duration,
    /// How long the agent may take to its first response byte, or pause in the response.
    pub response_timeout: Duration,
    /// Bytes of a request body.
    pub body_max: u64,
    /// How long the agent may take, or pause, once the client has ended its side.
    pub half_closed_timeout: Duration,
}

/// A method, as far as it matters to a proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// HEAD: the answer has no body.
    Head,
    /// One that does the same once as twice (RFC 9110 9.2.2).
    Idempotent,
    /// Any other.
    Other,
}

impl Method {
    /// The method of this name.
    pub fn of(name: &str) -> Self {
        match name {
            "HEAD" => Self::Head,
            "GET" | "OPTIONS" | "PUT" | "DELETE" => Self::Idempotent,
            _ => Self::Other,
        }
    }
}

/// The parts of the request that the response depends on.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The method.
    pub method: Method,
    /// How the body of the request is delimited.
    pub framing: Framing,
    /// Whether it asks for a WebSocket.
    pub websocket: bool,
    /// Whether the client may wait for a 100 before it sends its body (RFC 9110 10.1.1).
    pub expects_continue: bool,
    /// The version that the client speaks.
    pub version: Version,
    /// Whether the client would send another request.
    pub keep_alive: bool,
    /// The form that an answer of the proxy's own has.
    pub own_answers: AnswerForm,
    /// Its effect on logins that hold for the agent's connection.
    pub login: Login,
    /// Where the agent's paths are for the client.
    pub path_prefix: Option<PathPrefix>,
}

impl RequestContext {
    /// Of a request.
    pub fn of(head: &RequestHead<'_>) -> Self {
        Self {
            method: Method::of(head.method),
            framing: head.framing,
            websocket: head.websocket,
            expects_continue: message::values(&head.headers, "expect").next().is_some(),
            version: head.version,
            keep_alive: head.keep_alive,
            own_answers: error_page::wanted(&head.headers),
            login: Login::of_request(&head.headers),
            path_prefix: None,
        }
    }
}

/// The result of an exchange.
#[derive(Debug)]
pub enum Outcome {
    /// The response was passed on whole.
    Answered {
        /// Its status.
        status: u16,
        /// Whether the client may send another request.
        keep_client: bool,
        /// Whether the agent may be sent another request.
        keep_agent: bool,
    },
    /// The agent speaks the protocol that was asked for from here on.
    Upgraded,
}

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A side failed. Where `status` is none, the client has not been given anything yet.
    #[error("{1} (the {0})")]
    Endpoint(Side, EndpointError, Option<u16>),
    /// The body of a side breaks the rules of its framing; the same of `status`.
    #[error("{1} (the {0})")]
    Body(Side, BodyError, Option<u16>),
    /// The agent's head can't be passed on; the client has not been given anything yet.
    #[error("the response head is invalid: {0}")]
    BadHead(HeadError),
    /// The agent agreed to an upgrade that nobody asked for.
    #[error("the agent switched to a protocol that was not requested")]
    UnaskedUpgrade,
    /// The agent sent more interim responses than [`INTERIM_MAX`].
    #[error("the agent sent more than {INTERIM_MAX} interim responses")]
    TooManyInterim,
    /// The worker ends.
    #[error("the proxy stops")]
    Stopped,
}

impl Failure {
    /// A word for it, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Endpoint(Side::Client, ..) | Self::Body(Side::Client, ..) => "client_failed",
            Self::Endpoint(Side::Agent, _, None) | Self::Body(Side::Agent, _, None) => "no_response",
            Self::Endpoint(Side::Agent, _, Some(_)) | Self::Body(Side::Agent, _, Some(_)) => {
                "response_incomplete"
            }
            Self::BadHead(_) => "invalid_response",
            Self::UnaskedUpgrade => "unexpected_upgrade",
            Self::TooManyInterim => "too_many_interim_responses",
            Self::Stopped => "stopped",
        }
    }
}

/// An exchange on its way.
pub struct Exchange<'a, N: Runtime> {
    /// The client.
    pub client: &'a mut Endpoint<N::Stream>,
    /// The agent.
    pub agent: &'a mut Endpoint<N::Stream>,
    /// For letting others have their turn.
    pub net: &'a N,
    /// The worker's buffers.
    pub buffers: &'a RefCell<WorkerBuffers>,
    /// Whether a client that has ended its side in order still waits for the answer (RFC 9112 9.6).
    pub may_half_close: bool,
    /// Whether the client is to stay.
    pub drain: &'a Drain,
    /// The limits.
    pub limits: ExchangeLimits,
    /// The line that holds the client to HTTPS.
    pub hsts: Option<&'a str>,
    /// Body bytes to the agent, as far as they got.
    pub to_agent: u64,
    /// Body bytes to the client, as far as they got.
    pub to_client: u64,
    /// Whether a head came from the agent, if only an interim one.
    pub heard: Option<Instant>,
    /// Whether the agent has spoken of a login that holds for its connection.
    pub pins: bool,
    /// How long and for how many requests the agent means to keep its connection.
    pub keep_alive_limits: KeepAliveLimits,
}

/// A head and its body on their way.
struct Transfer<'a> {
    /// Bytes that go out before the body, in the same TLS record.
    head: &'a [u8],
    decoder: Decoder,
    /// The framing that the receiver was told.
    framing: Framing,
    moved: u64,
    done: bool,
    /// The sender may wait for a 100 that has not come.
    awaits_continue: bool,
}

/// Receives of one body before the other body, and then the other tasks, have their turns: half of what a run of the
/// task may do ([`SETUP_CALLS`](crate::runtime::scheduler::SETUP_CALLS)) is left to the other body.
const TURN_RECEIVES: usize = 4;
/// Interim responses to one request. Servers send one or two; those that say every few seconds that they still work
/// (102) stay below it within the time that an agent has to answer.
const INTERIM_MAX: usize = 64;

/// Why a transfer failed.
enum TransferError {
    /// The sender.
    From(EndpointError),
    /// The bytes that it sent.
    Body(BodyError),
    /// The receiver.
    To(EndpointError),
}

impl TransferError {
    /// The failure of a transfer from `side`.
    fn of(self, side: Side, status: Option<u16>) -> Failure {
        match self {
            Self::From(error) => Failure::Endpoint(side, error, status),
            Self::Body(error) => Failure::Body(side, error, status),
            Self::To(error) => Failure::Endpoint(side.other(), error, status),
        }
    }
}

/// How a transfer stands.
enum Turn {
    Done,
    Again,
}

impl<'a> Transfer<'a> {
    fn new(head: &'a [u8], from: Framing, decoder: Decoder, to: Framing) -> Self {
        Self { head, awaits_continue: false, decoder, framing: to, moved: 0, done: from == Framing::Empty }
    }

    /// Whether the agent, and not the client, has to do the next step.
    fn is_up_to_agent(&self) -> bool {
        self.done || (self.awaits_continue && self.moved == 0)
    }

    fn poll<S: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Endpoint<S>,
        to: &mut Endpoint<S>,
        buffers: &mut WorkerBuffers,
    ) -> Poll<Result<Turn, TransferError>> {
        let mut receives = 0;
        loop {
            let recoded = self.recode(cx, from, to, buffers);
            let flushed = to.poll_flush(cx);
            // What was there before a body broke the rules has gone out by now, as far as the side takes it.
            let has_gained = recoded?;
            ready!(flushed).map_err(TransferError::To)?;
            if self.done {
                return Poll::Ready(Ok(Turn::Done));
            }
            if has_gained {
                continue;
            }
            if receives == TURN_RECEIVES {
                return Poll::Ready(Ok(Turn::Again));
            }
            receives += 1;
            if ready!(from.poll_fill(cx, buffers)).map_err(TransferError::From)? == 0 {
                self.end_with_connection(from, to)?;
            }
        }
    }

    /// Sends the head and what is already there of the body, in one message. Whether there was any body.
    fn recode<S: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Endpoint<S>,
        to: &mut Endpoint<S>,
        buffers: &mut WorkerBuffers,
    ) -> Result<bool, TransferError> {
        buffers.message.clear();
        buffers.message.extend_from_slice(std::mem::take(&mut self.head));
        let decoded = self.decode(from, &mut buffers.message);
        to.send(cx, &buffers.message).map_err(TransferError::To)?;
        decoded.map_err(TransferError::Body)
    }

    fn decode<S: Stream>(
        &mut self,
        from: &mut Endpoint<S>,
        message: &mut Vec<u8>,
    ) -> Result<bool, BodyError> {
        if self.done {
            return Ok(false);
        }
        let mut used = 0;
        while !self.done {
            let (took, piece) = self.decoder.next(&from.read_buf.filled()[used..])?;
            used += took;
            let Some(piece) = piece else { break };
            if let BodyChunk::Data(data) = &piece {
                self.moved += data.len() as u64;
            }
            self.done = matches!(piece, BodyChunk::End(_));
            body::encode(self.framing, &piece, message);
        }
        from.read_buf.consume(used);
        Ok(used > 0 || self.done)
    }

    /// Only a body that ends with its connection may end so, and only in order.
    fn end_with_connection<S: Stream>(
        &mut self,
        from: &Endpoint<S>,
        to: &mut Endpoint<S>,
    ) -> Result<(), TransferError> {
        if !self.decoder.ends_with_connection() || from.end() != Some(StreamEnd::Clean) {
            return Err(TransferError::From(EndpointError::EndedEarly));
        }
        let mut last = Vec::new();
        body::encode(self.framing, &BodyChunk::End(Vec::new()), &mut last);
        self.done = true;
        to.write(&last).map_err(TransferError::To)
    }
}

/// The event that woke an exchange that waits for a `T`.
enum Event<T> {
    /// Some body bytes went their way.
    Progress,
    /// A turn is used up.
    Again,
    /// The `T` is there.
    Here(T),
    TimeUp,
}

impl<N: Runtime> Exchange<'_, N> {
    /// Runs the exchange to its end. `head` is what the agent is to see of the request's.
    pub async fn run(&mut self, request: &RequestContext, head: &[u8]) -> Result<Outcome, Failure> {
        let decoder = Decoder::new(request.framing, self.limits.body_max);
        let mut upload = Transfer::new(head, request.framing, decoder, request.framing);
        upload.awaits_continue = request.expects_continue;
        let done = self.run_with(request, &mut upload).await;
        self.to_agent = upload.moved;
        done
    }

    async fn run_with(
        &mut self,
        request: &RequestContext,
        upload: &mut Transfer<'_>,
    ) -> Result<Outcome, Failure> {
        // Interim responses don't give the agent more time.
        let mut timer = pin!(self.net.sleep(self.upload_timeout(upload)));
        let mut interim = 0;
        loop {
            let length = self.response_head(upload, timer.as_mut()).await?;
            self.heard.get_or_insert_with(|| self.net.now());
            let head = ResponseHead::parse(
                &self.agent.read_buf.filled()[..length],
                &self.limits.head,
                request.method == Method::Head,
            )
            .map_err(Failure::BadHead)?;
            let status = head.status;
            self.keep_alive_limits.update(&head.headers);
            self.pins |= connection_auth::has_connection_login(&head.headers);
            if status == 101 && !(request.websocket && head::has_websocket(&head.headers)) {
                return Err(Failure::UnaskedUpgrade);
            }
            let (framing, may_stay) = offer(&head, request, upload.done);
            let keep_client = may_stay && self.may_ask_again() && self.drain.phase() == Phase::Running;
            let keep_agent = head.keep_alive;
            let passing = ResponseRewrite {
                framing,
                keep_alive: keep_client,
                http10: request.version == Version::Http10,
                path_prefix: request.path_prefix.as_ref(),
                hsts: self.hsts,
            };
            let mut out = Vec::with_capacity(length + 128);
            writer::response(&head, &passing, &mut out);
            let from = head.framing;
            self.agent.read_buf.consume(length);
            match status {
                101 => {
                    self.write_to_client(&out)?;
                    return Ok(Outcome::Upgraded);
                }
                100..200 if interim == INTERIM_MAX => return Err(Failure::TooManyInterim),
                100..200 => {
                    interim += 1;
                    self.write_to_client(&out)?;
                    if status == 100 && std::mem::take(&mut upload.awaits_continue) {
                        // The next step is the client's, who has all of its time for it.
                        timer.set(self.net.sleep(self.upload_timeout(upload)));
                    }
                    self.send_interim(status).await?;
                }
                _ => {
                    let download = Transfer::new(&out, from, Decoder::of_agent(from), framing);
                    return self.bodies(status, upload, download, keep_client, keep_agent).await;
                }
            }
        }
    }

    fn write_to_client(&mut self, head: &[u8]) -> Result<(), Failure> {
        self.client.write(head).map_err(|error| Failure::Endpoint(Side::Client, error, None))
    }

    async fn send_interim(&mut self, status: u16) -> Result<(), Failure> {
        let sent = self.net.timeout(self.limits.response_timeout, self.client.flush()).await;
        sent.unwrap_or(Err(EndpointError::TimedOut))
            .map_err(|error| Failure::Endpoint(Side::Client, error, Some(status)))
    }

    /// Waits for a whole response head, sending the request's body meanwhile.
    async fn response_head(
        &mut self,
        upload: &mut Transfer<'_>,
        mut timer: Pin<&mut N::Sleep>,
    ) -> Result<usize, Failure> {
        let mut scan = HeadEnd::default();
        let mut upload_broken = false;
        loop {
            let event =
                poll_fn(|cx| self.poll_head(cx, upload, &mut upload_broken, &mut scan, timer.as_mut()))
                    .await?;
            match event {
                Event::Here(length) => return Ok(length),
                Event::Again => self.net.yield_now().await,
                Event::TimeUp => return Err(self.timed_out(upload, None)),
                Event::Progress => {}
            }
            timer.set(self.net.sleep(self.upload_timeout(upload)));
        }
    }

    fn upload_timeout(&self, upload: &Transfer<'_>) -> Duration {
        self.cap_if_half_closed(if upload.is_up_to_agent() {
            self.limits.response_timeout
        } else {
            self.limits.body_idle_timeout
        })
    }

    /// A client that has ended its side may be gone, too.
    fn cap_if_half_closed(&self, limit: Duration) -> Duration {
        if self.client.end().is_some() { limit.min(self.limits.half_closed_timeout) } else { limit }
    }

    /// Whether the client may have another request, if only one that it has sent ahead.
    fn may_ask_again(&self) -> bool {
        self.client.end().is_none() || !self.client.read_buf.is_empty()
    }

    fn timed_out(&self, upload: &Transfer<'_>, status: Option<u16>) -> Failure {
        if status.is_none()
            && self.cap_if_half_closed(self.limits.response_timeout) < self.limits.response_timeout
        {
            return Failure::Endpoint(Side::Client, EndpointError::EndedEarly, None);
        }
        let side = if upload.is_up_to_agent() || self.agent.has_pending_write() {
            Side::Agent
        } else {
            Side::Client
        };
        Failure::Endpoint(side, EndpointError::TimedOut, status)
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Transfer<'_>,
        upload_broken: &mut bool,
        scan: &mut HeadEnd,
        timer: Pin<&mut N::Sleep>,
    ) -> Poll<Result<Event<usize>, Failure>> {
        let (moved, was_done, had_ended) = (upload.moved, upload.done, self.client.end().is_some());
        let mut again = false;
        if !*upload_broken {
            match self.poll_upload(cx, upload) {
                Ok(turn) => again = turn,
                // An agent that refuses a body may have said why: its answer is still read.
                Err(TransferError::To(_)) => *upload_broken = true,
                Err(broken) => return Poll::Ready(Err(broken.of(Side::Client, None))),
            }
        }
        if let Poll::Ready(event) = self.poll_agent_head(cx, scan) {
            return Poll::Ready(event);
        }
        if upload.done {
            self.look_after_client(cx)?;
        }
        if again {
            return Poll::Ready(Ok(Event::Again));
        }
        if upload.moved > moved || upload.done != was_done || self.client.end().is_some() != had_ended {
            return Poll::Ready(Ok(Event::Progress));
        }
        timer.poll(cx).map(|()| Ok(Event::TimeUp))
    }

    /// Whether the kernel has all of the request.
    fn is_sent(&self, upload: &Transfer<'_>) -> bool {
        upload.done && upload.head.is_empty() && !self.agent.has_pending_write()
    }

    /// Whether the turn was used up before the body.
    fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Transfer<'_>,
    ) -> Result<bool, TransferError> {
        // Most requests are a head alone.
        if self.is_sent(upload) {
            return Ok(false);
        }
        let mut buffers = self.buffers.borrow_mut();
        match upload.poll(cx, self.client, self.agent, &mut buffers) {
            Poll::Pending => Ok(false),
            Poll::Ready(turn) => Ok(matches!(turn?, Turn::Again)),
        }
    }

    fn poll_agent_head(
        &mut self,
        cx: &mut Context<'_>,
        scan: &mut HeadEnd,
    ) -> Poll<Result<Event<usize>, Failure>> {
        loop {
            let found =
                scan.find(self.agent.read_buf.filled(), &self.limits.head).map_err(Failure::BadHead)?;
            if let Some(length) = found {
                return Poll::Ready(Ok(Event::Here(length)));
            }
            let filled = ready!(self.agent.poll_fill(cx, &mut self.buffers.borrow_mut()));
            let error = match filled {
                Ok(0) => EndpointError::EndedEarly,
                Ok(_) => continue,
                Err(error) => error,
            };
            return Poll::Ready(Err(Failure::Endpoint(Side::Agent, error, None)));
        }
    }

    /// A client that is gone wants no answer. One whose TLS stream was cut did not end its side by itself.
    fn look_after_client(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let may_half_close = self.may_half_close;
        let is_gone = |end| end == StreamEnd::Truncated || !may_half_close;
        let error = self.waiting_client_failure(cx);
        let error =
            error.or_else(|| self.client.end().is_some_and(is_gone).then_some(EndpointError::EndedEarly));
        error.map_or(Ok(()), |error| Err(Failure::Endpoint(Side::Client, error, None)))
    }

    /// Takes in what the client sends ahead, up to a limit, and finds out whether it is still there.
    fn client_failure(&mut self, cx: &mut Context<'_>) -> Option<EndpointError> {
        while self.client.read_buf.len() < FILL_BYTES && self.client.end().is_none() {
            match self.client.poll_fill(cx, &mut self.buffers.borrow_mut()) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Some(error),
                Poll::Pending => break,
            }
        }
        None
    }

    /// The same where nothing more is received: a client that has ended its side, or sent more ahead than is taken in, may
    /// be gone altogether.
    fn waiting_client_failure(&mut self, cx: &mut Context<'_>) -> Option<EndpointError> {
        let is_unheard = |client: &Endpoint<_>| client.end().is_some() || client.read_buf.len() >= FILL_BYTES;
        self.client_failure(cx).or_else(|| is_unheard(self.client).then(|| self.client.reset(cx)).flatten())
    }

    /// The response's body, and what is left of the request's.
    async fn bodies(
        &mut self,
        status: u16,
        upload: &mut Transfer<'_>,
        mut download: Transfer<'_>,
        keep_client: bool,
        keep_agent: bool,
    ) -> Result<Outcome, Failure> {
        // An agent that answers before it has the whole request may take the rest of it for a request of its
        // own: its connection never serves anybody else.
        let early = !self.is_sent(upload);
        // An agent that will close the connection does not want the rest.
        let mut upload_over = !early || !keep_agent;
        let mut timer = pin!(self.net.sleep(self.cap_if_half_closed(self.limits.response_timeout)));
        loop {
            let event = poll_fn(|cx| {
                let event = self.poll_bodies(cx, status, upload, &mut upload_over, &mut download);
                if event.is_pending() { timer.as_mut().poll(cx).map(|()| Ok(Event::TimeUp)) } else { event }
            });
            let event = event.await;
            self.to_client = download.moved;
            match event? {
                Event::Here(()) => break,
                Event::Again => self.net.yield_now().await,
                Event::TimeUp if download.done => return Err(self.timed_out(upload, Some(status))),
                Event::TimeUp => {
                    return Err(Failure::Endpoint(self.slow_side(), EndpointError::TimedOut, Some(status)));
                }
                Event::Progress => {}
            }
            timer.set(self.net.sleep(self.cap_if_half_closed(self.limits.response_timeout)));
        }
        let agent_quiet = self.agent.end().is_none() && self.agent.read_buf.is_empty();
        Ok(Outcome::Answered {
            status,
            keep_client: keep_client && upload.done,
            keep_agent: keep_agent && !early && agent_quiet,
        })
    }

    fn slow_side(&self) -> Side {
        if self.client.has_pending_write() { Side::Client } else { Side::Agent }
    }

    fn poll_bodies(
        &mut self,
        cx: &mut Context<'_>,
        status: u16,
        upload: &mut Transfer<'_>,
        upload_over: &mut bool,
        download: &mut Transfer<'_>,
    ) -> Poll<Result<Event<()>, Failure>> {
        let (moved, had_ended) = (upload.moved + download.moved, self.client.end().is_some());
        let mut again = false;
        if !*upload_over {
            match self.poll_upload(cx, upload) {
                Ok(turn) => again = turn,
                Err(TransferError::To(_)) => *upload_over = true,
                Err(broken) => {
                    // What the agent has said by now goes out first, as far as the client takes it.
                    let _ = download.poll(cx, self.agent, self.client, &mut self.buffers.borrow_mut());
                    return Poll::Ready(Err(broken.of(Side::Client, Some(status))));
                }
            }
            *upload_over |= self.is_sent(upload);
        }
        let polled = download.poll(cx, self.agent, self.client, &mut self.buffers.borrow_mut());
        match polled {
            Poll::Ready(Ok(Turn::Done)) if *upload_over => return Poll::Ready(Ok(Event::Here(()))),
            Poll::Ready(Ok(Turn::Again)) => again = true,
            Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken.of(Side::Agent, Some(status)))),
            Poll::Ready(Ok(Turn::Done)) | Poll::Pending => {}
        }
        // Once it has the answer, it may leave while the agent takes the rest of the request.
        let is_answered = download.done && !self.client.has_pending_write();
        if upload.done
            && !is_answered
            && let Some(error) = self.waiting_client_failure(cx)
        {
            return Poll::Ready(Err(Failure::Endpoint(Side::Client, error, Some(status))));
        }
        if again {
            return Poll::Ready(Ok(Event::Again));
        }
        let is_changed = upload.moved + download.moved > moved || self.client.end().is_some() != had_ended;
        if is_changed { Poll::Ready(Ok(Event::Progress)) } else { Poll::Pending }
    }
}

/// The framing that the client is told, and whether its connection stays.
fn offer(head: &ResponseHead<'_>, request: &RequestContext, upload_done: bool) -> (Framing, bool) {
    let framing = match head.framing {
        Framing::Chunked | Framing::UntilEnd if request.version == Version::Http10 => Framing::UntilEnd,
        Framing::UntilEnd => Framing::Chunked,
        framing => framing,
    };
    // After a refused upgrade the client may already have sent what is no HTTP; after a refused body, the rest.
    let settled = !request.websocket && (upload_done || head.keep_alive);
    (framing, request.keep_alive && settled && framing != Framing::UntilEnd)
}
