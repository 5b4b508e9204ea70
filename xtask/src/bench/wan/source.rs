//! The agent's side of a desktop: stamped frames, and an answer to each input. One kind writes for as long as its socket
//! takes frames; the other makes them smaller while what the client acknowledges is late, as remote desktops do.

use std::io;

use clap::ValueEnum;
use harness::websocket::accepted;
use rustix::net::sockopt::set_tcp_congestion;
use serde::{Deserialize, Serialize};
use tokio::io::{join, split};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::super::agent::{AgentPlan, serve_each};
use super::super::wire::{Duplex, Header, Pace, Wire, now, payload, wrong};

/// What a client sees of its agent.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Fills its socket
    Filling,
    /// Adapts to what the client has acknowledged
    Adaptive,
    /// Adapts, with display and input on a connection each
    Channels,
    /// The same on one connection of HTTP/2 (RFC 8441)
    ChannelsH2,
    /// A page of 60 parts by HTTP/1.1, over and over; its age is the time to the last part
    Page,
    /// The same by HTTP/2
    PageH2,
}

impl Kind {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::ChannelsH2 | Self::PageH2)
    }

    pub(crate) fn is_page(self) -> bool {
        matches!(self, Self::Page | Self::PageH2)
    }
}

/// A desktop's frames.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Source {
    pub(crate) kind: Kind,
    pub(crate) fps: u32,
    pub(crate) frame_bytes: usize,
}

/// The answer to an input; frames are longer.
pub(crate) const ANSWER_BYTES: usize = 16;
/// An input; an acknowledgement has no payload.
pub(crate) const INPUT_BYTES: usize = 40;
/// A message of the download.
const DOWNLOAD_BYTES: usize = 64 * 1024;

/// What the agent's process is told.
#[derive(Deserialize, Serialize)]
pub(crate) struct SourcePlan {
    pub(crate) agent: AgentPlan,
    /// The congestion control of its sockets; none: the system's.
    pub(crate) congestion: Option<String>,
}

/// Serves until it is killed.
pub(crate) async fn serve(plan: SourcePlan) -> io::Result<()> {
    let SourcePlan { agent, congestion } = plan;
    let prepare = |stream: &TcpStream| match &congestion {
        Some(name) => Ok(set_tcp_congestion(stream, name)?),
        None => Ok(()),
    };
    serve_each(&agent, prepare, connection).await
}

async fn connection(stream: Box<dyn Duplex>) -> io::Result<()> {
    let (mut reader, mut writer) = halves(stream);
    let mut next = reader.head().await?;
    while let Some(bytes) = next.as_deref().and_then(part) {
        writer.send(&[&part_head(bytes)[..], &part_body(bytes)].concat()).await?;
        next = reader.head().await?;
    }
    let Some(head) = next else { return Ok(()) };
    let path = head.split(' ').nth(1).unwrap_or_default();
    match path.strip_prefix("/frames/") {
        Some(source) => {
            let source = path_to_source(source).ok_or_else(|| wrong(&format!("no source: {path}")))?;
            writer.send(accepted(&head, "").as_bytes()).await?;
            show(source, reader, writer).await
        }
        None if path == "/input" => {
            writer.send(accepted(&head, "").as_bytes()).await?;
            while let Some(message) = reader.message().await? {
                writer.post(Header { payload_bytes: ANSWER_BYTES, ..message }).await?;
            }
            Ok(())
        }
        None if path == "/download" => {
            writer.send(accepted(&head, "").as_bytes()).await?;
            for sequence in 0.. {
                writer.post(Header { payload_bytes: DOWNLOAD_BYTES, sequence, stamp: now() }).await?;
            }
            Ok(())
        }
        None => Err(wrong(&format!("not a request of the load: {path}"))),
    }
}

/// The bytes of a page's part, where one is asked for.
fn part(head: &str) -> Option<usize> {
    head.strip_prefix("GET /get/")?.split(' ').next()?.parse().ok()
}

fn part_head(bytes: usize) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").into_bytes()
}

fn part_body(bytes: usize) -> Vec<u8> {
    payload(0, usize::MAX).iter().copied().cycle().take(bytes).collect()
}

/// The parts of a page, in the order in which they are asked for: 1 to 400 kB, most of them small.
pub(crate) fn parts() -> impl Iterator<Item = usize> {
    const PARTS: usize = 60;
    (0..PARTS).map(|at| (1000.0 * 400.0_f64.powf((at * 37 % PARTS) as f64 / (PARTS - 1) as f64)) as usize)
}

/// The two directions of a stream, each on its own: a frame that has to wait holds back no input.
pub(crate) fn halves(stream: Box<dyn Duplex>) -> (Wire, Wire) {
    let (reader, writer) = split(stream);
    (
        Wire::new(Box::new(join(reader, tokio::io::sink()))),
        Wire::new(Box::new(join(tokio::io::empty(), writer))),
    )
}

