//! Hundreds of clients who mean no good, of eight kinds, each of whom comes back as soon as it has been got rid of. They
//! are another client's process, and take what the machine gives them; nothing of theirs is checked.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::load::{Shared, Window};
use super::wire::now;

/// Between two bytes of who is slow, and before who was got rid of comes back.
const DRIP: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(10);
/// The first bytes of a `ClientHello`.
const HALF_A_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
const LARGE: usize = 100_000_000;

/// What an attacker does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    SaysNothing,
    StopsInTheHandshake,
    DripsAHead,
    DripsABody,
    TakesNothing,
    AsksAheadAndTakesNothing,
    SaysWhatIsNoHttp,
    Resets,
}

const KINDS: [Kind; 8] = [
    Kind::SaysNothing,
    Kind::StopsInTheHandshake,
    Kind::DripsAHead,
    Kind::DripsABody,
    Kind::TakesNothing,
    Kind::AsksAheadAndTakesNothing,
    Kind::SaysWhatIsNoHttp,
    Kind::Resets,
];

/// Is the attacker of that number until the load is over.
pub(super) async fn attack(shared: Arc<Shared>, number: usize) -> std::io::Result<()> {
    let kind = KINDS[number % KINDS.len()];
    let window = shared.ready().await;
    while now() < window.last {
        let left = Duration::from_nanos(window.last.saturating_sub(now()));
        // However it ends, it is got rid of.
        let _ = timeout(left, once(&shared, kind, window)).await;
        shared.count(1);
        sleep(PAUSE).await;
    }
    Ok(())
}

async fn once(shared: &Shared, kind: Kind, window: Window) -> std::io::Result<()> {
    let prefix = shared.prefix();
    match kind {
        Kind::SaysNothing => until_closed(&mut shared.dial().await?).await,
        Kind::StopsInTheHandshake => {
            let mut stream = shared.dial().await?;
            stream.write_all(HALF_A_HELLO).await?;
            until_closed(&mut stream).await
        }
        Kind::DripsAHead => drip(shared, window, "GET /health HTTP/1.1\r\nHost: p\r\nX: ").await,
        Kind::DripsABody => {
            let head = format!("POST {prefix}/get/1 HTTP/1.1\r\nHost: p\r\nContent-Length: {LARGE}\r\n\r\n");
            drip(shared, window, &head).await
        }
        Kind::TakesNothing => {
            hang(shared, &format!("GET {prefix}/get/{LARGE} HTTP/1.1\r\nHost: p\r\n\r\n")).await
        }
        Kind::AsksAheadAndTakesNothing => {
            hang(shared, &"GET /health HTTP/1.1\r\nHost: p\r\n\r\n".repeat(1000)).await
        }
        Kind::SaysWhatIsNoHttp => {
            let mut wire = shared.open().await?;
            wire.send(b"\0\x01\x02 no such thing\r\n\r\n").await?;
            wire.head().await.map(drop)
        }
        Kind::Resets => {
            let stream = shared.dial().await?;
            // A close that lingers for no time is a reset (socket(7)).
            stream.set_zero_linger()
        }
    }
}

/// Until the other side has had enough.
async fn until_closed(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut room = [0; 1024];
    while stream.read(&mut room).await? > 0 {}
    Ok(())
}

async fn drip(shared: &Shared, window: Window, first: &str) -> std::io::Result<()> {
    let mut wire = shared.open().await?;
    wire.send(first.as_bytes()).await?;
    while now() < window.last {
        sleep(DRIP).await;
        wire.send(b"x").await?;
    }
    Ok(())
}

/// Asks, and takes next to nothing, with a window as small as the kernel makes it.
async fn hang(shared: &Shared, asked: &str) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(1)?;
    let stream = socket.connect(shared.address()).await?;
    let mut wire = shared.secure(stream).await?;
    wire.send(asked.as_bytes()).await?;
    std::future::pending().await
}
