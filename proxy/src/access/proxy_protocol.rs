//! The PROXY header, with which a balancer says whom it speaks for (the PROXY protocol, versions 1 and 2). Pure.

use std::net::SocketAddr;

use ppp::{HeaderResult, PartialResult, v1, v2};

use crate::transport::networks::canonical;

/// The longest header that is read: those of real balancers stay far below it.
pub const PROXY_HEADER_BYTES_MAX: usize = 4096;

/// How a line of version 1 starts, and how long it may be.
const V1: &[u8] = b"PROXY";
const V1_BYTES_MAX: usize = 107;

/// A connection that does not start with a PROXY header.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("no PROXY header")]
pub struct InvalidProxyHeader;

/// The client that a load balancer names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProxyHeader {
    /// Bytes of the header.
    pub length: usize,
    /// The client, in the one form of its address; none where the balancer speaks for itself, as in its health checks.
    pub client: Option<SocketAddr>,
}

impl ProxyHeader {
    /// Reads the header at the front of `bytes`; none where its rest is still to come.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, InvalidProxyHeader> {
        // A line of version 1 is read once its end is there, and no further: the library takes parts of one for wrong,
        // wrong ones for parts, and a line feed for a part of the line.
        let (header, is_part) = if bytes.starts_with(V1) {
            let line = memchr::memchr(b'\n', bytes).map_or(bytes, |end| &bytes[..=end]);
            if line.ends_with(b"\n") && !line.ends_with(b"\r\n") {
                return Err(InvalidProxyHeader);
            }
            (HeaderResult::parse(line), !line.ends_with(b"\n") && line.len() < V1_BYTES_MAX)
        } else {
            let header = HeaderResult::parse(bytes);
            let is_part = header.is_incomplete() && bytes.len() < PROXY_HEADER_BYTES_MAX;
            (header, is_part)
        };
        if is_part {
            return Ok(None);
        }
        match header {
            HeaderResult::V1(Ok(header)) => {
                let client = client_v1(header.addresses).map(canonical);
                Ok(Some(Self { length: header.header.len(), client }))
            }
            HeaderResult::V2(Ok(header)) => {
                let client = client_v2(&header).map(canonical);
                Ok(Some(Self { length: header.len(), client }))
            }
            HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Err(InvalidProxyHeader),
        }
    }
}

fn client_v1(addresses: v1::Addresses) -> Option<SocketAddr> {
    match addresses {
        v1::Addresses::Tcp4(v4) => Some((v4.source_address, v4.source_port).into()),
        v1::Addresses::Tcp6(v6) => Some((v6.source_address, v6.source_port).into()),
        v1::Addresses::Unknown => None,
    }
}

fn client_v2(header: &v2::Header<'_>) -> Option<SocketAddr> {
    match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(v4)) => Some((v4.source_address, v4.source_port).into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(v6)) => Some((v6.source_address, v6.source_port).into()),
        (v2::Command::Local, _) | (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    fn v2(rest: &[u8]) -> Vec<u8> {
        [V2, rest].concat()
    }

    #[test]
    fn a_client_is_read_at_any_cut_and_nothing_behind_it_is_used() {
        let cases = [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 443\r\n".to_vec(), Some("192.0.2.7:5000")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 443\r\n".to_vec(), Some("[2001:db8::7]:5000")),
            (b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 5000 443\r\n".to_vec(), Some("192.0.2.7:5000")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (
                v2(&[0x21, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100, 1, 0x13, 0x88, 1, 0xbb]),
                Some("192.0.2.7:5000"),
            ),
            // With a field of its own behind the addresses, as AWS sends one.
            (
                v2(&[0x21, 0x11, 0, 16, 192, 0, 2, 7, 198, 51, 100, 1, 0x13, 0x88, 1, 0xbb, 0xea, 0, 1, 9]),
                Some("192.0.2.7:5000"),
            ),
            (v2(&[0x20, 0, 0, 0]), None),
        ];
        for (header, client) in cases {
            let client = client.map(|client| client.parse().expect("an address"));
            for cut in 0..header.len() {
                assert_eq!(ProxyHeader::read(&header[..cut]), Ok(None), "{header:?} cut at {cut}");
            }
            let followed = [&header[..], b"\x16\x03\x01 and more"].concat();
            let whole = ProxyHeader { length: header.len(), client };
            assert_eq!(ProxyHeader::read(&followed), Ok(Some(whole)));
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_once_and_what_never_ends_after_its_limit() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 443 x\r\n",
            b"PROXY TCP4 192.0.2.7\r\n",
            b"PROXY UNKNOWN a b c d e f\n",
            &[&b"PROXY TCP4 192.0.2.7 "[..], &[b' '; 200]].concat(),
            b"PROXY TCP4 999.0.2.7 198.51.100.1 5000 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 70000 443\r\n",
            &v2(&[0x31, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100, 1, 0x13, 0x88, 1, 0xbb]),
            &v2(&[0x21, 0x11, 0, 3, 192, 0, 2]),
        ] {
            assert_eq!(ProxyHeader::read(bytes), Err(InvalidProxyHeader), "{bytes:?}");
        }
        let endless = [&v2(&[0x21, 0x11, 0xff, 0xff])[..], &[0; PROXY_HEADER_BYTES_MAX]].concat();
        assert_eq!(ProxyHeader::read(&endless), Err(InvalidProxyHeader));
    }
}
