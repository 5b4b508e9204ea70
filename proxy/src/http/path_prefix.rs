//! Paths and hosts in a response that mean the agent, as the client has to see them. Pure. docs/operations.md has the table
//! of what becomes of each header.

use std::net::IpAddr;

use crate::http::message::{FieldSink, Header, bracketed, split_port};

/// Where an agent's paths are for the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// Behind `/<agent>`, which the agent does not see.
    Prefix,
    /// Behind `/<agent>`, which the agent sees.
    KeptPrefix,
    /// At the root of a host that other agents share: the default agent.
    Root,
    /// At the root of a host name of its own.
    OwnHost,
}

/// Where the agent's paths are for the client: its prefix is put back where the agent names a path of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PathPrefix {
    /// The agent.
    pub agent: IpAddr,
    /// The first part of the path, by which the client names it; empty where the path does not.
    pub segment: String,
    /// What stands before its paths there, where a session resolver says so; else empty.
    pub web_url_path: String,
    /// Where its paths are.
    pub place: Place,
    /// The port it is reached on.
    pub port: u16,
    /// The host it was told.
    pub host: String,
    /// The host that the client asked, without its port; none where the agent was told that one.
    pub asked: Option<String>,
    /// Whether the request came without the slash behind the prefix, so that its directory is `/`.
    pub bare: bool,
}

impl PathPrefix {
    fn prefix(&self) -> String {
        if self.place == Place::Prefix { format!("/{}", self.segment) } else { String::new() }
    }

    /// The host name that a browser sees.
    fn seen(&self) -> &str {
        self.asked.as_deref().unwrap_or_else(|| split_port(&self.host).0)
    }

    /// Whether the browser has paths of other agents at the same origin.
    fn has_neighbours(&self) -> bool {
        matches!(self.place, Place::Prefix | Place::KeptPrefix)
    }

    /// An agent's path as it is behind the prefix, which stands for all that stands before it there.
    fn without_web_url_path<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        let behind = path.strip_prefix(self.web_url_path.as_bytes());
        behind.filter(|rest| rest.first().is_none_or(|byte| b"/?#".contains(byte))).unwrap_or(path)
    }

    /// The path with its prefix, but where an agent that knows of it has put it there already.
    fn place(&self, path: &[u8]) -> Vec<u8> {
        let prefix = self.prefix();
        let path = self.without_web_url_path(path);
        let behind = path.strip_prefix(prefix.as_bytes());
        if behind.is_some_and(|rest| rest.first().is_none_or(|byte| b"/?#".contains(byte))) {
            return path.to_vec();
        }
        [prefix.as_bytes(), path].concat()
    }
}

/// Header lines that are a URL and nothing else.
const URLS: [&str; 4] = ["location", "content-location", "sourcemap", "x-sourcemap"];
/// Header lines by which an agent would lead clients around the proxy, or bind them to a key that is not the proxy's.
const NEVER: [&str; 3] = ["alt-svc", "public-key-pins", "public-key-pins-report-only"];
/// Header lines that hold for the whole origin: an agent has no say for its neighbours there, and is told nothing of them.
const ORIGINS: [&str; 3] = ["clear-site-data", "nel", "report-to"];

/// Gives a field as the client has to see it, if it may see it.
pub fn placed(header: &Header<'_>, path_prefix: &PathPrefix, out: &mut impl FieldSink) {
    let is_any_of = |names: &[&str]| names.iter().any(|name| header.is(name));
    let value = if is_any_of(&URLS) {
        Some(url(header.value, path_prefix))
    } else if header.is("set-cookie") {
        Some(cookie(header.value, path_prefix))
    } else if header.is("link") {
        Some(link(header.value, path_prefix))
    } else if header.is("refresh") {
        Some(refresh(header.value, path_prefix))
    } else if header.is("service-worker-allowed") {
        scope(header.value, path_prefix)
    } else if is_any_of(&NEVER) || (path_prefix.has_neighbours() && is_any_of(&ORIGINS)) {
        None
    } else {
        return out.field(header.name, &[header.value]);
    };
    if let Some(value) = value {
        out.field(header.name, &[&value]);
    }
}

/// `/x` and `https://<agent>[:port]/x` become `/<ip>/x`; what points elsewhere stays.
fn url(value: &[u8], path_prefix: &PathPrefix) -> Vec<u8> {
    let Some(path) = own_path(value, path_prefix) else { return value.to_vec() };
    let slash: &[u8] = if path.starts_with(b"/") { b"" } else { b"/" };
    path_prefix.place(&[slash, path].concat())
}

