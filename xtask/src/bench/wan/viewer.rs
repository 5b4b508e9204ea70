//! The client's side of a desktop: takes frames as they come and acknowledges each, asks by inputs how far the agent is
//! away, and downloads a file beside it where the profile has one. Or the client of a page, which asks for its parts.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::pki_types::ServerName;

use super::super::http2::Client;
use super::super::wire::{Duplex, Header, Pace, Wire, connector, now, wrong};
use super::source::{ANSWER_BYTES, INPUT_BYTES, Kind, Source, halves, parts, path};

/// What the client's process is told.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ViewerPlan {
    pub(crate) connect: SocketAddr,
    pub(crate) prefix: String,
    pub(crate) cert_pem: String,
    pub(crate) source: Option<Source>,
    pub(crate) download: bool,
    pub(crate) seconds: f64,
    /// When the link began, in nanoseconds of the machine's clock: all times count from here.
    pub(crate) epoch: u64,
}

impl ViewerPlan {
    /// Now, and the age of what was stamped then, in ms.
    fn seen(&self, stamp: u64) -> (f64, f64) {
        let (time, ms) = (now(), |nanoseconds: u64| nanoseconds as f64 / 1e6);
        (ms(time - self.epoch), ms(time.saturating_sub(stamp)))
    }
}

/// What it has seen.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct View {
    /// When each frame came, and how old it was, in ms.
    pub(crate) frames: Vec<(f64, f64)>,
    /// When each answer to an input came, and after how long, in ms.
    pub(crate) inputs: Vec<(f64, f64)>,
    /// Bytes of frames, and of the download, by tenths of a second.
    pub(crate) bytes: Vec<u64>,
}

/// Inputs a second: as many as a moving pointer makes when it is slow.
const INPUTS: f64 = 25.0;
/// For opening a connection over a bad link.
const PATIENCE: Duration = Duration::from_secs(20);
const BIN: Duration = Duration::from_millis(100);

/// Looks for as long as it is told.
pub(crate) async fn run(plan: ViewerPlan) -> io::Result<View> {
    let received = AtomicU64::new(0);
    let mut view = View::default();
    let desktop = async {
        match plan.source {
            Some(source) if source.kind.is_page() => {
                pages(&plan, source.kind, &received, &mut view.frames).await
            }
            Some(source) if matches!(source.kind, Kind::Channels | Kind::ChannelsH2) => {
                channels(&plan, source, &received, &mut view.frames, &mut view.inputs).await
            }
            Some(source) => desktop(&plan, source, &received, &mut view.frames, &mut view.inputs).await,
            None => std::future::pending().await,
        }
    };
    let download =
        async { if plan.download { download(&plan, &received).await } else { std::future::pending().await } };
    let mut bins: Vec<u64> = Vec::new();
    let clock = async {
        let end = now() + (plan.seconds * 1e9) as u64;
        while now() < end {
            sleep(BIN).await;
            let at = ((now() - plan.epoch) / BIN.as_nanos() as u64) as usize;
            bins.resize(bins.len().max(at + 1), 0);
            bins[at] += received.swap(0, Ordering::Relaxed);
        }
        Ok::<_, io::Error>(())
    };
    tokio::select! {
        ended = desktop => ended?,
        ended = download => ended?,
        ended = clock => ended?,
    }
    view.bytes = bins;
    Ok(view)
}

async fn desktop(
    plan: &ViewerPlan,
    source: Source,
    received: &AtomicU64,
    frames: &mut Vec<(f64, f64)>,
    inputs: &mut Vec<(f64, f64)>,
) -> io::Result<()> {
    let (mut reader, mut writer) = open(plan, &path(source)).await?;
    let mut ticks = Pace::new(INPUTS).ticks()?;
    let mut sequence = 0;
    let mut said = |payload_bytes, stamp| {
        sequence += 1;
        Header { payload_bytes, sequence: sequence - 1, stamp }
    };
    loop {
        tokio::select! {
            tick = ticks.next() => writer.post(said(INPUT_BYTES, tick?)).await?,
            message = reader.message() => {
                let Some(message) = message? else { return Err(wrong("the desktop ended early")) };
                let seen = plan.seen(message.stamp);
                received.fetch_add(message.payload_bytes as u64, Ordering::Relaxed);
                if message.payload_bytes == ANSWER_BYTES {
                    inputs.push(seen);
                } else {
                    frames.push(seen);
                    writer.post(said(0, message.stamp)).await?;
                }
            }
        }
    }
}

