//! What a load's connections do, and what they share: how to connect, when to begin, and what has been counted.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::HandshakeKind;
use tokio_rustls::rustls::pki_types::ServerName;

use super::http2::Client;
use super::latency::Latencies;
use super::wire::{Duplex, Wire, connector, now, wrong};

/// How many connections are being opened at a time.
const OPENING: usize = 32;

/// What the connections do.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Load {
    /// Paced messages that come back.
    Echo { sessions: u64, per_second: f64, bytes: usize },
    /// Two channels per session, as DCV has them: frames down, and input events that come back.
    Desktop { sessions: u64, fps: u64, frame_bytes: usize, input_hz: u64 },
    /// The same one after the other, as fast as goes.
    Bounce { sessions: u64, bytes: usize },
    /// As much as goes, down, or so many messages of 64 KiB a second.
    Flood { sessions: u64, per_second: Option<u64> },
    /// As much as goes, up.
    Upload { sessions: u64 },
    /// One request after the other on each connection.
    Get { connections: u64, bytes: usize },
    /// A connection after the other: handshake, one request, close.
    Connect { connections: u64, bytes: usize, resume: bool },
    /// New connections at a rate of their own.
    Storm { per_second: f64, bytes: usize },
    /// New connections at a rate of their own, which ask the peer itself.
    Health { per_second: f64 },
    /// Clients who mean no good.
    Attack { attackers: usize },
    /// A session after the other: handshake, upgrade, one echo, close.
    Churn { sessions: u64, bytes: usize },
    /// Sessions that have spoken and then rest.
    Idle { sessions: u64, bytes: usize },
    /// Requests by HTTP/2: so many at a time on each connection.
    GetHttp2 { connections: u64, streams: u64, bytes: usize },
    /// Bodies up by HTTP/2: so many at a time on one connection.
    UploadHttp2 { streams: u64, bytes: usize },
    /// Connections of HTTP/2 that have asked for something and then rest.
    IdleHttp2 { connections: u64, bytes: usize },
    /// So many at a time, at a rate of all together: each on a connection of its own, or all on one of HTTP/2.
    Downloads { http2: bool, count: u64, per_second: f64, bytes: usize },
}

impl Load {
    pub(super) fn is_http2(self) -> bool {
        matches!(
            self,
            Self::GetHttp2 { .. }
                | Self::UploadHttp2 { .. }
                | Self::IdleHttp2 { .. }
                | Self::Downloads { http2: true, .. }
        )
    }

    /// Whether it is memory that is measured.
    pub(super) fn is_idle(self) -> bool {
        matches!(self, Self::Idle { .. } | Self::IdleHttp2 { .. })
    }
}

/// What the client's process is told.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct ClientPlan {
    pub(super) load: Load,
    pub(super) connect: SocketAddr,
    /// What stands before the agent's own paths.
    pub(super) prefix: String,
    /// The certificate to trust; none for a plain leg.
    pub(super) cert_pem: Option<String>,
    pub(super) window_s: f64,
    /// How long the load goes on after its window, for another client's that is still open.
    pub(super) linger_s: f64,
    /// The roots of the process trees to watch.
    pub(super) peer: Vec<u32>,
    pub(super) agent: Vec<u32>,
    pub(super) others: Vec<u32>,
    /// Whether the load goes on while the peer's system calls are counted.
    pub(super) counts_syscalls: bool,
}

/// The window, and when the load ends; all zero until every connection stands.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) last: u64,
}

impl Window {
    pub(super) fn contains(self, time: u64) -> bool {
        (self.start..self.end).contains(&time)
    }
}

/// What all connections of the load share.
pub(super) struct Shared {
    pub(super) load: Load,
    pub(super) connect: SocketAddr,
    pub(super) prefix: String,
    pub(super) tls: Option<TlsConnector>,
    pub(super) units: AtomicU64,
    pub(super) latencies: Latencies,
    pub(super) window: watch::Sender<Window>,
    pub(super) opened: AtomicU64,
    /// TLS handshakes, and those of them that resumed a session.
    pub(super) handshakes: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) opening: tokio::sync::Semaphore,
}

