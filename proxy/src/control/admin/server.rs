//! The admin listener: plain HTTP for operators and their monitoring: `/metrics`, `/health`, and a page that shows how it
//! stands. It answers GET and HEAD, changes nothing, and is on a thread that serves no desktop.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::access::policy::health;
use crate::control::socket::{self, ControlCommand, ControlRequest};
use crate::http::h1::head::{HeadEnd, HeadError, HeadLimits};
use crate::http::h1::writer;
use crate::http::local_response::LocalResponse;
use crate::http::message::{self, RequestHead};
use crate::observe::metrics::{self, Format};
use crate::observe::readiness::Readiness;
use crate::observe::status::ProcessStatus;
use crate::transport::own_addresses::OwnAddresses;

/// Clients at a time; the others wait.
const CLIENTS_MAX: usize = 16;
/// How long one may take to ask, and to take its answer.
const IO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to say what is asked for; the other clients wait for it.
const HEAD_TIME: Duration = Duration::from_secs(2);
/// How long a process may take to say how it stands before it is left out.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
const HEAD: HeadLimits = HeadLimits { header_size_max: 8192, request_line_max: 1024, header_count_max: 64 };

/// The sources of what the page shows.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// This process.
    pub own: mpsc::Sender<ControlRequest>,
    /// The control sockets of those that drain.
    pub former: Arc<[PathBuf]>,
    /// Whether new users are welcome.
    pub readiness: Readiness,
    /// Where the proxy itself listens: none of its clients reaches this by it.
    pub listeners: OwnAddresses,
}

/// Answers until the task is ended.
pub(crate) async fn serve(listener: TcpListener, sources: Sources) {
    let listener =
        match listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener)) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(reason = &*error.to_string(), "admin page failed"),
        };
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, client)) if sources.listeners.has_departed(client, || stream.local_addr()) => {
                tracing::warn!(%client, "admin connection rejected: the proxy connects to itself (--agents)");
            }
            Ok((stream, _)) => {
                let sources = sources.clone();
                tokio::spawn(async move {
                    let _place = place;
                    // Whoever asked has gone, or takes too long.
                    let _ = tokio::time::timeout(IO_TIMEOUT, answer(stream, &sources)).await;
                });
            }
            Err(error) => {
                tracing::warn!(reason = &*error.to_string(), "admin page: accept failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, sources: &Sources) -> std::io::Result<()> {
    let (reply, head_only) = match tokio::time::timeout(HEAD_TIME, read_head(&mut stream)).await?? {
        Ok(head) if head.is_empty() => return Ok(()),
        Ok(head) => reply_to(&head, sources).await,
        Err(error) => (LocalResponse::new(error.status(), error.to_string()), false),
    };
    stream.write_all(&writer::local_response(&reply, false, head_only)).await?;
    stream.shutdown().await
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

/// The answer, and whether its head is all that is wanted.
async fn reply_to(head: &[u8], sources: &Sources) -> (LocalResponse, bool) {
    let head = match RequestHead::parse(head, &HEAD) {
        Ok(head) => head,
        Err(error) => return (LocalResponse::new(error.status(), error.to_string()), false),
    };
    let path = head.path.split('?').next().unwrap_or_default();
    let reply = match (head.method, path) {
        ("GET" | "HEAD", "/health") => health(head.path == "/health?ready", sources.readiness.is_ready()),
        ("GET" | "HEAD", "/metrics") => {
            metrics(sources, Format::wanted(message::members(&head.headers, "accept"))).await
        }
        ("GET" | "HEAD", "/") => {
            let page = super::page::render(&processes(sources).await);
            LocalResponse::new(200, page)
                .of_type("text/html; charset=utf-8")
                .with_header("Cache-Control: no-store")
        }
        ("GET" | "HEAD", _) => LocalResponse::new(404, "There are /, /metrics and /health."),
        _ => LocalResponse::new(405, "GET and HEAD are answered.").with_header("Allow: GET, HEAD"),
    };
    (reply, head.method == "HEAD")
}

async fn metrics(sources: &Sources, format: Format) -> LocalResponse {
    match metrics::render(processes(sources).await, format) {
        Ok(text) => LocalResponse::new(200, text.trim_end())
            .of_type(format.content_type())
            .with_header("Vary: Accept"),
        Err(error) => LocalResponse::new(500, error.to_string()),
    }
}

/// How it stands with this process, and with those that drain.
async fn processes(sources: &Sources) -> Vec<ProcessStatus> {
    let mut processes = Vec::from_iter(own(&sources.own).await);
    for path in sources.former.iter() {
        // Most have ended by now.
        let said = tokio::time::timeout(STATUS_TIMEOUT, socket::ask(path, ControlCommand::Stats, "")).await;
        processes.extend(said.ok().and_then(Result::ok).and_then(|said| serde_json::from_str(&said).ok()));
    }
    processes
}

/// With the kernel's account where it can be had soon.
async fn own(commands: &mpsc::Sender<ControlRequest>) -> Option<ProcessStatus> {
    match tokio::time::timeout(STATUS_TIMEOUT, own_by(commands, ControlCommand::Stats)).await {
        Ok(status) => status,
        Err(_) => own_by(commands, ControlCommand::OwnStats).await,
    }
}

async fn own_by(commands: &mpsc::Sender<ControlRequest>, command: ControlCommand) -> Option<ProcessStatus> {
    let (answer, answered) = oneshot::channel();
    commands.send(ControlRequest { command, argument: String::new(), answer }).await.ok()?;
    serde_json::from_str(&answered.await.ok()?.ok()?).ok()
}
