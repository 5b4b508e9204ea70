//! One request and its response, from the first byte of its head to what follows. Each phase is a type and each step takes
//! the phase by value, so what a phase has not earned yet (an agent, a parsed head) can't be touched.
//!
//! ```text
//! Ready → Requested → Connected → { exchange → Ready | Upgraded } → its record written
//! ```

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::access::policy::{Decision, Forward};
use crate::access::rejections::RejectReason;
use crate::agents::pool::{ConnectError, PinnedConnection, PoolLimits};
use crate::http::error_page::{self, AnswerForm};
use crate::http::h1::exchange::{Exchange, Failure, Method, Outcome, RequestContext};
use crate::http::h1::head::{HeadEnd, HeadError};
use crate::http::h1::keep_alive::KeepAliveLimits;
use crate::http::h1::writer;
use crate::http::h2::PREFACE_HEAD;
use crate::http::local_response::LocalResponse;
use crate::http::message::{Framing, RequestHead, Version};
use crate::http::request_source::RequestSource;
use crate::observe::access_log::EndReason;
use crate::observe::agent::Agent;
use crate::observe::client::ClientConnection;
use crate::observe::handshakes::HandshakeOutcome;
use crate::observe::session_stats::SharedProbe;
use crate::observe::side::Side;
use crate::runtime::drain::Phase;
use crate::tls::TlsEnd;
use crate::transport::any_stream::InsideStream;
use crate::transport::endpoint::{Endpoint, EndpointError, WorkerBuffers};
use crate::transport::net::Runtime;
use crate::worker::authorization::authorize;
use crate::worker::context::{CLOSE_TIMEOUT, Generation};
use crate::worker::eviction::EvictionEntry;
use crate::worker::failure_responses::{
    handshake_failure_reason, head_took_too_long, log_connect_failure, log_failure, mark_if_down,
    response_to, unreachable,
};
use crate::worker::record_builder::RecordBuilder;
use crate::worker::routing::{decide, resolve};
use crate::worker::upgraded::Upgraded;

/// A client that may ask for something.
pub(super) struct Ready<N: Runtime> {
    pub(super) endpoint: Box<Endpoint<N::Stream>>,
    /// Who made the connection; a request of it may be another's ([`RequestSource`]).
    pub(super) client: ClientConnection,
    pub(super) secure: bool,
    /// The version of TLS; empty without it.
    tls: &'static str,
    /// Whether it is one request of an HTTP/2 connection.
    is_stream: bool,
    /// That connection, for those who ask the kernel.
    probe: Option<SharedProbe>,
    /// Whether it has been answered before.
    again: bool,
    /// Where it has logged in.
    pinned: PinnedConnection<N::Stream>,
}

/// What the requests of an HTTP/2 connection have in common.
#[derive(Clone)]
pub(super) struct Http2Connection {
    pub(super) client: ClientConnection,
    pub(super) secure: bool,
    /// The version of TLS; empty without it.
    pub(super) tls: &'static str,
    /// For those who ask the kernel.
    pub(super) probe: Option<SharedProbe>,
}

/// A client that has asked for something that an agent is to answer.
struct Requested<N: Runtime> {
    client: Ready<N>,
    request: RequestContext,
    agent: Agent,
    /// The head that the agent is to see.
    head: Vec<u8>,
    builder: RecordBuilder,
}

/// A client, and the agent that has its request.
struct Connected<N: Runtime> {
    requested: Box<Requested<N>>,
    agent: Box<Endpoint<N::Stream>>,
    /// Whether the agent's connection has served another request before.
    reused: bool,
    /// How the agent means to keep the connection once it has answered.
    keep_alive_limits: KeepAliveLimits,
    /// Whether the agent's connection is this client's alone, by a login.
    pinned: bool,
    /// Whether the agent has answered, if only in the interim.
    heard: Option<Instant>,
}

/// The step after a response: the next request, a session, or an end.
pub(super) enum NextStep<N: Runtime> {
    Next(Ready<N>),
    Upgraded(Box<Upgraded<N>>),
    /// The client speaks HTTP/2 from its first byte on.
    Http2(Ready<N>),
    /// The client is to leave.
    Closing(Ready<N>),
    /// The client is gone.
    Closed,
}

