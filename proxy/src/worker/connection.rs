//! One client connection, from accept to close. Each phase is a type and each step takes the phase by value,
//! so what a phase has not earned yet (an agent, a parsed head) can't be touched.
//!
//! ```text
//! Accepted → Admitted → Ready → Requested → Connected → { exchange → Ready | Upgraded } → closed, its record written
//! ```

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::access::admission::{self, ClientPermit};
use crate::access::proxy_protocol::{InvalidProxyHeader, ProxyHeader};
use crate::access::rejections::{RejectCounters, RejectReason};
use crate::access::route::Route;
use crate::agents::pool::{Bound, ConnectError, PoolLimits};
use crate::http::h1::exchange::{Exchange, Failure, Method, Outcome, RequestContext};
use crate::http::h1::head::{Framing, HeadEnd, HeadError, RequestHead};
use crate::http::h1::keep_alive::Promise;
use crate::http::local_response::LocalResponse;
use crate::http::request_source::RequestSource;
use crate::observe::access_log::{EndReason, Side};
use crate::observe::client::{ClientConnection, ConnectionId};
use crate::runtime::drain::Phase;
use crate::runtime::scheduler::Class;
use crate::session::relay::{ByteCounts, RelayContext, relay};
use crate::tls::TlsEnd;
use crate::transport::endpoint::{Endpoint, EndpointError, WorkerBuffers};
use crate::transport::net::Runtime;
use crate::worker::context::Worker;
use crate::worker::eviction::Place;
use crate::worker::failure_responses::{
    cause, head_took_too_long, log_connect_failure, log_failure, not_tls, refused_for, reply_to,
};
use crate::worker::policy::{asked, authorize, decide};
use crate::worker::record_builder::RecordBuilder;

/// How long a client that is to be left has to take its last bytes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

struct Accepted<S> {
    peer: Endpoint<S>,
    client: SocketAddr,
    secure: bool,
    crowded: bool,
    id: ConnectionId,
}

/// A client that may be here.
struct Admitted<S> {
    accepted: Accepted<S>,
    guest: ClientPermit,
}

/// A client that may ask for something.
struct Ready<S> {
    peer: Box<Endpoint<S>>,
    /// Who made the connection; a request of it may be another's ([`RequestSource`]).
    client: ClientConnection,
    secure: bool,
    /// Whether it has been answered before.
    again: bool,
    /// Where it has logged in.
    bound: Bound<S>,
}

/// A client that has asked for something that an agent is to answer.
struct Requested<S> {
    client: Ready<S>,
    asked: RequestContext,
    agent: SocketAddr,
    /// The head that the agent is to see.
    head: Vec<u8>,
    builder: RecordBuilder,
}

/// A client, and the agent that has its request.
struct Connected<S> {
    requested: Box<Requested<S>>,
    agent: Box<Endpoint<S>>,
    /// Whether the agent's connection has served another request before.
    reused: bool,
    /// How the agent means to keep the connection once it has answered.
    promise: Promise,
    /// Whether the agent's connection is this client's alone, by a login.
    bound: bool,
    /// Whether the agent has answered, if only in the interim.
    heard: bool,
}

/// A client and an agent that speak to each other.
struct Upgraded<S> {
    client: Box<Endpoint<S>>,
    agent: Box<Endpoint<S>>,
    builder: RecordBuilder,
}

/// What comes after an answer: the next request, a session, or an end.
enum NextStep<S> {
    Next(Ready<S>),
    Upgraded(Box<Upgraded<S>>),
    /// The client is to leave.
    Closing(Ready<S>),
    /// The client is gone.
    Closed,
}

/// Serves a connection to its end.
///
/// `crowded`: there are as many connections as may be, and another one gives way once this client is let in.
pub async fn serve<N: Runtime>(
    worker: &Worker<N>,
    stream: N::Stream,
    client: SocketAddr,
    secure: bool,
    crowded: bool,
    id: ConnectionId,
) {
    // What the front needs is many KiB, which are given back before a desktop's hours begin.
    let accepted = Accepted { peer: Endpoint::new(stream, TlsEnd::plain()), client, secure, crowded, id };
    let front = Box::pin(front(worker, accepted));
    if let Some((upgraded, _guest)) = front.await {
        upgraded.relay(worker).await;
    }
}

