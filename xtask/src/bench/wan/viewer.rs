//! The client's side of a desktop: takes frames as they come and acknowledges each, asks by inputs how far the agent is
//! away, and downloads a file beside it where the profile has one.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::pki_types::ServerName;

use super::super::wire::{Duplex, Header, Pace, Wire, connector, now, wrong};
use super::source::{ANSWER_BYTES, INPUT_BYTES, Source, halves, path};

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
    let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
    loop {
        tokio::select! {
            tick = ticks.next() => writer.post(said(INPUT_BYTES, tick?)).await?,
            message = reader.message() => {
                let Some(message) = message? else { return Err(wrong("the desktop ended early")) };
                let time = now();
                let seen = (ms(time - plan.epoch), ms(time.saturating_sub(message.stamp)));
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
    let stream = TcpStream::connect(plan.connect).await?;
    stream.set_nodelay(true)?;
    let tls = connector(&plan.cert_pem, false)?;
    let stream: Box<dyn Duplex> = Box::new(tls.connect(ServerName::from(plan.connect.ip()), stream).await?);
    let (mut reader, mut writer) = halves(stream);
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
