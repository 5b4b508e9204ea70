//! A stand-in DCV agent: HTTPS with a self-signed certificate, a page with relative assets, `/auth`, one `/ws`
//! WebSocket per channel and `/resource/...` requests that are as strict as DCV's about path and token.
//! It never repairs what a proxy broke: a lost query answers 403, a path that is not exactly its own 404.
//!
//! Beside DCV's shape it answers endpoints for tests, described at `probes`: `/x...`, `/bytes/<n>`, `/chunked/<n>`,
//! `/sink`, `/redirect?to=...`, `/cookie?path=...`, `/slow/<ms>`, and the WebSocket `/echo`.
mod channels;
mod desktop;
mod font;
pub mod noise;
mod pages;
mod probes;
mod response;
mod seen;
mod session;

pub use noise::{Checksum, Noise};
pub use seen::{Seen, SeenRequest};

use crate::certificates::{Identity, KeyKind};
use hyper_util::rt::TokioIo;
use session::Sessions;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{io, mem};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{HandshakeKind, ServerConfig};

/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What an agent is to be like; `..Default::default()` fills in the rest.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Which TLS it speaks.
    pub tls: AgentTls,
    /// Its certificate; none makes a self-signed one for the address.
    pub identity: Option<Identity>,
    /// The desktop's name, shown on the page; the desktop's colour follows from it.
    pub name: String,
    /// The token that `/auth` wants, if any. Resource requests always want the one that `/auth` hands out.
    pub token: Option<String>,
    /// Frames per second on the display channel.
    pub fps: u32,
    /// Time between two keepalive messages on each channel.
    pub keepalive: Duration,
    /// Which `Host` it answers.
    pub host: HostRule,
    /// Which `RequestSource` may open a WebSocket.
    pub origin: OriginRule,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            tls: AgentTls::Both,
            identity: None,
            name: "desktop".into(),
            token: None,
            fps: 60,
            keepalive: Duration::from_secs(10),
            host: HostRule::Any,
            origin: OriginRule::Https,
        }
    }
}

/// The TLS versions of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentTls {
    /// Plain HTTP.
    Off,
    /// TLS 1.2 only, as DCV documents.
    Tls12,
    /// TLS 1.3 only.
    Tls13,
    /// TLS 1.2 and 1.3.
    Both,
}

/// DCV's `allowed-http-host-regex`, without the regex. Anything else is answered with 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRule {
    /// Any host, DCV's default.
    Any,
    /// Exactly this `Host`, with the port if it has one.
    Exact(String),
}

impl HostRule {
    fn allows(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(wanted) => host == wanted,
        }
    }
}

/// DCV's `allowed-ws-origin-regex`, without the regex. A WebSocket request that breaks it is answered with 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginRule {
    /// Any origin, or none.
    Any,
    /// DCV's default, `^https://.+$`: a lost `RequestSource` breaks it.
    Https,
    /// Exactly this origin.
    Exact(String),
}

impl OriginRule {
    fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Https => origin.strip_prefix("https://").is_some_and(|rest| !rest.is_empty()),
            Self::Exact(wanted) => origin == wanted,
        }
    }
}

/// A running agent; dropping it closes its listener and every connection.
pub struct Agent {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it has seen so far.
    pub seen: Arc<Seen>,
    /// Its certificate and key, to pin or to trust.
    pub identity: Identity,
    shared: Arc<Shared>,
}

impl Agent {
    /// Binds and starts serving on the current tokio runtime.
    pub async fn start(config: AgentConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let identity = config.identity.clone();
        let identity = identity.unwrap_or_else(|| {
            Identity::self_signed(KeyKind::Ecdsa, &[&address.ip().to_string(), "localhost"])
        });
        let acceptor = acceptor(config.tls, &identity)?;
        let seen = Arc::new(Seen::default());
        let sessions = Sessions::default();
        let shared = Arc::new(Shared { config, seen: seen.clone(), sessions, tasks: Tasks::default() });
        shared.tasks.spawn(accept(shared.clone(), listener, acceptor));
        Ok(Self { address, seen, identity, shared })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.tasks.end();
    }
}

/// What all connections of one agent share.
struct Shared {
    config: AgentConfig,
    seen: Arc<Seen>,
    sessions: Sessions,
    tasks: Tasks,
}

/// Every task of an agent, so that its end is the end of all of them.
struct Tasks(Mutex<Option<JoinSet<()>>>);

impl Default for Tasks {
    fn default() -> Self {
        Self(Mutex::new(Some(JoinSet::new())))
    }
}

impl Tasks {
    /// Does nothing once the agent has ended.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    fn end(&self) {
        let tasks = mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        drop(tasks);
    }
}

async fn accept(agent: Arc<Shared>, listener: TcpListener, acceptor: Option<TlsAcceptor>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: the next attempt would fail at once.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        agent.seen.accepted();
        agent.tasks.spawn(connection(agent.clone(), stream, acceptor.clone()));
    }
}

async fn connection(agent: Arc<Shared>, stream: TcpStream, acceptor: Option<TlsAcceptor>) {
    // Without it the connection only gets slower.
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else { return serve(agent, stream).await };
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    agent.seen.secured(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed));
    serve(agent, stream).await;
}

async fn serve(agent: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let answers = hyper::service::service_fn(move |request| {
        let agent = agent.clone();
        async move { Ok::<_, Infallible>(pages::answer(&agent, request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.max_headers(200).max_buf_size(128 * 1024);
    // A connection may end in any way; what matters is in `seen`.
    let _ = http.serve_connection(TokioIo::new(stream), answers).with_upgrades().await;
}

fn acceptor(tls: AgentTls, identity: &Identity) -> io::Result<Option<TlsAcceptor>> {
    let versions = match tls {
        AgentTls::Off => return Ok(None),
        AgentTls::Tls12 => &[&TLS12][..],
        AgentTls::Tls13 => &[&TLS13],
        AgentTls::Both => &[&TLS12, &TLS13],
    };
    let chain = identity.chain().map_err(io::Error::other)?;
    let key = identity.key().map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
        .map_err(io::Error::other)?;
    config.ticketer = Ticketer::new().map_err(io::Error::other)?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
