//! What is compared: each scenario's load, what may run beside it, and the unit its cost is counted in.

use clap::ValueEnum;
use harness::certificates::KeyKind;
use serde::Serialize;

use super::client::Load;
use super::peers::Peer;

/// A kind of work, in the order of importance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Scenario {
    /// 20 sessions, each 100 messages of 256 B a second, and back
    Echo,
    /// 20 sessions, each 60 frames of 20 kB a second and 125 input events
    Desktop,
    /// 4 sessions, bulk down
    Flood,
    /// Requests of 1 KiB on 8 kept connections
    Get,
    /// 8 at a time: TCP, full handshake, request, close
    Connect,
    /// The same with sessions resumed
    Resume,
    /// Memory of 200 sessions that rest after traffic
    Idle,
    /// 4 sessions, bulk up
    Upload,
    /// 10 desktops beside 2 floods of 262 MB a second each, of another client
    Noisy,
    /// 10 desktops while 300 new connections a second arrive
    Storm,
    /// The same with 600 a second
    #[value(name = "storm-600")]
    #[serde(rename = "storm-600")]
    Storm600,
    /// Storm with an RSA-2048 certificate: one signature is a step of half a millisecond
    StormRsa,
    /// 10 desktops beside 300 new connections a second and 2 floods, of two other clients
    StormFlood,
    /// 100 new connections a second ask for /health beside 400 attackers of eight kinds
    Attack,
    /// Bulk down, without TLS on either leg
    Plain,
    /// 2000 messages of 256 B a second, and back, over 10 sessions
    #[value(name = "scale-10")]
    #[serde(rename = "scale-10")]
    Scale10,
    /// The same over 1,000 sessions
    #[value(name = "scale-1000")]
    #[serde(rename = "scale-1000")]
    Scale1000,
    /// The same over 9,000 sessions
    #[value(name = "scale-9000")]
    #[serde(rename = "scale-9000")]
    Scale9000,
    /// Sessions that open, echo once and close, 8 at a time
    Churn,
    /// 10 desktops beside 8 downloads of the same client, 400 of 250 kB a second, a connection each
    Downloads,
    /// The same downloads on one connection of HTTP/2
    DownloadsH2,
    /// Requests of 1 KiB by HTTP/2, 100 at a time on one connection
    GetH2,
    /// Requests of 1 KiB by HTTP/2, one at a time on 8 connections
    #[value(name = "get-h2-8")]
    #[serde(rename = "get-h2-8")]
    GetH2x8,
    /// Bodies of 10 MB up by HTTP/2, 4 at a time on one connection
    UploadH2,
    /// Memory of 200 connections of HTTP/2 that rest after a request
    IdleH2,
}

/// What one unit of work is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    /// How many of the load's own units it is.
    pub(super) size: f64,
    /// What its cost is given in.
    pub(super) cost: &'static str,
    /// How many of those a second is.
    pub(super) per_second: f64,
}

/// The three sizes of the same traffic.
pub(super) const SCALES: [Scenario; 3] = [Scenario::Scale10, Scenario::Scale1000, Scenario::Scale9000];
const SCALED_PER_SECOND: f64 = 2000.0;
const DESKTOP: Load = Load::Desktop { sessions: 10, fps: 60, frame_bytes: 20_000, input_hz: 125 };

