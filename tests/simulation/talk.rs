//! The far ends of a life: a client that asks what was planned, and an agent that answers it. They read messages
//! by a decoder of their own, as plain as can be, so that no framing mistake is shared with the proxy.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll};

use dcv_splice::transport::endpoint::{Endpoint, EndpointError, StreamEnd, WorkerBuffers};
use harness::simulated::Wire;
use harness::websocket::accepted;

use tokio::time::Instant;

use super::plan::{Ends, Exchange, Frame, Plan, Session, digest};

/// What one far end has heard.
#[derive(Debug, Default)]
pub(crate) struct FarEnd {
    /// Each whole message: the status or request number, and the digest of its body.
    pub(crate) messages: Vec<String>,
    /// The bytes of the session and how they ended.
    pub(crate) session: Option<(Vec<u8>, StreamEnd)>,
    /// When the wire had taken all that was said in the session by who ends it first.
    pub(crate) said: Option<Instant>,
}

/// A client that asks for everything planned, one after the other.
pub(crate) async fn far_client(mut endpoint: Endpoint<Wire>, plan: &Plan) -> FarEnd {
    let mut talk = FarEnd::default();
    // A broken wire ends the talk; what was heard until then counts.
    let _ = client_says(&mut endpoint, plan, &mut talk).await;
    talk
}

async fn client_says(
    endpoint: &mut Endpoint<Wire>,
    plan: &Plan,
    talk: &mut FarEnd,
) -> Result<(), EndpointError> {
    let buffers = RefCell::default();
    if plan.client_tls {
        endpoint.handshake(&buffers).await?;
    }
    for (number, exchange) in plan.exchanges.iter().enumerate() {
        let method = if exchange.request.frame == Frame::None { "GET" } else { "POST" };
        let head =
            format!("{method} /10.1.2.3/{number} HTTP/1.1\r\nHost: p\r\n{}\r\n", exchange.request.header());
        endpoint.write(&[head.as_bytes(), &exchange.request.wire].concat())?;
        if !hear_message(endpoint, &buffers, talk, method).await? {
            return Ok(());
        }
    }
    let Some(session) = &plan.session else { return endpoint.finish().await };
    let head = "GET /10.1.2.3/ws HTTP/1.1\r\nHost: p\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (early, rest) = session.to_agent.split_at(session.early.0);
    endpoint.write(&[head.as_bytes(), early].concat())?;
    let upgraded = converse(endpoint, &buffers, |heard| decode(heard, "GET", false)).await?;
    let Some(upgraded) = upgraded.filter(|message| message.status == "101") else { return Ok(()) };
    endpoint.read_buf.consume(upgraded.used);
    tokio::time::sleep(session.pause).await;
    let first = matches!(session.ends, Ends::ClientFirst | Ends::ClientCut);
    session_talk(endpoint, &buffers, rest, first, session.ends == Ends::ClientCut, talk).await
}

async fn hear_message(
    endpoint: &mut Endpoint<Wire>,
    buffers: &RefCell<WorkerBuffers>,
    talk: &mut FarEnd,
    method: &str,
) -> Result<bool, EndpointError> {
    loop {
        let heard = converse(endpoint, buffers, |heard| decode(heard, method, false)).await?;
        let ended = || decode(endpoint.read_buf.filled(), method, endpoint.end() == Some(StreamEnd::Clean));
        let Some(message) = heard.or_else(ended) else { return Ok(false) };
        endpoint.read_buf.consume(message.used);
        if !message.status.starts_with('1') {
            talk.messages.push(format!("{} {}", message.status, digest(&message.body)));
            return Ok(true);
        }
    }
}

/// An agent that answers what comes, whichever of the planned requests it is.
pub(crate) async fn far_agent(mut endpoint: Endpoint<Wire>, plan: &Plan, next: &Cell<usize>) -> FarEnd {
    let mut talk = FarEnd::default();
    let _ = agent_says(&mut endpoint, plan, next, &mut talk).await;
    talk
}

async fn agent_says(
    endpoint: &mut Endpoint<Wire>,
    plan: &Plan,
    next: &Cell<usize>,
    talk: &mut FarEnd,
) -> Result<(), EndpointError> {
    let buffers = RefCell::default();
    if plan.agent_tls {
        endpoint.handshake(&buffers).await?;
    }
    loop {
        let head =
            converse(endpoint, &buffers, |heard| Some(heard.windows(4).position(|w| w == b"\r\n\r\n")? + 4))
                .await?;
        let Some(length) = head else { return endpoint.finish().await };
        let head = String::from_utf8_lossy(&endpoint.read_buf.filled()[..length]).into_owned();
        let path = head.split(' ').nth(1).unwrap_or("");
        let Ok(number) = path.trim_start_matches('/').parse::<usize>() else {
            endpoint.read_buf.consume(length);
            let Some(session) = &plan.session else { return Ok(()) };
            return agent_session(endpoint, &buffers, &head, session, talk).await;
        };
        next.set(number);
        let Some(exchange) = plan.exchanges.get(number) else { return Ok(()) };
        if exchange.early {
            answer(endpoint, exchange)?;
        }
        let Some(request) = converse(endpoint, &buffers, |heard| decode(heard, "POST", false)).await? else {
            return Ok(());
        };
        talk.messages.push(format!("{number}:{}", digest(&request.body)));
        endpoint.read_buf.consume(request.used);
        if !exchange.early {
            answer(endpoint, exchange)?;
        }
        endpoint.flush().await?;
        if exchange.response.frame == Frame::UntilEnd {
            return endpoint.finish().await;
        }
    }
}