impl<N: Runtime> Ready<N> {
    /// Of a connection that was let in.
    pub(super) fn of_connection(
        endpoint: Endpoint<N::Stream>,
        client: ClientConnection,
        secure: bool,
    ) -> Self {
        let (tls, pinned) = (endpoint.tls_version(), PinnedConnection::none());
        let endpoint = Box::new(endpoint);
        Self { endpoint, client, secure, tls, is_stream: false, probe: None, again: false, pinned }
    }

    /// Of one request of an HTTP/2 connection.
    pub(super) fn of_stream(stream: InsideStream, connection: &Http2Connection) -> Self {
        let endpoint = Endpoint::new(stream.into(), TlsEnd::plain());
        let Http2Connection { client, secure, tls, ref probe } = *connection;
        let probe = probe.clone();
        Self { is_stream: true, tls, probe, ..Self::of_connection(endpoint, client, secure) }
    }

    pub(super) async fn one_request(
        self,
        generation: &Generation<N>,
        place: &EvictionEntry<'_>,
    ) -> NextStep<N> {
        let client = self.client;
        let Some(asked) = place.hold(self.read_request(generation, place)).await else {
            generation.rejections().note(RejectReason::Evicted, client);
            return NextStep::Closed;
        };
        let after = match asked {
            Ok(requested) => {
                let (Ok(after) | Err(after)) = requested.answer(generation).await;
                after
            }
            Err(after) => after,
        };
        place.wait_again();
        after
    }

    /// Reads a head and decides who answers it. Once the head is whole, nobody takes the client's place.
    async fn read_request(
        mut self,
        generation: &Generation<N>,
        place: &EvictionEntry<'_>,
    ) -> Result<Box<Requested<N>>, NextStep<N>> {
        if !self.wait_for_request(generation).await {
            return Err(self.close());
        }
        let id = generation.worker.request_ids.next();
        let mut builder = RecordBuilder::new(id, self.client, self.secure, generation.net.now());
        // Before a handshake it was none.
        self.tls = if self.is_stream { self.tls } else { self.endpoint.tls_version() };
        builder.record.tls = self.tls;
        let length = match generation
            .net
            .timeout(generation.config().limits.header_timeout, self.read_head(generation))
            .await
        {
            Ok(Ok(length)) => length,
            Ok(Err(HeadFailure::Gone)) => {
                generation.rejections().note_quietly(RejectReason::RequestAborted);
                return Err(NextStep::Closed);
            }
            Ok(Err(HeadFailure::Invalid(error))) => {
                return Err(self.reject_head(generation, builder, error).await);
            }
            Err(_) if self.endpoint.read_buf.is_empty() => return Err(self.close()),
            Err(_) => {
                generation.rejections().note(RejectReason::RequestTimeout, self.client);
                return Err(self.respond(generation, builder, &head_took_too_long(), None).await);
            }
        };
        if self.has_preface(generation) {
            return Err(NextStep::Http2(self));
        }
        place.leave();
        self.route_request(generation, builder, length).await
    }

    /// Whether the first request is what HTTP/2 begins with where both sides know that it is spoken (RFC 9113 3.3). With TLS
    /// they say so before.
    fn has_preface(&self, generation: &Generation<N>) -> bool {
        let may = !self.secure && !self.is_stream && !self.again && generation.config().http2;
        may && self.endpoint.read_buf.filled().starts_with(PREFACE_HEAD)
    }

    /// Waits for the first byte; false where the client leaves or is to leave.
    async fn wait_for_request(&mut self, generation: &Generation<N>) -> bool {
        let limits = &generation.config().limits;
        let (again, limit) =
            (self.again, if self.again { limits.client_keepalive_timeout } else { limits.header_timeout });
        if self.endpoint.read_buf.is_empty() {
            self.endpoint.read_buf.release();
        }
        tokio::select! {
            biased;
            begun = generation.net.timeout(limit, self.begin_request(generation)) => begun.unwrap_or_else(|_| {
                if !again {
                    generation.rejections().note_quietly(RejectReason::NoRequest);
                }
                false
            }),
            () = Self::drain_begun(again, generation) => false,
        }
    }

