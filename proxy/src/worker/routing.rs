//! Who answers a request whose user is known: by the policy, and in a pool by where the fewest desktops are. Sends nothing.

use crate::access::policy::{Decision, Now};
use crate::access::route::{AgentRef, Route};
use crate::agents::directory::NamedAgent;
use crate::agents::known::KnownAgents;
use crate::agents::placement::PoolRequest;
use crate::http::local_response::LocalResponse;
use crate::http::message::{self, RequestHead};
use crate::http::request_source::RequestSource;
use crate::runtime::drain::Phase;
use crate::transport::net::Runtime;
use crate::worker::context::Generation;
use crate::worker::record_builder::RecordBuilder;

/// Seconds after which somebody may ask again for a pool that takes nobody.
const RETRY_AFTER_S: u32 = 10;

/// Decides it.
pub(super) fn decide<'a, N: Runtime>(
    generation: &Generation<N>,
    head: &RequestHead<'a>,
    agents: &'a KnownAgents,
    source: RequestSource,
    builder: &RecordBuilder,
) -> Decision<'a> {
    let policy = &generation.config().policy;
    let sessions = &generation.shared.process.sessions;
    let route = match policy.route(head, &agents.directory) {
        Route::Pool { pool, segment, rest } => match place(generation, head, agents, builder, pool) {
            Ok(agent) if head.websocket => to_agent(agent, segment, rest),
            Ok(agent) => return Decision::Respond(redirect(generation, builder, pool, agent, rest)),
            Err(response) => return Decision::Respond(response),
        },
        route => route,
    };
    let is_running = generation.drain.phase() == Phase::Running;
    let is_ready = is_running && generation.shared.process.readiness.is_ready();
    let has_session = |agent| sessions.has(&builder.desktop(agent));
    policy.decide(head, route, source, Now { agents, is_ready, has_session })
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
        user: &builder.record.user,
        cookie: cookie.as_deref(),
        affinity: (!is_browser(head)).then_some(shared.config.pool_affinity),
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

fn to_agent<'a>(agent: &'a NamedAgent, segment: &'a str, rest: &'a str) -> Route<'a> {
    let agent = AgentRef::Named(agent);
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
