//! Decides who answers a request: an agent, with the rewrite that it is to see, or the proxy itself. Takes values and gives values:
//! it connects to nobody, counts nothing, logs nothing and writes no byte of a message.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use crate::access::rejections::RejectReason;
use crate::access::route::{AgentDomain, AllowedAgents, Route};
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
    /// The port of every agent.
    pub agent_port: u16,
    /// Whether agents see the `/<ip>` of the path.
    pub path_prefix: PrefixMode,
    /// The `Host` that agents get.
    pub host_header: HostHeader,
    /// Bytes of a request body.
    pub body_max: u64,
    /// Whether the proxy asks for passwords, which agents must not see then.
    pub has_passwords: bool,
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
    pub fn route<'a>(&self, head: &RequestHead<'a>) -> Route<'a> {
        Route::of_request(head.host, head.path, self.agent_domain.as_ref())
    }

    /// The agent that a route means, whether it may be reached or not.
    pub fn agent_of(&self, route: Route<'_>) -> Option<IpAddr> {
        match route {
            Route::Agent(agent, _) | Route::MissingSlash(agent, _) => Some(agent.into()),
            Route::Host(agent) => Some(agent),
            Route::Default => self.default_agent,
            Route::Health | Route::InvalidAddress | Route::UnknownHost => None,
        }
    }

    /// Decides who answers a request of that route and source.
    pub fn decide<'a>(
        &self,
        head: &RequestHead<'a>,
        route: Route<'a>,
        source: RequestSource,
    ) -> Decision<'a> {
        let Some(agent) = self.agent_of(route) else {
            return Decision::Respond(without_agent(route, head.method));
        };
        if !self.agents.allows(agent) {
            let text = "This address is none of the agents this proxy serves (--agents).";
            let response = LocalResponse::new(403, text);
            return Decision::Reject { reason: RejectReason::AgentNotAllowed, agent, response };
        }
        if self.body_max < content_length(head.framing) {
            return Decision::Respond(LocalResponse::new(413, BodyError::TooLarge.to_string()));
        }
        if let (Route::MissingSlash(ip, query), false) = (route, head.websocket) {
            let response = LocalResponse::new(308, "Moved: a slash is missing behind the agent's address.");
            return Decision::Respond(response.with_header(format!("Location: /{ip}/{query}")));
        }
        Decision::Forward(self.forward(head, route, source, agent))
    }

    fn forward<'a>(
        &self,
        head: &RequestHead<'a>,
        route: Route<'a>,
        source: RequestSource,
        agent: IpAddr,
    ) -> Forward<'a> {
        let is_stripped = self.path_prefix == PrefixMode::Strip;
        let behind_prefix = if is_stripped { Place::Prefix } else { Place::KeptPrefix };
        let (path, place) = match route {
            Route::Agent(_, rest) => (Cow::Borrowed(rest), behind_prefix),
            Route::MissingSlash(_, query) => (Cow::Owned(format!("/{query}")), behind_prefix),
            Route::Host(_) => (Cow::Borrowed(head.path), Place::OwnHost),
            _ => (Cow::Borrowed(head.path), Place::Root),
        };
        let agent = Agent::at(SocketAddr::new(agent, self.agent_port));
        let host = rewrite::host_for(head, self.host_header, agent.address.ip());
        let asked = head.host.map(|host| split_port(host).0).filter(|asked| *asked != split_port(&host).0);
        let path_prefix = PathPrefix {
            agent: agent.address.ip(),
            place,
            port: agent.address.port(),
            host,
            asked: asked.map(str::to_owned),
            bare: matches!(route, Route::MissingSlash(..)),
        };
        let rewrite = RequestRewrite {
            source,
            hides_passwords: self.has_passwords,
            path: if is_stripped { path } else { Cow::Borrowed(head.path) },
        };
        Forward { agent, rewrite, path_prefix }
    }
}

/// The proxy's own response where a request names no agent.
fn without_agent(route: Route<'_>, method: &str) -> LocalResponse {
    match route {
        Route::Health if matches!(method, "GET" | "HEAD") => LocalResponse::new(200, "DCV Proxy OK"),
        Route::Health => {
            LocalResponse::new(405, "/health answers GET and HEAD.").with_header("Allow: GET, HEAD")
        }
        Route::InvalidAddress => LocalResponse::new(
            404,
            "The first part of the path is no IPv4 address: write /10.0.0.5/ for 10.0.0.5.",
        ),
        Route::UnknownHost => LocalResponse::new(
            404,
            "The first part of the host name is no address: write 10-0-0-5 for 10.0.0.5.",
        ),
        _ => LocalResponse::new(404, "No desktop is named: write https://<this host>/<agent IP>/."),
    }
}

fn content_length(framing: Framing) -> u64 {
    if let Framing::Length(length) = framing { length } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        }
    }

    /// The status of the proxy's own response, or the agent and the path that it sees.
    fn decided(policy: &Policy, head: &str) -> Result<(String, String), u16> {
        let head = format!("{head}\r\nHost: p\r\n\r\n");
        let head = RequestHead::parse(head.as_bytes(), &LIMITS).expect("a head");
        let source = RequestSource { peer: CLIENT, trusted: false, client: CLIENT, secure: true };
        match policy.decide(&head, policy.route(&head), source) {
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
            ("GET /health HTTP/1.1", 200),
            ("POST /health HTTP/1.1", 405),
        ] {
            assert_eq!(decided(&strip, head), Err(status), "{head}");
        }
        let with_default = Policy { default_agent: Some([10, 0, 0, 5].into()), ..strip };
        assert_eq!(decided(&with_default, "GET /x HTTP/1.1"), to("/x"));
    }
}