impl Scenario {
    /// Its name on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Its description on the command line.
    pub(super) fn about(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// What is measured.
    pub(super) fn load(self) -> Load {
        match self {
            Self::Echo => Load::Echo { sessions: 20, per_second: 100.0, bytes: 256 },
            Self::Desktop => Load::Desktop { sessions: 20, fps: 60, frame_bytes: 20_000, input_hz: 125 },
            Self::Flood | Self::Plain => Load::Flood { sessions: 4, per_second: None },
            Self::Get => Load::Get { connections: 8, bytes: 1024 },
            Self::Connect => Load::Connect { connections: 8, bytes: 1024, resume: false },
            Self::Resume => Load::Connect { connections: 8, bytes: 1024, resume: true },
            Self::Idle => Load::Idle { sessions: 200, bytes: 20_000 },
            Self::Upload => Load::Upload { sessions: 4 },
            Self::Noisy
            | Self::Storm
            | Self::Storm600
            | Self::StormRsa
            | Self::StormFlood
            | Self::Downloads
            | Self::DownloadsH2 => DESKTOP,
            Self::Attack => Load::Health { per_second: 100.0 },
            Self::Scale10 => scaled(10),
            Self::Scale1000 => scaled(1_000),
            Self::Scale9000 => scaled(9_000),
            Self::Churn => Load::Churn { sessions: 8, bytes: 256 },
            Self::GetH2 => Load::GetHttp2 { connections: 1, streams: 100, bytes: 1024 },
            Self::GetH2x8 => Load::GetHttp2 { connections: 8, streams: 1, bytes: 1024 },
            Self::UploadH2 => Load::UploadHttp2 { streams: 4, bytes: 10_000_000 },
            Self::IdleH2 => Load::IdleHttp2 { connections: 200, bytes: 1024 },
        }
    }

    /// What runs beside it, each in a client of its own.
    pub(super) fn beside(self) -> Vec<Load> {
        // The same for every peer: unpaced, the one that floods most would leave the least of the machine to the
        // desktops' own client and agent.
        let flood = Load::Flood { sessions: 2, per_second: Some(4_000) };
        let storm = |per_second| Load::Storm { per_second, bytes: 1024 };
        match self {
            Self::Noisy => vec![flood],
            Self::Storm | Self::StormRsa => vec![storm(300.0)],
            Self::Storm600 => vec![storm(600.0)],
            Self::Attack => vec![Load::Attack { attackers: 400 }],
            Self::StormFlood => vec![storm(300.0), flood],
            Self::Downloads | Self::DownloadsH2 => {
                let http2 = self == Self::DownloadsH2;
                vec![Load::Downloads { http2, count: 8, per_second: 400.0, bytes: 250_000 }]
            }
            _ => Vec::new(),
        }
    }

    /// What the peers' certificate is for; an agent's is always ECDSA.
    pub(super) fn key(self) -> KeyKind {
        if self == Self::StormRsa { KeyKind::Rsa } else { KeyKind::Ecdsa }
    }

    /// Whether TLS 1.2 to the agent is a column of its own, where it is asked for.
    pub(super) fn is_headline(self) -> bool {
        matches!(self, Self::Echo | Self::Desktop | Self::Flood | Self::Get | Self::Connect)
    }

    /// Why a peer can't be measured in it.
    pub(super) fn leaves_out(self, peer: Peer) -> Option<&'static str> {
        match peer {
            Peer::NginxRecipe if self == Self::Scale9000 => Some("it allows 4,096 sockets per worker"),
            Peer::Direct | Peer::L4 | Peer::L4Splice if self == Self::Attack => Some("it has no /health"),
            Peer::Direct | Peer::L4 | Peer::L4Splice if self.is_http2() => Some("the agent has no HTTP/2"),
            Peer::L4Splice if self == Self::Scale9000 => Some("it would need 54,000 descriptors"),
            _ => peer.impossible(),
        }
    }

    /// Whether clients speak HTTP/2.
    pub(super) fn is_http2(self) -> bool {
        self.load().is_http2() || self.beside().iter().any(|load| load.is_http2())
    }

    /// Whether both legs are secured.
    pub(super) fn is_secure(self) -> bool {
        self != Self::Plain
    }

    /// What its cost is counted in.
    pub(super) fn unit(self) -> Unit {
        Unit::of(self.load())
    }
}

fn scaled(sessions: u32) -> Load {
    let per_second = SCALED_PER_SECOND / f64::from(sessions);
    Load::Echo { sessions: sessions.into(), per_second, bytes: 256 }
}

impl Unit {
    /// What that load's work is counted in.
    pub(super) fn of(load: Load) -> Self {
        let micro = |name| Self { name, size: 1.0, cost: "CPU us", per_second: 1e6 };
        match load {
            Load::Echo { .. } | Load::Bounce { .. } => micro("echo"),
            Load::Desktop { .. } => micro("frame"),
            Load::Flood { .. } | Load::Upload { .. } | Load::UploadHttp2 { .. } => {
                Self { name: "GB", size: 1e9, cost: "CPU s", per_second: 1.0 }
            }
            Load::Get { .. } | Load::GetHttp2 { .. } | Load::Downloads { .. } => micro("request"),
            Load::Connect { .. } | Load::Storm { .. } | Load::Health { .. } => micro("connection"),
            Load::Attack { .. } => micro("attack"),
            Load::Churn { .. } => micro("session"),
            Load::IdleHttp2 { .. } => Self { name: "connection", size: 1.0, cost: "kB", per_second: 1.0 },
            Load::Idle { .. } => Self { name: "session", size: 1.0, cost: "kB", per_second: 1.0 },
        }
    }
}
