//! The sockets of a session: `/auth` makes one, `/ws` is one channel of it, `/echo` sends everything back.
//! - `/auth`: `{"token"}` is answered `{"status":"ok","connection","token","resources",...}`, or `{"status":"refused"}`.
//! - `/ws?token=...`, with that token as it stands: `{"channel","connection"}` is answered `{"opened"}`; then `main` sends
//!   text back, `input` takes events and `display` sends frames, both as described at `desktop`.
//! - `/echo` asks for no origin, subprotocol or query.
use super::response::{Body, full, header, refuse};
use super::session::{Session, UNUSED};
use super::{AgentConfig, Shared, desktop};
use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderMap, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// The subprotocol of every DCV WebSocket.
const SUBPROTOCOL: &str = "dcv";
/// The channels of one desktop; each is a WebSocket of its own.
const CHANNELS: [&str; 7] = ["main", "display", "input", "audio", "clipboard", "filestorage", "printer"];
/// How long a new WebSocket may take for its first message.
const FIRST: Duration = Duration::from_secs(5);
/// The largest message, as in DCV's payloads with room to spare.
const MESSAGE_MAX: usize = 64 << 20;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What a WebSocket is for, decided by its request.
enum Purpose {
    Auth,
    Channel(Arc<Session>),
    Echo,
}

/// Answers 101 and serves the WebSocket in a task of its own, or says why not.
pub(super) fn upgrade(agent: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let purpose = match admit(agent, &request) {
        Ok(purpose) => purpose,
        Err(refusal) => return *refusal,
    };
    let accept = derive_accept_key(header(request.headers(), &SEC_WEBSOCKET_KEY).as_bytes());
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept);
    if offers_dcv(request.headers()) {
        response = response.header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    }
    agent.tasks.spawn(serve(agent.clone(), request, purpose));
    response.body(full("")).expect("a key derived from a request is a header value")
}

fn admit(agent: &Shared, request: &Request<Incoming>) -> Result<Purpose, Box<Response<Body>>> {
    let headers = request.headers();
    let no = |status, why| Err(Box::new(refuse(status, why)));
    if !is_upgrade(headers) {
        return no(StatusCode::BAD_REQUEST, "not a WebSocket request");
    }
    if request.uri().path() == "/echo" {
        return Ok(Purpose::Echo);
    }
    if !offers_dcv(headers) {
        return no(StatusCode::BAD_REQUEST, "the subprotocol dcv is missing");
    }
    if !agent.config.origin.allows(header(headers, &ORIGIN)) {
        return no(StatusCode::FORBIDDEN, "this Origin is not allowed");
    }
    if request.uri().path() == "/auth" {
        return Ok(Purpose::Auth);
    }
    match agent.sessions.holding(request.uri().query().unwrap_or_default()) {
        Some(session) => Ok(Purpose::Channel(session)),
        None => no(StatusCode::FORBIDDEN, "the token is wrong or missing"),
    }
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let connection =
        header(headers, &CONNECTION).split(',').any(|o| o.trim().eq_ignore_ascii_case("upgrade"));
    connection
        && header(headers, &UPGRADE).eq_ignore_ascii_case("websocket")
        && header(headers, &SEC_WEBSOCKET_VERSION) == "13"
        && !header(headers, &SEC_WEBSOCKET_KEY).is_empty()
}

fn offers_dcv(headers: &HeaderMap) -> bool {
    header(headers, &SEC_WEBSOCKET_PROTOCOL).split(',').any(|offer| offer.trim() == SUBPROTOCOL)
}

async fn serve(agent: Arc<Shared>, request: Request<Incoming>, purpose: Purpose) {
    let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
    let limits = WebSocketConfig::default();
    let limits = limits.max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    let mut socket = Socket::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits)).await;
    let _open = agent.seen.opened();
    // However a WebSocket ends, the agent goes on.
    let _ = match purpose {
        Purpose::Auth => auth(&agent, &mut socket).await,
        Purpose::Channel(session) => channel(&agent, &session, &mut socket).await,
        Purpose::Echo => echo(&mut socket).await,
    };
}

async fn echo(socket: &mut Socket) -> Result<(), Error> {
    while let Some(message) = socket.next().await.transpose()? {
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}

/// One exchange: the client's token for a session.
async fn auth(agent: &Arc<Shared>, socket: &mut Socket) -> Result<(), Error> {
    let Some(request) = first(socket).await else { return Ok(()) };
    let AgentConfig { name, token, .. } = &agent.config;
    if token.as_deref().is_some_and(|wanted| request["token"] != wanted) {
        socket.send(Message::text(json!({ "status": "refused" }).to_string())).await?;
        return farewell(socket).await;
    }
    let session = agent.sessions.create(name);
    let answer = json!({
        "status": "ok",
        "connection": session.connection,
        "token": session.token,
        "resources": format!("resource/{}{}/", Session::PLACE, session.connection),
        "name": name,
        "channels": CHANNELS,
        "display": desktop::description(name),
    });
    let agent = agent.clone();
    agent.clone().tasks.spawn(async move {
        tokio::time::sleep(UNUSED).await;
        agent.sessions.forget_unused(&session);
    });
    socket.send(Message::text(answer.to_string())).await?;
    farewell(socket).await
}

/// Ends a WebSocket from this side and waits for the other's close.
async fn farewell(socket: &mut Socket) -> Result<(), Error> {
    socket.close(None).await?;
    let rest = async { while socket.next().await.is_some_and(|message| message.is_ok()) {} };
    // A client that never closes is not waited for.
    let _ = timeout(FIRST, rest).await;
    Ok(())
}

/// The first message, if it comes in time and is JSON.
async fn first(socket: &mut Socket) -> Option<Value> {
    let message = timeout(FIRST, socket.next()).await.ok()??.ok()?;
    serde_json::from_str(message.to_text().ok()?).ok()
}

async fn channel(agent: &Shared, session: &Session, socket: &mut Socket) -> Result<(), Error> {
    let Some(hello) = first(socket).await else { return Ok(()) };
    let named = hello["channel"].as_str().filter(|name| CHANNELS.contains(name));
    let (Some(name), true) = (named, hello["connection"] == session.connection) else {
        return farewell(socket).await;
    };
    let _joined = agent.sessions.join(session);
    socket.send(Message::text(json!({ "opened": name }).to_string())).await?;
    let period = agent.config.keepalive;
    let mut keepalive = interval_at(Instant::now() + period, period);
    let mut frames = interval(Duration::from_secs(1) / agent.config.fps.max(1));
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let display = name == "display";
    loop {
        tokio::select! {
            // Input first: the next frame is to show it.
            biased;
            message = socket.next() => match message.transpose()? {
                None => return Ok(()),
                Some(message) => react(name, session, socket, message).await?,
            },
            _ = frames.tick(), if display => {
                let frame = session.desktop().frame();
                socket.send(Message::binary(frame)).await?;
            }
            _ = keepalive.tick() => socket.send(Message::text(r#"{"keepalive":true}"#)).await?,
        }
    }
}

/// The main channel answers each message at once, which shows the way's delay alone; input changes the desktop.
async fn react(name: &str, session: &Session, socket: &mut Socket, message: Message) -> Result<(), Error> {
    match (name, message) {
        ("main", Message::Text(text)) => socket.send(Message::Text(text)).await,
        ("input", Message::Binary(event)) => {
            session.desktop().input(&event);
            Ok(())
        }
        _ => Ok(()),
    }
}
