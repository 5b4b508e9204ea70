//! Where a path goes, and whether it may. Pure: the agent's address is parsed here, once, and nothing
//! re-parses it afterwards.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::agents::directory::{Directory, NamedAgent};
use crate::http::message::split_port;
use crate::transport::networks::{Network, Networks};

/// The agent that a path or host name means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AgentRef<'a> {
    /// One that is named by its address.
    Address(IpAddr),
    /// One of the directory.
    Named(&'a NamedAgent),
    /// One that a session resolver names by its address and port.
    Endpoint(SocketAddr),
}

impl AgentRef<'_> {
    /// Its address.
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Address(address) => address,
            Self::Named(agent) => agent.address.ip(),
            Self::Endpoint(address) => address.ip(),
        }
    }
}

/// The meaning of a path's first segment, or of a host name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route<'a> {
    /// `/<agent>/...`.
    Agent {
        /// The agent.
        agent: AgentRef<'a>,
        /// As the path names it.
        segment: &'a str,
        /// What follows that, with its slash.
        rest: &'a str,
    },
    /// `/<agent>` or `/<agent>?query`.
    MissingSlash {
        /// The agent.
        agent: AgentRef<'a>,
        /// As the path names it.
        segment: &'a str,
        /// The query with its question mark.
        query: &'a str,
    },
    /// `/pool/<name>/...`: one of the agents of a pool.
    Pool {
        /// The pool.
        pool: &'a str,
        /// `pool/<name>`.
        segment: &'a str,
        /// What follows that.
        rest: &'a str,
    },
    /// `/s/<id>/...`: the agent that has that session.
    Session {
        /// The session.
        session: &'a str,
        /// `s/<id>`.
        segment: &'a str,
        /// What follows that.
        rest: &'a str,
    },
    /// A host name that stands for the agent, which gets the whole path.
    Host(AgentRef<'a>),
    /// A host name under the domain of the agents that stands for none.
    UnknownHost,
    /// `/health`, answered by the proxy.
    Health {
        /// `/health?ready`: whether it is to get new users, and not whether it lives.
        asks_ready: bool,
    },
    /// Looks like an address and is none, such as `/010.0.0.5/` or `/256.1.1.1/`.
    InvalidAddress,
    /// Anything else: the default agent.
    Default,
}

impl<'a> Route<'a> {
    /// Of a request: its host decides where it lies under the agents' domain, and else its path.
    pub fn of_request(
        host: Option<&str>,
        path: &'a str,
        domain: Option<&AgentDomain>,
        directory: &'a Directory,
    ) -> Self {
        let by_host = host.zip(domain).and_then(|(host, domain)| domain.label(host));
        by_host.map_or_else(|| Self::of(path, directory), |label| Self::of_label(label, directory))
    }

    /// Of a path that names a session.
    pub fn of_session(path: &'a str) -> Option<Self> {
        let tail = path.strip_prefix('/')?;
        let id = tail.strip_prefix("s/")?;
        let end = id.find(['/', '?']).unwrap_or(id.len());
        let (session, rest) = id.split_at(end);
        Some(Self::Session { session, segment: &tail[..2 + end], rest })
    }

    /// A name of the directory, `10-0-0-5`, or `2001-db8--5` for IPv6.
    fn of_label(label: &str, directory: &'a Directory) -> Self {
        if let Some(agent) = directory.named(&label.to_ascii_lowercase()) {
            return Self::Host(AgentRef::Named(agent));
        }
        if label.contains(['.', ':']) {
            return Self::UnknownHost;
        }
        let v4 = label.replace('-', ".").parse().map(IpAddr::V4);
        let agent = v4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6));
        agent.map_or(Self::UnknownHost, |agent| Self::Host(AgentRef::Address(agent.to_canonical())))
    }

    /// Reads the first segment of a path that starts with a slash. Nothing is decoded or normalised.
    pub fn of(path: &'a str, directory: &'a Directory) -> Self {
        let tail = path.strip_prefix('/').unwrap_or(path);
        let end = tail.find(['/', '?']).unwrap_or(tail.len());
        let (segment, rest) = tail.split_at(end);
        if segment == "health" && !rest.starts_with('/') {
            return Self::Health { asks_ready: rest == "?ready" };
        }
        if segment == "pool" && directory.has_pools() && rest.starts_with('/') {
            let name = &rest[1..];
            let end = name.find(['/', '?']).unwrap_or(name.len());
            let (pool, rest) = name.split_at(end);
            return Self::Pool { pool, segment: &tail[..segment.len() + 1 + end], rest };
        }
        let named = directory.named(segment).map(AgentRef::Named);
        match named.or_else(|| address(segment).map(AgentRef::Address)) {
            Some(agent) if rest.starts_with('/') => Self::Agent { agent, segment, rest },
            Some(agent) => Self::MissingSlash { agent, segment, query: rest },
            None if is_four_numbers(segment) || segment.starts_with('[') => Self::InvalidAddress,
            None => Self::Default,
        }
    }
}