fn answer(endpoint: &mut Endpoint<Wire>, exchange: &Exchange) -> Result<(), EndpointError> {
    let mut out = Vec::new();
    for _ in 0..exchange.interim {
        out.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
    }
    let status = if exchange.response.frame == Frame::None { "204 No Content" } else { "200 OK" };
    out.extend(format!("HTTP/1.1 {status}\r\n{}\r\n", exchange.response.header()).into_bytes());
    out.extend_from_slice(&exchange.response.wire);
    endpoint.write(&out)
}

async fn agent_session(
    endpoint: &mut Endpoint<Wire>,
    buffers: &RefCell<WorkerBuffers>,
    head: &str,
    session: &Session,
    talk: &mut FarEnd,
) -> Result<(), EndpointError> {
    let (early, rest) = session.to_client.split_at(session.early.1);
    endpoint.write(&[accepted(head, "").as_bytes(), early].concat())?;
    let first = matches!(session.ends, Ends::AgentFirst | Ends::AgentCut);
    session_talk(endpoint, buffers, rest, first, session.ends == Ends::AgentCut, talk).await
}

/// Says `rest` and hears the other side to its end; who is not first goes on after it has heard that.
async fn session_talk(
    endpoint: &mut Endpoint<Wire>,
    buffers: &RefCell<WorkerBuffers>,
    rest: &[u8],
    first: bool,
    cut: bool,
    talk: &mut FarEnd,
) -> Result<(), EndpointError> {
    let (now, later) = if first { (rest, &[][..]) } else { rest.split_at(rest.len() / 2) };
    endpoint.write(now)?;
    if first {
        poll_fn(|cx| while_hearing(cx, endpoint, buffers, Endpoint::poll_flush)).await?;
        talk.said = Some(Instant::now());
        poll_fn(|cx| while_hearing(cx, endpoint, buffers, |endpoint, cx| endpoint.poll_finish(cx, !cut)))
            .await?;
    }
    let heard = converse(endpoint, buffers, |_| None::<()>).await;
    let end = endpoint.end();
    let bytes = endpoint.read_buf.filled().to_vec();
    talk.session = Some((bytes, end.unwrap_or(StreamEnd::Truncated)));
    heard?;
    if !first {
        endpoint.write(later)?;
        endpoint.finish().await?;
    }
    Ok(())
}

/// One try to say something, after taking in what is there: who only speaks and never hears may wait for ever.
fn while_hearing(
    cx: &mut Context<'_>,
    endpoint: &mut Endpoint<Wire>,
    buffers: &RefCell<WorkerBuffers>,
    say: impl Fn(&mut Endpoint<Wire>, &mut Context<'_>) -> Poll<Result<(), EndpointError>>,
) -> Poll<Result<(), EndpointError>> {
    while let Poll::Ready(gained) = endpoint.poll_fill(cx, &mut buffers.borrow_mut())? {
        if gained == 0 {
            break;
        }
    }
    say(endpoint, cx)
}

/// Says what was written and hears on until `enough` finds what it looks for; none at the end of the stream.
async fn converse<T>(
    endpoint: &mut Endpoint<Wire>,
    buffers: &RefCell<WorkerBuffers>,
    mut enough: impl FnMut(&[u8]) -> Option<T>,
) -> Result<Option<T>, EndpointError> {
    poll_fn(|cx| {
        let flushed = endpoint.poll_flush(cx)?;
        loop {
            if let Some(found) = enough(endpoint.read_buf.filled()) {
                return Poll::Ready(Ok(Some(found)));
            }
            match endpoint.poll_fill(cx, &mut buffers.borrow_mut())? {
                Poll::Ready(0) if flushed.is_ready() => return Poll::Ready(Ok(None)),
                Poll::Ready(gained) if gained > 0 => {}
                _ => return Poll::Pending,
            }
        }
    })
    .await
}

/// A message that was read whole.
pub(crate) struct Message {
    pub(crate) status: String,
    pub(crate) body: Vec<u8>,
    pub(crate) used: usize,
}

/// Reads a message at the front of `bytes`; none while it is not whole. `ended`: nothing more comes.
pub(crate) fn decode(bytes: &[u8], asked: &str, ended: bool) -> Option<Message> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.to_owned();
    let is_request = !head.starts_with("http/");
    let rest = &bytes[end..];
    let message =
        |body: &[u8], used| Some(Message { status: status.clone(), body: body.to_vec(), used: end + used });
    if status.starts_with('1') || status == "204" || asked == "HEAD" {
        return message(&[], 0);
    }
    if let Some((_, length)) = head.split_once("content-length: ") {
        let length = length.split('\r').next()?.parse().ok()?;
        return message(rest.get(..length)?, length);
    }
    if head.contains("transfer-encoding: chunked") {
        let (body, used) = dechunk(rest)?;
        return message(&body, used);
    }
    if is_request {
        return message(&[], 0);
    }
    ended.then(|| message(rest, rest.len())).flatten()
}

fn dechunk(wire: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = wire.get(at..)?.windows(2).position(|w| w == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&wire[at..at + line]).ok()?, 16).ok()?;
        at += line + 2;
        if size == 0 {
            break;
        }
        body.extend_from_slice(wire.get(at..at + size)?);
        at += size + 2;
    }
    loop {
        let line = wire.get(at..)?.windows(2).position(|w| w == b"\r\n")?;
        at += line + 2;
        if line == 0 {
            return Some((body, at));
        }
    }
}