impl Shared {
    pub(super) fn new(plan: &ClientPlan) -> io::Result<Self> {
        let resume = matches!(plan.load, Load::Connect { resume: true, .. });
        let tls =
            plan.cert_pem.as_ref().map(|pem| connector(pem, resume, plan.load.is_http2())).transpose()?;
        Ok(Self {
            load: plan.load,
            connect: plan.connect,
            prefix: plan.prefix.clone(),
            tls,
            units: AtomicU64::new(0),
            latencies: Latencies::default(),
            window: watch::Sender::new(Window::default()),
            opened: AtomicU64::new(0),
            handshakes: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            opening: tokio::sync::Semaphore::new(OPENING),
        })
    }

    /// Where the peer listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.connect
    }

    /// What stands before the agent's own paths.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) async fn dial(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.connect).await
    }

    pub(super) async fn open(&self) -> io::Result<Wire> {
        self.secure(self.dial().await?).await
    }

    pub(super) async fn secure(&self, stream: TcpStream) -> io::Result<Wire> {
        Ok(Wire::new(self.secured(stream).await?))
    }

    /// A connection of HTTP/2.
    pub(super) async fn open_http2(&self) -> io::Result<Client> {
        Client::new(self.secured(self.dial().await?).await?, self.connect).await
    }

    async fn secured(&self, stream: TcpStream) -> io::Result<Box<dyn Duplex>> {
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::from(self.connect.ip());
        let stream = tls.connect(name, stream).await?;
        let is_resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        self.resumed.fetch_add(u64::from(is_resumed), Ordering::Relaxed);
        Ok(Box::new(stream))
    }

    pub(super) async fn channel(&self, path: &str) -> io::Result<Wire> {
        let Ok(_permit) = self.opening.acquire().await else { return Err(wrong("the load is over")) };
        let mut wire = self.open().await?;
        let head = format!(
            "GET {}{path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: dcv\r\nOrigin: https://{}\r\n\r\n",
            self.prefix, self.connect, self.connect
        );
        wire.send(head.as_bytes()).await?;
        match wire.head().await? {
            Some(answer) if answer.starts_with("HTTP/1.1 101 ") => Ok(wire),
            answer => Err(wrong(&format!("no 101 but {answer:?}"))),
        }
    }

    /// One request; returns whether the connection is kept.
    pub(super) async fn get(&self, wire: &mut Wire, bytes: usize) -> io::Result<bool> {
        let request = format!("GET {}/get/{bytes} HTTP/1.1\r\nHost: {}\r\n\r\n", self.prefix, self.connect);
        wire.send(request.as_bytes()).await?;
        let Some(head) = wire.head().await? else { return Err(wrong("closed instead of answered")) };
        if !head.starts_with("HTTP/1.1 200 ") || !says(&head, "content-length", &bytes.to_string()) {
            return Err(wrong(&format!("no 200 of {bytes} bytes but {head:?}")));
        }
        wire.body(0, bytes).await?;
        Ok(!says(&head, "connection", "close"))
    }

    /// Asks the peer itself.
    pub(super) async fn health(&self, wire: &mut Wire) -> io::Result<()> {
        wire.send(format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", self.connect).as_bytes()).await?;
        match wire.head().await? {
            Some(head) if head.starts_with("HTTP/1.1 200 ") => Ok(()),
            answer => Err(wrong(&format!("no 200 but {answer:?}"))),
        }
    }

    /// Counts this connection as open and waits for all the others.
    pub(super) async fn ready(&self) -> Window {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let mut window = self.window.subscribe();
        let known = window.wait_for(|window| *window != Window::default()).await;
        known.map_or_else(|_| Window::default(), |window| *window)
    }

    pub(super) fn count(&self, units: u64) {
        self.units.fetch_add(units, Ordering::Relaxed);
    }

    /// Counts one unit that was meant to begin then.
    pub(super) fn done(&self, name: &'static str, window: Window, meant: u64) {
        self.done_units(1, name, window, meant);
    }

    /// The same for a piece of work that is so many units.
    pub(super) fn done_units(&self, units: u64, name: &'static str, window: Window, meant: u64) {
        self.count(units);
        if window.contains(meant) {
            self.latencies.record(name, now().saturating_sub(meant));
        }
    }
}

/// Whether a head has this line.
fn says(head: &str, name: &str, value: &str) -> bool {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(named, valued)| named.eq_ignore_ascii_case(name) && valued.trim().eq_ignore_ascii_case(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_what_a_line_of_it_says() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nconnection: Close\r\n\r\n";
        assert!(says(head, "content-length", "12") && says(head, "Connection", "close"));
        assert!(!says(head, "content-length", "1") && !says(head, "Upgrade", "close"));
    }
}
