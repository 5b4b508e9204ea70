//! The load's agent: a lean server that answers what the load's client asks for, with bytes the client knows.
//! Paths say what is wanted, as the nginx recipe drops queries: `/get/<bytes>`, `/put/<bytes>`, and, upgraded, `/echo`,
//! `/desktop/<period>/<shift>/<bytes>` in nanoseconds, `/flood`, `/flood/<messages a second>` and `/upload`. It is the measuring instrument, not a likeness of DCV.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use harness::certificates::Identity;
use harness::websocket::accepted;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};

use super::wire::{Duplex, Header, Pace, Tls, Wire, acceptor, now, payload, wrong};

/// A message of a flood: several TLS records.
pub(super) const FLOOD_BYTES: usize = 64 * 1024;
/// An upload is acknowledged once for so many messages.
pub(super) const ACKNOWLEDGED: u64 = 16;

/// What the agent's process is told.
#[derive(Deserialize, Serialize)]
pub(super) struct AgentPlan {
    pub(super) listen: SocketAddr,
    pub(super) tls: Tls,
    pub(super) cert_pem: String,
    pub(super) key_pem: String,
}

impl AgentPlan {
    pub(super) fn identity(&self) -> Identity {
        Identity { cert_pem: self.cert_pem.clone(), key_pem: self.key_pem.clone() }
    }
}

/// Serves until it is killed.
pub(super) async fn serve(plan: AgentPlan) -> io::Result<()> {
    serve_each(&plan, |_| Ok(()), |stream| connection(Wire::new(stream))).await
}

/// Has each connection served by `connection`, once `prepare` has set its options and its TLS is there.
pub(super) async fn serve_each<F>(
    plan: &AgentPlan,
    prepare: impl Fn(&TcpStream) -> io::Result<()>,
    connection: impl Fn(Box<dyn Duplex>) -> F + Clone + Send + Sync + 'static,
) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + Send,
{
    let acceptor = acceptor(plan.tls, &plan.identity())?.map(Arc::new);
    let listener = TcpListener::bind(plan.listen).await?;
    // Made now rather than inside the first message.
    payload(0, 0);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        prepare(&stream)?;
        let (acceptor, connection) = (acceptor.clone(), connection.clone());
        tokio::spawn(async move {
            let served = async {
                let stream: Box<dyn Duplex> = match acceptor {
                    Some(acceptor) => Box::new(acceptor.accept(stream).await?),
                    None => Box::new(stream),
                };
                connection(stream).await
            };
            match served.await {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => eprintln!("agent: {error}"),
                // Clients leave as they like.
                _ => {}
            }
        });
    }
}

async fn connection(mut wire: Wire) -> io::Result<()> {
    while let Some(head) = wire.head().await? {
        let request =
            Request::parse(&head).ok_or_else(|| wrong(&format!("not a request of the load: {head}")))?;
        match request {
            Request::Get { bytes, close } => {
                let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").into_bytes();
                answer.extend_from_slice(payload(0, bytes));
                wire.send(&answer).await?;
                if close {
                    break;
                }
            }
            Request::Put { bytes } => {
                wire.skip(bytes).await?;
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
            }
            Request::Channel(channel) => {
                wire.send(accepted(&head, "").as_bytes()).await?;
                channel.run(&mut wire).await?;
                break;
            }
        }
    }
    wire.close().await;
    Ok(())
}

#[derive(Debug, PartialEq)]
enum Request {
    Get { bytes: usize, close: bool },
    Put { bytes: usize },
    Channel(Channel),
}

#[derive(Debug, PartialEq)]
enum Channel {
    Echo,
    Desktop { pace: Pace, bytes: usize },
    Flood { per_second: Option<u64> },
    Upload,
}

impl Request {
    fn parse(head: &str) -> Option<Self> {
        let (_, path) = head.split_once(' ')?;
        let path = path.strip_prefix('/')?.split(' ').next()?;
        let parts: Vec<&str> = path.split('/').collect();
        Some(match parts[..] {
            ["get", bytes] => Self::Get { bytes: bytes.parse().ok()?, close: asks_to_close(head) },
            ["put", bytes] => Self::Put { bytes: bytes.parse().ok()? },
            ["echo"] => Self::Channel(Channel::Echo),
            ["desktop", period, shift, bytes] => {
                let period = period.parse().ok().filter(|period| *period > 0)?;
                let pace = Pace { period, shift: shift.parse().ok()? };
                Self::Channel(Channel::Desktop { pace, bytes: bytes.parse().ok()? })
            }
            ["flood"] => Self::Channel(Channel::Flood { per_second: None }),
            ["flood", per_second] => {
                let per_second = per_second.parse().ok().filter(|per_second| *per_second > 0)?;
                Self::Channel(Channel::Flood { per_second: Some(per_second) })
            }
            ["upload"] => Self::Channel(Channel::Upload),
            _ => return None,
        })
    }
}

fn asks_to_close(head: &str) -> bool {
    head.lines().any(|line| line.eq_ignore_ascii_case("connection: close"))
}

impl Channel {
    async fn run(self, wire: &mut Wire) -> io::Result<()> {
        match self {
            Self::Echo => {
                while let Some(message) = wire.message().await? {
                    wire.post(message).await?;
                }
            }
            Self::Desktop { pace, bytes } => {
                let mut ticks = pace.ticks()?;
                for sequence in 0.. {
                    let stamp = ticks.next().await?;
                    wire.post(Header { payload_bytes: bytes, sequence, stamp }).await?;
                }
            }
            Self::Flood { per_second: Some(per_second) } => {
                let mut ticks = Pace::new(per_second as f64).ticks()?;
                for sequence in 0.. {
                    let stamp = ticks.next().await?;
                    wire.post(Header { payload_bytes: FLOOD_BYTES, sequence, stamp }).await?;
                }
            }
            Self::Flood { per_second: None } => {
                for sequence in 0.. {
                    wire.post(Header { payload_bytes: FLOOD_BYTES, sequence, stamp: now() }).await?;
                }
            }
            Self::Upload => {
                while let Some(message) = wire.message().await? {
                    if (message.sequence + 1).is_multiple_of(ACKNOWLEDGED) {
                        let sequence = message.sequence / ACKNOWLEDGED;
                        wire.post(Header { payload_bytes: 0, sequence, stamp: message.stamp }).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_is_wanted() {
        let request = |path: &str| Request::parse(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(request("/get/1024"), Some(Request::Get { bytes: 1024, close: false }));
        let desktop = Channel::Desktop { pace: Pace { period: 1000, shift: 10 }, bytes: 20_000 };
        assert_eq!(request("/desktop/1000/10/20000"), Some(Request::Channel(desktop)));
        assert_eq!(request("/desktop/0/0/20000"), None);
        assert_eq!(request("/flood/9"), Some(Request::Channel(Channel::Flood { per_second: Some(9) })));
        assert_eq!(request("/flood/0"), None);
        assert_eq!(request("/echo?x"), None);
        assert_eq!(Request::parse("POST /put/9 HTTP/1.1\r\n\r\n"), Some(Request::Put { bytes: 9 }));
        assert!(asks_to_close("GET / HTTP/1.1\r\nconnection: Close\r\n\r\n"));
    }
}
