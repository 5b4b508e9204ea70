//! The admin listener: plain HTTP for operators and their monitoring: `/metrics`, `/health`, and pages that show how it
//! stands, as it changes. It answers GET and HEAD, changes nothing, and is on a thread that serves no desktop.

use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::pages::{self, View};
use super::sampler::{Sampler, Sources};
use crate::access::policy::health;
use crate::http::h1::head::{HeadEnd, HeadError, HeadLimits};
use crate::http::h1::writer;
use crate::http::local_response::LocalResponse;
use crate::http::message::{self, RequestHead};
use crate::observe::metrics::{self, Format};
use crate::observe::session_stats::HistoryPoint;

/// Clients at a time; the others wait.
const CLIENTS_MAX: usize = 32;
/// Of them, those that look at a page as it changes; others are told to come back.
const WATCHERS_MAX: usize = 16;
/// How long one may take to ask, and to take its answer.
const IO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to say what is asked for; the other clients wait for it.
const HEAD_TIME: Duration = Duration::from_secs(2);
const HEAD: HeadLimits = HeadLimits { header_size_max: 8192, request_line_max: 1024, header_count_max: 64 };
/// The time between two states of a page, and the bytes for which as much is added: a watcher is sent 64 kB/s at the most.
const EVENT_PAUSE: Duration = Duration::from_secs(1);
const BYTES_PER_PAUSE: usize = 64 << 10;
/// Of the time, one part in so many goes into drawing for one watcher at the most.
const DRAWING_SHARE: u32 = 50;
/// Nothing is loaded from elsewhere, and no other page shows this one.
const CONTENT_POLICY: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// What every client of the listener shares.
#[derive(Clone)]
struct Shared {
    sampler: Arc<Sampler>,
    watchers: Arc<Semaphore>,
    /// Closed once another process has the listener.
    closing: watch::Receiver<()>,
}

/// What a client is given.
enum Reply {
    /// An answer; only its head where that is all that is wanted.
    Whole(LocalResponse, bool),
    /// A page as it changes, to one of a bounded number of watchers.
    Events(View, OwnedSemaphorePermit),
}

