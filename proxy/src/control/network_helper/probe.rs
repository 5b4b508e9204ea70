//! One probe of one agent. Says no more of a client or a user than that the proxy is there.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::messages::Monitored;
use crate::agents::health::{Failure, FailureKind, ProbeKind, ProbeRules};
use crate::tls::AsyncClient;

/// By which an agent may tell how many desktops are in use there.
const DESKTOPS: &str = "dcv-splice-desktops";
/// Bytes of the head of an answer (hyper takes no less than 8192).
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What probes need.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    tls: AsyncClient,
}

impl Probe {
    pub(super) fn new() -> io::Result<Self> {
        let tls = AsyncClient::trusting_anybody().map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self { tls })
    }

    /// Probes an agent: how many desktops it tells of, or why it failed. Nothing where that says nothing of the agent.
    pub(super) async fn run(
        &self,
        agent: Monitored,
        rules: &ProbeRules,
    ) -> Option<Result<Option<u32>, Failure>> {
        let mut tried = "connect";
        let probe = self.steps(agent, rules.kind, &mut tried);
        let result = tokio::time::timeout(rules.timeout, probe).await;
        match result {
            Ok(Ok(desktops)) => Some(Ok(desktops)),
            Ok(Err(ProbeError::Failed(failure))) => Some(Err(failure)),
            Ok(Err(ProbeError::Local)) => None,
            Err(_) => {
                let time = humantime::format_duration(rules.timeout);
                let detail = format!("{tried}: no answer within {time}");
                Some(Err(Failure { kind: FailureKind::Timeout, detail }))
            }
        }
    }

    async fn steps(
        &self,
        Monitored { agent, tls }: Monitored,
        kind: ProbeKind,
        tried: &mut &'static str,
    ) -> Result<Option<u32>, ProbeError> {
        let stream = TcpStream::connect(agent).await.map_err(|error| match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => {
                failed(FailureKind::Refused, tried, &plainly(&error))
            }
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                failed(FailureKind::Unreachable, tried, &plainly(&error))
            }
            ErrorKind::TimedOut => failed(FailureKind::Timeout, tried, &plainly(&error)),
            // There are too few descriptors, ports or pages here.
            _ => ProbeError::Local,
        })?;
        let kind = if tls || kind == ProbeKind::Http { kind } else { ProbeKind::Tcp };
        if kind == ProbeKind::Tcp {
            return Ok(None);
        }
        if !tls {
            *tried = "HTTP";
            return ask(agent, stream).await;
        }
        *tried = "TLS handshake";
        let stream = self.tls.connect(stream, agent.ip()).await;
        let stream = stream.map_err(|error| failed(FailureKind::Handshake, tried, &plainly(&error)))?;
        if kind == ProbeKind::Tls {
            return Ok(None);
        }
        *tried = "HTTP";
        ask(agent, stream).await
    }
}

/// Why a probe has not succeeded.
enum ProbeError {
    /// By the agent.
    Failed(Failure),
    /// By what is missing here.
    Local,
}

fn failed(kind: FailureKind, tried: &str, error: &dyn std::fmt::Display) -> ProbeError {
    ProbeError::Failed(Failure { kind, detail: format!("{tried}: {error}") })
}

/// Without the number of an error of the system.
fn plainly(error: &io::Error) -> String {
    if error.raw_os_error().is_some() { error.kind().to_string() } else { error.to_string() }
}

/// Sends a request, and takes whatever answers it for life.
async fn ask<S>(agent: SocketAddr, stream: S) -> Result<Option<u32>, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| failed(FailureKind::Http, "HTTP", &error);
    let mut client = http1::Builder::new();
    let (mut sender, connection) = client
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let request = Request::get("/")
        .header(HOST, agent.to_string())
        .header(USER_AGENT, concat!("dcv-splice/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| self::failed(FailureKind::Http, "HTTP", &error))?;
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // By then it has brought the answer, or has none.
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    Ok(desktops(answer.map_err(failed)?.headers()))
}

fn desktops(headers: &HeaderMap) -> Option<u32> {
    headers.get(DESKTOPS)?.to_str().ok()?.trim().parse().ok()
}
