//! Decides who answers a request: an agent, with the rewrite that it is to see, or the proxy itself. Takes values and gives values:
//! it connects to nobody, counts nothing, logs nothing and writes no byte of a message.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use crate::access::rejections::RejectReason;
use crate::access::route::{AgentDomain, AgentRef, AllowedAgents, Route};
use crate::agents::directory::{AgentState, Directory, NamedAgent};
use crate::agents::health::Down;
use crate::agents::known::KnownAgents;
use crate::http::h1::body::BodyError;
use crate::http::local_response::LocalResponse;
use crate::http::message::{Framing, RequestHead, split_port};
use crate::http::path_prefix::{PathPrefix, Place};
use crate::http::request_source::RequestSource;
use crate::http::rewrite::{self, HostHeader, PrefixMode, RequestRewrite};
use crate::observe::agent::Agent;

/// The settings that decide it.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Agents that may be reached.
    pub agents: AllowedAgents,
    /// The agent for paths that name none.
    pub default_agent: Option<IpAddr>,
    /// The domain whose names stand for agents.
    pub agent_domain: Option<AgentDomain>,
    /// The port of agents that are named by their address.
    pub agent_port: u16,
    /// Whether agents see the `/<ip>` of the path.
    pub path_prefix: PrefixMode,
    /// The `Host` that agents get.
    pub host_header: HostHeader,
    /// Bytes of a request body.
    pub body_max: u64,
    /// Whether there is a session resolver, to which `/s/` belongs.
    pub has_session_resolver: bool,
    /// Whether the proxy asks for passwords, which agents must not see then.
    pub has_passwords: bool,
}

/// What holds when a request comes.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a, F> {
    /// The agents.
    pub agents: &'a KnownAgents,
    /// Whether the proxy is to get new users.
    pub is_ready: bool,
    /// What stands before the agent's paths there, where a session resolver says so; else empty.
    pub web_url_path: &'a str,
    /// Whether the request's client and user have a session at an agent.
    pub has_session: F,
}

/// The result.
#[derive(Debug)]
pub enum Decision<'a> {
    /// An agent.
    Forward(Forward<'a>),
    /// The proxy itself.
    Respond(LocalResponse),
    /// The proxy itself, as the request is rejected; `agent` is the one that it asked for.
    Reject {
        /// Why.
        reason: RejectReason,
        /// The agent that may not be reached.
        agent: IpAddr,
        /// The response for the client.
        response: LocalResponse,
    },
}

/// A request for an agent.
#[derive(Debug)]
pub struct Forward<'a> {
    /// The agent.
    pub agent: Agent,
    /// The changes on the way to it.
    pub rewrite: RequestRewrite<'a>,
    /// The changes on the way back.
    pub path_prefix: PathPrefix,
}

impl Policy {
    /// The route of a request.
    pub fn route<'a>(&self, head: &RequestHead<'a>, directory: &'a Directory) -> Route<'a> {
        let route = Route::of_request(head.host, head.path, self.agent_domain.as_ref(), directory);
        let is_free = self.has_session_resolver && route == Route::Default;
        is_free.then(|| Route::of_session(head.path)).flatten().unwrap_or(route)
    }