/// Answers until the task is ended.
pub(crate) async fn serve(listener: TcpListener, sources: Sources) {
    let listener =
        match listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener)) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(reason = &*error.to_string(), "admin page failed"),
        };
    let (_open, closing) = watch::channel(());
    let listeners = sources.listeners.clone();
    let watchers = Arc::new(Semaphore::new(WATCHERS_MAX));
    let shared = Shared { sampler: Arc::new(Sampler::new(sources)), watchers, closing };
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, client)) if listeners.has_departed(client, || stream.local_addr()) => {
                tracing::warn!(%client, "admin connection rejected: the proxy connects to itself (--agents)");
            }
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _place = place;
                    // Whoever asked has gone, or takes too long.
                    let _ = answer(stream, shared).await;
                });
            }
            Err(error) => {
                tracing::warn!(reason = &*error.to_string(), "admin page: accept failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, shared: Shared) -> std::io::Result<()> {
    let is_local = stream.local_addr()?.ip().to_canonical().is_loopback();
    let reply = tokio::time::timeout(IO_TIMEOUT, async {
        let head = tokio::time::timeout(HEAD_TIME, read_head(&mut stream)).await??;
        std::io::Result::Ok(match head {
            Ok(head) if head.is_empty() => None,
            Ok(head) => Some(reply_to(&head, &shared, is_local).await),
            Err(error) => Some(Reply::Whole(LocalResponse::new(error.status(), error.to_string()), false)),
        })
    });
    match reply.await?? {
        None => Ok(()),
        Some(Reply::Whole(response, head_only)) => {
            let response = response.with_header("X-Content-Type-Options: nosniff");
            let bytes = writer::local_response(&response, false, head_only);
            tokio::time::timeout(IO_TIMEOUT, stream.write_all(&bytes)).await??;
            stream.shutdown().await
        }
        Some(Reply::Events(view, _permit)) => send_events(stream, &view, shared).await,
    }
}

/// The head; nothing where the client has gone before it was whole.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Result<Vec<u8>, HeadError>> {
    let (mut head, mut scan) = (Vec::new(), HeadEnd::default());
    loop {
        match scan.find(&head, &HEAD) {
            Ok(Some(length)) => {
                head.truncate(length);
                return Ok(Ok(head));
            }
            Ok(None) if stream.read_buf(&mut head).await? > 0 => {}
            Ok(None) => return Ok(Ok(Vec::new())),
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// `is_local`: the client reaches it by a loopback address.
async fn reply_to(head: &[u8], shared: &Shared, is_local: bool) -> Reply {
    let head = match RequestHead::parse(head, &HEAD) {
        Ok(head) => head,
        Err(error) => return Reply::Whole(LocalResponse::new(error.status(), error.to_string()), false),
    };
    if !matches!(head.method, "GET" | "HEAD") {
        let response = LocalResponse::new(405, "GET and HEAD are answered.").with_header("Allow: GET, HEAD");
        return Reply::Whole(response, false);
    }
    let is_head = head.method == "HEAD";
    let is_foreign = head.host.is_some_and(|host| !is_local_name(host));
    if is_local && is_foreign && !head.path.starts_with("/health") {
        let response = LocalResponse::new(403, "Ask for it by its address, or as localhost.");
        return Reply::Whole(response, is_head);
    }
    if let Some(view) = View::of(head.path) {
        let wants_events = message::members(&head.headers, "accept").any(|it| it == b"text/event-stream");
        if wants_events && !is_head {
            return match shared.watchers.clone().try_acquire_owned() {
                Ok(permit) => Reply::Events(view, permit),
                Err(_) => {
                    Reply::Whole(LocalResponse::new(503, "Too many look at once. Try again later."), false)
                }
            };
        }
        return Reply::Whole(page(&view, shared).await, is_head);
    }
    let path = head.path.split('?').next().unwrap_or_default();
    let response = match path {
        "/health" => health(head.path == "/health?ready", shared.sampler.is_ready()),
        "/metrics" => metrics(shared, Format::wanted(message::members(&head.headers, "accept"))).await,
        "/style.css" => asset(include_str!("assets/style.css"), "text/css; charset=utf-8"),
        "/live.js" => asset(include_str!("assets/live.js"), "text/javascript; charset=utf-8"),
        _ => LocalResponse::new(404, "There are /, /agent/ADDRESS, /session/ID, /metrics and /health."),
    };
    Reply::Whole(response, is_head)
}

/// A page of somebody else whose name leads to a loopback address (DNS rebinding) is of another name than these.
fn is_local_name(host: &str) -> bool {
    let name = message::split_port(host).0.trim_end_matches('.');
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_address || name.eq_ignore_ascii_case("localhost")
}

fn asset(text: &str, kind: &'static str) -> LocalResponse {
    LocalResponse::new(200, text.trim_end()).of_type(kind).with_header("Cache-Control: no-cache")
}

async fn page(view: &View, shared: &Shared) -> LocalResponse {
    let content = content(view, shared).await;
    LocalResponse::new(if content.is_found { 200 } else { 404 }, pages::document(view, &content))
        .of_type("text/html; charset=utf-8")
        .with_header("Cache-Control: no-store")
        .with_header("Vary: Accept")
        .with_header("Referrer-Policy: no-referrer")
        .with_header(CONTENT_POLICY)
}

async fn content(view: &View, shared: &Shared) -> pages::Content {
    let overview = shared.sampler.overview().await;
    pages::content(view, &overview, &history(view, shared).await)
}

async fn history(view: &View, shared: &Shared) -> Vec<HistoryPoint> {
    match view.session() {
        Some(id) => shared.sampler.history(id).await,
        None => Vec::new(),
    }
}

async fn metrics(shared: &Shared, format: Format) -> LocalResponse {
    match metrics::render(shared.sampler.processes().await, format) {
        Ok(text) => LocalResponse::new(200, text.trim_end())
            .of_type(format.content_type())
            .with_header("Vary: Accept"),
        Err(error) => LocalResponse::new(500, error.to_string()),
    }
}

/// Sends a page again and again (HTML, 9.2 Server-sent events), until its watcher has gone.
async fn send_events(mut stream: TcpStream, view: &View, mut shared: Shared) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
                Connection: close\r\n\r\nretry: 2000\n\n";
    stream.write_all(head.as_bytes()).await?;
    loop {
        let overview = shared.sampler.overview().await;
        let history = history(view, &shared).await;
        let begun = Instant::now();
        let event = event(&pages::content(view, &overview, &history).html);
        // Whatever there is to draw, others have most of the time.
        let drawing = begun.elapsed().saturating_mul(DRAWING_SHARE);
        tokio::time::timeout(IO_TIMEOUT, stream.write_all(event.as_bytes())).await??;
        let steps = u32::try_from(event.len() / BYTES_PER_PAUSE).unwrap_or(u32::MAX).saturating_add(1);
        let mut said = [0; 1];
        tokio::select! {
            // It has gone; one that goes on speaking has nothing to say.
            read = stream.read(&mut said) => return read.map(|_| ()),
            _ = shared.closing.changed() => return stream.shutdown().await,
            () = tokio::time::sleep(EVENT_PAUSE.saturating_mul(steps).max(drawing)) => {}
        }
    }
}

/// A text as one event: each line of it is a field.
fn event(text: &str) -> String {
    let lines = text.split(['\n', '\r']).flat_map(|line| ["data: ", line, "\n"]);
    lines.chain(["\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_may_be_anybodys_is_no_local_one() {
        for name in ["127.0.0.1:9443", "localhost", "LOCALHOST:1", "localhost.", "[::1]:9443", "10.0.0.5"] {
            assert!(is_local_name(name), "{name}");
        }
        for name in ["rebound.example", "localhost.example:9443", "127.0.0.1.example", ""] {
            assert!(!is_local_name(name), "{name}");
        }
    }

    #[test]
    fn an_event_has_a_field_for_each_line() {
        assert_eq!(event("<p>a\nb\rc</p>"), "data: <p>a\ndata: b\ndata: c</p>\n\n");
    }
}