/// `10.0.0.5`, or `[2001:db8::5]`.
fn address(segment: &str) -> Option<IpAddr> {
    if let Some(text) = segment.strip_prefix('[') {
        let address: Ipv6Addr = text.strip_suffix(']')?.parse().ok()?;
        // An IPv4 address is written in one way only.
        return address.to_ipv4_mapped().is_none().then_some(IpAddr::V6(address));
    }
    // The standard parser takes decimal octets of 0 to 255 without leading zeros, nothing else.
    segment.parse().ok().map(IpAddr::V4)
}

/// The domain whose names stand for agents: `10-0-0-5.desktops.example.com` under `desktops.example.com`. It gives
/// each agent a browser origin of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentDomain(String);

/// A domain that can't be one.
#[derive(Debug, thiserror::Error)]
#[error("write a domain such as desktops.example.com, without a port, wildcard or dot in front")]
pub struct DomainError;

impl FromStr for AgentDomain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let is_label = |label: &str| {
            !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let is_domain = text.split('.').all(is_label) && text.parse::<IpAddr>().is_err();
        if is_domain { Ok(Self(text.to_owned())) } else { Err(DomainError) }
    }
}

impl fmt::Display for AgentDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AgentDomain {
    /// What stands before the domain in `host`, which may end with a port; none where it lies elsewhere.
    fn label<'a>(&self, host: &'a str) -> Option<&'a str> {
        let name = split_port(host).0;
        let at = name.len().checked_sub(self.0.len())?;
        let (label, domain) = name.split_at_checked(at)?;
        if domain.eq_ignore_ascii_case(&self.0) { label.strip_suffix('.') } else { None }
    }
}

fn is_four_numbers(segment: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    segment.split('.').count() == 4 && segment.split('.').all(number)
}

/// The addresses that may be dialled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AllowedAgents(Networks);

impl AllowedAgents {
    /// From the prefixes the operator named.
    pub fn new(prefixes: Vec<Network>) -> Self {
        Self(prefixes.into())
    }

    /// Whether no address may be dialled at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `agent` lies in a named prefix. Loopback, link-local, multicast and the unspecified address
    /// count only where the prefix lies inside that range itself: `0.0.0.0/0` names none of them.
    pub fn allows(&self, agent: IpAddr) -> bool {
        let agent = agent.to_canonical();
        let special = SPECIAL_RANGES.iter().find(|range| range.contains(&agent));
        self.0.holding(agent).any(|prefix| special.is_none_or(|range| prefix.lies_in(range)))
    }
}

/// Addresses that a prefix around them does not name.
const SPECIAL_RANGES: [IpNet; 8] = [
    v4(127, 0, 8),
    v4(169, 254, 16),
    // Multicast, reserved and broadcast.
    v4(224, 0, 3),
    // "This host on this network": the kernel takes 0.0.0.0 for loopback.
    v4(0, 0, 8),
    v6(0xfe80, 10),
    v6(0xff00, 8),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
];

const fn v4(a: u8, b: u8, bits: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), bits))
}