    /// Takes in the first byte of a request; false where none comes. Some clients send an empty line behind a body, which
    /// is no beginning of a request; one more may stand in front of it, for [`HeadEnd`] to see.
    async fn begin_request(&mut self, generation: &Generation<N>) -> bool {
        let mut may_skip = true;
        loop {
            match self.endpoint.read_buf.filled() {
                [b'\r', b'\n', ..] if may_skip => {
                    self.endpoint.read_buf.consume(2);
                    may_skip = false;
                }
                bytes if bytes.is_empty() || (may_skip && bytes == b"\r") => {
                    if !matches!(self.endpoint.fill(&generation.worker.buffers).await, Ok(gained) if gained > 0)
                    {
                        return false;
                    }
                }
                _ => return true,
            }
        }
    }

    /// Ready once it is to leave: at once where it has been answered before.
    async fn drain_begun(again: bool, generation: &Generation<N>) {
        if again {
            generation.drain.reached(Phase::Draining).await;
        } else {
            generation.drain_request_timeout().await;
        }
    }

    async fn read_head(&mut self, generation: &Generation<N>) -> Result<usize, HeadFailure> {
        let mut scan = HeadEnd::default();
        let limits = &generation.config().limits.head;
        loop {
            let found = scan.find(self.endpoint.read_buf.filled(), limits);
            if let Some(length) = found.map_err(HeadFailure::Invalid)? {
                return Ok(length);
            }
            match self.endpoint.fill(&generation.worker.buffers).await {
                Ok(gained) if gained > 0 => {}
                _ => return Err(HeadFailure::Gone),
            }
        }
    }

    async fn route_request(
        mut self,
        generation: &Generation<N>,
        mut builder: RecordBuilder,
        length: usize,
    ) -> Result<Box<Requested<N>>, NextStep<N>> {
        let config = generation.config();
        let parsed = RequestHead::parse(&self.endpoint.read_buf.filled()[..length], &config.limits.head);
        let mut head = match parsed {
            Ok(head) => head,
            Err(error) => return Err(self.reject_head(generation, builder, error).await),
        };
        if self.is_stream {
            head.version = Version::Http2;
        }
        if generation.shared.log.is_on() {
            builder.note(&head);
        }
        let (address, proxies) = (self.client.address, &config.clients.trusted_proxies);
        let source = RequestSource::of(address, self.secure, &head.headers, proxies);
        (builder.record.client, builder.secure) = (source.client, source.secure);
        builder.record.id = source.request_id(&head.headers).unwrap_or(builder.record.id);
        let mut request = RequestContext::of(&head);
        // A trusted proxy speaks for others, whatever it says.
        request.login.is_for_another |= source.trusted;
        let asked = generation.worker.agents();
        let route = config.policy.route(&head, &asked.directory);
        let authorized = authorize(&head, route, generation, &source).await;
        let resolution = match &authorized {
            Ok(_) => resolve(generation, route, source.client).await,
            Err(_) => None,
        };
        // These take their time, in which an agent may have been taken out of service.
        let agents = generation.worker.agents();
        let decision = match authorized {
            Ok(user) => {
                builder.record.user = user.unwrap_or_default();
                decide(generation, &head, &agents, source, &builder, resolution.as_ref())
            }
            Err((reason, response)) => {
                generation.rejections().note(reason, builder.client());
                Decision::Respond(response)
            }
        };
        let response = match decision {
            Decision::Forward(Forward { agent, rewrite, path_prefix }) => {
                let mut out = Vec::with_capacity(512 + head.path.len());
                writer::request(&head, &rewrite, &path_prefix.host, &builder.record.id, &mut out);
                self.endpoint.read_buf.consume(length);
                builder.record.agent = Some(agent);
                request.path_prefix = Some(path_prefix);
                return Ok(Box::new(Requested { client: self, request, agent, head: out, builder }));
            }
            Decision::Respond(response) => response,
            Decision::Reject { agent, response, .. } => {
                generation.rejections().note_agent(builder.client(), agent);
                response
            }
        };
        self.endpoint.read_buf.consume(length);
        Err(self.respond(generation, builder, &response, Some(&request)).await)
    }