/// The path that asks for a source.
pub(crate) fn path(source: Source) -> String {
    let kind = if source.kind == Kind::Filling { Kind::Filling } else { Kind::Adaptive }.name();
    format!("/frames/{kind}/{}/{}", source.fps, source.frame_bytes)
}

fn path_to_source(path: &str) -> Option<Source> {
    let mut parts = path.split('/');
    let kind = match parts.next()? {
        "filling" => Kind::Filling,
        "adaptive" => Kind::Adaptive,
        _ => return None,
    };
    let fps = parts.next()?.parse().ok().filter(|fps| *fps > 0)?;
    Some(Source { kind, fps, frame_bytes: parts.next()?.parse().ok()? })
}

/// What comes from the client.
enum Heard {
    /// An input of that time.
    Input(u64),
    /// A frame that was stamped so has arrived.
    Acknowledged(u64),
}

async fn show(source: Source, mut reader: Wire, mut writer: Wire) -> io::Result<()> {
    let (tell, mut heard) = mpsc::unbounded_channel();
    let listens = async move {
        while let Some(message) = reader.message().await? {
            let event = match message.payload_bytes {
                0 => Heard::Acknowledged(message.stamp),
                _ => Heard::Input(message.stamp),
            };
            if tell.send(event).is_err() {
                break;
            }
        }
        Ok(())
    };
    let shows = async {
        let mut ticks = Pace::new(f64::from(source.fps)).ticks()?;
        let (mut quality, mut sequence) = (Quality::default(), 0);
        loop {
            tokio::select! {
                biased;
                event = heard.recv() => match event {
                    None => return Ok(()),
                    Some(Heard::Acknowledged(stamp)) => quality.acknowledged(now().saturating_sub(stamp)),
                    Some(Heard::Input(stamp)) => {
                        writer.post(Header { payload_bytes: ANSWER_BYTES, sequence, stamp }).await?;
                        sequence += 1;
                    }
                },
                tick = ticks.next() => {
                    let stamp = tick?;
                    // A desktop shows what is there now: frames that were missed are not made up for.
                    let is_late = now().saturating_sub(stamp) > 1_000_000_000 / u64::from(source.fps);
                    if is_late || (source.kind == Kind::Adaptive && !quality.may_send()) {
                        continue;
                    }
                    let bytes = match source.kind {
                        Kind::Filling => source.frame_bytes,
                        _ => quality.bytes(source.frame_bytes),
                    };
                    writer.post(Header { payload_bytes: bytes, sequence, stamp: now() }).await?;
                    sequence += 1;
                }
            }
        }
    };
    tokio::select! { ended = listens => ended, ended = shows => ended }
}

/// How good the frames are that a client gets: worse while they are late, then better again, and none while too many are
/// on their way.
struct Quality {
    share: f64,
    /// The fastest acknowledgement so far, in nanoseconds.
    fastest: u64,
    in_flight: u32,
}

/// Frames on their way at most.
const IN_FLIGHT_MAX: u32 = 16;
/// Later than the fastest by this much is late, in nanoseconds.
const LATE: u64 = 60_000_000;
const SHARE_MIN: f64 = 0.05;

impl Default for Quality {
    fn default() -> Self {
        Self { share: 0.25, fastest: u64::MAX, in_flight: 0 }
    }
}

impl Quality {
    fn acknowledged(&mut self, after: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.fastest = self.fastest.min(after);
        let change = if after > self.fastest + LATE { 0.93 } else { 1.01 };
        self.share = (self.share * change).clamp(SHARE_MIN, 1.0);
    }

    fn may_send(&mut self) -> bool {
        let may = self.in_flight < IN_FLIGHT_MAX;
        self.in_flight += u32::from(may);
        may
    }

    fn bytes(&self, whole: usize) -> usize {
        ((whole as f64 * self.share) as usize).max(ANSWER_BYTES + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_asks_for_a_source() {
        let source = Source { kind: Kind::Adaptive, fps: 60, frame_bytes: 9000 };
        assert_eq!(path_to_source(path(source).strip_prefix("/frames/").unwrap_or_default()), Some(source));
        assert_eq!(path_to_source("filling/0/9"), None);
    }

    #[test]
    fn a_page_has_small_parts_and_large_ones() {
        let parts: Vec<usize> = parts().collect();
        let (least, most) = (parts.iter().min().copied(), parts.iter().max().copied());
        assert_eq!((parts.len(), least), (60, Some(1000)));
        assert!((399_000..=400_000).contains(&most.unwrap_or_default()), "{most:?}");
        assert_eq!(part("GET /get/1000 HTTP/1.1"), Some(1000));
    }

    #[test]
    fn frames_get_smaller_while_they_are_late_and_stop_while_too_many_are_out() {
        let mut quality = Quality::default();
        quality.acknowledged(20_000_000);
        let before = quality.share;
        quality.acknowledged(90_000_000);
        assert!(quality.share < before);
        quality.acknowledged(70_000_000);
        assert_eq!((0..100).filter(|_| quality.may_send()).count(), IN_FLIGHT_MAX as usize);
        quality.acknowledged(20_000_000);
        assert!(quality.may_send());
    }
}