/// Display and input, each a session of its own.
async fn channels(
    plan: &ViewerPlan,
    source: Source,
    received: &AtomicU64,
    frames: &mut Vec<(f64, f64)>,
    inputs: &mut Vec<(f64, f64)>,
) -> io::Result<()> {
    let client;
    let [(mut display, mut acknowledge), (mut answers, mut input)] = if source.kind == Kind::ChannelsH2 {
        // It serves its streams for as long as they are used.
        client = Client::new(connect(plan, true).await?, plan.connect).await?;
        let open = async |path: &str| {
            Ok::<_, io::Error>(halves(client.websocket(&format!("{}{path}", plan.prefix)).await?))
        };
        [open(&path(source)).await?, open("/input").await?]
    } else {
        [open(plan, &path(source)).await?, open(plan, "/input").await?]
    };
    let shows = async {
        for sequence in 0.. {
            let Some(message) = display.message().await? else {
                return Err(wrong("the display ended early"));
            };
            frames.push(plan.seen(message.stamp));
            received.fetch_add(message.payload_bytes as u64, Ordering::Relaxed);
            acknowledge.post(Header { payload_bytes: 0, sequence, stamp: message.stamp }).await?;
        }
        Ok(())
    };
    let asks = async {
        let mut ticks = Pace::new(INPUTS).ticks()?;
        for sequence in 0.. {
            input.post(Header { payload_bytes: INPUT_BYTES, sequence, stamp: ticks.next().await? }).await?;
        }
        Ok(())
    };
    let hears = async {
        loop {
            let Some(message) = answers.message().await? else { return Err(wrong("the input ended early")) };
            inputs.push(plan.seen(message.stamp));
        }
    };
    tokio::select! { ended = shows => ended, ended = asks => ended, ended = hears => ended }
}

/// Connections that a browser makes to one host for HTTP/1.1.
const PAGE_CONNECTIONS: usize = 6;

/// A page after the other, each by connections of its own.
async fn pages(
    plan: &ViewerPlan,
    kind: Kind,
    received: &AtomicU64,
    shown: &mut Vec<(f64, f64)>,
) -> io::Result<()> {
    loop {
        let begun = now();
        timeout(PATIENCE, page(plan, kind, received)).await.map_err(|_| wrong("no page in time"))??;
        shown.push(plan.seen(begun));
    }
}

async fn page(plan: &ViewerPlan, kind: Kind, received: &AtomicU64) -> io::Result<()> {
    let path = |bytes: usize| format!("{}/get/{bytes}", plan.prefix);
    if kind == Kind::PageH2 {
        let client = Client::new(connect(plan, true).await?, plan.connect).await?;
        let parts = parts().map(async |bytes| {
            client.get(&path(bytes), bytes).await?;
            received.fetch_add(bytes as u64, Ordering::Relaxed);
            Ok(())
        });
        return try_join_all(parts).await.map(drop);
    }
    let left = RefCell::new(parts());
    let connections = (0..PAGE_CONNECTIONS).map(async |_| {
        let mut wire = Wire::new(connect(plan, false).await?);
        loop {
            let Some(bytes) = left.borrow_mut().next() else { break };
            let asked = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", path(bytes), plan.connect);
            wire.send(asked.as_bytes()).await?;
            match wire.head().await? {
                Some(head) if head.starts_with("HTTP/1.1 200 ") => wire.skip(bytes).await?,
                answer => return Err(wrong(&format!("no 200 but {answer:?}"))),
            }
            received.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    try_join_all(connections).await.map(drop)
}

async fn download(plan: &ViewerPlan, received: &AtomicU64) -> io::Result<()> {
    let (mut reader, _writer) = open(plan, "/download").await?;
    while let Some(message) = reader.message().await? {
        received.fetch_add(message.payload_bytes as u64, Ordering::Relaxed);
    }
    Err(wrong("the download ended early"))
}

async fn open(plan: &ViewerPlan, path: &str) -> io::Result<(Wire, Wire)> {
    timeout(PATIENCE, upgrade(plan, path)).await.map_err(|_| wrong("no session in time"))?
}

async fn upgrade(plan: &ViewerPlan, path: &str) -> io::Result<(Wire, Wire)> {
    let (mut reader, mut writer) = halves(connect(plan, false).await?);
    let head = format!(
        "GET {}{path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        plan.prefix, plan.connect
    );
    writer.send(head.as_bytes()).await?;
    match reader.head().await? {
        Some(answer) if answer.starts_with("HTTP/1.1 101 ") => Ok((reader, writer)),
        answer => Err(wrong(&format!("no 101 but {answer:?}"))),
    }
}

async fn connect(plan: &ViewerPlan, http2: bool) -> io::Result<Box<dyn Duplex>> {
    let stream = TcpStream::connect(plan.connect).await?;
    stream.set_nodelay(true)?;
    let tls = connector(&plan.cert_pem, false, http2)?;
    Ok(Box::new(tls.connect(ServerName::from(plan.connect.ip()), stream).await?))
}
