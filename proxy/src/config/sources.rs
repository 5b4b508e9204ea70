//! Where agents and sessions are listed, as it is written: a command, a name in DNS, the address of a session resolver. Runs and
//! resolves nothing.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a session resolver is reached.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ResolverUrl {
    /// Whether it speaks TLS.
    pub is_secure: bool,
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What stands before `/resolveSession`; empty for nothing.
    pub path: String,
}

impl FromStr for ResolverUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = || "write http://HOST[:PORT][/PATH], or https://".to_owned();
        let url: http::Uri = text.parse().map_err(|_| help())?;
        let (is_secure, usual) = match url.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return Err(help()),
        };
        let host = url.host().filter(|host| !host.is_empty()).ok_or_else(help)?;
        let has_more = url.query().is_some() || url.authority().is_some_and(|it| it.as_str().contains('@'));
        if has_more || text.contains('#') {
            return Err(help());
        }
        let path = url.path().trim_end_matches('/').to_owned();
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { is_secure, host, port: url.port_u16().unwrap_or(usual), path })
    }
}

impl fmt::Display for ResolverUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { is_secure, host, port, path } = self;
        let scheme = if *is_secure { "https" } else { "http" };
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        write!(f, "{scheme}://{host}:{port}{path}")
    }
}

/// A program and its arguments, and how they were written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CommandWords {
    /// The program, then its arguments.
    pub words: Vec<String>,
}

/// Splits it as a shell would, of which nothing else is done.
pub(super) fn command_words(text: &str) -> Result<CommandWords, String> {
    let words = shlex::split(text).ok_or("a quote is not closed")?;
    match words.first() {
        Some(program) if program.starts_with('/') => Ok(CommandWords { words }),
        _ => Err("write the whole path of a program, such as /usr/local/bin/list-agents, then its arguments"
            .to_owned()),
    }
}

/// Labels of letters, digits, - and _ (RFC 1123 2.1, RFC 2782).
pub(super) fn dns_name(text: &str) -> Result<String, String> {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_inner);
    let name = text.strip_suffix('.').unwrap_or(text);
    let has_pool = name.split('.').any(|label| !label.starts_with('_'));
    if name.len() <= 253 && name.split('.').all(is_label) && has_pool && name.parse::<IpAddr>().is_err() {
        return Ok(name.to_owned());
    }
    Err("write a name such as desks.example.com, or _dcv._tcp.desks.example.com for a service".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_resolver_is_read_as_it_is_shown() {
        for (text, shown) in [
            ("http://a", "http://a:80"),
            ("https://a.example.com/", "https://a.example.com:443"),
            ("https://[2001:db8::5]:8447/x/", "https://[2001:db8::5]:8447/x"),
        ] {
            assert_eq!(text.parse::<ResolverUrl>().map(|url| url.to_string()).as_deref(), Ok(shown));
        }
        for text in ["", "a", "ftp://a", "http://", "http://a?b", "http://a#b", "http://u@a"] {
            assert!(text.parse::<ResolverUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_command_is_a_path_and_its_words() {
        let words = |text| command_words(text).map(|it| it.words);
        assert_eq!(words("/a 'b c' d"), Ok(["/a", "b c", "d"].map(str::to_owned).to_vec()));
        for text in ["", "a", "/a 'b"] {
            assert!(words(text).is_err(), "{text}");
        }
    }
}