/// Tells a client without TLS why it is not served. With TLS, the handshake would cost more than it is worth.
pub async fn reject<N: Runtime>(worker: &Worker<N>, stream: N::Stream, why: RejectReason) {
    send_rejection(worker, Endpoint::new(stream, TlsEnd::plain()), why).await;
}

/// Does not wait for it to listen.
async fn send_rejection<N: Runtime>(worker: &Worker<N>, mut peer: Endpoint<N::Stream>, why: RejectReason) {
    if peer.write(&admission::reply_to(why).render(false, false)).is_err() {
        return;
    }
    poll_fn(|cx| {
        // What it asked is taken in, or closing would reset the connection. Whether it hears is its own affair.
        let _ = peer.poll_fill(cx, &mut worker.scratch.borrow_mut());
        let _ = peer.poll_finish(cx, true);
        Poll::Ready(())
    })
    .await;
}

/// Everything before a session.
async fn front<N: Runtime>(
    worker: &Worker<N>,
    accepted: Accepted<N::Stream>,
) -> Option<(Box<Upgraded<N::Stream>>, ClientPermit)> {
    let client = accepted.client();
    let place = worker.waiting.enter();
    let Some(opened) = place.hold(opened(worker, accepted)).await else {
        worker.shared.rejections.note(RejectReason::Evicted, client);
        return None;
    };
    let (mut ready, guest) = opened?;
    loop {
        match ready.one_request(worker, &place).await {
            NextStep::Next(next) => {
                // Requests that were sent ahead are a step of front work each.
                if !next.peer.read_buf.is_empty() {
                    worker.net.yield_now().await;
                }
                ready = next;
            }
            NextStep::Upgraded(upgraded) => return Some((upgraded, guest)),
            NextStep::Closing(ready) => {
                place.hold(ready.linger(worker)).await;
                return None;
            }
            NextStep::Closed => return None,
        }
    }
}

/// Everything before the first request.
async fn opened<N: Runtime>(
    worker: &Worker<N>,
    accepted: Accepted<N::Stream>,
) -> Option<(Ready<N::Stream>, ClientPermit)> {
    let Admitted { accepted, guest } = accepted.with_proxy_header(worker).await?.admit(worker).await?;
    Some((accepted.secure(worker).await?, guest))
}

impl<S: crate::transport::net::Stream> Accepted<S> {
    /// A balancer says first whom it speaks for.
    async fn with_proxy_header<N: Runtime<Stream = S>>(mut self, worker: &Worker<N>) -> Option<Self> {
        let config = &worker.shared.config;
        if !config.clients.is_proxy_protocol_source(self.client.ip()) {
            return Some(self);
        }
        let read =
            worker.net.timeout(config.limits.header_timeout, read_proxy_header(&mut self.peer, worker));
        let proxy_header = tokio::select! {
            read = read => read.unwrap_or(Err(EndpointError::TimedOut.into())),
            () = worker.last_call() => return None,
        };
        match proxy_header {
            Ok(client) => Some(Self { client: client.unwrap_or(self.client), ..self }),
            Err(fault) => {
                worker.shared.rejections.note_with(RejectReason::ProxyHeader, self.client(), &fault);
                None
            }
        }
    }

    async fn admit<N: Runtime<Stream = S>>(self, worker: &Worker<N>) -> Option<Admitted<S>> {
        let why = match worker.shared.admission.admit(self.client.ip(), worker.net.now()) {
            // Where none has waited longer, it is its own place that it loses.
            Ok(_) if self.crowded && !worker.waiting.evict() => RejectReason::MaxConnections,
            Ok(guest) => return Some(Admitted { accepted: self, guest }),
            Err(why) => why,
        };
        worker.shared.rejections.note(why, self.client());
        if !self.secure {
            send_rejection(worker, self.peer, why).await;
        }
        None
    }

    /// As logs name it.
    fn client(&self) -> ClientConnection {
        ClientConnection { id: self.id, address: self.client.ip() }
    }

    fn unsecured(self) -> Ready<S> {
        let client = self.client();
        let Self { peer, secure, .. } = self;
        Ready { peer: Box::new(peer), client, secure, again: false, bound: Bound::none() }
    }