    async fn reject_head(
        self,
        generation: &Generation<N>,
        mut builder: RecordBuilder,
        error: HeadError,
    ) -> NextStep<N> {
        builder.note_bytes(self.endpoint.read_buf.filled(), self.is_stream);
        generation.rejections().note(RejectReason::BadRequest, self.client);
        let mut response = LocalResponse::new(error.status(), error.to_string());
        if error == HeadError::Method {
            response = response.with_header("Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        }
        self.respond(generation, builder, &response, None).await
    }

    /// Sends the proxy's own response. The connection stays only where the request is known to its last byte.
    pub(super) async fn respond(
        mut self,
        generation: &Generation<N>,
        mut builder: RecordBuilder,
        response: &LocalResponse,
        request: Option<&RequestContext>,
    ) -> NextStep<N> {
        let running = generation.drain.phase() == Phase::Running;
        let whole = |request: &RequestContext| {
            request.keep_alive && request.framing == Framing::Empty && !request.websocket
        };
        let keep = running && request.is_some_and(whole);
        let head_only = request.is_some_and(|request| request.method == Method::Head);
        builder.told.clone_from(&response.text);
        let (id, hsts) = (builder.record.id, generation.config().hsts.as_ref().filter(|_| builder.secure));
        let hsts = hsts.map(|value| format!("Strict-Transport-Security: {value}"));
        let is_error = response.status >= 400;
        let is_page = is_error && request.is_some_and(|request| request.own_answers == AnswerForm::Page);
        let response = if is_page { error_page::of(response.clone(), &id) } else { response.clone() };
        // It is of this request alone, and true just now.
        let cache = is_error.then(|| "Cache-Control: no-store".to_owned());
        let own = [format!("X-Request-Id: {id}")].into_iter().chain(cache).chain(hsts);
        let response = own.fold(response, LocalResponse::with_header);
        let sent = self.send(generation, &writer::local_response(&response, keep, head_only)).await;
        let end_reason = if response.status < 400 { EndReason::Answered } else { EndReason::Rejected };
        generation.worker.stats.answered_itself(response.status);
        builder.record.to_client = if head_only { 0 } else { response.body_bytes() as u64 };
        match sent {
            Ok(()) => builder.close(generation, response.status, end_reason),
            Err(error) => builder.close(generation, response.status, error.ending(Side::Client)),
        }
        if keep { self.next() } else { self.close() }
    }

    async fn send(&mut self, generation: &Generation<N>, bytes: &[u8]) -> Result<(), EndpointError> {
        self.endpoint.write(bytes)?;
        let sent =
            generation.net.timeout(generation.config().limits.tcp_user_timeout, self.endpoint.flush()).await;
        sent.unwrap_or(Err(EndpointError::TimedOut))
    }

    fn next(mut self) -> NextStep<N> {
        self.again = true;
        NextStep::Next(self)
    }

    fn close(mut self) -> NextStep<N> {
        self.pinned.clear();
        NextStep::Closing(self)
    }

    /// Ends the connection in order: what was sent is brought over, what still comes is thrown away.
    pub(super) async fn linger(mut self, generation: &Generation<N>) {
        if let Ok(Ok(())) = generation.net.timeout(CLOSE_TIMEOUT, self.endpoint.finish()).await {
            self.endpoint.linger(&generation.net, &generation.worker.buffers, CLOSE_TIMEOUT).await;
        }
    }
}

enum HeadFailure {
    Gone,
    Invalid(HeadError),
}

impl<N: Runtime> Requested<N> {
    async fn answer(self: Box<Self>, generation: &Generation<N>) -> Result<NextStep<N>, NextStep<N>> {
        self.reach_agent(generation).await?.exchange(generation).await
    }

    /// Takes an idle connection to the agent, or makes one.
    async fn reach_agent(
        mut self: Box<Self>,
        generation: &Generation<N>,
    ) -> Result<Connected<N>, NextStep<N>> {
        if self.client.endpoint.is_put_off() {
            // In a run that may do nothing more, a good connection can't be told from a bad one.
            generation.net.yield_now().await;
        }
        let idle = poll_fn(|cx| {
            let (mut buffers, now) = (generation.worker.buffers.borrow_mut(), generation.net.now());
            let pinned = self.take_pinned(cx, &mut buffers, now, &generation.config().pool);
            let is_pinned = pinned.is_some();
            let idle =
                pinned.or_else(|| generation.pool.borrow_mut().take(cx, &mut buffers, self.agent, now));
            Poll::Ready(
                idle.map(|(agent, keep_alive_limits)| (agent, keep_alive_limits.after_one(), is_pinned)),
            )
        });
        match idle.await {
            Some((agent, keep_alive_limits, pinned)) => {
                Ok(Connected { reused: true, keep_alive_limits, pinned, ..self.pair(agent) })
            }
            None => self.reach_anew(generation).await,
        }
    }

    fn take_pinned(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut WorkerBuffers,
        now: Instant,
        limits: &PoolLimits,
    ) -> Option<(Box<Endpoint<N::Stream>>, KeepAliveLimits)> {
        if self.request.login.is_for_another {
            return None;
        }
        self.client.pinned.take(cx, buffers, self.agent, now, limits)
    }

    async fn reach_anew(self: Box<Self>, generation: &Generation<N>) -> Result<Connected<N>, NextStep<N>> {
        let (begun, is_in_handshake) = (generation.net.now(), Cell::new(false));
        let reached = generation
            .net
            .timeout(
                generation.config().limits.connect_timeout,
                connect(generation, self.agent, &is_in_handshake),
            )
            .await;
        if reached.is_err() && is_in_handshake.get() {
            count_handshake(generation, "", RejectReason::HandshakeTimeout.name());
        }
        match reached.unwrap_or(Err(ConnectError::TimedOut)) {
            Ok((agent, handshake)) => {
                generation.worker.stats.connected(self.agent.id, generation.net.now() - begun, handshake);
                Ok(self.pair(agent))
            }
            Err(error) => {
                generation.worker.stats.connect_failed(self.agent.id);
                log_connect_failure(generation, self.builder.client(), self.agent, &error);
                mark_if_down(generation, self.agent, &error);
                let response = unreachable(self.agent, &error);
                Err(self.respond(generation, &response).await)
            }
        }
    }

    fn pair(self: Box<Self>, agent: Box<Endpoint<N::Stream>>) -> Connected<N> {
        Connected {
            requested: self,
            agent,
            reused: false,
            keep_alive_limits: KeepAliveLimits::default(),
            pinned: false,
            heard: None,
        }
    }

    async fn respond(self: Box<Self>, generation: &Generation<N>, response: &LocalResponse) -> NextStep<N> {
        let Self { client, builder, request, .. } = *self;
        client.respond(generation, builder, response, Some(&request)).await
    }
}

fn count_handshake<N: Runtime>(generation: &Generation<N>, version: &'static str, reason: &'static str) {
    let outcome = HandshakeOutcome { side: Side::Agent, version, reason };
    generation.worker.stats.handshake(outcome, None);
}

async fn connect<N: Runtime>(
    generation: &Generation<N>,
    agent: Agent,
    is_in_handshake: &Cell<bool>,
) -> Result<(Box<Endpoint<N::Stream>>, Option<Duration>), ConnectError> {
    let stream = generation.net.connect(agent).await.map_err(ConnectError::Refused)?;
    let agents = generation.worker.agents();
    let Some(connector) = agents.connectors.of(agent.address) else {
        return Ok((Box::new(Endpoint::new(stream, TlsEnd::plain())), None));
    };
    let tls = connector.connect(agent.address.ip()).map_err(|error| ConnectError::Handshake(error.into()))?;
    let (mut endpoint, begun) = (Box::new(Endpoint::new(stream, tls)), generation.net.now());
    is_in_handshake.set(true);
    let done = endpoint.handshake(&generation.worker.buffers).await;
    let reason = done.as_ref().err().map_or("", |error| handshake_failure_reason(error).name());
    count_handshake(generation, endpoint.tls_version(), reason);
    done.map_err(ConnectError::Handshake)?;
    Ok((endpoint, Some(generation.net.now() - begun)))
}

impl<N: Runtime> Connected<N> {
    async fn exchange(mut self, generation: &Generation<N>) -> Result<NextStep<N>, NextStep<N>> {
        let secure = self.requested.builder.secure;
        let mut exchange = Exchange {
            client: &mut self.requested.client.endpoint,
            agent: &mut self.agent,
            net: &generation.net,
            buffers: &generation.worker.buffers,
            may_half_close: !self.requested.request.websocket,
            drain: &generation.drain,
            limits: generation.config().exchange,
            hsts: generation.config().hsts.as_deref().filter(|_| secure),
            to_agent: 0,
            to_client: 0,
            heard: None,
            keep_alive_limits: self.keep_alive_limits,
            pins: self.pinned || self.requested.request.login.is_tried,
        };
        let outcome = tokio::select! {
            biased;
            outcome = exchange.run(&self.requested.request, &self.requested.head) => outcome,
            () = generation.drain.reached(Phase::Ending) => Err(Failure::Stopped),
        };
        (self.heard, self.pinned, self.keep_alive_limits) =
            (exchange.heard, exchange.pins, exchange.keep_alive_limits);
        let builder = &mut self.requested.builder;
        (builder.record.to_agent, builder.record.to_client) = (exchange.to_agent, exchange.to_client);
        builder.note_first_byte(self.heard);
        builder.record.is_reused = self.reused;
        match outcome {
            Ok(Outcome::Upgraded) => Ok(NextStep::Upgraded(self.upgrade())),
            Ok(Outcome::Answered { status, keep_client, keep_agent }) => {
                Ok(self.answered(generation, status, keep_client, keep_agent))
            }
            Err(failure) if self.may_retry(&failure) => {
                let again = self.requested.reach_anew(generation).await?;
                Box::pin(again.exchange(generation)).await
            }
            Err(failure) => Err(self.failed(generation, failure).await),
        }
    }

    /// A kept connection may have been closed by the agent just as it was used. The request is sent once more
    /// if it may be (RFC 9110 9.2.2), has no body, and not a byte of an answer came.
    fn may_retry(&self, failure: &Failure) -> bool {
        let request = &self.requested.request;
        let unanswered = self.heard.is_none()
            && self.agent.read_buf.is_empty()
            && matches!(
                failure,
                Failure::Endpoint(Side::Agent, EndpointError::Io(_) | EndpointError::EndedEarly, None)
            );
        self.reused && unanswered && request.method != Method::Other && request.framing == Framing::Empty
    }

    fn upgrade(self) -> Box<Upgraded<N>> {
        let Requested { client, agent: target, builder, .. } = *self.requested;
        let Ready { endpoint, probe, .. } = client;
        Box::new(Upgraded { client: endpoint, agent: self.agent, target, builder, probe })
    }

    fn answered(
        self,
        generation: &Generation<N>,
        status: u16,
        keep_client: bool,
        keep_agent: bool,
    ) -> NextStep<N> {
        let Self { requested, mut agent, pinned, keep_alive_limits, .. } = self;
        let Requested { mut client, request, agent: address, builder, .. } = *requested;
        builder.close(generation, status, EndReason::Complete);
        let running = generation.drain.phase() == Phase::Running;
        if keep_agent && running {
            agent.read_buf.release();
            let now = generation.net.now();
            if !pinned {
                generation.pool.borrow_mut().put(address, agent, keep_alive_limits, now);
            } else if keep_client && !request.login.is_for_another {
                client.pinned.put(address, agent, keep_alive_limits, now);
            }
        }
        if keep_client { client.next() } else { client.close() }
    }

    async fn failed(self, generation: &Generation<N>, failure: Failure) -> NextStep<N> {
        let Requested { client, builder, agent, request, .. } = *self.requested;
        let begun = match &failure {
            Failure::Endpoint(side, error, Some(status)) => {
                Some((side, error.to_string(), status, error.ending(*side)))
            }
            Failure::Body(side, error, Some(status)) => {
                Some((side, error.to_string(), status, EndReason::BrokeHttp(*side)))
            }
            _ => None,
        };
        if let Some((side, error, status, end_reason)) = begun {
            let detail = format!("{error} (the {side}, after status {status})");
            log_failure(generation, builder.client(), agent, failure.kind(), &detail);
            builder.close(generation, *status, end_reason);
            return NextStep::Closed;
        }
        match response_to(&failure, agent) {
            None => {
                let stopped = matches!(failure, Failure::Stopped);
                builder.close(
                    generation,
                    0,
                    if stopped { EndReason::Drained } else { EndReason::Ended(Side::Client) },
                );
                NextStep::Closed
            }
            Some(response) => {
                log_failure(generation, builder.client(), agent, failure.kind(), &failure.to_string());
                client.respond(generation, builder, &response, Some(&request)).await
            }
        }
    }
}
