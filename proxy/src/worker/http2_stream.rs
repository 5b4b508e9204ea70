//! One request of an HTTP/2 connection, served as the HTTP/1.1 connection that it stands for: what it is answered with is
//! decided where it is for HTTP/1.1 too. A WebSocket (RFC 8441) becomes a session like any other.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;

use crate::access::rejections::RejectReason;
use crate::http::h2::stream::{Ending, RequestStream};
use crate::transport::net::Runtime;
use crate::worker::context::Generation;
use crate::worker::request::{Http2Connection, NextStep, Ready};

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

/// Serves one request, or the session that it becomes, to its end.
pub(super) async fn serve<N: Runtime>(
    generation: &Generation<N>,
    connection: Http2Connection,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    open: OpenStream,
) {
    let client = connection.client;
    let stream = match RequestStream::new(request, respond) {
        Ok(stream) => stream,
        Err(Ending::Malformed) => return generation.rejections().note(RejectReason::Http2Protocol, client),
        Err(_) => {
            return tracing::debug!(conn = client.id.number(), "a login of a connection is sent to HTTP/1.1");
        }
    };
    let ready = Ready::of_stream(Box::new(stream.clone()), &connection);
    let mut served = pin!(serve_request(generation, ready, open));
    poll_fn(|cx| {
        let served = served.as_mut().poll(cx);
        stream.push();
        served
    })
    .await;
}

async fn serve_request<N: Runtime>(generation: &Generation<N>, ready: Ready<N>, mut open: OpenStream) {
    let next = {
        // Whoever makes way gives up a connection, and a stream has none: its place is no one's to take.
        let place = generation.worker.waiting.enter();
        place.leave();
        ready.one_request(generation, &place).await
    };
    match next {
        NextStep::Closing(ready) => Box::pin(ready.linger(generation)).await,
        NextStep::Upgraded(upgraded) => {
            open.become_session();
            Box::pin(upgraded.relay(generation)).await;
        }
        NextStep::Next(_) | NextStep::Http2(_) | NextStep::Closed => {}
    }
}