    /// The agent that a route means, whether it may be reached or not.
    pub fn agent_of<'a>(&self, route: Route<'a>) -> Option<AgentRef<'a>> {
        match route {
            Route::Agent { agent, .. } | Route::MissingSlash { agent, .. } | Route::Host(agent) => {
                Some(agent)
            }
            Route::Default => self.default_agent.map(AgentRef::Address),
            Route::Pool { .. }
            | Route::Session { .. }
            | Route::Health { .. }
            | Route::InvalidAddress
            | Route::UnknownHost => None,
        }
    }

    /// Decides who answers a request of that route and source.
    pub fn decide<'a>(
        &self,
        head: &RequestHead<'a>,
        route: Route<'a>,
        source: RequestSource,
        now: Now<'_, impl FnOnce(SocketAddr) -> bool>,
    ) -> Decision<'a> {
        let Some(agent) = self.agent_of(route) else {
            return Decision::Respond(without_agent(route, head.method, now.is_ready));
        };
        let ip = agent.ip();
        if !self.agents.allows(ip) {
            let text = "This address is none of the agents this proxy serves (--agents).";
            let response = LocalResponse::new(403, text);
            return Decision::Reject { reason: RejectReason::AgentNotAllowed, agent: ip, response };
        }
        let address = match agent {
            AgentRef::Endpoint(address) => address,
            AgentRef::Address(_) | AgentRef::Named(_) => SocketAddr::new(ip, self.agent_port),
        };
        let named = match agent {
            AgentRef::Named(named) => Some(named),
            AgentRef::Address(_) | AgentRef::Endpoint(_) => now.agents.directory.at(address),
        };
        let address = named.map_or(address, |named| named.address);
        if let Some(response) = named.and_then(|named| out_of_service(named, || (now.has_session)(address))) {
            return Decision::Respond(response);
        }
        if let Some(down) = now.agents.health.down(address) {
            return Decision::Respond(is_down(named, ip, down));
        }
        if self.body_max < content_length(head.framing) {
            return Decision::Respond(LocalResponse::new(413, BodyError::TooLarge.to_string()));
        }
        if let (Route::MissingSlash { segment, query, .. }, false) = (route, head.websocket) {
            let response = LocalResponse::new(308, "Moved: a slash is missing behind the agent.");
            return Decision::Respond(response.with_header(format!("Location: /{segment}/{query}")));
        }
        Decision::Forward(self.forward(head, route, source, address, now.web_url_path))
    }

    fn forward<'a>(
        &self,
        head: &RequestHead<'a>,
        route: Route<'a>,
        source: RequestSource,
        address: SocketAddr,
        web_url_path: &str,
    ) -> Forward<'a> {
        let is_stripped = self.path_prefix == PrefixMode::Strip;
        let behind_prefix = if is_stripped { Place::Prefix } else { Place::KeptPrefix };
        let (path, place, segment) = match route {
            Route::Agent { segment, rest, .. } => (Cow::Borrowed(rest), behind_prefix, segment),
            Route::MissingSlash { segment, query, .. } => {
                (Cow::Owned(format!("/{query}")), behind_prefix, segment)
            }
            Route::Host(_) => (Cow::Borrowed(head.path), Place::OwnHost, ""),
            _ => (Cow::Borrowed(head.path), Place::Root, ""),
        };
        let path = if web_url_path.is_empty() { path } else { Cow::Owned(format!("{web_url_path}{path}")) };
        let agent = Agent::at(address);
        let host = rewrite::host_for(head, self.host_header, agent.address.ip());
        let asked = head.host.map(|host| split_port(host).0).filter(|asked| *asked != split_port(&host).0);
        let path_prefix = PathPrefix {
            agent: agent.address.ip(),
            segment: segment.to_owned(),
            web_url_path: web_url_path.to_owned(),
            place,
            port: agent.address.port(),
            host,
            asked: asked.map(str::to_owned),
            bare: matches!(route, Route::MissingSlash { .. }),
        };
        let rewrite = RequestRewrite {
            source,
            hides_passwords: self.has_passwords,
            path: if is_stripped { path } else { Cow::Borrowed(head.path) },
        };
        Forward { agent, rewrite, path_prefix }
    }
}

/// Seconds after which somebody may ask again for an agent that is out of service.
const RETRY_AFTER_S: u32 = 60;

/// The proxy's own response where the operator has taken the agent out of service for this client.
fn out_of_service(agent: &NamedAgent, has_session: impl FnOnce() -> bool) -> Option<LocalResponse> {
    let text = match agent.state {
        AgentState::Active => return None,
        AgentState::Drain if has_session() => return None,
        AgentState::Drain => format!(
            "The desktop {} takes no new users: it is about to be serviced. Try another one, or later.",
            agent.name
        ),
        AgentState::Off => {
            format!("The desktop {} is out of service. Try another one, or later.", agent.name)
        }
    };
    Some(LocalResponse::new(503, text).with_header(format!("Retry-After: {RETRY_AFTER_S}")))
}

/// The proxy's own response where probes have found that the agent is down.
fn is_down(named: Option<&NamedAgent>, ip: IpAddr, down: &Down) -> LocalResponse {
    let name = named.map_or_else(|| format!("at {ip}"), |named| named.name.to_string());
    let since = humantime::format_rfc3339_seconds(down.since());
    let text = format!(
        "The desktop {name} is down since {since}: {}. It is tried again all the time; try it again later.",
        down.failure.detail
    );
    LocalResponse::new(503, text).with_header(format!("Retry-After: {}", down.retry_after_s))
}

/// Whether the proxy lives, which it does where this is asked; or is to get new users.
pub(crate) fn health(asks_ready: bool, is_ready: bool) -> LocalResponse {
    if asks_ready && !is_ready {
        return LocalResponse::new(503, "DCV Proxy drains: no new users, please.");
    }
    LocalResponse::new(200, "DCV Proxy OK")
}

