//! The client of a life that speaks HTTP/2: asks for everything planned at once, a stream each, and has its session beside
//! that (RFC 8441). Its frames are the `h2` crate's.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use dcv_splice::transport::endpoint::StreamEnd;
use dcv_splice::transport::stream::Stream;
use futures_util::future::join_all;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use harness::simulated::Wire;
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::plan::{Ends, Exchange, Frame, Plan, Session, digest};
use super::talk::FarEnd;

/// The wire as the crate wants it.
struct Io(Wire);

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let received = ready!(self.0.poll_recv(cx, into.initialize_unfilled()))?;
        into.advance(received);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_send(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.finish())
    }
}

/// A client that asks for everything planned.
pub(crate) async fn far_client(wire: Wire, plan: &Plan) -> FarEnd {
    let mut talk = FarEnd::default();
    // A broken wire ends the talk; what was heard until then counts.
    let Ok((client, connection)) = h2::client::handshake(Io(wire)).await else { return talk };
    let connection = tokio::task::spawn_local(connection);
    let exchanges = plan.exchanges.iter().enumerate();
    let asked = join_all(exchanges.map(|(number, exchange)| asks(client.clone(), number, exchange)));
    let session = async {
        match &plan.session {
            Some(session) => holds(client.clone(), session, &mut talk).await.ok(),
            None => None,
        }
    };
    let (answers, _) = tokio::join!(asked, session);
    talk.messages = answers.into_iter().map_while(Result::ok).collect();
    drop(client);
    let _ = connection.await;
    talk
}

async fn asks(client: SendRequest<Bytes>, number: usize, exchange: &Exchange) -> Result<String, h2::Error> {
    let mut client = client.ready().await?;
    let body = &exchange.request;
    let method = if body.frame == Frame::None { Method::GET } else { Method::POST };
    let mut request = Request::builder().method(method).uri(format!("http://p/10.1.2.3/{number}"));
    if body.frame == Frame::Length {
        request = request.header("content-length", body.bytes.len());
    }
    let request = request.body(()).expect("a request");
    let (response, mut sender) = client.send_request(request, body.frame == Frame::None)?;
    let said = async {
        if body.frame != Frame::None {
            // An answer may come early, and then says what is the matter.
            let _ = says(&mut sender, &body.bytes, true).await;
        }
    };
    let heard = async {
        let response = response.await?;
        let status = response.status().as_u16();
        let (bytes, end) = hears(&mut response.into_body()).await;
        end?;
        Ok(format!("{status} {}", digest(&bytes)))
    };
    let ((), heard) = tokio::join!(said, heard);
    heard
}

/// A session, as `talk::session_talk` has it.
async fn holds(client: SendRequest<Bytes>, session: &Session, talk: &mut FarEnd) -> Result<(), h2::Error> {
    let mut client = client.ready().await?;
    for _ in 0..1000 {
        if client.is_extended_connect_protocol_enabled() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let request = Request::builder().method(Method::CONNECT).uri("http://p/10.1.2.3/ws");
    let request = request.extension(Protocol::from_static("websocket")).body(()).expect("a request");
    let (response, mut sender) = client.send_request(request, false)?;
    let (early, rest) = session.to_agent.split_at(session.early.0);
    says(&mut sender, early, false).await?;
    let response = response.await?;
    if response.status() != 200 {
        return Ok(());
    }
    let mut body = response.into_body();
    tokio::time::sleep(session.pause).await;
    let is_first = matches!(session.ends, Ends::ClientFirst | Ends::ClientCut);
    let (now, later) = if is_first { (rest, &[][..]) } else { rest.split_at(rest.len() / 2) };
    let (said, (bytes, end)) = tokio::join!(says(&mut sender, now, is_first), hears(&mut body));
    let is_clean = end.is_ok();
    talk.session = Some((bytes, if is_clean { StreamEnd::Clean } else { StreamEnd::Truncated }));
    said?;
    if is_clean && !is_first {
        says(&mut sender, later, true).await?;
        // Nobody says that it has come; who closes at once may take it back.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

async fn says(sender: &mut SendStream<Bytes>, bytes: &[u8], is_end: bool) -> Result<(), h2::Error> {
    let mut left = Bytes::copy_from_slice(bytes);
    while !left.is_empty() {
        sender.reserve_capacity(left.len());
        let Some(room) = poll_fn(|cx| sender.poll_capacity(cx)).await else { break };
        sender.send_data(left.split_to(room?.min(left.len())), false)?;
    }
    if is_end { sender.send_data(Bytes::new(), true) } else { Ok(()) }
}

async fn hears(body: &mut RecvStream) -> (Vec<u8>, Result<(), h2::Error>) {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                bytes.extend_from_slice(&data);
                let _ = body.flow_control().release_capacity(data.len());
            }
            Err(error) => return (bytes, Err(error)),
        }
    }
    (bytes, Ok(()))
}