    async fn secure<N: Runtime<Stream = S>>(self, worker: &Worker<N>) -> Option<Ready<S>> {
        let client = self.client();
        if !self.secure {
            return Some(self.unsecured());
        }
        let tls = worker.shared.acceptor.accept().ok()?;
        let mut ready = Self { peer: self.peer.begin_tls(tls), ..self }.unsecured();
        let handshake = worker
            .net
            .timeout(worker.shared.config.limits.header_timeout, ready.peer.handshake(&worker.scratch));
        let mut place = worker.handshakes.begin();
        let secure = tokio::select! {
            done = handshake => done.unwrap_or(Err(EndpointError::TimedOut)),
            () = place.lost() => {
                worker.shared.rejections.note(RejectReason::HandshakeEvicted, client);
                return None;
            }
            () = worker.last_call() => return None,
        };
        match secure {
            Ok(()) => Some(ready),
            Err(EndpointError::NoTls) => {
                worker.shared.rejections.note(RejectReason::NotTls, client);
                ready.peer = Box::new(ready.peer.into_plain());
                ready.secure = false;
                let builder = RecordBuilder::new(client, false, worker.net.now());
                if let NextStep::Closing(ready) = ready.refuse(worker, builder, &not_tls(), None).await {
                    ready.linger(worker).await;
                }
                None
            }
            Err(fault) => {
                note_no_tls(&worker.shared.rejections, client, &fault, ready.peer.was_heard());
                None
            }
        }
    }
}

/// Why it is not known whom a balancer speaks for.
#[derive(Debug, thiserror::Error)]
enum ProxyHeaderError {
    #[error("{0}")]
    Malformed(#[from] InvalidProxyHeader),
    #[error("{0}")]
    EndpointError(#[from] EndpointError),
}

async fn read_proxy_header<N: Runtime>(
    peer: &mut Endpoint<N::Stream>,
    worker: &Worker<N>,
) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    loop {
        if let Some(ProxyHeader { length, client }) = ProxyHeader::read(peer.read_buf.filled())? {
            peer.read_buf.consume(length);
            return Ok(client);
        }
        if peer.fill(&worker.scratch).await? == 0 {
            return Err(EndpointError::EndedEarly.into());
        }
    }
}

/// Counts a handshake that failed. One who has said nothing of it is no client: it only looked whether the port is open.
fn note_no_tls(
    rejections: &RejectCounters,
    client: ClientConnection,
    fault: &EndpointError,
    was_heard: bool,
) {
    match fault {
        EndpointError::Tls(error) => match refused_for(error.trouble()) {
            RejectReason::HandshakeAborted => rejections.note_quietly(RejectReason::HandshakeAborted),
            why => rejections.note_with(why, client, error),
        },
        EndpointError::TimedOut => rejections.note(RejectReason::HandshakeTimeout, client),
        _ if was_heard => rejections.note_quietly(RejectReason::HandshakeAborted),
        _ => {}
    }
}

impl<S: crate::transport::net::Stream> Ready<S> {
    async fn one_request<N: Runtime<Stream = S>>(self, worker: &Worker<N>, place: &Place<'_>) -> NextStep<S> {
        let client = self.client;
        let Some(asked) = place.hold(self.read_request(worker, place)).await else {
            worker.shared.rejections.note(RejectReason::Evicted, client);
            return NextStep::Closed;
        };
        let after = match asked {
            Ok(requested) => {
                let (Ok(after) | Err(after)) = requested.answer(worker).await;
                after
            }
            Err(after) => after,
        };
        place.wait_again();
        after
    }

    /// Reads a head and decides who answers it. Once the head is whole, nobody takes the client's place.
    async fn read_request<N: Runtime<Stream = S>>(
        mut self,
        worker: &Worker<N>,
        place: &Place<'_>,
    ) -> Result<Box<Requested<S>>, NextStep<S>> {
        if !self.wait_for_request(worker).await {
            return Err(self.close());
        }
        let builder = RecordBuilder::new(self.client, self.secure, worker.net.now());
        let length = match worker
            .net
            .timeout(worker.shared.config.limits.header_timeout, self.read_head(worker))
            .await
        {
            Ok(Ok(length)) => length,
            Ok(Err(HeadFailure::Gone)) => return Err(NextStep::Closed),
            Ok(Err(HeadFailure::Refused(error))) => {
                return Err(self.refuse_head(worker, builder, error).await);
            }
            Err(_) if self.peer.read_buf.is_empty() => return Err(self.close()),
            Err(_) => return Err(self.refuse(worker, builder, &head_took_too_long(), None).await),
        };
        place.leave();
        self.route_request(worker, builder, length).await
    }

