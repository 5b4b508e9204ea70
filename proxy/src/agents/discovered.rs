//! Agents that are found by DNS: their names are made from what the records say. Pure: resolves nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::agents::directory::{AgentState, Directory, DirectoryRules, NamedAgent, check_name};

/// Problems that are told of at once.
const PROBLEMS_MAX: usize = 20;

/// An address that was found.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct FoundAddress {
    /// The host that it is of, where a service record names one; else empty.
    pub host: String,
    /// The port that a service record names.
    pub port: Option<u16>,
    /// The address.
    pub address: IpAddr,
}

/// The agents that were found at a name, and why others are left out. One that a service record (SRV) names has the first label of
/// its host as its name; one of an address record, the first label of `name` and the address, as in `desks-10-0-0-5`. All are in the pool that has that
/// label as its name.
pub fn directory_of(
    name: &str,
    found: &[FoundAddress],
    rules: DirectoryRules<'_>,
) -> (Directory, Vec<String>) {
    let pool = pool_of(name);
    let mut by_name: BTreeMap<String, SocketAddr> = BTreeMap::new();
    let mut problems = Vec::new();
    let usual = rules.ports.first().copied().unwrap_or_default();
    for FoundAddress { host, port, address } in found {
        let address = address.to_canonical();
        let agent = if host.is_empty() { with_address(&pool, address) } else { first_label(host) };
        let port = port.unwrap_or(usual);
        let problem = if !(rules.is_allowed)(address) {
            Some(format!("{agent} is left out: {address} lies in no network of --agents"))
        } else if !rules.ports.contains(&port) {
            Some(format!("{agent} is left out: port {port} is not one of --agent-ports"))
        } else {
            check_name(&agent).err().map(|why| format!("a host is left out: {why}"))
        };
        match problem {
            Some(problem) => problems.push(problem),
            // A host with several addresses is one agent, at the first of them.
            None => drop(by_name.entry(agent).or_insert(SocketAddr::new(address, port))),
        }
    }
    problems.truncate(PROBLEMS_MAX);
    let agent = |(name, address): (String, SocketAddr)| NamedAgent {
        name: name.into(),
        address,
        tls: None,
        state: AgentState::Active,
        pools: vec![pool.clone().into()],
        tags: Vec::new(),
    };
    let (directory, left_out) = Directory::of(by_name.into_iter().map(agent));
    problems.extend(left_out);
    (directory, problems)
}

/// The first label of a name that is no service's (`_dcv._tcp.desks.example.com`: `desks`).
fn pool_of(name: &str) -> String {
    let label = name.split('.').find(|label| !label.starts_with('_')).unwrap_or_default();
    label.to_ascii_lowercase()
}

fn first_label(host: &str) -> String {
    host.split('.').next().unwrap_or_default().to_ascii_lowercase()
}

fn with_address(label: &str, address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{label}-{}", address.to_string().replace('.', "-")),
        IpAddr::V6(address) => {
            let parts: Vec<_> = address.segments().iter().map(|part| format!("{part:x}")).collect();
            format!("{label}-{}", parts.join("-"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(list: &[(&str, Option<u16>, &str)]) -> Vec<FoundAddress> {
        let one = |(host, port, address): &(&str, Option<u16>, &str)| FoundAddress {
            host: (*host).to_owned(),
            port: *port,
            address: address.parse().expect("an address"),
        };
        list.iter().map(one).collect()
    }

    fn agents(name: &str, list: &[(&str, Option<u16>, &str)]) -> (Vec<String>, Vec<String>) {
        let is_allowed = |address: IpAddr| !address.is_loopback();
        let rules = DirectoryRules { ports: &[8443, 9443], is_allowed: &is_allowed, names_files: false };
        let (directory, problems) = directory_of(name, &found(list), rules);
        let told = |agent: &NamedAgent| format!("{} {} {}", agent.name, agent.address, agent.pools.join(","));
        (directory.agents().iter().map(told).collect(), problems)
    }

    #[test]
    fn an_address_makes_the_name_of_an_agent_and_a_host_is_one() {
        let (of_addresses, problems) =
            agents("Desks.example.com", &[("", None, "10.0.0.5"), ("", None, "2001:db8::5")]);
        assert_eq!(
            of_addresses,
            ["desks-10-0-0-5 10.0.0.5:8443 desks", "desks-2001-db8-0-0-0-0-0-5 [2001:db8::5]:8443 desks"]
        );
        assert!(problems.is_empty(), "{problems:?}");
        let hosts = [
            ("WS-17.example.com", Some(9443), "10.0.0.5"),
            ("ws-17.example.com", Some(9443), "2001:db8::5"),
            ("ws-18.example.com", Some(8443), "10.0.0.6"),
        ];
        let (of_hosts, problems) = agents("_dcv._tcp.desks.example.com", &hosts);
        assert_eq!(of_hosts, ["ws-17 10.0.0.5:9443 desks", "ws-18 10.0.0.6:8443 desks"]);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn what_can_be_no_agent_is_left_out_and_told_of() {
        let hosts = [
            ("a.example.com", Some(8443), "127.0.0.1"),
            ("b.example.com", Some(22), "10.0.0.6"),
            ("ws.example.com", Some(8443), "10.0.0.7"),
            ("10-0-0-8.example.com", Some(8443), "10.0.0.8"),
            ("c_d.example.com", Some(8443), "10.0.0.9"),
            ("good.example.com", Some(8443), "10.0.0.10"),
            ("twice.example.com", Some(8443), "10.0.0.10"),
        ];
        let (good, problems) = agents("_dcv._tcp.desks.example.com", &hosts);
        assert_eq!(good, ["good 10.0.0.10:8443 desks"]);
        assert_eq!(problems.len(), 6, "{problems:?}");
    }
}