fn own_path<'a>(value: &'a [u8], path_prefix: &PathPrefix) -> Option<&'a [u8]> {
    if value.starts_with(b"/") && !value.starts_with(b"//") {
        return Some(value);
    }
    let (default_port, rest) = strip_scheme(value)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = std::str::from_utf8(authority).ok()?;
    is_own(authority, default_port, path_prefix).then_some(path)
}

/// Whether an authority means the agent. One that the browser sees anyway is left as it is where no prefix is put back.
fn is_own(authority: &str, default_port: &str, path_prefix: &PathPrefix) -> bool {
    let (name, port) = split_port(authority);
    let is_seen = name.eq_ignore_ascii_case(path_prefix.seen());
    let is_told = name.eq_ignore_ascii_case(split_port(&path_prefix.host).0);
    if is_seen && path_prefix.place != Place::Prefix {
        return false;
    }
    let names_itself = ["localhost", "127.0.0.1", "[::1]"].iter().any(|own| name.eq_ignore_ascii_case(own));
    let own_name = name == bracketed(path_prefix.agent) || is_told || is_seen || names_itself;
    let own_port = port
        .is_none_or(|port| port.is_empty() || port == default_port || port == path_prefix.port.to_string());
    (own_name && own_port) || authority.eq_ignore_ascii_case(&path_prefix.host)
}

/// The port that the scheme means where none is written, and what follows the scheme.
fn strip_scheme(value: &[u8]) -> Option<(&'static str, &[u8])> {
    [("https://", "443"), ("http://", "80"), ("//", "443")].into_iter().find_map(|(scheme, port)| {
        let (start, rest) = value.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme.as_bytes()).then_some((port, rest))
    })
}

/// Targets of one line that get the prefix; pages name some dozens. What it costs to place more is an agent's choice, and
/// a link that leaves the prefix is only not preloaded.
const LINKS_MAX: usize = 128;
/// Attributes of a cookie that are passed on; browsers know ten. A path or a domain behind them would be lost, which
/// leaves the cookie to the request's own directory and host.
const ATTRIBUTES_MAX: usize = 16;

/// `</x>; rel=preload` becomes `</<ip>/x>; rel=preload`, for each target (RFC 8288 3).
fn link(value: &[u8], path_prefix: &PathPrefix) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(value.len() + 32), value);
    let (mut quoted, mut escaped, mut links) = (false, false, 0);
    while let Some((byte, after)) = rest.split_first() {
        out.push(*byte);
        rest = after;
        quoted ^= *byte == b'"' && !escaped;
        escaped = quoted && *byte == b'\\' && !escaped;
        if *byte == b'<' && !quoted && links < LINKS_MAX {
            links += 1;
            let end = after.iter().position(|byte| *byte == b'>').unwrap_or(after.len());
            out.extend_from_slice(&url(&after[..end], path_prefix));
            rest = &after[end..];
        }
    }
    out
}

/// `5; url=/x` becomes `5; url=/<ip>/x`, in any writing that browsers take (HTML, "shared declarative refresh steps").
fn refresh(value: &[u8], path_prefix: &PathPrefix) -> Vec<u8> {
    let is_space = u8::is_ascii_whitespace;
    let skip = |from: usize, skips: &dyn Fn(&u8) -> bool| {
        from + value[from..].iter().take_while(|byte| skips(byte)).count()
    };
    let time = skip(0, &|byte| byte.is_ascii_digit() || *byte == b'.' || is_space(byte));
    let mut at = skip(time, &|byte| matches!(byte, b';' | b',') || is_space(byte));
    if at == 0 {
        return value.to_vec();
    }
    if value[at..].get(..3).is_some_and(|name| name.eq_ignore_ascii_case(b"url")) {
        let equals = skip(at + 3, &is_space);
        if value.get(equals) == Some(&b'=') {
            at = skip(equals + 1, &is_space);
        }
    }
    let quote = value.get(at).copied().filter(|byte| matches!(byte, b'"' | b'\''));
    at += usize::from(quote.is_some());
    let end = value[at..].iter().position(|byte| Some(*byte) == quote).map_or(value.len(), |end| at + end);
    [&value[..at], &url(&value[at..end], path_prefix), &value[end..]].concat()
}

/// How far up a service worker may reach: no further than to the agent's prefix. A path that could climb out of it gives
/// no permission at all.
fn scope(value: &[u8], path_prefix: &PathPrefix) -> Option<Vec<u8>> {
    if !path_prefix.has_neighbours() {
        return Some(url(value, path_prefix));
    }
    let path = own_path(value, path_prefix)?;
    let climbs = path.windows(2).any(|two| two == b"..") || path.iter().any(|byte| b"%\\\t".contains(byte));
    let placed = url(path, path_prefix);
    let inside = format!("/{}/", path_prefix.segment);
    (!climbs && placed.starts_with(inside.as_bytes())).then_some(placed)
}