const fn v6(first: u16, bits: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::directory::DirectoryRules;
    use crate::agents::directory_text::Format;

    /// An agent whose address is written as in the path.
    fn agent<'a>(segment: &'a str, rest: &'a str) -> Route<'a> {
        let agent = AgentRef::Address(segment.trim_matches(['[', ']']).parse().expect("an address"));
        Route::Agent { agent, segment, rest }
    }

    fn missing_slash<'a>(segment: &'a str, query: &'a str) -> Route<'a> {
        let Route::Agent { agent, segment, .. } = agent(segment, "/") else { unreachable!() };
        Route::MissingSlash { agent, segment, query }
    }

    fn directory() -> Directory {
        let text = "[[agent]]\nname = \"gpu-07\"\naddress = \"10.0.0.7\"\n";
        let rules = DirectoryRules { ports: &[8443], is_allowed: &|_| true, names_files: true };
        Directory::parse(text, Format::Toml, rules).expect("a directory")
    }

    #[test]
    fn the_first_segment_alone_decides() {
        let directory = directory();
        let seven = AgentRef::Named(directory.named("gpu-07").expect("it is there"));
        let routes = [
            ("/10.0.0.5/", agent("10.0.0.5", "/")),
            ("/10.0.0.5/a/b?q", agent("10.0.0.5", "/a/b?q")),
            ("/10.0.0.5/x//y/../z%2F", agent("10.0.0.5", "/x//y/../z%2F")),
            ("/10.0.0.5/../10.0.0.6/x", agent("10.0.0.5", "/../10.0.0.6/x")),
            ("/10.0.0.5", missing_slash("10.0.0.5", "")),
            ("/10.0.0.5?q=/x", missing_slash("10.0.0.5", "?q=/x")),
            ("/[2001:db8::5]/a", agent("[2001:db8::5]", "/a")),
            ("/[2001:DB8:0::5]?q", missing_slash("[2001:DB8:0::5]", "?q")),
            ("/gpu-07/a?q", Route::Agent { agent: seven, segment: "gpu-07", rest: "/a?q" }),
            ("/gpu-07", Route::MissingSlash { agent: seven, segment: "gpu-07", query: "" }),
            ("/GPU-07/", Route::Default),
            ("/gpu-08/", Route::Default),
            ("/gpu-07%2F", Route::Default),
            ("/health", Route::Health { asks_ready: false }),
            ("/health?x", Route::Health { asks_ready: false }),
            ("/health?ready", Route::Health { asks_ready: true }),
            ("/health/", Route::Default),
            ("/healthy", Route::Default),
            ("/", Route::Default),
            ("//10.0.0.5/", Route::Default),
            ("/10%2E0%2E0%2E5/", Route::Default),
            ("/10.0.0/", Route::Default),
            ("/10.0.0.5.6/", Route::Default),
            ("/10.0.0.5:22/", Route::Default),
            ("/10.0.0.x/", Route::Default),
            ("/2001:db8::5/", Route::Default),
            ("/010.0.0.5/", Route::InvalidAddress),
            ("/10.0.0.05/", Route::InvalidAddress),
            ("/256.1.1.1/x", Route::InvalidAddress),
            ("/999.1.1.1/", Route::InvalidAddress),
            ("/1111111111111.1.1.1", Route::InvalidAddress),
            ("/[10.0.0.5]/", Route::InvalidAddress),
            ("/[::ffff:10.0.0.5]/", Route::InvalidAddress),
            ("/[2001:db8::5/", Route::InvalidAddress),
            ("/[2001:db8::5]x/", Route::InvalidAddress),
            ("/[fe80::1%eth0]/", Route::InvalidAddress),
        ];
        for (path, route) in routes {
            assert_eq!(Route::of(path, &directory), route, "{path}");
        }
    }

    #[test]
    fn a_pool_is_one_only_where_an_agent_is_part_of_any() {
        let text = "[[agent]]\nname = \"gpu-07\"\naddress = \"10.0.0.7\"\npools = [\"cad\"]\n";
        let rules = DirectoryRules { ports: &[8443], is_allowed: &|_| true, names_files: true };
        let with_pools = Directory::parse(text, Format::Toml, rules).expect("a directory");
        let pool = |pool, segment, rest| Route::Pool { pool, segment, rest };
        for (path, route) in [
            ("/pool/cad/", pool("cad", "pool/cad", "/")),
            ("/pool/cad/a/b?q", pool("cad", "pool/cad", "/a/b?q")),
            ("/pool/cad", pool("cad", "pool/cad", "")),
            ("/pool/cad?q=/x", pool("cad", "pool/cad", "?q=/x")),
            ("/pool/", pool("", "pool/", "")),
            ("/pool//x", pool("", "pool/", "/x")),
            ("/pool", Route::Default),
            ("/pools/cad/", Route::Default),
        ] {
            assert_eq!(Route::of(path, &with_pools), route, "{path}");
            assert_eq!(Route::of(path, &directory()), Route::Default, "{path}");
        }
    }

    fn allowed(prefixes: &[&str]) -> AllowedAgents {
        AllowedAgents::new(prefixes.iter().map(|p| p.parse().expect("a prefix")).collect())
    }

    #[test]
    fn a_host_under_the_agents_domain_decides_and_no_other_does() {
        let directory = directory();
        let domain: AgentDomain = "Desktops.example.com".parse().expect("a domain");
        let at = |address: &str| Route::Host(AgentRef::Address(address.parse().expect("an address")));
        let seven = Route::Host(AgentRef::Named(directory.named("gpu-07").expect("it is there")));
        let path = "/10.0.0.6/x";
        let six = agent("10.0.0.6", "/x");
        let routes = [
            (Some("10-0-0-5.desktops.example.com"), at("10.0.0.5")),
            (Some("10-0-0-5.DESKTOPS.example.com:8443"), at("10.0.0.5")),
            (Some("2001-db8--5.desktops.example.com"), at("2001:db8::5")),
            (Some("--ffff-a00-5.desktops.example.com"), at("10.0.0.5")),
            (Some("gpu-07.desktops.example.com"), seven),
            (Some("GPU-07.desktops.example.com:8443"), seven),
            (Some("gpu-08.desktops.example.com"), Route::UnknownHost),
            (Some("10-0-0-05.desktops.example.com"), Route::UnknownHost),
            (Some("10.0.0.5.desktops.example.com"), Route::UnknownHost),
            (Some("x.10-0-0-5.desktops.example.com"), Route::UnknownHost),
            (Some(".desktops.example.com"), Route::UnknownHost),
            (Some("desktops.example.com"), six),
            (Some("10-0-0-5.example.com"), six),
            (Some("10-0-0-5xdesktops.example.com"), six),
            (Some("10.0.0.1"), six),
            (None, six),
        ];
        for (host, route) in routes {
            assert_eq!(Route::of_request(host, path, Some(&domain), &directory), route, "{host:?}");
            assert_eq!(Route::of_request(host, path, None, &directory), six, "{host:?}");
        }
        for domain in ["", ".a", "a.", "*.a", "a:1", "10.0.0.1", "a b", "a/b"] {
            assert!(domain.parse::<AgentDomain>().is_err(), "{domain}");
        }
    }

    #[test]
    fn only_named_prefixes_are_dialled() {
        let agents = allowed(&["10.0.0.0/24", "2001:db8::/64"]);
        for yes in ["10.0.0.0", "10.0.0.255", "2001:db8::1", "::ffff:10.0.0.9"] {
            assert!(agents.allows(yes.parse().expect("an address")), "{yes}");
        }
        for no in ["10.0.1.0", "8.8.8.8", "2001:db9::1", "127.0.0.1"] {
            assert!(!agents.allows(no.parse().expect("an address")), "{no}");
        }
        assert!(!allowed(&[]).allows([10, 0, 0, 5].into()));
    }

    #[test]
    fn special_ranges_need_a_prefix_of_their_own() {
        let all = allowed(&["0.0.0.0/0", "::/0"]);
        for no in [
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "ff02::1",
            "::",
            "::ffff:127.0.0.1",
        ] {
            assert!(!all.allows(no.parse().expect("an address")), "{no}");
        }
        assert!(all.allows([10, 0, 0, 5].into()));
        assert!(allowed(&["127.0.0.2/32"]).allows("127.0.0.2".parse().expect("an address")));
        assert!(!allowed(&["127.0.0.2/32"]).allows("127.0.0.3".parse().expect("an address")));
        assert!(allowed(&["169.254.0.0/16"]).allows("169.254.169.254".parse().expect("an address")));
    }
}
