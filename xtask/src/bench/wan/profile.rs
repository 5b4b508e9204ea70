//! What the network of a measurement is like, and what is shown over it.

use clap::ValueEnum;
use serde::Serialize;

use super::link::{Fade, Way};
use super::source::{Kind, Source};

/// A user's network, and what the user does in it
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Profile {
    /// 1 Gbit/s, 1 ms
    Office,
    /// 50/10 Mbit/s, 20 ms
    Cable,
    /// 20/5 Mbit/s, 60 ms, 0.5 % loss
    Lte,
    /// 8/2 Mbit/s, 80 ms, 1 % loss
    Hotel,
    /// 20 Mbit/s, 40 ms, and 3 Mbit/s for 3 s of each 10
    Fade,
    /// 20 Mbit/s, 40 ms, a file download of the same client beside its desktop
    Shared,
    /// 500 Mbit/s, 1 ms, and an agent 5 ms away: one download
    FarAgent,
}

/// One profile's numbers.
pub(crate) struct Network {
    /// From the proxy to the client, and back.
    pub(crate) client: [Way; 2],
    /// On the agent's leg, each way; none: as fast as it goes.
    pub(crate) agent: Option<Way>,
    /// What the source offers, in Mbit/s; none: only the download.
    pub(crate) offered: Option<f64>,
    /// Whether the same client downloads a file too.
    pub(crate) download: bool,
}

/// Frames a second.
const FPS: u32 = 60;
/// Frames that one loss takes on radio links, on average.
const BURST: f64 = 2.0;

impl Profile {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn about(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    pub(crate) fn network(self) -> Network {
        let of = |down, up, rtt_ms, loss, offered| Network {
            client: [way(down, rtt_ms, loss), way(up, rtt_ms, loss)],
            agent: None,
            offered: Some(offered),
            download: false,
        };
        match self {
            Self::Office => of(1000.0, 1000.0, 1.0, 0.0, 96.0),
            Self::Cable => of(50.0, 10.0, 20.0, 0.0, 96.0),
            Self::Lte => of(20.0, 5.0, 60.0, 0.005, 38.0),
            Self::Hotel => of(8.0, 2.0, 80.0, 0.01, 16.0),
            Self::Fade => {
                let mut network = of(20.0, 5.0, 40.0, 0.0, 14.4);
                network.client[0].fade = Some(Fade { every_s: 10.0, for_s: 3.0, mbit: 3.0 });
                network
            }
            Self::Shared => Network { download: true, ..of(20.0, 5.0, 40.0, 0.0, 4.0) },
            Self::FarAgent => Network {
                // More, and two links leave no core of a small machine half idle without any peer.
                agent: Some(way(500.0, 5.0, 0.0)),
                offered: None,
                download: true,
                ..of(500.0, 500.0, 1.0, 0.0, 0.0)
            },
        }
    }

    /// Whether there is something to see with that source: without a desktop one run is enough.
    pub(crate) fn takes(self, kind: Kind) -> bool {
        let network = self.network();
        // A page of its own is seen alone.
        (network.offered.is_some() && !(kind.is_page() && network.download)) || kind == Kind::Filling
    }

    /// The source of its desktop.
    pub(crate) fn source(self, kind: Kind) -> Option<Source> {
        let offered = self.network().offered?;
        Some(Source { kind, fps: FPS, frame_bytes: (offered * 1e6 / 8.0 / f64::from(FPS)) as usize })
    }
}

/// A router's queue: 100 ms of what the link carries, but no more than that of an office.
const QUEUE_MS: f64 = 100.0;
const QUEUE_MBIT_MAX: f64 = 100.0;

fn way(mbit: f64, rtt_ms: f64, loss: f64) -> Way {
    let queue_ms = QUEUE_MS * (QUEUE_MBIT_MAX / mbit).min(1.0);
    Way { mbit, fade: None, queue_ms, delay_ms: rtt_ms / 2.0, loss, burst: BURST }
}