/// `Path=/x` becomes `Path=/<ip>/x`; without a path the browser takes the directory of the request, which has
/// the prefix already (RFC 6265 5.1.4), but for a bare request. Browsers refuse a `__Host-` cookie with a path:
/// better that than one desktop's cookie sent to all. A `Domain` for which the browser would refuse the cookie is left
/// out, which makes it one of the host alone.
fn cookie(value: &[u8], path_prefix: &PathPrefix) -> Vec<u8> {
    let mut parts = value.split(|b| *b == b';');
    let mut out = parts.next().unwrap_or_default().to_vec();
    let mut placed = !(path_prefix.bare && path_prefix.place == Place::Prefix);
    for part in parts.take(ATTRIBUTES_MAX) {
        match attribute(part) {
            Some((name, _, domain)) if name.eq_ignore_ascii_case(b"domain") && !fits(domain, path_prefix) => {
            }
            Some((name, before, path)) if name.eq_ignore_ascii_case(b"path") && path.starts_with(b"/") => {
                placed = true;
                out.extend([b";", before, &path_prefix.place(path)].concat());
            }
            _ => out.extend([b";", part].concat()),
        }
    }
    if !placed {
        out.extend_from_slice(format!("; Path={}/", path_prefix.prefix()).as_bytes());
    }
    out
}

/// Whether a browser takes a cookie of this domain from the host it sees (RFC 6265 5.1.3). A host name of the agent's own
/// has neighbours under the same domain, who are not to get its cookies.
fn fits(domain: &[u8], path_prefix: &PathPrefix) -> bool {
    let seen = path_prefix.seen().as_bytes();
    let domain = domain.strip_prefix(b".").unwrap_or(domain);
    let is_above = || {
        let at = seen.len().checked_sub(domain.len() + 1)?;
        let is_name = path_prefix.seen().parse::<IpAddr>().is_err() && !seen.starts_with(b"[");
        Some(is_name && seen[at] == b'.' && seen[at + 1..].eq_ignore_ascii_case(domain))
    };
    domain.is_empty()
        || seen.eq_ignore_ascii_case(domain)
        || (path_prefix.place != Place::OwnHost && is_above().unwrap_or(false))
}

/// The name, what stands up to the value, and the value of ` Path=/x`, as they were written.
fn attribute(part: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let equals = part.iter().position(|b| *b == b'=')?;
    let value = equals + 1 + part[equals + 1..].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let (before, value) = part.split_at(value);
    Some((part[..equals].trim_ascii(), before, value.trim_ascii_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_lists_beyond_the_limits_costs_no_more() {
        let agent = IpAddr::from([10, 0, 0, 5]);
        let (host, place) = ("h".to_owned(), Place::Prefix);
        let segment = "10.0.0.5".to_owned();
        let path_prefix = PathPrefix {
            agent,
            segment,
            place,
            port: 8443,
            host,
            asked: None,
            bare: false,
            web_url_path: String::new(),
        };
        let links = link("</a>,".repeat(LINKS_MAX + 2).as_bytes(), &path_prefix);
        let placed = "</10.0.0.5/a>,".repeat(LINKS_MAX) + &"</a>,".repeat(2);
        assert_eq!(String::from_utf8_lossy(&links), placed);
        let attributes = format!("a=b{}; Path=/", "; x".repeat(ATTRIBUTES_MAX));
        let kept = format!("a=b{}", "; x".repeat(ATTRIBUTES_MAX));
        assert_eq!(String::from_utf8_lossy(&cookie(attributes.as_bytes(), &path_prefix)), kept);
    }

    #[test]
    fn white_space_before_a_cookies_path_hides_nothing() {
        let agent = IpAddr::from([10, 0, 0, 5]);
        let path_prefix = PathPrefix {
            agent,
            segment: "10.0.0.5".to_owned(),
            place: Place::Prefix,
            port: 8443,
            host: "h".to_owned(),
            asked: None,
            bare: false,
            web_url_path: String::new(),
        };
        for (from, to) in [("a; Path=/", "a; Path=/10.0.0.5/"), ("a; Path= \t/", "a; Path= \t/10.0.0.5/")] {
            assert_eq!(cookie(from.as_bytes(), &path_prefix), to.as_bytes());
        }
    }
}