/// The proxy's own response where a request names no agent.
fn without_agent(route: Route<'_>, method: &str, is_ready: bool) -> LocalResponse {
    match route {
        Route::Health { asks_ready } if matches!(method, "GET" | "HEAD") => health(asks_ready, is_ready),
        Route::Health { .. } => {
            LocalResponse::new(405, "/health answers GET and HEAD.").with_header("Allow: GET, HEAD")
        }
        Route::InvalidAddress => LocalResponse::new(
            404,
            "The first part of the path is no address: write /10.0.0.5/ or /[2001:db8::5]/.",
        ),
        Route::UnknownHost => LocalResponse::new(
            404,
            "The first part of the host name is no desktop's name and no address: write 10-0-0-5 for 10.0.0.5.",
        ),
        _ => LocalResponse::new(
            404,
            "No desktop is named, or none has this name: write https://<this host>/<name or IP>/.",
        ),
    }
}

fn content_length(framing: Framing) -> u64 {
    if let Framing::Length(length) = framing { length } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::health::{Failure, FailureKind, Health, HealthChange, HealthMap};
    use crate::http::h1::head::HeadLimits;

    const LIMITS: HeadLimits =
        HeadLimits { header_size_max: 1024, request_line_max: 256, header_count_max: 16 };
    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn policy(path_prefix: PrefixMode) -> Policy {
        Policy {
            agents: AllowedAgents::new(vec!["10.0.0.0/8".parse().expect("a network")]),
            default_agent: None,
            agent_domain: None,
            agent_port: 8443,
            path_prefix,
            host_header: HostHeader::StripPort,
            body_max: 10,
            has_passwords: false,
            has_session_resolver: false,
        }
    }

    /// Probes have found that 10.0.0.9 is down.
    fn down() -> HealthMap {
        let failure = Failure { kind: FailureKind::Refused, detail: "connect: refused".to_owned() };
        let health = Some(Health::Down(Down { failure, since_s: 0, retry_after_s: 7 }));
        HealthMap::default().with([HealthChange { agent: SocketAddr::from(([10, 0, 0, 9], 8443)), health }])
    }

    /// The status of the proxy's own response, or the agent and the path that it sees.
    fn decided(policy: &Policy, head: &str) -> Result<(String, String), u16> {
        let head = format!("{head}\r\nHost: p\r\n\r\n");
        let head = RequestHead::parse(head.as_bytes(), &LIMITS).expect("a head");
        let source = RequestSource { peer: CLIENT, trusted: false, client: CLIENT, secure: true };
        let agents = KnownAgents { health: down(), ..KnownAgents::default() };
        let now = Now { agents: &agents, is_ready: false, web_url_path: "", has_session: |_| false };
        match policy.decide(&head, policy.route(&head, &agents.directory), source, now) {
            Decision::Forward(Forward { agent, rewrite, .. }) => {
                Ok((agent.to_string(), rewrite.path.into_owned()))
            }
            Decision::Respond(response) | Decision::Reject { response, .. } => Err(response.status),
        }
    }

    #[test]
    fn a_request_goes_to_the_agent_that_it_names_or_is_answered_here() {
        let to = |path: &str| Ok(("10.0.0.5:8443".to_owned(), path.to_owned()));
        let upgrade = "Upgrade: websocket\r\nConnection: upgrade";
        let strip = policy(PrefixMode::Strip);
        assert_eq!(decided(&strip, "GET /10.0.0.5/a/b?q HTTP/1.1"), to("/a/b?q"));
        assert_eq!(decided(&policy(PrefixMode::Keep), "GET /10.0.0.5/a HTTP/1.1"), to("/10.0.0.5/a"));
        assert_eq!(decided(&strip, &format!("GET /10.0.0.5?q HTTP/1.1\r\n{upgrade}")), to("/?q"));
        assert_eq!(decided(&strip, "POST /10.0.0.5/ HTTP/1.1\r\nContent-Length: 10"), to("/"));
        for (head, status) in [
            ("GET /10.0.0.5 HTTP/1.1", 308),
            ("POST /10.0.0.5/ HTTP/1.1\r\nContent-Length: 11", 413),
            ("GET /11.0.0.5/ HTTP/1.1", 403),
            ("GET /010.0.0.5/ HTTP/1.1", 404),
            ("GET / HTTP/1.1", 404),
            ("GET /10.0.0.9/ HTTP/1.1", 503),
            ("GET /10.0.0.9 HTTP/1.1", 503),
            ("GET /health HTTP/1.1", 200),
            ("GET /health?ready HTTP/1.1", 503),
            ("POST /health HTTP/1.1", 405),
        ] {
            assert_eq!(decided(&strip, head), Err(status), "{head}");
        }
        let with_default = Policy { default_agent: Some([10, 0, 0, 5].into()), ..strip };
        assert_eq!(decided(&with_default, "GET /x HTTP/1.1"), to("/x"));
    }
}
