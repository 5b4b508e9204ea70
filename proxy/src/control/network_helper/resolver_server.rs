//! Answers which agent has a session, as a session resolver does (Amazon DCV Connection Gateway Administrator Guide): a
//! session is an agent's name, or `name:session`. Knows nothing but the agents that take users.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::{set_socket_reuseaddr, set_socket_reuseport};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections at a time; the others wait.
const CONNECTIONS_MAX: usize = 256;
/// For the head of a question, and for a connection as a whole.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(5);
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 256;
/// Bytes of a session's id.
const SESSION_BYTES_MAX: usize = 256;

/// Agents that probes have found to be down.
pub(super) type DownAgents = Rc<RefCell<HashSet<SocketAddr>>>;

/// The server.
pub(super) struct ResolverServer {
    listen: Option<SocketAddr>,
    agents: Rc<RefCell<HashMap<String, SocketAddr>>>,
    down: DownAgents,
    task: Option<JoinHandle<()>>,
}

impl ResolverServer {
    pub(super) fn new(down: DownAgents) -> Self {
        Self { listen: None, agents: Rc::default(), down, task: None }
    }

    /// Answers there from now on, of these agents. Has to be called in a `LocalSet`.
    pub(super) fn set(
        &mut self,
        listen: Option<SocketAddr>,
        agents: Vec<(String, SocketAddr)>,
    ) -> Result<(), String> {
        *self.agents.borrow_mut() = agents.into_iter().collect();
        if listen == self.listen {
            return Ok(());
        }
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.listen = listen;
        let Some(listen) = listen else { return Ok(()) };
        let listener = bind(listen).map_err(|error| {
            // It is tried again at the next change.
            self.listen = None;
            format!("--resolver-listen {listen}: {error}")
        })?;
        let serve = serve(listener, self.agents.clone(), self.down.clone());
        self.task = Some(tokio::task::spawn_local(serve));
        Ok(())
    }
}

/// With the port shared: the process before answers there too, until it has handed over.
fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, true)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

async fn serve(listener: TcpListener, agents: Rc<RefCell<HashMap<String, SocketAddr>>>, down: DownAgents) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // Descriptors may have run out.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (agents, down) = (agents.clone(), down.clone());
        tokio::task::spawn_local(async move {
            let _place = place;
            // Whoever asks may do so badly, and for long.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(stream, &agents, &down)).await;
        });
    }
}

async fn connection(
    stream: TcpStream,
    agents: &RefCell<HashMap<String, SocketAddr>>,
    down: &RefCell<HashSet<SocketAddr>>,
) -> Result<(), hyper::Error> {
    let answer = |request: Request<Incoming>| {
        let is_down = |agent: &SocketAddr| down.borrow().contains(agent);
        let answer = answer(request.method(), request.uri(), &agents.borrow(), is_down);
        std::future::ready(Ok::<_, Infallible>(answer))
    };
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await
}

fn answer(
    method: &Method,
    uri: &hyper::Uri,
    agents: &HashMap<String, SocketAddr>,
    is_down: impl Fn(&SocketAddr) -> bool,
) -> Response<Full<Bytes>> {
    if uri.path() != "/resolveSession" {
        return say(StatusCode::NOT_FOUND, &json!({"Error": "there is /resolveSession"}));
    }
    if method != Method::POST {
        let mut answer = say(StatusCode::METHOD_NOT_ALLOWED, &json!({"Error": "ask by POST"}));
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return answer;
    }
    let parameter = |name: &str| {
        let mut pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let session = parameter("sessionId").map(|id| id.replace("%3A", ":").replace("%3a", ":"));
    let Some(id) = session.filter(|id| (1..=SESSION_BYTES_MAX).contains(&id.len())) else {
        return say(StatusCode::BAD_REQUEST, &json!({"Error": "sessionId is missing"}));
    };
    let transport = match parameter("transport") {
        None | Some("HTTP") => "HTTP",
        Some("QUIC") => "QUIC",
        Some(_) => return say(StatusCode::BAD_REQUEST, &json!({"Error": "transport is HTTP or QUIC"})),
    };
    let (name, session) = id.split_once(':').unwrap_or((&id, &id));
    let found = agents.get(&name.to_ascii_lowercase()).filter(|agent| !is_down(agent));
    let Some(agent) = found else {
        return say(StatusCode::NOT_FOUND, &json!({"Error": "no agent of this name takes users"}));
    };
    let place = json!({
        "SessionId": session,
        "TransportProtocol": transport,
        "DcvServerEndpoint": agent.ip().to_string(),
        "Port": agent.port(),
        "WebUrlPath": "/",
    });
    say(StatusCode::OK, &place)
}

fn say(status: StatusCode, text: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(text.to_string() + "\n"));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_by_the_agents_name() {
        let agent = SocketAddr::from(([10, 0, 0, 5], 8443));
        let agents = HashMap::from([("gpu-07".to_owned(), agent)]);
        let ask = |method, uri: &str, is_down: bool| {
            let uri = uri.parse().expect("an address");
            answer(&method, &uri, &agents, |_| is_down).status().as_u16()
        };
        for (uri, status) in [
            ("/resolveSession?sessionId=gpu-07&transport=HTTP&clientIpAddress=192.0.2.1", 200),
            ("/resolveSession?sessionId=GPU-07", 200),
            ("/resolveSession?transport=QUIC&sessionId=gpu-07%3Aconsole", 200),
            ("/resolveSession?sessionId=gpu-08&transport=HTTP", 404),
            ("/resolveSession?sessionId=&transport=HTTP", 400),
            ("/resolveSession?transport=HTTP", 400),
            ("/resolveSession", 400),
            ("/resolveSession?sessionId=gpu-07&transport=UDP", 400),
            ("/", 404),
        ] {
            assert_eq!(ask(Method::POST, uri, false), status, "{uri}");
        }
        assert_eq!(ask(Method::GET, "/resolveSession?sessionId=gpu-07", false), 405);
        assert_eq!(ask(Method::POST, "/resolveSession?sessionId=gpu-07", true), 404);
    }
}
