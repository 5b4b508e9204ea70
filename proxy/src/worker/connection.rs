//! One client connection, from accept to close: who it is, whether it may be here, TLS, and then requests, one after the other
//! or side by side, or a session. Each phase is a type and each step takes the phase by value, so what a phase has not
//! earned yet can't be touched.
//!
//! ```text
//! Accepted → Admitted → Ready → { requests (request.rs) | HTTP/2 (http2.rs) } → Upgraded (upgraded.rs) → closed
//! ```

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::access::admission::{self, ClientPermit};
use crate::access::proxy_protocol::{InvalidProxyHeader, ProxyHeader};
use crate::access::rejections::RejectReason;
use crate::http::h1::writer;
use crate::observe::client::{ClientConnection, ConnectionId};
use crate::observe::handshakes::HandshakeOutcome;
use crate::observe::side::Side;
use crate::tls::TlsEnd;
use crate::transport::endpoint::{Endpoint, EndpointError};
use crate::transport::net::Runtime;
use crate::worker::context::Generation;
use crate::worker::failure_responses::{handshake_failure_reason, not_tls, note_failed_handshake};
use crate::worker::http2;
use crate::worker::record_builder::RecordBuilder;
use crate::worker::request::{NextStep, Ready};
use crate::worker::upgraded::Upgraded;

struct Accepted<N: Runtime> {
    endpoint: Endpoint<N::Stream>,
    client: SocketAddr,
    secure: bool,
    is_full: bool,
    id: ConnectionId,
}

/// A client that may be here.
struct Admitted<N: Runtime> {
    accepted: Accepted<N>,
    permit: ClientPermit,
}

/// Serves a connection to its end.
///
/// `is_full`: there are as many connections as may be, and another one gives way once this client is let in.
pub async fn serve<N: Runtime>(
    generation: &Rc<Generation<N>>,
    stream: N::Stream,
    client: SocketAddr,
    secure: bool,
    is_full: bool,
    id: ConnectionId,
) {
    // What the front needs is many KiB, which are given back before a desktop's hours begin.
    let accepted = Accepted { endpoint: Endpoint::new(stream, TlsEnd::plain()), client, secure, is_full, id };
    tracing::debug!(conn = id.number(), client = %client.ip(), "client connected");
    let front = Box::pin(serve_requests(generation, accepted));
    match front.await {
        Some((Front::Upgraded(upgraded), _permit)) => {
            tracing::debug!(conn = id.number(), "session opened");
            upgraded.relay(generation).await;
        }
        Some((Front::Http2(ready), _permit)) => Box::pin(http2::serve(generation, ready)).await,
        None => {}
    }
    tracing::debug!(conn = id.number(), "client disconnected");
}

/// Tells a client without TLS why it is not served. With TLS, the handshake would cost more than it is worth.
pub async fn reject<N: Runtime>(generation: &Generation<N>, stream: N::Stream, reason: RejectReason) {
    send_rejection(generation, Endpoint::new(stream, TlsEnd::plain()), reason).await;
}

/// Does not wait for it to listen.
async fn send_rejection<N: Runtime>(
    generation: &Generation<N>,
    mut endpoint: Endpoint<N::Stream>,
    reason: RejectReason,
) {
    if endpoint.write(&writer::local_response(&admission::reply_to(reason), false, false)).is_err() {
        return;
    }
    poll_fn(|cx| {
        // What it asked is taken in, or closing would reset the connection. Whether it hears is its own affair.
        let _ = endpoint.poll_fill(cx, &mut generation.worker.buffers.borrow_mut());
        let _ = endpoint.poll_finish(cx, true);
        Poll::Ready(())
    })
    .await;
}

/// What a connection goes on with.
enum Front<N: Runtime> {
    Upgraded(Box<Upgraded<N>>),
    Http2(Ready<N>),
}

/// Everything before a session, or HTTP/2.
async fn serve_requests<N: Runtime>(
    generation: &Generation<N>,
    accepted: Accepted<N>,
) -> Option<(Front<N>, ClientPermit)> {
    let client = accepted.client();
    let place = generation.worker.waiting.enter();
    let Some(opened) = place.hold(admit_client(generation, accepted)).await else {
        generation.rejections().note(RejectReason::Evicted, client);
        return None;
    };
    let (mut ready, permit) = opened?;
    if ready.endpoint.speaks_http2() {
        return Some((Front::Http2(ready), permit));
    }
    loop {
        match ready.one_request(generation, &place).await {
            NextStep::Next(next) => {
                // Requests that were sent ahead are a step of front work each.
                if !next.endpoint.read_buf.is_empty() {
                    generation.net.yield_now().await;
                }
                ready = next;
            }
            NextStep::Upgraded(upgraded) => return Some((Front::Upgraded(upgraded), permit)),
            NextStep::Http2(ready) => return Some((Front::Http2(ready), permit)),
            NextStep::Closing(ready) => {
                place.hold(ready.linger(generation)).await;
                return None;
            }
            NextStep::Closed => return None,
        }
    }
}

