//! Paths and hosts in a response that mean the agent, as the client has to see them. Pure.

use std::net::IpAddr;

use crate::forward::{bracketed, line};
use crate::head::{Header, split_port};

/// Where the agent's paths are for the client: its prefix is put back where the agent names a path of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// The agent.
    pub agent: IpAddr,
    /// Whether its paths are behind `/<ip>`; not where it has a host name of its own.
    pub has_prefix: bool,
    /// The port it is reached on.
    pub port: u16,
    /// The host it was told.
    pub host: String,
    /// Whether the request came without the slash behind the prefix, so that its directory is `/`.
    pub bare: bool,
}

impl Mount {
    fn prefix(&self) -> String {
        if self.has_prefix { format!("/{}", self.agent) } else { String::new() }
    }
}

/// Writes a header line with the prefix put back into the paths that it names.
pub fn mounted(header: &Header<'_>, mount: &Mount, out: &mut Vec<u8>) {
    if header.is("location") || header.is("content-location") {
        line(out, header.name, &mounted_location(header.value, mount));
    } else if header.is("set-cookie") {
        line(out, header.name, &mounted_cookie(header.value, mount));
    } else {
        header.write(out);
    }
}

/// `/x` and `https://<agent>[:port]/x` become `/<ip>/x`; what points elsewhere stays.
fn mounted_location(value: &[u8], mount: &Mount) -> Vec<u8> {
    let Some(path) = own_path(value, mount) else { return value.to_vec() };
    let slash: &[u8] = if path.starts_with(b"/") { b"" } else { b"/" };
    [mount.prefix().as_bytes(), slash, path].concat()
}

fn own_path<'a>(value: &'a [u8], mount: &Mount) -> Option<&'a [u8]> {
    if value.starts_with(b"/") && !value.starts_with(b"//") {
        return Some(value);
    }
    let rest = strip_scheme(value)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = std::str::from_utf8(authority).ok()?;
    let (name, port) = split_port(authority);
    let told = split_port(&mount.host).0;
    let own_name = name == bracketed(mount.agent) || name.eq_ignore_ascii_case(told);
    let own_port = port.is_none_or(|port| port.is_empty() || port == mount.port.to_string());
    let as_told = authority.eq_ignore_ascii_case(&mount.host);
    ((own_name && own_port) || as_told).then_some(path)
}

fn strip_scheme(value: &[u8]) -> Option<&[u8]> {
    ["https://", "http://", "//"].iter().find_map(|scheme| {
        let (start, rest) = value.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
    })
}

/// `Path=/x` becomes `Path=/<ip>/x`; without a path the browser takes the directory of the request, which has
/// the prefix already (RFC 6265 5.1.4), but for a bare request. Browsers refuse a `__Host-` cookie with a path:
/// better that than one desktop's cookie sent to all.
fn mounted_cookie(value: &[u8], mount: &Mount) -> Vec<u8> {
    let prefix = mount.prefix();
    let mut parts = value.split(|b| *b == b';');
    let mut out = parts.next().unwrap_or_default().to_vec();
    let mut placed = !mount.bare;
    for part in parts {
        out.push(b';');
        match path_attribute(part) {
            Some((before, path)) if path.starts_with(b"/") => {
                placed = true;
                out.extend([before, prefix.as_bytes(), path].concat());
            }
            _ => out.extend_from_slice(part),
        }
    }
    if !placed {
        out.extend_from_slice(format!("; Path={prefix}/").as_bytes());
    }
    out
}

/// Splits ` Path=/x` after the equals sign.
fn path_attribute(part: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = part.iter().position(|b| *b == b'=')?;
    let value = equals + 1 + part[equals + 1..].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let name = part[..equals].trim_ascii();
    name.eq_ignore_ascii_case(b"path").then(|| part.split_at(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_before_a_cookies_path_hides_nothing() {
        let agent = IpAddr::from([10, 0, 0, 5]);
        let mount = Mount { agent, has_prefix: true, port: 8443, host: "h".to_owned(), bare: false };
        for (from, to) in [("a; Path=/", "a; Path=/10.0.0.5/"), ("a; Path= \t/", "a; Path= \t/10.0.0.5/")] {
            assert_eq!(mounted_cookie(from.as_bytes(), &mount), to.as_bytes());
        }
    }
}
