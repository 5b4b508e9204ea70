//! The hosts of a measurement, as network namespaces: this process is the proxy's host, and the agent, the user and the
//! links between them have one each. All of them are in a mount namespace of this program's own, and end with it.

use std::process::Command;

use harness::process::Process;

use super::super::part::{self, Role};
use super::link::{LinkPlan, Way};

pub(crate) const AGENT: &str = "10.90.1.2";
/// The same agent behind a link of its own.
pub(crate) const FAR_AGENT: &str = "10.90.3.2";
pub(crate) const PROXY: &str = "10.90.2.1";

/// Ethernets, without what would put frames together: a link has to see them as the wire would.
/// `near` and `far` are the ends of a link; without its process nothing passes it.
const SCRIPT: &str = r#"
set -eu
mkdir -p /run/netns
mount -t tmpfs none /run/netns
quiet() {
    ip netns exec "$1" sh -c 'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6' 2>/dev/null || true
    for interface in $2; do
        ip -n "$1" link set "$interface" up
        ip netns exec "$1" ethtool -K "$interface" tx off rx off tso off gso off gro off >/dev/null
    done
}
for host in agent far-agent agent-link client-link client; do
    ip netns add "$host"
    ip -n "$host" link set lo up
done
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link add to-agent type veth peer name eth0 netns agent
ip link add to-far-agent type veth peer name near netns agent-link
ip -n agent-link link add far type veth peer name eth0 netns far-agent
ip link add to-client type veth peer name near netns client-link
ip -n client-link link add far type veth peer name eth0 netns client
for interface in to-agent to-far-agent to-client; do
    ip link set "$interface" up
    ethtool -K "$interface" tx off rx off tso off gso off gro off >/dev/null
done
quiet agent eth0; quiet far-agent eth0; quiet client eth0
quiet agent-link "near far"; quiet client-link "near far"
number=0
for leg in agent client far-agent; do
    number=$((number + 1))
    ip address add "10.90.$number.1/24" dev "to-$leg"
    ip -n "$leg" address add "10.90.$number.2/24" dev eth0
    ip -n "$leg" route add default via "10.90.$number.1"
done
"#;

/// Makes the hosts. The caller runs in namespaces of its own already.
pub(crate) fn make() -> Result<(), String> {
    let made = Command::new("sh").args(["-c", SCRIPT]).output();
    let made = made.map_err(|why| format!("sh does not start: {why}"))?;
    if made.status.success() {
        return Ok(());
    }
    Err(format!(
        "the network can't be made (it takes root): {}",
        String::from_utf8_lossy(&made.stderr).trim()
    ))
}

/// The command on one of the hosts.
pub(crate) fn on(host: &str, command: &Command) -> Command {
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", host]).arg(command.get_program()).args(command.get_args());
    inside
}

/// The legs that have a link.
#[derive(Clone, Copy)]
pub(crate) enum Leg {
    Client,
    FarAgent,
}

/// A link that runs until it is dropped. `ways`: from the proxy, and back.
pub(crate) fn link(leg: Leg, ways: [Way; 2], seed: u64, epoch: u64) -> Result<Process, String> {
    let host = match leg {
        Leg::Client => "client-link",
        Leg::FarAgent => "agent-link",
    };
    let plan = LinkPlan { interfaces: ["near".into(), "far".into()], ways, seed, epoch };
    let command = part::command(Role::WanLink, &plan)?;
    Ok(Process::start(on(host, &command)).without_grace())
}