/// Everything before the first request.
async fn admit_client<N: Runtime>(
    generation: &Generation<N>,
    accepted: Accepted<N>,
) -> Option<(Ready<N>, ClientPermit)> {
    let Admitted { accepted, permit } =
        accepted.with_proxy_header(generation).await?.admit(generation).await?;
    Some((accepted.secure(generation).await?, permit))
}

impl<N: Runtime> Accepted<N> {
    /// A balancer says first whom it speaks for.
    async fn with_proxy_header(mut self, generation: &Generation<N>) -> Option<Self> {
        let config = generation.config();
        if !config.clients.is_proxy_protocol_source(self.client.ip()) {
            return Some(self);
        }
        let read = generation
            .net
            .timeout(config.limits.header_timeout, read_proxy_header(&mut self.endpoint, generation));
        let proxy_header = tokio::select! {
            read = read => read.unwrap_or(Err(EndpointError::TimedOut.into())),
            () = generation.drain_request_timeout() => return None,
        };
        match proxy_header {
            Ok(client) => Some(Self { client: client.unwrap_or(self.client), ..self }),
            Err(error) => {
                generation.rejections().note_with(RejectReason::ProxyHeader, self.client(), &error);
                None
            }
        }
    }

    async fn admit(self, generation: &Generation<N>) -> Option<Admitted<N>> {
        let reason = match generation.shared.admission.admit(self.client.ip(), generation.net.now()) {
            // Where none has waited longer, it is its own place that it loses.
            Ok(_) if self.is_full && !generation.worker.waiting.evict() => RejectReason::MaxConnections,
            Ok(permit) => return Some(Admitted { accepted: self, permit }),
            Err(reason) => reason,
        };
        generation.rejections().note(reason, self.client());
        if !self.secure {
            send_rejection(generation, self.endpoint, reason).await;
        }
        None
    }

    /// As logs name it.
    fn client(&self) -> ClientConnection {
        ClientConnection { id: self.id, address: self.client.ip(), port: self.client.port() }
    }

    fn unsecured(self) -> Ready<N> {
        let client = self.client();
        let Self { endpoint, secure, .. } = self;
        Ready::of_connection(endpoint, client, secure)
    }

    async fn secure(self, generation: &Generation<N>) -> Option<Ready<N>> {
        let client = self.client();
        if !self.secure {
            return Some(self.unsecured());
        }
        let tls = match generation.shared.acceptor.accept() {
            Ok(tls) => tls,
            Err(error) => {
                generation.rejections().note_with(RejectReason::TlsError, client, &error);
                return None;
            }
        };
        let mut ready = Self { endpoint: self.endpoint.begin_tls(tls), ..self }.unsecured();
        let handshake = generation.net.timeout(
            generation.config().limits.header_timeout,
            ready.endpoint.handshake(&generation.worker.buffers),
        );
        let (mut place, begun) = (generation.handshakes.begin(), generation.net.now());
        let secure = tokio::select! {
            done = handshake => done.unwrap_or(Err(EndpointError::TimedOut)),
            () = place.lost() => {
                count_handshake(generation, "", RejectReason::HandshakeEvicted.name(), None);
                generation.rejections().note(RejectReason::HandshakeEvicted, client);
                return None;
            }
            () = generation.drain_request_timeout() => return None,
        };
        match secure {
            Ok(()) => {
                let took = generation.net.now() - begun;
                count_handshake(generation, ready.endpoint.tls_version(), "", Some(took));
                Some(ready)
            }
            Err(EndpointError::NoTls) => {
                count_handshake(generation, "", RejectReason::NotTls.name(), None);
                generation.rejections().note(RejectReason::NotTls, client);
                ready.endpoint = Box::new(ready.endpoint.into_plain());
                ready.secure = false;
                let builder = RecordBuilder::new(
                    generation.worker.request_ids.next(),
                    client,
                    false,
                    generation.net.now(),
                );
                if let NextStep::Closing(ready) = ready.respond(generation, builder, &not_tls(), None).await {
                    ready.linger(generation).await;
                }
                None
            }
            Err(error) => {
                if ready.endpoint.was_heard() {
                    count_handshake(generation, "", handshake_failure_reason(&error).name(), None);
                }
                note_failed_handshake(generation.rejections(), client, &error, ready.endpoint.was_heard());
                None
            }
        }
    }
}

fn count_handshake<N: Runtime>(
    generation: &Generation<N>,
    version: &'static str,
    reason: &'static str,
    took: Option<Duration>,
) {
    let outcome = HandshakeOutcome { side: Side::Client, version, reason };
    generation.worker.stats.handshake(outcome, took);
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
    endpoint: &mut Endpoint<N::Stream>,
    generation: &Generation<N>,
) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    loop {
        if let Some(ProxyHeader { length, client }) = ProxyHeader::read(endpoint.read_buf.filled())? {
            endpoint.read_buf.consume(length);
            return Ok(client);
        }
        if endpoint.fill(&generation.worker.buffers).await? == 0 {
            return Err(EndpointError::EndedEarly.into());
        }
    }
}
