//! Who answers a request: an agent, with the head that it is to see, or the proxy itself. Says so and does nothing: no
//! agent is dialled here, nothing is sent.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use crate::access::admission;
use crate::access::passwords::AuthError;
use crate::access::rejections::RejectReason;
use crate::access::route::Route;
use crate::http::connection_auth::Login;
use crate::http::h1::body::BodyError;
use crate::http::h1::exchange::{Method, RequestContext};
use crate::http::h1::head::{self, Framing, RequestHead, split_port};
use crate::http::local_response::LocalResponse;
use crate::http::path_prefix::{PathPrefix, Place};
use crate::http::request_source::RequestSource;
use crate::http::rewrite::{self, PrefixMode, RequestRewrite};
use crate::observe::client::ClientConnection;
use crate::transport::net::Runtime;
use crate::worker::context::Worker;

/// What the response will depend on.
pub(crate) fn asked(head: &RequestHead<'_>) -> RequestContext {
    RequestContext {
        method: Method::of(head.method),
        framing: head.framing,
        websocket: head.websocket,
        expects_continue: head::values(&head.headers, "expect").next().is_some(),
        version: head.version,
        keep_alive: head.keep_alive,
        login: Login::of_request(&head.headers),
        path_prefix: None,
    }
}

/// The name that the client has shown the password of, where one is asked for; or why it is not answered. `/health` is
/// for everybody who may come. Who made the connection has been let in; who is behind a trusted proxy has not.
pub(crate) async fn authorize<N: Runtime>(
    head: &RequestHead<'_>,
    route: Route<'_>,
    worker: &Worker<N>,
    origin: &RequestSource,
) -> Result<Option<String>, (RejectReason, LocalResponse)> {
    if origin.is_forwarded() && !worker.shared.config.clients.allows(origin.client) {
        return Err((RejectReason::ClientDenied, admission::reply_to(RejectReason::ClientDenied)));
    }
    let agent = match route {
        Route::Health => return Ok(None),
        Route::Agent(agent, _) | Route::MissingSlash(agent, _) => Some(agent.into()),
        Route::Host(agent) => Some(agent),
        Route::Default => worker.shared.config.default_agent,
        Route::InvalidAddress | Route::UnknownHost => None,
    };
    let passwords = worker.shared.passwords.as_ref().filter(|passwords| passwords.guard(agent));
    let Some(passwords) = passwords else { return Ok(None) };
    let mut shown = head::values(&head.headers, "authorization");
    let shown = shown.next().filter(|_| shown.next().is_none());
    let checked = passwords.check(origin.client, shown, || worker.net.now());
    // A queue that stands still is a busy one.
    let checked = worker.net.timeout(worker.shared.config.limits.header_timeout, checked).await;
    let checked = checked.unwrap_or(Err(AuthError::Busy));
    checked.map(Some).map_err(|denial| (denial.why(), denial.reply()))
}

/// Who answers: an agent, with the head it is to see, or the proxy itself.
pub(crate) fn decide<N: Runtime>(
    head: &RequestHead<'_>,
    route: Route<'_>,
    worker: &Worker<N>,
    origin: &RequestSource,
    client: ClientConnection,
    asked: &mut RequestContext,
) -> Result<(SocketAddr, Vec<u8>), LocalResponse> {
    let config = &worker.shared.config;
    let stripped = config.path_prefix == PrefixMode::Strip;
    let behind_prefix = if stripped { Place::Prefix } else { Place::KeptPrefix };
    let (agent, rest, place) = match route {
        Route::Health => return Err(health(head.method)),
        Route::InvalidAddress => {
            return Err(LocalResponse::new(
                404,
                "The first part of the path is no IPv4 address: write /10.0.0.5/ for 10.0.0.5.",
            ));
        }
        Route::UnknownHost => {
            return Err(LocalResponse::new(
                404,
                "The first part of the host name is no address: write 10-0-0-5 for 10.0.0.5.",
            ));
        }
        Route::Default => match config.default_agent {
            Some(agent) => (agent, Cow::Borrowed(head.path), Place::Root),
            None => {
                return Err(LocalResponse::new(
                    404,
                    "No desktop is named: write https://<this host>/<agent IP>/.",
                ));
            }
        },
        Route::Host(agent) => (agent, Cow::Borrowed(head.path), Place::OwnHost),
        Route::Agent(ip, rest) => (IpAddr::V4(ip), Cow::Borrowed(rest), behind_prefix),
        Route::MissingSlash(ip, query) => (IpAddr::V4(ip), Cow::Owned(format!("/{query}")), behind_prefix),
    };
    if !config.agents.allows(agent) {
        worker.shared.rejections.note_agent(client, agent);
        return Err(LocalResponse::new(
            403,
            "This address is none of the agents this proxy serves (--agents).",
        ));
    }
    if config.exchange.body_max < content_length(head.framing) {
        return Err(LocalResponse::new(413, BodyError::TooLarge.to_string()));
    }
    if let (Route::MissingSlash(ip, query), false) = (route, head.websocket) {
        return Err(LocalResponse::new(308, "The desktop is one slash further.")
            .with_header(format!("Location: /{ip}/{query}")));
    }
    let agent = SocketAddr::new(agent, config.agent_port);
    let path = if stripped { &*rest } else { head.path };
    let (passwords, host_header) = (config.passwords.is_some(), config.host_header);
    let forward = RequestRewrite { origin: *origin, passwords, agent, host_header, path };
    let host = rewrite::host_for(head, &forward);
    let mut out = Vec::with_capacity(512 + head.path.len());
    rewrite::request(head, &forward, &host, &mut out);
    let bare = matches!(route, Route::MissingSlash(..));
    let (agent_ip, port) = (agent.ip(), agent.port());
    let seen = head.host.map(|host| split_port(host).0).filter(|seen| *seen != split_port(&host).0);
    let seen = seen.map(str::to_owned);
    asked.path_prefix = Some(PathPrefix { agent: agent_ip, place, port, host, asked: seen, bare });
    Ok((agent, out))
}

fn content_length(framing: Framing) -> u64 {
    if let Framing::Length(length) = framing { length } else { 0 }
}

fn health(method: &str) -> LocalResponse {
    match method {
        "GET" | "HEAD" => LocalResponse::new(200, "DCV Proxy OK"),
        _ => LocalResponse::new(405, "/health answers GET and HEAD.").with_header("Allow: GET, HEAD"),
    }
}
