//! Where a request comes from: the peer of the connection, or the client that a trusted proxy names
//! (`--trust-forwarded`). Headers of any other peer are never looked at. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::http::message::{self, Header};
use crate::observe::request_id::RequestId;
use crate::transport::networks::Networks;

/// Members of an `X-Forwarded-For` list that are read, from its end: no real chain of proxies is longer.
const HOPS_MAX: usize = 32;

/// Where a request comes from. Addresses are in their one form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RequestSource {
    /// The other end of the connection.
    pub peer: IpAddr,
    /// Whether the peer is a trusted proxy.
    pub trusted: bool,
    /// The client behind trusted proxies, and otherwise the peer.
    pub client: IpAddr,
    /// Whether the client came by HTTPS.
    pub secure: bool,
}

impl RequestSource {
    /// Of a request with these headers on a connection of `peer`, by TLS where `secure` says so.
    ///
    /// The client is the last address of `X-Forwarded-For` that is no trusted proxy: each proxy appends the address of its
    /// own client, and whatever precedes that was written by the client. A member that is no address ends the list at
    /// the proxy that wrote it, which then counts as the client. `X-Forwarded-Proto` is believed where it occurs once and is
    /// exactly `http` or `https`. `Forwarded` (RFC 7239) and `X-Real-IP` are not looked at.
    pub fn of(peer: IpAddr, secure: bool, headers: &[Header<'_>], trusted_proxies: &Networks) -> Self {
        let trusted = trusted_proxies.contains(peer);
        if !trusted {
            return Self { peer, trusted, client: peer, secure };
        }
        let client = client(peer, headers, trusted_proxies);
        Self { peer, trusted, client, secure: said_scheme(headers).unwrap_or(secure) }
    }

    /// The id that a trusted proxy has given the request, if it is one that can be kept (`X-Request-Id`, once).
    pub fn request_id(&self, headers: &[Header<'_>]) -> Option<RequestId> {
        let mut values = message::values(headers, "x-request-id").filter(|_| self.trusted);
        values.next().filter(|_| values.next().is_none()).and_then(RequestId::given)
    }

    /// Whether the client is another than who made the connection.
    pub fn is_forwarded(&self) -> bool {
        self.client != self.peer
    }
}

fn client(peer: IpAddr, headers: &[Header<'_>], trusted_proxies: &Networks) -> IpAddr {
    let lines = headers.iter().rev().filter(|header| header.is("x-forwarded-for"));
    let members = lines.flat_map(|header| header.value.rsplit(|byte| *byte == b','));
    let mut client = peer;
    for hop in members.take(HOPS_MAX).map_while(address) {
        client = hop;
        if !trusted_proxies.contains(hop) {
            break;
        }
    }
    client
}

/// An address as proxies write it: an IPv4 one with or without a port, an IPv6 one bare, in brackets, or in brackets with a
/// port. A zone means nothing on another host (RFC 4007 6); `unknown` and `_hidden` (RFC 7239 6) are no addresses.
fn address(member: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(member.trim_ascii()).ok().filter(|text| !text.contains('%'))?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let alone = text.parse().ok().or_else(|| bracketed().map(IpAddr::V6));
    let address = alone.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address| address.to_canonical())
}

/// Whether the client came by HTTPS, where that is said clearly.
fn said_scheme(headers: &[Header<'_>]) -> Option<bool> {
    let mut values = message::values(headers, "x-forwarded-proto");
    let scheme = values.next().filter(|_| values.next().is_none())?;
    let is = |name: &[u8]| scheme.eq_ignore_ascii_case(name);
    (is(b"https") || is(b"http")).then(|| is(b"https"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "10.0.0.1";

    fn address_of(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// From the peer, where `10.0.0.0/24` and `2001:db8::/64` are trusted.
    fn origin(peer: &str, secure: bool, lines: &[(&str, &[u8])]) -> RequestSource {
        let trusted = ["10.0.0.0/24", "2001:db8::/64"].map(|net| net.parse().expect("a network"));
        let headers: Vec<_> = lines.iter().map(|&(name, value)| Header { name, value }).collect();
        RequestSource::of(address_of(peer), secure, &headers, &Networks::from(trusted.to_vec()))
    }

    fn client(peer: &str, lists: &[&str]) -> String {
        let lines: Vec<_> = lists.iter().map(|list| ("x-Forwarded-FOR", list.as_bytes())).collect();
        origin(peer, false, &lines).client.to_string()
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_trusted_proxy() {
        for (lists, told) in [
            (&[][..], PEER),
            (&["192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6,192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6", "192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7, 10.0.0.9"], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7", "10.0.0.9,\t10.0.0.8 "], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7, 2001:db8::9"], "192.0.2.7"),
            (&["192.0.2.7, ::ffff:10.0.0.9"], "192.0.2.7"),
            (&["::ffff:192.0.2.7"], "192.0.2.7"),
            // All are trusted: the first of them asks for itself.
            (&["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
            (&["192.0.2.7:5678"], "192.0.2.7"),
            (&["2001:db9::7"], "2001:db9::7"),
            (&["[2001:db9::7]"], "2001:db9::7"),
            (&["[2001:db9::7]:80"], "2001:db9::7"),
            (&["[::ffff:192.0.2.7]:80"], "192.0.2.7"),
        ] {
            assert_eq!(client(PEER, lists), told, "{lists:?}");
            assert_eq!(
                client("::ffff:192.0.2.1", lists),
                "::ffff:192.0.2.1",
                "{lists:?}: nobody else is believed"
            );
        }
    }

    #[test]
    fn what_is_no_address_ends_the_list_at_who_has_written_it() {
        for garbage in [
            "",
            " ",
            "unknown",
            "_hidden",
            "-",
            "x",
            "localhost",
            "\"[2001:db9::7]:80\"",
            "\"192.0.2.7\"",
            "fe80::1%eth0",
            "[fe80::1%3]:80",
            "fe80::1%3",
            "192.0.2.7:",
            "192.0.2.7:x",
            "192.0.2.7:99999",
            "192.0.2.07",
            "192.0.2.256",
            "192.0.2",
            "3221225991",
            "0x7f.1",
            "[192.0.2.7]",
            "[2001:db9::7",
            "2001:db9::7]",
            "[2001:db9::7]80",
            "for=192.0.2.7",
            "192.0.2.7;x",
            "192.0.2.7 192.0.2.8",
            "192.0.2.7/32",
            "\u{e9}",
        ] {
            assert_eq!(client(PEER, &[&format!("6.6.6.6, {garbage}")]), PEER, "{garbage:?}");
            assert_eq!(client(PEER, &["6.6.6.6", garbage]), PEER, "{garbage:?}");
            assert_eq!(client(PEER, &[&format!("6.6.6.6, {garbage}, 10.0.0.8")]), "10.0.0.8", "{garbage:?}");
            assert_eq!(
                client(PEER, &[&format!("{garbage}, 192.0.2.7, 10.0.0.8")]),
                "192.0.2.7",
                "{garbage:?}"
            );
        }
        assert_eq!(origin(PEER, false, &[("x-forwarded-for", b"6.6.6.6, \xff")]).client, address_of(PEER));
    }

    #[test]
    fn a_list_is_read_to_a_limit() {
        let hops = |count: usize| format!("192.0.2.7{}", ", 10.0.0.8".repeat(count));
        assert_eq!(client(PEER, &[&hops(HOPS_MAX - 1)]), "192.0.2.7");
        assert_eq!(client(PEER, &[&hops(HOPS_MAX)]), "10.0.0.8");
        assert_eq!(client(PEER, &[&",".repeat(30_000)]), PEER);
    }

    #[test]
    fn a_trusted_proxy_says_once_how_the_client_came() {
        for (values, told) in [
            (&[][..], None),
            (&["https"][..], Some(true)),
            (&["http"], Some(false)),
            (&["HTTPS"], Some(true)),
            (&["https, http"], None),
            (&["https", "https"], None),
            (&["https", "http"], None),
            (&[""], None),
            (&["wss"], None),
            (&["ftp"], None),
            (&["https "], None),
        ] {
            let lines: Vec<_> = values.iter().map(|value| ("X-Forwarded-Proto", value.as_bytes())).collect();
            for secure in [true, false] {
                assert_eq!(origin(PEER, secure, &lines).secure, told.unwrap_or(secure), "{values:?}");
                assert_eq!(
                    origin("192.0.2.1", secure, &lines).secure,
                    secure,
                    "{values:?}: nobody else is believed"
                );
            }
        }
    }

    #[test]
    fn other_headers_say_nothing() {
        let lines: [(&str, &[u8]); 4] = [
            ("X-Real-IP", b"192.0.2.7"),
            ("Forwarded", b"for=192.0.2.7;proto=https"),
            ("X_Forwarded_For", b"192.0.2.7"),
            ("X-Forwarded", b"192.0.2.7"),
        ];
        let told = origin(PEER, false, &lines);
        assert_eq!(
            told,
            RequestSource { peer: address_of(PEER), trusted: true, client: address_of(PEER), secure: false }
        );
        assert!(!told.is_forwarded());
    }
}
