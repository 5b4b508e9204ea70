//! Where a path goes, and whether it may. Pure: the agent's address is parsed here, once, and nothing
//! re-parses it afterwards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What the first segment of a path asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route<'a> {
    /// `/<ip>/...`: the agent, and what follows the prefix with its slash.
    Agent(Ipv4Addr, &'a str),
    /// `/<ip>` or `/<ip>?query`: the agent, and the query with its question mark.
    NoSlash(Ipv4Addr, &'a str),
    /// `/health`, answered by the proxy.
    Health,
    /// Looks like an address and is none, such as `/010.0.0.5/` or `/256.1.1.1/`.
    NotAnAddress,
    /// Anything else: the default agent.
    Default,
}

impl<'a> Route<'a> {
    /// Reads the first segment of a path that starts with a slash. Nothing is decoded or normalised.
    pub fn of(path: &'a str) -> Self {
        let tail = path.strip_prefix('/').unwrap_or(path);
        let end = tail.find(['/', '?']).unwrap_or(tail.len());
        let (segment, rest) = tail.split_at(end);
        if segment == "health" && !rest.starts_with('/') {
            return Self::Health;
        }
        if !is_four_numbers(segment) {
            return Self::Default;
        }
        // The standard parser takes decimal octets of 0 to 255 without leading zeros, nothing else.
        match segment.parse() {
            Err(_) => Self::NotAnAddress,
            Ok(agent) if rest.starts_with('/') => Self::Agent(agent, rest),
            Ok(agent) => Self::NoSlash(agent, rest),
        }
    }
}

fn is_four_numbers(segment: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    segment.split('.').count() == 4 && segment.split('.').all(number)
}

/// The addresses that may be dialled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AllowedAgents(Vec<IpNet>);

impl AllowedAgents {
    /// From the prefixes the operator named.
    pub fn new(prefixes: Vec<IpNet>) -> Self {
        Self(prefixes)
    }

    /// Whether no address may be dialled at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `agent` lies in a named prefix. Loopback, link-local, multicast and the unspecified address
    /// count only where the prefix lies inside that range itself: `0.0.0.0/0` names none of them.
    pub fn allows(&self, agent: IpAddr) -> bool {
        let agent = agent.to_canonical();
        let special = special_ranges().into_iter().find(|range| range.contains(&agent));
        self.0
            .iter()
            .filter(|prefix| prefix.contains(&agent))
            .any(|prefix| special.is_none_or(|range| range.contains(prefix)))
    }
}

fn special_ranges() -> [IpNet; 8] {
    let v4 = |a, b, bits| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), bits));
    let v6 = |a, bits| IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, 0, 0, 0, 0, 0, 0, 0), bits));
    let loopback6 = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128));
    let unspecified6 = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128));
    [
        v4(127, 0, 8),
        v4(169, 254, 16),
        // Multicast, reserved and broadcast.
        v4(224, 0, 3),
        // "This host on this network": the kernel takes 0.0.0.0 for loopback.
        v4(0, 0, 8),
        v6(0xfe80, 10),
        v6(0xff00, 8),
        loopback6,
        unspecified6,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

    #[test]
    fn the_first_segment_alone_decides() {
        let routes = [
            ("/10.0.0.5/", Route::Agent(FIVE, "/")),
            ("/10.0.0.5/a/b?q", Route::Agent(FIVE, "/a/b?q")),
            ("/10.0.0.5/x//y/../z%2F", Route::Agent(FIVE, "/x//y/../z%2F")),
            ("/10.0.0.5/../10.0.0.6/x", Route::Agent(FIVE, "/../10.0.0.6/x")),
            ("/10.0.0.5", Route::NoSlash(FIVE, "")),
            ("/10.0.0.5?q=/x", Route::NoSlash(FIVE, "?q=/x")),
            ("/health", Route::Health),
            ("/health?x", Route::Health),
            ("/health/", Route::Default),
            ("/healthy", Route::Default),
            ("/", Route::Default),
            ("//10.0.0.5/", Route::Default),
            ("/10%2E0%2E0%2E5/", Route::Default),
            ("/10.0.0/", Route::Default),
            ("/10.0.0.5.6/", Route::Default),
            ("/10.0.0.5:22/", Route::Default),
            ("/10.0.0.x/", Route::Default),
            ("/010.0.0.5/", Route::NotAnAddress),
            ("/10.0.0.05/", Route::NotAnAddress),
            ("/256.1.1.1/x", Route::NotAnAddress),
            ("/999.1.1.1/", Route::NotAnAddress),
            ("/1111111111111.1.1.1", Route::NotAnAddress),
        ];
        for (path, route) in routes {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }

    fn allowed(prefixes: &[&str]) -> AllowedAgents {
        AllowedAgents::new(prefixes.iter().map(|p| p.parse().expect("a prefix")).collect())
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
        assert!(!allowed(&[]).allows(IpAddr::V4(FIVE)));
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
        assert!(all.allows(IpAddr::V4(FIVE)));
        assert!(allowed(&["127.0.0.2/32"]).allows("127.0.0.2".parse().expect("an address")));
        assert!(!allowed(&["127.0.0.2/32"]).allows("127.0.0.3".parse().expect("an address")));
        assert!(allowed(&["169.254.0.0/16"]).allows("169.254.169.254".parse().expect("an address")));
    }
}
