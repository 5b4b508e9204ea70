//! HTTP/2 of the load's clients, by the `h2` crate, with windows as large as a browser's: requests whose answers are checked,
//! uploads, and a WebSocket (RFC 8441) as a byte stream.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

use super::wire::{Duplex, payload, wrong};

/// What Chromium has, for a response and for all of a connection, in bytes.
const STREAM_WINDOW: u32 = 6 << 20;
const CONNECTION_WINDOW: u32 = 15 << 20;
/// Bytes of an upload that go out as one piece.
const PIECE_BYTES: usize = 64 * 1024;

/// A connection; it ends with this.
pub(super) struct Client {
    send: SendRequest<Bytes>,
    authority: SocketAddr,
    connection: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    /// Begins to speak it.
    pub(super) async fn new(stream: Box<dyn Duplex>, authority: SocketAddr) -> io::Result<Self> {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        let (send, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Self { send, authority, connection })
    }

    /// Asks for so many bytes and compares them.
    pub(super) async fn get(&self, path: &str, bytes: usize) -> io::Result<()> {
        let request = self.request(Method::GET, path);
        let (response, _) = self
            .sender()
            .await?
            .send_request(request.body(()).map_err(io::Error::other)?, true)
            .map_err(io::Error::other)?;
        let response = response.await.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            return Err(wrong(&format!("no 200 but {}", response.status())));
        }
        compare(response.into_body(), bytes).await
    }

    /// Sends so many bytes and waits for the answer.
    pub(super) async fn put(&self, path: &str, bytes: usize) -> io::Result<()> {
        let request = self.request(Method::POST, path).header("content-length", bytes);
        let request = request.body(()).map_err(io::Error::other)?;
        let (response, mut body) =
            self.sender().await?.send_request(request, false).map_err(io::Error::other)?;
        let mut left = bytes;
        while left > 0 {
            let piece = Bytes::from_static(payload(0, left.min(PIECE_BYTES)));
            left -= piece.len();
            send(&mut body, piece).await?;
        }
        body.send_data(Bytes::new(), true).map_err(io::Error::other)?;
        let response = response.await.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            return Err(wrong(&format!("no 200 but {}", response.status())));
        }
        compare(response.into_body(), 0).await
    }

    /// Opens a WebSocket.
    pub(super) async fn websocket(&self, path: &str) -> io::Result<Box<dyn Duplex>> {
        // What the peer speaks is known once it has answered something.
        let mut send = self.sender().await?;
        if !send.is_extended_connect_protocol_enabled() {
            let health = self.request(Method::GET, "/health").body(()).map_err(io::Error::other)?;
            send.send_request(health, true).map_err(io::Error::other)?.0.await.map_err(io::Error::other)?;
            send = self.sender().await?;
        }
        let request = self.request(Method::CONNECT, path).header("sec-websocket-version", "13");
        let request = request.extension(Protocol::from_static("websocket"));
        let request = request.body(()).map_err(io::Error::other)?;
        let (response, sender) = send.send_request(request, false).map_err(io::Error::other)?;
        let response = response.await.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            return Err(wrong(&format!("no 200 but {}", response.status())));
        }
        Ok(Box::new(Tunnel { sender, receiver: response.into_body(), left: Bytes::new() }))
    }

    async fn sender(&self) -> io::Result<SendRequest<Bytes>> {
        self.send.clone().ready().await.map_err(io::Error::other)
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("https://{}{path}", self.authority))
    }
}

async fn compare(mut body: RecvStream, bytes: usize) -> io::Result<()> {
    // Longer bodies than there is noise are noise over and over.
    let (mut at, most) = (0, payload(0, usize::MAX));
    while let Some(data) = body.data().await {
        let mut data = data.map_err(io::Error::other)?;
        body.flow_control().release_capacity(data.len()).map_err(io::Error::other)?;
        while !data.is_empty() {
            let start = at % most.len();
            let piece = data.split_to(data.len().min(most.len() - start));
            if piece != most[start..start + piece.len()] {
                return Err(wrong("wrong bytes in a body"));
            }
            at += piece.len();
        }
    }
    if at == bytes { Ok(()) } else { Err(wrong(&format!("a body of {at} bytes, not of {bytes}"))) }
}

async fn send(body: &mut SendStream<Bytes>, mut bytes: Bytes) -> io::Result<()> {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len());
        let room = poll_fn(|cx| body.poll_capacity(cx)).await;
        let room = room.ok_or_else(|| wrong("the stream has ended"))?.map_err(io::Error::other)?;
        body.send_data(bytes.split_to(room.min(bytes.len())), false).map_err(io::Error::other)?;
    }
    Ok(())
}

/// A stream of a connection as one of bytes.
struct Tunnel {
    sender: SendStream<Bytes>,
    receiver: RecvStream,
    /// What was received and not read.
    left: Bytes,
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            let Some(data) = ready!(self.receiver.poll_data(cx)) else { return Poll::Ready(Ok(())) };
            self.left = data.map_err(io::Error::other)?;
            let received = self.left.len();
            self.receiver.flow_control().release_capacity(received).map_err(io::Error::other)?;
        }
        let used = self.left.len().min(into.remaining());
        into.put_slice(&self.left[..used]);
        self.left.advance(used);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.sender.reserve_capacity(bytes.len());
        let room = ready!(self.sender.poll_capacity(cx));
        let room = room.ok_or_else(|| wrong("the stream has ended"))?.map_err(io::Error::other)?;
        let sent = room.min(bytes.len());
        self.sender.send_data(Bytes::copy_from_slice(&bytes[..sent]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.sender.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
