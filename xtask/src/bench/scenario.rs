//! What is compared: each scenario's load, what may run beside it, and the unit its cost is counted in.

use clap::ValueEnum;
use serde::Serialize;

use super::client::Load;

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
    /// Memory of 200 sessions that rest after traffic
    Idle,
    /// 4 sessions, bulk up
    Upload,
    /// 10 desktops beside 2 floods of another client
    Noisy,
    /// 10 desktops while 300 new connections a second arrive
    Storm,
    /// Bulk down, without TLS on either leg
    Plain,
    /// 1000 sessions with 2 messages of 256 B a second each
    Scale,
    /// Sessions that open, echo once and close, 8 at a time
    Churn,
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
            Self::Echo => Load::Echo { sessions: 20, per_second: 100, bytes: 256 },
            Self::Desktop => Load::Desktop { sessions: 20, fps: 60, frame_bytes: 20_000, input_hz: 125 },
            Self::Flood | Self::Plain => Load::Flood { sessions: 4 },
            Self::Get => Load::Get { connections: 8, bytes: 1024 },
            Self::Connect => Load::Connect { connections: 8, bytes: 1024, resume: false },
            Self::Idle => Load::Idle { sessions: 200, bytes: 20_000 },
            Self::Upload => Load::Upload { sessions: 4 },
            Self::Noisy | Self::Storm => DESKTOP,
            Self::Scale => Load::Echo { sessions: 1000, per_second: 2, bytes: 256 },
            Self::Churn => Load::Churn { sessions: 8, bytes: 256 },
        }
    }

    /// What runs beside it, in a client of its own.
    pub(super) fn beside(self) -> Option<Load> {
        match self {
            Self::Noisy => Some(Load::Flood { sessions: 2 }),
            Self::Storm => Some(Load::Storm { per_second: 300, bytes: 1024 }),
            _ => None,
        }
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

impl Unit {
    /// What that load's work is counted in.
    pub(super) fn of(load: Load) -> Self {
        let micro = |name| Self { name, size: 1.0, cost: "CPU us", per_second: 1e6 };
        match load {
            Load::Echo { .. } => micro("echo"),
            Load::Desktop { .. } => micro("frame"),
            Load::Flood { .. } | Load::Upload { .. } => {
                Self { name: "GB", size: 1e9, cost: "CPU s", per_second: 1.0 }
            }
            Load::Get { .. } => micro("request"),
            Load::Connect { .. } | Load::Storm { .. } => micro("connection"),
            Load::Churn { .. } => micro("session"),
            Load::Idle { .. } => Self { name: "session", size: 1.0, cost: "kB", per_second: 1.0 },
        }
    }
}
