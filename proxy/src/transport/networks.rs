//! Addresses and the networks that the operator names, each in one form: an IPv4 address is never written as IPv6
//! (`::ffff:10.0.0.5`, RFC 4291 2.5.5.2), so that a rule can't miss an address that is written the other way. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The IPv4 addresses, written as IPv6.
const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// The one form of `at`: IPv4 where it is an IPv4 address, and without the zone of a link-local one.
pub fn canonical(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

/// A network as the operator names it: no bits beyond its length, and IPv4 where its addresses are. `::/0` holds all
/// IPv6 addresses and no IPv4 address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network(IpNet);

/// A text that names no network, and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NetworkError {
    /// Something else.
    #[error("write a network such as 10.0.0.0/8, or 10.0.0.5/32 for one address")]
    Syntax,
    /// An address with bits beyond the length, which would be somebody's mistake.
    #[error("{} is no network of that length: write {}, or {} for the one address", .0.addr(), .0.trunc(), IpNet::from(.0.addr()))]
    Bits(IpNet),
    /// It holds IPv4 addresses in their IPv6 form and others beside them: nobody can tell which are meant.
    #[error(
        "{0} has the IPv4 addresses in it, written as IPv6: write 0.0.0.0/0 for those, and IPv6 networks without them"
    )]
    Mixed(Ipv6Net),
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, length) = text.split_once('/').ok_or(NetworkError::Syntax)?;
        // The standard parser takes no leading zeros, which some programs read as octal.
        let address = address.parse::<IpAddr>().map_err(|_| NetworkError::Syntax)?;
        let length = decimal(length).ok_or(NetworkError::Syntax)?;
        let network = one_family(IpNet::new(address, length).map_err(|_| NetworkError::Syntax)?)?;
        if network.addr() == network.network() { Ok(Self(network)) } else { Err(NetworkError::Bits(network)) }
    }
}

fn decimal(digits: &str) -> Option<u8> {
    let is_number = (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number && (digits == "0" || !digits.starts_with('0')))
}

/// A network of IPv4 addresses in their IPv6 form becomes one of IPv4.
fn one_family(network: IpNet) -> Result<IpNet, NetworkError> {
    let IpNet::V6(v6) = network else { return Ok(network) };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED.prefix_len()));
    match mapped {
        Some((v4, length)) => Ok(Ipv4Net::new(v4, length).map_err(|_| NetworkError::Syntax)?.into()),
        None if v6.prefix_len() > 0 && v6.contains(&MAPPED) => Err(NetworkError::Mixed(v6)),
        None => Ok(network),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Network {
    /// Whether `address` is in it, in whichever form.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// Whether all of it lies in `range`.
    pub fn lies_in(&self, range: &IpNet) -> bool {
        range.contains(&self.0)
    }
}

/// Networks that a rule is about.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Networks(Vec<Network>);

impl From<Vec<Network>> for Networks {
    fn from(networks: Vec<Network>) -> Self {
        Self(networks)
    }
}

impl Networks {
    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `address` is in one of them, in whichever form.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.holding(address.to_canonical()).next().is_some()
    }

    /// Those that `address` is in.
    pub fn holding(&self, address: IpAddr) -> impl Iterator<Item = &Network> {
        self.0.iter().filter(move |network| network.contains(address))
    }
}

/// The address or network that counts as one client.
pub fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv4_has_one_form() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::1/128", "::1/128"),
            ("::ffff:127.0.0.0/104", "127.0.0.0/8"),
            ("::ffff:7f00:0/104", "127.0.0.0/8"),
            ("0:0:0:0:0:ffff:7f00:2/128", "127.0.0.2/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            // Those beside them are none of IPv4.
            ("::fffe:0:0/96", "::fffe:0:0/96"),
            ("::/81", "::/81"),
        ] {
            assert_eq!(
                text.parse::<Network>().map(|network| network.to_string()).as_deref(),
                Ok(shown),
                "{text}"
            );
        }
    }

    #[test]
    fn what_names_no_network_is_refused_with_what_to_write() {
        for (text, told) in [
            ("", "write a network such as"),
            ("10.0.0.5", "write a network such as"),
            ("010.0.0.0/8", "write a network such as"),
            ("10.0.0.0/", "write a network such as"),
            ("10.0.0.0/08", "write a network such as"),
            ("10.0.0.0/+8", "write a network such as"),
            ("10.0.0.0/33", "write a network such as"),
            ("10.0.0.0/8/8", "write a network such as"),
            ("fe80::%1/64", "write a network such as"),
            ("::ffff:10.0.0.0/129", "write a network such as"),
            ("10.0.0.5/8", "10.0.0.5 is no network of that length: write 10.0.0.0/8, or 10.0.0.5/32"),
            (
                "::ffff:10.0.0.5/104",
                "10.0.0.5 is no network of that length: write 10.0.0.0/8, or 10.0.0.5/32",
            ),
            (
                "2001:db8::1/32",
                "2001:db8::1 is no network of that length: write 2001:db8::/32, or 2001:db8::1/128",
            ),
            ("::/80", "::/80 has the IPv4 addresses in it"),
            ("::/1", "::/1 has the IPv4 addresses in it"),
            ("::fffe:0:0/95", "::fffe:0:0/95 has the IPv4 addresses in it"),
            ("::ffff:0:0/95", "::ffff:0.0.0.0/95 has the IPv4 addresses in it"),
            ("::ffff:10.0.0.0/90", "::ffff:10.0.0.0/90 has the IPv4 addresses in it"),
        ] {
            let error = text.parse::<Network>().expect_err(text).to_string();
            assert!(error.starts_with(told), "{text}: {error}");
        }
    }

    #[test]
    fn an_address_is_in_a_network_in_whichever_form() {
        let networks = |text: &str| Networks::from(vec![text.parse::<Network>().expect(text)]);
        for (network, address, is_in) in [
            ("127.0.0.0/8", "::ffff:127.0.0.1", true),
            ("::ffff:127.0.0.0/104", "127.0.0.1", true),
            ("::ffff:127.0.0.0/104", "::ffff:127.0.0.1", true),
            ("::ffff:127.0.0.0/104", "126.0.0.1", false),
            ("::ffff:0:0/96", "10.0.0.1", true),
            ("::ffff:0:0/96", "::1", false),
            ("::/0", "::1", true),
            ("::/0", "10.0.0.1", false),
            ("::/0", "::ffff:10.0.0.1", false),
            ("0.0.0.0/0", "::1", false),
        ] {
            assert_eq!(
                networks(network).contains(address.parse().expect(address)),
                is_in,
                "{network} {address}"
            );
        }
    }

    #[test]
    fn an_address_has_one_form() {
        for (text, one) in [
            ("10.0.0.5:1", "10.0.0.5:1"),
            ("[::ffff:10.0.0.5]:1", "10.0.0.5:1"),
            ("[fe80::1%3]:1", "[fe80::1]:1"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ] {
            let [text, one] = [text, one].map(|text| text.parse::<SocketAddr>().expect(text));
            assert_eq!(canonical(text), one);
        }
    }
}