    /// Waits for the first byte; false where the client leaves or is to leave.
    async fn wait_for_request<N: Runtime<Stream = S>>(&mut self, worker: &Worker<N>) -> bool {
        let limits = &worker.shared.config.limits;
        let (again, limit) =
            (self.again, if self.again { limits.client_keepalive_timeout } else { limits.header_timeout });
        if self.peer.read_buf.is_empty() {
            self.peer.read_buf.release();
        }
        tokio::select! {
            biased;
            begun = worker.net.timeout(limit, self.begin_request(worker)) => begun.unwrap_or(false),
            () = Self::dismissed(again, worker) => false,
        }
    }

    /// Takes in the first byte of a request; false where none comes. Some clients send an empty line behind a body, which
    /// is no beginning of a request; one more may stand in front of it, for [`HeadEnd`] to see.
    async fn begin_request<N: Runtime<Stream = S>>(&mut self, worker: &Worker<N>) -> bool {
        let mut may_skip = true;
        loop {
            match self.peer.read_buf.filled() {
                [b'\r', b'\n', ..] if may_skip => {
                    self.peer.read_buf.consume(2);
                    may_skip = false;
                }
                bytes if bytes.is_empty() || (may_skip && bytes == b"\r") => {
                    if !matches!(self.peer.fill(&worker.scratch).await, Ok(gained) if gained > 0) {
                        return false;
                    }
                }
                _ => return true,
            }
        }
    }

    /// Ready once it is to leave: at once where it has been answered before.
    async fn dismissed<N: Runtime<Stream = S>>(again: bool, worker: &Worker<N>) {
        if again { worker.drain.reached(Phase::Draining).await } else { worker.last_call().await }
    }

    async fn read_head<N: Runtime<Stream = S>>(&mut self, worker: &Worker<N>) -> Result<usize, HeadFailure> {
        let mut scan = HeadEnd::default();
        let limits = &worker.shared.config.limits.head;
        loop {
            let found = scan.find(self.peer.read_buf.filled(), limits);
            if let Some(length) = found.map_err(HeadFailure::Refused)? {
                return Ok(length);
            }
            match self.peer.fill(&worker.scratch).await {
                Ok(gained) if gained > 0 => {}
                _ => return Err(HeadFailure::Gone),
            }
        }
    }

    async fn route_request<N: Runtime<Stream = S>>(
        mut self,
        worker: &Worker<N>,
        mut builder: RecordBuilder,
        length: usize,
    ) -> Result<Box<Requested<S>>, NextStep<S>> {
        let config = &worker.shared.config;
        let head = match RequestHead::parse(&self.peer.read_buf.filled()[..length], &config.limits.head) {
            Ok(head) => head,
            Err(error) => return Err(self.refuse_head(worker, builder, error).await),
        };
        if worker.shared.log.is_on() {
            builder.note(&head);
        }
        let origin = RequestSource::of(
            self.client.address,
            self.secure,
            &head.headers,
            &config.clients.trusted_proxies,
        );
        (builder.record.client, builder.secure) = (origin.client, origin.secure);
        let mut asked = asked(&head);
        // A trusted proxy speaks for others, whatever it says.
        asked.login.is_for_another |= origin.trusted;
        let route = Route::of_request(head.host, head.path, worker.shared.config.agent_domain.as_ref());
        let decision = match authorize(&head, route, worker, &origin).await {
            Ok(user) => {
                builder.record.user = user.unwrap_or_default();
                decide(&head, route, worker, &origin, builder.client(), &mut asked)
            }
            Err((why, reply)) => {
                worker.shared.rejections.note(why, builder.client());
                Err(reply)
            }
        };
        self.peer.read_buf.consume(length);
        match decision {
            Ok((agent, head)) => {
                builder.record.agent = Some(agent);
                Ok(Box::new(Requested { client: self, asked, agent, head, builder }))
            }
            Err(reply) => Err(self.refuse(worker, builder, &reply, Some(&asked)).await),
        }
    }

