//! Who answers a request whose user is known: by the policy, in a pool by where the fewest desktops are, and of a session by what its
//! resolver says. Sends nothing.

use std::net::IpAddr;
use std::time::Duration;

use crate::access::policy::{Decision, Now};
use crate::access::route::{AgentRef, Route};
use crate::agents::directory::NamedAgent;
use crate::agents::known::KnownAgents;
use crate::agents::placement::PoolRequest;
use crate::agents::session_resolver::{Resolution, ResolveError};
use crate::http::local_response::LocalResponse;
use crate::http::message::{self, RequestHead};
use crate::http::request_source::RequestSource;
use crate::runtime::drain::Phase;
use crate::transport::net::Runtime;
use crate::transport::networks::client_network;
use crate::worker::context::Generation;
use crate::worker::record_builder::RecordBuilder;

/// For the answer of a session resolver: clients wait for 3 s.
const RESOLVE_TIMEOUT: Duration = Duration::from_millis(2500);
/// Bytes of a session's id.
const SESSION_BYTES_MAX: usize = 128;
/// Seconds after which somebody may ask again for a pool that takes nobody.
const RETRY_AFTER_S: u32 = 10;

/// Decides it.
pub(super) fn decide<'a, N: Runtime>(
    generation: &Generation<N>,
    head: &RequestHead<'a>,
    agents: &'a KnownAgents,
    source: RequestSource,
    builder: &RecordBuilder,
    resolution: Option<&Resolution>,
) -> Decision<'a> {
    let policy = &generation.config().policy;
    let sessions = &generation.shared.process.sessions;
    let route = match policy.route(head, &agents.directory) {
        Route::Pool { pool, segment, rest } => match place(generation, head, agents, builder, pool) {
            Ok(agent) if head.websocket => to_agent(AgentRef::Named(agent), segment, rest),
            Ok(agent) => return Decision::Respond(redirect(generation, builder, pool, agent, rest)),
            Err(response) => return Decision::Respond(response),
        },
        Route::Session { session, segment, rest } => match resolution {
            Some(Ok(place)) => to_agent(AgentRef::Endpoint(place.agent), segment, rest),
            Some(Err(error)) => return Decision::Respond(unresolved(session, error)),
            None => return Decision::Respond(unresolved(session, &ResolveError::Busy)),
        },
        route => route,
    };
    let web_url_path = resolution.and_then(|it| it.as_ref().ok()).map_or("", |place| &place.web_url_path);
    let is_running = generation.drain.phase() == Phase::Running;
    let is_ready = is_running && generation.shared.process.readiness.is_ready();
    let has_session = |agent| sessions.has(&builder.desktop(agent));
    policy.decide(head, route, source, Now { agents, is_ready, web_url_path, has_session })
}

/// Where the session is that a request names, if it names one.
pub(super) async fn resolve<N: Runtime>(
    generation: &Generation<N>,
    route: Route<'_>,
    client: IpAddr,
) -> Option<Resolution> {
    let Route::Session { session, .. } = route else { return None };
    if !is_session_id(session) {
        return Some(Err(ResolveError::Unknown));
    }
    let asked = generation.shared.process.session_resolver.resolve(session, client, generation.net.now());
    let resolution = generation.net.timeout(RESOLVE_TIMEOUT, asked).await;
    Some(resolution.unwrap_or_else(|_| Err(ResolveError::Failed("it does not answer in time".to_owned()))))
}

/// What can be sent to a resolver as it is, and read in a log.
fn is_session_id(session: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    (1..=SESSION_BYTES_MAX).contains(&session.len()) && session.bytes().all(is_inner)
}

/// What the user is told where nobody knows where the session is.
fn unresolved(session: &str, error: &ResolveError) -> LocalResponse {
    let session: String = session.chars().take(SESSION_BYTES_MAX).collect();
    match error {
        ResolveError::Unknown => LocalResponse::new(404, format!("There is no session {session}.")),
        ResolveError::NotAllowed => LocalResponse::new(
            403,
            format!(
                "The session {session} is at an address that is none of the agents this proxy serves (--agents)."
            ),
        ),
        ResolveError::Failed(why) => LocalResponse::new(
            502,
            format!("Where the session {session} is can't be found out: the session resolver: {why}."),
        ),
        ResolveError::Busy => LocalResponse::new(503, "Too many sessions are being looked for. Try again.")
            .with_header("Retry-After: 1"),
    }
}

/// The agent of a pool that a user gets; or what the user is told.
fn place<'a, N: Runtime>(
    generation: &Generation<N>,
    head: &RequestHead<'_>,
    agents: &'a KnownAgents,
    builder: &RecordBuilder,
    pool: &str,
) -> Result<&'a NamedAgent, LocalResponse> {
    if agents.directory.pool(pool).next().is_none() {
        return Err(LocalResponse::new(404, "There is no pool of this name: write /pool/<name>/."));
    }
    let shared = &generation.shared;
    let sessions = &shared.process.sessions;
    let cookie = shared.pool_cookies.agent(&head.headers, pool);
    let asked = PoolRequest {
        pool,
        client: builder.record.client,
        network: client_network(builder.record.client),
        user: &builder.record.user,
        cookie: cookie.as_deref(),
        // A WebSocket of a browser can be told of no cookie.
        affinity: (head.websocket || !is_browser(head)).then_some(shared.config.pool_affinity),
        now: generation.net.now(),
    };
    let has_session = |agent| sessions.has(&builder.desktop(agent));
    let placed =
        shared.process.placements.place(&asked, agents, |agent| sessions.clients_at(agent), has_session);
    placed.ok_or_else(|| {
        let text = format!("All desktops of the pool {pool} are down or take no new users. Try again later.");
        LocalResponse::new(503, text).with_header(format!("Retry-After: {RETRY_AFTER_S}"))
    })
}

/// All browsers begin like this; what else there is keeps no cookies.
fn is_browser(head: &RequestHead<'_>) -> bool {
    message::values(&head.headers, "user-agent").any(|value| value.starts_with(b"Mozilla/"))
}

fn to_agent<'a>(agent: AgentRef<'a>, segment: &'a str, rest: &'a str) -> Route<'a> {
    if rest.starts_with('/') {
        Route::Agent { agent, segment, rest }
    } else {
        Route::MissingSlash { agent, segment, query: rest }
    }
}

fn redirect<N: Runtime>(
    generation: &Generation<N>,
    builder: &RecordBuilder,
    pool: &str,
    agent: &NamedAgent,
    rest: &str,
) -> LocalResponse {
    let slash = if rest.starts_with('/') { "" } else { "/" };
    let cookie = generation.shared.pool_cookies.header(pool, &agent.name, builder.secure);
    LocalResponse::new(307, format!("The desktop is {}.", agent.name))
        .with_header(format!("Location: /{}{slash}{rest}", agent.name))
        .with_header(cookie)
        // Another one may get another desktop.
        .with_header("Cache-Control: no-store")
}
