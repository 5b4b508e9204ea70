//! What a client and its agents will say in one life, all of it from one seed.

use std::time::Duration;

use dcv_splice::transport::endpoint::StreamEnd;

/// One life.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) client_tls: bool,
    pub(crate) agent_tls: bool,
    /// The client speaks HTTP/2 from the first byte on.
    pub(crate) http2: bool,
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) session: Option<Session>,
}

/// A request and its response.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) request: Body,
    pub(crate) response: Body,
    /// Whether the agent answers before it has read the request's body.
    pub(crate) early: bool,
    /// Interim responses before the final one.
    pub(crate) interim: usize,
}

/// How a body is framed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Frame {
    None,
    Length,
    Chunked,
    UntilEnd,
}

/// A body.
#[derive(Clone)]
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    pub(crate) frame: Frame,
    /// The body as it stands on the wire.
    pub(crate) wire: Vec<u8>,
}

/// A plan that failed is printed; its bytes would hide it.
impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}({})", self.frame, self.bytes.len())
    }
}

/// Who ends a session first, and how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ends {
    ClientFirst,
    AgentFirst,
    /// FIN without `close_notify`, where there is TLS.
    ClientCut,
    AgentCut,
}

/// What comes after a 101.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) to_agent: Vec<u8>,
    pub(crate) to_client: Vec<u8>,
    /// Bytes of either that ride right behind the head.
    pub(crate) early: (usize, usize),
    pub(crate) ends: Ends,
    /// How long the client does not read.
    pub(crate) pause: Duration,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} {} {:?}", self.ends, self.to_agent.len(), self.to_client.len(), self.early)
    }
}

impl Session {
    /// How the agent and the client see their streams end: what was cut is not called clean on the other side.
    pub(crate) fn ends_seen(&self, plan: &Plan) -> (StreamEnd, StreamEnd) {
        let cut = |side, from, to| {
            if self.ends == side && from && to { StreamEnd::Truncated } else { StreamEnd::Clean }
        };
        (
            cut(Ends::ClientCut, plan.client_tls, plan.agent_tls),
            cut(Ends::AgentCut, plan.agent_tls, plan.client_tls),
        )
    }
}

impl Plan {
    /// The life of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let exchanges = (0..rng.usize(..4)).map(|_| Exchange::of(&mut rng)).collect::<Vec<_>>();
        let session = (exchanges.is_empty() || rng.bool()).then(|| Session::of(&mut rng));
        Self { client_tls: rng.bool(), agent_tls: rng.bool(), http2: false, exchanges, session }
    }

    /// The same life by HTTP/2. Without TLS: who has it there says in its handshake what it speaks.
    pub(crate) fn with_http2(self) -> Self {
        Self { client_tls: false, http2: true, ..self }
    }
}

impl Plan {
    /// Bytes of all bodies and streams together.
    pub(crate) fn size(&self) -> usize {
        let bodies =
            self.exchanges.iter().map(|exchange| exchange.request.wire.len() + exchange.response.wire.len());
        let session = self.session.iter().map(|session| session.to_agent.len() + session.to_client.len());
        bodies.chain(session).sum()
    }
}

impl Exchange {
    fn of(rng: &mut fastrand::Rng) -> Self {
        let size = [0, 10, 5000, 70_000][rng.usize(..4)];
        let request = match rng.u8(..3) {
            0 => Body::none(),
            1 => Body::length(rng, size),
            _ => Body::chunked(rng, size),
        };
        let size = [0, 10, 5000, 70_000][rng.usize(..4)];
        let response = match rng.u8(..4) {
            0 => Body::none(),
            1 => Body::length(rng, size),
            2 => Body::chunked(rng, size),
            _ => Body::until_end(rng, size),
        };
        Self { request, response, early: false, interim: rng.usize(..2) }
    }
}

impl Session {
    fn of(rng: &mut fastrand::Rng) -> Self {
        let size = [1, 100, 30_000, 300_000];
        let (up, down) = (rng.choice(size).unwrap_or(1), rng.choice(size).unwrap_or(1));
        let (to_agent, to_client) = (bytes(rng, up), bytes(rng, down));
        let early = (rng.usize(..=to_agent.len().min(3000)), rng.usize(..=to_client.len().min(3000)));
        let ends = [Ends::ClientFirst, Ends::AgentFirst, Ends::ClientCut, Ends::AgentCut][rng.usize(..4)];
        Self { to_agent, to_client, early, ends, pause: Duration::ZERO }
    }
}

fn bytes(rng: &mut fastrand::Rng, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    rng.fill(&mut bytes);
    bytes
}

impl Body {
    pub(crate) fn none() -> Self {
        Self { bytes: Vec::new(), frame: Frame::None, wire: Vec::new() }
    }

    pub(crate) fn length(rng: &mut fastrand::Rng, size: usize) -> Self {
        let bytes = bytes(rng, size);
        Self { wire: bytes.clone(), bytes, frame: Frame::Length }
    }

    pub(crate) fn until_end(rng: &mut fastrand::Rng, size: usize) -> Self {
        Self { frame: Frame::UntilEnd, ..Self::length(rng, size) }
    }

    /// In chunks of any size, some with extensions, some bodies with a trailer.
    pub(crate) fn chunked(rng: &mut fastrand::Rng, size: usize) -> Self {
        let bytes = bytes(rng, size);
        let mut wire = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rng.usize(1..=rest.len().min(40_000)));
            let extension = if rng.bool() { ";a=b" } else { "" };
            wire.extend(format!("{:x}{extension}\r\n", chunk.len()).into_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
            rest = after;
        }
        wire.extend_from_slice(if rng.bool() { b"0\r\n\r\n" } else { b"0\r\nX-Sum: 1\r\n\r\n" });
        Self { bytes, frame: Frame::Chunked, wire }
    }

    /// The header lines of its framing.
    pub(crate) fn header(&self) -> String {
        match self.frame {
            Frame::None | Frame::UntilEnd => String::new(),
            Frame::Length => format!("Content-Length: {}\r\n", self.bytes.len()),
            Frame::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
        }
    }

    /// What a talk notes of it.
    pub(crate) fn digest(&self) -> String {
        digest(&self.bytes)
    }
}

/// Length and content of a body in a few characters (FNV-1a).
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}:{hash:x}", bytes.len())
}