    async fn refuse_head<N: Runtime<Stream = S>>(
        self,
        worker: &Worker<N>,
        mut builder: RecordBuilder,
        error: HeadError,
    ) -> NextStep<S> {
        builder.note_bytes(self.peer.read_buf.filled());
        worker.shared.rejections.note(RejectReason::BadRequest, self.client);
        let mut reply = LocalResponse::new(error.status(), error.to_string());
        if error == HeadError::Method {
            reply = reply.with_header("Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        }
        self.refuse(worker, builder, &reply, None).await
    }

    /// Gives the proxy's own answer. The connection stays only where the request is known to its last byte.
    async fn refuse<N: Runtime<Stream = S>>(
        mut self,
        worker: &Worker<N>,
        mut builder: RecordBuilder,
        reply: &LocalResponse,
        asked: Option<&RequestContext>,
    ) -> NextStep<S> {
        let running = worker.drain.phase() == Phase::Running;
        let whole =
            |asked: &RequestContext| asked.keep_alive && asked.framing == Framing::Empty && !asked.websocket;
        let keep = running && asked.is_some_and(whole);
        let head_only = asked.is_some_and(|asked| asked.method == Method::Head);
        let hsts = worker.shared.config.hsts.clone().filter(|_| builder.secure);
        let reply = hsts.into_iter().fold(reply.clone(), LocalResponse::with_header);
        let sent = self.send(worker, &reply.render(keep, head_only)).await;
        let ending = if reply.status < 400 { EndReason::Answered } else { EndReason::Rejected };
        builder.record.to_client = if head_only { 0 } else { reply.body_bytes() as u64 };
        match sent {
            Ok(()) => builder.close(worker, reply.status, ending),
            Err(fault) => builder.close(worker, reply.status, fault.ending(Side::Client)),
        }
        if keep { self.next() } else { self.close() }
    }

    async fn send<N: Runtime<Stream = S>>(
        &mut self,
        worker: &Worker<N>,
        bytes: &[u8],
    ) -> Result<(), EndpointError> {
        self.peer.write(bytes)?;
        let sent = worker.net.timeout(worker.shared.config.limits.tcp_user_timeout, self.peer.flush()).await;
        sent.unwrap_or(Err(EndpointError::TimedOut))
    }

    fn next(mut self) -> NextStep<S> {
        self.again = true;
        NextStep::Next(self)
    }

    fn close(mut self) -> NextStep<S> {
        self.bound.clear();
        NextStep::Closing(self)
    }

    /// Ends the connection in order: what was sent is brought over, what still comes is thrown away.
    async fn linger<N: Runtime<Stream = S>>(mut self, worker: &Worker<N>) {
        if let Ok(Ok(())) = worker.net.timeout(CLOSE_TIMEOUT, self.peer.finish()).await {
            self.peer.linger(&worker.net, &worker.scratch, CLOSE_TIMEOUT).await;
        }
    }
}

enum HeadFailure {
    Gone,
    Refused(HeadError),
}

impl<S: crate::transport::net::Stream> Requested<S> {
    async fn answer<N: Runtime<Stream = S>>(
        self: Box<Self>,
        worker: &Worker<N>,
    ) -> Result<NextStep<S>, NextStep<S>> {
        self.reach_agent(worker).await?.exchange(worker).await
    }

    /// Takes an idle connection to the agent, or makes one.
    async fn reach_agent<N: Runtime<Stream = S>>(
        mut self: Box<Self>,
        worker: &Worker<N>,
    ) -> Result<Connected<S>, NextStep<S>> {
        if self.client.peer.is_put_off() {
            // In a run that may do nothing more, a good connection can't be told from a bad one.
            worker.net.yield_now().await;
        }
        let idle = poll_fn(|cx| {
            let (mut scratch, now) = (worker.scratch.borrow_mut(), worker.net.now());
            let bound = self.take_bound(cx, &mut scratch, now, &worker.shared.config.pool);
            let is_bound = bound.is_some();
            let idle = bound.or_else(|| worker.pool.borrow_mut().take(cx, &mut scratch, self.agent, now));
            Poll::Ready(idle.map(|(agent, promise)| (agent, promise.after_one(), is_bound)))
        });
        match idle.await {
            Some((agent, promise, bound)) => {
                Ok(Connected { reused: true, promise, bound, ..self.pair(agent) })
            }
            None => self.reach_anew(worker).await,
        }
    }

    fn take_bound(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut WorkerBuffers,
        now: Instant,
        limits: &PoolLimits,
    ) -> Option<(Box<Endpoint<S>>, Promise)> {
        if self.asked.login.is_for_another {
            return None;
        }
        self.client.bound.take(cx, scratch, self.agent, now, limits)
    }

    async fn reach_anew<N: Runtime<Stream = S>>(
        self: Box<Self>,
        worker: &Worker<N>,
    ) -> Result<Connected<S>, NextStep<S>> {
        let begun = worker.net.now();
        let reached = worker
            .net
            .timeout(worker.shared.config.limits.connect_timeout, connect(worker, self.agent))
            .await;
        match reached.unwrap_or(Err(ConnectError::TimedOut)) {
            Ok(agent) => {
                worker.stats.connected(self.agent.ip(), worker.net.now() - begun);
                Ok(self.pair(agent))
            }
            Err(error) => {
                worker.stats.connect_failed(self.agent.ip());
                log_connect_failure(worker, self.builder.client(), self.agent, &error);
                let reply = LocalResponse::new(
                    error.status(),
                    format!("The desktop at {} {}", self.agent.ip(), cause(&error)),
                );
                Err(self.refuse(worker, &reply).await)
            }
        }
    }

    fn pair(self: Box<Self>, agent: Box<Endpoint<S>>) -> Connected<S> {
        Connected {
            requested: self,
            agent,
            reused: false,
            promise: Promise::default(),
            bound: false,
            heard: false,
        }
    }

    async fn refuse<N: Runtime<Stream = S>>(
        self: Box<Self>,
        worker: &Worker<N>,
        reply: &LocalResponse,
    ) -> NextStep<S> {
        let Self { client, builder, asked, .. } = *self;
        client.refuse(worker, builder, reply, Some(&asked)).await
    }
}

async fn connect<N: Runtime>(
    worker: &Worker<N>,
    agent: SocketAddr,
) -> Result<Box<Endpoint<N::Stream>>, ConnectError> {
    let stream = worker.net.connect(agent).await.map_err(ConnectError::Refused)?;
    let Some(connector) = &worker.shared.connector else {
        return Ok(Box::new(Endpoint::new(stream, TlsEnd::plain())));
    };
    let tls = connector.connect(agent.ip()).map_err(|error| ConnectError::Handshake(error.into()))?;
    let mut peer = Box::new(Endpoint::new(stream, tls));
    peer.handshake(&worker.scratch).await.map_err(ConnectError::Handshake)?;
    Ok(peer)
}

impl<S: crate::transport::net::Stream> Connected<S> {
    async fn exchange<N: Runtime<Stream = S>>(
        mut self,
        worker: &Worker<N>,
    ) -> Result<NextStep<S>, NextStep<S>> {
        let secure = self.requested.builder.secure;
        let mut exchange = Exchange {
            client: &mut self.requested.client.peer,
            agent: &mut self.agent,
            net: &worker.net,
            scratch: &worker.scratch,
            may_half_close: !self.requested.asked.websocket,
            drain: &worker.drain,
            limits: worker.shared.config.exchange,
            hsts: worker.shared.config.hsts.as_deref().filter(|_| secure),
            to_agent: 0,
            to_client: 0,
            heard: false,
            promise: self.promise,
            binds: self.bound || self.requested.asked.login.is_tried,
        };
        let outcome = tokio::select! {
            biased;
            outcome = exchange.run(&self.requested.asked, &self.requested.head) => outcome,
            () = worker.drain.reached(Phase::Ending) => Err(Failure::Stopped),
        };
        (self.heard, self.bound, self.promise) = (exchange.heard, exchange.binds, exchange.promise);
        let record = &mut self.requested.builder.record;
        (record.to_agent, record.to_client) = (exchange.to_agent, exchange.to_client);
        match outcome {
            Ok(Outcome::Upgraded) => Ok(NextStep::Upgraded(self.upgrade())),
            Ok(Outcome::Answered { status, keep_client, keep_agent }) => {
                Ok(self.answered(worker, status, keep_client, keep_agent))
            }
            Err(failure) if self.may_retry(&failure) => {
                let again = self.requested.reach_anew(worker).await?;
                Box::pin(again.exchange(worker)).await
            }
            Err(failure) => Err(self.failed(worker, failure).await),
        }
    }

    /// A kept connection may have been closed by the agent just as it was used. The request is sent once more
    /// if it may be (RFC 9110 9.2.2), has no body, and not a byte of an answer came.
    fn may_retry(&self, failure: &Failure) -> bool {
        let asked = &self.requested.asked;
        let unanswered = !self.heard
            && self.agent.read_buf.is_empty()
            && matches!(
                failure,
                Failure::Endpoint(Side::Agent, EndpointError::Io(_) | EndpointError::EndedEarly, None)
            );
        self.reused && unanswered && asked.method != Method::Other && asked.framing == Framing::Empty
    }

    fn upgrade(self) -> Box<Upgraded<S>> {
        let Requested { client, builder, .. } = *self.requested;
        Box::new(Upgraded { client: client.peer, agent: self.agent, builder })
    }

    fn answered<N: Runtime<Stream = S>>(
        self,
        worker: &Worker<N>,
        status: u16,
        keep_client: bool,
        keep_agent: bool,
    ) -> NextStep<S> {
        let Self { requested, mut agent, bound, promise, .. } = self;
        let Requested { mut client, asked, agent: address, builder, .. } = *requested;
        builder.close(worker, status, EndReason::Complete);
        let running = worker.drain.phase() == Phase::Running;
        if keep_agent && running {
            agent.read_buf.release();
            let now = worker.net.now();
            if !bound {
                worker.pool.borrow_mut().put(address, agent, promise, now);
            } else if keep_client && !asked.login.is_for_another {
                client.bound.put(address, agent, promise, now);
            }
        }
        if keep_client { client.next() } else { client.close() }
    }

    async fn failed<N: Runtime<Stream = S>>(self, worker: &Worker<N>, failure: Failure) -> NextStep<S> {
        let Requested { client, builder, agent, asked, .. } = *self.requested;
        let begun = match &failure {
            Failure::Endpoint(side, fault, Some(status)) => {
                Some((side, fault.to_string(), status, fault.ending(*side)))
            }
            Failure::Body(side, error, Some(status)) => {
                Some((side, error.to_string(), status, EndReason::BrokeHttp(*side)))
            }
            _ => None,
        };
        if let Some((side, fault, status, ending)) = begun {
            let detail = format!("{fault} (the {side}, after status {status})");
            log_failure(worker, builder.client(), agent, failure.kind(), &detail);
            builder.close(worker, *status, ending);
            return NextStep::Closed;
        }
        match reply_to(&failure, agent.ip()) {
            None => {
                let stopped = matches!(failure, Failure::Stopped);
                builder.close(
                    worker,
                    0,
                    if stopped { EndReason::Drained } else { EndReason::Ended(Side::Client) },
                );
                NextStep::Closed
            }
            Some(reply) => {
                log_failure(worker, builder.client(), agent, failure.kind(), &failure.to_string());
                client.refuse(worker, builder, &reply, Some(&asked)).await
            }
        }
    }
}

impl<S: crate::transport::net::Stream> Upgraded<S> {
    async fn relay<N: Runtime<Stream = S>>(self: Box<Self>, worker: &Worker<N>) {
        let Self { mut client, mut agent, mut builder } = *self;
        let _open = builder.record.agent.map(|agent| worker.stats.begin_session(agent.ip()));
        worker.net.set_class(Class::Session);
        let around = RelayContext {
            net: &worker.net,
            scratch: &worker.scratch,
            pipes: &worker.pipes,
            drain: &worker.drain,
            limits: worker.shared.config.relay,
        };
        let (ending, ByteCounts { to_agent, to_client }) = relay(&mut client, &mut agent, &around).await;
        (builder.record.to_agent, builder.record.to_client) = (to_agent, to_client);
        builder.close(worker, 101, ending);
        worker.net.set_class(Class::Setup);
        // A slow client may still have to take what the agent said last.
        let patience = match ending {
            EndReason::Idle | EndReason::Drained => CLOSE_TIMEOUT,
            _ => worker.shared.config.limits.tcp_user_timeout,
        };
        let linger = async {
            tokio::join!(
                client.linger(&worker.net, &worker.scratch, patience),
                agent.linger(&worker.net, &worker.scratch, CLOSE_TIMEOUT)
            )
        };
        tokio::select! {
            _ = linger => {}
            () = worker.drain.reached(Phase::Ending) => {}
        }
    }
}
