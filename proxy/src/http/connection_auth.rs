//! Logins that hold for a connection instead of a request (NTLM, Negotiate: RFC 4559): an agent serves whoever comes
//! by such a connection as the client that logged in on it. Pure.

use crate::http::message::Header;

/// The schemes that are known to be shown with each request: IANA's registry without Negotiate. Any other may log
/// the whole connection in.
const PER_REQUEST: [&str; 13] = [
    "Basic",
    "Bearer",
    "Concealed",
    "Digest",
    "DPoP",
    "GNAP",
    "HOBA",
    "Mutual",
    "OAuth",
    "PrivateToken",
    "SCRAM-SHA-1",
    "SCRAM-SHA-256",
    "vapid",
];

/// Schemes of a connection (RFC 4559) that browsers speak.
const PER_CONNECTION: [&str; 2] = ["NTLM", "Negotiate"];

/// Header lines that name schemes (RFC 9110 11.6, 11.7).
const SCHEMES: [&str; 4] = ["authorization", "www-authenticate", "proxy-authenticate", "proxy-authorization"];
/// Header lines of parameters, which begin with a scheme only where it is one of a connection (RFC 4559).
const OUTCOMES: [&str; 2] = ["authentication-info", "proxy-authentication-info"];

/// How the header lines begin in which proxies say whom they speak for.
const FORWARDED: &[u8] = b"x-forwarded-";

/// The effect of a request on logins that hold for a connection (NTLM, Negotiate).
#[derive(Clone, Copy, Debug)]
pub struct Login {
    /// One is tried.
    pub is_tried: bool,
    /// The request is made for somebody else, as by a balancer: others on the same connection may be for others.
    pub is_for_another: bool,
}

impl Login {
    /// Of a request's header lines.
    pub fn of_request(headers: &[Header<'_>]) -> Self {
        // Some proxies leave the list of addresses out, and say one of the others.
        let is_forwarded = |header: &Header<'_>| {
            let start = header.name.as_bytes().get(..FORWARDED.len()).unwrap_or_default();
            start.eq_ignore_ascii_case(FORWARDED)
                || ["via", "forwarded", "x-real-ip"].iter().any(|name| header.is(name))
        };
        Self { is_tried: has_connection_login(headers), is_for_another: headers.iter().any(is_forwarded) }
    }
}

/// Whether a login that may hold for the whole connection is asked for, tried or told of here.
pub fn has_connection_login(headers: &[Header<'_>]) -> bool {
    headers.iter().any(|header| {
        let is_any_of = |names: &[&str]| names.iter().any(|name| header.is(name));
        header.is("persistent-auth")
            || (is_any_of(&SCHEMES) && names_scheme_of_connection(header.value, true))
            || (is_any_of(&OUTCOMES) && names_scheme_of_connection(header.value, false))
    })
}

/// Whether one of the schemes is named that are known to need a connection of the client's own.
pub(crate) fn needs_own_connection(headers: &[Header<'_>]) -> bool {
    let is_known = |member: &[u8]| {
        let scheme = &member[..token_length(member)];
        PER_CONNECTION.iter().any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()))
    };
    let lines = headers.iter().filter(|header| SCHEMES.iter().any(|name| header.is(name)));
    lines.flat_map(|header| Members { rest: header.value, is_unclosed: false }).any(is_known)
}

/// `starts_with_scheme`: the first member can't be a parameter of a scheme before it.
fn names_scheme_of_connection(value: &[u8], starts_with_scheme: bool) -> bool {
    let mut members = Members { rest: value, is_unclosed: false };
    let mut may_be_parameter = !starts_with_scheme;
    let found = members.by_ref().filter(|member| !member.is_empty()).any(|member| {
        let is_parameter = std::mem::replace(&mut may_be_parameter, true) && is_parameter(member);
        !is_parameter && !is_per_request(member)
    });
    found || members.is_unclosed
}

/// `name=value`, with white space at most around the `=`.
fn is_parameter(member: &[u8]) -> bool {
    member[token_length(member)..].trim_ascii_start().starts_with(b"=")
}

fn is_per_request(member: &[u8]) -> bool {
    let scheme = &member[..token_length(member)];
    PER_REQUEST.iter().any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()))
}

fn token_length(member: &[u8]) -> usize {
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"=\",".contains(byte);
    member.iter().position(is_end).unwrap_or(member.len())
}

/// The members of a list in which commas may be quoted.
struct Members<'a> {
    rest: &'a [u8],
    /// A quote was never closed, so that what it hides is not known.
    is_unclosed: bool,
}

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let (mut quoted, mut escaped) = (false, false);
        let end = self.rest.iter().position(|byte| {
            let is_end = !quoted && *byte == b',';
            quoted ^= *byte == b'"' && !escaped;
            escaped = quoted && *byte == b'\\' && !escaped;
            is_end
        });
        self.is_unclosed |= quoted;
        let (member, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.get(1..).unwrap_or_default();
        Some(member.trim_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binds(line: &str) -> bool {
        let (name, value) = line.split_once(": ").expect("a header line");
        has_connection_login(&[Header { name, value: value.as_bytes() }])
    }

    #[test]
    fn schemes_of_a_connection_are_found_wherever_they_stand() {
        for line in [
            "Authorization: NTLM TlRM",
            "AUTHORIZATION: ntlm",
            "authorization: nEgOtIaTe\tYII=",
            "Authorization: Negotiate",
            "Authorization: Basic\u{b}x",
            "Authorization: key=abc",
            "WWW-Authenticate: Basic realm=\"a\",NTLM",
            "WWW-Authenticate: Basic realm=\"a \\\" \\\\\", Negotiate",
            "WWW-Authenticate: ,, Kerberos",
            "WWW-Authenticate: Digest a=b, Basic, NTLM TlRM==",
            "WWW-Authenticate: Basic realm=\"a, NTLM",
            "Proxy-Authenticate: Nego2",
            "Authentication-Info: Negotiate oRQ=",
            "Persistent-Auth: true",
        ] {
            assert!(binds(line), "{line}");
        }
    }

    #[test]
    fn schemes_of_a_request_leave_the_connection_to_all() {
        for line in [
            "Authorization: Basic YTpi",
            "authorization: BEARER x",
            "Authorization: Digest username=\"NTLM, x\", qop=auth , nc = 1",
            "WWW-Authenticate: Basic realm=\"a, NTLM\", Digest qop=\"auth, auth-int\"",
            "WWW-Authenticate: ",
            "Authentication-Info: nextnonce=\"x\", qop=auth",
            "X-Authenticate: NTLM",
        ] {
            assert!(!binds(line), "{line}");
        }
    }
}
